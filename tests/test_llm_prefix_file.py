"""The prefix cache over a restart, as users have it."""

from __future__ import annotations

from pathlib import Path

import pytest

from openk2 import LLM
from openk2.chat.messages import Completion, Message
from openk2.config import SamplingParams
from openk2.errors import ConfigError

TALK = (Message("system", "You answer in a few words. " * 6), Message("user", "Hello, who are you?"))


def answer(file: Path, *, engine_process: bool = False) -> Completion:
    with LLM(prefix_cache_file=file, engine_process=engine_process) as llm:
        return llm.chat(TALK, sampling=SamplingParams(temperature=0.0, max_tokens=16))


@pytest.mark.parametrize("engine_process", [False, True])
def test_the_second_start_knows_what_the_first_one_read(tmp_path: Path, engine_process: bool) -> None:
    file = tmp_path / "prefixes"
    first, second = (answer(file, engine_process=engine_process) for _ in range(2))
    assert first.usage.cached_tokens == 0
    assert second.usage.cached_tokens > 0.7 * second.usage.prompt_tokens
    assert second.message == first.message
    assert [path.name for path in tmp_path.iterdir()] == ["prefixes"]


def test_a_folder_that_is_not_there_is_told_before_loading(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none/prefixes: there is no such folder"):
        LLM(prefix_cache_file=tmp_path / "none" / "prefixes")
