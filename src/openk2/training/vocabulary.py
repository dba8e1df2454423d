"""A run's tokenizer: given, of the checkpoint that it starts from, or learned from its data; then read back."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from openk2.chat.template import sort_keys
from openk2.config.whole_file import whole_file
from openk2.errors import ConfigError, TokenizerError
from openk2.tokenizer import Tokenizer, save_ranks
from openk2.training.bpe import MERGES, train_ranks
from openk2.training.data import Conversation, texts_for_tokenizer
from openk2.training.files import Collection, Document, Order, split
from openk2.training.recipe import Recipe

SPECIAL_SLOTS = 256
RANKS = "tiktoken.model"
CONFIG = "tokenizer_config.json"


def make_tokenizer(recipe: Recipe, folder: Path, documents: Collection[Any] | None = None) -> Tokenizer:
    """Read the tokenizer in `folder`; else take the recipe's, that of its `init` checkpoint, or learn one of the
    model's vocabulary size from the run's data (`documents`: those of its files), and write it there.

    Raises ConfigError when it does not fit the model, TokenizerError when the recipe's folder has none or it cannot be
    written.
    """
    given = Path(recipe.tokenizer.folder or recipe.init)
    if not (folder / RANKS).exists() and (given / RANKS).exists():
        names = [name for name in (CONFIG, RANKS) if (given / name).exists()]
        _write_files(folder, {name: partial(shutil.copyfile, given / name) for name in names})
    if not (folder / RANKS).exists():
        if recipe.tokenizer.folder is not None:
            raise TokenizerError(f"tokenizer.folder: there is no {RANKS} in {given}", param="tokenizer.folder")
        samples = recipe.tokenizer.samples
        texts = (
            texts_for_tokenizer(recipe.tokenizer.seed, samples)
            if documents is None
            else islice(_texts_of(documents, recipe), samples)
        )
        wanted = recipe.model.vocab_size - SPECIAL_SLOTS
        ranks = train_ranks(texts, wanted, allow=MERGES[recipe.tokenizer.merges])
        if (size := len(ranks) + SPECIAL_SLOTS) < recipe.model.vocab_size:
            raise ConfigError(
                f"the data give a vocabulary of only {size} tokens, the model has {recipe.model.vocab_size}: "
                f"give more text, or set model.vocab_size={size}",
                param="model.vocab_size",
            )
        write_tokenizer(ranks, folder)
    tokenizer = Tokenizer.from_folder(folder)
    if tokenizer.vocab_size != recipe.model.vocab_size:
        raise ConfigError(
            f"{folder} has {tokenizer.vocab_size} tokens, the model {recipe.model.vocab_size}; "
            "choose another --output or set model.vocab_size"
        )
    return tokenizer


def write_tokenizer(ranks: Mapping[bytes, int], folder: Path) -> None:
    """Write `tiktoken.model` and its configuration with the published special tokens.

    Raises TokenizerError when they cannot be written.
    """
    config = {
        "tokenizer_class": "TikTokenTokenizer",
        "added_tokens_decoder": {
            str(token_id): {"content": text, "special": "tool_call" not in text}
            for text, token_id in Tokenizer(ranks).specials.items()
        },
    }
    text = json.dumps(config, indent=1) + "\n"
    _write_files(folder, {CONFIG: lambda file: file.write_text(text), RANKS: partial(save_ranks, ranks)})


def _write_files(folder: Path, writers: Mapping[str, Callable[[Path], object]]) -> None:
    """Each file aside and renamed, in their order: a folder that has the last one has all of it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, write in writers.items():
            with whole_file(folder / name) as aside:
                write(aside)
    except OSError as error:
        raise TokenizerError(f"cannot write the vocabulary to {folder}: {error.strerror or error}") from None


def _texts_of(documents: Collection[Any], recipe: Recipe) -> Iterator[str]:
    """Of one epoch of the training documents."""
    members, _ = split(documents.digests, recipe.data.held_out)
    order = Order(members, recipe.tokenizer.seed)
    for _ in members:
        yield from document_texts(documents.read(order.current))
        order.advance()


def document_texts(document: Document | Conversation) -> Iterable[str]:
    """What a document's tokens are made from: of a conversation its texts, calls and declarations as rendered."""
    if isinstance(document, Document):
        return [document.text]
    messages = document.messages
    texts = [m.text for m in messages if m.text] + [c.arguments for m in messages for c in m.tool_calls]
    if document.tools:
        declared = sort_keys([dict(t.declaration) for t in document.tools])
        texts.append(json.dumps(declared, ensure_ascii=False, separators=(",", ":")))
    return texts
