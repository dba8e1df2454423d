"""`openk2 chat`: talk to a model in the terminal."""

from __future__ import annotations

import asyncio
import sys
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Annotated, cast

import typer

from openk2.errors import OpenK2Error, RequestError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from openk2.chat.events import ChatEvent
    from openk2.chat.messages import Completion, Message
    from openk2.chat.provider import ChatProvider
    from openk2.config import SamplingParams

HELP = """\
/new   forget the conversation and start a new one
/help  this list
/exit  leave (so does Ctrl-D)
Ctrl-C stops an answer."""

INTERRUPTED = 130
DIM, PLAIN = "\x1b[2m", "\x1b[0m"


def command(
    model: Annotated[
        str | None, typer.Argument(help="k2-nano, a checkpoint folder, or with --base-url a name of that server.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("-p", "--prompt", help="Answer this once and leave.")] = None,
    base_url: Annotated[
        str | None, typer.Option(help="Use this OpenAI-compatible server; key: OPENAI_API_KEY.")
    ] = None,
    quantization: Annotated[
        str | None, typer.Option(help="int8, int4 or bf16: weights packed for the native CPU kernels.")
    ] = None,
    mode: Annotated[
        str | None, typer.Option(help="Experts per generated token: reflex, auto or deliberative (all, the default).")
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="What the process keeps to, such as 8GiB; experts that do not fit stay on disk.")
    ] = None,
) -> None:
    """Talk to a model. Without a terminal, standard input is the prompt and is answered once.

    Exit codes: 0 answered; 1 the provider failed; 2 wrong usage or model; 130 Ctrl-C.
    """
    interactive = prompt is None and sys.stdin.isatty()
    if not interactive:
        prompt = sys.stdin.read() if prompt is None else prompt
        if not prompt.strip():
            raise RequestError("the prompt is empty: give one with -p TEXT, or on standard input", param="prompt")

    from openk2.chat.messages import Message
    from openk2.cli.provider import opened_provider
    from openk2.config import SamplingParams, read_mode

    sampling = SamplingParams(mode=read_mode(mode))
    try:
        with (
            opened_provider(model, base_url, quantization=quantization, memory=memory) as provider,
            asyncio.Runner() as runner,
        ):
            if prompt is not None:
                runner.run(_reply(provider, [Message("user", prompt)], sampling))
            else:
                _talk(provider, runner, sampling)
    except KeyboardInterrupt:
        raise typer.Exit(INTERRUPTED) from None


def _talk(provider: ChatProvider, runner: asyncio.Runner, sampling: SamplingParams) -> None:
    """The interactive session: a failed or stopped answer leaves the conversation as it was before the question."""
    from openk2.chat.messages import Message

    with suppress(ImportError):
        import readline  # noqa: F401 - gives input() line editing and history

    print(f"{provider.model} - /help lists the commands")
    messages: list[Message] = []
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(/exit or Ctrl-D leaves)")
            continue
        if text == "/exit":
            return
        if text == "/new":
            messages = []
            print("a new conversation")
        elif text.startswith("/"):
            print(HELP)
        elif text:
            asked = [*messages, Message("user", text)]
            try:
                completion = runner.run(_reply(provider, asked, sampling))
            except KeyboardInterrupt:
                print("\n[stopped]")
            except OpenK2Error as error:
                hint = " (/new starts afresh)" if error.code == "context_length_exceeded" else ""
                print(f"openk2: {' '.join(str(error).split())}{hint}", file=sys.stderr)
            else:
                messages = [*asked, completion.message]


async def _reply(provider: ChatProvider, messages: list[Message], sampling: SamplingParams) -> Completion:
    """Print the answer as it comes; on a terminal also the thoughts before it, dimmed."""
    from openk2.agent.printable import printable
    from openk2.chat.events import Collector, ReasoningDelta, TextDelta
    from openk2.chat.provider import ChatRequest

    collector = Collector()
    shows_thoughts, thinking = sys.stdout.isatty(), False
    stream = cast("AsyncGenerator[ChatEvent, None]", provider.stream(ChatRequest(tuple(messages), sampling=sampling)))
    try:
        async with aclosing(stream):
            async for event in stream:
                collector.add(event)
                if isinstance(event, ReasoningDelta) and shows_thoughts:
                    print("" if thinking else DIM, printable(event.text), sep="", end="", flush=True)
                    thinking = True
                elif isinstance(event, TextDelta):
                    print(f"{PLAIN}\n\n" if thinking else "", printable(event.text), sep="", end="", flush=True)
                    thinking = False
    finally:
        print(PLAIN if thinking else "")
    completion = collector.completion()
    if completion.finish_reason == "length":
        print("[cut by the token limit]", file=sys.stderr)
    return completion
