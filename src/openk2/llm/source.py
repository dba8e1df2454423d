"""Where a model comes from, and the engine that is built from it."""

from __future__ import annotations

import hashlib
import logging
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from openk2 import assets
from openk2.chat.grammars import tool_grammars
from openk2.chat.messages import ResponseFormat, ToolChoice, ToolSpec
from openk2.chat.response_format import build_constraint
from openk2.checkpoint import Checkpoint, Quantization, load_config, load_model, random_model
from openk2.checkpoint.files import STORED_DTYPES
from openk2.config import ModelConfig, preset
from openk2.engine import Engine, EngineConfig
from openk2.engine.constraint import TokenConstraint
from openk2.engine.memory_plan import plan_memory
from openk2.engine.prefix_file import load_prefixes, save_prefixes
from openk2.engine.process import EngineParts
from openk2.errors import CheckpointError, ConfigError, EnvironmentFault
from openk2.tokenizer import Tokenizer

logger = logging.getLogger(__name__)

RANDOM_PREFIX = "random:"


@dataclass(frozen=True)
class Source:
    """Where a model's weights come from."""

    name: str
    config: ModelConfig
    folder: Path | None
    """None: random weights."""

    @classmethod
    def find(cls, model: str | Path) -> Source:
        text = str(model)
        if text.startswith(RANDOM_PREFIX):
            return cls(text, preset(text.removeprefix(RANDOM_PREFIX)), None)
        folder = model_folder(model)
        return cls(text if text in assets.names() else folder.resolve().name, load_config(folder), folder)

    def fingerprint(self) -> str:
        """Changes with the config and the weights (of a large file, its size and its beginning)."""
        digest = hashlib.sha256(repr(sorted(self.config.to_hf().items(), key=str)).encode())
        for file in () if self.folder is None else sorted(self.folder.glob("*.safetensors")):
            with file.open("rb") as weights:
                size = file.stat().st_size
                digest.update(f"{file.name}:{size}:".encode() + weights.read(size if size < 1 << 26 else 1 << 20))
        return digest.hexdigest()[:16]


def model_folder(model: str | Path) -> Path:
    """The folder called `model`: one that exists, else an embedded model's."""
    path = Path(model)
    if path.is_dir():
        return path
    if path.name == str(model) and not path.exists():
        return assets.path(path.name)
    raise CheckpointError(f"{path}: no such checkpoint folder", param=str(path))


def check_device(device: str) -> None:
    """Raises ConfigError for what names no device, EnvironmentFault for one that this torch cannot use."""
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise ConfigError(f"no device {device!r}; there are cpu, cuda and cuda:1, mps ...", param="device") from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise EnvironmentFault("no CUDA device that this torch can use; take --device cpu", param="device")


def serving_dtype(checkpoint: Checkpoint, device: str) -> torch.dtype | None:
    """The dtype to compute a checkpoint in: None for its own.

    A CPU without bfloat16 instructions emulates them at a fraction of float32's speed, so weights of two bytes become
    float32 there, as long as they take at most half of the memory that is free.
    """
    if device != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return None
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return torch.float32 if _stored_dtype(checkpoint) == "BF16" and 4 * checkpoint.weight_bytes <= free else None


def serving_quantization(checkpoint: Checkpoint, device: str) -> Quantization | None:
    """How a checkpoint is packed where nobody says: bfloat16 weights as they are, for the kernels of a CPU."""
    is_packed = device == "cpu" and Quantization.has_kernels() and _stored_dtype(checkpoint) == "BF16"
    return Quantization.parse("bf16") if is_packed else None


def _stored_dtype(checkpoint: Checkpoint) -> str | None:
    """Of the embedding, as the file calls it."""
    stored = (tensor.dtype for _, name, tensor in checkpoint.tensors() if name == "model.embed_tokens.weight")
    return next(stored, None)


def load_engine(
    source: Source,
    sizes: EngineConfig,
    *,
    device: str = "cpu",
    dtype: torch.dtype | None = None,
    quantization: Quantization | None = None,
    packed_folder: Path | None = None,
    memory: int | None = None,
) -> Engine:
    """The engine over a model in the formats that `LLM` tells.

    `memory`: of this process, in bytes. Where the model needs more, its routed experts stay in a file of
    `packed_folder` (default: of the user's cache). Raises ConfigError, before a weight is read, where that is not
    enough.
    """
    checkpoint = None if source.folder is None else Checkpoint.open(source.folder)
    if checkpoint is not None and dtype is None and quantization is None:
        quantization = serving_quantization(checkpoint, device)
        dtype = None if quantization else serving_dtype(checkpoint, device)
    expert_cache_bytes = None
    if memory is not None:
        if device != "cpu":
            raise ConfigError("memory is a promise for CPUs; leave it out, or take --device cpu", param="memory")
        stored = None if checkpoint is None else checkpoint.largest
        plan = plan_memory(
            source.config,
            memory,
            quantization=quantization,
            dtype=dtype or (torch.float32 if quantization or stored is None else STORED_DTYPES[stored.dtype]),
            engine=sizes,
            largest_tensor_bytes=0 if stored is None else stored.bytes,
        )
        sizes, expert_cache_bytes = replace(sizes, num_blocks=plan.num_blocks), plan.expert_cache_bytes
        if expert_cache_bytes is not None:
            packed_folder = packed_folder or default_packed_folder()
    if source.folder is None:
        model = random_model(
            source.config,
            device=device,
            dtype=dtype or torch.float32,
            quantization=quantization,
            packed_folder=packed_folder,
            expert_cache_bytes=expert_cache_bytes,
        )
    else:
        model = load_model(
            source.folder,
            device=device,
            dtype=dtype,
            quantization=quantization,
            packed_folder=packed_folder,
            expert_cache_bytes=expert_cache_bytes,
            mapped=memory is None,
        )
    return Engine(model, sizes)


def default_packed_folder() -> Path:
    """Where packed experts lie when nobody says."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "openk2" / "packed"


@dataclass(frozen=True)
class ConstraintSpec:
    """What a request's constraint is built from, on the engine's side."""

    tools: tuple[ToolSpec, ...]
    tool_choice: ToolChoice
    first_index: int
    grammar: bool
    response_format: ResponseFormat | None = None

    def describe(self) -> dict[str, Any]:
        """What the answer is held to, fit for JSON."""
        schema = None if self.response_format is None else self.response_format.schema
        return {
            "tools": [tool.name for tool in self.tools],
            "tool_choice": asdict(self.tool_choice),
            "first_call_index": self.first_index,
            "grammar": self.grammar,
            "response_format": None if self.response_format is None else {"schema": schema and dict(schema)},
        }


@dataclass(frozen=True)
class EngineBuilder:
    """Makes the engine where it is to run; picklable."""

    source: Source
    device: str
    dtype: torch.dtype | None
    tokenizer_folder: Path
    stop_token_ids: frozenset[int]
    engine_config: EngineConfig
    quantization: Quantization | None = None
    packed_folder: Path | None = None
    memory: int | None = None
    """Bytes that the engine's process keeps to."""
    prefix_cache_file: Path | None = None
    fingerprint: str = ""
    """Of weights and formats, for that file."""

    def __call__(self) -> EngineParts:
        if self.quantization is not None and self.device != "cpu":
            raise ConfigError("quantization packs weights for CPUs; leave it out, or take --device cpu", param="device")
        check_device(self.device)
        engine = load_engine(
            self.source,
            self.engine_config,
            device=self.device,
            dtype=self.dtype,
            quantization=self.quantization,
            packed_folder=self.packed_folder,
            memory=self.memory,
        )
        tokenizer = Tokenizer.from_folder(self.tokenizer_folder)
        tool_grammars(tokenizer)  # made once, before the first request waits for it

        def make_constraint(spec: ConstraintSpec) -> TokenConstraint | None:
            return build_constraint(
                tokenizer,
                spec.tools,
                spec.tool_choice,
                spec.first_index,
                spec.grammar,
                spec.response_format,
                end_ids=self.stop_token_ids,
            )

        if self.prefix_cache_file is None:
            return EngineParts(engine, make_constraint)
        kept, fingerprint = self.prefix_cache_file, f"{self.fingerprint}-{self.dtype}"
        load_prefixes(engine, kept, fingerprint)

        def on_close() -> None:
            try:
                save_prefixes(engine, kept, fingerprint)
            except OSError as error:
                logger.warning("the prefix cache was not written to %s: %s", kept, error.strerror or error)

        return EngineParts(engine, make_constraint, on_close)
