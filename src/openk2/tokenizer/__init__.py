"""Text <-> token ids."""

from openk2.tokenizer.detokenizer import IncrementalDetokenizer
from openk2.tokenizer.tokenizer import SPECIAL_OFFSETS, Tokenizer, load_ranks, save_ranks

__all__ = ["SPECIAL_OFFSETS", "IncrementalDetokenizer", "Tokenizer", "load_ranks", "save_ranks"]
