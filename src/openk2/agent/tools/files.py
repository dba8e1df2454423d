"""search_files, read_file, list_files."""

from __future__ import annotations

from collections.abc import Mapping

from openk2.agent.declare import ToolError
from openk2.agent.tools.workspace import SKIPPED_FOLDERS, Workspace

MAX_MATCHES = 100
MAX_LINE_CHARS = 200
MAX_ENTRIES = 200
MAX_SEARCHED_FILES = 20_000

EXTENSIONS_OF: Mapping[str, tuple[str, ...]] = {
    "python": (".py", ".pyi"),
    "javascript": (".js", ".mjs", ".cjs", ".jsx"),
    "typescript": (".ts", ".mts", ".cts", ".tsx"),
    "rust": (".rs",),
    "golang": (".go",),
    "ruby": (".rb",),
    "kotlin": (".kt", ".kts"),
    "csharp": (".cs",),
    "c#": (".cs",),
    "c++": (".cpp", ".cc", ".cxx", ".hpp", ".hh", ".h"),
    "cpp": (".cpp", ".cc", ".cxx", ".hpp", ".hh", ".h"),
    "c": (".c", ".h"),
    "shell": (".sh", ".bash", ".zsh"),
    "bash": (".sh", ".bash"),
    "markdown": (".md", ".markdown"),
    "md": (".md", ".markdown"),
    "text": (".txt",),
    "yaml": (".yaml", ".yml"),
    "yml": (".yaml", ".yml"),
    "html": (".html", ".htm"),
}
"""Names of languages, and extensions that are written in more than one way; any other word is an extension itself."""
_ALL = frozenset({"", "*", "all", "any"})


def extensions(lang: str) -> frozenset[str]:
    """File extensions (lower case, with the dot) that `lang` means; empty for all files."""
    word = lang.strip().lower()
    if word in _ALL:
        return frozenset()
    word = word.removeprefix("*").removeprefix(".")
    return frozenset(EXTENSIONS_OF.get(word, (f".{word}",)))


def search_files(workspace: Workspace, pattern: str, lang: str = "") -> str:
    """Lines that contain `pattern` (plain text, case-sensitive), as `path:line: text`."""
    if not pattern:
        raise ToolError("pattern must not be empty")
    wanted = extensions(lang)
    shown: list[str] = []
    matches = searched = 0
    complete = True
    for path in workspace.files(wanted):
        if searched == MAX_SEARCHED_FILES:
            complete = False
            break
        searched += 1
        try:
            text = workspace.read_text(path)
        except (OSError, ToolError):  # binary, huge or not readable for us
            continue
        if pattern not in text:
            continue
        # Not splitlines(): it also breaks at form feeds and the like, and editors do not number lines so.
        for number, line in enumerate(text.split("\n"), start=1):
            if pattern in line:
                matches += 1
                if matches <= MAX_MATCHES:
                    shown.append(f"{workspace.relative(path)}:{number}: {_excerpt(line, pattern)}")
    if not matches:
        kinds = f"{lang} files" if wanted else "files"
        return f"no matches for {pattern!r} in {searched} {kinds}"
    if matches > len(shown):
        shown.append(f"[{len(shown)} of {matches} matches shown]")
    if not complete:
        shown.append(f"[only the first {MAX_SEARCHED_FILES} files were searched]")
    return "\n".join(shown)


def _excerpt(line: str, pattern: str) -> str:
    line = line.strip()
    if len(line) <= MAX_LINE_CHARS:
        return line
    # Stripping can cut a pattern that has spaces at its ends; the line's beginning is then good enough.
    start = max(0, line.find(pattern) - MAX_LINE_CHARS // 2)
    piece = line[start : start + MAX_LINE_CHARS]
    return f"{'...' if start else ''}{piece}{'...' if start + MAX_LINE_CHARS < len(line) else ''}"


def read_file(workspace: Workspace, path: str) -> str:
    """The text of a file."""
    text = workspace.read_text(workspace.resolve(path))
    return text or f"{path} is empty"


def list_files(workspace: Workspace, path: str) -> str:
    """What is in a folder, one name a line, folders with a slash at the end."""
    folder = workspace.resolve(path or ".")
    if not folder.is_dir():
        raise ToolError(f"{path!r} is a file; read_file shows it")
    names = sorted(
        f"{entry.name}/" if entry.is_dir() else entry.name
        for entry in folder.iterdir()
        if entry.name not in SKIPPED_FOLDERS
    )
    if not names:
        return "the folder is empty"
    if len(names) > MAX_ENTRIES:
        names = [*names[:MAX_ENTRIES], f"[{MAX_ENTRIES} of {len(names)} entries shown]"]
    return "\n".join(names)
