"""openk2: the Kimi K2-0905 system end to end.

    from openk2 import LLM

    llm = LLM()  # the embedded k2-nano
    print(llm.chat([...]).message.content)

The names below are imported on first use, so that `import openk2` costs nothing and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from openk2.agent import Agent, tool
    from openk2.chat.scripted import ScriptedProvider
    from openk2.client import RemoteProvider
    from openk2.config import ModelConfig, SamplingParams
    from openk2.llm import LLM
    from openk2.training.muon import MuonClip

__version__ = "0.1.0"

_HOMES = {
    "Agent": "openk2.agent",
    "LLM": "openk2.llm",
    "ModelConfig": "openk2.config",
    "MuonClip": "openk2.training.muon",
    "RemoteProvider": "openk2.client",
    "SamplingParams": "openk2.config",
    "ScriptedProvider": "openk2.chat.scripted",
    "tool": "openk2.agent",
}

__all__ = [
    "LLM",
    "Agent",
    "ModelConfig",
    "MuonClip",
    "RemoteProvider",
    "SamplingParams",
    "ScriptedProvider",
    "__version__",
    "tool",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'openk2' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
