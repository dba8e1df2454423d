"""`openk2 deploy` as a user calls it."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.planner.deploy.test_read_line import GUIDE_VLLM
from typer import Typer
from typer.testing import CliRunner

from openk2 import assets
from openk2.cli.deploy import command
from openk2.errors import ConfigError, EnvironmentFault
from openk2.planner.deploy import here, program_flags

app = Typer()
app.command()(command)
LAPTOP = here.Here(memory_bytes=16 * 10**9, gpus=(), engines={})


@pytest.fixture(autouse=True)
def laptop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here, "look", lambda _: LAPTOP)


def names(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def run(*arguments: str) -> Any:
    return CliRunner().invoke(app, list(arguments))


def test_everything_is_written(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    done = run("vllm", "k2-0905", "--hardware", "16xH200", "--context", "128k", "--output", str(folder), "--json")
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert {Path(name).name for name in shown["files"]} == names(folder)
    assert os.access(folder / "run.sh", os.X_OK)
    assert set(yaml.safe_load((folder / "compose.yaml").read_text())["services"]) == {"engine-0", "engine-1"}
    plan = json.loads((folder / "plan.json").read_text())["plans"]["engine"]
    assert plan["weights_bytes"] == 1_029_173_249_888 and plan == shown["plans"]["engine"]
    steps = (folder / "next-steps.txt").read_text()
    assert "openk2 verify http://127.0.0.1:8001" in steps
    assert "openk2 serve k2-0905 --upstream http://127.0.0.1:8001" in steps
    assert run("vllm", "--hardware", "16xH200", "--output", str(folder)).exit_code == 0  # its own files may go
    assert not [name for name in names(folder) if name.startswith(".")]


def test_files_of_others_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "compose.yaml").write_text("services: {}\n")
    done = run("vllm", "--hardware", "16xH200", "--output", str(tmp_path))
    assert isinstance(done.exception, ConfigError) and "compose.yaml" in str(done.exception)
    assert names(tmp_path) == {"compose.yaml"}


@pytest.mark.parametrize(
    ("form", "file"), [("shell", "run.sh"), ("compose", "compose.yaml"), ("k8s", "kubernetes.yaml")]
)
def test_one_format(form: str, file: str, tmp_path: Path) -> None:
    assert run("sglang", "--hardware", "8xB200", "--format", form, "--output", str(tmp_path)).exit_code == 0
    assert names(tmp_path) == {file, "plan.json", "next-steps.txt"}


def test_a_folder_is_mounted(tmp_path: Path) -> None:
    model = tmp_path / "my-model"
    model.mkdir()
    (model / "config.json").write_text((assets.path("k2-nano") / "config.json").read_text())
    done = run("vllm", str(model), "--hardware", "1xH100", "--context", "2k", "--output", str(tmp_path / "out"))
    assert done.exit_code == 0, done.exception
    service = yaml.safe_load((tmp_path / "out" / "compose.yaml").read_text())["services"]["engine-0"]
    assert f"{model}:{model}:ro" in service["volumes"] and str(model) in service["command"]
    assert "kimi_k2" in service["command"]
    pods = (tmp_path / "out" / "kubernetes.yaml").read_text()
    assert '"/weights/my-model"' in pods and str(model) not in pods
    assert "hf download" not in (tmp_path / "out" / "next-steps.txt").read_text()


@pytest.mark.parametrize(
    ("name", "project"),
    [("GLM My.Model", "glm-my-model-vllm"), ("7b", "model-7b-vllm"), ("two\nlines", "two-lines-vllm")],
)
def test_any_name_of_a_folder_will_do(name: str, project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, out = tmp_path / name, tmp_path / "out"
    model.mkdir()
    (model / "config.json").write_text((assets.path("k2-nano") / "config.json").read_text())
    monkeypatch.chdir(model)
    done = run("vllm", ".", "--hardware", "1xH100", "--context", "2k", "--output", str(out), "--json")
    assert done.exit_code == 0, done.exception
    assert json.loads(done.stdout)["model"] == name
    compose = (out / "compose.yaml").read_text()
    assert yaml.safe_load(compose)["name"] == project
    assert (out / "run.sh").read_text().splitlines()[3] == "set -euo pipefail", "two lines of comment"
    assert f"--model {shlex.quote(name)}\n" in (out / "next-steps.txt").read_text()


def test_a_failed_write_leaves_nothing_half_done(tmp_path: Path) -> None:
    (tmp_path / ".compose.yaml.new").mkdir()  # in the way
    done = run("vllm", "--hardware", "16xH200", "--output", str(tmp_path))
    assert isinstance(done.exception, EnvironmentFault)
    assert names(tmp_path) == {".compose.yaml.new"}


def test_a_hardware_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "cards.toml"
    file.write_bytes(b"\xff\xfe")
    done = run("vllm", "--hardware", "16xH200", "--hardware-file", str(file))
    assert isinstance(done.exception, ConfigError) and "cards.toml is no TOML" in str(done.exception)


def test_an_impossible_deployment_ends_with_1_and_the_bytes(tmp_path: Path) -> None:
    done = run("sglang", "--hardware", "8xH100", "--context", "256k", "--output", str(tmp_path / "out"))
    assert done.exit_code == 1
    assert "lacks" in done.stdout and "in all" in done.stdout
    assert not (tmp_path / "out").exists()
    assert "." not in run("vllm", "k2", "--hardware", "8xRTX-4090").stdout.split("lacks")[1].split("bytes")[0]
    shown = json.loads(run("vllm", "--hardware", "8xH100", "--json").stdout)
    assert shown["plans"]["engine"]["refusal"]["missing_bytes"] > 0


def test_the_public_guides_line_on_a_laptop() -> None:
    done = run("--line", GUIDE_VLLM)
    assert done.exit_code == 1
    for text in (
        "no --temperature",
        "read as k2-0905, published as moonshotai/Kimi-K2-Instruct-0905\n",
        "1,029,173,249,888 bytes of weights",
        "16.0 GB of memory, no NVIDIA GPU",
        "openk2 deploy vllm k2-0905 --hardware 16xH200 --context 262144",
        "moonlight",
    ):
        assert text in done.stdout
    shown = json.loads(run("--line", GUIDE_VLLM, "--json").stdout)
    assert shown["missing_bytes"] > 10**12
    assert shown["nearest"]["needed_bytes"] <= LAPTOP.memory_bytes
    named = next(one["command"] for one in shown["holds"] if one["hardware"] == "16 x H200")
    assert run(*named.split()[2:]).exit_code == 0


def test_gpus_that_are_not_known_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(here, "look", lambda _: here.Here(memory_bytes=10**11, gpus=("Tesla T4",), engines={}))
    done = run("vllm")
    assert isinstance(done.exception, ConfigError) and "Tesla T4" in str(done.exception)


def test_the_line_on_hardware_that_holds_it() -> None:
    done = run("--line", GUIDE_VLLM, "--hardware", "16xH200", "--json")
    shown = json.loads(done.stdout)
    assert done.exit_code == 0 and len(shown["faults_of_the_line"]) == 1
    values = program_flags("vllm").parse(shown["processes"][0]["argv"][2:])
    assert (values.tensor_parallel_size, values.max_model_len) == (16, 262_144)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ([], "which engine"),
        (["ollama"], "no engine"),
        (["vllm", "k9", "--hardware", "16xH200"], "no model"),
        (["vllm", "--line", "sglang serve --model-path k2"], "the line starts sglang, not vllm"),
        (["vllm", "--hardware", "16xH900"], "no device"),
        (["vllm", "--hardware", "16xH200", "--context", "1m"], "beyond the window"),
        (["vllm", "--hardware", "16xH200", "--format", "helm"], "must be one of"),
        (["vllm", "--hardware", "16xH200", "--engine-version", "newest"], "looks like"),
        (["vllm", "--hardware", "16xH200", "--disaggregate", "3P1D"], "32xH200"),
        (["vllm", "--hardware", "16xH200", "--layout", "TP8"], "not 16"),
        (["sglang", "--hardware", "16xH200", "--ray"], "--ray is for vLLM"),
        (["sglang", "--hardware", "CPU-24ch-DDR5-6000"], "deployed on GPUs"),
        (["sglang", "--hardware", "8xMI300X"], "--image"),
        (["vllm", "--hardware", "16xH200", "--quantization", "q4_k_m"], "do not serve"),
    ],
)
def test_wrong_input_gets_a_clear_message(arguments: list[str], text: str) -> None:
    done = run(*arguments)
    assert isinstance(done.exception, ConfigError) and text in str(done.exception)


def test_many_requests_take_copies() -> None:
    done = run("vllm", "--hardware", "16xH200", "--load", "requests=10m,in=4000,out=500,batch=64", "--json")
    (note,) = [note for note in json.loads(done.stdout)["notes"] if "such deployments" in note]
    copies = int(note.split(" take ")[1].split()[0])
    speed = json.loads(done.stdout)["plans"]["engine"]["speed"]
    assert (copies - 1) * speed["requests_per_s"] * 86400 * 0.6 < 10e6 <= copies * speed["requests_per_s"] * 86400 * 0.6
    assert "such deployments" not in run("vllm", "--hardware", "16xH200").stdout


def test_start_says_how_where_the_engine_is_not_installed() -> None:
    done = run("vllm", "--hardware", "8xB200", "--start")
    assert isinstance(done.exception, EnvironmentFault) and "pip install vllm==" in str(done.exception)
    done = run("vllm", "--hardware", "16xH200", "--start")
    assert isinstance(done.exception, EnvironmentFault) and "./run.sh PROCESS" in str(done.exception)


def test_start_runs_the_installed_engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A program that is called vllm notes how it was called."""
    machine = here.Here(memory_bytes=10**12, gpus=("NVIDIA B200",) * 8, engines={"vllm": "0.33.0"})
    monkeypatch.setattr(here, "look", lambda _: machine)
    engine, seen = tmp_path / "vllm", tmp_path / "seen"
    engine.write_text(f"#!/bin/sh\nprintf '%s\\0' \"$@\" > {seen}\n")
    engine.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert run("vllm", "k2-0905", "--start").exit_code == 0
    words = seen.read_text().split("\0")[:-1]
    assert words[0] == "serve"
    assert program_flags("vllm", "0.33.0").parse(words[1:]).model_tag == "moonshotai/Kimi-K2-Instruct-0905"
    other = run("vllm", "--hardware", "8xH200", "--start").exception
    assert isinstance(other, EnvironmentFault) and "planned for 8 x H200" in str(other)
    engine.write_text("#!/bin/sh\nexit 3\n")
    assert run("vllm", "k2-0905", "--start").exit_code == 1
