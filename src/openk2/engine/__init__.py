"""The engine: token ids in, token ids out. Continuous batching over a paged cache of latents."""

from openk2.engine.constraint import TokenConstraint
from openk2.engine.engine import Engine, EngineConfig, EngineStats
from openk2.engine.request import EngineRequest, FinishReason, StepOutput

__all__ = [
    "Engine",
    "EngineConfig",
    "EngineRequest",
    "EngineStats",
    "FinishReason",
    "StepOutput",
    "TokenConstraint",
]
