"""A model that knows nothing, and k2-nano, under generated schemas, through the whole server: each call is right."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from tests.support.tiny_model import save_tiny_model
from tests.support.walks import value_of

from openk2 import assets
from openk2.chat.lexers import Marker
from openk2.client import RemoteProvider
from openk2.engine import EngineConfig
from openk2.evals.verify.deployment import Deployment
from openk2.evals.verify.reply import Reply
from openk2.evals.verify.schema_checks import generated_cases
from openk2.llm import LLM
from openk2.tokenizer import Tokenizer

from .conftest import running

NUMBER = 1000
CONCURRENCY = 16
MAX_TOKENS = 1024
WINDOW = 8192
OTHER = {"type": "function", "function": {"name": "ping", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def llm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LLM]:
    """Random weights, two layers, and a window that holds a long schema."""
    folder = save_tiny_model(tmp_path_factory.mktemp("models") / "tiny-k2", window=WINDOW)
    with LLM(folder, engine_config=EngineConfig(max_num_seqs=CONCURRENCY, num_blocks=4096)) as llm:
        yield llm


def bodies_for(schema: dict[str, Any], section_begin: int, seed: int) -> dict[str, dict[str, Any]]:
    """The same tools, chosen in each way. In auto, a bias opens the section."""
    submit = {"type": "function", "function": {"name": "submit", "parameters": schema}}
    ways: dict[str, dict[str, Any]] = {
        "auto": {"tool_choice": "auto", "logit_bias": {str(section_begin): 100}},
        "required": {"tool_choice": "required"},
        "named": {"tool_choice": {"type": "function", "function": {"name": "submit"}}},
    }
    body = {
        "messages": [{"role": "user", "content": "Go."}],
        "tools": [submit, OTHER],
        "parallel_tool_calls": seed % 2 == 0,
        "temperature": 1.0,
        "seed": seed,
        "max_tokens": MAX_TOKENS,
    }
    return {way: {**body, **fields} for way, fields in ways.items()}


def judge(names: set[str], schema: dict[str, Any], plain: Reply, streamed: Reply) -> Iterator[str]:
    """What the two answers to one body are counted as; `fault: ` before what may not be."""
    for reply in (plain, streamed):
        if reply.error is not None or reply.faults or reply.text:
            yield f"fault: {reply.error or reply.faults or reply.text}"
            return
        yield str(reply.finish_reason)
    complete = [(call.name, call.arguments) for call in streamed.calls]
    if streamed.finish_reason == "length" and len(complete) > len(plain.calls):  # a stream shows what is then cut off
        complete.pop()
        yield from ("cut", "cut")
    if complete != [(call.name, call.arguments) for call in plain.calls]:
        yield f"fault: {complete} streamed, {plain.calls} not streamed"
    if plain.finish_reason != streamed.finish_reason or plain.finish_reason not in ("tool_calls", "length"):
        yield f"fault: {plain.finish_reason!r}, streamed {streamed.finish_reason!r}"
    if plain.finish_reason == "tool_calls" and not complete:
        yield "fault: no call"
    validator = jsonschema_rs.Draft202012Validator(schema, validate_formats=True)
    for name, arguments in complete:
        yield from ("call", "call")
        if name not in names:
            yield f"fault: calls {name!r}"
        elif name == "submit" and not validator.is_valid(value_of(arguments)):
            yield f"fault: {arguments} is not valid under {json.dumps(schema)}"


async def ask(url: str, tokenizer: Tokenizer, schemas: Sequence[dict[str, Any]]) -> Counter[str]:
    deployment = Deployment(RemoteProvider(url), CONCURRENCY)
    section_begin = tokenizer.specials[Marker.SECTION_BEGIN.value]

    async def count(way: str, schema: dict[str, Any], body: dict[str, Any]) -> list[str]:
        names = {"submit"} if way == "named" else {"submit", "ping"}
        streamed = {**body, "stream": True, "stream_options": {"include_usage": True}}
        answers = await asyncio.gather(deployment.ask(body), deployment.ask(streamed))
        return list(judge(names, schema, *answers))

    jobs = [
        count(way, schema, body)
        for seed, schema in enumerate(schemas)
        for way, body in bodies_for(schema, section_begin, seed).items()
    ]
    return Counter([counted for answer in await asyncio.gather(*jobs) for counted in answer])


def check(llm: LLM, number: int, seed: int) -> Counter[str]:
    schemas = [case.schema for case in generated_cases(number, seed, wide=True)]
    with running(llm) as server:
        counts = asyncio.run(ask(server.url, llm.tokenizer, schemas))
    faults = [name for name in counts if name.startswith("fault: ")]
    if faults:  # in full: an answer's text is what leads to the cause
        pytest.fail(f"{len(faults)} faults in {6 * number} answers\n" + "\n".join(faults))
    assert counts["tool_calls"] + counts["length"] == 6 * number
    return counts


def test_every_call_is_declared_and_valid(llm: LLM) -> None:
    counts = check(llm, 8, seed=1)
    assert counts["call"] >= 48 - counts["cut"]
    assert counts["cut"] <= 2


@pytest.mark.slow
def test_every_call_of_a_thousand_schemas_is_declared_and_valid(
    llm: LLM, record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(check(llm, NUMBER, seed=0), "random weights", record_property, capsys)


@pytest.mark.slow
def test_every_call_of_k2_nano_too(record_property: Any, capsys: pytest.CaptureFixture[str]) -> None:
    if not Path(assets.__file__).with_name("k2-nano").is_dir():
        pytest.skip("this tree has no embedded model")
    with LLM("k2-nano", engine_config=EngineConfig(max_num_seqs=CONCURRENCY)) as nano:
        tell(check(nano, NUMBER, seed=0), "k2-nano", record_property, capsys)


def tell(counts: Counter[str], model: str, record_property: Any, capsys: pytest.CaptureFixture[str]) -> None:
    figures = {name: counts[name] for name in ("tool_calls", "length", "call", "cut")}
    for name, value in figures.items():
        record_property(name, value)
    with capsys.disabled():
        print(f"\n{NUMBER} generated schemas, {model}: {figures}")
    assert counts["cut"] < 6 * NUMBER / 100
