"""`openk2 deploy`: a plan as vLLM's or SGLang's command lines, compose file and manifests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from openk2.errors import ConfigError, EnvironmentFault

if TYPE_CHECKING:
    from openk2.planner import Hardware, Load, ModelShape, Parallelism, Plan
    from openk2.planner.deploy import Deployment
    from openk2.planner.deploy.here import Here

FORMATS = ("shell", "compose", "k8s", "all")
DEFAULT_CONTEXT = 32768


def command(
    engine: Annotated[str | None, typer.Argument(help="vllm or sglang; --line tells it too.")] = None,
    model: Annotated[str | None, typer.Argument(help="As for `openk2 plan`.", show_default="k2-0905")] = None,
    hardware: Annotated[str | None, typer.Option(help="Such as 16xH200; default: this machine's GPUs.")] = None,
    hardware_file: Annotated[Path | None, typer.Option(help="TOML with devices of your own.")] = None,
    context: Annotated[str | None, typer.Option(help="Longest request in tokens.", show_default="32k")] = None,
    quantization: Annotated[str | None, typer.Option(help="bf16, fp8, int4, awq, gptq; default: as published.")] = None,
    cache: Annotated[str, typer.Option(help="Numbers of the cache: bf16, fp8, fp8_ds_mla.")] = "bf16",
    load: Annotated[str, typer.Option(help="As for `openk2 plan`: in=1000,out=2000,cached=50%,batch=32.")] = "",
    layout: Annotated[str | None, typer.Option(help="'TP8 PP2', 'DP16 EP' ...; default: the fastest.")] = None,
    disaggregate: Annotated[
        str | None, typer.Option(help="Nodes for prefill and for decode apart, such as 1P1D.")
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="vLLM over several nodes by Ray, also where it need not.")] = False,
    checkpoint: Annotated[
        str | None, typer.Option(help="Repository or folder that the engine loads; default: the model's own.")
    ] = None,
    revision: Annotated[str | None, typer.Option(help="Commit of the repository, its chat template included.")] = None,
    engine_version: Annotated[
        str | None, typer.Option(help="Whose flags to write; default: the installed one, else the newest known.")
    ] = None,
    image: Annotated[str | None, typer.Option(help="Container image; default: the engine's own.")] = None,
    line: Annotated[
        str | None, typer.Option(help="Somebody's own `vllm serve ...`: judge it, and plan what it asks for.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Folder to write into; default: print.")] = None,
    form: Annotated[str, typer.Option("--format", help="shell, compose, k8s or all.")] = "all",
    start: Annotated[bool, typer.Option("--start", help="Start it here.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write what the planner planned for vLLM or SGLang: a shell script, a compose file, Kubernetes manifests.

    Exit codes: 0 written; 1 it does not fit (the missing bytes are told), or it cannot be started here; 2 wrong usage.
    """
    from openk2.cli.deploy_output import (
        printed,
        refusal_json,
        refusal_lines,
        report,
        shortfall_json,
        shortfall_lines,
        texts,
    )
    from openk2.planner import read_hardware, read_tokens
    from openk2.planner.deploy import read_layout
    from openk2.planner.deploy.here import look
    from openk2.planner.deploy.make_deployment import check_checkpoint, check_device, check_engine
    from openk2.planner.deploy.published import preset_of
    from openk2.planner.deploy.read_line import read_line
    from openk2.planner.deploy.shortfall import find_shortfall
    from openk2.planner.machine import memory_bytes
    from openk2.planner.read_model import read_model

    if form not in FORMATS:
        raise ConfigError(f"--format must be one of {', '.join(FORMATS)}, not {form}", param="format")
    asked = None if line is None else read_line(line, engine_version)
    name = check_engine(engine or (asked.engine if asked else _missing_engine()))
    if asked and name != asked.engine:
        raise ConfigError(
            f"the line starts {asked.engine}, not {name}; judge it without naming an engine", param="line"
        )
    here = look(memory_bytes())
    version = engine_version or here.engines.get(name)
    model = model or (asked and (asked.preset or asked.model)) or "k2-0905"
    shape = read_model(preset_of(model) or model)
    own_layout = read_layout(layout) if layout else (asked.layout if asked else None)
    tokens = (asked and asked.context_tokens) or min(DEFAULT_CONTEXT, shape.max_context_tokens)
    tokens = read_tokens(context) if context else tokens
    wanted = _load(load, tokens)
    machine = read_hardware(hardware, file=hardware_file) if hardware else here.hardware
    if machine is None and here.gpus:
        names = ", ".join(dict.fromkeys(here.gpus))
        raise ConfigError(f"this machine's {names} are not of the catalogue: say --hardware, with a --hardware-file")
    if machine is None:
        short = find_shortfall(shape, wanted, here, quantization=quantization, cache_format=cache, layout=own_layout)
        lacking = shortfall_json(short, name, asked)
        typer.echo(json.dumps(lacking, indent=2) if as_json else "\n".join(shortfall_lines(lacking, asked)))
        raise typer.Exit(1)
    check_device(name, machine.device, image)
    quantize = check_checkpoint(shape, quantization, checkpoint)
    plans = _plans(shape, machine, wanted, quantization, cache, own_layout, disaggregate)
    refused = {group: plan for group, plan in plans.items() if plan.refusal is not None}
    if refused:
        typer.echo(json.dumps(refusal_json(refused), indent=2) if as_json else "\n".join(refusal_lines(refused, asked)))
        raise typer.Exit(1)
    deployment = _deployment(name, shape, plans, checkpoint, revision, quantize, ray, version, image)
    files = texts(deployment, form)
    written = [] if output is None else _write(output, files)
    shown = report(deployment, asked, written)
    typer.echo(json.dumps(shown, indent=2) if as_json else printed(deployment, asked, files, written))
    if start:
        _start(deployment, here, texts(deployment, "shell")["run.sh"])


def _missing_engine() -> str:
    raise ConfigError("say which engine: openk2 deploy vllm or openk2 deploy sglang", param="engine")


def _load(text: str, tokens: int) -> Load:
    from openk2.planner import Load, read_load

    if text:
        return read_load(text, context_tokens=tokens)
    return Load(context_tokens=tokens, prompt_tokens=max(1, tokens // 2), output_tokens=max(1, tokens // 2))


def _plans(
    shape: ModelShape,
    machine: Hardware,
    load: Load,
    quantization: str | None,
    cache: str,
    layout: Parallelism | None,
    disaggregate: str | None,
) -> dict[str, Plan]:
    from dataclasses import replace

    from openk2.planner.deploy import plan_for_engine, read_split

    if disaggregate is None:
        groups = {"engine": machine}
    else:
        groups = dict(zip(("prefill", "decode"), read_split(disaggregate, machine), strict=True))
        if layout is not None:
            raise ConfigError("with --disaggregate each group takes its own fastest layout", param="layout")
    return {
        group: plan_for_engine(
            shape,
            part,
            replace(load, batch=1) if group == "prefill" else load,  # one prompt after the other, and passed on
            quantization=quantization,
            cache_format=cache,
            layout=layout,
            with_pipeline=disaggregate is None,
        )
        for group, part in groups.items()
    }


def _deployment(
    engine: str,
    shape: ModelShape,
    plans: dict[str, Plan],
    checkpoint: str | None,
    revision: str | None,
    quantize: bool,
    ray: bool,
    version: str | None,
    image: str | None,
) -> Deployment:
    from openk2.planner.deploy import Settings, make_deployment
    from openk2.planner.deploy.published import published

    if ray and engine != "vllm":
        raise ConfigError("--ray is for vLLM; SGLang's nodes find each other by themselves", param="ray")
    known = published(shape)
    source = checkpoint or known.repository or shape.name
    named = Path(shape.name).resolve() if Path(shape.name).is_dir() else Path(shape.name)
    settings = Settings(
        checkpoint=str(Path(source).resolve()) if Path(source).is_dir() else source,
        served_name=named.name or "model",
        published=known,
        revision=revision,
        quantize_on_load=quantize,
        uses_ray=ray,
    )
    return make_deployment(engine, plans, settings, version=version, image=image)


def _write(folder: Path, files: dict[str, str]) -> list[str]:
    """All files aside, then renamed. Refuses a folder with files of these names that this verb has not written."""
    from contextlib import suppress

    from openk2.cli.deploy_output import MARK

    aside = {name: folder / f".{name}.new" for name in files}
    try:
        for name in files:
            file = folder / name
            if file.exists() and MARK not in file.read_text(encoding="utf-8", errors="replace")[:500]:
                raise ConfigError(f"{file} is there, and not written by openk2 deploy: name another --output")
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            aside[name].write_text(text, encoding="utf-8")
            aside[name].chmod(0o755 if name == "run.sh" else 0o644)
        for name, file in aside.items():
            file.replace(folder / name)
    except OSError as error:
        for file in aside.values():
            with suppress(OSError):
                file.unlink()
        raise EnvironmentFault(f"cannot write {error.filename or folder}: {error.strerror}") from None
    return [str(folder / name) for name in files]


def _start(deployment: Deployment, here: Here, script: str) -> None:
    """Runs the script until it ends. Raises EnvironmentFault where this machine alone cannot be the deployment."""
    import subprocess

    if len(deployment.processes) > 1:
        names = " ".join(process.name for process in deployment.processes)
        raise EnvironmentFault(f"it runs on several nodes: start each with ./run.sh PROCESS there ({names})")
    if deployment.engine not in here.engines:
        package = f"{deployment.engine}=={deployment.engine_version}"
        raise EnvironmentFault(
            f"{deployment.engine} is not installed here: pip install {package}, or docker compose up in its --output"
        )
    planned = deployment.plans["engine"].hardware
    if here.hardware is None or (here.hardware.device.name, here.hardware.num_devices) != (
        planned.device.name,
        planned.num_devices,
    ):
        raise EnvironmentFault(f"it is planned for {planned}, and this machine has {here}")
    done = subprocess.run(["bash", "-c", script, "run.sh", deployment.processes[0].name], check=False)
    if done.returncode:
        raise typer.Exit(1)
