"""The verb: a recipe as its first word, one clear line for what is wrong, and a run that survives being killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from openk2.cli import main as cli
from openk2.cli.train import app
from openk2.errors import CheckpointError, ConfigError, DataError, EnvironmentFault, TrainingError

RECIPE = """
name = "tiny"
init = "random"
save_every_tokens = 600
validate_every_tokens = 100_000
accumulate = 2
[model]
preset = "nano"
vocab_size = 512
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 4
q_lora_rank = 16
kv_lora_rank = 16
[tokenizer]
samples = 100
[data]
kind = "text"
files = ["FILE"]
held_out = 0.1
[schedule]
warmup_tokens = 200
stable_tokens = 5_000
decay_tokens = 800
[[stages]]
batch_tokens = 100
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    texts = tmp_path / "texts.jsonl"
    words = "the cat sat on the mat and the dog lay on the log ".split()
    with texts.open("w") as file:
        for i in range(200):
            said = " ".join(words[(i * j) % len(words)] for j in range(1, 30))
            file.write(json.dumps({"text": f"{i}: {said}"}) + "\n")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.replace("FILE", str(texts)).replace("vocab_size = 512", "vocab_size = 520"))
    return path


@pytest.mark.parametrize("words", [["RECIPE"], ["--json", "RECIPE"], ["run", "RECIPE"]])
def test_a_recipe_is_the_first_word(recipe: Path, words: list[str], tmp_path: Path) -> None:
    arguments = [str(recipe) if word == "RECIPE" else word for word in words]
    short = ["--set", "schedule.stable_tokens=200", "--set", "schedule.decay_tokens=0"]
    result = CliRunner().invoke(cli.app, ["train", *arguments, "--output", str(tmp_path / "run"), *short])
    assert result.exit_code == 0, result.exception
    assert (tmp_path / "run" / "state.pt").exists()
    if "--json" in words:
        assert [json.loads(line)["step"] for line in result.output.splitlines() if "step" in json.loads(line)] == [
            1,
            2,
            3,
        ]


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ("dta.kind=text", ConfigError, "unknown recipe key 'dta'"),
        ('data.files=["none.txt"]', DataError, "no file none.txt"),
        ("optimizer.lr=1e30", TrainingError, "the loss is nan"),
    ],
)
def test_mistakes_are_one_line(recipe: Path, tmp_path: Path, change: str, kind: type[Exception], message: str) -> None:
    result = CliRunner().invoke(cli.app, ["train", str(recipe), "--output", str(tmp_path / "run"), "--set", change])
    assert isinstance(result.exception, kind)
    line, code = cli.describe(result.exception)
    assert message in line and code == (1 if kind is TrainingError else 2)


@pytest.mark.parametrize(
    ("device", "kind", "said"), [("gpu", ConfigError, "no device 'gpu'"), ("cuda", EnvironmentFault, "no CUDA device")]
)
def test_devices_that_are_none(recipe: Path, device: str, kind: type[Exception], said: str, tmp_path: Path) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("there is one")
    for words in (["train", str(recipe), "--output", str(tmp_path / "run")], ["experts", "k2-nano"]):
        result = CliRunner().invoke(cli.app, [*words, "--device", device])
        assert isinstance(result.exception, kind) and said in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_without_a_state_nothing_is_exported(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "model"
    result = CliRunner().invoke(
        cli.app, ["train", str(recipe), "--output", str(tmp_path / "typo"), "--export", str(out)]
    )
    assert isinstance(result.exception, CheckpointError) and "holds no state" in str(result.exception)
    assert not out.exists()


def test_a_broken_line_is_named_before_anything_is_written(recipe: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    texts.write_text(texts.read_text() + '{"text": "cut o')
    result = CliRunner().invoke(cli.app, ["train", str(recipe), "--output", str(tmp_path / "run")])
    assert isinstance(result.exception, DataError) and "line 201: not JSON" in str(result.exception)
    assert not (tmp_path / "run").exists()


def test_a_sweep_is_a_run_for_each_value_and_a_table(recipe: Path, tmp_path: Path) -> None:
    short = ["--set", "schedule.stable_tokens=200", "--set", "schedule.decay_tokens=0"]
    words = ["train", str(recipe), "--output", str(tmp_path / "s"), *short, "--sweep", "optimizer.lr=1e-3,1e30"]
    first = CliRunner().invoke(cli.app, [*words, "--json", "--max-minutes", "1e-9"])
    assert first.exit_code == 0, first.exception
    records = [json.loads(line) for line in first.output.splitlines()]
    assert records[0]["run"] == "optimizer.lr=1e-3" and records[-1] == {"sweep": []}
    table = CliRunner().invoke(cli.app, words)
    assert table.exit_code == 0, table.exception
    assert "2 of 2 runs have ended" in table.output and "diverged" in table.output
    last = json.loads(CliRunner().invoke(cli.app, [*words, "--json"]).output.splitlines()[-1])
    assert [outcome["status"] for outcome in last["sweep"]] == ["done", "diverged"]
    assert (tmp_path / "s" / "optimizer.lr=1e-3" / "state.pt").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sweep", "optimizer.lr"], "--sweep takes KEY=VALUE"),
        (["--sweep", "optimizer.rl=1,2"], "unknown recipe key 'rl'"),
        (["--sweep", "seed=1,2", "--export", "x"], "--export is of one run"),
    ],
)
def test_a_sweep_that_is_none_is_one_line(recipe: Path, tmp_path: Path, words: list[str], said: str) -> None:
    result = CliRunner().invoke(cli.app, ["train", str(recipe), "--output", str(tmp_path / "s"), *words])
    assert isinstance(result.exception, ConfigError) and said in str(result.exception)
    assert not (tmp_path / "s").exists()


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_bits(recipe: Path, tmp_path: Path) -> None:
    """Killed in its 5th, 12th and 19th step, each time somewhere after the last state."""

    def command(folder: str) -> list[str]:
        verb = [sys.executable, "-m", "openk2", "train", str(recipe), "--json", "--threads", "1"]
        return [*verb, "--output", str(tmp_path / folder)]

    subprocess.run(command("whole"), check=True, stdout=subprocess.DEVNULL)
    kills = 0
    while True:
        with subprocess.Popen(command("killed"), stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if kills < 3 and f'"step": {5 + 7 * kills},' in line:
                    process.kill()
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL
        kills += 1
    assert kills == 3
    whole, killed = (torch.load(tmp_path / f / "state.pt", weights_only=True) for f in ("whole", "killed"))
    assert (whole["step"], whole["data"]) == (killed["step"], killed["data"])
    for name, value in whole["model"].items():
        assert torch.equal(value, killed["model"][name]), name


def test_a_vocabulary_is_never_overwritten(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on the mat, the cat sat on the hat\n" * 40)
    done = CliRunner().invoke(app, ["tokenizer", str(text), "--vocab-size", "520", "--output", str(tmp_path / "v")])
    assert done.exit_code == 0, done.output
    before = (tmp_path / "v" / "tiktoken.model").read_bytes()
    again = CliRunner().invoke(app, ["tokenizer", str(text), "--vocab-size", "516", "--output", str(tmp_path / "v")])
    assert isinstance(again.exception, ConfigError)
    assert (tmp_path / "v" / "tiktoken.model").read_bytes() == before
