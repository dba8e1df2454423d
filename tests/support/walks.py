"""What an engine makes of a model that draws evenly from its mask: the hardest one to keep to a grammar."""

from __future__ import annotations

import json
import random
import sys
from typing import Any

import numpy as np

from openk2.chat.constraints import ToolConstraint
from openk2.chat.response_format import ReplyConstraint
from openk2.tokenizer import Tokenizer


def walk(
    constraint: ToolConstraint | ReplyConstraint, tokenizer: Tokenizer, limit: int, seed: int, *, closing: bool = True
) -> tuple[list[int], str]:
    """The answer and its finish reason; the turn's end is not one of the tokens."""
    rng, ids = random.Random(seed), list[int]()
    while len(ids) < limit and not constraint.is_finished:
        step = constraint.forced_tokens()
        if not step:
            words = np.zeros((tokenizer.vocab_size + 31) // 32, np.int32)
            constraint.fill_mask(words)
            step = [int(rng.choice(np.unpackbits(words.view(np.uint8), bitorder="little").nonzero()[0]))]
            ended = constraint.closing_tokens(step[0], limit - len(ids)) if closing else []
            for token_id in ended:
                constraint.accept(token_id)
            if ended:
                assert len(ids) + len(ended) <= limit
                return ids + ended, "length"
        for token_id in step[: limit - len(ids)]:
            constraint.accept(token_id)
            ids.append(token_id)
    return ids, "stop" if constraint.is_finished else "length"


def value_of(arguments: str) -> Any:
    """Numbers past float64, which JSON has, count as its largest: validators of Python know no others."""
    largest = sys.float_info.max
    return json.loads(arguments, parse_float=lambda text: max(-largest, min(largest, float(text))))
