"""Who is let in: host, origin, key; and that a wide bind without a key is refused."""

from __future__ import annotations

from collections.abc import Iterator

import httpx2 as httpx
import pytest

from openk2.chat.scripted import ScriptedProvider
from openk2.errors import ConfigError
from openk2.server.settings import ServerSettings, read_api_keys

from .conftest import HTTP, running


def get(url: str, **headers: str) -> httpx.Response:
    return HTTP.get(url, headers={name.replace("_", "-"): value for name, value in headers.items()})


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running(ScriptedProvider([])) as server:
        yield server.url


@pytest.mark.parametrize("host", ["localhost", "localhost:9", "127.0.0.1:8000", "[::1]:8000", "LOCALHOST"])
def test_loopback_hosts_are_answered(url, host):
    assert get(f"{url}/v1/models", host=host).status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "localhost.evil", "[x"]
)
def test_other_hosts_are_not(url, host):
    response = get(f"{url}/v1/models", host=host)
    assert response.status_code == 403 and response.json()["error"]["type"] == "permission_error"


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://localhost", "x://[y"])
def test_pages_of_other_origins_are_not_answered(url, origin):
    assert get(f"{url}/v1/models", origin=origin).status_code == 403
    assert get(f"{url}/v1/models", origin=url).status_code == 200


def test_a_key_is_asked_for(serve):
    url = serve(ScriptedProvider([]), ServerSettings(api_keys=("first", "sécond"))).url
    refused = get(f"{url}/v1/models")
    assert refused.status_code == 401 and refused.json()["error"]["code"] == "invalid_api_key"
    assert refused.headers["www-authenticate"] == "Bearer" and refused.headers["x-request-id"]
    assert get(f"{url}/v1/models", authorization="Bearer wrong").status_code == 401
    assert get(f"{url}/v1/models", authorization="Basic first").status_code == 401
    assert get(f"{url}/metrics").status_code == 401
    assert get(f"{url}/v1/models", authorization="Bearer first").status_code == 200
    assert get(f"{url}/v1/models", x_api_key="first").status_code == 200
    assert [get(url + path).status_code for path in ("/", "/health", "/version")] == [200, 200, 200]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.com", ""])
def test_a_wide_bind_needs_a_key(host):
    with pytest.raises(ConfigError, match="OPENK2_API_KEY"):
        ServerSettings(host=host)
    assert ServerSettings(host=host, api_keys=("k",)).host == host


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.0.0.2", "::1"])
def test_a_loopback_bind_does_not(host):
    assert ServerSettings(host=host).is_loopback


def test_keys_come_from_the_file_and_the_variable(tmp_path):
    file = tmp_path / "keys"
    file.write_text("# ours\n one \n\ntwo\n")
    assert read_api_keys(file, {"OPENK2_API_KEY": "zero"}) == ("zero", "one", "two")
    assert read_api_keys(None, {}) == ()
    file.write_text("# none\n")
    with pytest.raises(ConfigError, match="holds no key"):
        read_api_keys(file, {"OPENK2_API_KEY": "zero"})
    with pytest.raises(ConfigError, match="cannot read"):
        read_api_keys(tmp_path / "missing", {})


def test_a_request_id_is_kept_or_made(url):
    assert get(f"{url}/health", x_request_id="mine-1").headers["x-request-id"] == "mine-1"
    assert get(f"{url}/health", x_request_id="a b").headers["x-request-id"].startswith("req_")


UI = "https://chat.example.com"


def preflight(url: str, origin: str) -> httpx.Response:
    headers = {
        "origin": origin,
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type",
    }
    return HTTP.request("OPTIONS", f"{url}/v1/chat/completions", headers=headers)


def test_pages_of_a_named_origin_are_answered(serve):
    settings = ServerSettings(cors_origins=(f"{UI.upper()}/", "http://localhost:3000"), api_keys=("k",))
    url = serve(ScriptedProvider([]), settings).url
    allowed = preflight(url, UI)
    assert allowed.status_code == 200 and allowed.headers["access-control-allow-origin"] == UI
    assert "authorization" in allowed.headers["access-control-allow-headers"]
    answer = get(f"{url}/v1/models", origin=UI, x_api_key="k")
    assert answer.status_code == 200 and answer.headers["access-control-allow-origin"] == UI
    assert "x-request-id" in answer.headers["access-control-expose-headers"]
    refused = get(f"{url}/v1/models", origin=UI)
    assert refused.status_code == 401 and refused.headers["access-control-allow-origin"] == UI
    for other in ("https://chat.example.com.evil.example", "http://chat.example.com", "null"):
        assert "access-control-allow-origin" not in preflight(url, other).headers
        assert get(f"{url}/v1/models", origin=other, x_api_key="k").status_code == 403
    assert get(f"{url}/v1/models", origin=UI, x_api_key="k", host="evil.example").status_code == 403


def test_without_named_origins_nobody_is_told_that_they_may(url):
    assert preflight(url, UI).status_code == 403
    assert "access-control-allow-origin" not in get(f"{url}/v1/models", origin=url).headers


def test_any_origin_needs_a_key(serve):
    with pytest.raises(ConfigError, match="--cors-origin"):
        ServerSettings(cors_origins=("*",))
    url = serve(ScriptedProvider([]), ServerSettings(cors_origins=("*",), api_keys=("k",))).url
    assert get(f"{url}/v1/models", origin=UI, x_api_key="k").headers["access-control-allow-origin"] == "*"


@pytest.mark.parametrize("origin", ["chat.example.com", "https://chat.example.com/path", "https://", "", "null"])
def test_what_is_no_origin_is_refused(origin):
    with pytest.raises(ConfigError, match="no origin"):
        ServerSettings(cors_origins=(origin,))
