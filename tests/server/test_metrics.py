"""The names that dashboards know, and what they count."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from openk2.chat.events import Finished, TextDelta
from openk2.chat.messages import Usage
from openk2.chat.provider import ProviderLoad
from openk2.chat.scripted import ScriptedCall, ScriptedProvider, ScriptedTurn
from openk2.errors import ProviderError
from openk2.server.metrics import Metrics
from openk2.server.request_record import RequestRecord

from .conftest import HTTP, Serve, metric

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "Hi"}]}

NAMES = {
    "vllm:num_requests_running": "gauge",
    "vllm:num_requests_waiting": "gauge",
    "vllm:kv_cache_usage_perc": "gauge",
    "vllm:prefix_cache_queries": "counter",
    "vllm:prefix_cache_hits": "counter",
    "vllm:num_preemptions": "counter",
    "vllm:prompt_tokens": "counter",
    "vllm:generation_tokens": "counter",
    "vllm:request_success": "counter",
    "vllm:time_to_first_token_seconds": "histogram",
    "vllm:inter_token_latency_seconds": "histogram",
    "vllm:request_time_per_output_token_seconds": "histogram",
    "vllm:e2e_request_latency_seconds": "histogram",
    "vllm:request_prompt_tokens": "histogram",
    "vllm:request_generation_tokens": "histogram",
    "openk2:requests_failed": "counter",
    "openk2:requests_aborted": "counter",
    "openk2:requests_refused": "counter",
    "openk2:empty_turns": "counter",
}


def test_names_and_kinds(serve: Serve) -> None:
    url = serve(ScriptedProvider(["Hello there"])).url
    HTTP.post(url + CHAT, json=BODY)
    families = {family.name: family for family in text_string_to_metric_families(HTTP.get(f"{url}/metrics").text)}
    assert {name: families[name].type for name in NAMES} == NAMES
    unlabelled = {"openk2:requests_refused"}
    for name in NAMES.keys() - unlabelled:
        assert all(sample.labels["model_name"] == "scripted" for sample in families[name].samples)


def test_what_is_counted(serve: Serve) -> None:
    turns = [
        ScriptedTurn("Hello there", usage=Usage(prompt_tokens=20, completion_tokens=4)),
        ScriptedTurn(calls=[ScriptedCall("f", {})], usage=Usage(prompt_tokens=30, completion_tokens=6)),
        ScriptedTurn(usage=Usage(prompt_tokens=30, completion_tokens=1)),
        ProviderError("broken"),
    ]
    url = serve(ScriptedProvider(turns)).url
    for _ in turns:
        HTTP.post(url + CHAT, json=BODY)
    assert metric(url, "vllm:prompt_tokens_total") == 80
    assert metric(url, "vllm:generation_tokens_total") == 11
    assert metric(url, "vllm:request_generation_tokens_sum") == 11
    assert metric(url, "vllm:e2e_request_latency_seconds_count") == 4
    assert metric(url, "vllm:time_to_first_token_seconds_count") == 3
    assert metric(url, "openk2:requests_failed_total") == 1
    assert metric(url, "openk2:empty_turns_total") == 1
    text = HTTP.get(f"{url}/metrics").text
    assert 'vllm:request_success_total{finished_reason="stop",model_name="scripted"} 2.0' in text
    assert 'vllm:request_success_total{finished_reason="tool_calls",model_name="scripted"} 1.0' in text


def test_what_the_provider_tells_of_itself(serve: Serve) -> None:
    provider = ScriptedProvider([])
    provider.load = ProviderLoad(3, 2, cache_usage=0.25, cache_queries=100, cache_hits=60, preemptions=1)  # type: ignore[attr-defined]
    url = serve(provider).url
    assert metric(url, "vllm:num_requests_running") == 3
    assert metric(url, "vllm:num_requests_waiting") == 2
    assert metric(url, "vllm:kv_cache_usage_perc") == 0.25
    assert metric(url, "vllm:prefix_cache_queries_total") == 100
    assert metric(url, "vllm:prefix_cache_hits_total") == 60
    assert metric(url, "vllm:num_preemptions_total") == 1


def test_gaps_are_within_a_choice() -> None:
    metrics = Metrics(lambda: None)
    meter = metrics.meter(RequestRecord(request_id="r", method="POST", path="/", model="m"))
    for choice, event in [(0, TextDelta("a")), (1, TextDelta("b")), (0, TextDelta("c")), (1, Finished("stop"))]:
        meter.saw(choice, event)
    meter.end()
    assert b'vllm:inter_token_latency_seconds_count{model_name="m"} 1.0' in metrics.render()
