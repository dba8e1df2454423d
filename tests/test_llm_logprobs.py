"""Log probabilities reach the text that they belong to, however it is held back."""

from __future__ import annotations

import pytest
from tests.support.vocabularies import synthetic_ranks

from openk2.chat.events import TextDelta, collect
from openk2.chat.parser import ReplyParser
from openk2.config import SamplingParams
from openk2.engine import StepOutput
from openk2.engine.request import TokenLogprobs
from openk2.llm.answers import Answer, RawAnswer
from openk2.tokenizer import Tokenizer
from openk2.tokenizer.tokenizer import SPECIAL_OFFSETS

TOKENIZER = Tokenizer(synthetic_ranks())


THINKER = Tokenizer(
    synthetic_ranks(),
    {text: TOKENIZER.n_ranks + slot for text, slot in {**SPECIAL_OFFSETS, "<think>": 22, "</think>": 23}.items()},
)
"""The markers of thoughts are special tokens, as later models of the family have it; in `TOKENIZER` they are text."""


def outputs(text: str, size: int, tokenizer: Tokenizer = TOKENIZER) -> list[StepOutput]:
    """Token number i has the log probability -i."""
    ids = tokenizer.encode_with_specials(text)
    steps = [range(at, min(at + size, len(ids))) for at in range(0, len(ids), size)]
    return [
        StepOutput(
            "r",
            [ids[i] for i in step],
            "stop" if step.stop == len(ids) else None,
            logprobs=tuple(TokenLogprobs(-float(i), ((ids[i], -float(i)),)) for i in step),
        )
        for step in steps
    ]


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("stop", [(), ("zzz",), ("\n\n!",)])
@pytest.mark.parametrize("shown", ["  héllo 你好 \U0001f44b\n\nthe end", "\U0001f44b", " "])
def test_the_tokens_bytes_are_the_text(shown: str, stop: tuple[str, ...], size: int) -> None:
    text = f"{shown}<|im_end|>"
    for answer in (Answer(TOKENIZER, 1, ReplyParser(), stop), RawAnswer(TOKENIZER, [1], SamplingParams(stop=stop))):
        events = [event for output in outputs(text, size) for event in answer.feed(output)]
        for event in events:
            if isinstance(event, TextDelta):
                assert event.text and len(event.logprobs) <= len(event.text.encode())
        completion = collect(events)
        assert completion.message.text == shown
        assert b"".join(token.bytes for token in completion.logprobs) == shown.encode()
        assert [token.logprob for token in completion.logprobs] == [-float(i) for i in range(len(completion.logprobs))]
        assert all(token.top[0].bytes == token.bytes for token in completion.logprobs)


def test_a_raw_answer_shows_control_tokens_when_asked() -> None:
    text = "ab<|tool_call_begin|>c<|im_end|>"
    for skips, shown in ((True, "abc"), (False, "ab<|tool_call_begin|>c")):
        answer = RawAnswer(TOKENIZER, [1], SamplingParams(skip_special_tokens=skips))
        completion = collect(event for output in outputs(text, 3) for event in answer.feed(output))
        assert completion.message.text == shown, "the end of the turn is none of its text"
        assert b"".join(token.bytes for token in completion.logprobs) == shown.encode()


def test_tokens_of_a_stop_string_and_of_calls_are_not_told() -> None:
    answer = Answer(TOKENIZER, 1, ReplyParser(), ("\n\n",))
    completion = collect(event for output in outputs("ab\n\n", 9) for event in answer.feed(output))
    assert b"".join(token.bytes for token in completion.logprobs) == b"ab"
    call = (
        "ab<|tool_calls_section_begin|><|tool_call_begin|>functions.f:0<|tool_call_argument_begin|>{}"
        "<|tool_call_end|><|tool_calls_section_end|><|im_end|>"
    )
    answer = Answer(TOKENIZER, 1, ReplyParser(), ())
    completion = collect(event for output in outputs(call, 1) for event in answer.feed(output))
    assert completion.message.tool_calls
    assert b"".join(token.bytes for token in completion.logprobs) == b"ab"


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("tokenizer", [TOKENIZER, THINKER], ids=["text", "special"])
def test_thoughts_are_counted_and_neither_told_nor_stopped_in(tokenizer: Tokenizer, size: int) -> None:
    answer = Answer(tokenizer, 1, ReplyParser(), ("END",), thinks=True)
    steps = outputs("<think>hm END</think>ab END<|im_end|>", size, tokenizer)
    completion = collect(event for output in steps for event in answer.feed(output))
    assert (completion.message.reasoning, completion.message.text) == ("hm END", "ab ")
    assert b"".join(token.bytes for token in completion.logprobs) == b"ab "
    inside = len(tokenizer.encode("hm END"))
    if tokenizer is THINKER:
        assert completion.usage.reasoning_tokens == inside + 2
    assert inside < completion.usage.reasoning_tokens < completion.usage.completion_tokens


def test_a_thought_that_the_prompt_has_begun() -> None:
    answer = Answer(THINKER, 1, ReplyParser(is_thinking=True), (), thinks=True)
    completion = collect(event for step in outputs("hm</think>ab<|im_end|>", 1, THINKER) for event in answer.feed(step))
    assert (completion.message.reasoning, completion.message.text) == ("hm", "ab")
    answer = Answer(THINKER, 1, ReplyParser(), ())  # the template is one of a model that does not think
    steps = outputs("<think>a</think>b<|im_end|>", 1, THINKER)
    completion = collect(event for step in steps for event in answer.feed(step))
    assert (completion.message.reasoning, completion.message.text) == (None, "ab")
