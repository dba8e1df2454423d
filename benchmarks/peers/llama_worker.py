"""llama.cpp over a GGUF file, through the C interface that llama-cpp-python binds: what `side_by_side.py` starts.

Timed are `llama_decode` and the search for the likeliest token: no scheduler, no server. Options after the file:
`fa=0|1` (flash attention; otherwise llama.cpp decides), `repack=0` (weights as the file has them).
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np
from figures import LONGEST, MOST_TOGETHER, WARM_UP, WARM_UP_STEPS, Clock, Figure, Sample, answer, prompts

MOST_AT_ONCE = 2048
"""Tokens of one call; llama.cpp computes 512 of them at a time, as it does by default."""
OPTIONS = {"fa": "auto", "repack": "1"}


@llama.llama_log_callback
def _silence(_level: int, _text: bytes, _data: object) -> None:
    pass


class LlamaSide:
    def __init__(self, path: Path, options: dict[str, str], states: Path) -> None:
        """`states`: folder of filled caches, which take minutes to compute and are equal for all weights' formats."""
        llama.llama_log_set(_silence, ctypes.c_void_p(0))
        llama.llama_backend_init()
        loading = llama.llama_model_default_params()
        loading.n_gpu_layers = 0
        loading.use_extra_bufts = options["repack"] == "1"
        self.model = llama.llama_model_load_from_file(str(path).encode(), loading)
        if not self.model:
            raise SystemExit(f"{path}: llama.cpp cannot load it")
        sizes = llama.llama_context_default_params()
        sizes.n_ctx = LONGEST + MOST_TOGETHER  # for all sequences together: the longest figures have one
        sizes.n_batch = MOST_AT_ONCE
        sizes.n_seq_max, sizes.kv_unified = MOST_TOGETHER, True
        sizes.flash_attn_type = {"auto": -1, "0": 0, "1": 1}[options["fa"]]
        self.context = llama.llama_init_from_model(self.model, sizes)
        if not self.context:
            raise SystemExit(f"{path}: llama.cpp cannot make a context of {sizes.n_ctx} tokens")
        self.memory = llama.llama_get_memory(self.context)
        self.vocab_size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        self.batch = llama.llama_batch_init(MOST_AT_ONCE, 0, 1)
        self.states, self.states_kind = states, f"fa-{options['fa']}"
        self.filled: list[int] = []

    def prepare(self, figure: Figure, threads: int) -> None:
        llama.llama_set_n_threads(self.context, threads, threads)
        llama.llama_memory_clear(self.memory, False)
        if figure.kind == "prefill":
            self._feed([(0, 0, prompts(WARM_UP, self.vocab_size, "warm-up")[0])])
            return
        asked = prompts(figure, self.vocab_size, "")
        self.filled = []
        for sequence, prompt in enumerate(asked):
            self._fill(sequence, prompt, figure)
        self._decode(figure, WARM_UP_STEPS)
        self._forget_answers(figure)

    def run(self, figure: Figure, seed: str) -> Sample:
        if figure.kind == "decode":
            with Clock() as clock:
                self._decode(figure, figure.steps)
            self._forget_answers(figure)
            return Sample(clock.seconds, clock.cpu_seconds, self.filled)
        (prompt,) = prompts(figure, self.vocab_size, seed)
        llama.llama_memory_clear(self.memory, False)
        with Clock() as clock:
            (last,) = self._feed([(0, 0, prompt)])
        return Sample(clock.seconds, clock.cpu_seconds, [last])

    def _fill(self, sequence: int, prompt: list[int], figure: Figure) -> None:
        """The prompt's tokens into the cache: from a file where there is one, whose last token then is unknown."""
        path = self.states / f"{figure.name}-{sequence}-{self.states_kind}.state"
        count = ctypes.c_size_t()
        room = (llama.llama_token * len(prompt))()
        if path.is_file() and llama.llama_state_seq_load_file(
            self.context, str(path).encode(), sequence, room, len(prompt), ctypes.byref(count)
        ):
            self.filled.append(-1)
            return
        self.filled += self._feed([(sequence, 0, prompt)])
        if len(prompt) > 1:
            tokens = (llama.llama_token * len(prompt))(*prompt)
            llama.llama_state_seq_save_file(self.context, str(path).encode(), sequence, tokens, len(prompt))

    def _decode(self, figure: Figure, steps: int) -> None:
        start = max(figure.context, 1)
        for step in range(steps):
            token = 3 + step
            self._feed([(sequence, start + step, [token]) for sequence in range(figure.batch)])

    def _forget_answers(self, figure: Figure) -> None:
        for sequence in range(figure.batch):
            llama.llama_memory_seq_rm(self.memory, sequence, max(figure.context, 1), -1)

    def _feed(self, parts: Sequence[tuple[int, int, list[int]]]) -> list[int]:
        """Compute (sequence, first position, tokens); the likeliest token after each part."""
        wanted = [
            (sequence, start + i, token, i == len(tokens) - 1)
            for sequence, start, tokens in parts
            for i, token in enumerate(tokens)
        ]
        last = []
        for first in range(0, len(wanted), MOST_AT_ONCE):
            taken = wanted[first : first + MOST_AT_ONCE]
            batch: Any = self.batch
            batch.n_tokens = len(taken)
            for i, (sequence, position, token, is_last) in enumerate(taken):
                batch.token[i], batch.pos[i], batch.logits[i] = token, position, is_last
                batch.n_seq_id[i], batch.seq_id[i][0] = 1, sequence
            if llama.llama_decode(self.context, batch):
                raise SystemExit("llama_decode failed")
            for i, (*_, is_last) in enumerate(taken):
                if is_last:  # the call waits until they are there
                    logits = llama.llama_get_logits_ith(self.context, i)
                    last.append(int(np.ctypeslib.as_array(logits, (self.vocab_size,)).argmax()))
        return last


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("path", type=Path)
    parser.add_argument("options", nargs="*")
    arguments = parser.parse_args()
    options = OPTIONS | dict(option.split("=", 1) for option in arguments.options)
    answer(lambda: LlamaSide(arguments.path, options, arguments.path.parent))


if __name__ == "__main__":
    main()
