"""The local provider: sampling defaults, windows, stop strings, tool calls, errors."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.support.tiny_model import save_tiny_model, tiny_config, tiny_ranks

from openk2.chat.events import CallBegin, CallDelta, Finished, TextDelta, collect_async
from openk2.chat.messages import Message, ToolCall, ToolChoice, ToolSpec
from openk2.chat.provider import ChatRequest
from openk2.checkpoint import Checkpoint, Quantization, random_model, save_model
from openk2.config import SamplingParams
from openk2.engine import StepOutput
from openk2.engine.process import Sink, Submission
from openk2.errors import (
    CheckpointError,
    ConfigError,
    ContextLengthError,
    ProviderError,
    RequestError,
    SchemaError,
)
from openk2.llm import LLM
from openk2.llm.source import serving_dtype, serving_quantization

SEARCH = ToolSpec.function(
    "search",
    "Search.",
    {"type": "object", "properties": {"q": {"type": "string", "enum": ["x", "y"]}}, "required": ["q"]},
)
HELLO = (Message("user", "hello there"),)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny random checkpoint with a tokenizer; greedy by its generation_config."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-k2")


@pytest.fixture(scope="module")
def llm(folder: Path) -> Iterator[LLM]:
    with LLM(folder) as llm:
        yield llm


class ScriptedEngine:
    """Plays token ids in place of an engine: `turn` is a list of steps, each a list of ids."""

    max_model_len = 512
    is_alive = True

    def __init__(self, turn: list[list[int]], reason: Any = "stop") -> None:
        self.turn, self.reason = turn, reason
        self.submitted: list[Submission] = []
        self.aborted: list[str] = []

    def submit(self, submission: Submission, sink: Sink) -> None:
        self.submitted.append(submission)
        for number, ids in enumerate(self.turn):
            last = number == len(self.turn) - 1
            sink(StepOutput(submission.request_id, ids, self.reason if last else None, cached_tokens=3))

    def abort(self, request_id: str) -> None:
        self.aborted.append(request_id)

    def close(self) -> None: ...


@pytest.fixture
def scripted(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`scripted(text, reason, size)`: an LLM whose engine answers with `text`, control-token literals included."""

    def script(text: str, reason: Any = "stop", size: int = 1) -> tuple[LLM, ScriptedEngine]:
        ids = llm.tokenizer.encode_with_specials(text)
        engine = ScriptedEngine([ids[at : at + size] for at in range(0, len(ids), size)], reason)
        monkeypatch.setattr(llm, "_engine", engine)
        return llm, engine

    return script


def _call(index: int, name: str, arguments: str) -> str:
    begin, middle, end = "<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"
    return f"{begin}functions.{name}:{index}{middle}{arguments}{end}"


def _section(*calls: str) -> str:
    return "<|tool_calls_section_begin|>" + "".join(calls) + "<|tool_calls_section_end|>"


async def _events(llm: LLM, request: ChatRequest) -> list[Any]:
    return [event async for event in llm.stream(request)]


# Text, calls, finish reasons, usage


def test_an_answer_of_text(scripted: Any) -> None:
    llm, engine = scripted("Hello, wörld! ☃<|im_end|>")
    completion = llm.chat(HELLO)
    assert completion.message.content == "Hello, wörld! ☃"
    assert completion.finish_reason == "stop"
    prompt = engine.submitted[0].prompt_token_ids
    assert prompt == llm.template.render(HELLO)
    assert completion.usage.prompt_tokens == len(prompt)
    assert completion.usage.completion_tokens == sum(len(step) for step in engine.turn)
    assert completion.usage.cached_tokens == 3
    assert engine.aborted == []


@pytest.mark.parametrize("size", [1, 4, 1000])
async def test_tool_calls_become_events_with_ids_that_count_on(scripted: Any, size: int) -> None:
    text = "Looking." + _section(_call(0, "search", '{"q": "x"}'), _call(1, "search", '{"q": "y"}')) + "<|im_end|>"
    llm, _ = scripted(text, size=size)
    history = (
        Message("user", "a"),
        Message("assistant", tool_calls=(ToolCall("call_9", "search", '{"q": "x"}'),)),
        Message("tool", "r", tool_call_id="call_9"),
    )
    events = await _events(llm, ChatRequest(history, (SEARCH,)))
    begins = [event for event in events if isinstance(event, CallBegin)]
    assert [(b.index, b.id, b.name) for b in begins] == [
        (0, "functions.search:1", "search"),
        (1, "functions.search:2", "search"),
    ]
    arguments = "".join(e.arguments for e in events if isinstance(e, CallDelta) and e.index == 0)
    assert json.loads(arguments) == {"q": "x"}
    assert isinstance(events[-1], Finished) and events[-1].finish_reason == "tool_calls"


def test_a_cut_call_is_never_delivered(scripted: Any) -> None:
    whole = _call(0, "search", '{"q": "x"}')
    cut = whole.removesuffix("<|tool_call_end|>")
    llm, _ = scripted("<|tool_calls_section_begin|>" + cut, reason="length")
    completion = llm.chat(HELLO, tools=[SEARCH])
    assert completion.finish_reason == "length" and completion.message.tool_calls == ()
    llm, _ = scripted("<|tool_calls_section_begin|>" + whole + cut, reason="length")
    completion = llm.chat(HELLO, tools=[SEARCH])
    assert completion.finish_reason == "length" and len(completion.message.tool_calls) == 1


@pytest.mark.parametrize("size", [1, 3, 1000])
@pytest.mark.parametrize(
    ("stop", "expected"), [(("END",), "one two "), (("two E", "zzz"), "one "), (("one",), ""), (("ENDS",), None)]
)
async def test_stop_strings_end_the_text_and_are_not_part_of_it(
    scripted: Any, size: int, stop: tuple[str, ...], expected: str | None
) -> None:
    llm, engine = scripted("one two END three<|im_end|>", size=size)
    events = await _events(llm, ChatRequest(HELLO, sampling=SamplingParams(stop=stop)))
    text = "".join(event.text for event in events if isinstance(event, TextDelta))
    assert text == ("one two END three" if expected is None else expected)
    assert events[-1].finish_reason == "stop"
    assert (engine.aborted == []) == (expected is None or size == 1000)
    assert engine.submitted[0].sampling.stop == ()


async def test_what_may_begin_a_stop_string_is_held_back_and_then_given(scripted: Any) -> None:
    llm, _ = scripted("ab EN" + _section(_call(0, "search", '{"q": "x"}')) + "<|im_end|>")
    events = await _events(llm, ChatRequest(HELLO, (SEARCH,), sampling=SamplingParams(stop=("END",))))
    kinds = [type(event) for event in events]
    assert "".join(event.text for event in events if isinstance(event, TextDelta)) == "ab EN"
    assert kinds.index(CallBegin) > max(at for at, kind in enumerate(kinds) if kind is TextDelta)
    llm, _ = scripted("ab EN<|im_end|>")
    assert llm.chat(HELLO, sampling=SamplingParams(stop=("END",))).message.content == "ab EN"


@pytest.mark.parametrize("size", [1, 1000])
def test_stop_strings_are_not_looked_for_before_the_fewest_tokens(scripted: Any, size: int) -> None:
    llm, _ = scripted("ab END cd END e<|im_end|>", size=size)
    sampling = SamplingParams(stop=("END",), min_tokens=len(llm.tokenizer.encode("ab END c")))
    assert llm.chat(HELLO, sampling=sampling).message.content == "ab END cd "
    assert llm.generate("x", sampling).text == "ab END cd "


def test_stop_strings_are_not_looked_for_in_in_arguments(scripted: Any) -> None:
    llm, _ = scripted(_section(_call(0, "search", '{"q": "x END y"}')) + "<|im_end|>")
    completion = llm.chat(HELLO, tools=[SEARCH], sampling=SamplingParams(stop=("END",)))
    assert completion.finish_reason == "tool_calls"
    assert completion.message.tool_calls[0].arguments == '{"q": "x END y"}'


def test_raw_generation(scripted: Any) -> None:
    llm, engine = scripted("abc stop here<|im_end|>")
    generation = llm.generate("a <|im_end|> b", SamplingParams(stop=("stop",)))
    assert generation.text == "abc " and generation.finish_reason == "stop"
    assert llm.tokenizer.im_end_id not in engine.submitted[0].prompt_token_ids
    assert engine.submitted[0].constraint is None
    generation = llm.generate([1, 2, 3])
    assert generation.text == "abc stop here"
    assert generation.token_ids[-1] == llm.tokenizer.im_end_id
    assert generation.usage.prompt_tokens == 3 and generation.usage.completion_tokens == len(generation.token_ids)


# Settings


def test_sampling_is_the_requests_then_the_checkpoints_then_the_default(
    scripted: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm, engine = scripted("x<|im_end|>")

    def resolved(sampling: SamplingParams | None = None, **generation_config: Any) -> SamplingParams:
        monkeypatch.setattr(llm, "generation_config", generation_config)
        llm.chat(HELLO, sampling=sampling)
        return engine.submitted[-1].sampling

    assert resolved().temperature == 0.6
    assert resolved(do_sample=False).temperature == 0.0
    assert resolved(do_sample=False, temperature=0.7).temperature == 0.0
    assert resolved(temperature=0.0).temperature == 0.0
    assert resolved(temperature=0.3, top_p=0.9, top_k=5, min_p=0.1).top_p == 0.9
    assert resolved(SamplingParams(temperature=1.0), do_sample=False).temperature == 1.0
    assert resolved(SamplingParams(top_k=7), top_k=5).top_k == 7
    monkeypatch.setattr(llm, "sampling_defaults", SamplingParams(temperature=0.9, top_k=3))
    assert resolved(temperature=0.3, do_sample=False).temperature == 0.9
    assert resolved(SamplingParams(temperature=0.0), temperature=0.3).temperature == 0.0
    assert (resolved(top_k=5).top_k, resolved(top_p=0.9).top_p, resolved().min_p) == (3, 0.9, None)
    room = 512 - len(engine.submitted[-1].prompt_token_ids)
    assert resolved().max_tokens == room
    assert resolved(SamplingParams(max_tokens=5)).max_tokens == 5
    assert resolved(SamplingParams(max_tokens=99_999)).max_tokens == room
    with pytest.raises(RequestError, match="topk"):
        resolved(SamplingParams(topk=3))
    assert resolved().mode is None and resolved(SamplingParams(mode="auto")).mode == "auto"
    monkeypatch.setattr(llm, "sampling_defaults", SamplingParams(mode="reflex"))
    assert resolved().mode == "reflex" and resolved(SamplingParams(mode="deliberative")).mode == "deliberative"
    assert resolved(SamplingParams(topk=1)).mode is None, "a number is in place of a mode"


def test_the_end_is_the_union_of_both_configs(folder: Path, llm: LLM) -> None:
    eos, im_end = llm.tokenizer.eos_id, llm.tokenizer.im_end_id
    assert llm.config.eos_token_ids == (eos,) and llm.generation_config["eos_token_id"] == im_end
    assert llm.stop_token_ids == {eos, im_end}


def test_a_prompt_past_the_window(llm: LLM) -> None:
    with pytest.raises(ContextLengthError, match="maximum context length is 512"):
        llm.chat([Message("user", "x" * 600)])
    with pytest.raises(ContextLengthError):
        llm.generate(list(range(200)) * 3)


def test_no_messages(llm: LLM) -> None:
    with pytest.raises(RequestError, match="empty"):
        llm.chat([])


# The real engine


def test_the_checkpoint_answers_greedily_and_alike(llm: LLM) -> None:
    sampling = SamplingParams(max_tokens=12)
    first = llm.generate([5, 6, 7, 8] * 12, sampling)
    again = llm.generate([5, 6, 7, 8] * 12, sampling)
    assert first.token_ids == again.token_ids and first.finish_reason == "length"
    assert again.usage.cached_tokens > 0
    assert llm.model == "tiny-k2" and llm.is_alive and len(llm.fingerprint) == 16


def test_asking_for_logprobs_changes_nothing(llm: LLM) -> None:
    sampling = SamplingParams(temperature=1, seed=5, max_tokens=40, ignore_eos=True)
    plain = llm.chat(HELLO, sampling=sampling)
    asked = llm.chat(HELLO, sampling=replace(sampling, logprobs=3))
    assert plain.message == asked.message and not plain.logprobs
    assert b"".join(token.bytes for token in asked.logprobs).decode("utf-8", "replace") == asked.message.text
    for token in asked.logprobs:
        assert len(token.top) == 3 and token.logprob <= token.top[0].logprob < 0


def test_random_weights_under_the_grammar_make_a_valid_call(llm: LLM) -> None:
    completion = llm.chat(HELLO, tools=[SEARCH], tool_choice=ToolChoice("required", parallel=False))
    assert completion.finish_reason == "tool_calls"
    for number, call in enumerate(completion.message.tool_calls):
        assert call.id == f"functions.search:{number}"
        assert json.loads(call.arguments)["q"] in ("x", "y")


async def test_many_at_once_equal_one_by_one(llm: LLM) -> None:
    requests = [
        ChatRequest((Message("user", "hello " * n),), sampling=SamplingParams(max_tokens=6 + n)) for n in range(5)
    ]
    together = await asyncio.gather(*(collect_async(llm.stream(request)) for request in requests))
    alone = [await collect_async(llm.stream(request)) for request in requests]
    assert [c.message for c in together] == [c.message for c in alone]


async def test_closing_the_stream_aborts_the_request(llm: LLM) -> None:
    engine: Any = llm._engine
    aborted: list[str] = []
    original = engine.abort
    engine.abort = lambda request_id: (aborted.append(request_id), original(request_id))
    try:
        stream = llm.stream(ChatRequest(HELLO, sampling=SamplingParams(temperature=1.0, ignore_eos=True)))
        await anext(stream)
        await stream.aclose()
    finally:
        engine.abort = original
    assert len(aborted) == 1
    assert llm.chat(HELLO, sampling=SamplingParams(max_tokens=1)).usage.completion_tokens == 1


async def test_an_unusable_schema_is_refused_before_the_first_event(llm: LLM) -> None:
    bad = ToolSpec.function("bad", "", {"type": "object", "properties": {"a": {"type": "nonsense"}}})
    with pytest.raises(SchemaError, match="bad"):
        await anext(llm.stream(ChatRequest(HELLO, (bad,))))
    with pytest.raises(RequestError, match="nobody"):
        llm.chat(HELLO, tools=[SEARCH], tool_choice=ToolChoice("required", "nobody"))


def test_ids_past_the_tokenizer_have_no_text(folder: Path, tmp_path: Path) -> None:
    wide = replace(tiny_config(len(tiny_ranks())), vocab_size=4000)
    save_model(random_model(wide), tmp_path / "wide")
    with LLM(tmp_path / "wide", tokenizer=folder) as llm:
        generation = llm.generate([1, 2], SamplingParams(max_tokens=30, temperature=2.0, seed=1))
        assert any(token >= llm.tokenizer.vocab_size for token in generation.token_ids)
        assert llm.chat(HELLO, sampling=SamplingParams(max_tokens=5, seed=1)).usage.completion_tokens >= 1


# Models by name


def test_random_presets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="tokenizer"):
        LLM("random:nano")
    with pytest.raises(ConfigError, match="k2-0905"):
        LLM("random:nonsense", tokenizer=folder)
    with LLM("random:nano", tokenizer=folder, max_model_len=64) as llm:
        assert llm.model == "random:nano" and llm.max_model_len == 64
        assert llm.generate([1, 2, 3], SamplingParams(max_tokens=2)).usage.completion_tokens == 2


def test_models_that_are_not_there(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(CheckpointError, match="no-such-model"):
        LLM("no-such-model")
    with pytest.raises(CheckpointError, match="nowhere"):
        LLM(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="max_model_len"):
        LLM(folder, max_model_len=100_000)
    small = replace(tiny_config(len(tiny_ranks())), vocab_size=100)
    save_model(random_model(small), tmp_path / "small")
    with pytest.raises(ConfigError, match="entries"):
        LLM(tmp_path / "small", tokenizer=folder)


def test_the_engines_failure_on_one_request_is_that_requests(scripted: Any) -> None:
    llm, engine = scripted("ab")
    engine.turn, engine.reason = [[]], "error"
    with pytest.raises(ProviderError):
        llm.chat(HELLO)


@pytest.mark.parametrize(
    ("has_bfloat16", "free_pages", "expected"),
    [(True, 1 << 20, None), (False, 1 << 20, torch.float32), (False, 1, None)],
)
def test_bfloat16_is_computed_as_float32_where_the_cpu_lacks_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_bfloat16: bool, free_pages: int, expected: torch.dtype | None
) -> None:
    save_model(random_model(tiny_config(len(tiny_ranks()))), tmp_path / "model", dtype=torch.bfloat16)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: has_bfloat16)
    monkeypatch.setattr(os, "sysconf", {"SC_AVPHYS_PAGES": free_pages, "SC_PAGE_SIZE": 4096}.get)
    checkpoint = Checkpoint.open(tmp_path / "model")
    assert serving_dtype(checkpoint, "cpu") is expected
    assert serving_dtype(checkpoint, "cuda") is None


@pytest.mark.parametrize(
    ("stored", "has_kernels"), [(torch.bfloat16, True), (torch.bfloat16, False), (torch.float32, True)]
)
def test_bfloat16_is_packed_for_a_cpu_that_has_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stored: torch.dtype, has_kernels: bool
) -> None:
    save_model(random_model(tiny_config(len(tiny_ranks()))), tmp_path / "model", dtype=stored)
    monkeypatch.setattr(Quantization, "has_kernels", lambda: has_kernels)
    checkpoint = Checkpoint.open(tmp_path / "model")
    packed = Quantization("bf16", "bf16", "bf16")
    assert serving_quantization(checkpoint, "cpu") == (packed if stored is torch.bfloat16 and has_kernels else None)
    assert serving_quantization(checkpoint, "cuda") is None
