"""Recipe files: mistakes are named, values are set on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from openk2.errors import ConfigError
from openk2.training.recipe import DataConfig, GuidesConfig, OptimizerConfig, load_recipe
from openk2.training.schedule import WarmupStableDecay


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[data]\nkind = "texts"', "data.kind must be generated or text or messages or long"),
        ('[data]\nkind = "text"', "takes files"),
        ('[data]\nfiles = ["a"]', "takes no data.files"),
        ('[data]\nkind = "text"\nfiles = ["a"]\nheld_out = 1.5', "share from 0 up to 1"),
        ("[data]\nfile = 1", r"\[data\] unknown recipe key 'file'; there are files, held_out"),
        ("data = 3", "data must be a section"),
        ("accumulate = 0", "accumulate must be at least 1"),
        ("[[stages]]\nbatch_tokens = 0", "batch_tokens must be at least 1"),
        ("[[stages]]\nbatch_tokens = 9\nprompt_weight = 3", "prompt_weight is a share"),
        ('dtype = "float16"', "dtype must be float32 or bfloat16"),
        ('accumulate = "two"', "accumulate must be of type int"),
        ("recompute = 1", "recompute must be of type bool"),
        ("[optimizer]\nlr = true", r"\[optimizer\] lr must be of type float"),
        ('[optimizer]\nkind = "adam"', "optimizer.kind must be muonclip or adamw, not 'adam'"),
        ('[optimizer]\nnewton_schulz_dtype = "half"', "newton_schulz_dtype must be float32 or bfloat16"),
        ("[guides]\nweight = 0.1\nuntil_tokens = 10\n", "recompute excludes guides"),
    ],
)
def test_mistakes_in_a_recipe_are_named(tmp_path: Path, text: str, message: str) -> None:
    top, _, sections = ("recompute = true\n" + text if "guides" in text else text).partition("[")
    base = "[schedule]\nwarmup_tokens = 1\nstable_tokens = 1\ndecay_tokens = 1\n[[stages]]\nbatch_tokens = 100\n"
    file = tmp_path / "r.toml"
    file.write_text(top + "\n" + base + ("[" + sections if sections else ""))
    with pytest.raises(ConfigError, match=message):
        load_recipe(file)


def test_a_schedule_does_not_run_backwards() -> None:
    with pytest.raises(ConfigError, match=r"schedule.decay_tokens must be at least 0, not -1"):
        WarmupStableDecay(warmup_tokens=1, stable_tokens=1, decay_tokens=-1)


def test_files_that_are_no_recipe_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the recipe .*: Is a directory"):
        load_recipe(tmp_path)
    (tmp_path / "r.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match=r"r\.toml is not valid TOML"):
        load_recipe(tmp_path / "r.toml")
    (tmp_path / "r.toml").write_text("stages = 3\n")
    with pytest.raises(ConfigError, match="stages is a list"):
        load_recipe(tmp_path / "r.toml")


def test_values_set_on_the_command_line(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text(
        "[schedule]\nwarmup_tokens = 1\nstable_tokens = 1\ndecay_tokens = 1\n[[stages]]\nbatch_tokens = 9\n"
    )
    recipe = load_recipe(file, ["schedule.stable_tokens=2e6", "data.kind=text", 'data.files=["a.txt"]', "keep=3"])
    assert recipe.schedule.stable_tokens == 2_000_000 and isinstance(recipe.schedule.stable_tokens, int)
    assert recipe.data == DataConfig(kind="text", files=("a.txt",)) and recipe.keep == 3
    assert recipe.optimizer == OptimizerConfig() and recipe.guides == GuidesConfig()
    with pytest.raises(ConfigError, match="'name' is no section"):
        load_recipe(file, ["name=x", "name.first=y"])
