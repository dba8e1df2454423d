"""Answers as events: any cut of the stream gives the same message, and a call that was cut is never delivered."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openk2.chat.events import CallBegin, CallDelta, CallEnd, ChatEvent, Finished, TextDelta, collect
from openk2.chat.messages import FinishReason, ToolCall
from openk2.chat.parser import Marker, Piece, ReplyParser, TextLexer, TokenLexer, parse_ids, parse_text
from openk2.tokenizer import Tokenizer

SECTION, CALL, ARGUMENT, END, SECTION_END = (marker.value for marker in Marker)
TWO_CALLS = (
    f'Let me look. {SECTION}{CALL}functions.weather:0{ARGUMENT}{{"city": "北京"}}{END}'
    f'{CALL}functions.time:1{ARGUMENT}{{"zone": "UTC", "😀": [1, 2]}}{END}{SECTION_END}'
)

PIECES = st.lists(
    st.one_of(
        st.sampled_from(list(Marker)),
        st.sampled_from(
            ["functions.f:0", "g:12", ' {"a": 1} ', "{}", "\n", "  ", "hi", "<|tool_call", "<", "|>", "é😀"]
        ),
        st.text(max_size=4),
    ),
    max_size=14,
)


def as_text(pieces: list[Piece]) -> str:
    return "".join(piece.value if isinstance(piece, Marker) else piece for piece in pieces)


def run(pieces: list[Piece], reason: FinishReason = "stop", first_index: int = 0) -> list[ChatEvent]:
    parser = ReplyParser(first_index, names=("search", "search_files"))
    return [event for piece in pieces for event in parser.feed(piece)] + parser.finish(reason)


def joined(events: list[ChatEvent]) -> list[ChatEvent]:
    """The events with adjacent deltas joined: what does not depend on the cut."""
    merged: list[ChatEvent] = []
    for event in events:
        match merged[-1] if merged else None, event:
            case TextDelta(before), TextDelta(after):
                merged[-1] = TextDelta(before + after)
            case CallDelta(index, before), CallDelta(_, after):
                merged[-1] = CallDelta(index, before + after)
            case _:
                merged.append(event)
    return merged


def lex_text(chunks: list[str]) -> list[Piece]:
    lexer = TextLexer()
    return [piece for chunk in chunks for piece in lexer.push(chunk)] + lexer.flush()


def check_shape(events: list[ChatEvent]) -> None:
    """TextDelta*, then per call CallBegin CallDelta+ CallEnd with dense indices, then Finished; nothing empty."""
    assert [type(event) for event in events].count(Finished) == 1
    assert isinstance(events[-1], Finished)
    index, begun, ended, text_over = -1, False, True, False
    for event in events[:-1]:
        match event:
            case TextDelta(text):
                assert text
                assert not text_over
            case CallBegin():
                assert ended
                assert event.index == index + 1
                index, begun, ended, text_over = event.index, False, False, True
            case CallDelta(at, arguments):
                assert arguments
                assert (at, ended) == (index, False)
                begun = True
            case CallEnd(at):
                assert (at, ended, begun) == (index, False, True)
                ended = True


@settings(max_examples=150)
@given(pieces=PIECES, data=st.data(), reason=st.sampled_from(["stop", "length"]))
def test_any_cut_of_the_text_gives_the_same_message(
    pieces: list[Piece], data: st.DataObject, reason: FinishReason
) -> None:
    text = as_text(pieces)
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=12)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = run(lex_text([text]), reason)
    check_shape(whole)
    for cut in (chunks, list(text)):
        events = run(lex_text(cut), reason)
        check_shape(events)
        assert joined(events) == joined(whole)
    message = collect(whole)
    assert message == parse_text(text, reason, names=("search", "search_files"))
    for shown in [message.message.text, *(call.arguments for call in message.message.tool_calls)]:
        assert not any(marker.value in shown for marker in Marker)


@settings(max_examples=100)
@given(pieces=PIECES, data=st.data())
def test_ids_give_the_same_message_however_the_text_is_tokenized(
    tokenizer: Tokenizer, pieces: list[Piece], data: st.DataObject
) -> None:
    ids: list[int] = []
    for piece in pieces:
        if isinstance(piece, Marker):
            ids.append(tokenizer.specials[piece.value])
            continue
        cut = data.draw(st.integers(0, len(piece.encode())))  # also inside of a character
        for part in (piece.encode()[:cut], piece.encode()[cut:]):
            ids += tokenizer.encoding._encode_bytes(part)
    lexer = TokenLexer(tokenizer)
    events = run([piece for token_id in ids for piece in lexer.push(token_id)] + lexer.flush())
    check_shape(events)
    assert joined(events) == joined(run([piece for piece in pieces if piece]))


@pytest.mark.parametrize("reason", ["length", "stop", "error"])
def test_a_stream_cut_anywhere_never_delivers_the_cut_call(tokenizer: Tokenizer, reason: FinishReason) -> None:
    ids = tokenizer.encode_with_specials(TWO_CALLS)
    ends = [i for i, token_id in enumerate(ids) if token_id == tokenizer.specials[END]]
    full = parse_ids(tokenizer, ids).message
    for length in range(len(ids) + 1):
        completion = parse_ids(tokenizer, ids[:length], reason)
        complete = sum(end < length for end in ends)
        assert completion.message.tool_calls == full.tool_calls[:complete]
        assert full.text.startswith(completion.message.text.rstrip("\ufffd"))
        expected = "tool_calls" if complete and reason == "stop" else reason
        assert completion.finish_reason == expected
    for length in range(len(TWO_CALLS) + 1):
        cut = TWO_CALLS[:length]
        assert parse_text(cut, reason).message.tool_calls == full.tool_calls[: cut.count(END)]


def test_whole_answer() -> None:
    completion = parse_text(TWO_CALLS, first_index=5)
    assert completion.message.text == "Let me look. "
    assert completion.message.tool_calls == (
        ToolCall("functions.weather:5", "weather", '{"city": "北京"}'),
        ToolCall("functions.time:6", "time", '{"zone": "UTC", "😀": [1, 2]}'),
    )
    assert completion.finish_reason == "tool_calls"


def test_header_comes_once_and_arguments_as_they_are_written() -> None:
    pieces = lex_text([SECTION, CALL, "functions.f", ":0", ARGUMENT, '{"a"', ": 1", "}", END, SECTION_END])
    assert run(pieces) == [
        CallBegin(0, "functions.f:0", "f"),
        CallDelta(0, '{"a"'),
        CallDelta(0, ": 1"),
        CallDelta(0, "}"),
        CallEnd(0),
        Finished("tool_calls"),
    ]


@pytest.mark.parametrize(
    ("text", "prose", "calls", "malformed"),
    [
        ("plain", "plain", [], 0),
        ("a < b <|tool_cal", "a < b <|tool_cal", [], 0),
        ("  \n", "  \n", [], 0),
        (f"  \n{SECTION}{CALL}f:0{ARGUMENT}{{}}{END}{SECTION_END}", "", [("f", "{}")], 0),
        (f"\n hi {SECTION}x{CALL}f:0{ARGUMENT}{{}}{END}y{SECTION_END}z", "\n hi ", [("f", "{}")], 0),
        (f"{SECTION}{CALL}f:0{ARGUMENT}{END}", "", [("f", "{}")], 0),
        (f"{SECTION}{CALL}f:0{ARGUMENT} \n{{ }}\n {END}", "", [("f", "{ }")], 0),
        (f"{SECTION}{CALL}f:0{ARGUMENT}1{SECTION_END}", "", [("f", "1")], 0),
        (f"{SECTION}{CALL}f:0{ARGUMENT}1{CALL}g:1{ARGUMENT}2{END}", "", [("f", "1"), ("g", "2")], 0),
        (f"{SECTION}{CALL}bro{CALL}f:0{ARGUMENT}1{END}", "", [("f", "1")], 1),
        (f"{SECTION}{CALL}f:0{END}{CALL}g:1{ARGUMENT}1{END}", "", [("g", "1")], 1),
        (f"{SECTION}{CALL}call00003{ARGUMENT}1{END}{SECTION_END}", "", [], 1),
        (f"{SECTION}{CALL}functionssearch_files5{ARGUMENT}1{END}", "", [("search_files", "1")], 0),
        (f"{SECTION}{CALL}functions.search{ARGUMENT}1{END}", "", [("search", "1")], 0),
        (f"{SECTION}{CALL}\nfunctions.a.b-c:7 {ARGUMENT}1{END}", "", [("a.b-c", "1")], 0),
        (f"hi{CALL}f:0{ARGUMENT}1{END}", "hi", [("f", "1")], 0),
        (f"h{END}{ARGUMENT}{SECTION_END}i", "hi", [], 0),
        (f"{SECTION}{SECTION_END}{SECTION}{CALL}f:0{ARGUMENT}1{END}", "", [("f", "1")], 0),
    ],
)
def test_what_models_do_wrong(text: str, prose: str, calls: list[tuple[str, str]], malformed: int) -> None:
    parser = ReplyParser(names=("search", "search_files"))
    events = [event for piece in lex_text([text]) for event in parser.feed(piece)]
    completion = collect(events + parser.finish("stop"))
    assert completion.message.text == prose
    assert [(call.name, call.arguments) for call in completion.message.tool_calls] == calls
    assert [call.id for call in completion.message.tool_calls] == [
        f"functions.{n}:{i}" for i, (n, _) in enumerate(calls)
    ]
    assert completion.finish_reason == ("tool_calls" if calls else "stop")
    assert parser.malformed_calls == malformed


def test_marker_literals_in_ordinary_tokens_are_text(tokenizer: Tokenizer) -> None:
    said = f"The token {END} ends a call; {SECTION} begins a section."
    completion = parse_ids(tokenizer, tokenizer.encode(said))
    assert completion.message.text == said
    quoted = f'{{"text": "{SECTION_END}"}}'
    special = tokenizer.specials
    header = tokenizer.encode("functions.echo:0")
    ids = [special[SECTION], special[CALL], *header, special[ARGUMENT], *tokenizer.encode(quoted), special[END]]
    assert parse_ids(tokenizer, ids).message.tool_calls[0].arguments == quoted


def test_ends_of_turn_are_no_text(tokenizer: Tokenizer) -> None:
    ids = [*tokenizer.encode("hi"), "é".encode()[0], tokenizer.im_end_id]
    assert parse_ids(tokenizer, ids).message.text == "hi\ufffd"


def test_text_is_held_back_no_longer_than_needed() -> None:
    lexer = TextLexer()
    assert lexer.push("a <") == ["a "]
    assert lexer.push("b") == ["<b"]
    assert lexer.push("<|tool_call_") == []
    assert lexer.push("x<") == ["<|tool_call_x"]
    assert lexer.push("|tool_call_end|>y") == [Marker.CALL_END, "y"]
    assert lexer.flush() == []


def test_a_length_limit_stays_one() -> None:
    assert run(lex_text([TWO_CALLS]), "length")[-1] == Finished("length")
