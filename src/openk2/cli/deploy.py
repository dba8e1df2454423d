"""`openk2 deploy`: a plan as vLLM's or SGLang's command lines, compose file and manifests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from openk2.errors import ConfigError, EnvironmentFault

if TYPE_CHECKING:
    from openk2.planner import Hardware, Load, ModelShape, Parallelism, Plan
    from openk2.planner.deploy import Deployment
    from openk2.planner.deploy.here import Here
    from openk2.planner.deploy.read_line import Line

FORMATS = ("shell", "compose", "k8s", "all")
MARK = "written by openk2 deploy"
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
    from openk2.cli.doctor import memory_bytes
    from openk2.planner import read_hardware, read_tokens
    from openk2.planner.deploy import read_layout
    from openk2.planner.deploy.here import look
    from openk2.planner.deploy.make_deployment import check_checkpoint, check_engine
    from openk2.planner.deploy.published import preset_of
    from openk2.planner.deploy.read_line import read_line
    from openk2.planner.read_model import read_model

    if form not in FORMATS:
        raise ConfigError(f"--format must be one of {', '.join(FORMATS)}, not {form}", param="format")
    asked = None if line is None else read_line(line, engine_version)
    name = check_engine(asked.engine if asked else engine or _missing_engine())
    here = look(memory_bytes())
    version = engine_version or here.engines.get(name)
    model = model or (asked and (preset_of(asked.model) or asked.model)) or "k2-0905"
    shape = read_model(preset_of(model) or model)
    own_layout = read_layout(layout) if layout else (asked.layout if asked else None)
    tokens = (asked and asked.context_tokens) or min(DEFAULT_CONTEXT, shape.max_context_tokens)
    tokens = read_tokens(context) if context else tokens
    wanted = _load(load, tokens)
    machine = read_hardware(hardware, file=hardware_file) if hardware else here.hardware
    if machine is None or machine.device.kind != "gpu":
        report = _without_gpus(name, shape, wanted, here, machine, quantization, cache, own_layout, asked)
        typer.echo(json.dumps(report, indent=2) if as_json else "\n".join(_listed(report)))
        raise typer.Exit(1)
    quantize = check_checkpoint(shape, quantization, checkpoint)
    plans = _plans(shape, machine, wanted, quantization, cache, own_layout, disaggregate)
    refused = {group: plan for group, plan in plans.items() if plan.refusal is not None}
    if refused:
        _refuse(refused, asked, as_json)
        raise typer.Exit(1)
    deployment = _deployment(name, shape, plans, checkpoint, revision, quantize, ray, version, image)
    files = _texts(deployment, form, asked)
    written = [] if output is None else _write(output, files)
    report = _report(deployment, asked, written)
    typer.echo(json.dumps(report, indent=2) if as_json else _printed(deployment, report, files, written))
    if start:
        _start(deployment, here, files["run.sh"] if "run.sh" in files else _texts(deployment, "shell", asked)["run.sh"])


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
    settings = Settings(
        checkpoint=checkpoint or known.repository or shape.name,
        served_name=Path(shape.name).name,
        published=known,
        revision=revision,
        quantize_on_load=quantize,
        uses_ray=ray,
    )
    return make_deployment(engine, plans, settings, version=version, image=image)


def _texts(deployment: Deployment, form: str, asked: Line | None) -> dict[str, str]:
    """File name -> text, of the wanted formats."""
    from openk2 import __version__
    from openk2.cli.plan import plan_json
    from openk2.planner.deploy.write_compose import compose_file
    from openk2.planner.deploy.write_kubernetes import kubernetes_manifests
    from openk2.planner.deploy.write_shell import shell_script

    about = [
        f"{MARK} (openk2 {__version__}): {deployment.served_name} on {deployment.engine} {deployment.engine_version}",
        *(f"{group}: {plan.hardware}, {plan.parallelism}" for group, plan in deployment.plans.items()),
    ]
    writers = {
        "shell": ("run.sh", lambda: shell_script(deployment, about)),
        "compose": ("compose.yaml", lambda: compose_file(deployment, about)),
        "k8s": ("kubernetes.yaml", lambda: kubernetes_manifests(deployment, about)),
    }
    texts = {file: write() for name, (file, write) in writers.items() if form in (name, "all")}
    plans = {group: plan_json(plan) for group, plan in deployment.plans.items()}
    texts["plan.json"] = json.dumps({"about": about[0], "plans": plans}, indent=2) + "\n"
    texts["next-steps.txt"] = "\n".join([about[0], "", *_next_steps(deployment, set(texts))]) + "\n"
    return texts


def _next_steps(deployment: Deployment, files: set[str]) -> list[str]:
    url = f"http://127.0.0.1:{deployment.port}"
    names = [process.name for process in deployment.processes]
    profile = "--profile PROCESS " if len(names) > 1 else ""
    lines = [
        f"get it      hf download {deployment.checkpoint}   ({deployment.weights_bytes / 1e9:,.0f} GB, on each node)"
    ]
    if len(names) > 1:
        lines.append(f"processes   {' '.join(names)}; addresses: {' '.join(_variables(deployment)) or 'none'}")
    if "run.sh" in files:
        lines.append(f"start       ./run.sh{' PROCESS on its node' if len(names) > 1 else ''}")
    if "compose.yaml" in files:
        lines.append(f"  or        docker compose {profile}up --detach")
    if "kubernetes.yaml" in files:
        lines.append("  or        kubectl apply --filename kubernetes.yaml, then kubectl port-forward")
    return [
        *lines,
        f"health      curl --fail {url}/health",
        f"verify      openk2 verify {url} --model {deployment.served_name}",
        f"in front    openk2 serve {deployment.served_name} --upstream {url}",
        *(f"note        {note}" for note in deployment.notes),
    ]


def _variables(deployment: Deployment) -> list[str]:
    from openk2.planner.deploy.write_shell import variable

    return [variable(name) for name in deployment.addresses]


def _write(folder: Path, files: dict[str, str]) -> list[str]:
    """Each file aside and renamed. Refuses a folder with files of these names that this verb has not written."""
    try:
        for name in files:
            file = folder / name
            if file.exists() and MARK not in file.read_text(encoding="utf-8", errors="replace")[:500]:
                raise ConfigError(f"{file} is there, and not written by openk2 deploy: name another --output")
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            aside = folder / f".{name}.new"
            aside.write_text(text, encoding="utf-8")
            aside.chmod(0o755 if name == "run.sh" else 0o644)
            aside.replace(folder / name)
    except OSError as error:
        raise EnvironmentFault(f"cannot write {error.filename or folder}: {error.strerror}") from None
    return [str(folder / name) for name in files]


def _report(deployment: Deployment, asked: Line | None, written: list[str]) -> dict[str, Any]:
    from openk2.cli.plan import plan_json

    return {
        "engine": deployment.engine,
        "engine_version": deployment.engine_version,
        "flags_of": deployment.flags_version,
        "model": deployment.served_name,
        "checkpoint": deployment.checkpoint,
        "url": f"http://127.0.0.1:{deployment.port}",
        "plans": {group: plan_json(plan) for group, plan in deployment.plans.items()},
        "processes": [
            {
                "name": process.name,
                "argv": list(process.argv),
                "before": [list(words) for words in process.before],
                "environment": dict(process.environment),
                "port": process.port,
            }
            for process in deployment.processes
        ],
        "faults_of_the_line": list(asked.faults) if asked else [],
        "notes": list(deployment.notes),
        "files": written,
    }


def _printed(deployment: Deployment, report: dict[str, Any], files: dict[str, str], written: list[str]) -> str:
    lines = [f"fault       {fault}" for fault in report["faults_of_the_line"]]
    for group, plan in deployment.plans.items():
        memory, speed = plan.memory, plan.speed
        assert speed is not None
        rates = {
            "decode": f"{speed.decode_tokens_per_s_per_request:,.0f} tokens/s per request",
            "prefill": f"first token after {speed.time_to_first_token_s:.1f} s",
        }
        predicted = rates.get(group) or ", ".join(rates.values())
        lines += [
            f"{group:<11} {plan.model.name} in {plan.quantization} on {plan.hardware}: {plan.parallelism}",
            f"            {memory.needed_bytes / 1e9:.1f} of {memory.device_bytes / 1e9:.1f} GB per device; "
            f"context {plan.load.context_tokens:,}, {plan.largest_batch} requests of it fit",
            f"            {predicted} (predicted)",
        ]
    known = deployment.flags_version
    lines.append(f"flags       of {deployment.engine} {known}, read from its package")
    if known != deployment.engine_version:
        lines[-1] += f"; {deployment.engine_version} may differ"
    if written:
        lines += ["", *(f"wrote       {name}" for name in written)]
    else:
        shown = next((name for name in ("run.sh", "compose.yaml", "kubernetes.yaml") if name in files), None)
        lines += ["", files[shown or "plan.json"].rstrip(), "", "(--output DIR writes it all)"]
    return "\n".join([*lines, "", *_next_steps(deployment, set(files))])


def _refuse(plans: dict[str, Plan], asked: Line | None, as_json: bool) -> None:
    from openk2.cli.plan import plan_json

    if as_json:
        typer.echo(json.dumps({"plans": {group: plan_json(plan) for group, plan in plans.items()}}, indent=2))
        return
    lines = [f"fault       {fault}" for fault in (asked.faults if asked else ())]
    for group, plan in plans.items():
        assert plan.refusal is not None
        lines.append(f"{group:<11} {plan.model.name} in {plan.quantization} does not fit {plan.hardware}")
        lines.append(
            f"            {plan.refusal.reason}, {plan.refusal.missing_total_bytes:,} in all ({plan.parallelism})"
        )
        lines += [f"advice      {text}" for text in plan.advice]
    typer.echo("\n".join(lines))


def _without_gpus(
    engine: str,
    shape: ModelShape,
    load: Load,
    here: Here,
    machine: Hardware | None,
    quantization: str | None,
    cache: str,
    layout: Parallelism | None,
    asked: Line | None,
) -> dict[str, Any]:
    """What it needs, what is here, what would hold it, and the nearest model that fits here."""
    from openk2.planner.deploy.here import holding_hardware, nearest_model
    from openk2.planner.deploy.make_deployment import is_nvidia
    from openk2.planner.make_plan import make_plan
    from openk2.planner.parallel import Parallelism as Layout

    place = machine or here.processor
    needs = make_plan(
        shape,
        place,
        load,
        quantization=quantization,
        cache_format=cache,
        layout=Layout(tp_size=1) if place.num_devices == 1 else None,
    )
    holding = holding_hardware(shape, load, quantization=quantization, cache_format=cache, layout=layout)
    near = nearest_model(here, load.context_tokens)
    return {
        "faults_of_the_line": list(asked.faults) if asked else [],
        "model": shape.name,
        "quantization": needs.quantization,
        "context_tokens": load.context_tokens,
        "weights_bytes": needs.memory.weights_bytes,
        "cache_bytes": needs.memory.cache_bytes_per_token * load.context_tokens,
        "here": str(here) if machine is None else str(machine),
        "missing_bytes": needs.memory.missing_bytes * place.num_devices,
        "holds": [
            {
                "hardware": str(plan.hardware),
                "layout": str(plan.parallelism),
                "usd_per_hour": usd,
                "command": f"openk2 deploy {engine} {shape.name} --hardware {str(plan.hardware).replace(' ', '')} "
                f"--context {load.context_tokens}{'' if is_nvidia(plan.hardware.device) else ' --image IMAGE'}",
            }
            for plan, usd in holding
        ],
        "nearest": None
        if near is None
        else {
            "model": near[0],
            "quantization": near[1].quantization,
            "context_tokens": near[1].load.context_tokens,
            "needed_bytes": near[1].memory.needed_bytes,
        },
    }


def _listed(report: dict[str, Any]) -> list[str]:
    lines = [f"fault       {fault}" for fault in report["faults_of_the_line"]]
    weights, cache, missing = (report[key] for key in ("weights_bytes", "cache_bytes", "missing_bytes"))
    lines += [
        f"needs       {weights:,} bytes of weights ({report['model']} in {report['quantization']}) and {cache:,} of "
        f"cache for one request of {report['context_tokens']:,} tokens, on GPUs",
        f"here        {report['here']}: {missing:,} bytes are missing",
    ]
    if not report["holds"]:
        lines.append("plan        no priced GPU in counts of up to 32 holds it in this layout; try `openk2 plan`")
    for one in report["holds"][:4]:
        lines.append(
            f"plan        {one['hardware']}, {one['layout']}, ${one['usd_per_hour']:.2f} an hour: {one['command']}"
        )
    near = report["nearest"]
    if near is not None and near["model"] == "nano":
        lines.append("fits here   k2-nano, which comes with openk2: openk2 serve")
    elif near is not None:
        flag = "" if near["quantization"] == "bf16" else f" --quantization {near['quantization']}"
        lines.append(
            f"fits here   {near['model']} in {near['quantization']}, {near['needed_bytes'] / 1e9:.1f} GB, context "
            f"{near['context_tokens']:,}: openk2 serve FOLDER{flag}; at once: k2-nano, with openk2 serve"
        )
    return lines


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
    done = subprocess.run(["bash", "-c", script, "run.sh", deployment.processes[0].name], check=False)
    if done.returncode:
        raise typer.Exit(1)
