"""Models that come with the package."""

from __future__ import annotations

from pathlib import Path

from openk2.errors import CheckpointError

_HERE = Path(__file__).parent


def names() -> list[str]:
    """The embedded models."""
    return sorted(config.parent.name for config in _HERE.glob("*/config.json"))


def path(name: str) -> Path:
    """The folder of an embedded model, such as "k2-nano".

    Raises CheckpointError when this installation does not hold it.
    """
    folder = _HERE / name
    if name in names():
        return folder
    held = ", ".join(names()) or "none"
    raise CheckpointError(
        f"no embedded model {name!r} in this installation (it holds: {held}); give a checkpoint folder"
    )
