"""`openk2 train` under torchrun: only the first rank speaks, and a killed run goes on to the same bits."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from openk2.training.bpe import byte_order
from openk2.training.vocabulary import write_tokenizer

RECIPE = """
init = "random"
accumulate = 2
save_every_tokens = 600
validate_every_tokens = 2_000
[model]
vocab_size = 512
hidden_size = 32
num_hidden_layers = 2
num_attention_heads = 2
intermediate_size = 48
q_lora_rank = 16
kv_lora_rank = 16
[parallel]
expert_parallel = 2
[data]
kind = "text"
files = ["{folder}/texts.jsonl"]
held_out = 0.1
[tokenizer]
folder = "{folder}/vocabulary"
[schedule]
warmup_tokens = 500
stable_tokens = 4_000
decay_tokens = 1_500
[[stages]]
batch_tokens = 150
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    texts = [{"text": f"{i}: " + "the cat sat on the mat. " * (i % 9)} for i in range(40)]
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps(t) + "\n" for t in texts))
    write_tokenizer({token: rank for rank, token in enumerate(byte_order())}, tmp_path / "vocabulary")
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE.format(folder=tmp_path))
    return path


def start(recipe: Path, output: Path, ranks: int, *more: str) -> subprocess.Popen[str]:
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *command, "-m", "openk2", "train", str(recipe), "--output", str(output), "--json", *more]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def finish(run: subprocess.Popen[str], code: int = 0) -> tuple[str, str]:
    out, errors = run.communicate(timeout=400)
    assert run.returncode == code, errors
    return out, errors


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "state.pt", weights_only=True)["model"]


def test_two_processes_train_log_once_and_one_exports(recipe: Path, tmp_path: Path) -> None:
    out, _ = finish(start(recipe, tmp_path / "run", 2, "--set", "schedule.stable_tokens=500"))
    printed = [json.loads(line) for line in out.splitlines()]
    logged = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert printed == logged
    steps = [entry["step"] for entry in logged if "step" in entry]
    assert steps == list(range(1, len(steps) + 1)) and "held_loss" in logged[-1]
    finish(start(recipe, tmp_path / "run", 1, "--export", str(tmp_path / "model")))
    assert (tmp_path / "model" / "config.json").exists()
    _, errors = finish(start(recipe, tmp_path / "other", 2, "--set", "accumulate=3"), code=1)  # torchrun's own code
    assert "accumulate 3 is no multiple of the 2 processes" in errors


def workers(agent: int) -> list[int]:
    return [int(pid) for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="finds processes in /proc")
def test_a_killed_run_ends_with_the_same_bits(recipe: Path, tmp_path: Path) -> None:
    finish(start(recipe, tmp_path / "whole", 2))
    log = tmp_path / "cut" / "log.jsonl"
    for cut in sorted(random.sample(range(2, 18), 2)):
        run = start(recipe, tmp_path / "cut", 2)
        while run.poll() is None and (not log.exists() or log.read_text().count('"step"') < cut):
            time.sleep(0.02)
        for pid in workers(run.pid):
            os.kill(pid, signal.SIGKILL)
        run.communicate()
    finish(start(recipe, tmp_path / "cut", 2))
    ours, theirs = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
