"""What a model is (`ModelConfig`, presets) and how it is asked (`SamplingParams`). Standard library only."""

from openk2.config.byte_size import read_bytes, show_bytes
from openk2.config.model_config import ModelConfig, RopeScaling
from openk2.config.modes import MODES, ExpertBudget, Mode, expert_budget, read_mode
from openk2.config.presets import PRESETS, preset
from openk2.config.sampling import SamplingParams

__all__ = [
    "MODES",
    "PRESETS",
    "ExpertBudget",
    "Mode",
    "ModelConfig",
    "RopeScaling",
    "SamplingParams",
    "expert_budget",
    "preset",
    "read_bytes",
    "read_mode",
    "show_bytes",
]
