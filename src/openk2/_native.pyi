"""The compiled extension (csrc/bindings.cpp). Tensors pass as addresses: only `openk2.ops.cpu` calls it."""

from collections.abc import Callable, Sequence

def supported_isas() -> list[str]: ...
def set_num_threads(threads: int) -> None: ...
def num_threads() -> int: ...
def set_least_shared_bytes(bytes: int) -> None: ...
def least_shared_bytes() -> int: ...
def attention_inputs(backward: bool, sizes: Sequence[int], tensors: Sequence[int], isa: str) -> None: ...
def causal_attention(
    backward: bool,
    sizes: Sequence[int],
    borders: Sequence[int],
    scale: float,
    inputs: Sequence[int],
    out: int,
    lse: int,
    made: Sequence[int],
    isa: str,
) -> None: ...
def packed_linear(x: int, data: int, format: int, rows: int, cols: int, out: int, tokens: int, isa: str) -> None: ...
def packed_experts(
    x: int,
    ids: int,
    weights: int,
    gate_up: int,
    down: int,
    format: int,
    experts: int,
    width: int,
    hidden: int,
    out: int,
    tokens: int,
    topk: int,
    isa: str,
) -> None: ...
def prompt_attention(
    sizes: Sequence[int],
    is_bf16: bool,
    tensors: Sequence[int],
    strides: Sequence[int],
    table_width: int,
    spans: Sequence[Sequence[int]],
    scale: float,
    isa: str,
) -> None: ...
def rms_norm(x: int, weight: int, out: int, rows: int, cols: int, eps: float, is_bf16: bool, isa: str) -> None: ...
def rms_norm_backward(tensors: Sequence[int], rows: int, cols: int, eps: float, isa: str) -> None: ...
def trained_experts(
    backward: bool, sizes: Sequence[int], inputs: Sequence[int], gate_up_out: int, made: Sequence[int], isa: str
) -> None: ...

Stack = tuple[int, int, int, int, int]
"""Address, format, count, rows, columns."""

class DecodePlan:
    def __init__(self, sizes: Sequence[int], rules: Sequence[bool], scales: Sequence[float]) -> None: ...
    def add_layer(self, vectors: Sequence[int], stacks: Sequence[Stack]) -> None: ...
    def hold_experts(self, hold: Callable[[int, int, int, int, int], None], gate_up: Stack, down: Stack) -> None: ...
    def run(
        self,
        h: int,
        cos: int,
        sin: int,
        places: Sequence[int],
        table_width: int,
        budgets: int,
        caches: Sequence[int],
        tokens: int,
        isa: str,
    ) -> None: ...
