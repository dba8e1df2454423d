"""The agent's own tools: their declarations as shipped, their phrasings, and results in the form the agent gives."""

from __future__ import annotations

from functools import lru_cache

from openk2.chat.builtin_tools import BUILTIN_TOOLS
from openk2.training.data.frames import Frame, Tool, parse_frames
from openk2.training.data.lexicon import Split, hash_says_held, read_words
from openk2.training.data.requests import Request
from openk2.training.data.value import listed
from openk2.training.data.values import Values

_SHOWN_LINES = 4


@lru_cache(maxsize=2)
def builtin_tools(split: Split) -> tuple[Tool, ...]:
    """The agent's own tools with the phrasings of `split`; training has those of `builtin_train.txt` besides."""
    specs = {t.name: t for t in BUILTIN_TOOLS}
    more = (
        {f.names: f.asks for f in parse_frames("builtin", read_words("builtin_train.txt"))} if split == "train" else {}
    )
    tools = []
    for frame in parse_frames("builtin", read_words("builtin.txt")):
        asks = tuple(a for a in frame.asks if hash_says_held(a.text) == (split == "held")) + more.get(frame.names, ())
        chosen = Frame("builtin", frame.names, frame.descriptions, frame.slots, asks or frame.asks, frame.results)
        tools.append(Tool(chosen, specs[frame.names[0]], {s.name: s.name for s in frame.slots}))
    return tuple(tools)


def builtin_result(request: Request, values: Values) -> tuple[str, str]:
    """What the agent's tool would return for `request`, invented, and the sentence that reports it."""
    rng = values.rng
    arguments = request.arguments
    match request.tool.name:
        case "search_files":
            if rng.random() < 0.15:
                kinds = f"{arguments['lang']} files" if "lang" in arguments else "files"
                result = f"no matches for {arguments['pattern']!r} in {rng.randint(1, 200)} {kinds}"
                return result, "There are no matches."
            lines, paths = [], []
            for _ in range(rng.choice((1, 1, 2, 2, 3, 3, 4, 5))):
                path = values.draw("path").value.rpartition(".")[0] + "." + str(arguments.get("lang", "py"))
                before, after = rng.choice(
                    (
                        ("# ", f": {values.draw('said').value}"),
                        ("// ", f" {values.draw('topic').value}"),
                        ("", "()"),
                        (f"{values.draw('word').value} = ", ""),
                        ("", f" {values.draw('title').value}"),
                    )
                )
                paths.append(path)
                lines.append(f"{path}:{rng.randint(1, 400)}: {before}{arguments['pattern']}{after}")
            return "\n".join(lines), f"Found in {listed(list(dict.fromkeys(paths)))}."
        case "read_file":
            if rng.random() < 0.05:
                return f"{arguments['path']} is empty", f"{arguments['path']} is empty."
            lines = [
                rng.choice(
                    (
                        f"# {values.draw('title').value}",
                        str(values.draw("said").value),
                        str(values.draw("title").value),
                        "",
                    )
                )
                for _ in range(rng.choice((1, 2, 3, 5)))
            ]
            lines[0] = lines[0] or str(values.draw("title").value)
            text = "\n".join(lines)
            shown = "\n".join(lines[:_SHOWN_LINES])
            return text, f"{arguments['path']} says:\n{shown}" + ("\n..." if len(lines) > _SHOWN_LINES else "")
        case "list_files":
            if rng.random() < 0.05:
                return "the folder is empty", "The folder is empty."
            names = [
                values.draw("file").value if rng.random() < 0.7 else f"{values.draw('word').value}/"
                for _ in range(rng.choice((1, 2, 3, 4, 6)))
            ]
            return "\n".join(names), "The files are " + ", ".join(names) + "."
        case "calculate":
            result = str(values.draw("total").value)
            return result, f"The result is {result}."
        case _:
            clock = str(values.draw("clock").value)
            return clock, f"It is {clock}."
