"""What `openk2 deploy` writes and says."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openk2.planner import Plan
    from openk2.planner.deploy import Deployment
    from openk2.planner.deploy.read_line import Line
    from openk2.planner.deploy.shortfall import Shortfall

MARK = "written by openk2 deploy"
"""In the first lines of each file: what bears it may be replaced."""


def texts(deployment: Deployment, form: str) -> dict[str, str]:
    """File name -> text, of the wanted formats."""
    import json

    from openk2 import __version__
    from openk2.cli.plan import plan_json
    from openk2.planner.deploy.write_compose import compose_file
    from openk2.planner.deploy.write_kubernetes import kubernetes_manifests
    from openk2.planner.deploy.write_shell import shell_script

    lines = [
        f"{MARK} (openk2 {__version__}): {deployment.served_name} on {deployment.engine} {deployment.engine_version}",
        *(f"{group}: {plan.hardware}, {plan.parallelism}" for group, plan in deployment.plans.items()),
    ]
    about = [" ".join(line.split()) for line in lines]  # comments of one line each, whatever a folder is called
    writers = {
        "shell": ("run.sh", lambda: shell_script(deployment, about)),
        "compose": ("compose.yaml", lambda: compose_file(deployment, about)),
        "k8s": ("kubernetes.yaml", lambda: kubernetes_manifests(deployment, about)),
    }
    texts = {file: write() for name, (file, write) in writers.items() if form in (name, "all")}
    plans = {group: plan_json(plan) for group, plan in deployment.plans.items()}
    texts["plan.json"] = json.dumps({"about": about[0], "plans": plans}, indent=2) + "\n"
    texts["next-steps.txt"] = "\n".join([about[0], "", *next_steps(deployment, set(texts))]) + "\n"
    return texts


def next_steps(deployment: Deployment, files: set[str]) -> list[str]:
    url = f"http://127.0.0.1:{deployment.port}"
    served, checkpoint = shlex.quote(deployment.served_name), shlex.quote(deployment.checkpoint)
    names = [process.name for process in deployment.processes]
    profile = "--profile PROCESS " if len(names) > 1 else ""
    size = f"{deployment.weights_bytes / 1e9:,.0f} GB"
    if deployment.is_folder:
        name = Path(deployment.checkpoint).name
        lines = [f"get it      copy {checkpoint} to each node; for Kubernetes, into the claim as {name} ({size})"]
    else:
        lines = [f"get it      hf download {checkpoint}   ({size}, on each node)"]
    if len(names) > 1:
        lines.append(f"processes   {' '.join(names)}; addresses: {' '.join(variables(deployment)) or 'none'}")
    if "run.sh" in files:
        lines.append(f"start       ./run.sh{' PROCESS on its node' if len(names) > 1 else ''}")
    if "compose.yaml" in files:
        lines.append(f"  or        docker compose {profile}up --detach")
    if "kubernetes.yaml" in files:
        lines.append("  or        kubectl apply --filename kubernetes.yaml, then kubectl port-forward")
    return [
        *lines,
        f"health      curl --fail {url}/health",
        f"verify      openk2 verify {url} --model {served}",
        f"in front    openk2 serve {served} --upstream {url}",
        *(f"note        {note}" for note in deployment.notes),
    ]


def variables(deployment: Deployment) -> list[str]:
    from openk2.planner.deploy.write_shell import variable

    return [variable(name) for name in deployment.addresses]


def report(deployment: Deployment, asked: Line | None, written: list[str]) -> dict[str, Any]:
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


def printed(deployment: Deployment, asked: Line | None, files: dict[str, str], written: list[str]) -> str:
    """What was planned and written, and the next steps."""
    lines = _faults(asked)
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
        first = next((name for name in ("run.sh", "compose.yaml", "kubernetes.yaml") if name in files), "plan.json")
        lines += ["", files[first].rstrip(), "", "(--output DIR writes it all)"]
    return "\n".join([*lines, "", *next_steps(deployment, set(files))])


def refusal_json(plans: dict[str, Plan]) -> dict[str, Any]:
    from openk2.cli.plan import plan_json

    return {"plans": {group: plan_json(plan) for group, plan in plans.items()}}


def refusal_lines(plans: dict[str, Plan], asked: Line | None) -> list[str]:
    """Of the groups that do not fit."""
    lines = _faults(asked)
    for group, plan in plans.items():
        assert plan.refusal is not None
        total = f"{plan.refusal.missing_total_bytes:,} in all"
        lines.append(f"{group:<11} {plan.model.name} in {plan.quantization} does not fit {plan.hardware}")
        lines.append(f"            {plan.refusal.reason}, {total} ({plan.parallelism})")
        lines += [f"advice      {text}" for text in plan.advice]
    return lines


def _faults(asked: Line | None) -> list[str]:
    if asked is None:
        return []
    reading = [f"model       {asked.reading}"] if asked.reading else []
    return [*reading, *(f"fault       {fault}" for fault in asked.faults)]


def shortfall_json(short: Shortfall, engine: str, asked: Line | None) -> dict[str, Any]:
    needs, near = short.needs, short.nearest
    return {
        "faults_of_the_line": list(asked.faults) if asked else [],
        "model": needs.model.name,
        "quantization": needs.quantization,
        "context_tokens": needs.load.context_tokens,
        "weights_bytes": needs.memory.weights_bytes,
        "cache_bytes": needs.memory.cache_bytes_per_token * needs.load.context_tokens,
        "here": str(short.here),
        "missing_bytes": needs.memory.missing_bytes,
        "holds": [
            {
                "hardware": str(plan.hardware),
                "layout": str(plan.parallelism),
                "usd_per_hour": usd,
                "command": _command(engine, plan),
            }
            for plan, usd in short.holding
        ],
        "nearest": near
        and {
            "model": near.model.name,
            "quantization": near.quantization,
            "context_tokens": near.load.context_tokens,
            "needed_bytes": near.memory.needed_bytes,
        },
    }


def _command(engine: str, plan: Plan) -> str:
    from openk2.planner.deploy.make_deployment import is_nvidia

    words = f"openk2 deploy {engine} {plan.model.name} --hardware {str(plan.hardware).replace(' ', '')}"
    image = "" if is_nvidia(plan.hardware.device) else " --image IMAGE"
    return f"{words} --context {plan.load.context_tokens}{image}"


def shortfall_lines(shown: dict[str, Any], asked: Line | None) -> list[str]:
    """The same for a person."""
    lines = _faults(asked)
    lines += [
        f"needs       {shown['weights_bytes']:,} bytes of weights ({shown['model']} in {shown['quantization']}) and "
        f"{shown['cache_bytes']:,} of cache for one request of {shown['context_tokens']:,} tokens, on GPUs",
        f"here        {shown['here']}: {shown['missing_bytes']:,} bytes are missing",
    ]
    if not shown["holds"]:
        lines.append("plan        no priced GPU in counts of up to 32 holds it in this layout; try `openk2 plan`")
    for one in shown["holds"][:4]:
        price = f"${one['usd_per_hour']:.2f} an hour"
        lines.append(f"plan        {one['hardware']}, {one['layout']}, {price}: {one['command']}")
    near = shown["nearest"]
    if near is not None and near["model"] == "nano":
        lines.append("fits here   k2-nano, which comes with openk2: openk2 serve")
    elif near is not None:
        flag = "" if near["quantization"] == "bf16" else f" --quantization {near['quantization']}"
        lines.append(
            f"fits here   {near['model']} in {near['quantization']}, {near['needed_bytes'] / 1e9:.1f} GB, context "
            f"{near['context_tokens']:,}: openk2 serve FOLDER{flag}; at once: k2-nano, with openk2 serve"
        )
    return lines
