"""The built-in tools: what they answer, and that they see nothing outside the working folder."""

from __future__ import annotations

import ast
import math
import operator
import os
import random
import re
import string
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openk2.agent import ToolError, builtin_tools
from openk2.agent.tools import arithmetic, clock, files, workspace
from openk2.agent.tools.arithmetic import calculate
from openk2.chat.builtin_tools import BUILTIN_TOOLS
from openk2.errors import EnvironmentFault


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with everything that must be left alone, beside a secret."""
    (tmp_path / "secret.py").write_text("TODO: outside\n")
    root = tmp_path / "work"
    for name in ("src", ".git", ".venv/lib", "node_modules/x", "src/__pycache__"):
        (root / name).mkdir(parents=True)
        (root / name / "skipped.py").write_text("TODO: skipped\n")
    (root / "src/skipped.py").unlink()
    (root / "src/main.py").write_text("import os\n\ndef main():\n    pass  # TODO: write it\n\x0c# TODO: more\r\n")
    (root / "src/app.js").write_text("// TODO: port\n// todo: lower case\n")
    (root / "README.md").write_text("# Project\n")
    (root / "data.bin").write_bytes(b"TODO\0\1\2")
    (root / "empty.txt").touch()
    (root / "link.py").symlink_to("../secret.py")
    (root / "parent").symlink_to("..")
    (root / "alias.py").symlink_to("src/main.py")
    return root


def run(folder: Path, name: str, **arguments: str) -> Any:
    (tool,) = [tool for tool in builtin_tools(folder) if tool.name == name]
    return tool(**arguments)


def test_they_are_the_declared_ones(tmp_path: Path) -> None:
    assert tuple(tool.spec for tool in builtin_tools(tmp_path)) == BUILTIN_TOOLS
    with pytest.raises(EnvironmentFault, match="does not exist"):
        builtin_tools(tmp_path / "nowhere")


def test_search(folder: Path) -> None:
    assert run(folder, "search_files", pattern="TODO", lang="py").splitlines() == [
        "alias.py:4: pass  # TODO: write it",
        "alias.py:5: # TODO: more",
        "src/main.py:4: pass  # TODO: write it",
        "src/main.py:5: # TODO: more",
    ]
    assert "src/app.js:1: // TODO: port" in run(folder, "search_files", pattern="TODO").splitlines()
    assert run(folder, "search_files", pattern="nothing like it", lang="js") == (
        "no matches for 'nothing like it' in 1 js files"
    )
    assert run(folder, "search_files", pattern="a.c", lang="js").startswith("no matches"), "plain text, no pattern"
    with pytest.raises(ToolError, match="must not be empty"):
        run(folder, "search_files", pattern="")


@pytest.mark.parametrize(
    ("lang", "expected"),
    [
        ("py", {".py"}),
        (".PY", {".py"}),
        ("*.py", {".py"}),
        ("Python", {".py", ".pyi"}),
        ("javascript", {".js", ".mjs", ".cjs", ".jsx"}),
        ("zig", {".zig"}),
        ("", set()),
        ("all", set()),
    ],
)
def test_languages(lang: str, expected: set[str]) -> None:
    assert files.extensions(lang) == expected


def test_search_output_is_bounded(tmp_path: Path) -> None:
    (tmp_path / "many.txt").write_text("needle\n" * 250)
    (tmp_path / "wide.txt").write_text("x" * 5000 + "needle" + "y" * 5000 + "\n")
    lines = run(tmp_path, "search_files", pattern="needle").splitlines()
    assert len(lines) == files.MAX_MATCHES + 1 and lines[-1] == "[100 of 251 matches shown]"
    (line,) = run(tmp_path, "search_files", pattern="xneedle").splitlines()
    assert "needle" in line and len(line) < 300


def test_read(folder: Path) -> None:
    assert run(folder, "read_file", path="README.md") == "# Project\n"
    assert run(folder, "read_file", path=str(folder / "src/../README.md")) == "# Project\n"
    assert run(folder, "read_file", path="empty.txt") == "empty.txt is empty"
    assert run(folder, "read_file", path="alias.py") == run(folder, "read_file", path="src/main.py")
    (folder / "big.txt").write_text("x" * (workspace.MAX_FILE_BYTES + 1))
    os.mkfifo(folder / "pipe")
    for path, reason in {
        "data.bin": "binary",
        "big.txt": "over 2 MB",
        "src": "is a folder",
        "pipe": "no regular file",
        "gone.txt": "there is no 'gone.txt'",
        "a\0b": "no usable path",
        "x" * 5000: "no usable path",
    }.items():
        with pytest.raises(ToolError, match=re.escape(reason)):
            run(folder, "read_file", path=path)


def test_list(folder: Path) -> None:
    listed = run(folder, "list_files", path=".").splitlines()
    assert listed == ["README.md", "alias.py", "data.bin", "empty.txt", "link.py", "parent/", "src/"]
    assert run(folder, "list_files", path="src") == "app.js\nmain.py"
    (folder / "nothing").mkdir()
    assert run(folder, "list_files", path="nothing") == "the folder is empty"
    with pytest.raises(ToolError, match="is a file"):
        run(folder, "list_files", path="README.md")
    for number in range(files.MAX_ENTRIES + 5):
        (folder / "nothing" / f"{number:03}").touch()
    assert run(folder, "list_files", path="nothing").endswith("199\n[200 of 205 entries shown]")


@pytest.mark.parametrize("name", ["read_file", "list_files"])
@pytest.mark.parametrize(
    "path", ["..", "../secret.py", "src/../../secret.py", "link.py", "parent", "parent/secret.py", "/etc/passwd", "/"]
)
def test_nothing_outside_is_seen(folder: Path, name: str, path: str) -> None:
    with pytest.raises(ToolError, match="outside the working folder"):
        run(folder, name, path=path)


def test_a_missing_file_outside_is_not_told_from_one_that_exists(folder: Path) -> None:
    with pytest.raises(ToolError, match="outside the working folder"):
        run(folder, "read_file", path="../there-is-no-such-file")


def test_a_loop_of_links_is_an_error(folder: Path) -> None:
    (folder / "a").symlink_to("b")
    (folder / "b").symlink_to("a")
    with pytest.raises(ToolError):
        run(folder, "read_file", path="a")
    assert "TODO" in run(folder, "search_files", pattern="TODO")


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("12 * (3 + 4)", "84"),
        ("2^10 + 1", "1025"),
        ("2**10", "1024"),
        ("-7 // 2", "-4"),
        ("7 % 3", "1"),
        ("0.1 + 0.2", "0.3"),
        ("10 / 4", "2.5"),
        ("10 / 5", "2"),
        ("1e3", "1000"),
        ("6 × 7 − 2", "40"),
        ("sqrt(2)", "1.41421356237"),
        ("round(3.14159, 2)", "3.14"),
        ("max(1, 2, 3) - min(4, 5)", "-1"),
        ("2 * pi", "6.28318530718"),
        ("(-1) ** 1000001", "-1"),
        ("0 ** 10000000000", "0"),
    ],
)
def test_calculate(expression: str, value: str) -> None:
    assert calculate(expression) == value


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("1 / 0", "division by zero"),
        ("9**9**9", "too large"),
        ("10 ** 5000", "too large"),
        ("2 ** 4096 * 2", "too large"),
        ("1e308 * 10", "too large"),
        ("exp(1000)", "too large"),
        ("(-8) ** 0.5", "not a real number"),
        ("sqrt(-1)", "cannot calculate"),
        ("round(5, -1000000000)", "whole number of digits"),
        ("1 +", "cannot calculate"),
        ("", "cannot calculate"),
        ("(" * 250, "cannot calculate"),
        ("1" * 301, "at most 300"),
        ("sqrt()", "number of arguments"),
        ("sqrt(x=4)", "not arithmetic"),
        ("max(*[1, 2])", "not arithmetic"),
        ("__import__('os').system('true')", "not arithmetic"),
        ("(1).__class__", "not arithmetic"),
        ("[1][0]", "not arithmetic"),
        ("'a' * 3", "not arithmetic"),
        ("True + 1", "not arithmetic"),
        ("3j", "not arithmetic"),
        ("(lambda: 1)()", "not arithmetic"),
        ("x", "not arithmetic"),
        ("1 if 1 else 2", "not arithmetic"),
        ("1 << 100", "not arithmetic"),
    ],
)
def test_calculate_refuses(expression: str, reason: str) -> None:
    with pytest.raises(ToolError, match=re.escape(reason)):
        calculate(expression)


OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul, "//": operator.floordiv, "%": operator.mod}
TREES: st.SearchStrategy[Any] = st.recursive(
    st.integers(-(10**6), 10**6),
    lambda inner: st.tuples(st.sampled_from(sorted(OPERATORS)), inner, inner),
    max_leaves=8,
)


def written(tree: Any) -> str:
    return f"({written(tree[1])} {tree[0]} {written(tree[2])})" if isinstance(tree, tuple) else f"({tree})"


def worth(tree: Any) -> int:
    return OPERATORS[tree[0]](worth(tree[1]), worth(tree[2])) if isinstance(tree, tuple) else tree


@given(TREES)
def test_whole_numbers_are_exact(tree: Any) -> None:
    try:
        expected = str(worth(tree))
    except ZeroDivisionError:
        with pytest.raises(ToolError, match="division by zero"):
            calculate(written(tree))
    else:
        assert calculate(written(tree)) == expected


@given(st.floats(-1e150, 1e150), st.floats(-1e150, 1e150), st.sampled_from("+-*"))
def test_floats_agree_to_twelve_digits(left: float, right: float, op: str) -> None:
    expected = OPERATORS[op](left, right)
    assert float(calculate(f"({left!r}) {op} ({right!r})")) == pytest.approx(expected, rel=1e-11, abs=0)


@given(st.text(string.digits + "+-*/%^(). eE,xpimaxsqrtround[]'_", max_size=60))
def test_any_text_gives_a_number_or_a_clear_error(text: str) -> None:
    try:
        shown = calculate(text)
    except ToolError as error:
        assert str(error)
    else:
        assert math.isfinite(float(shown)) or len(shown) > 300


def test_nothing_is_evaluated() -> None:
    tree = ast.parse(Path(arithmetic.__file__).read_text())
    called = {node.func.id for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)}
    assert not called & {"eval", "exec", "compile", "getattr", "__import__"}


FORM = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S+ \(UTC[+-]\d\d:\d\d\), [A-Z]\w+day"


@pytest.mark.parametrize("name", ["", "local", "UTC", "utc", "Europe/Paris", "Asia/Kolkata", " America/New_York "])
def test_time(name: str) -> None:
    assert re.fullmatch(FORM, clock.current_time(name))


def test_time_is_that_of_the_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    class Fixed(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Fixed:
            return cls(2026, 7, 14, 10, 30, tzinfo=UTC).astimezone(tz)

    monkeypatch.setattr(clock, "datetime", Fixed)
    assert clock.current_time("Europe/Paris") == "2026-07-14 12:30:00 CEST (UTC+02:00), Tuesday"
    assert clock.current_time("UTC") == "2026-07-14 10:30:00 UTC (UTC+00:00), Tuesday"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("paris", "did you mean Europe/Paris?"),
        ("New York", "did you mean America/New_York?"),
        ("Europe/Pariss", "did you mean Europe/Paris?"),
        ("../../etc/passwd", "names look like"),
    ],
)
def test_unknown_zones_are_clear_errors(name: str, hint: str) -> None:
    with pytest.raises(ToolError, match=re.escape(hint)):
        clock.current_time(name)


def test_without_a_time_zone_database(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clock, "available_timezones", set)
    with pytest.raises(ToolError, match="no time zone database"):
        clock.current_time("Nowhere/Land")
    assert "UTC" in clock.current_time("UTC")


def test_a_random_walk_of_paths_never_leaves(folder: Path) -> None:
    rng = random.Random(7)
    parts = ["..", ".", "src", "parent", "link.py", "work", "secret.py", "", "main.py"]
    inside = folder.resolve()
    place = workspace.Workspace(folder)
    for _ in range(500):
        path = "/".join(rng.choice(parts) for _ in range(rng.randint(1, 6)))
        try:
            assert place.resolve(path).is_relative_to(inside)
        except ToolError:
            continue
