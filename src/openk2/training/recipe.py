"""What a training run is: one TOML file, read into these dataclasses."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openk2.config import ModelConfig
from openk2.config.presets import preset
from openk2.errors import ConfigError
from openk2.training.guides import KINDS
from openk2.training.schedule import WarmupStableDecay


@dataclass(frozen=True, kw_only=True)
class StageConfig:
    """A stretch of the curriculum: it holds until the run has seen `until_tokens` tokens."""

    until_tokens: int
    data_stage: int
    """Difficulty of the generated conversations, 0 (one tool) to 3 (up to six tools, all kinds)."""
    batch_tokens: int
    prompt_weight: float = 0.0
    """Weight of the loss on the prompt's tokens; that share of them, drawn at random, is learned like the reply's."""


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
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
    """Texts to learn the merges from."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    model: ModelConfig
    schedule: WarmupStableDecay
    stages: tuple[StageConfig, ...]
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    guides: GuidesConfig = field(default_factory=GuidesConfig)
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    name: str = "run"
    seed: int = 0
    init: str = "structured"
    """First weights: `structured` (an induction circuit laid out), `random`, or a checkpoint folder to go on from."""
    router_bias_rate: tuple[float, float] = (0.03, 0.003)
    """Largest step of the load-balancing bias, at the first token and at the last."""
    save_every_tokens: int = 500_000
    validate_every_tokens: int = 500_000
    validation_conversations: int = 160

    def __post_init__(self) -> None:
        if self.init not in ("structured", "random") and not Path(self.init).is_dir():
            raise ConfigError(
                f"init must be 'structured', 'random' or a checkpoint folder, not {self.init!r}", param="init"
            )
        ends = [stage.until_tokens for stage in self.stages]
        if not ends or ends != sorted(ends):
            raise ConfigError("stages must be listed with rising until_tokens", param="stages")

    def stage(self, tokens: int) -> StageConfig:
        """The stage in force once `tokens` have been trained on; the last one has no end."""
        return next((s for s in self.stages if tokens < s.until_tokens), self.stages[-1])


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe file; `overrides` are `section.key=value` strings with TOML values.

    Raises ConfigError naming the file and the key for anything unknown or ill-typed.
    """
    try:
        raw = tomllib.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no recipe at {path}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    for override in overrides:
        _apply(raw, override)
    model = dict(raw.pop("model", {}))
    base = preset(model.pop("preset", "nano"))
    values: dict[str, Any] = {
        "model": _build(type(base), model, base),
        "schedule": _build(WarmupStableDecay, raw.pop("schedule", {})),
        "stages": tuple(_build(StageConfig, stage) for stage in raw.pop("stages", [])),
        "optimizer": _build(OptimizerConfig, raw.pop("optimizer", {})),
        "guides": _build(GuidesConfig, raw.pop("guides", {})),
        "tokenizer": _build(TokenizerConfig, raw.pop("tokenizer", {})),
    }
    return _build(Recipe, {**values, **raw})


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
    target[last] = value


def _build(kind: type, values: Mapping[str, Any], base: Any = None) -> Any:
    names = {f.name for f in dataclasses.fields(kind)}
    unknown = sorted(set(values) - names)
    if unknown:
        raise ConfigError(f"unknown recipe key {unknown[0]!r}; there are {', '.join(sorted(names))}", param=unknown[0])
    values = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    try:
        return dataclasses.replace(base, **values) if base is not None else kind(**values)
    except TypeError as error:
        raise ConfigError(f"recipe: {error}") from None
