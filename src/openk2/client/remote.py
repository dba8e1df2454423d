"""The ChatProvider over HTTP: any OpenAI-compatible endpoint, ours or another engine's."""

from __future__ import annotations

import asyncio
import json
import random
import re
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

import httpx2

from openk2.chat.events import ChatEvent
from openk2.chat.ids import count_calls
from openk2.chat.provider import ChatRequest, TextRequest
from openk2.client.failures import SilenceError, UnreachableError, error_for
from openk2.client.reply import ReplyReader
from openk2.client.request import request_body, text_body
from openk2.client.sse import event_data
from openk2.client.text_reply import TextReplyReader
from openk2.client.wire import WireAnswer, read_answer
from openk2.errors import ModelNotFoundError, OpenK2Error, OverloadedError, ProviderError, RequestError

CONNECT_TIMEOUT_S = 10.0
KEEP_ALIVE_S = 2.0
"""How long an idle connection is kept: shorter than servers keep theirs, which could close while it is used again."""
FIRST_BACKOFF_S = 0.5
MAX_BACKOFF_S = 30.0
"""An endpoint that asks for a longer pause is reported instead of waited for."""

_RETRIED_STATUSES = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})


class RemoteProvider:
    """Answers with the model of an endpoint.

        provider = RemoteProvider("http://127.0.0.1:8000")
        Agent(provider).run("Hello")

    Call ids are handed on as the endpoint gave them. One provider serves any number of requests, also from several
    event loops; unless `keeps_connections`, it holds none between them.
    """

    def __init__(
        self,
        base_url: str,
        model: str | None = None,
        api_key: str | None = None,
        *,
        timeout: float = 600.0,
        max_retries: int = 2,
        key_source: str = "OPENAI_API_KEY",
        keeps_connections: bool = False,
    ) -> None:
        """
        Args:
            base_url: With or without `/v1` and scheme: `localhost:8000` is `http://localhost:8000/v1`.
            model: None takes the first one that the endpoint lists.
            timeout: Seconds without any data after which a request fails.
            max_retries: Further attempts after 429, 5xx or a broken connection, before the first event only.
            key_source: Where the key was read from, for the message about one that is refused.
            keeps_connections: Use a connection again for the next request; all must then come from one event loop.
        """
        self._base_url = api_root(base_url)
        self._model = model
        self._api_key = api_key
        self._headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
        self._key_source = key_source
        self._timeout = httpx2.Timeout(timeout, connect=min(timeout, CONNECT_TIMEOUT_S))
        self._max_retries = max_retries
        self._keeps_connections = keeps_connections

    @property
    def base_url(self) -> str:
        """The endpoint's root, ending in its version."""
        return self._base_url

    @property
    def model(self) -> str:
        """The model's name; when it was not given, the first use asks the endpoint and may raise as `stream` does."""
        if self._model is None:
            if not self._listing:
                raise ModelNotFoundError(f"{self._base_url} lists no model; give its name", param="model")
            self._model = str(self._listing[0]["id"])
        return self._model

    @property
    def max_model_len(self) -> int | None:
        """Tokens of the model's window, where the endpoint tells; the first use may ask it, as `model` does."""
        for entry in self._listing:
            if entry["id"] == self.model:
                found = entry.get("max_model_len") or entry.get("context_length") or entry.get("context_window")
                return found if isinstance(found, int) else None
        return None

    @property
    def openk2_model(self) -> str | None:
        """The model that answers, which an openk2 tells under any name it answers to; the first use may ask it."""
        for entry in self._listing:
            if entry["id"] == self.model and entry.get("owned_by") == "openk2":
                return str(entry.get("root"))
        return None

    def check(self) -> None:
        """Ask for its models now. Raises as `model` does: nobody answers, or the key is refused."""
        self._listing  # noqa: B018 - asked for and kept

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatEvent, None]:
        """Yield the answer's events; closing the generator closes the connection, which aborts the request.

        Raises RequestError, ContextLengthError or ModelNotFoundError for what the endpoint refuses, OverloadedError
        when it has no room after the retries, ProviderError when it cannot be reached or breaks off.
        """
        body = request_body(request, await self._known_model())
        reader = ReplyReader(count_calls(request.messages), request.sampling.stop)
        async with aclosing(self._events("/chat/completions", body, reader)) as events:
            async for event in events:
                yield event

    async def stream_text(self, request: TextRequest) -> AsyncGenerator[ChatEvent, None]:
        """Continue a raw prompt by the endpoint's legacy completions; raises as `stream` does.

        Whether control tokens in a text are ones is the endpoint's business.
        """
        body = text_body(request.prompt, request.sampling, await self._known_model())
        async with aclosing(self._events("/completions", body, TextReplyReader(request.sampling.stop))) as events:
            async for event in events:
                yield event

    async def _known_model(self) -> str:
        if self._model is None:
            await asyncio.to_thread(getattr, self, "model")  # looks the name up without blocking the loop
        return self.model

    async def _events(
        self, path: str, body: dict[str, Any], reader: ReplyReader | TextReplyReader
    ) -> AsyncGenerator[ChatEvent, None]:
        done_seen = False
        async with self._open(path, body) as response:
            try:
                async for data in self._payloads(response):
                    if data.strip() == "[DONE]":
                        done_seen = True
                        break
                    for event in reader.feed(_parsed(data)):
                        yield event
            except httpx2.TransportError as error:
                # Some servers close without a proper end; the answer counts when its reason to finish was there.
                if not reader.finish_reason_seen:
                    raise self._failure(error) from None
            for event in reader.finish(done_seen=done_seen):
                yield event

    async def exchange(self, path: str, body: dict[str, Any], *, most_events: int | None = None) -> WireAnswer:
        """POST `body` to `path`, such as `/chat/completions`, once; the answer comes back unread, whatever its status.

        With `most_events` the connection is closed after so many events of a stream.

        Raises ProviderError when the endpoint cannot be reached, OverloadedError when it does not answer in time.
        """
        started = time.perf_counter()
        async with self._client() as client:
            try:
                async with client.stream("POST", self._base_url + path, json=body) as response:
                    return await read_answer(response, started, most_events)
            except httpx2.TransportError as error:
                raise self._failure(error) from None

    @asynccontextmanager
    async def _open(self, path: str, body: dict[str, Any]) -> AsyncIterator[httpx2.Response]:
        """An answer with status 200, after retries."""
        url = self._base_url + path
        async with self._client() as client:
            for attempt in range(self._max_retries + 1):
                last = attempt == self._max_retries
                pause = FIRST_BACKOFF_S * 2**attempt * random.uniform(0.75, 1.25)
                try:
                    response = await client.send(client.build_request("POST", url, json=body), stream=True)
                    if response.status_code != 200:
                        await response.aread()
                except httpx2.TransportError as error:
                    if last or isinstance(error, httpx2.ConnectError | httpx2.TimeoutException):
                        raise self._failure(error) from None
                    await asyncio.sleep(pause)
                    continue
                if response.status_code == 200:
                    try:
                        yield response
                    finally:
                        await response.aclose()
                    return
                pause = _retry_after(response) or pause
                if last or response.status_code not in _RETRIED_STATUSES or pause > MAX_BACKOFF_S:
                    raise self._error(response, url)
                await asyncio.sleep(pause)

    def get(self, url: str, timeout: float | None = None) -> httpx2.Response:
        """GET an address of the endpoint, or of its host, with the key; the answer may have any status.

        Raises UnreachableError or SilenceError when none comes.
        """
        limits = self._timeout if timeout is None else httpx2.Timeout(timeout)
        try:
            with httpx2.Client(
                timeout=limits, headers=self._headers, verify=self._tls, trust_env=self._uses_proxies
            ) as client:
                return client.get(url)
        except httpx2.TransportError as error:
            raise self._failure(error) from None

    @cached_property
    def _listing(self) -> list[dict[str, Any]]:
        """The entries of `/models`, asked for once; empty when the endpoint lists none in a form we know."""
        url = f"{self._base_url}/models"
        response = self.get(url)
        if response.status_code in (404, 405) and self._model is not None:
            return []  # an engine without such a list
        if response.status_code != 200:
            raise self._error(response, url)
        try:
            return [entry for entry in response.json()["data"] if entry.get("id")]
        except (ValueError, LookupError, TypeError, AttributeError):
            return []

    @cached_property
    def _tls(self) -> ssl.SSLContext | bool:
        # Loading the certificates takes a fifth of a second: once for each provider, and not for plain HTTP, where
        # nothing is verified (redirects, which could lead to HTTPS, are not followed).
        return httpx2.create_ssl_context() if self._base_url.startswith("https:") else False

    @property
    def _uses_proxies(self) -> bool:
        """A proxy of the environment cannot reach this machine's own servers."""
        return urlsplit(self._base_url).hostname not in _LOOPBACK

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[httpx2.AsyncClient]:
        if self._keeps_connections:
            yield self._kept_client  # open as long as the process
            return
        async with self._new_client() as client:
            yield client

    @cached_property
    def _kept_client(self) -> httpx2.AsyncClient:
        return self._new_client()

    def _new_client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            timeout=self._timeout,
            headers=self._headers,
            verify=self._tls,
            trust_env=self._uses_proxies,
            limits=httpx2.Limits(max_connections=None, keepalive_expiry=KEEP_ALIVE_S),
        )

    async def _payloads(self, response: httpx2.Response) -> AsyncIterator[str]:
        if "json" in response.headers.get("content-type", ""):  # a whole completion in place of a stream
            yield self._without_key((await response.aread()).decode("utf-8", errors="replace"))
            return
        async for data in event_data(response.aiter_bytes()):
            yield self._without_key(data)

    def _error(self, response: httpx2.Response, url: str) -> OpenK2Error:
        said = self._without_key(response.text)
        error = error_for(response.status_code, said, url=url, key_source=self._key_source)
        if isinstance(error, OverloadedError):
            error.retry_after_s = _retry_after(response)
        return error

    def _without_key(self, text: str) -> str:
        """An endpoint may show the key that it refuses, and what it says is shown to others."""
        return text.replace(self._api_key, "[API key]") if self._api_key else text

    def _failure(self, error: httpx2.TransportError) -> ProviderError:
        if isinstance(error, httpx2.ConnectError | httpx2.ConnectTimeout):
            return UnreachableError(f"cannot reach {self._base_url}: is the server running there?")
        if isinstance(error, httpx2.TimeoutException):
            return SilenceError(f"{self._base_url} sent nothing for {self._timeout.read:g} s")
        reason = " ".join(str(error).split()) or type(error).__name__
        return UnreachableError(f"the connection to {self._base_url} broke: {reason}")


def api_root(url: str) -> str:
    """The endpoint's root from what a person wrote: scheme and version added, `/chat/completions` taken off.

    Raises RequestError for what is no HTTP address.
    """
    root = url.strip() if "://" in url else f"http://{url.strip()}"
    root = root.rstrip("/").removesuffix("/chat/completions")
    try:
        parts = urlsplit(root)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        valid = False
    if not valid:
        raise RequestError(f"{url!r} is no base URL; one looks like http://127.0.0.1:8000/v1", param="base_url")
    # A version may stand in the middle, as in /v1beta/openai.
    return root if re.search(r"/v\d", parts.path) else f"{root}/v1"


def _parsed(data: str) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        raise ProviderError(f"the endpoint sent something that is no JSON: {data[:80]!r}") from None


def _retry_after(response: httpx2.Response) -> float | None:
    """Seconds that the endpoint asks to wait; None when it says nothing usable (dates are not read)."""
    for header, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            return max(0.0, float(response.headers[header]) * unit_s)
        except (KeyError, ValueError):
            continue
    return None
