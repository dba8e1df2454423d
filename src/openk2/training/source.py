"""The batches of a run. What comes next is a function of the seed and of a position that the run's state keeps, so that
a resumed run sees what it would have seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch

from openk2.chat.template import ChatTemplate
from openk2.errors import CheckpointError, DataError
from openk2.training.data import Conversation
from openk2.training.files import Collection, Document, Order, split
from openk2.training.packing import Example, PackedBatch, collate, render_example
from openk2.training.recipe import StageConfig

Conversations = Callable[[int, int], Iterator[Conversation]]
"""(seed, data stage) to an endless stream."""
Position = Mapping[str, Any]
"""Where a stream goes on: plain values, kept in the run's state."""
MOST_REFUSED = 200
"""Generated conversations in a row that are too long: then the window is too short for any."""
SHORTEST = 16
"""Tokens: a batch of text with less room than this is full."""


class Source(Protocol):
    """Where a trainer's batches come from."""

    @property
    def template(self) -> ChatTemplate: ...

    def batch(self, number: int, stage: StageConfig) -> PackedBatch:
        """The run's batch `number`, counted from 0; every number is asked for once, in order."""

    def position(self) -> Position:
        """Where the next batch begins."""

    def seek(self, position: Position) -> None:
        """Go on at a `position()` of before. Raises CheckpointError when it is one of other data."""


class BatchSource:
    """Draws a batch's conversations from a stream of its own, renders and packs them."""

    def __init__(self, template: ChatTemplate, conversations: Conversations, *, seed: int, max_length: int) -> None:
        self.template, self.conversations = template, conversations
        self.seed, self.max_length = seed, max_length

    def batch(self, number: int, stage: StageConfig) -> PackedBatch:
        """At most `stage.batch_tokens` tokens in whole conversations of at most `max_length` tokens.

        Raises DataError when none fits `max_length`.
        """
        seed = self.seed * 1_000_003 + number
        examples: list[Example] = []
        size = refused = 0
        for example in self._examples(seed, stage):
            length = len(example.token_ids)
            if length > self.max_length:
                refused += 1
                if refused == MOST_REFUSED:
                    raise self._no_use()
                continue
            if examples and size + length > stage.batch_tokens:
                break
            refused = 0
            examples.append(example)
            size += length
        return _with_prompts(collate(examples), seed, stage.prompt_weight)

    def _examples(self, seed: int, stage: StageConfig) -> Iterator[Example]:
        """What a batch is filled from, in order."""
        for conversation in self.conversations(seed, stage.data_stage):
            yield render_example(self.template, conversation.tools, conversation.messages)

    def _no_use(self) -> DataError:
        return DataError(
            f"generated conversations do not fit model.max_position_embeddings ({self.max_length} tokens)",
            param="model.max_position_embeddings",
        )

    def position(self) -> Position:
        """Nothing: the number of a batch says what is in it."""
        return {}

    def seek(self, position: Position) -> None:
        if position:
            raise CheckpointError("the run's state is of data from files; choose another --output")


class FileSource:
    """Batches from the training documents of a collection, shuffled anew in every epoch."""

    def __init__(
        self, template: ChatTemplate, documents: Collection[Any], *, seed: int, max_length: int, held_out: float
    ) -> None:
        """Raises DataError when the held-out share leaves one side empty."""
        self.template, self.documents = template, documents
        self.seed, self.max_length = seed, max_length
        self.members, self.held = split(documents.digests, held_out)
        self.order = Order(self.members, seed)

    def position(self) -> Position:
        return {
            "documents": self.documents.fingerprint,
            "files": self.documents.by_file,
            "epoch": self.order.epoch,
            "index": self.order.index,
        }

    def seek(self, position: Position) -> None:
        if position.get("documents") != self.documents.fingerprint or len(self.order.members) <= position["index"]:
            raise CheckpointError(
                "data.files: the run's state is of other data than the files hold now"
                f"{_difference(position.get('files', {}), self.documents.by_file)}: restore them, or choose another "
                "--output for a new run",
                param="data.files",
            )
        self.order.seek(position["epoch"], position["index"])

    def _no_use(self) -> DataError:
        return DataError(
            f"none of the {len(self.members)} training documents can be learned from: they are empty, or longer than "
            f"model.max_position_embeddings ({self.max_length} tokens)",
            param="data.files",
        )


class MessageSource(FileSource):
    """Whole conversations from files; those longer than the window are left out and counted."""

    documents: Collection[Conversation]
    left_out = 0
    """Conversations so far that were too long."""

    def batch(self, number: int, stage: StageConfig) -> PackedBatch:
        """At most `stage.batch_tokens` tokens, but always one conversation."""
        examples: list[Example] = []
        size, refused = 0, 0
        while refused < len(self.members):
            conversation = self.documents.read(self.order.current)
            example = render_example(self.template, conversation.tools, conversation.messages)
            if len(example.token_ids) > self.max_length:
                refused += 1
                self.left_out += 1
            elif examples and size + len(example.token_ids) > stage.batch_tokens:
                break
            else:
                examples.append(example)
                size += len(example.token_ids)
                refused = 0
            self.order.advance()
        if not examples:
            raise self._no_use()
        return _with_prompts(collate(examples), self.seed * 1_000_003 + number, stage.prompt_weight)

    def shuffled(self, seed: int, data_stage: int) -> Iterator[Conversation]:
        """All training conversations in an order that follows from `seed`; files have no stages."""
        order = Order(self.members, seed)
        for _ in self.members:
            yield self.documents.read(order.current)
            order.advance()

    def position(self) -> Position:
        return {**super().position(), "left_out": self.left_out}

    def seek(self, position: Position) -> None:
        super().seek(position)
        self.left_out = position["left_out"]

    def held_conversations(self, most: int) -> list[Conversation]:
        """The first held-out ones that fit the window, at most `most`."""
        found: list[Conversation] = []
        for index in self.held:
            if len(found) == most:
                break
            made = self.documents.read(index)
            if len(render_example(self.template, made.tools, made.messages).token_ids) <= self.max_length:
                found.append(made)
        return found


class TextSource(FileSource):
    """Texts from files: every token is learned; a document ends with the vocabulary's end token.

    A batch is filled to its last token: a document that does not fit goes on in the next batch, as a sequence of its
    own that begins with the last token of the piece before. So each token but a document's first is learned once.
    """

    documents: Collection[Document]
    token = 0
    """Where in the present document the next piece begins."""
    _tokens: tuple[int, list[int]] = (-1, [])

    def batch(self, number: int, stage: StageConfig) -> PackedBatch:
        """`stage.batch_tokens` tokens, or a few less; pieces of at most `max_length`."""
        examples: list[Example] = []
        room, passed = stage.batch_tokens, 0
        while room >= SHORTEST or not examples:
            ids = self._present()
            piece = ids[self.token : self.token + max(2, min(room, self.max_length))]
            if len(piece) > 1:
                examples.append(_text_example(piece))
                room -= len(piece)
                passed = 0
            else:
                passed += 1
            if self.token + len(piece) < len(ids):
                self.token += len(piece) - 1
            else:
                self.token = 0
                self.order.advance()
            if passed > len(self.members):
                raise self._no_use()
        return collate(examples)

    def _present(self) -> list[int]:
        index = self.order.current
        if self._tokens[0] != index:
            self._tokens = (index, document_tokens(self.template, self.documents.read(index)))
        return self._tokens[1]

    def position(self) -> Position:
        return {**super().position(), "token": self.token}

    def seek(self, position: Position) -> None:
        super().seek(position)
        self.token = position["token"]

    def held_examples(self, most: int) -> list[Example]:
        """The beginnings of the first held-out documents, at most `most`."""
        tokens = (document_tokens(self.template, self.documents.read(i)) for i in self.held[:most])
        return [_text_example(ids[: self.max_length]) for ids in tokens if len(ids) > 1]


def _difference(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """` (a.txt has changed)`: the first file that differs, where the state says; one that moved is the same file."""
    for path, fingerprint in before.items():
        if path in now and now[path] != fingerprint:
            return f" ({path} has changed)"
        if path not in now and fingerprint not in now.values():
            return f" ({path} is not among them)"
    for path, fingerprint in now.items():
        if before and fingerprint not in before.values():
            return f" ({path} was not among them)"
    return " (their order differs)" if before else ""


def document_tokens(template: ChatTemplate, document: Document) -> list[int]:
    """Control tokens that a text spells out are text; where it ends, the vocabulary's end token follows."""
    tokenizer = template.tokenizer
    return tokenizer.encode(document.text) + [tokenizer.eos_id] * document.ends


def _text_example(token_ids: Sequence[int]) -> Example:
    return Example(list(token_ids), [True] * len(token_ids))


def _with_prompts(batch: PackedBatch, seed: int, share: float) -> PackedBatch:
    """Learn that share of the other tokens too, drawn at random."""
    if share > 0:
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.rand(batch.labels.shape, generator=generator) < share
        batch.supervised.logical_or_(drawn & (batch.labels >= 0))
    return batch
