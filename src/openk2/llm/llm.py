"""The local ChatProvider: tokenizer, chat template and engine under one name.

    llm = LLM()  # the embedded k2-nano
    completion = llm.chat([Message("user", "What is 12 * 7?")], tools=BUILTIN_TOOLS)

Text lives here and above, ids below: prompts are rendered, answers are read and stop strings are looked for on this
side; the engine, in a thread or in a process of its own, sees neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from openk2.chat.events import ChatEvent, collect
from openk2.chat.ids import count_calls
from openk2.chat.messages import Completion, Message, ResponseFormat, ToolChoice, ToolSpec
from openk2.chat.parser import ReplyParser
from openk2.chat.provider import ChatRequest, ProviderFigure, ProviderLoad, TextRequest
from openk2.chat.template import ChatTemplate
from openk2.chat.trace import Trace
from openk2.checkpoint import Quantization, load_generation_config
from openk2.config import SamplingParams
from openk2.engine import EngineConfig, StepOutput
from openk2.engine.process import CLOSE_SECONDS, EngineClient, Outcome, ProcessEngine, Submission, ThreadEngine
from openk2.errors import (
    ConfigError,
    ContextLengthError,
    RequestError,
)
from openk2.llm.answers import Answer, Generation, RawAnswer
from openk2.llm.source import ConstraintSpec, EngineBuilder, Source, model_folder
from openk2.tokenizer import Tokenizer

DEFAULT_TEMPERATURE = 0.6
"""The model card's recommendation, where neither the request nor the checkpoint says."""


SAVE_SECONDS = 120.0
"""That a closing engine may take where it writes its prefix cache to a file."""


class LLM:
    """A model on this machine.

    model: the name of an embedded model, a checkpoint folder, or `random:PRESET` (random weights; needs `tokenizer`).
    dtype: of weights and cache, computed through torch; None is the stored one, but bfloat16 weights on a CPU are
    packed for the native kernels (`serving_quantization`), or made float32 where `serving_dtype` says so.
    tokenizer: a folder, or an embedded model's name, whose tokenizer and template are used in place of the model's.
    max_model_len: prompt plus answer, in tokens; None is the model's own window.
    sampling_defaults: what holds where a request says nothing, before the checkpoint's `generation_config.json`.
    quantization: int8 or int4 quantise the large matrices at load and bf16 packs them as they are, for the native CPU
    kernels; parts may differ, as in `int4,head=int8`.
    packed_folder: keeps the packed matrices of checkpoints in files, so that the next start maps them.
    num_speculative_tokens: most tokens of an answer that are guessed and checked in one step (docs/drafts.md); 0: none.
    prefix_cache_file: keeps the prefix cache over restarts: read at the start, written when the model is closed.
    memory: bytes that the engine's process keeps to. Packed experts that do not fit stay on disk (docs/memory.md).
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
        sampling_defaults: SamplingParams | None = None,
        quantization: str | None = None,
        packed_folder: Path | None = None,
        memory: int | None = None,
        prefix_cache_file: Path | None = None,
        num_speculative_tokens: int | None = None,
        engine_process: bool = False,
        engine_config: EngineConfig | None = None,
    ) -> None:
        formats = None if quantization is None else Quantization.parse(quantization)
        source = Source.find(model)
        self._name = source.name
        self.config = source.config
        tokenizer_folder = source.folder if tokenizer is None else model_folder(tokenizer)
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
        self.sampling_defaults = sampling_defaults or SamplingParams()
        self.stop_token_ids = self._stop_token_ids(own_tokenizer=tokenizer is None)
        # Answers change with the formats, so what names the weights does too.
        self.fingerprint = source.fingerprint() if formats is None else f"{source.fingerprint()}-{formats.code}"
        engine_config = engine_config or EngineConfig()
        if max_model_len is not None:
            engine_config = replace(engine_config, max_model_len=max_model_len)
        if num_speculative_tokens is not None:
            engine_config = replace(engine_config, num_speculative_tokens=num_speculative_tokens)
        self._has_drafts = engine_config.num_speculative_tokens > 0
        if prefix_cache_file is not None and not prefix_cache_file.absolute().parent.is_dir():
            raise ConfigError(
                f"{prefix_cache_file}: there is no such folder to keep the prefix cache in", param="prefix_cache_file"
            )
        build = EngineBuilder(
            source,
            device,
            dtype,
            tokenizer_folder,
            self.stop_token_ids,
            engine_config,
            formats,
            packed_folder,
            memory,
            prefix_cache_file,
            self.fingerprint,
        )
        seconds = CLOSE_SECONDS if prefix_cache_file is None else SAVE_SECONDS
        run = ProcessEngine if engine_process else ThreadEngine
        self._engine: EngineClient = run(build, close_seconds=seconds)

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

    @property
    def load(self) -> ProviderLoad:
        """As of the end of the engine's last step."""
        stats = self._engine.stats
        return ProviderLoad(
            running=stats.running,
            waiting=stats.waiting,
            cache_usage=1 - stats.free_blocks / stats.total_blocks,
            cache_queries=stats.prompt_tokens,
            cache_hits=stats.cached_tokens,
            preemptions=stats.preemptions,
        )

    @property
    def figures(self) -> tuple[ProviderFigure, ...]:
        """Of drafts and of the routed experts, as of the end of the engine's last step."""
        stats, experts = self._engine.stats, self._engine.stats.experts
        labels = {"model_name": self._name}
        drafts = {
            "vllm:spec_decode_num_drafts": ("Steps of answers that had drafts.", stats.drafts),
            "vllm:spec_decode_num_draft_tokens": ("Tokens of those drafts.", stats.draft_tokens),
            "vllm:spec_decode_num_accepted_tokens": ("Those that were right.", stats.accepted_tokens),
        }
        told = [
            ProviderFigure(name, text, "counter", labels, of) for name, (text, of) in drafts.items() if self._has_drafts
        ]
        told += (
            ProviderFigure(
                "openk2:expert_choices",
                "Choices of routers for generated tokens, by the number of experts.",
                "counter",
                {"model_name": self._name, "experts": str(number)},
                times,
            )
            for number, times in enumerate(stats.experts_taken)
            if number and self.config.n_routed_experts is not None
        )
        if experts is None:
            return tuple(told)
        counters = {
            "openk2:expert_lookups": ("Experts that layers asked for.", experts.lookups),
            "openk2:expert_hits": ("Those that were in memory.", experts.hits),
            "openk2:expert_hits_ahead": ("Those that had been fetched ahead.", experts.hits_ahead),
            "openk2:expert_bytes_read": ("Bytes of experts read from disk.", experts.bytes_read),
        }
        told += (ProviderFigure(name, text, "counter", labels, of) for name, (text, of) in counters.items())
        return tuple(told)

    def close(self) -> None:
        """End the engine; requests that still run get EngineDeadError."""
        self._engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def count_prompt_tokens(self, request: ChatRequest) -> int:
        """Tokens of the prompt that `request` becomes; raises RequestError or TemplateError as `stream` does."""
        return len(self._prompt(request))

    async def stream(self, request: ChatRequest) -> AsyncIterator[ChatEvent]:
        """See `ChatProvider.stream`."""
        submission, answer = await asyncio.to_thread(self._prepare, request)
        async with contextlib.aclosing(self._events(submission, answer, request.trace)) as events:
            async for event in events:
                yield event

    async def stream_text(self, request: TextRequest) -> AsyncIterator[ChatEvent]:
        """See `TextProvider.stream_text`."""
        submission, answer = await asyncio.to_thread(self._prepare_text, request)
        async with contextlib.aclosing(self._events(submission, answer, request.trace)) as events:
            async for event in events:
                yield event

    async def _events(
        self, submission: Submission, answer: Answer | RawAnswer, trace: Trace | None = None
    ) -> AsyncGenerator[ChatEvent]:
        loop = asyncio.get_running_loop()
        outcomes: asyncio.Queue[Outcome] = asyncio.Queue()

        def sink(outcome: Outcome) -> None:
            with contextlib.suppress(RuntimeError):  # the loop was closed: nobody listens any more
                loop.call_soon_threadsafe(outcomes.put_nowait, outcome)

        self._engine.submit(submission, sink)
        try:
            while not answer.is_finished:
                outcome = await outcomes.get()
                if trace is not None and isinstance(outcome, StepOutput):
                    trace.token_ids += outcome.token_ids
                for event in answer.feed(outcome):
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
        response_format: ResponseFormat | None = None,
    ) -> Completion:
        """The whole answer; raises as `stream` does."""
        request = ChatRequest(
            tuple(messages),
            tuple(tools),
            tool_choice or ToolChoice(),
            sampling or SamplingParams(),
            grammar,
            response_format,
        )
        submission, answer = self._prepare(request)
        return collect(event for outcome in self._outcomes(submission, answer) for event in answer.feed(outcome))

    def generate(self, prompt: str | Sequence[int], sampling: SamplingParams | None = None) -> Generation:
        """Continue a raw prompt: token ids, or text (in which control tokens are ordinary text).

        Raises RequestError or ProviderError.
        """
        submission, answer = self._prepare_text(TextRequest(prompt, sampling or SamplingParams()))
        for outcome in self._outcomes(submission, answer):
            answer.feed(outcome)
        return answer.generation()

    def _outcomes(self, submission: Submission, answer: Answer | RawAnswer) -> Iterator[Outcome]:
        outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._engine.submit(submission, outcomes.put)
        try:
            while not answer.is_finished:
                yield outcomes.get()
        finally:
            if not answer.engine_finished:
                self._engine.abort(submission.request_id)

    def _prepare(self, request: ChatRequest) -> tuple[Submission, Answer]:
        if not request.messages:
            raise RequestError("messages is empty", param="messages")
        prompt = self._prompt(request)
        sampling = self._resolve(request.sampling, len(prompt))
        first_index = count_calls(request.messages)
        constraint = ConstraintSpec(
            request.tools, request.tool_choice, first_index, request.grammar, request.response_format
        )
        submission = Submission(
            uuid.uuid4().hex, prompt, replace(sampling, stop=()), self.stop_token_ids, constraint=constraint
        )
        if request.trace is not None:
            request.trace.prompt_token_ids, request.trace.decode = prompt, self._text_of
            request.trace.sampling, request.trace.constraint = sampling, constraint.describe()
        names = [tool.name for tool in request.tools]
        # The answer in a response format begins with its object: the grammar leaves no room for a thought.
        is_thinking = request.response_format is None and self.template.opens_thought(prompt)
        return submission, Answer(
            self.tokenizer,
            len(prompt),
            ReplyParser(first_index, names, is_thinking=is_thinking),
            sampling.stop,
            min_tokens=sampling.min_tokens,
            mode=sampling.mode,
            thinks=self.template.thinks,
        )

    def _prompt(self, request: ChatRequest) -> list[int]:
        return self.template.render(request.messages, request.tools, variables=request.template_variables)

    def _prepare_text(self, request: TextRequest) -> tuple[Submission, RawAnswer]:
        prompt = request.prompt
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        resolved = self._resolve(request.sampling, len(ids))
        if request.trace is not None:
            request.trace.prompt_token_ids, request.trace.decode = ids, self._text_of
            request.trace.sampling = resolved
        submission = Submission(uuid.uuid4().hex, ids, replace(resolved, stop=()), self.stop_token_ids)
        return submission, RawAnswer(self.tokenizer, ids, resolved)

    def _resolve(self, sampling: SamplingParams, prompt_tokens: int) -> SamplingParams:
        """Settings of the request, else the server's, else of generation_config.json, else the default; checked."""
        if prompt_tokens >= self.max_model_len:
            raise ContextLengthError(prompt_tokens=prompt_tokens, max_model_len=self.max_model_len)
        if sampling.topk is not None and sampling.topk > self.config.num_experts_per_tok:
            raise RequestError(
                f"topk must be at most {self.config.num_experts_per_tok}, not {sampling.topk}", param="topk"
            )
        room = self.max_model_len - prompt_tokens
        stated = {"temperature": DEFAULT_TEMPERATURE, **self.generation_config}
        if not stated.get("do_sample", True):
            stated["temperature"] = 0.0

        def first(key: str) -> Any:
            given = (getattr(sampling, key), getattr(self.sampling_defaults, key), stated.get(key))
            return next((value for value in given if value is not None), None)

        keys = ["temperature", "top_p", "top_k", "min_p", "repetition_penalty"]
        if sampling.topk is None:
            keys.append("mode")
        return replace(sampling, max_tokens=min(sampling.max_tokens or room, room), **{key: first(key) for key in keys})

    def _text_of(self, token_ids: Sequence[int]) -> str:
        """Ids for which the tokenizer has no entry, as random models give them, have no text."""
        return self.tokenizer.decode(id for id in token_ids if id < self.tokenizer.vocab_size)

    def _stop_token_ids(self, *, own_tokenizer: bool) -> frozenset[int]:
        """The end of a turn, and what the checkpoint's two configs call the end: they differ in K2's own files."""
        stops = {self.tokenizer.im_end_id, self.tokenizer.eos_id}
        if own_tokenizer:
            stated = self.generation_config.get("eos_token_id")
            stops.update(self.config.eos_token_ids)
            stops.update([stated] if isinstance(stated, int) else stated or ())
        return frozenset(stops)
