"""What an engine must be told of a published model: its repository, its parsers, its recommended temperature."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from openk2.planner.shape import ModelShape


@dataclass(frozen=True, kw_only=True)
class Published:
    """Parsers by their names in any engine; the first that an engine has is taken."""

    repository: str | None
    """On Hugging Face."""
    tool_parsers: tuple[str, ...] = ()
    reasoning_parsers: tuple[str, ...] = ()
    temperature: float | None = None
    """Recommended by the vendor where the checkpoint's generation_config.json names none."""


KIMI_TOOLS = ("kimi_k2",)
PUBLISHED = {
    "k2": Published(repository="moonshotai/Kimi-K2-Instruct", tool_parsers=KIMI_TOOLS, temperature=0.6),
    "k2-0905": Published(repository="moonshotai/Kimi-K2-Instruct-0905", tool_parsers=KIMI_TOOLS, temperature=0.6),
    "k2-thinking": Published(
        repository="moonshotai/Kimi-K2-Thinking",
        tool_parsers=KIMI_TOOLS,
        reasoning_parsers=("kimi_k2",),
        temperature=1.0,
    ),
    "moonlight": Published(repository="moonshotai/Moonlight-16B-A3B-Instruct"),
    "deepseek-v3": Published(repository="deepseek-ai/DeepSeek-V3", tool_parsers=("deepseek_v3", "deepseekv3")),
    "deepseek-v2-lite": Published(repository="deepseek-ai/DeepSeek-V2-Lite-Chat"),
    "qwen3-coder-480b": Published(repository="Qwen/Qwen3-Coder-480B-A35B-Instruct", tool_parsers=("qwen3_coder",)),
    "glm-4.5": Published(repository="zai-org/GLM-4.5", tool_parsers=("glm45",), reasoning_parsers=("glm45",)),
}
"""By the planner's name. Temperatures: the model cards; the tool parser of K2: Moonshot's deployment guide."""


def published(shape: ModelShape) -> Published:
    """Of a preset; of a folder, by the `model_type` in its config.json."""
    if shape.name in PUBLISHED:
        return PUBLISHED[shape.name]
    file = Path(shape.name) / "config.json"
    kind = json.loads(file.read_text(encoding="utf-8")).get("model_type") if file.is_file() else None
    if kind == "kimi_k2":
        return Published(repository=None, tool_parsers=KIMI_TOOLS, temperature=0.6)
    return Published(repository=None)


def preset_of(repository: str) -> str | None:
    """The planner's name of a repository, whoever copied it and whatever format its name ends in; None if unknown."""
    tail = repository.lower().rpartition("/")[2]
    for suffix in ("-fp8", "-bf16", "-awq", "-gptq", "-int4", "-w4a16"):
        tail = tail.removesuffix(suffix)
    for name, one in PUBLISHED.items():
        if one.repository is not None and one.repository.lower().rpartition("/")[2] == tail:
            return name
    return None
