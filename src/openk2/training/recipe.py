"""What a training run is: one TOML file, read into these dataclasses."""

from __future__ import annotations

import dataclasses
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from openk2.checkpoint import load_config
from openk2.config import ModelConfig, RopeScaling
from openk2.config.presets import preset
from openk2.errors import ConfigError
from openk2.training.bpe import MERGES
from openk2.training.guides import KINDS
from openk2.training.lora import LoraConfig
from openk2.training.rl.config import RLConfig
from openk2.training.schedule import WarmupStableDecay

DATA_KINDS = ("generated", "text", "messages", "long")
MADE_HERE = frozenset({"generated", "long"})
"""Kinds of data that are generated and take no files."""
DTYPES = ("float32", "bfloat16")
OPTIMIZERS = ("muonclip", "adamw")


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A stretch of the curriculum: it holds until the run has seen `until_tokens` tokens."""

    batch_tokens: int
    """Of one batch; a step takes `accumulate` of them."""
    until_tokens: int = sys.maxsize
    data_stage: int = 3
    """Difficulty of the generated conversations, 0 (one tool) to 3 (up to six tools, all kinds)."""
    sequence_tokens: int = 0
    """Of data kind `long`: most tokens of a conversation; 0 is the model's window."""
    prompt_weight: float = 0.0
    """Weight of the loss on the prompt's tokens; that share of them, drawn at random, is learned like the reply's."""

    def __post_init__(self) -> None:
        if self.batch_tokens < 1:
            raise ConfigError(f"batch_tokens must be at least 1, not {self.batch_tokens}", param="batch_tokens")
        if self.sequence_tokens < 0:
            raise ConfigError(
                f"sequence_tokens must be at least 0, not {self.sequence_tokens}", param="sequence_tokens"
            )
        if not 0 <= self.prompt_weight <= 1:
            raise ConfigError(
                f"prompt_weight is a share from 0 to 1, not {self.prompt_weight:g}", param="prompt_weight"
            )


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What the run learns from."""

    kind: str = "generated"
    """`generated` conversations, `text` to pretrain on, `messages`: conversations from files, or `long`: generated ones
    of many turns, in which late turns need early values, with ordinary ones between them."""
    files: tuple[str, ...] = ()
    """Paths or patterns, from the working folder."""
    held_out: float = 0.01
    """Share of the documents that are validated on and never trained on; 0 is no validation."""
    text_field: str = "text"
    """Of JSON lines and parquet files: what holds the text."""

    def __post_init__(self) -> None:
        if self.kind not in DATA_KINDS:
            raise ConfigError(f"data.kind must be {' or '.join(DATA_KINDS)}, not {self.kind!r}", param="data.kind")
        if not isinstance(self.files, tuple) or (self.kind in MADE_HERE) != (not self.files):
            raise ConfigError(
                f"data.kind {self.kind!r} takes "
                + ("no data.files" if self.kind in MADE_HERE else 'files: data.files = ["PATH", ...]'),
                param="data.files",
            )
        if not 0 <= self.held_out < 1:
            raise ConfigError(f"data.held_out is a share from 0 up to 1, not {self.held_out:g}", param="data.held_out")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    kind: str = "muonclip"
    """Or `adamw` for every parameter, to compare with; QK-Clip stays with either, up to a threshold of `inf`."""
    lr: float = 1e-3
    embedding_lr: float = 3e-4
    head_lr: float = 1e-3
    """The AdamW rates of the embedding and the head; norms take `lr`."""
    weight_decay: float = 0.1
    momentum: float = 0.95
    betas: tuple[float, float] = (0.9, 0.95)
    max_grad_norm: float = 1.0
    qk_clip_threshold: float = 100.0
    newton_schulz_dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.kind not in OPTIMIZERS:
            raise ConfigError(
                f"optimizer.kind must be {' or '.join(OPTIMIZERS)}, not {self.kind!r}", param="optimizer.kind"
            )
        if self.newton_schulz_dtype not in DTYPES:
            raise ConfigError(
                f"optimizer.newton_schulz_dtype must be {' or '.join(DTYPES)}, not {self.newton_schulz_dtype!r}",
                param="optimizer.newton_schulz_dtype",
            )


@dataclass(frozen=True, kw_only=True)
class GuidesConfig:
    """Which attention heads are told where to look, and for how long (`training/guides.py`)."""

    weight: float = 0.0
    """Of the guides' mean loss, the kinds added, beside the loss on the tokens; 0 is no guides."""
    decision_weight: float = 1.0
    """Of the loss on the token after a `tool` or `parameter` row, where the model chooses; other tokens weigh 1."""
    until_tokens: int = 0
    heads: Mapping[str, Sequence[Sequence[int]]] = field(default_factory=dict)
    """[layer, head] pairs of each kind."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.heads) - set(KINDS))
        if unknown:
            raise ConfigError(f"unknown guide {unknown[0]!r}; there are {', '.join(KINDS)}", param="guides.heads")


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """The vocabulary is learned first, from the run's own data: its size is the model's less 256 special slots."""

    seed: int = 0
    samples: int = 20_000
    """Texts to learn the merges from; of a run on files, the first so many training documents of its shuffled order."""
    merges: str = "copy"
    """Merges allowed: `copy`, those that help a small model to copy values (`bpe.copy_friendly`), or `any`."""
    folder: str | None = None
    """A folder with `tiktoken.model` to take the vocabulary from instead (`openk2 train tokenizer` makes one)."""

    def __post_init__(self) -> None:
        if self.merges not in MERGES:
            raise ConfigError(
                f"tokenizer.merges must be {' or '.join(MERGES)}, not {self.merges!r}", param="tokenizer.merges"
            )


@dataclass(frozen=True, kw_only=True)
class ParallelConfig:
    """How the processes that torchrun starts share the model; one process does without (`training/parallel`)."""

    expert_parallel: int = 1
    """Ranks over which each layer's experts are spread; the dense rest is always sharded over all of them."""

    def __post_init__(self) -> None:
        if self.expert_parallel < 1:
            raise ConfigError(
                f"parallel.expert_parallel must be at least 1, not {self.expert_parallel}",
                param="parallel.expert_parallel",
            )


@dataclass(frozen=True, kw_only=True)
class TrackingConfig:
    """Where the run's records go beside its log (`training/tracking.py`)."""

    tensorboard: bool = False
    """To the folder `tensorboard` in the run's."""
    wandb: str | None = None
    """To Weights & Biases: a project, or `entity/project`."""

    def __post_init__(self) -> None:
        if self.wandb is not None and not isinstance(self.wandb, str):
            raise ConfigError(f"tracking.wandb is a project's name, not {self.wandb!r}", param="tracking.wandb")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    model: ModelConfig
    """The `[model]` section: a preset with changes, or, without the key `preset`, a checkpoint's that is `init`."""
    schedule: WarmupStableDecay
    stages: tuple[StageConfig, ...]
    data: DataConfig = field(default_factory=DataConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    guides: GuidesConfig = field(default_factory=GuidesConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    lora: LoraConfig | None = None
    """Adapters to train instead of the model."""
    rl: RLConfig | None = None
    """Learn from the model's own answers; the data give the prompts, and the batches that keep it from forgetting."""
    parallel: ParallelConfig = field(default_factory=ParallelConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)
    name: str = "run"
    seed: int = 0
    init: str = "structured"
    """First weights: `structured` (an induction circuit laid out), `random`, or a checkpoint folder to go on from."""
    router_bias_rate: tuple[float, float] = (0.03, 0.003)
    """Largest step of the load-balancing bias, at the first token and at the last."""
    accumulate: int = 1
    """Batches whose gradients make one step, all processes together."""
    recompute: bool = False
    """Keep only each layer's input for the backward pass and run the layer again there: less memory, a third more work.
    """
    reduced_budgets: float = 0.0
    """Share of the sequences whose assistant takes fewer experts a token, so that it keeps its head in reflex mode."""
    dtype: str = "float32"
    """What the passes compute in. With `bfloat16`, weights, gradients' sums and optimizer stay float32."""
    save_every_tokens: int = 500_000
    keep: int = 1
    """States kept: the latest as `state.pt`, and the ones before it by their step."""
    validate_every_tokens: int = 500_000
    validation_conversations: int = 160
    """At most so many held-out conversations or texts; 0 is no validation."""

    def __post_init__(self) -> None:
        if self.init not in ("structured", "random") and not Path(self.init).is_dir():
            raise ConfigError(
                f"init must be 'structured', 'random' or a checkpoint folder, not {self.init!r}", param="init"
            )
        if self.dtype not in DTYPES:
            raise ConfigError(f"dtype must be {' or '.join(DTYPES)}, not {self.dtype!r}", param="dtype")
        if not 0 <= self.reduced_budgets <= 1:
            raise ConfigError(
                f"reduced_budgets must be from 0 to 1, not {self.reduced_budgets}", param="reduced_budgets"
            )
        for name in ("accumulate", "keep", "save_every_tokens", "validate_every_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}", param=name)
        if self.recompute and self.guides.weight > 0:
            raise ConfigError("recompute excludes guides, which look into the layers", param="recompute")
        if self.lora is not None and self.init in ("structured", "random"):
            raise ConfigError("[lora] needs a checkpoint folder as init", param="init")
        if self.rl is not None and self.data.kind == "text":
            raise ConfigError("[rl] takes its prompts from conversations: data.kind 'text' has none", param="rl")
        if self.rl is not None and self.lora is not None and self.rl.rollout != "shared":
            raise ConfigError("rl.rollout must be 'shared' with [lora]: adapters are not packed", param="rl.rollout")
        if self.data.kind == "text" and self.guides.weight > 0:
            raise ConfigError("guides are for conversations: data.kind 'text' has none", param="guides.weight")
        ends = [stage.until_tokens for stage in self.stages]
        if not ends or ends != sorted(ends):
            raise ConfigError("stages must be listed with rising until_tokens", param="stages")
        window = self.model.max_position_embeddings
        if (longest := max(stage.sequence_tokens for stage in self.stages)) > window:
            raise ConfigError(
                f"sequence_tokens of {longest} is beyond model.max_position_embeddings, which is {window}",
                param="stages.sequence_tokens",
            )

    def stage(self, tokens: int) -> StageConfig:
        """The stage in force once `tokens` have been trained on; the last one has no end."""
        return next((s for s in self.stages if tokens < s.until_tokens), self.stages[-1])


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file; `overrides` are `section.key=value` strings with TOML values.

    Raises ConfigError naming the file and the key for anything unknown or ill-typed.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no recipe at {path}") from None
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror or error}") from None
    except ValueError as error:  # no TOML, or not UTF-8
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    for override in overrides:
        _apply(raw, override)
    stages = raw.pop("stages", [])
    if not isinstance(stages, list):
        raise ConfigError(f"recipe: stages is a list of [[stages]] sections, not {stages!r}", param="stages")
    values: dict[str, Any] = {
        "model": _model(raw.pop("model", None), raw.get("init")),
        "lora": _build(LoraConfig, raw.pop("lora"), "lora") if "lora" in raw else None,
        "rl": _build(RLConfig, raw.pop("rl"), "rl") if "rl" in raw else None,
        "schedule": _build(WarmupStableDecay, raw.pop("schedule", {}), "schedule"),
        "stages": tuple(_build(StageConfig, stage, f"stages[{i}]") for i, stage in enumerate(stages)),
        "data": _build(DataConfig, raw.pop("data", {}), "data"),
        "optimizer": _build(OptimizerConfig, raw.pop("optimizer", {}), "optimizer"),
        "guides": _build(GuidesConfig, raw.pop("guides", {}), "guides"),
        "parallel": _build(ParallelConfig, raw.pop("parallel", {}), "parallel"),
        "tracking": _build(TrackingConfig, raw.pop("tracking", {}), "tracking"),
        "tokenizer": _build(TokenizerConfig, raw.pop("tokenizer", {}), "tokenizer"),
    }
    return _build(Recipe, {**values, **raw})


def _model(section: Any, init: Any) -> ModelConfig:
    """The section's changes to its preset; without one, to the `init` checkpoint, or else to nano."""
    if not isinstance(section, Mapping | None):
        return _build(ModelConfig, section, "model")  # which refuses it
    given = dict(section or {})
    named = given.pop("preset", None)
    from_checkpoint = named is None and isinstance(init, str) and Path(init).is_dir()
    base = load_config(init) if from_checkpoint else preset(named or "nano")
    if "rope_scaling" in given:
        given["rope_scaling"] = _rope_scaling(given["rope_scaling"])
    made: ModelConfig = _build(type(base), given, "model", base)
    scaling = made.rope_scaling
    if scaling is not None and made.max_position_embeddings > scaling.factor * scaling.original_max_position_embeddings:
        raise ConfigError(
            f"[model] max_position_embeddings is {made.max_position_embeddings}, and rope_scaling reaches "
            f"{scaling.factor * scaling.original_max_position_embeddings:g}: its factor times its "
            "original_max_position_embeddings",
            param="model.max_position_embeddings",
        )
    return made


def _rope_scaling(section: Any) -> RopeScaling:
    """`[model.rope_scaling]` in the spelling of `config.json`."""
    values = dict(section) if isinstance(section, Mapping) else section
    kind = values.pop("type", "yarn") if isinstance(values, dict) else "yarn"
    if kind != "yarn":
        raise ConfigError(f"[model.rope_scaling] type must be yarn, not {kind!r}", param="model.rope_scaling.type")
    made: RopeScaling = _build(RopeScaling, values, "model.rope_scaling")
    return made


def _apply(raw: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set takes key=value, not {override!r}")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    *sections, last = key.strip().split(".")
    target = raw
    for section in sections:
        target = target.setdefault(section, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {key.strip()}: {section!r} is no section of the recipe", param=key.strip())
    target[last] = value


def _build(kind: type, values: Any, section: str = "", base: Any = None) -> Any:
    where = f"[{section}] " if section else ""
    if not isinstance(values, Mapping):
        raise ConfigError(f"recipe: {section} must be a section, not {values!r}", param=section)
    names = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - names)
    if unknown:
        known = ", ".join(sorted(names))
        raise ConfigError(f"{where}unknown recipe key {unknown[0]!r}; there are {known}", param=unknown[0])
    hints = get_type_hints(kind)
    given = {key: _typed(value, hints[key], f"{where}{key}") for key, value in values.items()}
    try:
        return dataclasses.replace(base, **given) if base is not None else kind(**given)
    except TypeError as error:
        raise ConfigError(f"recipe: {where}{error}") from None


def _typed(value: Any, hint: Any, name: str) -> Any:
    """`value` as a field of a plain type takes it; fields of other types look at it themselves."""
    if isinstance(value, list):
        value = tuple(value)
    if hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if hint in (int, float, str, bool):
        fits = isinstance(value, (int, float) if hint is float else hint) and (hint is bool) == isinstance(value, bool)
        if not fits:
            raise ConfigError(f"{name} must be of type {hint.__name__}, not {value!r}", param=name)
    return value
