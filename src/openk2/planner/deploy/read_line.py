"""What somebody's own `vllm serve` or `sglang serve` line asks for, and which of its flags there are not."""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from openk2.errors import ConfigError
from openk2.planner.deploy.flags import ProgramFlags, program_flags
from openk2.planner.deploy.published import PUBLISHED, preset_of
from openk2.planner.load import read_tokens
from openk2.planner.nearest import nearest
from openk2.planner.parallel import Parallelism

PROGRAMS = {"vllm": ("vllm", "serve"), "sglang": ("sglang", "serve")}
MEANINGS = {
    "--tensor-parallel-size": "tp",
    "--tp-size": "tp",
    "--pipeline-parallel-size": "pp",
    "--pp-size": "pp",
    "--data-parallel-size": "dp",
    "--dp-size": "dp",
    "--max-model-len": "context",
    "--context-length": "context",
    "--model": "model",
    "--model-path": "model",
}
FLAG = re.compile(r"--?[A-Za-z]")
OTHER_WAYS = {
    "--temperature": "each request carries it; for a default, vLLM has --override-generation-config",
    "--disaggregate-prefill-decode": "two groups of servers and a router do it: openk2 deploy --disaggregate 1P1D",
}
"""Flags that guides name and no engine has -> what does it."""


@dataclass(frozen=True, kw_only=True)
class Line:
    engine: str
    model: str
    layout: Parallelism | None
    context_tokens: int | None
    faults: tuple[str, ...]
    """Why the engine would refuse the line."""
    preset: str | None
    """The planner's name of the model; None where it has none."""

    @property
    def reading(self) -> str | None:
        """How the model is read, where its repository is not the one that its vendor published."""
        repository = PUBLISHED[self.preset].repository if self.preset else None
        if repository is None or repository == self.model:
            return None
        return f"{self.model} is read as {self.preset}, published as {repository}"


def read_line(text: str, version: str | None = None) -> Line:
    """A command line, with or without backslashes at its ends of line, judged by the flags of the engine's version.

    Raises ConfigError where it starts neither engine or names no model.
    """
    try:
        words = shlex.split(text.replace("\\\n", " "), comments=True)
    except ValueError as error:
        raise ConfigError(f"the line cannot be read: {error}", param="line") from None
    if len(words) > 2 and words[1:3] == ["-m", "sglang.launch_server"]:
        words = ["sglang", "serve", *words[3:]]
    engine = next((name for name, start in PROGRAMS.items() if tuple(words[:2]) == start), None)
    if engine is None:
        raise ConfigError("a line begins with `vllm serve` or `sglang serve`", param="line")
    flags = program_flags(engine, version)
    values, faults = _values(words[2:], flags)
    model = values.get("model")
    if not model:
        raise ConfigError("the line names no model", param="line")
    sizes = {key: int(values[key]) for key in ("tp", "pp", "dp") if values.get(key, "").isdecimal()}
    layout = None
    if sizes:
        layout = Parallelism(
            tp_size=sizes.get("tp", 1),
            pp_size=sizes.get("pp", 1),
            dp_size=sizes.get("dp", 1),
            expert_parallel="ep" in values,
        )
    context = values.get("context")
    return Line(
        engine=engine,
        model=model,
        layout=layout,
        context_tokens=None if context is None else read_tokens(context),
        faults=tuple(faults),
        preset=preset_of(model),
    )


def _values(words: list[str], flags: ProgramFlags) -> tuple[Mapping[str, str], list[str]]:
    found: dict[str, str] = {}
    faults: list[str] = []
    at = 0
    if words and not words[0].startswith("-"):
        found["model"], at = words[0], 1
    while at < len(words):
        flag, equals, value = words[at].partition("=")
        at += 1
        following = []
        while at < len(words) and not FLAG.match(words[at]):
            following.append(words[at])
            at += 1
        known = _spellings(flag, flags)
        if not known:
            faults.append(_fault(flag, flags))
            continue
        kind = flags.kinds[known[0]]
        if kind in ("switch", "on-off") and following:
            faults.append(f"{flag} takes no value, and has {' '.join(following)}")
        meaning = next((MEANINGS[one] for one in known if one in MEANINGS), None)
        if meaning is not None:
            found[meaning] = value if equals else (following[0] if following else "")
        if set(known) & {"--enable-expert-parallel", "--ep-size"}:
            found["ep"] = "1"
    if "--enable-auto-tool-choice" in words and not any(word.startswith("--tool-call-parser") for word in words):
        faults.append("--enable-auto-tool-choice needs --tool-call-parser")
    return found, faults


def _spellings(flag: str, flags: ProgramFlags) -> tuple[str, ...]:
    """Of the flag that is meant; argparse also takes a beginning that only one flag has. Empty where there is none."""
    name = flag.replace("_", "-")
    if name in flags.aliases:
        return flags.aliases[name]
    begun = {flags.aliases[one] for one in flags.aliases if name.startswith("--") and one.startswith(name)}
    return begun.pop() if len(begun) == 1 else ()


def _fault(flag: str, flags: ProgramFlags) -> str:
    start = f"{flags.program} {flags.version} has no {flag}"
    if flag in OTHER_WAYS:
        return f"{start}: {OTHER_WAYS[flag]}"
    near = nearest(flag, flags.kinds)
    return f"{start}; the nearest is {near}" if near else start
