"""The base install: no torch, no compiler."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BASE_VERBS = ROOT / "tests" / "support" / "base_verbs.py"
NO_COMPILER = {"CC": "/bin/false", "CXX": "/bin/false"}
MOST_PACKAGES = 36


def run(*command: object, **env: str) -> str:
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **env},
        check=False,
    )
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


def test_base_verbs_without_torch() -> None:
    assert "base verbs ok" in run(sys.executable, BASE_VERBS, "--hide-torch")


def test_build_without_a_compiler_succeeds(tmp_path: Path) -> None:
    """The wheel then holds the same Python and data, and ops run on their PyTorch definitions."""
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--quiet"]
    run(*pip, f"--config-settings=build-dir={tmp_path / 'build'}", "--wheel-dir", tmp_path, ROOT, **NO_COMPILER)
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if name.startswith("openk2/")}
        archive.extractall(tmp_path / "unpacked")
    assert not [name for name in held if name.endswith((".so", ".pyd"))]
    sources = ROOT / "src" / "openk2"
    expected = {
        f"openk2/{file.relative_to(sources)}"
        for file in sources.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert expected <= held, f"not in the wheel: {sorted(expected - held)}"
    check = """
import sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "ScikitBuild" not in type(finder).__name__]
sys.path.insert(0, sys.argv[1])
import torch, openk2, openk2.ops as ops
assert openk2.__file__.startswith(sys.argv[1]), openk2.__file__
assert not ops.cpu.available()
x, weight = torch.randn(3, 8), torch.randn(8)
assert torch.equal(ops.rms_norm(x, weight, 1e-6), ops.reference.rms_norm(x, weight, 1e-6))
from openk2.cli.doctor import run_checks
print(next(c.value for c in run_checks() if c.name == "native ops"))
"""
    assert "not built" in run(sys.executable, "-S", "-c", f"import site\nsite.main()\n{check}", tmp_path / "unpacked")


@pytest.mark.slow
def test_base_install_in_a_venv_of_its_own(tmp_path: Path) -> None:
    """Installed as a user does, on a machine without a compiler and without torch."""
    python = tmp_path / "venv" / "bin" / "python"
    run(sys.executable, "-m", "venv", tmp_path / "venv")
    build_dir = f"--config-settings=build-dir={tmp_path / 'build'}"
    run(python, "-m", "pip", "install", "--quiet", "-c", ROOT / "constraints.txt", build_dir, ROOT, **NO_COMPILER)
    listed = json.loads(run(python, "-m", "pip", "list", "--format=json"))
    packages = {entry["name"].lower() for entry in listed} - {"pip", "setuptools", "openk2"}
    assert not packages & {"torch", "safetensors", "transformers"}
    assert len(packages) <= MOST_PACKAGES, sorted(packages)
    assert "base verbs ok" in run(python, BASE_VERBS)
    assert run(tmp_path / "venv" / "bin" / "openk2", "--version").startswith("openk2 ")
