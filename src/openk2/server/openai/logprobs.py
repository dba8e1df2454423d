"""Log probabilities in the OpenAI wire format: chat completions and responses, and the older form of completions."""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from typing import Any

from openk2.chat.messages import TokenLogprob
from openk2.errors import RequestError
from openk2.server.fields import Fields

MAX_TOP_LOGPROBS = 20
MAX_TEXT_LOGPROBS = 5
"""In completions."""


def read_logprobs(fields: Fields) -> int | None:
    """How many of the most likely tokens are to be told beside each one; None: nothing is."""
    wanted = fields.boolean("logprobs")
    top = fields.integer("top_logprobs", 0, MAX_TOP_LOGPROBS)
    if not wanted and top:
        raise RequestError("'top_logprobs' is only allowed with 'logprobs': true.", param="top_logprobs")
    return top or 0 if wanted else None


def logprobs_object(tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
    """Of a choice or a chunk of a chat; None where there are none."""
    return {"content": token_objects(tokens), "refusal": None} if tokens else None


def token_objects(tokens: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
    return [{**_token_object(token), "top_logprobs": [_token_object(top) for top in token.top]} for token in tokens]


def _token_object(token: TokenLogprob) -> dict[str, Any]:
    return {"token": token.text, "logprob": token.logprob, "bytes": list(token.bytes)}


class TextLogprobs:
    """The form of completions, whose lists also tell where in the text each token begins; for one choice."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def next(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        """Of the tokens that follow those of the last call; None where there are none."""
        offsets = []
        for token in tokens:
            offsets.append(self._offset)
            self._offset += len(self._decoder.decode(token.bytes))
        if not tokens:
            return None
        return {
            "tokens": [_key(token) for token in tokens],
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [None if token.logprob is None else _by_text(token.top) for token in tokens],
            "text_offset": offsets,
        }


def _by_text(tokens: Sequence[TokenLogprob]) -> dict[str, float | None]:
    """Tokens, the most likely first; control tokens have no text, so of those only the most likely is told."""
    told: dict[str, float | None] = {}
    for token in tokens:
        told.setdefault(_key(token), token.logprob)
    return told


def _key(token: TokenLogprob) -> str:
    """The token's text; its bytes where it holds part of a character, so that no two are the same."""
    try:
        return token.bytes.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token.bytes)
