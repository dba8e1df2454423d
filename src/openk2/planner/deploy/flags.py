"""Which flags the programs of a deployment take, by version.

`engine_flags.json` is read from the published packages by `dev/read_engine_flags.py`. A version that is not in it has
the flags of the newest known one before it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from openk2.errors import ConfigError

if TYPE_CHECKING:
    from argparse import ArgumentParser, Namespace

FLAG_FILE = Path(__file__).with_name("engine_flags.json")
MODES = ("many", "append", "optional")
POSITIONALS = {"vllm": "model_tag"}
"""What a program takes without a flag: `vllm serve MODEL`."""


@dataclass(frozen=True, kw_only=True)
class ProgramFlags:
    program: str
    """vllm, sglang, vllm-router or sglang-router."""
    version: str
    """Of the package that the flags were read from."""
    kinds: Mapping[str, str]
    """Flag, in each of its spellings -> what it takes; see `dev/read_engine_flags.py`."""
    aliases: Mapping[str, tuple[str, ...]]
    """Flag, in each of its spellings -> all of them."""
    tool_parsers: frozenset[str]
    reasoning_parsers: frozenset[str]

    def has(self, flag: str) -> bool:
        return flag in self.kinds

    def choices(self, flag: str) -> tuple[str, ...]:
        """Those that the flag is limited to; empty where it takes any value."""
        kind, *values = self.kinds[flag].split()
        return (
            tuple(value for value in values if value not in ("many", "append", "optional")) if kind == "choice" else ()
        )

    def parse(self, arguments: Sequence[str]) -> Namespace:
        """What the program would read from its arguments, the program's own name left out.

        Raises ConfigError with the program's complaint.
        """
        return _parser(self.program, self.version).parse_args(list(arguments))


@cache
def _known() -> dict[str, dict[str, Any]]:
    return dict(json.loads(FLAG_FILE.read_text(encoding="utf-8")))


def known_versions(program: str) -> list[str]:
    """The oldest first."""
    return sorted(_known()[program], key=_order)


def _order(version: str) -> tuple[int, ...]:
    match = re.match(r"v?(\d+(?:\.\d+)*)", version)
    if match is None:
        raise ConfigError(f"an engine's version looks like 0.33.0, not {version!r}", param="engine-version")
    return tuple(int(part) for part in match[1].split("."))


def program_flags(program: str, version: str | None = None) -> ProgramFlags:
    """Of the newest known version that is not after `version`; without one, of the newest.

    Raises ConfigError for a malformed version, or one before all that are known.
    """
    versions = known_versions(program)
    if version is not None:
        wanted = _order(version)
        versions = [one for one in versions if _order(one) <= wanted]
        if not versions:
            raise ConfigError(
                f"{program} {version} is older than {known_versions(program)[0]}, the first whose flags are known; "
                f"there are {', '.join(known_versions(program))}",
                param="engine-version",
            )
    entry = _known()[program][versions[-1]]
    kinds: dict[str, str] = {}
    aliases: dict[str, tuple[str, ...]] = {}
    for kind, flags in entry["flags"].items():
        for spellings in flags.split():
            names = tuple(spellings.split("/"))
            kinds |= dict.fromkeys(names, kind)
            aliases |= dict.fromkeys(names, names)
    return ProgramFlags(
        program=program,
        version=versions[-1],
        kinds=kinds,
        aliases=aliases,
        tool_parsers=frozenset(entry.get("tool_parsers", "").split()),
        reasoning_parsers=frozenset(entry.get("reasoning_parsers", "").split()),
    )


@cache
def _parser(program: str, version: str) -> ArgumentParser:
    from argparse import ArgumentParser, BooleanOptionalAction

    class Parser(ArgumentParser):
        def error(self, message: str) -> Any:
            raise ConfigError(f"{program} {version}: {message}")

    flags = program_flags(program, version)
    parser = Parser(prog=program, add_help=False)
    if program in POSITIONALS:
        parser.add_argument(POSITIONALS[program], nargs="?")
    for spellings in dict.fromkeys(flags.aliases.values()):
        kind, *values = flags.kinds[spellings[0]].split()
        modes = set(values) & set(MODES)
        options: dict[str, Any] = {}
        if kind == "switch":
            options["action"] = "store_true"
        elif kind == "on-off":
            options["action"] = BooleanOptionalAction
        else:
            options["type"] = {"int": int, "float": float, "json": json.loads}.get(kind, str)
            choices = flags.choices(spellings[0])
            if choices:
                options["choices"] = choices
            if "append" in modes:
                options["action"] = "append"
            if modes & {"many", "optional"}:
                options["nargs"] = "+" if "many" in modes else "?"
        parser.add_argument(*spellings, **options)
    return parser
