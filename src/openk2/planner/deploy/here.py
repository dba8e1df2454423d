"""What this machine has for a deployment, and the nearest model that it holds."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata

from openk2.planner.cost import prices
from openk2.planner.deploy.make_deployment import ENGINES, plan_for_engine
from openk2.planner.formats import scheme
from openk2.planner.hardware import Hardware, catalogue, cpu_by_channels, read_hardware
from openk2.planner.load import Load
from openk2.planner.make_plan import make_plan
from openk2.planner.parallel import Parallelism
from openk2.planner.plan import Plan
from openk2.planner.read_model import read_model
from openk2.planner.shape import ModelShape

OWN_MODELS = ("k2-0905", "deepseek-v3", "moonlight", "nano")
"""Of the K2 architecture, the largest first: those that openk2 itself can serve on a processor."""
OWN_FORMATS = ("bf16", "int8", "int4")
COUNTS = (1, 2, 4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class Here:
    memory_bytes: int
    gpus: tuple[str, ...]
    """Their names, as the driver tells them."""
    engines: Mapping[str, str]
    """Installed engine -> version."""

    @property
    def hardware(self) -> Hardware | None:
        """As a deployment sees it: its GPUs, if all are one of the catalogue's; None where there are none such."""
        found = {catalogue_name(name) for name in self.gpus}
        name = found.pop() if len(found) == 1 else None
        return None if name is None else read_hardware(f"{len(self.gpus)}x{name}")

    @property
    def processor(self) -> Hardware:
        """Its memory as one device. The bandwidth is that of two DDR5-5600 channels, not measured."""
        device = cpu_by_channels("CPU-2ch-DDR5-5600")
        assert device is not None
        own = replace(device, name="this machine", memory_bytes=self.memory_bytes)
        return replace(read_hardware("CPU-2ch-DDR5-5600"), device=own)

    def __str__(self) -> str:
        gpus = ", ".join(dict.fromkeys(self.gpus)) if self.gpus else "no NVIDIA GPU"
        return f"{self.memory_bytes / 1e9:.1f} GB of memory, {len(self.gpus) or ''} {gpus}".replace("  ", " ")


def catalogue_name(gpu: str) -> str | None:
    """The catalogue's device for a name such as `NVIDIA A100-SXM4-80GB`; None where there is none."""
    text = gpu.lower().replace(" ", "-")
    fitting = [name for name in catalogue() if all(part in text for part in name.split("-"))]
    return max(fitting, key=len, default=None)


def look(memory_bytes: int) -> Here:
    """Asks the driver for GPUs and Python for engines; `memory_bytes` is what this process may use."""
    listed = ""
    if shutil.which("nvidia-smi"):
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        try:
            listed = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
        except (OSError, subprocess.SubprocessError):
            listed = ""
    engines = {}
    for engine in ENGINES:
        try:
            engines[engine] = metadata.version(engine)
        except metadata.PackageNotFoundError:
            continue
    return Here(memory_bytes=memory_bytes, gpus=tuple(listed.split("\n")[:-1]), engines=engines)


def nearest_model(here: Here, context_tokens: int) -> tuple[str, Plan] | None:
    """The largest model of the K2 architecture that this machine's memory holds, in its finest format, with a context
    as near to the wanted one as its window allows; None where not even the smallest fits."""
    for name in OWN_MODELS:
        shape = read_model(name)
        context = min(context_tokens, shape.max_context_tokens)
        for form in OWN_FORMATS:
            load = Load(context_tokens=context, prompt_tokens=1, output_tokens=1)
            plan = make_plan(shape, here.processor, load, quantization=form)
            if plan.refusal is None:
                return name, plan
    return None


def holding_hardware(
    shape: ModelShape, load: Load, *, quantization: str | None, cache_format: str, layout: Parallelism | None
) -> list[tuple[Plan, float]]:
    """For each priced GPU its smallest count that holds the model, with dollars per hour; the cheapest first."""
    found = []
    for device in catalogue().values():
        usd = prices().device_hour_usd.get(device.name)
        if usd is None or device.kind != "gpu":
            continue
        for count in COUNTS if layout is None else (layout.num_devices,):
            held = device.memory_bytes * device.usable_fraction * count
            if held < sum(scheme(quantization or shape.native_scheme).group_bytes(one) for one in shape.tensors()):
                continue
            plan = plan_for_engine(
                shape,
                read_hardware(f"{count}x{device.name}"),
                load,
                quantization=quantization,
                cache_format=cache_format,
                layout=layout,
            )
            if plan.refusal is None:
                found.append((plan, usd * count))
                break
    return sorted(found, key=lambda pair: pair[1])
