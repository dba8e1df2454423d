"""Generated conversations that teach tool calling: seeded, streamed, in plain Python.

`conversations` is the training stream, `held_cases` the evaluation on words it never contains, `texts_for_tokenizer`
the text that the vocabulary is learnt from. Words live in `words/` and hand-written tools in `domains/`.
"""

from __future__ import annotations

from openk2.training.data.script import NO_TOOL, Conversation
from openk2.training.data.stream import KINDS, conversations, held_cases, texts_for_tokenizer

__all__ = ["KINDS", "NO_TOOL", "Conversation", "conversations", "held_cases", "texts_for_tokenizer"]
