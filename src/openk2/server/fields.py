"""Reading typed values out of a JSON object, with complaints that name the field.

Hand-written rather than generated: an API's message about a wrong field is part of the API.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

from openk2.errors import RequestError

T = TypeVar("T", bound=str)

MAX_STOP_STRINGS = 4
"""In one request, in every API."""

_TYPE_NAMES = {
    type(None): "null",
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    list: "an array",
    dict: "an object",
}


def type_name(value: object) -> str:
    return _TYPE_NAMES.get(type(value), type(value).__name__)


def wrong_type(path: str, expected: str, value: object) -> RequestError:
    return RequestError(f"Invalid type for '{path}': expected {expected}, got {type_name(value)}.", param=path)


def wrong_value(path: str, message: str) -> RequestError:
    return RequestError(f"Invalid value for '{path}': {message}.", param=path)


def _checked_integer(value: object, path: str, minimum: int | None, maximum: int | None) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(path, "an integer", value)
    if (minimum is not None and value < minimum) or (maximum is not None and value > maximum):
        bounds = f"at least {minimum}" if maximum is None else f"between {minimum} and {maximum}"
        raise wrong_value(path, f"it must be {bounds}, not {value}")
    return value


def checked_number(value: object, path: str) -> float:
    """Raises RequestError for what is no finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise wrong_type(path, "a number", value)
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise wrong_value(path, "it must be finite")
    return number


class Fields:
    """One JSON object. `null` counts as absent, as it does at OpenAI; each method raises RequestError."""

    def __init__(self, value: object, path: str = "") -> None:
        if not isinstance(value, dict):
            if path:
                raise wrong_type(path, "an object", value)
            raise RequestError(f"The request body must be a JSON object, not {type_name(value)}.")
        self._values: dict[str, Any] = value
        self._read: set[str] = set()
        self.path = path

    def at(self, key: str) -> str:
        """Path of a key from the body's root."""
        return f"{self.path}.{key}" if self.path else key

    def get(self, key: str) -> Any:
        self._read.add(key)
        return self._values.get(key)

    def unread(self) -> list[str]:
        """Keys that carry a value and that nothing asked for."""
        return sorted(key for key, value in self._values.items() if key not in self._read and value is not None)

    def require(self, key: str) -> Any:
        value = self.get(key)
        if value is None:
            raise RequestError(f"Missing required parameter: '{self.at(key)}'.", param=self.at(key))
        return value

    def string(self, key: str) -> str | None:
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise wrong_type(self.at(key), "a string", value)
        return value

    def required_string(self, key: str) -> str:
        self.require(key)
        value = self.string(key)
        if not value:
            raise wrong_value(self.at(key), "it must not be empty")
        return value

    def choice(self, key: str, values: Sequence[T]) -> T | None:
        """One of these strings."""
        value = self.string(key)
        for known in values:
            if value == known:
                return known
        if value is None:
            return None
        raise wrong_value(self.at(key), f"it must be one of {', '.join(values)}, not {value!r}")

    def boolean(self, key: str) -> bool | None:
        value = self.get(key)
        if value is not None and not isinstance(value, bool):
            raise wrong_type(self.at(key), "a boolean", value)
        return value

    def integer(self, key: str, minimum: int | None = None, maximum: int | None = None) -> int | None:
        value = self.get(key)
        return None if value is None else _checked_integer(value, self.at(key), minimum, maximum)

    def integers(self, key: str, minimum: int | None = None, maximum: int | None = None) -> tuple[int, ...]:
        """() when absent."""
        values = enumerate(self.array(key) or [])
        return tuple(_checked_integer(value, self.at(f"{key}[{i}]"), minimum, maximum) for i, value in values)

    def number(self, key: str) -> float | None:
        value = self.get(key)
        return None if value is None else checked_number(value, self.at(key))

    def array(self, key: str) -> list[Any] | None:
        value = self.get(key)
        if value is not None and not isinstance(value, list):
            raise wrong_type(self.at(key), "an array", value)
        return value

    def strings(self, key: str, most: int) -> tuple[str, ...]:
        """At most so many strings, none of them empty; () when absent."""
        values = self.array(key) or []
        for i, value in enumerate(values):
            path = self.at(f"{key}[{i}]")
            if not isinstance(value, str):
                raise wrong_type(path, "a string", value)
            if not value:
                raise wrong_value(path, "it must not be empty")
        if len(values) > most:
            raise wrong_value(self.at(key), f"at most {most} strings, not {len(values)}")
        return tuple(values)

    def mapping(self, key: str) -> Fields | None:
        value = self.get(key)
        return None if value is None else Fields(value, self.at(key))

    def required_object(self, key: str) -> Fields:
        return Fields(self.require(key), self.at(key))

    def reject(self, key: str, message: str, *, harmless: tuple[object, ...] = ()) -> None:
        """Refuse a parameter that would change the answer and cannot be honoured, unless its value is the default."""
        value = self.get(key)
        if value is not None and value not in harmless:
            raise RequestError(f"'{self.at(key)}' {message}.", param=self.at(key))
