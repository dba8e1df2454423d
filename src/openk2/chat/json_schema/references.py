"""Where the references of a schema document lead: pointers, identifiers and anchors within it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urljoin

from openk2.errors import SchemaError


class References:
    """Of one document, whose objects it tells apart by identity. Nothing is fetched.

    Raises SchemaError for an identifier that is no URI reference.
    """

    def __init__(self, document: Mapping[str, Any]) -> None:
        self._resources: dict[str, Any] = {"": document}
        self._anchors: dict[tuple[str, str], Any] = {}
        self._bases: dict[int, str] = {}
        self._derived: list[Mapping[str, Any]] = []  # alive, since their identity stands for them
        self._collect(document, "")

    def derive(self, schema: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
        """A schema in the place of one of the document's."""
        derived = {**schema, **changes}
        self._bases[id(derived)] = self._bases.get(id(schema), "")
        self._derived.append(derived)
        return derived

    def follow(self, schema: Mapping[str, Any]) -> Any:
        """What the `$ref` of one of the document's objects means. Raises SchemaError when that is not in there."""
        reference = schema["$ref"]
        if not isinstance(reference, str):
            raise SchemaError(f"$ref must be a string, not {reference!r}")
        base = self._bases.get(id(schema), "")
        uri, _, fragment = (base + reference if reference.startswith("#") else _join(base, reference)).partition("#")
        if uri not in self._resources:
            raise SchemaError(f"$ref {reference!r} leads outside of the schema")
        try:
            if fragment and not fragment.startswith("/"):
                return self._anchors[uri, fragment]
            target = self._resources[uri]
            for step in fragment.split("/")[1:]:
                name = unquote(step).replace("~1", "/").replace("~0", "~")
                target = target[int(name)] if isinstance(target, list) else target[name]
        except (KeyError, IndexError, TypeError, ValueError):
            raise SchemaError(f"$ref {reference!r} leads nowhere") from None
        return target

    def _collect(self, value: Any, base: str) -> None:
        if isinstance(value, list):
            for item in value:
                self._collect(item, base)
        if not isinstance(value, Mapping):
            return
        identifier, anchor = value.get("$id"), value.get("$anchor")
        if isinstance(identifier, str):
            uri, _, fragment = identifier.partition("#")
            if uri:
                base = _join(base, uri)
                self._resources.setdefault(base, value)
            if fragment and not fragment.startswith("/"):  # how drafts up to 7 write an anchor
                self._anchors[base, fragment] = value
        if isinstance(anchor, str):
            self._anchors[base, anchor] = value
        self._bases[id(value)] = base
        for item in value.values():
            self._collect(item, base)


def _join(base: str, reference: str) -> str:
    try:
        return urljoin(base, reference)
    except ValueError:
        raise SchemaError(f"{reference!r} is no URI reference") from None
