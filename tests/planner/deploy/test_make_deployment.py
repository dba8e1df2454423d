"""Deployments: every line passes the grammar of its engine's version, ranks fit together, layouts can be started."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod

import pytest

from openk2.errors import ConfigError
from openk2.planner import Load, Parallelism, read_hardware
from openk2.planner.deploy import (
    Deployment,
    Settings,
    known_versions,
    make_deployment,
    plan_for_engine,
    program_flags,
    read_layout,
    read_split,
    vllm,
)
from openk2.planner.deploy.deployment import filled
from openk2.planner.deploy.make_deployment import check_checkpoint, uneven_cut
from openk2.planner.deploy.published import PUBLISHED, preset_of, published
from openk2.planner.formats import scheme
from openk2.planner.read_model import read_model

VERSIONS = [(engine, version) for engine in ("vllm", "sglang") for version in known_versions(engine)]
LAYOUTS = ["TP16", "TP8 PP2", "DP16 EP"]


def deploy(
    engine: str = "vllm",
    version: str | None = None,
    *,
    model: str = "k2-0905",
    hardware: str = "16xH200",
    layout: str | None = None,
    split: str | None = None,
    batch: int = 1,
    cache: str = "bf16",
    context: int = 32768,
    uses_ray: bool = False,
) -> Deployment:
    shape, machine = read_model(model), read_hardware(hardware)
    load = Load(context_tokens=context, batch=batch)
    parts = {"engine": machine}
    if split is not None:
        parts = dict(zip(("prefill", "decode"), read_split(split, machine), strict=True))
    plans = {
        group: plan_for_engine(
            shape,
            part,
            load,
            cache_format=cache,
            layout=read_layout(layout) if layout else None,
            with_pipeline=split is None,
        )
        for group, part in parts.items()
    }
    known = published(shape)
    settings = Settings(
        checkpoint=known.repository or "model", served_name=model, published=known, uses_ray=uses_ray, revision="abc"
    )
    return make_deployment(engine, plans, settings, version=version)


def read(deployment: Deployment, name: str) -> dict[str, object]:
    """What the program of one process reads from its arguments."""
    process = next(process for process in deployment.processes if process.name == name)
    version = deployment.flags_version if process.program == deployment.engine else None
    arguments = [filled(word, lambda owner: f"host-{owner}") for word in process.arguments]
    return vars(program_flags(process.program, version).parse(arguments))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("engine", "version"), VERSIONS)
def test_one_process_per_node_and_every_device_in_the_layout(engine: str, version: str, layout: str) -> None:
    made = deploy(engine, version, layout=layout)
    assert [process.name for process in made.processes] == ["engine-0", "engine-1"]
    assert [process.port for process in made.processes] == [8001, None]
    values = read(made, "engine-0")
    if engine == "vllm":
        sizes = [values[f"{name}_parallel_size"] or 1 for name in ("tensor", "pipeline", "data")]
    else:
        sizes = [values.get("tp_size") or values.get("tensor_parallel_size") or 1]
        sizes.append(values.get("pp_size") or values.get("pipeline_parallel_size") or 1)
    assert prod(int(str(size)) for size in sizes) == 16
    assert values.get("tool_call_parser") == "kimi_k2"
    assert values["revision"] == "abc"
    assert (values.get("max_model_len") or values.get("context_length")) == 32768


@pytest.mark.parametrize(("engine", "version"), VERSIONS)
def test_prefill_apart_from_decode(engine: str, version: str) -> None:
    made = deploy(engine, version, hardware="32xH200", split="2P2D")
    assert [p.name for p in made.processes] == ["prefill-0", "prefill-1", "decode-0", "decode-1", "router"]
    assert made.entry.name == "router"
    router = read(made, "router")
    prefill, decode = (json.dumps(router[key]) for key in ("prefill", "decode"))
    assert "http://host-prefill-0:8002" in prefill and "http://host-decode-0:8003" in decode
    assert all(plan.parallelism.pp_size == 1 for plan in made.plans.values())
    if engine == "sglang":
        assert [read(made, f"{group}-0")["disaggregation_mode"] for group in made.plans] == ["prefill", "decode"]
        assert "8998" in prefill
    else:
        assert read(made, "decode-0")["kv_transfer_config"] == {"kv_connector": "NixlConnector", "kv_role": "kv_both"}
        assert made.processes[0].environment["VLLM_NIXL_SIDE_CHANNEL_HOST"] == "<self>"


def test_ray_where_the_version_has_no_nodes_of_its_own() -> None:
    old, new, forced = deploy("vllm", "0.11.0"), deploy("vllm", "0.33.0"), deploy("vllm", "0.33.0", uses_ray=True)
    for made in (old, forced):
        head, worker = made.processes
        assert head.before[0][:3] == ("ray", "start", "--head")
        assert worker.argv == ("ray", "start", "--address=<engine-0>:6379", "--block")
        assert head.environment["VLLM_HOST_IP"] == "<self>"
    assert read(new, "engine-1")["node_rank"] == 1 and read(new, "engine-1")["headless"] is True
    assert not new.processes[0].before


def test_data_parallel_ranks_follow_each_other_over_nodes() -> None:
    made = deploy("vllm", hardware="32xH200", layout="TP2 DP16 EP")
    starts = [read(made, f"engine-{rank}")["data_parallel_start_rank"] for rank in range(4)]
    assert starts == [None, 4, 8, 12]
    assert {read(made, f"engine-{rank}")["data_parallel_size_local"] for rank in range(4)} == {4}
    with pytest.raises(ConfigError, match="each replica within one"):
        deploy("vllm", hardware="32xH200", layout="TP16 DP2 EP")


def test_the_spelling_of_attention_data_parallel_follows_the_version() -> None:
    old, new = (deploy("sglang", version, layout="DP16 EP").processes[0].argv for version in ("0.5.3", "0.5.23"))
    assert "--enable-dp-attention" in old and "--attn-dp-size" not in old
    assert "--attn-dp-size" in new and "--enable-dp-attention" not in new


def test_an_unknown_version_takes_the_flags_of_the_one_before() -> None:
    assert program_flags("vllm", "0.12.3").version == "0.11.0"
    assert program_flags("sglang", "v0.5.23.post1").version == "0.5.23"
    assert deploy("vllm", "0.34.0").image == "vllm/vllm-openai:v0.34.0"
    with pytest.raises(ConfigError, match="older than 0.11.0"):
        program_flags("vllm", "0.9.2")
    with pytest.raises(ConfigError, match="looks like"):
        program_flags("vllm", "latest")


def test_memory_and_load_of_the_plan_reach_the_engine() -> None:
    made = deploy("sglang", batch=64, layout="TP16", cache="fp8", context=4096)
    memory = made.plans["engine"].memory
    static = sum(term.bytes for term in memory.terms if term.name.startswith(("weights", "cache")))
    values = read(made, "engine-0")
    assert static / memory.device_bytes <= float(str(values["mem_fraction_static"])) < 0.95
    assert values["max_running_requests"] == 64 and values["kv_cache_dtype"] == "fp8_e4m3"
    assert read(deploy("vllm", batch=64, layout="DP16 EP", context=4096), "engine-0")["max_num_seqs"] == 4


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name != "deepseek-v2-lite"])
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_parsers_of_every_model_are_the_engines_own(engine: str, name: str) -> None:
    made = deploy(engine, model=name, hardware="32xB200", context=4096)
    process, flags, known = made.processes[0], program_flags(engine), PUBLISHED[name]
    assert ("--tool-call-parser" in process.argv) == bool(known.tool_parsers)
    assert ("--reasoning-parser" in process.argv) == bool(known.reasoning_parsers)
    for flag, names in (("--tool-call-parser", flags.tool_parsers), ("--reasoning-parser", flags.reasoning_parsers)):
        if flag in process.argv:
            assert process.argv[process.argv.index(flag) + 1] in names


def test_no_rank_holds_part_of_a_block_of_scales() -> None:
    k2, fp8 = read_model("k2-0905"), scheme("fp8")
    assert uneven_cut(k2, fp8, Parallelism(tp_size=16)) is None  # 2048 / 16 = 128
    assert "TP32" in (uneven_cut(k2, fp8, Parallelism(tp_size=32)) or "")
    assert uneven_cut(k2, scheme("bf16"), Parallelism(tp_size=32)) is None
    assert plan_for_engine(k2, read_hardware("32xH200"), Load(context_tokens=4096)).parallelism.tp_size <= 16
    with pytest.raises(ConfigError, match="share a scale"):
        deploy(hardware="32xH200", layout="TP32")


@pytest.mark.parametrize(
    ("text", "layout"),
    [
        ("TP8 PP2", Parallelism(tp_size=8, pp_size=2)),
        ("dp16, ep16", Parallelism(dp_size=16, expert_parallel=True)),
        ("TP8 DCP8", Parallelism(tp_size=8, dcp_size=8)),
    ],
)
def test_layouts_are_read_as_they_are_printed(text: str, layout: Parallelism) -> None:
    assert read_layout(text) == layout
    assert read_layout(str(layout)) == layout


@pytest.mark.parametrize("text", ["", "8", "TP", "XX4", "TP8 EP4", "TP0"])
def test_other_layouts_are_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        read_layout(text)


def test_nodes_for_prefill_and_decode_are_all_of_the_hardware() -> None:
    prefill, decode = read_split("1P3D", read_hardware("32xH200"))
    assert (prefill.num_devices, decode.num_devices) == (8, 24)
    with pytest.raises(ConfigError, match="--hardware 16xH200"):
        read_split("1P1D", read_hardware("32xH200"))
    with pytest.raises(ConfigError, match="1P1D"):
        read_split("two", read_hardware("32xH200"))


def test_what_cannot_be_deployed_is_refused() -> None:
    with pytest.raises(ConfigError, match="whole nodes"):
        deploy(hardware="12xH200")
    with pytest.raises(ConfigError, match="lacks"):
        deploy(hardware="8xH100")
    with pytest.raises(ConfigError, match="--image"):
        deploy(hardware="8xMI300X")
    with pytest.raises(ConfigError, match="openk2 serve"):
        deploy(hardware="CPU-24ch-DDR5-6000-1536GB")
    with pytest.raises(ConfigError, match="take bf16 or fp8"):
        deploy("vllm", "0.11.0", cache="fp8_ds_mla")
    with pytest.raises(ConfigError, match="no engine 'ollama'"):
        deploy("ollama")


def test_the_checkpoint_has_the_format_of_the_plan() -> None:
    k2, moonlight = read_model("k2-0905"), read_model("moonlight")
    assert check_checkpoint(k2, None, None) is False
    assert check_checkpoint(moonlight, "fp8", None) is True
    assert check_checkpoint(k2, "awq", "somebody/K2-AWQ") is False
    with pytest.raises(ConfigError, match="--checkpoint"):
        check_checkpoint(k2, "awq", None)
    with pytest.raises(ConfigError, match="do not serve"):
        check_checkpoint(k2, "q4_k_m", "somebody/K2-GGUF")


def test_repositories_lead_to_presets() -> None:
    assert preset_of("moonshotai/Kimi-K2-Instruct-0905-FP8") == "k2-0905"
    assert preset_of("somebody/Kimi-K2-Thinking") == "k2-thinking"
    assert preset_of("meta-llama/Llama-3-8B") is None


def test_a_line_that_the_engine_would_refuse_is_never_handed_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="unrecognized arguments"):
        program_flags("vllm").parse(["model", "--temperature", "0.6"])
    with pytest.raises(ConfigError, match="invalid int"):
        program_flags("vllm").parse(["model", "--tensor-parallel-size", "many"])
    real = vllm.engine_processes

    def with_a_wrong_flag(*args: object, **options: object) -> object:
        return [replace(one, argv=(*one.argv, "--disaggregate-prefill-decode")) for one in real(*args, **options)]  # type: ignore[arg-type]

    monkeypatch.setattr(vllm, "engine_processes", with_a_wrong_flag)
    with pytest.raises(ConfigError, match="unrecognized arguments"):
        deploy("vllm")
