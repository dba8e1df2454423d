"""Writing into another program's settings file, and taking it back.

Beside FILE stands `FILE.before-openk2`, what was there before, or `FILE.created-by-openk2` where there was no file.
Every file is replaced in one step, so that a crash leaves the old one or the new one.
"""

from __future__ import annotations

import json
import os
import tempfile
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from json import JSONDecodeError
from pathlib import Path
from types import ModuleType
from typing import Any

from openk2.client import jsonc, toml_text
from openk2.client.jsonc import MISSING
from openk2.client.settings import Setting
from openk2.errors import ConfigError, EnvironmentFault


@dataclass(frozen=True)
class Written:
    file: Path
    backup: Path | None
    """What was there before; None when there was no file."""


@dataclass(frozen=True)
class Undone:
    file: Path
    exists: bool
    """Whether there was a file before, which is now back."""
    kept: Path | None
    """The file as it was until now, where someone had changed it since it was written."""


def new_file(file: Path, settings: Sequence[Setting]) -> tuple[str, Any]:
    """What a file of this name with nothing but the settings holds: its text, and the same read."""
    text = _merged("", settings, file)
    return text, tomllib.loads(text) if file.suffix == ".toml" else json.loads(text)


def write_settings(file: Path, settings: Sequence[Setting]) -> Written:
    """Merge the settings into the file, keeping all else and, the first time, a backup.

    Raises ConfigError: the file cannot be read as JSON with comments, or as TOML where its name says so.
    EnvironmentFault: it cannot be written.
    """
    file = file.resolve()  # a linked settings file stays a link
    backup, created = _sidecars(file)
    with _one_line(file):
        before = _read(file)
        text = _decoded(before or b"", file)
        merged = _merged(text, settings, file)
        file.parent.mkdir(parents=True, exist_ok=True)
        connected = _form(file).value_at(text, settings[0][0]) is not MISSING
        if not connected or not (backup.exists() or created.exists()):
            # What an earlier connection left beside a file that is not connected now is not what undo shall bring back.
            fresh, stale = (created, backup) if before is None else (backup, created)
            _replace(fresh, before or b"", like=file)
            stale.unlink(missing_ok=True)
        _replace(file, merged.encode(), like=file)
    return Written(file, backup if backup.exists() else None)


def undo_settings(file: Path, settings: Sequence[Setting]) -> Undone:
    """Bring back what was there before the first write; a file that has been changed since is kept beside it.

    Of the settings only the places count. Raises ConfigError: nothing was written. EnvironmentFault: a file cannot be.
    """
    file = file.resolve()
    backup, created = _sidecars(file)
    with _one_line(file):
        before, now = _read(backup), _read(file)
        if before is None and not created.exists():
            raise ConfigError(f"nothing to undo: openk2 connect has not written {file}")
        kept = None
        if now is not None and _was_changed(before or b"", now, settings, file):
            names = (file.with_name(f"{file.name}.undone-openk2{number or ''}") for number in count())
            kept = next(name for name in names if not name.exists())
            _replace(kept, now, like=file)
        if before is None:
            file.unlink(missing_ok=True)
            created.unlink()
        else:
            backup.replace(file)
    return Undone(file, before is not None, kept)


def _sidecars(file: Path) -> tuple[Path, Path]:
    return file.with_name(f"{file.name}.before-openk2"), file.with_name(f"{file.name}.created-by-openk2")


def _read(file: Path) -> bytes | None:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return None


def _decoded(content: bytes, file: Path) -> str:
    try:
        return content.decode()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file} is not UTF-8 text, so it was left as it is") from error


def _merged(text: str, settings: Sequence[Setting], file: Path) -> str:
    try:
        for path, value in settings:
            text = _form(file).with_value(text, path, value)
    except ValueError as error:
        form, where = "TOML", str(error)
        if isinstance(error, JSONDecodeError):
            form, where = "JSON", f"line {error.lineno}, column {error.colno}: {error.msg}"
        raise ConfigError(f"{file} is not valid {form} ({where}); it was left as it is: mend it first") from error
    except TypeError as error:
        raise ConfigError(f"{file} was left as it is: {error} there; mend it first") from error
    return text


def _was_changed(before: bytes, now: bytes, settings: Sequence[Setting], file: Path) -> bool:
    """Whether the file is anything but what was there before with its present values of our settings."""
    try:
        text = _decoded(now, file)
        present = [(path, _form(file).value_at(text, path)) for path, _ in settings]
        if any(value is MISSING for _, value in present):
            return before != now
        return _merged(_decoded(before, file), present, file) != text
    except (ConfigError, ValueError):
        return True


def _form(file: Path) -> ModuleType:
    """What reads and changes a file of this kind: `value_at` and `with_value`."""
    return toml_text if file.suffix == ".toml" else jsonc


def _replace(file: Path, content: bytes, like: Path) -> None:
    """Put the content in the file's place in one step, with the permissions of another file, if that exists."""
    handle, temporary = tempfile.mkstemp(dir=file.parent, prefix=f".{file.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        if like.exists():
            Path(temporary).chmod(like.stat().st_mode & 0o777)
        Path(temporary).replace(file)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise


@contextmanager
def _one_line(file: Path) -> Iterator[None]:
    """A file operation that fails becomes one clear line."""
    try:
        yield
    except OSError as error:
        raise EnvironmentFault(f"{error.filename or file}: {error.strerror or error}") from error
