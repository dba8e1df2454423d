"""A recipe and a folder to a run that is ready to go: tokenizer, data, trainer, what is held out."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

from openk2.chat.template import ChatTemplate
from openk2.errors import DataError
from openk2.training.data import Conversation, conversations
from openk2.training.files import collect_conversations, collect_texts, expand_paths
from openk2.training.long_source import LongSource, held_long
from openk2.training.packing import Example
from openk2.training.parallel import ALONE, Ranks
from openk2.training.recipe import MADE_HERE, Recipe
from openk2.training.rl.tasks import Stream
from openk2.training.rl.trainer import RLTrainer
from openk2.training.source import BatchSource, MessageSource, Source, TextSource
from openk2.training.trainer import Trainer
from openk2.training.vocabulary import make_tokenizer

Held = Sequence[Conversation | Example]


def open_run(
    recipe: Recipe,
    folder: Path,
    *,
    device: str = "cpu",
    ranks: Ranks = ALONE,
    watch: Callable[[list[Path]], Iterable[Path]] = lambda paths: paths,
) -> tuple[Trainer, Held]:
    """The trainer, not yet resumed, and the held-out data. `watch` passes the data files on as they are read. Every
    rank reads the same data: `ranks` share the batches, not the files.

    Raises DataError, ConfigError and the like, one line each, for what is wrong with data, recipe or tokenizer.
    """
    ranks.check(recipe)
    data = recipe.data
    window = recipe.model.max_position_embeddings
    if data.kind in MADE_HERE:
        with ranks.first_alone():
            template = ChatTemplate(make_tokenizer(recipe, folder / "tokenizer"))

        def stream(seed: int, stage: int) -> Iterator[Conversation]:
            return conversations(seed, "train", stage=stage)

        source_kind = LongSource if data.kind == "long" else BatchSource
        source = source_kind(template, stream, seed=recipe.seed, max_length=window)
        last, most = recipe.stages[-1], recipe.validation_conversations
        held: list[Conversation] = []
        if data.kind == "long":
            held += held_long(template, recipe.seed, last.sequence_tokens or window, most // 2)
        held += islice(conversations(recipe.seed, "held", stage=last.data_stage), most - len(held))
        return _trainer(recipe, source, stream, folder, device, ranks), held
    paths = watch(expand_paths(data.files))
    documents = collect_texts(paths, data.text_field) if data.kind == "text" else collect_conversations(paths)
    with ranks.first_alone():
        template = ChatTemplate(make_tokenizer(recipe, folder / "tokenizer", documents))
    kind = TextSource if data.kind == "text" else MessageSource
    files: TextSource | MessageSource = kind(
        template,
        documents,
        seed=recipe.seed,
        max_length=window,
        held_out=data.held_out,
    )
    most = recipe.validation_conversations
    held_files: Held = files.held_examples(most) if isinstance(files, TextSource) else files.held_conversations(most)
    if data.held_out > 0 and most > 0 and not held_files:
        raise DataError("no held-out document fits the model's window; raise data.held_out", param="data.held_out")
    messages = files.shuffled if isinstance(files, MessageSource) else None
    return _trainer(recipe, files, messages, folder, device, ranks), held_files


def _trainer(recipe: Recipe, source: Source, stream: Stream | None, folder: Path, device: str, ranks: Ranks) -> Trainer:
    if recipe.rl is not None and stream is not None:
        return RLTrainer(recipe, source, stream, folder, device=device)
    return Trainer(recipe, source, folder, device=device, ranks=ranks)
