"""Responses that were answered, kept in SQLite: a later request may go on from one by naming its id."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from openk2.errors import ConfigError, RequestError

MAX_RESPONSES = 10_000
"""The oldest beyond these are forgotten."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS responses (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT UNIQUE NOT NULL,
    previous_id TEXT,
    input TEXT NOT NULL,
    body TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS output_items (
    id TEXT PRIMARY KEY,
    response_id TEXT NOT NULL REFERENCES responses (id) ON DELETE CASCADE,
    item TEXT NOT NULL
);
"""

Item = dict[str, Any]


class PreviousResponseError(RequestError):
    code = "previous_response_not_found"


class UnknownResponseError(RequestError):
    http_status = 404


class ResponseStore:
    """Each response with the items that were new in its request; a conversation is the chain of them.

    `file` None: in memory, gone with the server. Any thread may call; raises ConfigError for a file that is no store.
    """

    def __init__(self, file: Path | None = None) -> None:
        self._lock = threading.Lock()
        try:
            if file is not None:
                file.touch(mode=0o600)  # conversations are their owner's
            self._database = sqlite3.connect(file or ":memory:", check_same_thread=False)
            self._database.execute("PRAGMA foreign_keys = ON")
            self._database.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(f"cannot keep responses in {file}: {error}", param="response_store") from error

    def add(self, body: dict[str, Any], new_items: Sequence[Item]) -> None:
        """Keep a response and what was new in its request."""
        row = (body["id"], body["previous_response_id"], json.dumps(new_items), json.dumps(body))
        outputs = [(item["id"], body["id"], json.dumps(item)) for item in body["output"]]
        with self._lock, self._database:
            self._database.execute("INSERT INTO responses (id, previous_id, input, body) VALUES (?, ?, ?, ?)", row)
            self._database.executemany("INSERT INTO output_items VALUES (?, ?, ?)", outputs)
            self._database.execute(
                "DELETE FROM responses WHERE number <= (SELECT max(number) FROM responses) - ?", (MAX_RESPONSES,)
            )

    def get(self, response_id: str) -> dict[str, Any]:
        """The response as it was given. Raises UnknownResponseError."""
        found = self._row("SELECT body FROM responses WHERE id = ?", response_id)
        if found is None:
            raise UnknownResponseError(f"No response with the id {response_id!r} is kept here.", param="response_id")
        body: dict[str, Any] = json.loads(found[0])
        return body

    def delete(self, response_id: str) -> None:
        """Forget a response, and with it the way back from those that went on from it. Raises UnknownResponseError."""
        with self._lock, self._database:
            deleted = self._database.execute("DELETE FROM responses WHERE id = ?", (response_id,)).rowcount
        if not deleted:
            raise UnknownResponseError(f"No response with the id {response_id!r} is kept here.", param="response_id")

    def conversation(self, response_id: str) -> list[Item]:
        """Input and output items up to and with a response, oldest first. Raises PreviousResponseError."""
        turns: list[list[Item]] = []
        wanted: str | None = response_id
        while wanted is not None:
            found = self._row("SELECT previous_id, input, body FROM responses WHERE id = ?", wanted)
            if found is None:
                raise PreviousResponseError(
                    f"Previous response with the id {wanted!r} is not kept here: send its items instead.",
                    param="previous_response_id",
                )
            turns.append(json.loads(found[1]) + json.loads(found[2])["output"])
            wanted = found[0]
        return [item for turn in reversed(turns) for item in turn]

    def output_item(self, item_id: str) -> Item | None:
        """One item of a response that is kept; None: there is none with this id."""
        found = self._row("SELECT item FROM output_items WHERE id = ?", item_id)
        return None if found is None else json.loads(found[0])

    def _row(self, query: str, value: str) -> Any:
        with self._lock:
            return self._database.execute(query, (value,)).fetchone()
