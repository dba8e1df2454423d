"""Which torch `make setup` installs: the script runs against a Python, pip, uv and nvidia-smi that only record."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FAKE_PYTHON = r"""#!/bin/bash
here=$(dirname "$0")
case "$*" in
"-") [ -e "$here/has-torch" ] ;;
"-c import torch"*) [ -e "$here/has-torch" ] && cat "$here/has-torch" ;;
"-c import json"*) cat ;;
"-m pip install --quiet --dry-run"*) cat "$here/plain-version" ;;
*) echo "python $*" >>"$here/log" ;;
esac
"""


@dataclass(frozen=True)
class Machine:
    folder: Path

    def program(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o755)

    def install(self, *arguments: str) -> list[str]:
        """What the script installed or removed, in order."""
        command = ["bash", str(ROOT / "dev" / "install-torch"), str(self.folder / "python"), *arguments]
        env = {"PATH": f"{self.folder}:/usr/bin:/bin"}
        subprocess.run(command, env=env, check=True, capture_output=True)
        log = self.folder / "log"
        return log.read_text().splitlines() if log.exists() else []


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    """A Linux machine without GPU and torch, where the plain package is the CUDA build."""
    machine = Machine(tmp_path)
    machine.program("python", FAKE_PYTHON)
    machine.program("uname", "#!/bin/bash\necho Linux\n")
    machine.program("uv", '#!/bin/bash\necho "uv $*" >>"$(dirname "$0")/log"\n')
    machine.program("nvidia-smi", "#!/bin/bash\nexit 9\n")
    (tmp_path / "plain-version").write_text("2.13.0\n")
    return machine


PLAIN = ["python -m pip install --quiet torch==2.13.0"]


def cpu_build(machine: Machine) -> list[str]:
    return [f"uv pip install --python {machine.folder / 'python'} --torch-backend cpu torch==2.13.0"]


def test_no_gpu_no_cuda(machine: Machine) -> None:
    assert machine.install("auto") == cpu_build(machine)


def test_a_configured_cpu_wheel_is_taken(machine: Machine) -> None:
    (machine.folder / "plain-version").write_text("2.13.0+cpu\n")
    assert machine.install("auto") == PLAIN


def test_a_gpu_gets_the_plain_package(machine: Machine) -> None:
    machine.program("nvidia-smi", "#!/bin/bash\nexit 0\n")
    assert machine.install("auto") == PLAIN


def test_a_mac_gets_the_plain_package(machine: Machine) -> None:
    machine.program("uname", "#!/bin/bash\necho Darwin\n")
    assert machine.install("auto") == PLAIN


def test_an_installed_torch_is_kept(machine: Machine) -> None:
    (machine.folder / "has-torch").write_text("cuda\n")
    assert machine.install("auto") == []


@pytest.mark.parametrize(("installed", "wanted"), [("cpu", "cpu"), ("cuda", "cuda")])
def test_forcing_the_build_that_is_there_changes_nothing(machine: Machine, installed: str, wanted: str) -> None:
    (machine.folder / "has-torch").write_text(f"{installed}\n")
    assert machine.install(wanted) == []


def test_forcing_replaces_the_other_build(machine: Machine) -> None:
    (machine.folder / "has-torch").write_text("cuda\n")
    assert machine.install("cpu") == ["python -m pip uninstall --quiet --yes torch", *cpu_build(machine)]


def test_forcing_cuda_without_a_gpu(machine: Machine) -> None:
    assert machine.install("cuda")[-1:] == PLAIN
