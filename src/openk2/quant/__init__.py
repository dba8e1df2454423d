"""Number formats of weights, and matrices packed in them (`ops.packed` is the layout)."""

from openk2.ops.packed import LAYOUT_VERSION, PackedLayout, PackedStack
from openk2.quant.formats import dequantize, empty_stack, pack_into, quantize, random_stack

__all__ = [
    "LAYOUT_VERSION",
    "PackedLayout",
    "PackedStack",
    "dequantize",
    "empty_stack",
    "pack_into",
    "quantize",
    "random_stack",
]
