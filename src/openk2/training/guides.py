"""Where chosen attention heads should look, read off the tokens of a conversation: a loss beside the usual one.

A small model left to itself uses the first layers' attention and leaves that of later ones without a purpose
(dev/LOG.md), because a choice of a tool takes several steps in a row and no step pays before the others work. Guides
give each step a target of its own. For every kind, the loss is the cross-entropy between the attention of a row and an
even spread over its targets:

- `label`: a word of a tool's description, or of its name past the first token, looks at the latest start of a name.
  For a description that is the tool declared before (for the first tool: the declaration's start), since it precedes
  its own tool's name: whose it is can be told by it all the same;
- `previous`: the first token of a name looks at the same place as its description, so that the two can be matched;
- `described`, `named`: a word of a request looks at itself in the descriptions, and in the names, of the tools that
  have it, unless all have it; a word that no tool has (of these, a sample) looks at the very first token;
- `described_owner`, `named_owner`: such a word looks at the first tokens of those tools' names;
- `request`: the token before a call's tool name, and the one that decides whether to call, looks at the request's
  words that name the tool, those that few others have;
- `tool`: the same tokens, and those in the name where names with one start part, look at what comes next in the
  name's declaration;
- `parameter`: the token before an argument's value looks at the parameter's name and description;
- `source`: the token before a copied one looks at the original in the request or in a tool's result.

Rows that decide are found beside them (`decision`, no targets): what precedes the start of a reply, the choices in a
tool's name, of each argument the key, what the value begins with (a quote, a space), its first token and what follows
it, and whether another call follows. A reply's start counts whether it calls or answers: were one of them heavier, the
model would prefer it.

Guided attention is as in Deshpande & Narasimhan 2020 (arXiv:2010.02399), with targets from the text's structure.
"""

from __future__ import annotations

import json
from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from openk2.tokenizer import Tokenizer

KINDS = (
    "label",
    "previous",
    "described",
    "named",
    "described_owner",
    "named_owner",
    "request",
    "tool",
    "parameter",
    "source",
)
DECISION = "decision"
MOST_ROWS = 32
"""Of one kind in one conversation that are looked at: an even sample stands for the rest."""

NOWHERE_SAMPLE = 4
"""One in so many words of requests that no tool has is guided."""
FUNCTION_WORDS = frozenset(
    b"the of in to it an and for that this on or is by at with when its use you user lets want from".split()
)
"""They tell no tool from another."""

Row = tuple[int, tuple[int, ...]]
"""A token and the earlier tokens (or itself) it should attend to."""
Guides = Mapping[str, Sequence[Row]]
"""The rows of each kind, and of `DECISION`."""


@dataclass(frozen=True)
class _Tool:
    name_start: int
    """The first token of the name."""
    name: range
    """The name's tokens."""
    description: tuple[int, ...]
    """The description's words."""
    parameters: Mapping[str, tuple[int, ...]]
    """The words of each parameter's name and description."""


def find_guides(token_ids: Sequence[int], tokenizer: Tokenizer) -> Guides:
    """All rows of a rendered conversation. What does not have the template's form is left out."""
    text = _Tokens(token_ids, tokenizer)
    found: dict[str, list[Row]] = {kind: [] for kind in (*KINDS, DECISION)}
    tools: dict[str, _Tool] = {}
    votes: dict[int, set[tuple[str, int]]] = {}
    request: range | None = None
    sources: list[range] = []
    for role, span in text.turns():
        if role == "tool_declare":
            tools = _declared(text, span)
            before = span.start
            for tool in tools.values():
                found["label"] += [(i, (before,)) for i in tool.description]
                found["label"] += [(i, (tool.name_start,)) for i in tool.name[1:]]
                found["previous"].append((tool.name_start, (before,)))
                before = tool.name_start
        elif role == "user":
            request = span
            shared = _votes(text, span, tools)
            votes = {i: at for i, at in shared.items() if len({name for name, _ in at}) < len(tools)}
            named = {i for tool in tools.values() for i in tool.name}
            for i in span:
                if i in shared and i not in votes:
                    continue  # all tools have it
                for kind in ("described", "named"):
                    at = {(tool, p) for tool, p in votes.get(i, ()) if (p in named) == (kind == "named")}
                    if at:
                        found[kind].append((i, tuple(sorted({p for _, p in at}))))
                        found[kind + "_owner"].append((i, tuple(sorted({tools[name].name_start for name, _ in at}))))
                    elif i % NOWHERE_SAMPLE == 0:
                        found[kind].append((i, (0,)))
        elif role == "assistant":
            _guide_reply(text, span, tools, request, votes, sources, found)
        if role not in ("tool_declare", "system", "assistant"):
            sources.append(span)
    return found


class _Tokens:
    """A rendered conversation with its bytes: spans of text to spans of tokens."""

    def __init__(self, token_ids: Sequence[int], tokenizer: Tokenizer) -> None:
        self.ids = list(token_ids)
        self.special = tokenizer.specials
        self.named = {v: k for k, v in tokenizer.specials.items()}
        self.pieces = [b"" if i in tokenizer.special_ids else tokenizer.token_bytes(i) for i in self.ids]
        self.offsets = [0]
        for piece in self.pieces:
            self.offsets.append(self.offsets[-1] + len(piece))

    def text(self, span: range) -> bytes:
        return b"".join(self.pieces[span.start : span.stop])

    def turns(self) -> Iterator[tuple[str, range]]:
        """(role, tokens of the content) of each turn."""
        role_start = content = 0
        for i, token_id in enumerate(self.ids):
            name = self.named.get(token_id)
            if name in ("<|im_system|>", "<|im_user|>", "<|im_assistant|>"):
                role_start = i + 1
            elif name == "<|im_middle|>":
                role, content = self.text(range(role_start, i)).decode(errors="replace"), i + 1
            elif name == "<|im_end|>" and content > role_start:
                yield role, range(content, i)

    def starting_at(self, offset: int) -> int | None:
        """The token whose first byte stands at `offset`."""
        i = bisect_left(self.offsets, offset)
        while i < len(self.pieces) and not self.pieces[i]:
            i += 1
        return i if i < len(self.pieces) and self.offsets[i] == offset else None

    def holding(self, offset: int) -> int:
        """The token that the byte at `offset` belongs to."""
        return bisect_right(self.offsets, offset) - 1

    def words(self, start: int, end: int) -> tuple[int, ...]:
        """The tokens wholly in these bytes that hold at least two letters or digits and are no function word."""
        first = bisect_left(self.offsets, start)
        found = []
        for i in range(first, len(self.pieces)):
            if self.offsets[i + 1] > end:
                break
            if sum(chr(b).isalnum() or b > 127 for b in self.pieces[i]) >= 2 and not self.is_function_word(i):
                found.append(i)
        return tuple(found)

    def is_function_word(self, i: int) -> bool:
        around = (self.pieces[i - 1][-1:] if i else b"") + (self.pieces[i + 1][:1] if i + 1 < len(self.pieces) else b"")
        return self.pieces[i].lower() in FUNCTION_WORDS and not any(chr(b).isalnum() for b in around)


def _compact(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def _declared(text: _Tokens, span: range) -> dict[str, _Tool]:
    """The tools of a declaration turn, found again by writing each part as the template does."""
    raw = text.text(span)
    try:
        objects = json.loads(raw)
    except ValueError:
        return {}
    base, at = text.offsets[span.start], 0
    tools = {}
    for item in objects:
        function = item["function"]
        start = raw.find(_compact(item), at)
        marker = b'"name":' + _compact(function["name"]) + b',"parameters"'
        name_at = raw.find(marker, start)
        if start < 0 or name_at < 0:
            return {}
        name_start = text.starting_at(base + name_at + len(b'"name":"'))
        description: tuple[int, ...] = ()
        if function.get("description"):
            opening = start + len(b'{"function":{"description":"')
            description = text.words(base + opening, base + name_at - 2)
        at = name_at + len(marker)
        parameters = {}
        for key, schema in function["parameters"].get("properties", {}).items():
            written = _compact(key) + b":" + _compact(schema)
            at = raw.find(written, at)
            if at < 0:
                return {}
            words = text.words(base + at, base + at + len(_compact(key)))
            told = schema.get("description") if isinstance(schema, dict) else None
            if told:
                where = raw.find(b'"description":' + _compact(told), at)
                words += text.words(base + where + len(b'"description":"'), base + where + 15 + len(told.encode()))
            parameters[key] = words
            at += len(written)
        if name_start is not None:
            last = bisect_left(text.offsets, base + name_at + len(b'"name":') + len(_compact(function["name"])) - 1)
            tools[function["name"]] = _Tool(name_start, range(name_start, last), description, parameters)
    return tools


def _votes(text: _Tokens, request: range, tools: Mapping[str, _Tool]) -> dict[int, set[tuple[str, int]]]:
    """Tokens of the request that tools have, in name or description: alone, or after the one before.

    For each, the (tool, token there) pairs.
    """
    ids, pieces = text.ids, text.pieces
    places: dict[tuple[int, ...], set[tuple[str, int]]] = defaultdict(set)
    for name, tool in tools.items():
        told = range(tool.description[0] - 1, tool.description[-1] + 1) if tool.description else range(0)
        for span in (told, tool.name):
            for i in span:
                if text.is_function_word(i):
                    continue
                if len(pieces[i]) >= 3 and pieces[i].isalpha():
                    places[ids[i],].add((name, i))
                if i > span.start and pieces[i].isalnum() and pieces[i - 1].isalnum():
                    places[ids[i - 1], ids[i]].add((name, i))
    found = {}
    for i in request:
        if text.is_function_word(i):
            continue
        at = places.get((ids[i],), set()) | places.get((ids[i - 1], ids[i]), set())
        if at:
            found[i] = at
    return found


def _guide_reply(
    text: _Tokens,
    reply: range,
    tools: Mapping[str, _Tool],
    request: range | None,
    votes: Mapping[int, set[tuple[str, int]]],
    sources: Sequence[range],
    found: dict[str, list[Row]],
) -> None:
    begins = [i for i in reply if text.named.get(text.ids[i]) == "<|tool_call_begin|>"]
    plain_end = begins[0] if begins else reply.stop
    copied = [range(reply.start, plain_end)]
    deciding = {reply.start - 1}
    for number, begin in enumerate(begins):
        named = [text.named.get(i) for i in text.ids[begin : reply.stop]]
        try:
            opening, end = begin + named.index("<|tool_call_argument_begin|>"), begin + named.index("<|tool_call_end|>")
        except ValueError:
            return
        name = text.text(range(begin, opening)).decode(errors="replace").removeprefix("functions.").rpartition(":")[0]
        tool = tools.get(name)
        if tool is None:
            continue
        if request is not None and len(tools) > 1 and text.pieces[begin + 2] == b".":
            mine = {i: len({tool for tool, _ in at}) for i, at in votes.items() if name in {tool for tool, _ in at}}
            words = tuple(i for i, n in mine.items() if n == min(mine.values()))
            words = words or text.words(text.offsets[request.start], text.offsets[request.stop])
            choices = [(begin + 2 + k, tool.name_start + k) for k in _forks(text, tool, tools)]
            deciding.update(row for row, _ in choices)
            if number == 0:
                choices.append((reply.start - 1, tool.name_start))
            for row, place in choices:
                found["tool"].append((row, (place,)))
                if words:
                    found["request"].append((row, words))
        for key, key_start, value_start, value in _arguments(text, range(opening + 1, end)):
            deciding.update((key_start - 1, value_start - 1, value.start - 1, value.stop - 1))
            copied.append(value)
            if tool.parameters.get(key):
                found["parameter"].append((value.start - 1, tool.parameters[key]))
        deciding.add(end)
    found[DECISION] += [(row, ()) for row in sorted(deciding)]
    for span in copied:
        found["source"] += _copies(text, span, sources)


def _forks(text: _Tokens, tool: _Tool, tools: Mapping[str, _Tool]) -> Iterator[int]:
    """The places in a tool's name where it must be told from others: the first, and where names with one start part."""
    name = [text.ids[i] for i in tool.name]
    others = [[text.ids[i] for i in other.name] for other in tools.values() if other is not tool]
    yield 0
    for k in range(1, len(name)):
        if any(other[:k] == name[:k] and other[k : k + 1] != name[k : k + 1] for other in others):
            yield k


def _arguments(text: _Tokens, span: range) -> Iterator[tuple[str, int, int, range]]:
    """Of each top-level argument: the key, its first token, the value's first token, the value without quotes."""
    raw = text.text(span).decode(errors="replace")
    if not raw.isascii():
        return  # characters and bytes differ: not worth the bookkeeping
    decoder, at = json.JSONDecoder(), 1
    base = text.offsets[span.start]
    while at < len(raw) and raw[at] == '"':
        key_start = text.holding(base + at + 1)
        key, at = decoder.raw_decode(raw, at)
        start = at + 2  # past `: `
        value, at = decoder.raw_decode(raw, start)
        quote = isinstance(value, str)
        first = text.starting_at(base + start + quote)
        if first is not None and at - start > 2 * quote:
            last = bisect_left(text.offsets, base + at - quote)
            yield key, key_start, text.holding(base + start - 1), range(first, max(last, first + 1))
        at += 2  # past `, `


def _copies(text: _Tokens, span: range, sources: Sequence[range]) -> Iterator[Row]:
    """Each token of the span that continues a stretch standing in a source, and where it stands there.

    A stretch counts with two tokens that hold letters or digits, or when it is the whole span. The longest wins, then
    the latest.
    """
    ids = text.ids
    places: dict[int, list[tuple[int, range]]] = defaultdict(list)
    for source in sources:
        for p in source:
            places[ids[p]].append((p, source))
    j = span.start
    while j < span.stop:
        best, at = 0, -1
        for p, source in places.get(ids[j], ()):
            n = 1
            while j + n < span.stop and p + n < source.stop and ids[p + n] == ids[j + n]:
                n += 1
            if n >= best:
                best, at = n, p
        full = sum(any(chr(b).isalnum() for b in piece) for piece in text.pieces[j : j + best])
        if full >= 2 or (full and best == len(span)):
            yield from ((j + k - 1, (at + k,)) for k in range(best))
        j += max(best, 1)


class GuideLoss:
    """Collects, during a forward pass, the cross-entropy of guided heads: give `observe` to `ForwardBatch`."""

    def __init__(
        self,
        guides: Sequence[Guides],
        cu_seqlens: Sequence[int],
        heads: Mapping[str, Sequence[Sequence[int]]],
    ) -> None:
        """`guides`: of each packed sequence; `heads`: the (layer, head) pairs that follow each kind."""
        self.guides, self.cu_seqlens = guides, cu_seqlens
        self.by_layer: dict[int, dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
        for kind, pairs in heads.items():
            for layer, head in pairs:
                self.by_layer[layer][kind].append(head)
        self.sums: dict[str, Tensor] = {}
        self.counts: dict[str, int] = defaultdict(int)

    def observe(self, layer: int, q_THD: Tensor, k_THD: Tensor, softmax_scale: float) -> None:
        """Add what the heads of `layer` lose against their guides."""
        for kind, heads in self.by_layer.get(layer, {}).items():
            for start, end, guides in zip(self.cu_seqlens[:-1], self.cu_seqlens[1:], self.guides, strict=True):
                rows = guides[kind][:: -(-len(guides[kind]) // MOST_ROWS) or 1]
                if not rows:
                    continue
                at = torch.tensor([row for row, _ in rows], device=q_THD.device)
                cells = [(i, p, 1 / len(places)) for i, (_, places) in enumerate(rows) for p in places]
                index, place, share = (torch.tensor(column, device=at.device) for column in zip(*cells, strict=True))
                target = torch.zeros(len(rows), end - start, device=at.device)
                target[index, place] = share
                q = q_THD[start:end, heads][at].transpose(0, 1)
                k = k_THD[start:end, heads].permute(1, 2, 0)
                scores = (q @ k).float() * softmax_scale
                hidden = torch.arange(end - start, device=at.device) > at[:, None]
                scores = scores.masked_fill(hidden, -torch.inf).log_softmax(-1)
                loss = -(scores.masked_fill(hidden, 0.0) * target).sum()
                self.sums[kind] = self.sums.get(kind, 0.0) + loss
                self.counts[kind] += len(rows) * len(heads)

    def weigh(self, supervised: Tensor, decision_weight: float) -> Tensor:
        """The share of each supervised token (T, bool) in the loss: those that decide weigh `decision_weight`."""
        weights = torch.ones(supervised.shape, device=supervised.device)
        for start, guides in zip(self.cu_seqlens[:-1], self.guides, strict=True):
            weights[[start + row for row, _ in guides[DECISION]]] = decision_weight
        weights = weights[supervised]
        return weights / weights.sum()

    def means(self) -> dict[str, Tensor]:
        """The mean loss of each kind that occurred, nats."""
        return {kind: total / self.counts[kind] for kind, total in self.sums.items()}
