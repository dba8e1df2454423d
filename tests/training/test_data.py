"""The generated conversations keep their own promises: schemas, copied values, disjoint parts, reproducibility."""

from __future__ import annotations

import itertools
import json
import re

import jsonschema_rs
import pytest

from openk2.chat.builtin_tools import BUILTIN_TOOLS
from openk2.training.data import KINDS, NO_TOOL, Conversation, conversations, held_cases, texts_for_tokenizer
from openk2.training.data.builtin import builtin_tools
from openk2.training.data.chains import everyday_links
from openk2.training.data.dice import Dice
from openk2.training.data.frames import Frame, Slot, Tool, domain_frames, parse_frames
from openk2.training.data.functions import FunctionKind, function_kinds, spell_function
from openk2.training.data.lexicon import lexicon, read_domains, read_words
from openk2.training.data.requests import expand, make_request
from openk2.training.data.stream import rivals
from openk2.training.data.values import Values


def take(n: int, split: str = "train", stage: int = 3, seed: int = 0) -> list[Conversation]:
    return list(itertools.islice(conversations(seed, split, stage), n))  # type: ignore[arg-type]


@pytest.fixture(scope="module", params=[("train", 0), ("train", 1), ("train", 2), ("train", 3), ("held", 3)])
def sample(request: pytest.FixtureRequest) -> list[Conversation]:
    split, stage = request.param
    return take(250, split, stage, seed=7)


def test_every_call_is_valid_for_its_declaration(sample: list[Conversation]) -> None:
    for made in sample:
        schemas = {
            t.name: jsonschema_rs.validator_for({**t.parameters, "additionalProperties": False}) for t in made.tools
        }
        assert len(schemas) == len(made.tools), "names of a set must differ"
        for message in made.messages:
            for call in message.tool_calls:
                schemas[call.name].validate(json.loads(call.arguments))


def test_call_ids_count_over_the_conversation_and_keys_are_sorted(sample: list[Conversation]) -> None:
    for made in sample:
        calls = [c for m in made.messages for c in m.tool_calls]
        assert [c.id for c in calls] == [f"functions.{c.name}:{i}" for i, c in enumerate(calls)]
        for call in calls:
            arguments = json.loads(call.arguments)
            assert call.arguments == json.dumps(arguments, ensure_ascii=False)
            assert list(arguments) == sorted(arguments)


def test_every_call_has_one_result_or_ends_the_conversation(sample: list[Conversation]) -> None:
    for made in sample:
        for at, message in enumerate(made.messages):
            if message.tool_calls and at < len(made.messages) - 1:
                results = made.messages[at + 1 : at + 1 + len(message.tool_calls)]
                assert [m.tool_call_id for m in results] == [c.id for c in message.tool_calls]
                assert all(m.role == "tool" for m in results)
        assert made.messages[-1].role == "assistant"


def test_free_strings_and_numbers_are_copied_from_what_was_said(sample: list[Conversation]) -> None:
    """Apart from enums, agent's tools and coded values, an argument stands verbatim in an earlier message."""
    said_otherwise = 0
    total = 0
    for made in sample:
        schemas = {t.name: t.parameters["properties"] for t in made.tools}
        builtin = {t.name for t in BUILTIN_TOOLS}
        for at, message in enumerate(made.messages):
            before = "\n".join(m.text for m in made.messages[:at])
            for call in message.tool_calls:
                if call.name in builtin:
                    continue
                for key, value in json.loads(call.arguments).items():
                    schema = schemas[call.name][key]
                    if "enum" in schema or schema["type"] == "boolean":
                        continue
                    for item in value if isinstance(value, list) else [value]:
                        total += 1
                        if isinstance(item, str):
                            coded = re.search(r"code|ISO", schema.get("description", ""), re.I) is not None
                            implied = item in IMPLIED
                            assert item in before or coded or implied, (key, item, before[-300:])
                        else:
                            said_otherwise += str(item) not in before
    assert said_otherwise < 0.12 * total, "numbers said as words are the only ones not copied"


IMPLIED = {value for frame in domain_frames() for ask in frame.asks for value in re.findall(r"=([^\]]*)\]", ask.text)}


def test_the_parts_share_no_names_keys_or_values() -> None:
    def vocabulary(split: str) -> tuple[set[str], set[str], set[str]]:
        names, keys, values = set(), set(), set()
        builtin = {t.name for t in BUILTIN_TOOLS}
        for made in take(1400, split):
            for tool in made.tools:
                if tool.name not in builtin:
                    names.add(tool.name)
                    keys.update(k.lower() for k in tool.parameters["properties"])
            for message in made.messages:
                for call in message.tool_calls:
                    if call.name not in builtin:
                        values.update(
                            v for v in json.loads(call.arguments).values() if isinstance(v, str) and v.isalpha()
                        )
        return names, keys, values

    train, held = vocabulary("train"), vocabulary("held")
    assert train[0] & held[0] == set()
    assert train[1] & held[1] == set()
    shared = train[2] & held[2]
    assert len(shared) < 0.05 * len(held[2]), sorted(shared)[:50]


def test_lexicons_are_disjoint_and_large_enough() -> None:
    train, held = lexicon("train"), lexicon("held")
    for field in ("nouns", "adjectives", "people", "surnames", "cities", "common"):
        assert not set(getattr(train, field)) & set(getattr(held, field)), field
        assert len(getattr(held, field)) >= 8, field
    assert not {v for s in train.synsets for v in s.verbs} & {v for s in held.synsets for v in s.verbs}
    assert len(held.synsets) >= 30


@pytest.mark.parametrize("split", ["train", "held"])
def test_the_same_seed_gives_the_same_stream(split: str) -> None:
    assert take(40, split, seed=3) == take(40, split, seed=3)
    assert take(40, split, seed=3) != take(40, split, seed=4)


def test_all_kinds_occur_and_refusals_are_frequent() -> None:
    sample = take(700)
    kinds = {made.kind for made in sample}
    assert kinds == set(KINDS)
    answers = [m for made in sample for m in made.messages if m.role == "assistant"]
    assert 0.04 < sum(m.text == NO_TOOL for m in answers) / len(answers) < 0.2
    assert any(len(m.tool_calls) >= 3 for m in answers)


@pytest.mark.parametrize("kind", [*KINDS, "builtin"])
def test_held_cases_end_before_an_assistant_message(kind: str) -> None:
    cases = list(held_cases(1, 25, kind))
    assert len(cases) == 25
    assert cases == list(held_cases(1, 25, kind))
    for tools, messages, expected in cases:
        assert messages[-1].role in ("user", "tool")
        assert expected.role == "assistant"
        assert all(c.name in {t.name for t in tools} for c in expected.tool_calls)
    if kind in ("single", "builtin", "parallel_same", "parallel_different"):
        assert all(expected.tool_calls for _, _, expected in cases)


def test_held_builtin_requests_use_phrasings_that_training_lacks() -> None:
    for train, held in zip(builtin_tools("train"), builtin_tools("held"), strict=True):
        assert train.spec is held.spec
        assert not {a.text for a in train.frame.asks} & {a.text for a in held.frame.asks}
        assert held.frame.asks


@pytest.mark.parametrize(
    "text",
    [
        *(read_words(f"{name}.txt") for name in ("builtin_train", "functions", "smalltalk_train")),
        *read_domains("everyday").values(),
    ],
    ids=lambda text: text[:24],
)
def test_what_is_for_training_alone_has_no_held_out_word(text: str) -> None:
    lex = lexicon("held")
    held = {*lex.nouns, *lex.adjectives, *lex.common, *(w for s in lex.synsets for p in s.verbs for w in p.split())}
    assert not set(re.findall(r"[a-z]+", text.lower())) & held


@pytest.mark.parametrize("kind", function_kinds(), ids=lambda kind: kind.code.partition("(")[0][4:])
def test_every_function_that_training_shows_works(kind: FunctionKind, capsys: pytest.CaptureFixture[str]) -> None:
    rng = Dice(11)
    for _ in range(5):
        request, answer = spell_function(kind, rng)
        assert not re.search(r"[{}]|\bN\b", request), request
        code = answer.removeprefix("```python\n").removesuffix("\n```")
        space: dict[str, object] = {}
        exec(code, space)
        space["f"] = space[code.removeprefix("def ").partition("(")[0]]
        assert kind.checks
        for check in kind.checks:
            assert eval(check, space), check


def test_further_phrasings_of_training_are_no_held_ones_in_other_words() -> None:
    rng = Dice(7)
    held = {
        tool.name: {expand(a.text, rng) for a in tool.frame.asks for _ in range(200)} for tool in builtin_tools("held")
    }
    for frame in parse_frames("builtin", read_words("builtin_train.txt")):
        said = {expand(a.text, rng) for a in frame.asks for _ in range(200)}
        assert not said & held[frame.names[0]]


@pytest.mark.parametrize("frame", domain_frames(), ids=lambda f: f"{f.domain}-{f.names[0]}")
def test_every_hand_written_pattern_can_be_spoken(frame: Frame) -> None:
    rng = Dice(5)
    values = Values(rng, lexicon("train"))
    for _ in range(8):
        tool = Tool.spell(frame, rng)
        request = make_request(tool, values)
        assert not re.search(r"[{}|\[\]]", request.text.replace("`", "")), request.text
        jsonschema_rs.validate(dict(tool.spec.parameters), request.arguments)


def test_rivals_name_known_tools() -> None:
    known = {frame.names[0] for frame in domain_frames()} | {t.name for t in BUILTIN_TOOLS}
    assert set(rivals()) <= known


def test_texts_for_the_tokenizer_hold_schemas_requests_and_words() -> None:
    texts = list(texts_for_tokenizer(1, 400))
    assert len(texts) == 400
    assert any(t.startswith("[{") and '"parameters"' in t for t in texts)
    assert any(t.startswith('{"') and '": "' in t for t in texts)
    assert any(t.startswith("functions.") for t in texts)


def test_everyday_chains_link_fields_that_exist() -> None:
    for link in everyday_links():
        assert link.field in dict(link.first.results), link.joints[0]
        kind = dict(link.first.results)[link.field]
        made = Slot("x", ("x",), kind, (), ()).schema()["type"]
        assert made == link.second.slot(link.slot).schema()["type"], link.joints[0]
        mentioned = re.findall(r"\{([12])\.(\w+)\}", " ".join(link.joints))
        for number, slot in mentioned:
            assert (link.first if number == "1" else link.second).slot(slot)
        for joint in link.joints:
            required = {("1", s.name) for s in link.first.slots if s.required} | {
                ("2", s.name) for s in link.second.slots if s.required and s.name != link.slot
            }
            assert required <= set(re.findall(r"\{([12])\.(\w+)\}", joint)), joint


def test_no_verb_has_two_meanings() -> None:
    verbs = [v for split in ("train", "held") for s in lexicon(split).synsets for v in s.verbs]  # type: ignore[arg-type]
    assert len(verbs) == len(set(verbs))
