"""What the model itself says: counts, bytes, traffic, cache, training. Each function gives a number with its formula.

Arguments are names and plain numbers, as a claim's file spells them; the arithmetic is the planner's own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from operator import attrgetter

from openk2.planner.formats import cache_bytes_per_token, scheme, weights_bytes
from openk2.planner.parallel import Parallelism, device_weights_bytes_by_kind
from openk2.planner.read_model import read_model
from openk2.planner.roofline import experts_read_share
from openk2.planner.shape import Kind, ModelShape

K2 = "k2-0905"


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """A computed number."""

    value: float
    unit: str
    """B, B/s, tokens, tokens/s, tokens/step, s, USD, USD/month, requests/day, parameters, bits, FLOP, x, % (as a share
    of 1), accepted (1 or 0), or nothing for a count."""
    formula: str
    """With the numbers that went in."""


def dimension(name: str, model: str = K2) -> Quantity:
    """A field of the model's shape, such as `num_layers` or `attention.num_heads`."""
    value = attrgetter(name)(read_model(model))
    return Quantity(value=float(value), unit="", formula=f"{name}, from the published config of {model}")


def window(model: str = K2) -> Quantity:
    value = read_model(model).max_context_tokens
    return Quantity(
        value=float(value), unit="tokens", formula=f"max_position_embeddings, from the published config of {model}"
    )


def window_ratio(model: str = K2, over: str = "k2") -> Quantity:
    a, b = (read_model(name).max_context_tokens for name in (model, over))
    return Quantity(value=a / b, unit="x", formula=f"{a:,} / {b:,}")


def parameters(model: str = K2) -> Quantity:
    value = read_model(model).parameters
    return Quantity(value=float(value), unit="parameters", formula="sum over the checkpoint's tensors")


def active_parameters(model: str = K2, with_embedding: bool = True) -> Quantity:
    """Of one token; the embedding is one row of a table, so its traffic is none."""
    shape = read_model(model)
    value = shape.active_parameters if with_embedding else shape.active_parameters_without_embedding
    left_out = "" if with_embedding else ", embedding as a lookup"
    formula = f"all but {idle_experts(model).value:.0f} of {shape.num_experts} routed experts per layer{left_out}"
    return Quantity(value=float(value), unit="parameters", formula=formula)


def active_share(model: str = K2) -> Quantity:
    shape = read_model(model)
    formula = f"{shape.active_parameters:,} / {shape.parameters:,}"
    return Quantity(value=shape.active_parameters / shape.parameters, unit="%", formula=formula)


def idle_experts(model: str = K2) -> Quantity:
    shape = read_model(model)
    value = shape.num_experts - shape.num_experts_per_token
    formula = f"{shape.num_experts} - {shape.num_experts_per_token}; the shared expert is not one of them"
    return Quantity(value=float(value), unit="", formula=formula)


def weights(quantization: str, model: str = K2) -> Quantity:
    value = weights_bytes(read_model(model), scheme(quantization))
    return Quantity(value=float(value), unit="B", formula=f"every tensor of {model} in {quantization}, scales included")


def weights_ratio(quantization: str, over: str, model: str = K2) -> Quantity:
    a, b = (weights_bytes(read_model(model), scheme(name)) for name in (quantization, over))
    return Quantity(value=a / b, unit="x", formula=f"{a:,} / {b:,}")


def implied_bits(size_bytes: float, model: str = K2) -> Quantity:
    """Bits per weight that a file of this size would have."""
    count = read_model(model).parameters
    return Quantity(value=8 * size_bytes / count, unit="bits", formula=f"8 x {size_bytes:,.0f} / {count:,}")


def size_over_window(cache_format: str = "fp8", quantization: str = "fp8", model: str = K2) -> Quantity:
    """Cache of one request of the whole window, as a share of the weights."""
    shape = read_model(model)
    held = cache_bytes_per_token(shape, cache_format) * shape.max_context_tokens
    size = weights_bytes(shape, scheme(quantization))
    return Quantity(value=held / size, unit="x", formula=f"{held:,} / {size:,}")


def _read_bytes(shape: ModelShape, quantization: str, tokens: float) -> float:
    """Weights that one step of `tokens` tokens reads on one device."""
    layout = Parallelism()
    by_kind = device_weights_bytes_by_kind(shape, scheme(quantization), layout)
    share = experts_read_share(shape, layout, tokens)
    return sum(
        size * (share if kind is Kind.ROUTED_EXPERTS else 1)
        for kind, size in by_kind.items()
        if kind is not Kind.EMBEDDING
    )


def weight_traffic(quantization: str, batch: float = 1, model: str = K2) -> Quantity:
    """Weights that one decode step reads."""
    shape = read_model(model)
    value = _read_bytes(shape, quantization, batch)
    touched = shape.experts_touched(batch)
    formula = f"all weights but the embedding, {touched:.0f} of {shape.num_experts} experts, {quantization}"
    return Quantity(value=value, unit="B", formula=formula)


def bandwidth_for(tokens_per_s: float, quantization: str, model: str = K2) -> Quantity:
    """Memory bandwidth that one stream of this speed takes, without its cache."""
    read = weight_traffic(quantization, model=model).value
    return Quantity(value=read * tokens_per_s, unit="B/s", formula=f"{read / 1e9:.2f} GB x {tokens_per_s:g} tokens/s")


def format_speedup(quantization: str, model: str = K2) -> Quantity:
    """By how much a stream can be faster than in bfloat16 on the same memory, if both reach the same bandwidth."""
    base, own = (weight_traffic(name, model=model).value for name in ("bf16", quantization))
    return Quantity(value=base / own - 1, unit="%", formula=f"{base / 1e9:.2f} GB / {own / 1e9:.2f} GB - 1")


def dense_speedup(batch: float = 1, model: str = K2) -> Quantity:
    """A dense model of as many parameters reads all of them for every step; in bfloat16."""
    total = weights("bf16", model).value
    own = weight_traffic("bf16", batch, model).value
    return Quantity(
        value=total / own, unit="x", formula=f"{total / 1e9:.1f} GB / {own / 1e9:.1f} GB at batch {batch:g}"
    )


def fewer_experts_speedup(experts: int, model: str = K2) -> Quantity:
    """How much faster decode could be with so many routed experts per token, by weight traffic at batch 1."""
    shape = read_model(model)
    full = _read_bytes(shape, shape.native_scheme, 1)
    less = _read_bytes(replace(shape, num_experts_per_token=experts), shape.native_scheme, 1)
    formula = f"{full / 1e9:.2f} GB with {shape.num_experts_per_token} / {less / 1e9:.2f} GB with {experts}"
    return Quantity(value=full / less, unit="x", formula=formula)


def cache(tokens: int, cache_format: str = "fp8", model: str = K2) -> Quantity:
    shape = read_model(model)
    per_token = cache_bytes_per_token(shape, cache_format)
    return Quantity(
        value=float(per_token * tokens),
        unit="B",
        formula=f"{shape.attention.cache_values_per_token_per_layer} values x {shape.num_layers} layers in "
        f"{cache_format}: {per_token:,} B x {tokens:,} tokens",
    )


def expanded_cache(tokens: int, bytes_per_value: int = 1, model: str = K2) -> Quantity:
    """If keys and values of every head were kept instead of the latent."""
    shape = read_model(model)
    values = shape.attention.expanded_values_per_token_per_layer
    formula = f"{values:,} values x {shape.num_layers} layers x {tokens:,} tokens x {bytes_per_value} B"
    return Quantity(value=float(values * shape.num_layers * tokens * bytes_per_value), unit="B", formula=formula)


def guides_cache_formula(tokens: int, head_dim: int, bytes_per_value: int = 1, model: str = K2) -> Quantity:
    """2 x tokens x layers x heads x head_dim x bytes, as for plain multi-head attention."""
    shape = read_model(model)
    layers, heads = shape.num_layers, shape.attention.num_heads
    value = 2.0 * tokens * layers * heads * head_dim * bytes_per_value
    return Quantity(
        value=value, unit="B", formula=f"2 x {tokens:,} x {layers} x {heads} x {head_dim} x {bytes_per_value}"
    )


def cache_saving(cache_format: str, model: str = K2) -> Quantity:
    base, own = (cache_bytes_per_token(read_model(model), name) for name in ("bf16", cache_format))
    return Quantity(value=1 - own / base, unit="%", formula=f"1 - {own:,} / {base:,} bytes per token")


def training_flops(tokens: float, model: str = K2) -> Quantity:
    """6 x active parameters x tokens (Kaplan et al., arXiv:2001.08361, section 2.1), attention's context left out."""
    active = read_model(model).active_parameters_without_embedding
    return Quantity(value=6.0 * active * tokens, unit="FLOP", formula=f"6 x {active:,} x {tokens:g} tokens")


def optimizer_saving(other_bytes: float, model: str = K2) -> Quantity:
    """What Muon's single float32 momentum saves beside Adam's two moments, of all that a parameter takes in training.

    `other_bytes` per parameter are there with either: 4 for a float32 master copy, 10 with bfloat16 weights and float32
    gradients too. Embedding, head and vectors keep Adam.
    """
    shape = read_model(model)
    matrices = sum(
        t.parameters for t in shape.tensors() if t.is_matrix and t.kind not in (Kind.EMBEDDING, Kind.LM_HEAD)
    )
    share = matrices / shape.parameters
    value = 4 * share / (8 + other_bytes)
    formula = f"4 B x {share:.2%} of the parameters / ({other_bytes:g} + 8) B"
    return Quantity(value=value, unit="%", formula=formula)


def steps(tokens: float, batch_tokens: float) -> Quantity:
    return Quantity(value=tokens / batch_tokens, unit="", formula=f"{tokens:g} / {batch_tokens:g}")


def relative_change(before: float, after: float) -> Quantity:
    return Quantity(value=after / before - 1, unit="%", formula=f"{after:g} / {before:g} - 1")


def points_lost(kept: float) -> Quantity:
    """Of a score that is given as a share of the unquantised one."""
    return Quantity(value=1 - kept, unit="%", formula=f"1 - {kept:g}")


MODEL_QUANTITIES: dict[str, Callable[..., Quantity]] = {
    function.__name__: function
    for function in (
        dimension,
        window,
        window_ratio,
        parameters,
        active_parameters,
        active_share,
        idle_experts,
        weights,
        weights_ratio,
        implied_bits,
        size_over_window,
        weight_traffic,
        bandwidth_for,
        format_speedup,
        dense_speedup,
        fewer_experts_speedup,
        cache,
        expanded_cache,
        guides_cache_formula,
        cache_saving,
        training_flops,
        optimizer_saving,
        steps,
        relative_change,
        points_lost,
    )
}
