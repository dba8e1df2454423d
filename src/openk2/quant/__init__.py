"""Number formats of weights, and matrices packed in them."""

from openk2.quant.formats import dequantize, empty_stack, pack_into, quantize, random_stack

__all__ = ["dequantize", "empty_stack", "pack_into", "quantize", "random_stack"]
