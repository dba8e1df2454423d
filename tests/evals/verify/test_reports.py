"""JUnit and HTML of a report, and schemas from a folder."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from openk2.cli.main import app
from openk2.errors import DataError
from openk2.evals.verify import Check, Figure, Report, cases_in, html_page, junit_xml
from openk2.evals.verify.figures import is_loop
from openk2.evals.verify.records import summarize

REPORT = Report(
    url="http://user:secret@host:1/v1",
    model="<model>",
    summary=summarize([], "<model>", "start", "end", 1.0),
    checks=(
        Check("answers", "no markers", 9, ("line 1: <|im_end|> \x00 & \ud800", "line 2")),
        Check("answers", "schema", 9),
        Check("refusals", "a prompt beyond the window", 0, note="no window"),
    ),
    figures=(Figure("loops", 0.25, "answers that repeat", 8), Figure("time", 1.5, "seconds", 8, percent=False)),
)


def test_junit_says_what_failed_and_what_was_skipped() -> None:
    root = ElementTree.fromstring(junit_xml(REPORT))
    answers, refusals = root
    assert answers.attrib | {"name": ""} == {"name": "", "tests": "2", "failures": "1", "skipped": "0", "errors": "0"}
    assert [case.get("name") for case in answers] == ["no markers", "schema"]
    failure = answers[0].find("failure")
    assert failure is not None and "<|im_end|>" in failure.attrib["message"] and "line 2" in (failure.text or "")
    assert refusals[0].find("skipped") is not None and answers[1].find("failure") is None


def test_the_page_stands_alone_and_escapes_what_a_model_said() -> None:
    page = html_page(REPORT)
    assert not re.search(r"(src|href)=|<script|url\(|@import", page)
    assert "&lt;|im_end|&gt;" in page and "<|im_end|>" not in page and "&lt;model&gt;" in page
    assert "25.0%" in page and "no window" in page
    tags: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.append(tag)  # type: ignore[method-assign]
    parser.feed(page)
    assert tags.count("table") == 3


def test_no_report_shows_a_password() -> None:
    assert "secret" not in html_page(REPORT) + junit_xml(REPORT) + str(REPORT.to_json())


def test_schema_cases_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "valid.jsonl").write_text('{"type": "object"}\n\n{"anyOf": []}\n')
    (tmp_path / "one.json").write_text('{"type":\n "string"}')
    cases = cases_in(tmp_path)
    assert [(case.name, case.schema) for case in cases] == [
        ("one.json:1", {"type": "string"}),
        ("sub/valid.jsonl:1", {"type": "object"}),
        ("sub/valid.jsonl:3", {"anyOf": []}),
    ]
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(DataError, match=r"bad\.json"):
        cases_in(tmp_path)
    with pytest.raises(DataError, match="holds no schema cases"):
        cases_in(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("text", "loop"),
    [
        ("I will edit the file. " * 4, True),
        ("Well. " + "na na na na " * 6, True),
        ("I will edit the file. " * 3, False),
        ("One, two, three, four, five, six, seven.", False),
        ("", False),
    ],
)
def test_loops(text: str, loop: bool) -> None:
    assert is_loop(text) is loop


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("ftp://host",),
        ("http://host", "--extra-body", "[]"),
        ("http://host", "--extra-body", "{"),
        ("http://host", "--junit", "/no/such/folder/report.xml"),
        ("http://host", "--temperature", "1.5"),
    ],
)
def test_wrong_usage_ends_with_2(options: tuple[str, ...]) -> None:
    assert CliRunner().invoke(app, ["verify", *options]).exit_code == 2
