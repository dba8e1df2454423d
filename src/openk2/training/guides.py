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
- `key_of`, `told_of`: the token that ends a parameter's declaration looks at its name, and at its description, so that
  one place stands for the whole;
- `belongs`: that token looks at the first token of its tool's name;
- `bound`: where a value begins in the request, that token looks at the end of its parameter's declaration, unless the
  request names the parameter only after it ("7 as the level"); a word that speaks of a tool, and of no parameter,
  looks at the very first token (a sample);
- `given`: the token that decides whether to call looks at where the values begin that the request gives; the token
  before an argument's key, and the last one of the argument before, where that argument's value begins;
- `key`: the latter two look at the key's first token in the declaration, the last token of the last argument at the
  very first token;
- `asked`: the same token looks at the end of the parameter that the answer asks for, in a call at the very first
  token: with what is required there and what is given before it, the missing one is the difference;
- `slot`: the token before an argument's value, and the one before its quote or space, look there too, so that the
  type is known and the two can be matched;
- `source`: the token before a copied one looks at the original: in the request or in a tool's result, and in the
  declaration for the rest of a name or a key, and for a parameter that is asked for.

Rows that decide are found beside them (`decision`, no targets): what precedes the start of a reply, the choices in a
tool's name, of each argument the key, what the value begins with (a quote, a space), its first token and what follows
it, and whether another call follows. A reply's start counts whether it calls or answers: were one of them heavier, the
model would prefer it.

Guided attention is as in Deshpande & Narasimhan 2020 (arXiv:2010.02399), with targets from the text's structure.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from openk2.tokenizer import Tokenizer
from openk2.training.rendered import (
    DeclaredParameter,
    DeclaredTool,
    RenderedCall,
    RenderedTokens,
    declared_calls,
    declared_tools,
)

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
    "key_of",
    "told_of",
    "belongs",
    "bound",
    "given",
    "key",
    "asked",
    "slot",
    "source",
)
DECISION = "decision"
NOWHERE_SAMPLE = 4
"""One in so many words of requests that no tool has is guided."""
NAMED_WITHIN = 8
"""Tokens between a value and the words that name its parameter, at most."""

Row = tuple[int, tuple[int, ...]]
"""A token and the earlier tokens (or itself) it should attend to."""
Guides = Mapping[str, Sequence[Row]]
"""The rows of each kind, and of `DECISION`."""
_FIRST: tuple[int, ...] = (0,)
"""Where to look when there is nothing to see."""


@dataclass(frozen=True)
class _Question:
    """An answer to a request that may ask for an argument: the call that follows tells for which."""

    request: range
    reply: range


def find_guides(token_ids: Sequence[int], tokenizer: Tokenizer) -> Guides:
    """All rows of a rendered conversation. What does not have the template's form is left out."""
    text = RenderedTokens(token_ids, tokenizer)
    found: dict[str, list[Row]] = {kind: [] for kind in (*KINDS, DECISION)}
    tools: dict[str, DeclaredTool] = {}
    votes: dict[int, set[tuple[str, int]]] = {}
    request: range | None = None
    question: _Question | None = None
    sources: list[range] = []
    last_role = ""
    for role, span in text.turns():
        if role == "tool_declare":
            tools = declared_tools(text, span)
            before = span.start
            for tool in tools.values():
                found["label"] += [(i, (before,)) for i in tool.description]
                found["label"] += [(i, (tool.name_start,)) for i in tool.name[1:]]
                found["previous"].append((tool.name_start, (before,)))
                before = tool.name_start
                for parameter in tool.parameters.values():
                    found["belongs"].append((parameter.end, (tool.name_start,)))
                    if parameter.key:
                        found["key_of"].append((parameter.end, parameter.key))
                    if parameter.description:
                        found["told_of"].append((parameter.end, parameter.description))
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
                        found[kind].append((i, _FIRST))
            of_parameters = {text.ids[i] for t in tools.values() for p in t.parameters.values() for i in p.key}
            of_parameters |= {text.ids[i] for t in tools.values() for p in t.parameters.values() for i in p.description}
            found["bound"] += [
                (i, _FIRST) for i in votes if i % NOWHERE_SAMPLE == 0 and text.ids[i] not in of_parameters
            ]
        elif role == "assistant":
            calls = list(declared_calls(text, span, tools))
            _guide_reply(text, span, calls, tools, request, votes, sources, found)
            if last_role == "user" and request is not None and tools:
                if calls:
                    if question is not None:
                        _guide_question(text, question, *calls[0], found)
                    given = [first for tool, args in calls for first in _given(text, tool, args, request)]
                    found["given"].append((span.start - 1, tuple(sorted(set(given))) or _FIRST))
                    found["asked"].append((span.start - 1, _FIRST))
                question = None if calls else _Question(request, span)
        if role not in ("tool_declare", "system", "assistant"):
            sources.append(span)
        last_role = role
    seen = {row for row, places in found["bound"] if places != _FIRST}
    found["bound"] = [(row, places) for row, places in found["bound"] if places != _FIRST or row not in seen]
    return found


def _votes(text: RenderedTokens, request: range, tools: Mapping[str, DeclaredTool]) -> dict[int, set[tuple[str, int]]]:
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


def _given(text: RenderedTokens, tool: DeclaredTool, call: RenderedCall, request: range) -> Iterator[int]:
    """Where the values of a call begin in the request, those whose parameter is named after them left out."""
    for key, _, _, value in call.arguments:
        parameter = tool.parameters.get(key)
        if parameter and (first := _first_copied(text, value, request, parameter)) is not None:
            yield first


def _guide_reply(
    text: RenderedTokens,
    reply: range,
    calls: Sequence[tuple[DeclaredTool, RenderedCall]],
    tools: Mapping[str, DeclaredTool],
    request: range | None,
    votes: Mapping[int, set[tuple[str, int]]],
    sources: Sequence[range],
    found: dict[str, list[Row]],
) -> None:
    copied = [range(reply.start, calls[0][1].begin if calls else reply.stop)]
    deciding = {reply.start - 1}
    for number, (tool, call) in enumerate(calls):
        name_at = call.begin + 3
        if text.pieces[name_at - 1] == b".":
            forks = set(_forks(text, tool, tools))
            rest = (k for k in range(len(tool.name)) if k not in forks)
            found["source"] += _same(text, ((name_at - 1 + k, tool.name_start + k) for k in rest))
            if request is not None and len(tools) > 1:
                choices = [(name_at - 1 + k, tool.name_start + k) for k in sorted(forks)]
                deciding.update(row for row, _ in choices)
                if number == 0:
                    choices.append((reply.start - 1, tool.name_start))
                words = _naming(text, call.name, request, votes)
                for row, place in choices:
                    found["tool"].append((row, (place,)))
                    if words:
                        found["request"].append((row, words))
        for _, key_start, value_start, value in call.arguments:
            deciding.update((key_start - 1, value_start - 1, value.start - 1, value.stop - 1))
            copied.append(value)
        deciding.add(call.end)
        _guide_arguments(text, tool, call, request, found)
    found[DECISION] += [(row, ()) for row in sorted(deciding)]
    for span in copied:
        found["source"] += _copies(text, span, sources)


def _naming(
    text: RenderedTokens, name: str, request: range, votes: Mapping[int, set[tuple[str, int]]]
) -> tuple[int, ...]:
    """The request's words that name a tool: those that the fewest others have; all words, where none does."""
    shared_by = {i: len({tool for tool, _ in at}) for i, at in votes.items() if name in {tool for tool, _ in at}}
    words = tuple(i for i, n in shared_by.items() if n == min(shared_by.values()))
    return words or text.words(text.offsets[request.start], text.offsets[request.stop])


def _guide_arguments(
    text: RenderedTokens, tool: DeclaredTool, call: RenderedCall, request: range | None, found: dict[str, list[Row]]
) -> None:
    ended = call.opening
    for key, key_start, value_start, value in call.arguments:
        if parameter := tool.parameters.get(key):
            rest = ((key_start - 1 + k, place) for k, place in enumerate(parameter.spelling) if k)
            found["key"] += [(row, (parameter.spelling.start,)) for row in (ended, key_start - 1)]
            found["source"] += _same(text, rest)
            if words := parameter.key + parameter.description:
                found["parameter"].append((value.start - 1, words))
            found["slot"] += [(row, (parameter.end,)) for row in (value_start - 1, value.start - 1)]
            if request is not None and (first := _first_copied(text, value, request, parameter)) is not None:
                found["bound"].append((first, (parameter.end,)))
                found["given"] += [(row, (first,)) for row in (ended, key_start - 1)]
        ended = value.stop - 1
    found["key"].append((ended, _FIRST))


def _guide_question(
    text: RenderedTokens, question: _Question, tool: DeclaredTool, call: RenderedCall, found: dict[str, list[Row]]
) -> None:
    """A call that follows an answer tells what the answer asked for, if it did."""
    spelled = {key: list(_spelled(text, question.reply, p.key)) for key, p in tool.parameters.items()}
    asked = max(spelled, key=lambda key: len(spelled[key]), default=None)
    if asked is None or not spelled[asked]:
        return
    decides = question.reply.start - 1
    found["asked"].append((decides, (tool.parameters[asked].end,)))
    found["source"] += [(row - 1, (place,)) for row, place in spelled[asked]]
    given = []
    for key, _, _, value in call.arguments:
        parameter = tool.parameters.get(key)
        if key == asked or parameter is None:
            continue
        if (first := _first_copied(text, value, question.request, parameter)) is not None:
            given.append(first)
            found["bound"].append((first, (parameter.end,)))
    found["given"].append((decides, tuple(sorted(set(given))) or _FIRST))


def _spelled(text: RenderedTokens, reply: range, key: Sequence[int]) -> Iterable[tuple[int, int]]:
    """(token, its place in the key) of a key whose every word stands in the reply, in order; otherwise nothing."""
    pairs, at = [], reply.start + 1
    for place in key:
        row = next((i for i in range(at, reply.stop) if text.ids[i] == text.ids[place]), None)
        if row is None:
            return []
        pairs.append((row, place))
        at = row + 1
    return pairs


def _same(text: RenderedTokens, rows: Iterable[tuple[int, int]]) -> Iterator[Row]:
    """Of (token, place) pairs those where the next token is the one at the place."""
    return ((row, (place,)) for row, place in rows if text.ids[row + 1] == text.ids[place])


def _forks(text: RenderedTokens, tool: DeclaredTool, tools: Mapping[str, DeclaredTool]) -> Iterator[int]:
    """The places in a tool's name where it must be told from others: the first, and where names with one start part."""
    name = [text.ids[i] for i in tool.name]
    others = [[text.ids[i] for i in other.name] for other in tools.values() if other is not tool]
    yield 0
    for k in range(1, len(name)):
        if any(other[:k] == name[:k] and other[k : k + 1] != name[k : k + 1] for other in others):
            yield k


def _first_copied(text: RenderedTokens, value: range, request: range, parameter: DeclaredParameter) -> int | None:
    """Where the value's first copied token stands in the request, unless the parameter is named only after it."""
    copied = [places[0] for _, places in _copies(text, value, (request,))]
    if not copied:
        return None
    words = {text.ids[i] for i in parameter.key + parameter.description}
    before = text.ids[max(request.start, copied[0] - NAMED_WITHIN) : copied[0]]
    after = text.ids[copied[-1] + 1 : min(request.stop, copied[-1] + 1 + NAMED_WITHIN)]
    return None if words.intersection(after) and not words.intersection(before) else copied[0]


def _copies(text: RenderedTokens, span: range, sources: Sequence[range]) -> Iterator[Row]:
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
