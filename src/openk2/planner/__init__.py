"""Does it fit, how fast, what does it cost: arithmetic on dataclasses, with units in their names.

Light: the standard library only, until this machine is measured or a plot is drawn.
"""

from openk2.planner.formats import SCHEMES, Scheme, cache_bytes_per_token, scheme, weights_bytes, weights_bytes_by_kind
from openk2.planner.hardware import Device, Efficiency, Hardware, catalogue, read_hardware
from openk2.planner.load import Load, read_count, read_load, read_tokens
from openk2.planner.parallel import Parallelism
from openk2.planner.plan import Memory, MemoryTerm, Plan, Refusal, Speed, TimeTerms
from openk2.planner.shape import GroupedAttention, Kind, LatentAttention, ModelShape

__all__ = [
    "SCHEMES",
    "Device",
    "Efficiency",
    "GroupedAttention",
    "Hardware",
    "Kind",
    "LatentAttention",
    "Load",
    "Memory",
    "MemoryTerm",
    "ModelShape",
    "Parallelism",
    "Plan",
    "Refusal",
    "Scheme",
    "Speed",
    "TimeTerms",
    "cache_bytes_per_token",
    "catalogue",
    "read_count",
    "read_hardware",
    "read_load",
    "read_tokens",
    "scheme",
    "weights_bytes",
    "weights_bytes_by_kind",
]
