"""From a question to a `Deployment`: a layout that the engine can start, prefill apart from decode, command lines."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from types import ModuleType

from openk2.errors import ConfigError
from openk2.planner.deploy import sglang, vllm
from openk2.planner.deploy.deployment import DECODE_PORT, PREFILL_PORT, UPSTREAM_PORT, Deployment, Process, Settings
from openk2.planner.deploy.flags import ProgramFlags, program_flags
from openk2.planner.formats import Scheme
from openk2.planner.formats import scheme as find_scheme
from openk2.planner.hardware import Device, Hardware
from openk2.planner.load import SECONDS_PER_DAY, Load
from openk2.planner.make_plan import layouts, make_plan
from openk2.planner.parallel import Parallelism
from openk2.planner.plan import Plan
from openk2.planner.shape import Kind, ModelShape

ENGINES: dict[str, ModuleType] = {"vllm": vllm, "sglang": sglang}
IMAGES = {"vllm": "vllm/vllm-openai:v", "sglang": "lmsysorg/sglang:v"}
"""The engines' images by their tags; a version's name is put behind."""
NO_FORMATS = ("f32", "int8", "q8_0", "q6_k", "q5_k_m", "q4_k_m", "q4_0")
"""In which neither engine serves a mixture of experts with latent attention."""


def check_engine(name: str) -> str:
    """Raises ConfigError with those there are."""
    if name.lower() not in ENGINES:
        raise ConfigError(f"no engine {name!r}; there are {' and '.join(ENGINES)}", param="engine")
    return name.lower()


def read_layout(text: str) -> Parallelism:
    """`TP8 PP2`, `TP16` or `DP16 EP16`, as a plan prints it; the number behind EP may be left out.

    Raises ConfigError for anything else.
    """
    sizes: dict[str, int] = {}
    has_experts = False
    for part in re.split(r"[\s,]+", text.strip().upper()):
        match = re.fullmatch(r"(TP|PP|DP|DCP|EP)(\d*)", part)
        if match is None or (not match[2] and match[1] != "EP"):
            raise ConfigError(f"a layout is written as 'TP8 PP2' or 'DP16 EP', not {text!r}", param="layout")
        has_experts |= match[1] == "EP"
        sizes[match[1]] = int(match[2] or 0)
    layout = Parallelism(
        tp_size=sizes.get("TP", 1),
        pp_size=sizes.get("PP", 1),
        dp_size=sizes.get("DP", 1),
        dcp_size=sizes.get("DCP", 1),
        expert_parallel=has_experts,
    )
    if has_experts and sizes["EP"] not in (0, layout.ep_size):
        raise ConfigError(
            f"experts lie over all TP x DP ranks: EP{layout.ep_size}, not EP{sizes['EP']}", param="layout"
        )
    return layout


def read_split(text: str, hardware: Hardware) -> tuple[Hardware, Hardware]:
    """`1P3D`: one node for prefill, three for decode, together all of the hardware.

    Raises ConfigError for another form, or where the nodes are others.
    """
    match = re.fullmatch(r"\s*([1-9]\d*)p([1-9]\d*)d\s*", text.lower())
    if match is None:
        raise ConfigError(f"prefill and decode nodes are written as 1P1D, not {text!r}", param="disaggregate")
    prefill, decode = int(match[1]), int(match[2])
    per_node = hardware.device.devices_per_node
    if (prefill + decode) * per_node != hardware.num_devices:
        raise ConfigError(
            f"{text} takes {prefill + decode} nodes of {per_node} {hardware.device.name}: "
            f"--hardware {(prefill + decode) * per_node}x{hardware.device.name}, not {hardware}",
            param="disaggregate",
        )
    return replace(hardware, num_devices=prefill * per_node), replace(hardware, num_devices=decode * per_node)


def uneven_cut(shape: ModelShape, scheme: Scheme, layout: Parallelism) -> str | None:
    """Why an engine cannot cut the quantized MLPs so, if it cannot: a rank must hold whole blocks of scales."""
    widths = {Kind.DENSE_MLP: shape.dense_intermediate_size if shape.num_dense_layers else 0}
    if shape.num_experts and not layout.expert_parallel:
        widths[Kind.ROUTED_EXPERTS] = shape.expert_intermediate_size
    if shape.num_shared_experts:
        widths[Kind.SHARED_EXPERTS] = shape.expert_intermediate_size * shape.num_shared_experts
    for kind, width in widths.items():
        form = scheme.formats.get(kind, scheme.default)
        block = max(form.block_rows, form.block_cols)
        if block and width % (block * layout.tp_size):
            return (
                f"TP{layout.tp_size} leaves {width / layout.tp_size:g} of {width} {kind} columns to a rank, "
                f"which is no multiple of the {block} that share a scale"
            )
    return None


def plan_for_engine(
    shape: ModelShape,
    hardware: Hardware,
    load: Load,
    *,
    quantization: str | None = None,
    cache_format: str = "bf16",
    layout: Parallelism | None = None,
    with_pipeline: bool = True,
) -> Plan:
    """As `make_plan`, of the layouts that an engine can start: whole nodes, and whole blocks of scales on a rank.

    `with_pipeline` false leaves out pipelines, which pass no cache on from prefill to decode.
    """
    device = hardware.device
    if hardware.num_nodes > 1 and hardware.num_devices % device.devices_per_node:
        raise ConfigError(
            f"more than one node must be whole nodes of {device.devices_per_node} {device.name}, not {hardware}",
            param="hardware",
        )
    scheme = find_scheme(quantization or shape.native_scheme)
    if layout is not None:
        why = uneven_cut(shape, scheme, layout)
        if why is not None:
            raise ConfigError(f"{layout} cannot be: {why}", param="layout")
        choices: list[Parallelism] = [layout]
    else:
        choices = [one for one in layouts(shape, hardware.num_devices) if uneven_cut(shape, scheme, one) is None]
        choices = [one for one in choices if with_pipeline or one.pp_size == 1]
    if not choices:
        raise ConfigError(f"no layout of {shape.name} in {scheme.name} fits {hardware}", param="hardware")
    plans = [
        make_plan(shape, hardware, load, quantization=scheme.name, cache_format=cache_format, layout=one)
        for one in choices
    ]
    fitting = [plan for plan in plans if plan.speed is not None]
    if fitting:
        return max(fitting, key=lambda plan: plan.speed.requests_per_s if plan.speed else 0.0)
    return min(plans, key=lambda plan: plan.memory.missing_bytes)


def check_checkpoint(shape: ModelShape, quantization: str | None, checkpoint: str | None) -> bool:
    """Whether the engine must quantize while it loads. Raises ConfigError where no checkpoint has the plan's format."""
    wanted = find_scheme(quantization or shape.native_scheme).name
    if wanted in NO_FORMATS:
        raise ConfigError(
            f"the engines do not serve this architecture in {wanted}; they do in bf16, fp8, int4, awq and gptq",
            param="quantization",
        )
    if wanted == shape.native_scheme or checkpoint is not None:
        return False
    if shape.native_scheme == "bf16" and wanted == "fp8":
        return True
    raise ConfigError(
        f"{shape.name} is published in {shape.native_scheme}; name one in {wanted} with --checkpoint",
        param="checkpoint",
    )


def is_nvidia(device: Device) -> bool:
    """Otherwise it is one of AMD's, the only others in the catalogue."""
    return not device.name.upper().startswith("MI")


def check_device(engine: str, device: Device, image: str | None) -> None:
    """Raises ConfigError for one that the engine does not run on, or has no image of its own for."""
    if device.kind != "gpu":
        raise ConfigError(
            f"{engine} is deployed on GPUs, not on {device.name}; `openk2 serve` runs models on processors",
            param="hardware",
        )
    if image is None and not is_nvidia(device):
        raise ConfigError(f"name an image of {engine} for {device.name} with --image", param="image")


def make_deployment(
    engine: str, plans: Mapping[str, Plan], settings: Settings, *, version: str | None = None, image: str | None = None
) -> Deployment:
    """The processes for one plan `engine`, or for two, `prefill` and `decode`, that all fit.

    Raises ConfigError for a plan that does not fit, a version that is not known, or hardware that the engine does not
    run on. Every command line has passed the engine's own grammar of flags.
    """
    module = ENGINES[check_engine(engine)]
    first = next(iter(plans.values()))
    device = first.hardware.device
    refused = next((plan for plan in plans.values() if plan.refusal is not None), None)
    if refused is not None and refused.refusal is not None:
        raise ConfigError(refused.refusal.reason, param="hardware")
    check_device(engine, device, image)
    flags = program_flags(engine, version)
    if settings.uses_ray or not flags.has("--nnodes"):
        settings = replace(settings, uses_ray=True)
    processes: list[Process] = []
    if set(plans) == {"engine"}:
        processes = module.engine_processes(
            first, flags, settings, group="engine", port=UPSTREAM_PORT, is_reached=False
        )
    else:
        groups = {
            group: module.engine_processes(plans[group], flags, settings, group=group, port=port, is_reached=True)
            for group, port in (("prefill", PREFILL_PORT), ("decode", DECODE_PORT))
        }
        router = module.router_process(groups["prefill"], groups["decode"], port=UPSTREAM_PORT)
        processes = [*groups["prefill"], *groups["decode"], router]
    for process in processes:
        if process.program != "ray":
            (flags if process.program == engine else program_flags(process.program)).parse(process.arguments)
    full = version or flags.version
    return Deployment(
        engine=engine,
        engine_version=full,
        flags_version=flags.version,
        served_name=settings.served_name,
        checkpoint=settings.checkpoint,
        image=image or f"{IMAGES[engine]}{full.removeprefix('v')}",
        is_nvidia=is_nvidia(device),
        plans=dict(plans),
        processes=tuple(processes),
        notes=tuple(_notes(engine, plans, settings, flags, processes)),
    )


def _notes(
    engine: str, plans: Mapping[str, Plan], settings: Settings, flags: ProgramFlags, processes: list[Process]
) -> list[str]:
    notes = []
    published = settings.published
    last = list(plans.values())[-1]
    if last.speed is not None and last.load.requests_per_day:
        a_day = last.speed.requests_per_s * SECONDS_PER_DAY * last.load.utilization
        copies = ceil(last.load.requests_per_day / a_day)
        if copies > 1:
            notes.append(
                f"{last.load.requests_per_day:,.0f} requests a day take {copies} such deployments: start all, and give "
                "the gateway an --upstream for each"
            )
    if published.tool_parsers and not flags.tool_parsers & set(published.tool_parsers):
        notes.append(f"{engine} {flags.version} has no parser for this model's tool calls: put the gateway in front")
    if published.reasoning_parsers and not flags.reasoning_parsers & set(published.reasoning_parsers):
        notes.append(f"{engine} {flags.version} has no parser for this model's thoughts: they come within the text")
    if settings.revision is None and published.repository == settings.checkpoint:
        notes.append("pin --revision to a commit of the repository: the chat template comes with it and has changed")
    if engine == "sglang" and published.temperature is not None:
        notes.append(f"SGLang has no flag for a default temperature: send {published.temperature} with each request")
    if any(process.is_reached for process in processes):
        notes.append("the servers behind the router listen on all addresses without a key: keep them in a private net")
    if settings.uses_ray and flags.has("--nnodes"):
        notes.append(f"vLLM {flags.version} comes without Ray: install ray beside it on every node")
    if "prefill" in plans and engine == "vllm":
        notes.append("prefill apart from decode needs nixl beside vLLM, and vllm-router for the router")
    if "prefill" in plans and engine == "sglang":
        notes.append("prefill apart from decode needs mooncake-transfer-engine beside SGLang, and sglang-router")
    if any("deepep" in process.argv for process in processes):
        notes.append("expert parallelism over DeepEP: the library is in SGLang's image, not in its wheel")
    return notes
