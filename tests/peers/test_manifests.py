"""Manifests and compose files against the schemas of Kubernetes and a reader of the Compose Specification.

pip install kubernetes-validate compose-spec
"""

from __future__ import annotations

import re

import pytest
import yaml
from tests.planner.deploy.test_make_deployment import deploy
from tests.planner.deploy.test_writers import CASES

from openk2.planner.deploy.write_compose import compose_file
from openk2.planner.deploy.write_kubernetes import kubernetes_manifests

pytestmark = pytest.mark.peers


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_kubernetes_takes_the_manifests(case: dict[str, str]) -> None:
    reader = pytest.importorskip("kubernetes_validate", reason="kubernetes-validate is not installed")
    documents = list(yaml.safe_load_all(kubernetes_manifests(deploy(**case), ["about"])))  # type: ignore[arg-type]
    for document in documents:
        reader.validate(document, reader.latest_version(), strict=True)
    broken = documents[-1] | {"spec": documents[-1]["spec"] | {"replica": 1}}
    with pytest.raises(reader.ValidationError):
        reader.validate(broken, reader.latest_version(), strict=True)


def interpolated(text: str) -> str:
    """As Compose reads it, with an address for each that it asks for."""
    text = re.sub(r"\$\{\w+:\?[^}]*\}", "10.0.0.1", text.replace("${HOME}", "/home/somebody"))
    return re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text).replace("$$", "$")


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_compose_specification_takes_the_file(case: dict[str, str]) -> None:
    reader = pytest.importorskip("compose_spec", reason="compose-spec is not installed")
    made = deploy(**case)  # type: ignore[arg-type]
    read = reader.PyCompose.from_yaml(interpolated(compose_file(made, ["about"])))
    assert read.service_names() == [process.name for process in made.processes]
