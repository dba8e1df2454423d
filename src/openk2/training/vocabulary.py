"""A run's tokenizer: learned from its data once, then read back."""

from __future__ import annotations

import json
from pathlib import Path

from openk2.errors import ConfigError
from openk2.tokenizer import Tokenizer, save_ranks
from openk2.training.bpe import train_ranks
from openk2.training.data import texts_for_tokenizer
from openk2.training.recipe import Recipe

SPECIAL_SLOTS = 256


def make_tokenizer(recipe: Recipe, folder: Path) -> Tokenizer:
    """Read the tokenizer in `folder`, or learn one of the model's vocabulary size and write it there.

    Raises ConfigError when an existing one does not fit the model.
    """
    if not (folder / "tiktoken.model").exists():
        texts = texts_for_tokenizer(recipe.tokenizer.seed, recipe.tokenizer.samples)
        ranks = train_ranks(texts, recipe.model.vocab_size - SPECIAL_SLOTS)
        folder.mkdir(parents=True, exist_ok=True)
        config = {
            "tokenizer_class": "TikTokenTokenizer",
            "added_tokens_decoder": {
                str(token_id): {"content": text, "special": "tool_call" not in text}
                for text, token_id in Tokenizer(ranks).specials.items()
            },
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n")
        save_ranks(ranks, folder / "tiktoken.model")
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.vocab_size != recipe.model.vocab_size:
        raise ConfigError(
            f"{folder} has {tokenizer.vocab_size} tokens, the model {recipe.model.vocab_size}; "
            "choose another --output or set model.vocab_size"
        )
    return tokenizer
