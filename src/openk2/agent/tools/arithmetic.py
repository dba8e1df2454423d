"""calculate: arithmetic on a parsed expression; nothing is ever evaluated as code.

Integers are exact and bounded to `MAX_BITS` bits, so that no expression takes long; other numbers are floats.
"""

from __future__ import annotations

import ast
import math
import operator
from collections.abc import Callable, Mapping

from openk2.agent.declare import ToolError

Number = int | float

MAX_CHARS = 300
MAX_BITS = 4096
_MAX_ROUND_DIGITS = 100

_CONSTANTS: Mapping[str, float] = {"pi": math.pi, "e": math.e, "tau": math.tau}


def _power(base: Number, exponent: Number) -> Number:
    # Refused before it is computed; the factor 2 because a base of n bits may be as small as 2 ** (n - 1).
    bits = base.bit_length() * exponent if isinstance(base, int) and abs(base) > 1 else 0
    if bits > 2 * MAX_BITS and isinstance(exponent, int):
        raise OverflowError
    value = base**exponent
    if isinstance(value, complex):
        raise ToolError(f"{base} ** {exponent} is not a real number")
    return value


def _round(value: Number, digits: Number = 0) -> Number:
    if not isinstance(digits, int) or abs(digits) > _MAX_ROUND_DIGITS:
        raise ToolError(f"round takes a whole number of digits up to {_MAX_ROUND_DIGITS}")
    return round(value, digits)


_BINARY: Mapping[type[ast.operator], Callable[[Number, Number], Number]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: _power,
}
_UNARY: Mapping[type[ast.unaryop], Callable[[Number], Number]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}
_FUNCTIONS: Mapping[str, Callable[..., Number]] = {
    "abs": abs,
    "ceil": math.ceil,
    "cos": math.cos,
    "exp": math.exp,
    "floor": math.floor,
    "log": math.log,
    "log10": math.log10,
    "log2": math.log2,
    "max": max,
    "min": min,
    "round": _round,
    "sin": math.sin,
    "sqrt": math.sqrt,
    "tan": math.tan,
}
_SPELLINGS = str.maketrans({"^": "**", "×": "*", "·": "*", "÷": "/", "−": "-"})


def calculate(expression: str) -> str:
    """The value of an arithmetic expression. Raises ToolError saying what cannot be calculated.

    `^` is a power. A float is shown with 12 significant digits, which hides the rounding of binary fractions.
    """
    if len(expression) > MAX_CHARS:
        raise ToolError(f"the expression has {len(expression)} characters; at most {MAX_CHARS} are calculated")
    try:
        tree = ast.parse(expression.translate(_SPELLINGS).strip(), mode="eval")
        return _shown(_value(tree.body))
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else str(error) or type(error).__name__
        raise ToolError(f"cannot calculate {expression!r}: {reason}") from None
    except ZeroDivisionError:
        raise ToolError(f"cannot calculate {expression!r}: division by zero") from None
    except OverflowError:
        raise ToolError(f"cannot calculate {expression!r}: a number in it is too large") from None
    except TypeError:
        raise ToolError(f"cannot calculate {expression!r}: a function has the wrong number of arguments") from None


def _value(node: ast.expr) -> Number:
    match node:
        case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
            pass
        case ast.BinOp(left, op, right) if type(op) in _BINARY:
            value = _BINARY[type(op)](_value(left), _value(right))
        case ast.UnaryOp(op, operand) if type(op) in _UNARY:
            value = _UNARY[type(op)](_value(operand))
        case ast.Call(func=ast.Name(name), args=arguments, keywords=[]) if name in _FUNCTIONS:
            value = _FUNCTIONS[name](*map(_value, arguments))
        case ast.Name(name) if name in _CONSTANTS:
            value = _CONSTANTS[name]
        case _:
            raise ToolError(f"{ast.unparse(node)!r} is not arithmetic; use numbers, + - * / // % ** and parentheses")
    fits = value.bit_length() <= MAX_BITS if isinstance(value, int) else math.isfinite(value)
    if not fits:
        raise OverflowError
    return value


def _shown(value: Number) -> str:
    return str(value) if isinstance(value, int) else f"{value:.12g}"
