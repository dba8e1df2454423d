"""The command-line flags of published engine packages, read from their wheels without importing anything.

    pip download --no-deps --dest WHEELS vllm==0.33.0 sglang==0.5.23 vllm-router==0.1.17 sglang-router==0.3.2
    python dev/read_engine_flags.py WHEELS/*.whl --write src/openk2/planner/deploy/engine_flags.json

The programs build their argument parsers from dataclasses (vLLM's `get_kwargs`, SGLang's `A[type, Arg(...)]`) and from
plain `add_argument` calls; both are read as syntax trees. The file holds for each program and version what each flag
takes: `switch`, `on-off` (also --no-...), `int`, `float`, `text`, `json` or `choice A B`, followed by `many`, `append`
or `optional` where it takes several values, may be repeated, or may stand without one.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

Fields = dict[str, ast.expr]
PLAIN_TYPES = {"int": "int", "human_readable_int": "int", "float": "float", "json.loads": "json"}


class Sources:
    """Python files of one wheel, by their path."""

    def __init__(self, wheel: Path) -> None:
        name, self.version = wheel.name.split("-")[:2]
        self.program = name.replace("_", "-")
        self._zip = zipfile.ZipFile(wheel)
        self.names = self._zip.namelist()

    def tree(self, path: str) -> ast.Module:
        return ast.parse(self._zip.read(path).decode())

    def trees(self, *folders: str) -> Iterator[ast.Module]:
        """Of every Python file below the folders, and of files named themselves."""
        for name in self.names:
            if name.endswith(".py") and any(name == one or name.startswith(f"{one}/") for one in folders):
                yield self.tree(name)


class Names:
    """Classes' annotated fields, and module-level constants, over several files."""

    def __init__(self) -> None:
        self.fields: dict[str, Fields] = {}
        self.bases: dict[str, list[str]] = {}
        self.constants: dict[str, ast.expr] = {}

    def add(self, tree: ast.Module) -> None:
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                self.bases[node.name] = [base.id for base in node.bases if isinstance(base, ast.Name)]
                self.fields[node.name] = {
                    item.target.id: item.annotation
                    for item in node.body
                    if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
                }
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
                self.constants[node.targets[0].id] = node.value
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
                self.constants[node.target.id] = node.value

    def fields_of(self, name: str) -> Fields:
        """With those of its bases."""
        found: Fields = {}
        for base in self.bases.get(name, ()):
            found |= self.fields_of(base)
        return found | self.fields.get(name, {})

    def values(self, node: ast.expr | None) -> list[str] | None:
        """A list of choices, as far as it can be read; None where it is computed."""
        if isinstance(node, ast.Name):
            return self.values(self.constants.get(node.id))
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            found = [item.value for item in node.elts if isinstance(item, ast.Constant)]
            return [str(value) for value in found if value is not None] if len(found) == len(node.elts) else None
        return None

    def hints(self, node: ast.expr) -> Iterator[str]:
        """The leaves of a type: int, bool, literal:VALUE, list, dict, a class's name ..."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            node = ast.parse(node.value, mode="eval").body
        if isinstance(node, ast.BinOp):
            yield from self.hints(node.left)
            yield from self.hints(node.right)
        elif isinstance(node, ast.Name):
            if node.id in self.constants and node.id not in self.fields:
                yield from self.hints(self.constants[node.id])
            else:
                yield node.id
        elif isinstance(node, ast.Constant):
            yield "None"
        elif isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name):
            outer = node.value.id
            inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
            if outer in ("Optional", "Union", "SkipValidation"):
                for item in inner:
                    yield from self.hints(item)
            elif outer == "Annotated":
                yield from self.hints(inner[0])
            elif outer == "Literal":
                for item in inner:
                    if isinstance(item, ast.Constant):
                        yield f"literal:{item.value}"
                    else:
                        yield from self.hints(item)
            else:
                yield outer.lower()
        else:
            yield ast.unparse(node)

    def kind(self, annotation: ast.expr) -> str:
        """What a flag made from a field of this type takes, by the rules of vLLM's `get_kwargs`."""
        hints = list(self.hints(annotation))
        if any(hint in self.fields and hint not in self.constants for hint in hints):
            return "json"
        if set(hints) == {"bool", "str", "None"}:
            return "text optional"
        if "bool" in hints:
            return "on-off"
        literals = [hint.removeprefix("literal:") for hint in hints if hint.startswith("literal:")]
        if literals:
            return "text" if "str" in hints else " ".join(["choice", *literals])
        if {"list", "tuple", "set"} & set(hints):
            return "text many"
        for plain in ("int", "float"):
            if plain in hints:
                return plain
        return "json" if "dict" in hints and "str" not in hints else "text"


def text_of(node: ast.expr) -> str | None:
    """A string, or an f-string whose fields are empty (a prefix that the program leaves out)."""
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) for part in node.values if isinstance(part, ast.Constant))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def keyword_kind(call: ast.Call, names: Names) -> str:
    """What a flag takes whose `add_argument` says so in keywords."""
    given = {keyword.arg: keyword.value for keyword in call.keywords if keyword.arg}
    action = ast.unparse(given["action"]).strip("'\"") if "action" in given else ""
    if "BooleanOptionalAction" in action:
        return "on-off"
    if action in ("store_true", "store_false") or "StoreTrue" in action or "DeprecatedAction" in action:
        return "switch"
    choices = names.values(given.get("choices"))
    type_name = ast.unparse(given["type"]) if "type" in given else "str"
    if choices:
        kind = " ".join(["choice", *choices])
    else:
        kind = PLAIN_TYPES.get(type_name, "text")
    nargs = given.get("nargs")
    if isinstance(nargs, ast.Constant):
        kind += {"+": " many", "*": " many", "?": " optional", 1: ""}.get(nargs.value, "")
    return f"{kind} append" if action == "append" else kind


def read_calls(function: ast.AST, names: Names) -> dict[str, str]:
    """Every `add_argument` of a function: flags joined by / -> kind."""
    groups: dict[str, Fields] = {}
    found: dict[str, str] = {}
    for node in ast.walk(function):
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            called = ast.unparse(node.value.func)
            if called == "get_kwargs" and isinstance(node.targets[0], ast.Name):
                groups[node.targets[0].id] = names.fields_of(ast.unparse(node.value.args[0]))
    for node in ast.walk(function):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith(".add_argument")):
            continue
        flags = [flag for flag in map(text_of, node.args) if flag and flag.startswith("-")]
        if not flags or flags == ["--"]:
            continue
        spread: ast.expr | None = next((keyword.value for keyword in node.keywords if keyword.arg is None), None)
        if isinstance(spread, ast.Dict):  # **{**kwargs["field"], "default": None}
            spread = next((value for key, value in zip(spread.keys, spread.values, strict=True) if key is None), None)
        kind = keyword_kind(node, names)
        if isinstance(spread, ast.Subscript) and isinstance(spread.value, ast.Name):
            field = groups.get(spread.value.id, {}).get(str(ast.literal_eval(spread.slice)))
            kind = "text" if field is None else names.kind(field)
        found["/".join(flags)] = kind
    return found


def functions(tree: ast.Module, *wanted: str) -> Iterator[ast.FunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name in wanted:
            yield node


def read_vllm(sources: Sources) -> dict[str, str]:
    names = Names()
    front = next(name for name in sources.names if name.endswith("/cli_args.py"))
    for tree in sources.trees("vllm/config", "vllm/engine/arg_utils.py", front):
        names.add(tree)
    found: dict[str, str] = {}
    for path in ("vllm/engine/arg_utils.py", front):
        for function in functions(sources.tree(path), "add_cli_args", "make_arg_parser"):
            found |= read_calls(function, names)
    single = {
        str(ast.literal_eval(node.value.slice))
        for function in functions(sources.tree(front), "_customize_cli_kwargs", "add_cli_args")
        for deletion in ast.walk(function)
        if isinstance(deletion, ast.Delete)
        for node in deletion.targets
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Subscript)
    }
    for name, annotation in names.fields_of("FrontendArgs").items():
        found.setdefault(f"--{name.replace('_', '-')}", "text" if name in single else names.kind(annotation))
    return found


def read_sglang(sources: Sources) -> dict[str, str]:
    names = Names()
    for tree in sources.trees("sglang/srt/arg_groups", "sglang/srt/server_args.py"):
        names.add(tree)
    found: dict[str, str] = {}
    for fields in names.fields.values():
        for name, annotation in fields.items():
            if not (isinstance(annotation, ast.Subscript) and ast.unparse(annotation.value) == "A"):
                continue
            inner, about = annotation.slice.elts[:2]  # type: ignore[attr-defined]
            given = {k.arg: k.value for k in about.keywords} if isinstance(about, ast.Call) else {}
            if "no_cli" in given:
                continue
            flag = text_of(given["cli_name"]) if "cli_name" in given else f"--{name.replace('_', '-')}"
            kind = names.kind(inner).replace("on-off", "switch")
            if "action" in given:
                kind = keyword_kind(ast.Call(func=about, args=[], keywords=about.keywords), names)  # type: ignore[attr-defined]
            elif choices := names.values(given.get("choices")):
                kind = " ".join(["choice", *choices])
            elif "type_parser" in given and kind == "text many":
                kind = "json"
            found["/".join([str(flag), *(names.values(given.get("aliases")) or [])])] = kind
    for function in functions(sources.tree("sglang/srt/server_args.py"), "add_cli_args"):
        found |= read_calls(function, names)
    return found


def read_router(sources: Sources) -> dict[str, str]:
    folder = sources.program.replace("-", "_")
    names = Names()
    found: dict[str, str] = {}
    for tree in sources.trees(folder):
        names.add(tree)
    for tree in sources.trees(folder):
        for function in functions(tree, "add_cli_args", "parse_router_args"):
            found |= read_calls(function, names)
    return found


PARSER_TABLES = re.compile(r"(TOOL|REASONING)_PARSERS?_(TO_REGISTER|NAMES)|ToolCallParserEnum|DetectorMap")


def read_parsers(sources: Sources, kind: str) -> list[str]:
    """Names that --tool-call-parser (`tool`) or --reasoning-parser (`reasoning`) takes."""
    files = [name for name in sources.names if name.endswith(".py") and kind in name.lower()]
    if kind == "tool":
        files += [name for name in sources.names if name.endswith(".py") and "/function_call/" in name]
    found: set[str] = set()
    for tree in map(sources.tree, files):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("ParserManager.register_module"):
                for argument in (*node.args, *(k.value for k in node.keywords if k.arg == "name")):
                    for item in argument.elts if isinstance(argument, ast.List | ast.Tuple) else [argument]:
                        found |= {text} if (text := text_of(item)) else set()
            target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
            if isinstance(target, ast.Name) and PARSER_TABLES.search(target.id):
                value = node.value  # type: ignore[attr-defined]
                keys = value.keys if isinstance(value, ast.Dict) else getattr(value, "elts", [])
                found |= {text for key in keys if key is not None and (text := text_of(key))}
    return sorted(found)


READERS = {"vllm": read_vllm, "sglang": read_sglang, "vllm-router": read_router, "sglang-router": read_router}


def read_wheel(wheel: Path) -> tuple[str, str, dict[str, object]]:
    """(program, version, what the file holds of it). Raises KeyError for a package that is none of the programs."""
    sources = Sources(wheel)
    flags = READERS[sources.program](sources)
    by_kind: dict[str, list[str]] = {}
    for flag, kind in sorted(flags.items()):
        by_kind.setdefault(kind, []).append(flag)
    entry: dict[str, object] = {
        "source": f"wheel {sources.program} {sources.version} on PyPI",
        "flags": {kind: " ".join(names) for kind, names in sorted(by_kind.items())},
    }
    if "router" not in sources.program:
        for kind in ("tool", "reasoning"):
            entry[f"{kind}_parsers"] = " ".join(read_parsers(sources, kind))
    return sources.program, sources.version, entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("wheels", type=Path, nargs="+")
    parser.add_argument("--write", type=Path, help="the file; entries of other versions in it stay")
    arguments = parser.parse_args()
    known: dict[str, dict[str, object]] = {}
    if arguments.write is not None and arguments.write.exists():
        known = json.loads(arguments.write.read_text(encoding="utf-8"))
    for wheel in arguments.wheels:
        program, version, entry = read_wheel(wheel)
        known.setdefault(program, {})[version] = entry
    text = json.dumps(known, indent=1, sort_keys=True) + "\n"
    if arguments.write is None:
        print(text, end="")
    else:
        arguments.write.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
