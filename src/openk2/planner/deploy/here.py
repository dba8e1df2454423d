"""What this machine has for a deployment."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib import metadata

from openk2.planner.deploy.make_deployment import ENGINES
from openk2.planner.hardware import Hardware, catalogue, cpu_by_channels, read_hardware


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
        gpus = f"{len(self.gpus)} x {self.gpus[0]}" if self.gpus else "no NVIDIA GPU"
        return f"{self.memory_bytes / 1e9:.1f} GB of memory, {gpus}"


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
