"""Devices and what they are built into: the catalogue, `16xH200`, or a file of the user's.

Peak figures are the vendors', dense (without structured sparsity), mostly read at third parties: `data/hardware.toml`
says for each where, and what is from memory. What programs reach of them is an `Efficiency`, kept apart so that a
prediction shows both.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import cache
from pathlib import Path
from typing import Any

from openk2.errors import ConfigError
from openk2.planner.nearest import nearest

CATALOGUE_FILE = Path(__file__).parent / "data" / "hardware.toml"


@dataclass(frozen=True, kw_only=True)
class Device:
    """One accelerator, or all processors of one machine."""

    name: str
    kind: str
    """gpu, apple or cpu."""
    memory_bytes: int
    """As its driver reports it, where that is known; a card of "80 GB" has 85.5e9."""
    bandwidth_bytes_per_s: float
    """Of its memory, peak, reading."""
    bf16_flops_per_s: float
    fp8_flops_per_s: float | None = None
    """None: no such units; FP8 weights are multiplied in bfloat16."""
    int8_ops_per_s: float | None = None
    f32_flops_per_s: float | None = None
    devices_per_node: int = 8
    link_bytes_per_s: float = 0.0
    """From one device to the others of its node, one direction."""
    link_latency_s: float = 5e-6
    network_bytes_per_s: float = 0.0
    """From one device to other nodes, one direction."""
    network_latency_s: float = 20e-6
    disk_bytes_per_s: float = 0.0
    """Of the node's disk, reading pieces of an expert's size."""
    usable_fraction: float = 0.9
    """Of the memory; the rest is for fragmentation and peaks. Engines call it memory utilization."""
    runtime_bytes: int = 2 * 1024**3
    """Context, communicators, captured graphs, kernel workspace."""
    source: str = ""
    read_on: str = ""
    """When the source was read, as YYYY-MM-DD."""

    def flops_per_s(self, arithmetic: str) -> float:
        """Peak for numbers of this kind; those without units of their own are multiplied in bfloat16."""
        own = {"fp8": self.fp8_flops_per_s, "int8": self.int8_ops_per_s, "f32": self.f32_flops_per_s}.get(arithmetic)
        return own or self.bf16_flops_per_s


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """What a good engine reaches of the peaks, and what it spends on top. The defaults are for GPU engines."""

    bandwidth_fraction: float = 0.7
    flops_fraction: float = 0.45
    link_fraction: float = 0.7
    overhead_s_per_layer: float = 15e-6
    """Of a step: launches and everything that grows with neither weights nor tokens."""
    overhead_s_per_step: float = 1e-3
    """Scheduling, sampling, and the way to the caller."""
    source: str = "assumed: neither measured here nor fitted to published runs"

    def __post_init__(self) -> None:
        for name in ("bandwidth_fraction", "flops_fraction", "link_fraction"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} must be above 0 and at most 1, not {getattr(self, name)}", param=name)


GPU_EFFICIENCY = Efficiency()
CPU_EFFICIENCY = Efficiency(
    bandwidth_fraction=0.6,
    flops_fraction=0.3,
    overhead_s_per_layer=30e-6,
    source="assumed; llama.cpp reached 40 to 63% of one thread's bandwidth on a small model of this architecture",
)

OPENK2_CPU_EFFICIENCY = Efficiency(
    bandwidth_fraction=0.5,
    flops_fraction=0.5,
    overhead_s_per_layer=50e-6,
    overhead_s_per_step=0.5e-3,
    source="assumed for openk2's engine on processors; benchmarks/plan_vs_measured.py holds it against measurements",
)


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """`num_devices` of one device, in nodes of `device.devices_per_node`."""

    device: Device
    num_devices: int = 1
    efficiency: Efficiency = GPU_EFFICIENCY

    def __post_init__(self) -> None:
        if self.num_devices < 1:
            raise ConfigError(f"there must be at least 1 device, not {self.num_devices}", param="hardware")

    @property
    def num_nodes(self) -> int:
        return -(-self.num_devices // self.device.devices_per_node)

    @property
    def memory_bytes(self) -> int:
        return self.device.memory_bytes * self.num_devices

    def __str__(self) -> str:
        return f"{self.num_devices} x {self.device.name}"


def read_devices(text: str, file: str) -> dict[str, Device]:
    """The devices of a hardware file: a TOML table [device.NAME] for each, in the spelling of `Device`'s fields.

    Raises ConfigError naming the device and the field for whatever is wrong.
    """
    import tomllib

    try:
        tables = tomllib.loads(text).get("device", {})
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{file} is no TOML: {error}", param=file) from None
    if not isinstance(tables, Mapping) or not tables:
        raise ConfigError(f"{file} has no table [device.NAME]", param=file)
    return {name.lower().replace(" ", "-"): _device(name, table, file) for name, table in tables.items()}


def _device(name: str, table: Mapping[str, Any], file: str) -> Device:
    if not isinstance(table, Mapping):
        raise ConfigError(f"{file}: device {name} must be a table [device.NAME], not {table!r}", param=file)
    known = {field.name: field for field in fields(Device)}
    unknown = set(table) - set(known)
    if unknown:
        raise ConfigError(
            f"{file}: device {name} has unknown fields {', '.join(sorted(unknown))}; there are {', '.join(known)}",
            param=file,
        )
    missing = [key for key in ("kind", "memory_bytes", "bandwidth_bytes_per_s", "bf16_flops_per_s") if key not in table]
    if missing:
        raise ConfigError(f"{file}: device {name} lacks {', '.join(missing)}", param=file)
    for key, value in table.items():
        if "str" in str(known[key].type):
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            raise ConfigError(
                f"{file}: {key} of device {name} must be a number of at least 0, not {value!r}", param=file
            )
    values = dict(table)
    values |= {key: int(values[key]) for key in ("memory_bytes", "runtime_bytes", "devices_per_node") if key in values}
    device = Device(**{"name": name, **values})
    if device.kind not in ("gpu", "apple", "cpu"):
        raise ConfigError(f"{file}: kind of device {name} must be gpu, apple or cpu, not {device.kind!r}", param=file)
    for key in ("memory_bytes", "bandwidth_bytes_per_s", "bf16_flops_per_s", "devices_per_node"):
        if getattr(device, key) <= 0:
            raise ConfigError(f"{file}: {key} of device {name} must be positive", param=file)
    return device


CPU_NAME = re.compile(r"cpu-(\d{1,4})ch-ddr([45])-(\d{4,5})(?:-(\d{1,7})gb)?", re.ASCII)
CPU_CORES_PER_CHANNEL = 8
CPU_F32_FLOPS_PER_CYCLE = 64
"""Of a core with two 512-bit multiply-add units."""
CPU_CLOCK_HZ = 2.5e9


def cpu_by_channels(name: str) -> Device | None:
    """`CPU-12ch-DDR5-6000` or `CPU-24ch-DDR5-6000-1536GB`: all processors of a machine, by their memory channels.

    A channel carries 8 bytes per transfer. Without a size there are 64 GB per channel. Arithmetic assumes eight cores
    per channel at 2.5 GHz with AVX-512 (twice the rate in bfloat16, four times in int8); decode hardly depends on it.
    None for a name of another form.
    """
    match = CPU_NAME.fullmatch(name.lower())
    if match is None:
        return None
    channels, transfers = int(match[1]), int(match[3]) * 1e6
    if not channels:
        return None
    f32 = channels * CPU_CORES_PER_CHANNEL * CPU_F32_FLOPS_PER_CYCLE * CPU_CLOCK_HZ
    return Device(
        name=name.upper().replace("CH", "ch"),
        kind="cpu",
        memory_bytes=(int(match[4]) if match[4] else 64 * channels) * 10**9,
        bandwidth_bytes_per_s=channels * 8 * transfers,
        bf16_flops_per_s=2 * f32,
        int8_ops_per_s=4 * f32,
        f32_flops_per_s=f32,
        devices_per_node=1,
        network_bytes_per_s=12.5e9,
        disk_bytes_per_s=7e9,
        runtime_bytes=1024**3,
        source="8 bytes x transfers/s x channels (JEDEC DDR4, DDR5); arithmetic assumed, see cpu_by_channels",
        read_on="2026-11-25",
    )


@cache
def catalogue() -> dict[str, Device]:
    """The devices that come with openk2, by lower-case name."""
    return read_devices(CATALOGUE_FILE.read_text(encoding="utf-8"), CATALOGUE_FILE.name)


def read_hardware(text: str, *, file: Path | None = None) -> Hardware:
    """`16xH200`, `8 x a100-80gb` or `M3-Ultra-512GB`: a count and a device of the catalogue, or of `file`.

    Raises ConfigError with the nearest valid choice for an unknown device, a count of 0 and anything else.
    """
    devices = catalogue() if file is None else {**catalogue(), **read_devices(_read(file), str(file))}
    match = re.fullmatch(r"\s*(?:(-?[0-9]{1,7})\s*[xX*]\s*)?(\S.*?)\s*", text)
    if match is None:
        raise ConfigError(f"hardware is written as 16xH200, not {text!r}", param="hardware")
    count, name = match.groups()
    key = name.lower().replace(" ", "-")
    device = devices.get(key) or cpu_by_channels(key)
    if device is None:
        near = nearest(key, devices)
        hint = f"; the nearest is {devices[near].name}" if near else ""
        names = ", ".join(one.name for one in devices.values())
        raise ConfigError(
            f"no device {name!r}{hint}. There are {names}, processors as "
            f"CPU-12ch-DDR5-6000-768GB, and those of a --hardware-file",
            param="hardware",
        )
    number = 1 if count is None else int(count)
    if number < 1:
        raise ConfigError(f"{text!r} is no hardware: at least 1x{device.name}", param="hardware")
    return Hardware(
        device=device,
        num_devices=number,
        efficiency=GPU_EFFICIENCY if device.kind == "gpu" else CPU_EFFICIENCY,
    )


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}", param=str(file)) from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is no TOML: {error}", param=str(file)) from None


def with_network(hardware: Hardware, bytes_per_s: float) -> Hardware:
    """The same with another network between nodes, bytes per second and device."""
    return replace(hardware, device=replace(hardware.device, network_bytes_per_s=bytes_per_s))


def with_memory(hardware: Hardware, memory_bytes: int) -> Hardware:
    """The same of whose memory each device may use so much, at most what it has."""
    device = hardware.device
    return replace(hardware, device=replace(device, memory_bytes=min(memory_bytes, device.memory_bytes)))
