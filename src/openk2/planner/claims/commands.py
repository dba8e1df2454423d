"""What the engines' own command lines say: is a flag there, is a parser known. Read from the published packages, see
`planner/deploy/engine_flags.json`."""

from __future__ import annotations

from collections.abc import Callable

from openk2.errors import ConfigError
from openk2.planner.claims.quantity import Quantity
from openk2.planner.deploy.flags import program_flags


def accepted(program: str, arguments: str) -> Quantity:
    """1 where the newest known version of the program takes these arguments, else 0 with its complaint."""
    flags = program_flags(program)
    try:
        flags.parse(arguments.split())
    except ConfigError as error:
        return Quantity(value=0.0, unit="accepted", formula=str(error))
    return Quantity(value=1.0, unit="accepted", formula=f"{program} {flags.version} parses it")


def tool_parser(program: str, name: str) -> Quantity:
    """1 where the newest known version of the program has a tool-call parser of this name, else 0."""
    flags = program_flags(program)
    is_there = name in flags.tool_parsers
    formula = f"{'a' if is_there else 'no'} tool-call parser of {program} {flags.version}"
    return Quantity(value=float(is_there), unit="accepted", formula=formula)


COMMAND_QUANTITIES: dict[str, Callable[..., Quantity]] = {
    function.__name__: function for function in (accepted, tool_parser)
}
