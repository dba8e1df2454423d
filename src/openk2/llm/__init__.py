"""Tokenizer, chat template and engine together: the local ChatProvider."""

from openk2.llm.answers import Generation
from openk2.llm.llm import LLM

__all__ = ["LLM", "Generation"]
