"""The local ChatProvider: tokenizer, chat template and engine under one name.

    llm = LLM()  # the embedded k2-nano
    completion = llm.chat([Message("user", "What is 12 * 7?")], tools=BUILTIN_TOOLS)

Text lives here and above, ids below: prompts are rendered, answers are read and stop strings are looked for on this
side; the engine, in a thread or in a process of its own, sees neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import queue
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from openk2 import assets
from openk2.chat.constraints import ToolConstraint, tool_grammars
from openk2.chat.events import ChatEvent, Finished, TextDelta, collect
from openk2.chat.ids import count_calls
from openk2.chat.messages import Completion, FinishReason, Message, ToolChoice, ToolSpec, Usage
from openk2.chat.parser import ReplyParser, TokenLexer
from openk2.chat.provider import ChatRequest
from openk2.chat.template import ChatTemplate
from openk2.checkpoint import load_config, load_generation_config, load_model, random_model
from openk2.config import ModelConfig, SamplingParams, preset
from openk2.engine import Engine, EngineConfig, StepOutput
from openk2.engine.process import EngineClient, EngineParts, Outcome, ProcessEngine, Submission, ThreadEngine
from openk2.errors import (
    CheckpointError,
    ConfigError,
    ContextLengthError,
    EnvironmentFault,
    OpenK2Error,
    ProviderError,
    RequestError,
)
from openk2.tokenizer import IncrementalDetokenizer, Tokenizer

DEFAULT_TEMPERATURE = 0.6
"""The model card's recommendation, where neither the request nor the checkpoint says."""

RANDOM_PREFIX = "random:"


@dataclass(frozen=True)
class Generation:
    """A raw continuation of a prompt."""

    text: str
    """Control tokens are not part of it."""
    token_ids: tuple[int, ...]
    """Everything that was generated, the token that ended it included."""
    finish_reason: FinishReason
    usage: Usage


class LLM:
    """A model on this machine.

    model: the name of an embedded model, a checkpoint folder, or `random:PRESET` (random weights; needs `tokenizer`).
    tokenizer: a folder, or an embedded model's name, whose tokenizer and template are used in place of the model's.
    max_model_len: prompt plus answer, in tokens; None is the model's own window.
    engine_process: run the engine in a process of its own, as a server should. Programs that set it guard their main
    module by `if __name__ == "__main__"`.

    Raises CheckpointError, ConfigError or TokenizerError for a model that cannot be loaded.
    """

    def __init__(
        self,
        model: str | Path = "k2-nano",
        *,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        tokenizer: str | Path | None = None,
        max_model_len: int | None = None,
        engine_process: bool = False,
        engine_config: EngineConfig | None = None,
    ) -> None:
        source = _Source.find(model)
        self._name = source.name
        self.config = source.config
        tokenizer_folder = source.folder if tokenizer is None else _folder(tokenizer)
        if tokenizer_folder is None:
            raise ConfigError(f"{model} has no tokenizer; name a folder with one by tokenizer=", param="tokenizer")
        self.tokenizer = Tokenizer.from_folder(tokenizer_folder)
        if self.tokenizer.vocab_size > self.config.vocab_size:
            raise ConfigError(
                f"the tokenizer of {tokenizer_folder} has {self.tokenizer.vocab_size} entries, the model only "
                f"{self.config.vocab_size}",
                param="tokenizer",
            )
        self.template = ChatTemplate.from_folder(self.tokenizer, tokenizer_folder)
        self.generation_config = {} if source.folder is None else load_generation_config(source.folder)
        self.stop_token_ids = self._stop_token_ids(own_tokenizer=tokenizer is None)
        self.fingerprint = source.fingerprint()
        engine_config = engine_config or EngineConfig()
        if max_model_len is not None:
            engine_config = replace(engine_config, max_model_len=max_model_len)
        build = _EngineBuilder(source, device, dtype, tokenizer_folder, self.stop_token_ids, engine_config)
        self._engine: EngineClient = ProcessEngine(build) if engine_process else ThreadEngine(build)

    @property
    def model(self) -> str:
        """The name under which the model answers."""
        return self._name

    @property
    def max_model_len(self) -> int:
        """Most tokens of a request, prompt and answer."""
        return self._engine.max_model_len

    @property
    def is_alive(self) -> bool:
        return self._engine.is_alive

    def close(self) -> None:
        """End the engine; requests that still run get EngineDeadError."""
        self._engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        """See `ChatProvider.stream`."""
        submission, answer = await asyncio.to_thread(self._prepare, request)
        loop = asyncio.get_running_loop()
        outcomes: asyncio.Queue[Outcome] = asyncio.Queue()

        def sink(outcome: Outcome) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens any more
                loop.call_soon_threadsafe(outcomes.put_nowait, outcome)

        self._engine.submit(submission, sink)
        try:
            while not answer.is_finished:
                for event in answer.feed(await outcomes.get()):
                    yield event
        finally:
            if not answer.engine_finished:
                self._engine.abort(submission.request_id)

    def chat(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[ToolSpec] = (),
        tool_choice: ToolChoice | None = None,
        sampling: SamplingParams | None = None,
        grammar: bool = True,
    ) -> Completion:
        """The whole answer; raises as `stream` does."""
        request = ChatRequest(
            tuple(messages), tuple(tools), tool_choice or ToolChoice(), sampling or SamplingParams(), grammar
        )
        submission, answer = self._prepare(request)
        return collect(event for outcome in self._outcomes(submission, answer) for event in answer.feed(outcome))

    def generate(self, prompt: str | Sequence[int], sampling: SamplingParams | None = None) -> Generation:
        """Continue a raw prompt: token ids, or text (in which control tokens are ordinary text).

        Raises RequestError or ProviderError.
        """
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        resolved = self._resolve(sampling or SamplingParams(), len(ids))
        submission = Submission(uuid.uuid4().hex, ids, replace(resolved, stop=()), self.stop_token_ids)
        answer = _RawAnswer(self.tokenizer, len(ids), resolved.stop)
        for outcome in self._outcomes(submission, answer):
            answer.feed(outcome)
        return answer.generation()

    def _outcomes(self, submission: Submission, answer: _Answer | _RawAnswer) -> Iterator[Outcome]:
        outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._engine.submit(submission, outcomes.put)
        try:
            while not answer.is_finished:
                yield outcomes.get()
        finally:
            if not answer.engine_finished:
                self._engine.abort(submission.request_id)

    def _prepare(self, request: ChatRequest) -> tuple[Submission, _Answer]:
        if not request.messages:
            raise RequestError("messages is empty", param="messages")
        prompt = self.template.render(request.messages, request.tools)
        sampling = self._resolve(request.sampling, len(prompt))
        first_index = count_calls(request.messages)
        constraint = _ConstraintSpec(request.tools, request.tool_choice, first_index, request.grammar)
        submission = Submission(
            uuid.uuid4().hex, prompt, replace(sampling, stop=()), self.stop_token_ids, constraint=constraint
        )
        names = [tool.name for tool in request.tools]
        return submission, _Answer(self.tokenizer, len(prompt), ReplyParser(first_index, names), sampling.stop)

    def _resolve(self, sampling: SamplingParams, prompt_tokens: int) -> SamplingParams:
        """Settings of the request, else of generation_config.json, else the defaults; checked against this model."""
        if prompt_tokens >= self.max_model_len:
            raise ContextLengthError(prompt_tokens=prompt_tokens, max_model_len=self.max_model_len)
        if sampling.topk is not None and sampling.topk > self.config.num_experts_per_tok:
            raise RequestError(
                f"topk must be at most {self.config.num_experts_per_tok}, not {sampling.topk}", param="topk"
            )
        room = self.max_model_len - prompt_tokens
        defaults = self.generation_config
        temperature = defaults.get("temperature", DEFAULT_TEMPERATURE) if defaults.get("do_sample", True) else 0.0

        def first(value: Any, key: str) -> Any:
            return defaults.get(key) if value is None else value

        return replace(
            sampling,
            max_tokens=min(sampling.max_tokens or room, room),
            temperature=temperature if sampling.temperature is None else sampling.temperature,
            top_p=first(sampling.top_p, "top_p"),
            top_k=first(sampling.top_k, "top_k"),
            min_p=first(sampling.min_p, "min_p"),
        )

    def _stop_token_ids(self, *, own_tokenizer: bool) -> frozenset[int]:
        """The end of a turn, and what the checkpoint's two configs call the end: they differ in K2's own files."""
        stops = {self.tokenizer.im_end_id, self.tokenizer.eos_id}
        if own_tokenizer:
            stated = self.generation_config.get("eos_token_id")
            stops.update(self.config.eos_token_ids)
            stops.update([stated] if isinstance(stated, int) else stated or ())
        return frozenset(stops)


class _StopStrings:
    """Looks for stop strings in a stream of text, holding back what could be the start of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """Text that is certain now, and whether a stop string ended it."""
        text = self._held + text
        found = [at for stop in self._stop if (at := text.find(stop)) >= 0]
        if found:
            self._held = ""
            return text[: min(found)], True
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], False

    def flush(self) -> str:
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest end of `text` with which `stop` begins."""
    return next((n for n in range(min(len(text), len(stop) - 1), 0, -1) if text.endswith(stop[:n])), 0)


class _Answer:
    """One chat answer: engine outputs to events, the last of which is `Finished`."""

    def __init__(self, tokenizer: Tokenizer, prompt_tokens: int, parser: ReplyParser, stop: Sequence[str]) -> None:
        self.is_finished = False
        self.engine_finished = False
        self._usage = Usage(prompt_tokens)
        self._vocab_size = tokenizer.vocab_size
        self._lexer = TokenLexer(tokenizer)
        self._parser = parser
        self._stop = _StopStrings(stop)

    def feed(self, outcome: Outcome) -> list[ChatEvent]:
        """Events that follow. Raises the error that ended the request."""
        output = _checked(outcome, self)
        self._usage = replace(self._usage, cached_tokens=output.cached_tokens)
        events: list[ChatEvent] = []
        for token_id in output.token_ids:
            self._usage = replace(self._usage, completion_tokens=self._usage.completion_tokens + 1)
            # A model may have more rows than the tokenizer entries; such an id has no text.
            pieces = self._lexer.push(token_id) if token_id < self._vocab_size else []
            if self._through_stops([event for piece in pieces for event in self._parser.feed(piece)], events):
                return self._finish("stop", events)
        if output.finish_reason is not None:
            pieces = self._lexer.flush()
            if self._through_stops([event for piece in pieces for event in self._parser.feed(piece)], events):
                return self._finish("stop", events)
            return self._finish(output.finish_reason, events)
        return events

    def _through_stops(self, parsed: Sequence[ChatEvent], events: list[ChatEvent]) -> bool:
        """Append `parsed` to `events`, its prose as far as it is certain; True when a stop string ended it."""
        for event in parsed:
            if isinstance(event, TextDelta):
                text, stopped = self._stop.push(event.text)
                if text:
                    events.append(TextDelta(text))
                if stopped:
                    return True
                continue
            held = self._stop.flush()
            if held:
                events.append(TextDelta(held))
            events.append(event)
        return False

    def _finish(self, reason: FinishReason, events: list[ChatEvent]) -> list[ChatEvent]:
        self.is_finished = True
        last = self._parser.finish(reason, self._usage)
        if self._through_stops(last, events):
            events.append(Finished("stop", self._usage))
        return events


class _RawAnswer:
    """One raw continuation."""

    def __init__(self, tokenizer: Tokenizer, prompt_tokens: int, stop: Sequence[str]) -> None:
        self.is_finished = False
        self.engine_finished = False
        self._usage = Usage(prompt_tokens)
        self._tokenizer = tokenizer
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self._stop = _StopStrings(stop)
        self._text: list[str] = []
        self._ids: list[int] = []
        self._reason: FinishReason = "error"

    def feed(self, outcome: Outcome) -> None:
        output = _checked(outcome, self)
        self._usage = replace(self._usage, cached_tokens=output.cached_tokens)
        for token_id in output.token_ids:
            self._ids.append(token_id)
            if token_id < self._tokenizer.vocab_size and token_id not in self._tokenizer.special_ids:
                self._add(self._detokenizer.push(token_id))
            if self.is_finished:
                return
        if output.finish_reason is not None:
            self._add(self._detokenizer.flush())
            if not self.is_finished:
                self._text.append(self._stop.flush())
                self.is_finished, self._reason = True, output.finish_reason

    def generation(self) -> Generation:
        usage = replace(self._usage, completion_tokens=len(self._ids))
        return Generation("".join(self._text), tuple(self._ids), self._reason, usage)

    def _add(self, text: str) -> None:
        certain, stopped = self._stop.push(text)
        self._text.append(certain)
        if stopped:
            self.is_finished, self._reason = True, "stop"


def _checked(outcome: Outcome, answer: _Answer | _RawAnswer) -> StepOutput:
    """The output, unless the request failed; notes when the engine is done with it."""
    if isinstance(outcome, OpenK2Error):
        answer.engine_finished = True
        raise outcome
    answer.engine_finished = outcome.finish_reason is not None
    if outcome.finish_reason == "error":
        raise ProviderError(outcome.error or "the engine failed on this request")
    return outcome


@dataclass(frozen=True)
class _Source:
    """Where a model's weights come from."""

    name: str
    config: ModelConfig
    folder: Path | None
    """None: random weights."""

    @classmethod
    def find(cls, model: str | Path) -> _Source:
        text = str(model)
        if text.startswith(RANDOM_PREFIX):
            return cls(text, preset(text.removeprefix(RANDOM_PREFIX)), None)
        folder = _folder(model)
        return cls(text if text in assets.names() else folder.resolve().name, load_config(folder), folder)

    def fingerprint(self) -> str:
        """Changes with the config and the weights (of a large file, its size and its beginning)."""
        digest = hashlib.sha256(repr(sorted(self.config.to_hf().items(), key=str)).encode())
        for file in () if self.folder is None else sorted(self.folder.glob("*.safetensors")):
            with file.open("rb") as weights:
                size = file.stat().st_size
                digest.update(f"{file.name}:{size}:".encode() + weights.read(size if size < 1 << 26 else 1 << 20))
        return digest.hexdigest()[:16]


def _folder(model: str | Path) -> Path:
    """The folder called `model`: one that exists, else an embedded model's."""
    path = Path(model)
    if path.is_dir():
        return path
    if path.name == str(model) and not path.exists():
        return assets.path(path.name)
    raise CheckpointError(f"{path}: no such checkpoint folder", param=str(path))


@dataclass(frozen=True)
class _ConstraintSpec:
    """What a request's `ToolConstraint` is built from, on the engine's side."""

    tools: tuple[ToolSpec, ...]
    tool_choice: ToolChoice
    first_index: int
    grammar: bool


@dataclass(frozen=True)
class _EngineBuilder:
    """Makes the engine where it is to run; picklable."""

    source: _Source
    device: str
    dtype: torch.dtype | None
    tokenizer_folder: Path
    stop_token_ids: frozenset[int]
    engine_config: EngineConfig

    def __call__(self) -> EngineParts:
        if self.device.startswith("cuda") and not torch.cuda.is_available():
            raise EnvironmentFault("no CUDA device that this torch can use; take --device cpu", param="device")
        if self.source.folder is None:
            dtype = self.dtype or torch.float32
            model = random_model(self.source.config, device=self.device, dtype=dtype)
        else:
            model = load_model(self.source.folder, device=self.device, dtype=self.dtype)
        tokenizer = Tokenizer.from_folder(self.tokenizer_folder)
        tool_grammars(tokenizer)  # made once, before the first request waits for it

        def make_constraint(spec: _ConstraintSpec) -> ToolConstraint | None:
            return ToolConstraint.build(
                tokenizer,
                spec.tools,
                spec.tool_choice,
                spec.first_index,
                spec.grammar,
                end_ids=self.stop_token_ids,
            )

        return EngineParts(Engine(model, self.engine_config), make_constraint)
