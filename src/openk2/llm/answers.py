"""What the engine sends for one request, turned into an answer: chat events, or a raw continuation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from openk2.chat.events import ChatEvent, Finished, ReasoningDelta, TextDelta
from openk2.chat.lexers import Piece
from openk2.chat.messages import ExpertUse, FinishReason, Usage
from openk2.chat.parser import ReplyParser, Thought, TokenLexer
from openk2.chat.stop_strings import StopStrings
from openk2.config import Mode, SamplingParams
from openk2.engine import StepOutput
from openk2.engine.process import Outcome
from openk2.engine.request import TokenLogprobs
from openk2.errors import OpenK2Error, ProviderError
from openk2.llm.logprobs import PendingLogprobs
from openk2.tokenizer import IncrementalDetokenizer, Tokenizer


@dataclass(frozen=True)
class Generation:
    """A raw continuation of a prompt."""

    text: str
    """Control tokens are not part of it."""
    token_ids: tuple[int, ...]
    """Everything that was generated, the token that ended it included."""
    finish_reason: FinishReason
    usage: Usage


class Answer:
    """One chat answer: engine outputs to events, the last of which is `Finished`."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        prompt_tokens: int,
        parser: ReplyParser,
        stop: Sequence[str],
        *,
        min_tokens: int = 0,
        mode: Mode | None = None,
        thinks: bool = False,
    ) -> None:
        self.is_finished = False
        self.engine_finished = False
        self._prompt_tokens = prompt_tokens
        self._cached_tokens = self._completion_tokens = self._reasoning_tokens = 0
        self._vocab_size = tokenizer.vocab_size
        self._specials = tokenizer.special_ids
        self._lexer = TokenLexer(tokenizer, thinks=thinks)
        self._parser = parser
        self._stop = StopStrings(stop)
        self._min_tokens = min_tokens
        self._logprobs = PendingLogprobs(tokenizer)
        self._mode = mode
        self._experts: ExpertUse | None = None

    def feed(self, outcome: Outcome) -> list[ChatEvent]:
        """Events that follow. Raises the error that ended the request."""
        output = _checked(outcome, self)
        self._cached_tokens, self._experts = output.cached_tokens, _expert_use(output, self._mode)
        events: list[ChatEvent] = []
        for i, token_id in enumerate(output.token_ids):
            self._completion_tokens += 1
            was_thinking = self._parser.is_thinking
            if output.logprobs and token_id not in self._specials:
                self._logprobs.push(token_id, output.logprobs[i])
            # A model may have more rows than the tokenizer entries; such an id has no text.
            pieces = self._lexer.push(token_id) if token_id < self._vocab_size else []
            stop = self._through_stops(self._parsed(pieces), events)
            if was_thinking or self._parser.is_thinking:
                self._reasoning_tokens += 1
            if stop is not None:
                return self._finish("stop", events, stop)
        if output.finish_reason is not None:
            stop = self._through_stops(self._parsed(self._lexer.flush()), events)
            if stop is not None:
                return self._finish("stop", events, stop)
            return self._finish(output.finish_reason, events)
        return events

    def _parsed(self, pieces: Sequence[Piece]) -> list[ChatEvent]:
        events: list[ChatEvent] = []
        for piece in pieces:
            was_thinking = self._parser.is_thinking
            events += self._parser.feed(piece)
            if isinstance(piece, str):
                self._logprobs.saw(piece)
            elif isinstance(piece, Thought):
                if self._parser.is_thinking == was_thinking:  # out of place, so it is text
                    self._logprobs.saw(piece.value)
                else:
                    self._logprobs.drop_unknown()
        return events

    def _through_stops(self, parsed: Sequence[ChatEvent], events: list[ChatEvent]) -> str | None:
        """Append `parsed` to `events`, its prose as far as it is certain; the stop string that ended it, if one did."""
        for event in parsed:
            if isinstance(event, TextDelta):
                is_early = self._completion_tokens < self._min_tokens
                text, stop = (event.text, None) if is_early else self._stop.push(event.text)
                if text:
                    events.append(TextDelta(text, self._logprobs.take(text)))
                if stop is not None:
                    return stop
                continue
            held = self._stop.flush()
            if held:
                events.append(TextDelta(held, self._logprobs.take(held)))
            if isinstance(event, ReasoningDelta):
                self._logprobs.take(event.text)
            events.append(event)
        return None

    def _finish(self, reason: FinishReason, events: list[ChatEvent], stop: str | None = None) -> list[ChatEvent]:
        self.is_finished = True
        usage = Usage(
            self._prompt_tokens, self._completion_tokens, self._cached_tokens, self._reasoning_tokens, self._experts
        )
        if stop is None:
            stop = self._through_stops(self._parser.finish(reason, usage), events)
        if stop is not None:
            events.append(Finished("stop", usage, stop))
        return events


class RawAnswer:
    """One raw continuation; its events begin with the prompt, where the engine tells of its tokens."""

    def __init__(self, tokenizer: Tokenizer, prompt: Sequence[int], sampling: SamplingParams) -> None:
        self.is_finished = False
        self.engine_finished = False
        self._prompt_tokens = len(prompt)
        self._cached_tokens = 0
        self._mode = sampling.mode
        self._experts: ExpertUse | None = None
        self._unechoed = None if sampling.prompt_logprobs is None else prompt
        self._tokenizer = tokenizer
        self._detokenizer = IncrementalDetokenizer(tokenizer)
        self._stop = StopStrings(sampling.stop)
        self._min_tokens = sampling.min_tokens
        self._skips_specials = sampling.skip_special_tokens
        self._logprobs = PendingLogprobs(tokenizer)
        self._text: list[str] = []
        self._ids: list[int] = []
        self._reason: FinishReason = "error"
        self._stop_string: str | None = None

    def feed(self, outcome: Outcome) -> list[ChatEvent]:
        """Events that follow: text, and `Finished`. Raises the error that ended the request."""
        before = len(self._text)
        output = _checked(outcome, self)
        events: list[ChatEvent] = []
        if self._unechoed is not None:
            events.append(self._echo(self._unechoed, output.prompt_logprobs))
            self._unechoed = None
        self._read(output)
        text = "".join(self._text[before:])
        if text:
            events.append(TextDelta(text, self._logprobs.take(text)))
        if self.is_finished:
            events.append(Finished(self._reason, self._usage, self._stop_string))
        return events

    def _read(self, output: StepOutput) -> None:
        self._cached_tokens, self._experts = output.cached_tokens, _expert_use(output, self._mode)
        for i, token_id in enumerate(output.token_ids):
            self._ids.append(token_id)
            is_end = output.finish_reason == "stop" and i == len(output.token_ids) - 1
            is_special = token_id in self._tokenizer.special_ids
            if token_id < self._tokenizer.vocab_size and not (is_special and (self._skips_specials or is_end)):
                if output.logprobs:
                    self._logprobs.push(token_id, output.logprobs[i])
                self._add(self._detokenizer.push(token_id))
            if self.is_finished:
                return
        if output.finish_reason is not None:
            self._add(self._detokenizer.flush())
            if not self.is_finished:
                self._text.append(self._stop.flush())
                self.is_finished, self._reason = True, output.finish_reason

    def _echo(self, prompt: Sequence[int], known: Sequence[TokenLogprobs]) -> TextDelta:
        text = self._tokenizer.decode(token_id for token_id in prompt if token_id < self._tokenizer.vocab_size)
        return TextDelta(text, tuple(map(self._logprobs.told, prompt, (None, *known))))

    def generation(self) -> Generation:
        return Generation("".join(self._text), tuple(self._ids), self._reason, self._usage)

    @property
    def _usage(self) -> Usage:
        return Usage(self._prompt_tokens, len(self._ids), self._cached_tokens, experts=self._experts)

    def _add(self, text: str) -> None:
        self._logprobs.saw(text)
        certain, stop = (text, None) if len(self._ids) < self._min_tokens else self._stop.push(text)
        self._text.append(certain)
        if stop is not None:
            self.is_finished, self._reason, self._stop_string = True, "stop", stop


def _expert_use(output: StepOutput, mode: Mode | None) -> ExpertUse | None:
    use = output.expert_use
    return None if use is None else ExpertUse(mode, use.taken, use.choices)


def _checked(outcome: Outcome, answer: Answer | RawAnswer) -> StepOutput:
    """The output, unless the request failed; notes when the engine is done with it."""
    if isinstance(outcome, OpenK2Error):
        answer.engine_finished = True
        raise outcome
    answer.engine_finished = outcome.finish_reason is not None
    if outcome.finish_reason == "error":
        raise ProviderError(outcome.error or "the engine failed on this request")
    return outcome
