"""Where upstreams are and with which key; no key ever shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from openk2.client.gateway.hosts import HOSTS
from openk2.client.gateway.targets import Target, read_targets
from openk2.client.remote import api_root
from openk2.errors import ConfigError


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    file = tmp_path / "key"
    file.write_text("# of the cluster\n sk-file \n")
    return file


def test_urls() -> None:
    assert read_targets(["127.0.0.1:8001", "http://h/v1"], environ={}) == (
        Target("http://127.0.0.1:8001/v1", None),
        Target("http://h/v1", None),
    )
    (target,) = read_targets(
        ["http://h:1"], model="m", environ={"OPENK2_UPSTREAM_API_KEY": "sk-1", "OPENAI_API_KEY": "x"}
    )
    assert (target.model, target.api_key, target.key_source) == ("m", "sk-1", "OPENK2_UPSTREAM_API_KEY")
    assert "sk-1" not in repr(target)


@pytest.mark.parametrize("name", HOSTS)
def test_hosts(name: str) -> None:
    host = HOSTS[name]
    (target,) = read_targets([name], environ={host.key_variable: " sk-2\n"})
    assert target.base_url == api_root(target.base_url) and target.base_url.startswith("https://")
    assert (target.api_key, target.model, target.is_hosted) == ("sk-2", host.model, True)
    with pytest.raises(ConfigError, match=host.key_variable):
        read_targets([name], environ={"OPENK2_UPSTREAM_API_KEY": "sk-1"})


def test_which_key_goes_where(key_file: Path, tmp_path: Path) -> None:
    environ = {"GROQ_API_KEY": "sk-groq", "OPENK2_UPSTREAM_API_KEY": "sk-env"}

    def keys(upstreams: list[str], *files: Path) -> list[str | None]:
        return [target.api_key for target in read_targets(upstreams, files, environ=environ)]

    assert keys(["groq"], key_file) == ["sk-file"]
    assert keys(["groq", "h:1"], key_file) == ["sk-groq", "sk-file"], "no host gets the key of another one"
    assert keys(["groq", "h:1"]) == ["sk-groq", "sk-env"]
    other = tmp_path / "other"
    other.write_text("sk-other")
    assert keys(["groq", "h:1"], key_file, other) == ["sk-file", "sk-other"]
    with pytest.raises(ConfigError, match="one for all, or one for each"):
        keys(["groq", "h:1", "h:2"], key_file, other)


@pytest.mark.parametrize("content", ["", "# none\n", "sk-secret\nsk-two\n", "sk-secret two", "sk-sécret"])
def test_a_key_file_that_is_none(content: str, tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_targets(["h:1"], [file], environ={})
    assert "key" in str(caught.value) and "cret" not in str(caught.value)
    with pytest.raises(ConfigError, match="cannot read the key file"):
        read_targets(["h:1"], [tmp_path / "absent"], environ={})


@pytest.mark.parametrize(
    "upstream", ["moonshott", "http://", "ftp://h", "https://me:sk-secret@h/v1", "http://h/v1?key=sk-secret"]
)
def test_what_is_no_upstream(upstream: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_targets([upstream], environ={})
    assert caught.value.param == "upstream" and "secret" not in str(caught.value)


def test_no_upstream_twice() -> None:
    with pytest.raises(ConfigError, match="twice"):
        read_targets(["h:1", "http://h:1/v1"], environ={})
