"""Deployments against the published packages themselves: their wheels, which are read and never imported.

    pip download --no-deps --dest WHEELS vllm==0.33.0 vllm==0.11.0 sglang==0.5.23 vllm-router==0.1.17 ...
    OPENK2_WHEELS=WHEELS make test-peers

Wheels that are not in the folder are left out; without a folder, all are.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from dev.read_engine_flags import READERS, Sources, read_wheel
from tests.planner.deploy.test_make_deployment import LAYOUTS, deploy

from openk2.planner.deploy import flags as known
from openk2.planner.deploy import program_flags

pytestmark = pytest.mark.peers

FOLDER = os.environ.get("OPENK2_WHEELS")  # read at import: the variable is cleared for each test
WHEELS = sorted(Path(FOLDER).glob("*.whl")) if FOLDER else []
OURS = [wheel for wheel in WHEELS if Sources(wheel).program in READERS]
COMMITTED = json.loads(known.FLAG_FILE.read_text(encoding="utf-8"))


def named(wheel: Path) -> str:
    return "-".join(wheel.name.split("-")[:2])


@pytest.mark.skipif(not OURS, reason="OPENK2_WHEELS names no folder with wheels of the engines")
@pytest.mark.parametrize("wheel", OURS, ids=named)
def test_the_committed_flags_are_those_of_the_package(wheel: Path) -> None:
    program, version, entry = read_wheel(wheel)
    if version not in COMMITTED[program]:
        pytest.skip(f"{program} {version} is not among the committed versions")
    assert COMMITTED[program][version] == entry


@pytest.mark.skipif(not OURS, reason="OPENK2_WHEELS names no folder with wheels of the engines")
@pytest.mark.parametrize("wheel", OURS, ids=named)
def test_command_lines_parse_with_the_flags_of_the_package(
    wheel: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The package's flags, freshly read, in place of the committed ones: no line is handed out unparsed."""
    program, version, entry = read_wheel(wheel)
    fresh = tmp_path / "flags.json"
    fresh.write_text(json.dumps(COMMITTED | {program: {version: entry}}))
    monkeypatch.setattr(known, "FLAG_FILE", fresh)
    known._known.cache_clear()
    known._parser.cache_clear()
    try:
        engine = program.removesuffix("-router")
        own = version if engine == program else None
        assert program_flags(program).version == version
        for layout in LAYOUTS if own else []:
            assert "kimi_k2" in deploy(engine, own, layout=layout, batch=8, cache="bf16").processes[0].argv
        made = deploy(engine, own, hardware="32xH200", split="2P2D")
        assert {process.program for process in made.processes} >= {engine, f"{engine}-router"}
    finally:
        known._known.cache_clear()
        known._parser.cache_clear()
