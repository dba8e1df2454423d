"""The compiled extension (csrc/bindings.cpp). Tensors pass as addresses: only `openk2.ops.cpu` calls it."""

def supported_isas() -> list[str]: ...
def set_num_threads(threads: int) -> None: ...
def num_threads() -> int: ...
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
def rms_norm(x: int, weight: int, out: int, rows: int, cols: int, eps: float, is_bf16: bool, isa: str) -> None: ...
