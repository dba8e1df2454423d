"""Documents in files: every format read back, faults named by file and line, splits and orders that hold still."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from openk2.errors import DataError, EnvironmentFault
from openk2.training.files import Order, collect_conversations, collect_texts, expand_paths, split
from openk2.training.files.documents import SPAN_BYTES

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"days": {"type": "integer"}}, "required": ["days"]},
    },
}


def call(arguments: Any, name: str = "weather") -> dict[str, Any]:
    return {"id": "call_x", "type": "function", "function": {"name": name, "arguments": arguments}}


def declared(parameters: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "weather", "parameters": parameters}}


def conversation(*calls: dict[str, Any], tools: Sequence[Any] = (TOOL,)) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "developer", "content": "S"},
            {"role": "user", "content": [{"type": "text", "text": "And tomorrow?"}]},
            {"role": "assistant", "content": None, "tool_calls": list(calls)},
            {"role": "tool", "tool_call_id": "call_x", "content": "rain"},
            {"role": "assistant", "content": "Rain."},
        ],
        "tools": list(tools),
        "source": "ours",
    }


def lines(path: Path, *values: Any) -> Path:
    path.write_text("".join((v if isinstance(v, str) else json.dumps(v)) + "\n" for v in values))
    return path


def test_json_lines_are_read_back_in_any_order(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", {"text": "one"}, "", {"text": "  "}, {"text": "zwei ä", "id": 7})
    other = tmp_path / "notes.md"
    other.write_text("# three\n")
    documents = collect_texts([file, other])
    assert [documents.read(i).text for i in (2, 1, 0)] == ["# three\n", "zwei ä", "one"]
    assert [documents.where(i) for i in range(3)] == [f"{file}, line 1", f"{file}, line 4", f"{other}, byte 0"]


def test_a_long_text_is_cut_without_loss(tmp_path: Path) -> None:
    words = "".join(f"línea {i}\n" for i in range(20_000)) + "ä" * (SPAN_BYTES + 7)
    (tmp_path / "long.txt").write_text(words)
    documents = collect_texts([tmp_path / "long.txt"])
    parts = [documents.read(i) for i in range(len(documents))]
    assert "".join(p.text for p in parts) == words and len(parts) > 3
    assert [p.ends for p in parts] == [False] * (len(parts) - 1) + [True]
    assert all(len(p.text.encode()) <= SPAN_BYTES for p in parts)
    assert parts[0].text.endswith("\n")


def test_parquet_columns_are_texts(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    file = tmp_path / "a.parquet"
    parquet.write_table(arrow.table({"body": ["one", None, "", "two"], "n": [1, 2, 3, 4]}), file)
    documents = collect_texts([file], "body")
    assert [documents.read(i).text for i in range(len(documents))] == ["one", "two"]
    assert documents.where(1) == f"{file}, row 4"
    with pytest.raises(DataError, match="no column 'text'; it has body, n"):
        collect_texts([file])
    with pytest.raises(DataError, match="holds int64, not text"):
        collect_texts([file], "n")
    file.write_bytes(file.read_bytes()[:50])
    with pytest.raises(DataError, match="not a readable parquet file"):
        collect_texts([file], "body")


def test_parquet_without_pyarrow_says_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(EnvironmentFault, match=r"pip install 'openk2\[parquet\]'"):
        collect_texts([tmp_path / "a.parquet"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": "cut', "line 2: not JSON"),
        ('{"body": "x"}', "line 2: no text under 'text'; it has body"),
        ('{"text": 3}', "line 2: no text under 'text'"),
        ("[1]", "line 2: no text under 'text'"),
        (r'{"text": "a \ud83d b"}', r"line 2: \\ud83d is half a character"),
    ],
)
def test_a_broken_line_of_text_is_named(tmp_path: Path, line: str, message: str) -> None:
    file = lines(tmp_path / "a.jsonl", {"text": "fine"}, line)
    with pytest.raises(DataError, match=message) as found:
        collect_texts([file])
    assert str(file) in str(found.value)


def test_files_without_documents_are_refused(tmp_path: Path) -> None:
    empty = lines(tmp_path / "a.jsonl", "")
    with pytest.raises(DataError, match=r"a\.jsonl is empty"):
        collect_texts([empty])
    with pytest.raises(DataError, match="holds no conversations"):
        collect_conversations([empty])
    (tmp_path / "b.txt").write_bytes(b" \n")
    with pytest.raises(DataError, match=r"b\.txt is empty"):
        collect_texts([tmp_path / "b.txt"])
    (tmp_path / "c.txt").write_bytes(b"fine\n\xff\xfe")
    with pytest.raises(DataError, match=r"c\.txt, byte 5: not UTF-8"):
        collect_texts([tmp_path / "c.txt"])
    with pytest.raises(DataError, match="No such file"):
        collect_texts([tmp_path / "d.txt"])


def test_patterns_name_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.txt", "a.txt", "c.md"):
        (tmp_path / name).write_text("x")
    monkeypatch.chdir(tmp_path)
    assert [p.name for p in expand_paths(["c.md", "*.txt", "a.txt"])] == ["c.md", "a.txt", "b.txt"]
    assert [p.name for p in expand_paths([f"{tmp_path}/*.md"])] == ["c.md"]
    (tmp_path / "d[1].md").write_text("x")
    assert [p.name for p in expand_paths(["d[1].md"])] == ["d[1].md"]
    for wrong in ("*.csv", "none.txt", ".", "**.txt", ""):
        with pytest.raises(DataError):
            expand_paths([wrong])


def test_conversations_are_read_with_canonical_ids(tmp_path: Path) -> None:
    file = lines(tmp_path / "a.jsonl", conversation(call('{"days": 1}'), call({"days": 2})))
    made = collect_conversations([file]).read(0)
    assert [m.role for m in made.messages] == ["system", "user", "assistant", "tool", "assistant"]
    assert made.messages[1].text == "And tomorrow?"
    assert [(c.id, c.arguments) for c in made.messages[2].tool_calls] == [
        ("functions.weather:0", '{"days": 1}'),
        ("functions.weather:1", '{"days": 2}'),
    ]
    assert made.messages[3].tool_call_id == "functions.weather:0"
    assert [t.name for t in made.tools] == ["weather"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (conversation(call('{"days": "two"}')), r"messages\[2\]: weather: \['days'\]"),
        (conversation(call("{}")), r"messages\[2\]: weather: .*required"),
        (conversation(call('{"days": 1')), r"messages\[2\]: weather: the arguments are no JSON"),
        (conversation(call("{}", name="whether")), r"messages\[2\]: calls 'whether', which is no declared tool"),
        (conversation(call('{"days": 1}'), tools=[]), "no declared tool"),
        (conversation(call('{"days": 1}'), tools=[{"name": "weather"}]), r"tools\[0\] is no tool"),
        (conversation(call("{}"), tools=[TOOL, TOOL]), "'weather' is declared twice"),
        (
            conversation(call('{"days": 1}'), tools=[declared({"type": "objct"})]),
            r"tools\[0\]: the parameters of 'weather' are no JSON schema: \['type'\]: \"objct\"",
        ),
        (conversation(call("{}"), tools=[declared({"properties": []})]), r"no JSON schema: \['properties'\]"),
        (conversation(call("{}"), tools=[declared({"pattern": "("})]), r"no JSON schema: \['pattern'\]"),
        (conversation(call("{}"), tools=[declared({"$ref": "#/$defs/x"})]), r"no JSON schema: .*#?/\$defs/x"),
        (conversation(call("{}"), tools=[declared({"$ref": "http://a.b/c"})]), r"no JSON schema: .*http://a.b/c"),
        (conversation(call("{}"), tools=[declared([])]), "no JSON schema: it is no object"),
        (conversation(), r"messages\[2\]: .*without content or tool_calls"),
        ({"messages": []}, "not a conversation"),
        ({"messages": [{"role": "user", "content": "hi"}]}, "nothing to learn"),
        ({"messages": [{"role": "bot", "content": "hi"}]}, "role must be one of"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "text parts"),
        (
            {
                "messages": [
                    {"role": "tool", "content": "x", "tool_call_id": "1"},
                    {"role": "assistant", "content": "y"},
                ]
            },
            "answers no earlier tool call",
        ),
    ],
)
def test_conversations_that_teach_wrong_calls_are_refused(tmp_path: Path, value: Any, message: str) -> None:
    file = lines(tmp_path / "a.jsonl", conversation(call('{"days": 1}')), value)
    with pytest.raises(DataError, match=message) as found:
        collect_conversations([file])
    assert f"{file}, line 2: " in str(found.value)


@pytest.mark.parametrize("parameters", [{}, {"properties": {"days": {"minimum": 0, "exclusiveMinimum": True}}}])
def test_schemas_of_older_dialects_and_empty_ones_are_taken(tmp_path: Path, parameters: dict[str, Any]) -> None:
    talk = conversation(call('{"days": 1}'), tools=[declared(parameters)])
    assert len(collect_conversations([lines(tmp_path / "a.jsonl", talk)])) == 1


def test_the_split_follows_the_content(tmp_path: Path) -> None:
    texts = [{"text": f"document {i}"} for i in range(2000)]
    documents = collect_texts([lines(tmp_path / "a.jsonl", *texts)])
    train, held = split(documents.digests, 0.1)
    assert sorted(train + held) == list(range(2000)) and 150 < len(held) < 250
    moved = collect_texts([lines(tmp_path / "b.jsonl", *texts[::-1], *texts[:50])])
    _, other = split(moved.digests, 0.1)
    assert {moved.read(i).text for i in other} == {documents.read(i).text for i in held}
    assert documents.fingerprint != moved.fingerprint
    assert split(documents.digests, 0.0) == (list(range(2000)), [])
    with pytest.raises(DataError, match="holds out none of 3"):
        split([1, 2, 3], 1e-9)


def test_an_order_is_a_function_of_seed_and_epoch() -> None:
    order = Order(range(0, 200, 2), seed=5)
    drawn = []
    for _ in range(250):
        drawn.append(order.current)
        order.advance()
    assert sorted(drawn[:100]) == sorted(drawn[100:200]) == list(range(0, 200, 2))
    assert drawn[:100] != drawn[100:200] and drawn[:100] != sorted(drawn[:100])
    assert (order.epoch, order.index) == (2, 50)
    again = Order(range(0, 200, 2), seed=5)
    again.seek(1, 30)
    assert again.current == drawn[130]
    assert Order(range(0, 200, 2), seed=6).current != drawn[0]
    assert drawn[:4] == FIRST, "the order is part of a run: it must not change with versions"


FIRST = [74, 78, 156, 64]
