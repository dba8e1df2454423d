"""A plan as vLLM's command lines.

Sources: the official deployment guide of Kimi K2 for TP16 and DP16 + EP; vLLM's documentation on parallelism and
scaling (`--nnodes`, Ray) and on the NixlConnector; `vllm-router --help` for prefill apart from decode.
"""

from __future__ import annotations

import json
from math import ceil, floor

from openk2.errors import ConfigError
from openk2.planner.deploy.deployment import (
    DATA_PARALLEL_PORT,
    LISTEN,
    MASTER_PORT,
    NIXL_PORT,
    RAY_PORT,
    SELF,
    Process,
    Settings,
    address,
)
from openk2.planner.deploy.flags import ProgramFlags
from openk2.planner.memory import PREFILL_CHUNK_TOKENS
from openk2.planner.plan import Plan

CACHE_TYPES = {"fp8": "fp8", "fp8_ds_mla": "fp8_ds_mla"}
"""The planner's cache formats -> --kv-cache-dtype; bf16 is what `auto` gives."""


def engine_processes(
    plan: Plan, flags: ProgramFlags, settings: Settings, *, group: str, port: int, is_reached: bool
) -> list[Process]:
    """One process per node of a group; the first answers. `group` is engine, prefill or decode.

    Raises ConfigError for a layout that vLLM cannot start over these nodes.
    """
    layout, hardware = plan.parallelism, plan.hardware
    nodes, per_node = hardware.num_nodes, min(hardware.device.devices_per_node, hardware.num_devices)
    if layout.dp_size > 1 and nodes > 1 and (layout.pp_size > 1 or layout.tp_size > per_node):
        raise ConfigError(
            f"vLLM's data parallelism over nodes needs each replica within one: {layout} does not fit nodes of "
            f"{per_node}; TP{per_node} PP{nodes} does",
            param="layout",
        )
    common = ["vllm", "serve", settings.checkpoint, "--host", LISTEN, "--port", str(port)]
    common += _model_arguments(plan, flags, settings)
    common += _parallel_arguments(plan)
    environment: dict[str, str] = {}
    if group != "engine":
        transfer = {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
        common += ["--kv-transfer-config", json.dumps(transfer)]
        environment |= {"VLLM_NIXL_SIDE_CHANNEL_HOST": SELF, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(NIXL_PORT)}
    processes = []
    for rank in range(nodes):
        before: tuple[tuple[str, ...], ...] = ()
        argv, own, program = list(common), dict(environment), "vllm"
        if nodes > 1 and layout.dp_size > 1:
            local = per_node // layout.tp_size
            argv += ["--data-parallel-size-local", str(local), "--data-parallel-address", address(f"{group}-0")]
            argv += ["--data-parallel-rpc-port", str(DATA_PARALLEL_PORT)]
            argv += ["--headless", "--data-parallel-start-rank", str(rank * local)] if rank else []
        elif nodes > 1 and settings.uses_ray:
            own["VLLM_HOST_IP"] = SELF
            if rank == 0:
                before = (("ray", "start", "--head", f"--port={RAY_PORT}"),)
                argv += ["--distributed-executor-backend", "ray"]
            else:
                program = "ray"
                argv = ["ray", "start", f"--address={address(f'{group}-0')}:{RAY_PORT}", "--block"]
        elif nodes > 1:
            argv += ["--nnodes", str(nodes), "--node-rank", str(rank), "--master-addr", address(f"{group}-0")]
            argv += ["--master-port", str(MASTER_PORT)]
            argv += ["--headless"] if rank else []
        processes.append(
            Process(
                name=f"{group}-{rank}",
                program=program,
                argv=tuple(argv),
                before=before,
                environment=own,
                port=None if rank else port,
                is_reached=is_reached and not rank,
                num_devices=per_node,
            )
        )
    return processes


def _model_arguments(plan: Plan, flags: ProgramFlags, settings: Settings) -> list[str]:
    arguments = ["--served-model-name", settings.served_name, "--trust-remote-code"]
    arguments += ["--revision", settings.revision] if settings.revision else []
    arguments += ["--quantization", plan.quantization] if settings.quantize_on_load else []
    arguments += ["--max-model-len", str(plan.load.context_tokens)]
    arguments += ["--gpu-memory-utilization", f"{floor(plan.hardware.device.usable_fraction * 100) / 100:.2f}"]
    arguments += ["--max-num-batched-tokens", str(PREFILL_CHUNK_TOKENS)]
    if plan.load.batch > 1:
        arguments += ["--max-num-seqs", str(ceil(plan.load.batch / plan.parallelism.dp_size))]
    if plan.cache_format != "bf16":
        wanted = CACHE_TYPES.get(plan.cache_format, plan.cache_format)
        offered = flags.choices("--kv-cache-dtype")
        if plan.cache_format not in CACHE_TYPES or (offered and wanted not in offered):
            raise ConfigError(
                f"vLLM {flags.version} has no cache in {plan.cache_format}; take bf16 or fp8", param="cache"
            )
        arguments += ["--kv-cache-dtype", wanted]
    tools = next((one for one in settings.published.tool_parsers if one in flags.tool_parsers), None)
    arguments += ["--enable-auto-tool-choice", "--tool-call-parser", tools] if tools else []
    thoughts = next((one for one in settings.published.reasoning_parsers if one in flags.reasoning_parsers), None)
    arguments += ["--reasoning-parser", thoughts] if thoughts else []
    if settings.published.temperature is not None:
        defaults = {"temperature": settings.published.temperature}
        arguments += ["--override-generation-config", json.dumps(defaults)]
    return [*arguments, "--enable-prompt-tokens-details"]


def _parallel_arguments(plan: Plan) -> list[str]:
    layout = plan.parallelism
    arguments = ["--tensor-parallel-size", str(layout.tp_size)] if layout.tp_size > 1 else []
    arguments += ["--pipeline-parallel-size", str(layout.pp_size)] if layout.pp_size > 1 else []
    arguments += ["--data-parallel-size", str(layout.dp_size)] if layout.dp_size > 1 else []
    arguments += ["--enable-expert-parallel"] if layout.expert_parallel else []
    arguments += ["--decode-context-parallel-size", str(layout.dcp_size)] if layout.dcp_size > 1 else []
    return arguments


def router_process(prefill: list[Process], decode: list[Process], *, port: int) -> Process:
    """vllm-router, which sends each request to a prefill and then to a decode server."""
    argv = ["vllm-router", "--host", LISTEN, "--port", str(port), "--vllm-pd-disaggregation"]
    for flag, process in (("--prefill", prefill[0]), ("--decode", decode[0])):
        argv += [flag, f"http://{address(process.name)}:{process.port}"]
    argv += ["--policy", "consistent_hash"]
    return Process(name="router", program="vllm-router", argv=tuple(argv), port=port)
