"""`openk2 serve`: a model over the OpenAI API, with a web page."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from openk2.errors import ConfigError

if TYPE_CHECKING:
    from openk2.chat.provider import ChatProvider

NANO = "k2-nano"

ABOUT_NANO = """\
k2-nano is a small demonstration model of the Kimi K2 architecture, trained by this repository to call tools.
It knows nothing about the world: do not trust its text. It is not Kimi K2."""

NANO_ALONE = "Everything runs on this machine; nothing is sent anywhere."


def command(
    model: str | None = typer.Argument(
        None,
        help="A checkpoint folder, or the name of an embedded model; with --upstream, its name there.",
        show_default=NANO,
    ),
    host: str = typer.Option("127.0.0.1", help="Address to listen on; any but this machine's own needs an API key."),
    port: int = typer.Option(8000, help="Port to listen on; 0 takes a free one."),
    tokenizer: str | None = typer.Option(None, help="Folder of another tokenizer, or k2-nano."),
    served_model_name: list[str] | None = typer.Option(
        None, help="Name the model answers to, in place of its own and the Kimi names; may be repeated."
    ),
    max_model_len: int | None = typer.Option(
        None, min=1, help="Tokens of the window; default: what the model was made for."
    ),
    override_generation_config: str | None = typer.Option(
        None, help="JSON of sampling settings for requests that say nothing, such as '{\"temperature\": 0.3}'."
    ),
    mode: str | None = typer.Option(
        None, help="Experts per generated token where a request says nothing: reflex, auto or deliberative (all)."
    ),
    device: str = typer.Option("cpu", help="cpu or cuda."),
    quantization: str | None = typer.Option(
        None, help="int8, int4 or bf16: weights packed for the native CPU kernels; parts may differ: int4,head=int8."
    ),
    packed_folder: Path | None = typer.Option(
        None, help="Folder that keeps the packed weights of --quantization, so that the next start maps them."
    ),
    memory: str | None = typer.Option(
        None, help="What the model's process keeps to, such as 8GiB; experts that do not fit are read from disk."
    ),
    prefix_cache_file: Path | None = typer.Option(
        None, help="Keeps the prefix cache over restarts: read at the start, written at a clean end."
    ),
    num_speculative_tokens: int | None = typer.Option(
        None, min=0, help="Most tokens of an answer that are guessed and checked in one step; 0: none."
    ),
    api_key_file: Path | None = typer.Option(
        None, help="File of accepted API keys, one a line; the variable OPENK2_API_KEY adds one."
    ),
    response_store: Path | None = typer.Option(
        None, help="SQLite file that keeps the responses of /v1/responses; default: in memory, until the server stops."
    ),
    cors_origin: list[str] | None = typer.Option(
        None, help="Origin whose pages may use the server, such as http://localhost:3000; may be repeated."
    ),
    max_waiting: int = typer.Option(
        256, min=1, help="Requests that may wait for their first token; a further one gets a 429."
    ),
    request_timeout: float = typer.Option(3600, min=1, help="Seconds after which an answer ends with an error."),
    drain_timeout: float = typer.Option(
        30, min=0, help="Seconds that answers under way may go on after SIGTERM or Ctrl-C; a second one ends all."
    ),
    explain_cache_misses: bool = typer.Option(
        False, help="Keep recent prompts in memory; GET /debug/cache-misses tells where one left the prefix cache."
    ),
    log_format: str = typer.Option("text", help="text or json: one line a request, on standard error."),
    otlp_traces_endpoint: str | None = typer.Option(
        None, help="OTLP collector that gets a span for each request; needs the extra otel."
    ),
    upstream: list[str] | None = typer.Option(
        None,
        help="Stand before this engine or host in place of a model: a URL, or moonshot, openrouter, ...; repeatable.",
    ),
    upstream_mode: str = typer.Option(
        "chat", help="chat, or completions: prompts are rendered and answers parsed here (needs --tokenizer)."
    ),
    upstream_key_file: list[Path] | None = typer.Option(
        None,
        help="File with the upstream's key, one for all or one for each; else the variable OPENK2_UPSTREAM_API_KEY.",
    ),
    upstream_timeout: float = typer.Option(600, min=1, help="Seconds that an upstream may say nothing."),
    invalid_calls: str = typer.Option(
        "retry", help="Tool calls of an upstream that are not valid: retry, error or pass."
    ),
    enable_auto_tool_choice: bool = typer.Option(False, help="Accepted; tool calls are always on."),
    tool_call_parser: str | None = typer.Option(None, help="Accepted; the model's own format is always parsed."),
    trust_remote_code: bool = typer.Option(False, help="Accepted; no code of a checkpoint is ever run."),
    tensor_parallel_size: int = typer.Option(1, help="Only 1: this server runs on one device."),
) -> None:
    """Serve a model over the OpenAI API, with a web page; or, with --upstream, stand before other engines and hosts.

    The port answers at once, with 503 until the model is loaded. Ctrl-C ends it, pressed twice at once.
    """
    del enable_auto_tool_choice, tool_call_parser, trust_remote_code
    if tensor_parallel_size != 1:
        raise ConfigError(
            f"--tensor-parallel-size {tensor_parallel_size}: this server runs on one device; leave the option out",
            param="tensor_parallel_size",
        )

    from openk2.config import SamplingParams, read_bytes, read_mode
    from openk2.server.request_log import RequestSink, log_request
    from openk2.server.run import run_server
    from openk2.server.settings import ServerSettings, read_api_keys

    settings = ServerSettings(
        host=host,
        port=port,
        api_keys=read_api_keys(api_key_file),
        served_model_names=tuple(served_model_name or ()),
        response_store=response_store,
        cors_origins=tuple(cors_origin or ()),
        max_waiting=max_waiting,
        request_timeout_s=request_timeout,
        drain_timeout_s=drain_timeout,
        explain_cache_misses=explain_cache_misses,
        log_format=log_format,
    )
    sinks: list[RequestSink] = [log_request]
    if otlp_traces_endpoint is not None:
        from openk2.server.otel import otlp_sink

        sinks.append(otlp_sink(otlp_traces_endpoint))

    promised = None if memory is None else read_bytes(memory, param="memory")
    sampling_defaults = replace(
        SamplingParams.from_generation_config(override_generation_config or "{}"), mode=read_mode(mode)
    )

    if upstream:
        from openk2.cli.gateway import GatewayOptions, serve_gateway

        local = (
            max_model_len,
            override_generation_config,
            mode,
            quantization,
            memory,
            num_speculative_tokens,
            prefix_cache_file,
        )
        if any(option is not None for option in local):
            raise ConfigError(
                "--max-model-len, --override-generation-config, --mode, --quantization, --memory, "
                "--num-speculative-tokens and --prefix-cache-file are for models that run here, not upstream"
            )
        options = GatewayOptions.read(
            upstream,
            upstream_key_file or (),
            model,
            mode=upstream_mode,
            invalid_calls=invalid_calls,
            tokenizer=tokenizer,
            timeout_s=upstream_timeout,
        )
        serve_gateway(options, settings, sinks)
        return
    model = model or NANO

    def load() -> ChatProvider:
        from openk2.llm import LLM

        return LLM(
            model,
            device=device,
            tokenizer=tokenizer,
            max_model_len=max_model_len,
            sampling_defaults=sampling_defaults,
            quantization=quantization,
            packed_folder=packed_folder,
            memory=promised,
            prefix_cache_file=prefix_cache_file,
            num_speculative_tokens=num_speculative_tokens,
            engine_process=True,
        )

    def on_listening(url: str) -> None:
        say(f"openk2 listens on {url}; loading {model} ...")

    def on_loaded(url: str, provider: ChatProvider) -> None:
        say(
            banner(
                url, settings.served_model_names[0] if settings.served_model_names else provider.model, model == NANO
            )
        )

    run_server(load, settings, on_listening=on_listening, on_loaded=on_loaded, sinks=sinks)
    say("openk2 has stopped.")


def banner(url: str, name: str, is_nano: bool) -> str:
    """What is served, what it can be trusted with, and three things to try."""
    about = f"{ABOUT_NANO}\n{NANO_ALONE}\n" if is_nano else ""
    return f"""
{name} is ready on {url}
{about}
Try it:
  in a browser   {url}
  with curl      curl {url}/v1/chat/completions -H 'Content-Type: application/json' \\
                   -d '{{"model": "{name}", "messages": [{{"role": "user", "content": "Hello!"}}]}}'
  with openai    python -c 'from openai import OpenAI; c = OpenAI(base_url="{url}/v1", api_key="any"); \\
                   print(c.chat.completions.create(model="{name}",
                   messages=[{{"role": "user", "content": "Hello!"}}]).choices[0].message.content)'
Ctrl-C stops the server.
"""


def say(text: str) -> None:
    print(text, file=sys.stdout, flush=True)
