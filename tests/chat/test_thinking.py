"""Thoughts are set apart from the answer: nothing is lost, whatever the cut, and markers elsewhere are text."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.vocabularies import synthetic_ranks

from openk2.chat.events import CallBegin, CallDelta, CallEnd, ChatEvent, Finished, ReasoningDelta, TextDelta, collect
from openk2.chat.messages import Completion, Message, ToolCall
from openk2.chat.parser import Marker, Piece, ReplyParser, TextLexer, Thought, TokenLexer
from openk2.chat.template import ChatTemplate
from openk2.tokenizer import Tokenizer
from openk2.tokenizer.tokenizer import SPECIAL_OFFSETS

BEGIN, END = Thought.BEGIN.value, Thought.END.value
CALL = (
    f"{Marker.SECTION_BEGIN.value}{Marker.CALL_BEGIN.value}functions.f:0{Marker.ARGUMENT_BEGIN.value}"
    f'{{"a": "{END}"}}{Marker.CALL_END.value}{Marker.SECTION_END.value}'
)

PARTS = [BEGIN, END, "<", "</", "<thi", "nk>", "think>", " ", "\n\n", "hm", "So.", "é😀", "<|im"]
TEXTS = st.lists(st.sampled_from(PARTS), max_size=10).map("".join)


def expected(text: str) -> tuple[str, str]:
    """(thoughts, answer), read from the whole text at once."""
    thoughts = ""
    while opened := re.match(rf"(\s*){BEGIN}", text):
        inside, end, text = text[opened.end() :].partition(END)
        thoughts += opened[1] + inside
        if not end:
            return thoughts, ""
    return thoughts, text


def parse(chunks: list[str], *, is_thinking: bool = False) -> list[ChatEvent]:
    lexer, parser = TextLexer(thinks=True), ReplyParser(is_thinking=is_thinking)
    pieces = [piece for chunk in chunks for piece in lexer.push(chunk)] + lexer.flush()
    return [event for piece in pieces for event in parser.feed(piece)] + parser.finish("stop")


def said(completion: Completion) -> tuple[str, str]:
    return completion.message.reasoning or "", completion.message.text


@settings(max_examples=300)
@given(text=TEXTS, is_thinking=st.booleans(), data=st.data())
def test_nothing_is_lost_whatever_the_cut(text: str, is_thinking: bool, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=8)))
    chunks = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    whole = expected((BEGIN if is_thinking else "") + text)
    for cut in ([text], chunks, list(text)):
        events = parse(cut, is_thinking=is_thinking)
        assert said(collect(events)) == whole
        kinds = "".join({ReasoningDelta: "r", TextDelta: "t", Finished: "."}[type(event)] for event in events)
        assert re.fullmatch(r"r*t*\.", kinds)
        assert all(event.text for event in events if isinstance(event, ReasoningDelta | TextDelta))


@settings(max_examples=150)
@given(text=TEXTS, data=st.data())
def test_ids_in_a_vocabulary_without_the_markers(tokenizer: Tokenizer, text: str, data: st.DataObject) -> None:
    """Their literals are found in the text, however it is tokenized."""
    assert BEGIN not in tokenizer.specials
    cut = data.draw(st.integers(0, len(text.encode())))
    ids = [i for part in (text.encode()[:cut], text.encode()[cut:]) for i in tokenizer.encoding._encode_bytes(part)]
    lexer, parser = TokenLexer(tokenizer, thinks=True), ReplyParser()
    pieces = [piece for token_id in ids for piece in lexer.push(token_id)] + lexer.flush()
    completion = collect([event for piece in pieces for event in parser.feed(piece)] + parser.finish("stop"))
    assert said(completion) == expected(text)


@pytest.fixture(scope="module")
def thinker() -> Tokenizer:
    """The same vocabulary with the markers as special tokens, as later models of the family have it."""
    ranks = synthetic_ranks()
    offsets = {**SPECIAL_OFFSETS, BEGIN: 22, END: 23}
    return Tokenizer(ranks, {text: len(ranks) + offset for text, offset in offsets.items()})


def test_special_markers_are_ids_and_their_literals_text(thinker: Tokenizer) -> None:
    ids = [
        thinker.specials[BEGIN], *thinker.encode(f"a {END} b"), thinker.specials[END],
        *thinker.encode(f"So {BEGIN}."), thinker.specials[END], thinker.im_end_id,
    ]  # fmt: skip
    lexer, parser = TokenLexer(thinker, thinks=True), ReplyParser()
    pieces = [piece for token_id in ids for piece in lexer.push(token_id)] + lexer.flush()
    completion = collect([event for piece in pieces for event in parser.feed(piece)] + parser.finish("stop"))
    assert said(completion) == (f"a {END} b", f"So {BEGIN}.{END}")


@pytest.mark.parametrize("lead", [f"{BEGIN}hm{END}Look: ", f"{BEGIN}hm", f"{BEGIN}hm{END}"])
def test_calls_after_thoughts_or_out_of_them(lead: str) -> None:
    message = collect(parse(list(lead + CALL))).message
    assert message.tool_calls == (ToolCall("functions.f:0", "f", f'{{"a": "{END}"}}'),)
    assert (message.reasoning, message.text) == ("hm", "Look: " if "Look" in lead else "")
    kinds = [type(event) for event in parse([lead + CALL]) if not isinstance(event, TextDelta)]
    assert list(dict.fromkeys(kinds)) == [ReasoningDelta, CallBegin, CallDelta, CallEnd, Finished]


def test_a_model_that_does_not_think_says_what_it_says() -> None:
    text, parser = f"{BEGIN}hm{END}So.", ReplyParser()
    pieces: list[Piece] = [*TextLexer().push(text)]
    completion = collect([event for piece in pieces for event in parser.feed(piece)] + parser.finish("stop"))
    assert said(completion) == ("", text)


TEMPLATE = """\
{%- for message in messages -%}
<|im_{{ message.role }}|>{{ message.role }}<|im_middle|>
{%- if message.role == 'assistant' -%}<think>{{ message.reasoning_content or '' }}</think>{%- endif -%}
{{ message.content }}<|im_end|>
{%- endfor -%}
{%- if add_generation_prompt -%}<|im_assistant|>assistant<|im_middle|>OPENING{%- endif -%}
"""


@pytest.mark.parametrize(("opening", "opens"), [("", False), ("<think>", True), ("{{ '<think>\\n' }}", True)])
def test_history_is_rendered_as_the_template_says(thinker: Tokenizer, opening: str, opens: bool) -> None:
    template = ChatTemplate(thinker, TEMPLATE.replace("OPENING", opening))
    history = [
        Message("user", "a"), Message("assistant", "b", reasoning=f"hm {END}"), Message("assistant", "c"),
        Message("user", BEGIN),
    ]  # fmt: skip
    prompt = template.render(history)
    shown = "".join(f"[{i - thinker.n_ranks}]" if i in thinker.special_ids else thinker.decode([i]) for i in prompt)
    assert f"[22]hm {END}[23]b" in shown and "[22][23]c" in shown and shown.count("[22]") == 2 + opens
    assert template.thinks and template.opens_thought(prompt) == opens
    assert template.render(history, variables={"messages": [], "other": [1]}) == prompt
    plain = ChatTemplate(thinker)
    assert not plain.thinks and not plain.opens_thought(plain.render(history))
    assert plain.render(history) == plain.render([*history[:1], Message("assistant", "b"), *history[2:]])


def test_a_templates_own_switch(thinker: Tokenizer) -> None:
    opening = "{% if thinking is not defined or thinking %}<think>{% else %}<think>{{ note }}</think>{% endif %}"
    template = ChatTemplate(thinker, TEMPLATE.replace("OPENING", opening))
    asked = [Message("user", "a")]
    assert template.opens_thought(template.render(asked))
    off = template.render(asked, variables={"thinking": False, "note": END})
    assert not template.opens_thought(off) and off.count(thinker.specials[END]) == 1  # what a caller says is text
