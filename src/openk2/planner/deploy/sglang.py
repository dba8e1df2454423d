"""A plan as SGLang's command lines.

Sources: the official deployment guide of Kimi K2 (TP16; prefill apart from decode with attention data-parallel), and
SGLang's documentation of PD disaggregation. Tensor parallelism counts all devices there, and attention's data
parallelism lies within it.
"""

from __future__ import annotations

from math import floor

from openk2.errors import ConfigError
from openk2.planner.deploy.deployment import BOOTSTRAP_PORT, LISTEN, SGLANG_INIT_PORT, Process, Settings, address
from openk2.planner.deploy.flags import ProgramFlags
from openk2.planner.memory import PREFILL_CHUNK_TOKENS
from openk2.planner.plan import Memory, Plan

DYNAMIC_TERMS = ("activations", "runtime", "reserve")


def static_fraction(memory: Memory) -> float:
    """Of a device's memory for weights and cache, as planned, rounded down to hundredths."""
    dynamic = sum(term.bytes for term in memory.terms if term.name in DYNAMIC_TERMS)
    return floor((1 - dynamic / memory.device_bytes) * 100) / 100


def engine_processes(
    plan: Plan, flags: ProgramFlags, settings: Settings, *, group: str, port: int, is_reached: bool
) -> list[Process]:
    """One process per node of a group; the first answers. `group` is engine, prefill or decode."""
    nodes = plan.hardware.num_nodes
    common = ["python3", "-m", "sglang.launch_server", "--model-path", settings.checkpoint, "--host", LISTEN]
    common += ["--port", str(port), *_model_arguments(plan, flags, settings), *_parallel_arguments(plan, flags)]
    if group != "engine":
        common += ["--disaggregation-mode", group, "--disaggregation-bootstrap-port", str(BOOTSTRAP_PORT)]
    processes = []
    for rank in range(nodes):
        argv = list(common)
        if nodes > 1:
            argv += ["--dist-init-addr", f"{address(f'{group}-0')}:{SGLANG_INIT_PORT}"]
            argv += ["--nnodes", str(nodes), "--node-rank", str(rank)]
        processes.append(
            Process(
                name=f"{group}-{rank}",
                program="sglang",
                argv=tuple(argv),
                port=None if rank else port,
                is_reached=is_reached and not rank,
                num_devices=min(plan.hardware.device.devices_per_node, plan.hardware.num_devices),
            )
        )
    return processes


def _model_arguments(plan: Plan, flags: ProgramFlags, settings: Settings) -> list[str]:
    arguments = ["--served-model-name", settings.served_name, "--trust-remote-code"]
    arguments += ["--revision", settings.revision] if settings.revision else []
    arguments += ["--quantization", plan.quantization] if settings.quantize_on_load else []
    arguments += ["--context-length", str(plan.load.context_tokens)]
    arguments += ["--mem-fraction-static", f"{static_fraction(plan.memory):.2f}"]
    # SGLang divides the chunk among attention's replicas.
    arguments += ["--chunked-prefill-size", str(PREFILL_CHUNK_TOKENS * plan.parallelism.dp_size)]
    arguments += ["--max-running-requests", str(plan.load.batch)] if plan.load.batch > 1 else []
    if plan.cache_format == "fp8":
        arguments += ["--kv-cache-dtype", "fp8_e4m3"]
    elif plan.cache_format != "bf16":
        raise ConfigError(f"SGLang has no cache in {plan.cache_format}; take bf16 or fp8", param="cache")
    tools = next((one for one in settings.published.tool_parsers if one in flags.tool_parsers), None)
    arguments += ["--tool-call-parser", tools] if tools else []
    thoughts = next((one for one in settings.published.reasoning_parsers if one in flags.reasoning_parsers), None)
    arguments += ["--reasoning-parser", thoughts] if thoughts else []
    return [*arguments, "--enable-cache-report", "--enable-metrics"]


def _parallel_arguments(plan: Plan, flags: ProgramFlags) -> list[str]:
    layout = plan.parallelism
    tp_size = layout.tp_size * layout.dp_size
    arguments = ["--tp-size", str(tp_size)] if tp_size > 1 else []
    arguments += ["--pp-size", str(layout.pp_size)] if layout.pp_size > 1 else []
    if layout.dp_size > 1 and flags.has("--attn-dp-size"):
        arguments += ["--attn-dp-size", str(layout.dp_size)]
    elif layout.dp_size > 1:
        arguments += ["--dp-size", str(layout.dp_size), "--enable-dp-attention"]
    if layout.expert_parallel:
        arguments += ["--ep-size", str(layout.ep_size)]
        arguments += ["--moe-a2a-backend", "deepep"] if plan.quantization == "fp8" else []
    if layout.dcp_size > 1 and not flags.has("--dcp-size"):
        raise ConfigError(f"SGLang {flags.version} has no decode context parallelism", param="layout")
    return [*arguments, "--dcp-size", str(layout.dcp_size)] if layout.dcp_size > 1 else arguments


def router_process(prefill: list[Process], decode: list[Process], *, port: int) -> Process:
    """The SGLang router, which sends each request to a prefill and a decode server at once."""
    argv = ["python3", "-m", "sglang_router.launch_router", "--host", LISTEN, "--port", str(port)]
    argv += ["--pd-disaggregation", "--prefill", f"http://{address(prefill[0].name)}:{prefill[0].port}"]
    argv += [str(BOOTSTRAP_PORT), "--decode", f"http://{address(decode[0].name)}:{decode[0].port}"]
    return Process(name="router", program="sglang-router", argv=tuple(argv), port=port)
