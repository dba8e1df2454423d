"""Which experts serve what: for every token its kind, and the experts that each layer chose for it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from openk2.chat.template import ChatTemplate
from openk2.errors import ConfigError, DataError
from openk2.models import ForwardBatch, K2Model
from openk2.models.moe import MoE
from openk2.training.data import Conversation, conversations
from openk2.training.files import collect_conversations, collect_texts
from openk2.training.rendered import RenderedTokens

KINDS = ("tool calls", "declarations", "code", "numbers", "prose", "control")
"""Of tokens: inside a section of calls; of the tools' declaration; in a code file or a fenced block; with a digit;
other text; other special tokens. The first that fits counts."""
CODE_SUFFIXES = frozenset(".py .pyi .c .h .cc .cpp .hpp .cu .rs .go .java .kt .js .ts .sh .rb .swift .sql".split())
GENERATED = "generated"
TOP = 3
"""Experts named for each kind."""

Classified = tuple[list[int], list[int]]
"""Token ids, and of each the index in `KINDS`."""


@dataclass(frozen=True)
class KindLoad:
    """What one layer does for one kind of token."""

    kind: str
    tokens: int
    distance: float
    """Total variation between its experts' shares and those of all other tokens: 0 the same, 1 no expert in common."""
    top: tuple[tuple[int, float | None], ...]
    """(expert, its share of these tokens' choices over its share of the others'), the largest shares first; None: no
    other token chose it."""
    shares: tuple[float, ...]
    """Of this kind's choices that went to each expert; they add up to 1."""


@dataclass(frozen=True)
class LayerLoad:
    layer: int
    imbalance: float
    """The fullest expert's load over the mean, all tokens together."""
    idle: int
    """Experts that no token chose."""
    kinds: tuple[KindLoad, ...]


def classify(ids: Sequence[int], template: ChatTemplate, *, is_code: bool = False) -> Classified:
    """The kind of each token of a rendered conversation or a text; `is_code`: of a code file."""
    text = RenderedTokens(ids, template.tokenizer)
    kinds = [KINDS.index("code" if is_code else "prose")] * len(text.ids)

    def mark(span: Iterable[int], kind: str) -> None:
        for i in span:
            kinds[i] = KINDS.index(kind)

    if not is_code:
        mark((i for i, piece in enumerate(text.pieces) if re.search(rb"[0-9]", piece)), "numbers")
        raw = b"".join(text.pieces)
        for fence in re.finditer(rb"```[^\n`]*\n(.*?)```", raw, re.DOTALL):
            inside = (i for i in range(len(text.ids)) if fence.start(1) <= text.offsets[i] < fence.end(1))
            mark(inside, "code")
    for role, content in text.turns():
        if role == "tool_declare":
            mark(content, "declarations")
    in_calls = False
    for i, token_id in enumerate(text.ids):
        name = text.named.get(token_id)
        in_calls = in_calls or name == "<|tool_calls_section_begin|>"
        if in_calls or name is not None:
            kinds[i] = KINDS.index("tool calls" if in_calls else "control")
        in_calls = in_calls and name != "<|tool_calls_section_end|>"
    return text.ids, kinds


def sequences(data: str, template: ChatTemplate, window: int) -> Iterator[Classified]:
    """Of `generated` held-out conversations, without an end, or of a file: JSON lines of conversations or texts,
    parquet, or plain text. Long texts come in pieces of `window` tokens, conversations are cut there.

    Raises DataError as `collect_texts` and `collect_conversations` do.
    """
    if data == GENERATED:
        for made in conversations(0, "held"):
            yield _cut(classify(_render(template, made), template), window)
        return
    path = Path(data)
    if _holds_conversations(path):
        talks = collect_conversations([path])
        for i in range(len(talks)):
            yield _cut(classify(_render(template, talks.read(i)), template), window)
        return
    texts = collect_texts([path])
    for i in range(len(texts)):
        ids = template.tokenizer.encode(texts.read(i).text)
        ids, kinds = classify(ids, template, is_code=path.suffix in CODE_SUFFIXES)
        for start in range(0, len(ids), window):
            yield ids[start : start + window], kinds[start : start + window]


def _render(template: ChatTemplate, made: Conversation) -> list[int]:
    return template.render(made.messages, made.tools, add_generation_prompt=False)


def _cut(sequence: Classified, window: int) -> Classified:
    return sequence[0][:window], sequence[1][:window]


def _holds_conversations(path: Path) -> bool:
    if path.suffix not in (".jsonl", ".ndjson"):
        return False
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return '"messages"' in next((line for line in file if line.strip()), "")
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}", param=str(path)) from None


@torch.no_grad()
def count_choices(model: K2Model, data: Iterable[Classified], most_tokens: int) -> dict[int, Tensor]:
    """Of each MoE layer (kinds, experts): how often each expert was chosen for tokens of each kind.

    Takes whole sequences until `most_tokens` tokens. Raises ConfigError for a model without experts.
    """
    gates = {i: layer.mlp.gate for i, layer in enumerate(model.decoder_layers) if isinstance(layer.mlp, MoE)}
    if not gates:
        raise ConfigError("this model has no experts: all its layers are dense")
    experts = model.config.n_routed_experts or 0
    device = model.lm_head.weight.device
    counts = {i: torch.zeros(len(KINDS), experts, dtype=torch.int64) for i in gates}
    present: list[Tensor] = []

    def watch(layer: int) -> Any:
        def seen(module: Any, given: Any, chosen: tuple[Tensor, Tensor]) -> None:
            ids = chosen[0].cpu()
            cells = (present[0][:, None] * experts + ids).flatten()
            counts[layer] += torch.bincount(cells, minlength=len(KINDS) * experts).view(len(KINDS), experts)

        return seen

    hooks = [gate.register_forward_hook(watch(i)) for i, gate in gates.items()]
    try:
        left = most_tokens
        for ids, kinds in data:
            present[:] = [torch.tensor(kinds)]
            model(torch.tensor(ids, device=device), ForwardBatch.packed([len(ids)], device=device))
            left -= len(ids)
            if left <= 0:
                break
    finally:
        for hook in hooks:
            hook.remove()
    return counts


def layer_loads(counts: dict[int, Tensor], experts_per_token: int) -> list[LayerLoad]:
    """The figures of each layer; kinds without tokens are left out."""
    made = []
    for layer, table in counts.items():
        total = table.sum(0)
        kinds = []
        for i, kind in enumerate(KINDS):
            chosen = int(table[i].sum())
            if chosen == 0:
                continue
            shares = table[i] / chosen
            others = total - table[i]
            rest = others / others.sum().clamp_min(1)
            best = shares.argsort(descending=True, stable=True)[:TOP].tolist()
            top = tuple((e, float(shares[e] / rest[e]) if rest[e] > 0 else None) for e in best)
            distance = float((shares - rest).abs().sum() / 2) if int(others.sum()) else 0.0
            kinds.append(KindLoad(kind, chosen // experts_per_token, distance, top, tuple(shares.tolist())))
        mean = float(total.float().mean())
        made.append(LayerLoad(layer, float(total.max()) / mean if mean else 0.0, int((total == 0).sum()), tuple(kinds)))
    return made


def experts_of(model: K2Model, template: ChatTemplate, data: Sequence[str], tokens: int) -> list[LayerLoad]:
    """The figures of `model` on each of `data` (see `sequences`), an equal part of `tokens` of each."""
    window = min(model.config.max_position_embeddings, 2048)
    totals: dict[int, Tensor] = {}
    for source in data:
        found = count_choices(model, sequences(source, template, window), -(-tokens // len(data)))
        totals = {i: found[i] + totals.get(i, 0) for i in found}
    return layer_loads(totals, model.config.num_experts_per_tok)
