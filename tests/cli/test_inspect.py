from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from openk2.checkpoint import save_model
from openk2.cli.main import app
from openk2.config import preset
from openk2.errors import CheckpointError
from openk2.models import K2Model
from openk2.models.k2 import num_active_parameters, num_parameters

runner = CliRunner()


def inspect(model: str, exit_code: int = 0) -> dict[str, Any]:
    result = runner.invoke(app, ["inspect", model, "--json"], catch_exceptions=False)
    assert result.exit_code == exit_code, result.output
    report: dict[str, Any] = json.loads(result.output)
    return report


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = K2Model(preset("nano"))
    for parameter in model.parameters():
        parameter.data.zero_()
    save_model(model, tmp_path / "model", dtype=torch.bfloat16)
    return tmp_path / "model"


@pytest.mark.parametrize("name", ["nano", "moonlight", "deepseek-v2-lite"])
def test_a_preset(name: str) -> None:
    report = inspect(name)
    assert report["parameters_total"] == num_parameters(preset(name))
    assert report["parameters_active"] == num_active_parameters(preset(name))
    assert report["weight_files"] == 0 and report["problem"] is None


def test_a_checkpoint(folder: Path) -> None:
    report = inspect(str(folder))
    assert report["parameters_total"] == num_parameters(preset("nano"))
    assert report["tensors"] == sum(report["stored_dtypes"].values()) == inspect("nano")["tensors"]
    assert report["weight_files"] == 1 and report["bytes"] > 2 * report["parameters_total"]
    assert report["problem"] is None


def test_weights_that_do_not_fit_the_config_are_a_problem(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["vocab_size"] += 1
    (folder / "config.json").write_text(json.dumps(config))
    assert inspect(str(folder), exit_code=1)["problem"]


def test_the_table(folder: Path) -> None:
    output = runner.invoke(app, ["inspect", str(folder)]).output
    assert f"{num_parameters(preset('nano')):,}" in output and "32 routed" in output


def test_every_tensor_on_request(folder: Path) -> None:
    name = "model.layers.1.mlp.experts.31.down_proj.weight"
    lines = runner.invoke(app, ["inspect", str(folder), "--tensors"]).output.splitlines()
    assert f"{name}  192x32  BF16  model.safetensors" in lines
    for model, dtype, file in ((str(folder), "BF16", "model.safetensors"), ("nano", None, None)):
        result = runner.invoke(app, ["inspect", model, "--tensors", "--json"])
        report = json.loads(result.output)
        assert len(report["tensor_list"]) == report["tensors"]
        assert {"name": name, "shape": [192, 32], "dtype": dtype, "file": file} in report["tensor_list"]


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        runner.invoke(app, ["inspect", str(tmp_path / "none")], catch_exceptions=False)
