"""The import table of ARCHITECTURE.md, and what must stay light."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "openk2"

EVERYBODY = {"config", "errors"}
TABLE: dict[str, set[str]] = {
    "errors": set(),
    "config": set(),
    "assets": set(),
    "tokenizer": set(),
    "chat": {"tokenizer"},
    "planner": set(),
    "ops": {"_native"},
    "quant": {"ops"},
    "parallel": {"ops"},
    "models": {"ops", "quant", "parallel"},
    "checkpoint": {"models", "quant", "parallel"},
    "engine": {"models", "ops", "quant", "checkpoint", "parallel"},
    "llm": {"tokenizer", "chat", "engine", "checkpoint", "assets"},
    "bench": {"llm", "engine", "models", "checkpoint", "planner"},
    "quantize": {"models", "quant", "checkpoint", "llm", "evals"},
    "client": {"chat", "tokenizer"},
    "server": {"llm", "client", "chat", "tokenizer"},
    "agent": {"chat"},
    "evals": {"chat", "agent", "client"},
    "training": {
        *("models", "ops", "quant", "parallel", "checkpoint"),
        *("tokenizer", "chat", "evals", "engine"),
    },
}
"""Room -> the rooms that it may import, besides itself, `config` and `errors`."""

TENSOR_ROOMS = {"ops", "quant", "parallel", "models", "checkpoint", "engine", "llm", "bench", "quantize", "training"}
TENSOR_PACKAGES = {"torch", "safetensors", "transformers", "triton"}
VERB_TOP_LEVEL = {"typer"}
"""What a verb's module may import beside the standard library before its function is called."""


@dataclass(frozen=True)
class Import:
    module: str
    line: int
    in_function: bool
    for_types: bool


def imports_of(source: str, package: str) -> Iterator[Import]:
    """Every import, wherever it stands; a name imported from `openk2` itself counts as its room."""

    def walk(node: ast.AST, in_function: bool, for_types: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                for alias in child.names:
                    yield Import(alias.name, child.lineno, in_function, for_types)
            elif isinstance(child, ast.ImportFrom):
                base = child.module or ""
                if child.level:
                    parts = package.split(".")
                    base = ".".join([*parts[: len(parts) - child.level + 1], *filter(None, [base])])
                names = [f"openk2.{alias.name}" for alias in child.names] if base == "openk2" else [base]
                for name in names:
                    yield Import(name, child.lineno, in_function, for_types)
            else:
                is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                is_types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
                yield from walk(child, in_function or is_function, for_types or is_types)

    yield from walk(ast.parse(source), False, False)


def room_of(module: str) -> str | None:
    """The room of an imported module of ours; None for others' and for `openk2` itself."""
    parts = module.split(".")
    return parts[1] if parts[0] == "openk2" and len(parts) > 1 else None


def modules() -> Iterator[tuple[str, str, Path]]:
    """(room, dotted package, file) of every source file."""
    for file in sorted(PACKAGE.rglob("*.py")):
        relative = file.relative_to(PACKAGE)
        yield relative.parts[0].removesuffix(".py"), ".".join(("openk2", *relative.parts[:-1])), file


def violations(room: str, package: str, source: str) -> list[str]:
    """What a file imports against the table."""
    found = []
    for imported in imports_of(source, package):
        target, top = room_of(imported.module), imported.module.partition(".")[0]
        where = f"line {imported.line}: {room} imports {imported.module}"
        if room == "cli":
            light = top in sys.stdlib_module_names or top in VERB_TOP_LEVEL or target in {"cli", *EVERYBODY}
            if not (imported.in_function or imported.for_types or light):
                found.append(f"{where} outside a function")
            continue
        if (
            target is not None
            and target not in {room, *EVERYBODY, *TABLE[room]}
            and imported.module != "openk2.__version__"
        ):
            found.append(where)
        if room in EVERYBODY and target is None and top not in sys.stdlib_module_names:
            found.append(where)
        if top in TENSOR_PACKAGES and room not in TENSOR_ROOMS:
            found.append(where)
    return found


def test_import_table() -> None:
    found = []
    for room, package, file in modules():
        if room in ("__init__", "__main__"):  # the front door, lazy; see the tests of what it loads
            continue
        found += [f"{file.relative_to(PACKAGE)} {text}" for text in violations(room, package, file.read_text())]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("room", "source"),
    [
        ("chat", "import torch"),
        ("chat", "def f():\n    from openk2.engine import Engine"),
        ("chat", "from openk2 import llm"),
        ("chat", "from ..engine import Engine"),
        ("config", "import numpy"),
        ("engine", "from openk2.tokenizer import Tokenizer"),
        ("agent", "from openk2.llm import LLM"),
        ("server", "import safetensors.torch"),
        ("cli", "import rich"),
        ("cli", "from openk2.llm import LLM"),
    ],
)
def test_the_walk_sees_a_violation(room: str, source: str) -> None:
    assert violations(room, f"openk2.{room}", source)


def test_a_verb_may_import_everything_in_its_function() -> None:
    assert not violations("cli", "openk2.cli", "def command():\n    from openk2.llm import LLM\n    import rich")


@pytest.mark.parametrize("code", ["import openk2", "from openk2.cli.main import app"])
def test_front_doors_load_nothing_heavy(code: str) -> None:
    script = f"import sys\n{code}\nprint(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "pydantic", "fastapi", "numpy", "rich", "httpx2", "jinja2"} & set(loaded)


def test_public_names_lead_somewhere() -> None:
    import openk2

    assert set(openk2._HOMES) == set(openk2.__all__) - {"__version__"}
    for name in openk2.__all__:
        assert getattr(openk2, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        openk2.nothing  # noqa: B018
