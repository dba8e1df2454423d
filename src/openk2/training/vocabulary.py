"""A run's tokenizer: that of the checkpoint it starts from, or learned from its data once; then read back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from openk2.errors import ConfigError
from openk2.tokenizer import Tokenizer, save_ranks
from openk2.training.bpe import train_ranks
from openk2.training.data import texts_for_tokenizer
from openk2.training.recipe import Recipe

SPECIAL_SLOTS = 256
RANKS = "tiktoken.model"


def make_tokenizer(recipe: Recipe, folder: Path) -> Tokenizer:
    """Read the tokenizer in `folder`; else take that of the recipe's `init` checkpoint, or learn one of the model's
    vocabulary size, and write it there.

    Raises ConfigError when it does not fit the model.
    """
    given = Path(recipe.init)
    if not (folder / RANKS).exists() and (given / RANKS).exists():
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("tokenizer_config.json", RANKS):
            shutil.copyfile(given / name, folder / name)
    if not (folder / RANKS).exists():
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
        save_ranks(ranks, folder / RANKS)
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.vocab_size != recipe.model.vocab_size:
        raise ConfigError(
            f"{folder} has {tokenizer.vocab_size} tokens, the model {recipe.model.vocab_size}; "
            "choose another --output or set model.vocab_size"
        )
    return tokenizer
