"""Scripts, compose files and manifests, read back by bash and by a YAML reader."""

from __future__ import annotations

import shlex
import subprocess
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from tests.planner.deploy.test_make_deployment import deploy

from openk2.planner.deploy import Deployment, program_flags
from openk2.planner.deploy.deployment import dns_name
from openk2.planner.deploy.write_compose import compose_file
from openk2.planner.deploy.write_kubernetes import kubernetes_manifests
from openk2.planner.deploy.write_shell import shell_script
from openk2.planner.deploy.yaml_text import yaml_text

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=12,
)
CASES = {
    "one node": dict(hardware="8xB200"),
    "nodes": dict(hardware="16xH200"),
    "ray": dict(hardware="16xH200", version="0.11.0"),
    "apart": dict(hardware="32xH200", split="2P2D"),
    "apart, sglang": dict(hardware="32xH200", split="2P2D", engine="sglang"),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def made(request: pytest.FixtureRequest) -> Deployment:
    return deploy(**request.param)


@given(st.dictionaries(st.text(max_size=5), VALUES, min_size=1, max_size=4))
def test_a_yaml_reader_reads_what_was_written(value: dict[str, Any]) -> None:
    assert yaml.safe_load(yaml_text(value)) == value


def test_the_script_runs_what_was_planned(made: Deployment, tmp_path: Any) -> None:
    """Bash runs it, with programs in the engines' place that show their arguments."""
    script = tmp_path / "run.sh"
    script.write_text(shell_script(made, ["about"]))
    for name in ("vllm", "python3", "ray", "vllm-router"):
        shown = tmp_path / "bin" / name
        shown.parent.mkdir(exist_ok=True)
        shown.write_text('#!/bin/sh\nprintf \'%s\\0\' "$0" "$@"\n')
        shown.chmod(0o755)
    known = {name.upper().replace("-", "_"): f"10.0.0.{at}" for at, name in enumerate(made.addresses)}
    for process in made.processes:
        environment = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin", **known}
        done = subprocess.run(
            ["bash", script, process.name], env=environment, capture_output=True, text=True, check=True
        )
        words = done.stdout.split("\0")[:-1]
        program = words[max(at for at, word in enumerate(words) if word.startswith(str(tmp_path))) :]
        assert len(program) == len(process.argv)
        assert not any("<" in word or "$" in word for word in program)
        if process.program != "ray":
            version = made.flags_version if process.program == made.engine else None
            start = len(process.argv) - len(process.arguments)
            program_flags(process.program, version).parse(program[start:])


def test_the_script_says_what_is_missing(tmp_path: Any) -> None:
    script = tmp_path / "run.sh"
    script.write_text(shell_script(deploy(), ["about"]))
    done = subprocess.run(["bash", script, "engine-1"], env={}, capture_output=True, text=True, check=False)
    assert done.returncode != 0 and "address of the node that runs engine-0" in done.stderr
    done = subprocess.run(["bash", script, "engine-7"], env={}, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "engine-0|engine-1|health" in done.stderr


def test_compose_services_are_the_processes(made: Deployment) -> None:
    services = yaml.safe_load(compose_file(made, ["about"]))["services"]
    assert list(services) == [process.name for process in made.processes]
    for process in made.processes:
        service = services[process.name]
        words = [*service["entrypoint"], *service["command"]]
        if words[:2] == ["bash", "-c"]:
            words = shlex.split(words[2].rpartition("exec ")[2])
        assert len(words) == len(process.argv)
        assert all("<" not in word for word in words)
        assert ("healthcheck" in service) == (process.port is not None)
        devices = service.get("deploy", {}).get("resources", {}).get("reservations", {}).get("devices", [])
        assert sum(device["count"] for device in devices) == process.num_devices


def test_manifests_hang_together(made: Deployment) -> None:
    documents = list(yaml.safe_load_all(kubernetes_manifests(made, ["about"])))
    services = {one["metadata"]["name"]: one["spec"] for one in documents if one["kind"] == "Service"}
    sets = {one["metadata"]["name"]: one["spec"] for one in documents if one["kind"] == "StatefulSet"}
    claim = next(one for one in documents if one["kind"] == "PersistentVolumeClaim")
    storage = int(claim["spec"]["resources"]["requests"]["storage"].removesuffix("G")) * 10**9
    assert storage > made.weights_bytes
    front = services[f"{made.served_name}-{made.engine}"]
    assert front["selector"] == {"app": f"{made.served_name}-{made.engine}-{made.entry.name}"}
    assert front["ports"][0]["port"] == made.entry.port
    for process, (name, spec) in zip(made.processes, sets.items(), strict=True):
        assert name.endswith(process.name) and spec["serviceName"] in services
        labels = spec["template"]["metadata"]["labels"]
        assert spec["selector"]["matchLabels"] == labels == services[name]["selector"]
        container = spec["template"]["spec"]["containers"][0]
        limits = container.get("resources", {}).get("limits", {})
        assert sum(limits.values()) == process.num_devices
        assert all("<" not in word for word in container["args"])
        assert {"startupProbe", "readinessProbe", "livenessProbe"} & set(container) == (
            {"startupProbe", "readinessProbe", "livenessProbe"} if process.port else set()
        )
        for word in " ".join(container["args"]).split():  # every host that is named is a service here
            host = word.partition("://")[2].partition(":")[0]
            assert not host or host in services


def test_names_are_those_that_dns_allows() -> None:
    assert dns_name("Kimi_K2.0905/FP8") == "kimi-k2-0905-fp8"
    assert dns_name("---") == "model"
    assert dns_name("7B chat") == "model-7b-chat"
    assert len(dns_name("x" * 300)) == 50 == len(dns_name("7" * 300))


def test_only_what_other_nodes_ask_listens_to_them() -> None:
    for engine in ("vllm", "sglang"):
        single = compose_file(deploy(engine), ["about"])
        assert "0.0.0.0" not in single and "127.0.0.1" in single
        apart = yaml.safe_load(compose_file(deploy(engine, hardware="32xH200", split="2P2D"), ["about"]))["services"]
        assert "0.0.0.0" in str(apart["prefill-0"]) and "0.0.0.0" not in str(apart["prefill-1"])
