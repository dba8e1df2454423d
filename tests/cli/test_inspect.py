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


def inspect(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["inspect", *arguments, "--json"], catch_exceptions=False)
    report: dict[str, Any] = json.loads(result.output)
    return report


@pytest.mark.parametrize("name", ["nano", "moonlight", "deepseek-v2-lite"])
def test_a_preset_is_counted_from_its_tensors(name: str) -> None:
    report = inspect(name)
    assert report["parameters"] == sum(report["parts"].values()) == num_parameters(preset(name))
    assert report["parameters_per_token"] == num_active_parameters(preset(name))
    assert report["weight_bytes"] is None


def test_a_checkpoint_is_read_from_its_headers(tmp_path: Path) -> None:
    model = K2Model(preset("nano"))
    for parameter in model.parameters():
        parameter.data.zero_()
    save_model(model, tmp_path / "model", dtype=torch.bfloat16)
    report = inspect(str(tmp_path / "model"), "--tensors")
    assert report["parameters"] == num_parameters(preset("nano"))
    assert len(report["tensors"]) == report["num_tensors"] == sum(report["dtypes"].values())
    assert report["tensors"]["model.embed_tokens.weight"] == {"shape": [2048, 128], "dtype": "BF16"}
    assert report["weight_bytes"] > 2 * report["parameters"]


def test_the_table_names_every_part() -> None:
    output = CliRunner().invoke(app, ["inspect", "nano", "--tensors"]).output
    assert "2,205,536 in 345 tensors" in output and "lm_head.weight  [2048, 128]" in output


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint folder"):
        CliRunner().invoke(app, ["inspect", str(tmp_path / "none")], catch_exceptions=False)
