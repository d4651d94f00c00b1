"""From a configuration to a run: nothing of it is lost or changed on the way."""

import gc
import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynosim.build.engine import engine_spec, prepare
from dynosim.build.workload import load_trace
from dynosim.config import RunConfig
from dynosim.config.router import RouterConfig
from dynosim.engine.spec import EngineSpec
from dynosim.errors import ConfigError, InfeasibleError, InvariantError
from dynosim.experiment.run import collector_paused, run
from dynosim.records import Trace
from dynosim.timing.formulas import FixedModel, LinearModel
from dynosim.timing.prefill_estimate import StepTimeEstimator
from dynosim.timing.step import StepShape

OTHER_THAN_DEFAULT: dict[str, Any] = {
    "block_size": 8,
    "num_gpu_blocks": 321,
    "max_model_len": 777,
    "max_num_seqs": 17,
    "max_num_batched_tokens": 999,
    "enable_prefix_caching": False,
    "reuse_granularity_tokens": 64,
    "enable_chunked_prefill": False,
    "long_prefill_token_threshold": 55,
    "long_prefill_token_threshold_adaptive": True,
    "policy": "priority",
    "watermark": 0.125,
    "scheduler_reserve_full_isl": False,
    "max_num_active_seqs": 13,
    "async_scheduling": False,
}


def configured(**sections: Any) -> RunConfig:
    plan: dict[str, Any] = {
        "workload": {"synthetic": {"requests": 12, "isl": 50, "osl": 9, "rate_rps": 40}},
        "engine": {"num_gpu_blocks": 400},
        "timing": {"kind": "fixed", "prefill_ms": 10.0, "decode_ms": 4.0},
    }
    return RunConfig.model_validate({**plan, **sections})


def trace_of(input_tokens: int, output_tokens: int) -> Trace:
    return Trace(
        arrival_ms=np.zeros(1),
        input_tokens=np.array([input_tokens]),
        output_tokens=np.array([output_tokens]),
        hash_ids=np.zeros(0, np.int64),
        hash_offsets=np.zeros(2, np.int64),
        trace_block_size=16,
        skipped_lines=5,
    )


def test_every_knob_of_the_engine_reaches_the_scheduler() -> None:
    engine = configured(engine=OTHER_THAN_DEFAULT).engine
    spec = engine_spec(engine, num_gpu_blocks=321, max_model_len=777)
    one_only = {"kind"}  # of engine
    one_only |= {"kv_role", "kv_load_failure_policy"}  # of a pool, not of an engine's section
    one_only |= {"host_cache", "speculation"}  # of a scenario
    assert {knob.name for knob in fields(EngineSpec)} == set(OTHER_THAN_DEFAULT) | one_only
    assert spec.kind == engine.kind
    assert {name: getattr(spec, name) for name in OTHER_THAN_DEFAULT} == OTHER_THAN_DEFAULT
    default = engine_spec(configured().engine, num_gpu_blocks=320, max_model_len=776)
    same = [name for name in OTHER_THAN_DEFAULT if getattr(default, name) == getattr(spec, name)]
    assert same == []


def test_without_chunks_a_step_must_hold_the_longest_request() -> None:
    engine = configured(
        engine={"num_gpu_blocks": 9, "enable_chunked_prefill": False, "max_num_batched_tokens": 500}
    ).engine
    assert engine_spec(engine, num_gpu_blocks=99, max_model_len=500).max_model_len == 500
    with pytest.raises(InfeasibleError, match=r"500 is less than max_model_len \(501\)"):
        engine_spec(engine, num_gpu_blocks=99, max_model_len=501)
    chunked = engine.model_copy(update={"enable_chunked_prefill": True})
    assert engine_spec(chunked, num_gpu_blocks=99, max_model_len=501).max_model_len == 501


def test_the_cap_of_long_prompts_is_at_most_the_longest_request() -> None:
    engine = configured(engine={"num_gpu_blocks": 9, "long_prefill_token_threshold": 60}).engine
    assert engine_spec(engine, num_gpu_blocks=9, max_model_len=60).max_model_len == 60
    with pytest.raises(InfeasibleError, match=r"60 is more than max_model_len \(59\)"):
        engine_spec(engine, num_gpu_blocks=9, max_model_len=59)


def test_the_longest_request_is_configured_or_what_the_cache_holds() -> None:
    asked = configured(engine={"num_gpu_blocks": 9, "block_size": 4, "max_model_len": 20})
    assert prepare(asked).engine.max_model_len == 20
    cache = configured(engine={"num_gpu_blocks": 9, "block_size": 4})
    assert prepare(cache).engine.max_model_len == 32
    assert run(cache, trace=trace_of(5, 5)).report["max_model_len"] == 32


@pytest.mark.parametrize("is_nested", [False, True])
def test_the_longest_request_is_the_models_own(tmp_path: Path, is_nested: bool) -> None:
    shape = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "intermediate_size": 128, "vocab_size": 512, "head_dim": 16,
        "max_position_embeddings": 1234,
    }  # fmt: skip
    config = {"text_config": shape, "model_type": "x"} if is_nested else {**shape}
    path = tmp_path / "config.json"
    path.write_text(json.dumps(config))
    prepared = prepare(configured(model=str(path), hardware="h200_sxm"))
    assert prepared.engine.max_model_len == 1234
    assert prepared.capacity.source != ""


def test_step_times_know_the_cache_that_can_be_used() -> None:
    config = configured(timing={"kind": "polynomial"}, engine={"num_gpu_blocks": 101})
    assert (
        prepare(config).timing.description
        == "polynomial: mocker formulas over 1600 tokens of KV cache"
    )


def test_too_long_requests_are_refused_only_where_nobody_said_how_long_they_may_be() -> None:
    """Three usable blocks of 16 hold 48 tokens; the last one is never written to the cache."""
    small = {"num_gpu_blocks": 4}
    assert run(configured(engine=small), trace=trace_of(40, 9)).report["completed_requests"] == 1
    with pytest.raises(InfeasibleError, match="longer than the KV cache"):
        run(configured(engine=small), trace=trace_of(40, 10))
    limited = configured(engine={**small, "max_model_len": 40})
    report = run(limited, trace=trace_of(40, 10)).report
    assert report["rejected_requests"] == 1
    assert report["skipped_lines"] == 5
    assert report["kv_capacity_source"] == prepare(limited).capacity.source


def test_seeds_draw_workloads_and_routes_of_their_own() -> None:
    lengths = {"dist": "lognormal", "mean": 50, "std": 20}
    drawn = configured(
        workload={"synthetic": {"requests": 30, "isl": lengths, "osl": 9, "rate_rps": 40}},
        router={"mode": "random"},
        cluster={"workers": 4},
    )
    other = drawn.model_copy(update={"seed": 1})
    assert load_trace(drawn).input_tokens.tolist() == load_trace(drawn).input_tokens.tolist()
    assert load_trace(drawn).input_tokens.tolist() != load_trace(other).input_tokens.tolist()
    trace = load_trace(drawn)
    routes = [
        run(config, trace=trace).result.requests.worker_id.tolist()
        for config in (drawn, drawn, other)
    ]
    assert routes[0] == routes[1] != routes[2]


def test_a_broken_law_stops_a_run_that_is_checked_and_no_other() -> None:
    """Steps that take less than no time."""
    config = configured(workload={"synthetic": {"requests": 1, "isl": 5, "osl": 1, "rate_rps": 1}})
    prepared = replace(prepare(config), timing=FixedModel(-5.0, 1.0))
    assert run(config, prepared=prepared).report["completed_requests"] == 1
    with pytest.raises(InvariantError):
        run(config, prepared=prepared, check=True)


@pytest.mark.parametrize(("arrival_ms", "dispatch_ms"), [(45.0, 100.0), (55.0, 55.0)])
def test_routers_expect_prompts_to_take_the_engines_own_steps(
    arrival_ms: float, dispatch_ms: float
) -> None:
    """Ten steps of 16 tokens and 10 ms each: half of 160 tokens are done after 50 ms.

    Whoever comes while more than half is left waits in the router until all of it is done.
    """
    config = configured(
        engine={"num_gpu_blocks": 400, "max_num_seqs": 2, "max_num_batched_tokens": 16},
        router={
            "mode": "kv",
            "prefill_load_model": "timing",
            "policy_classes": [{"name": "all", "prefill_busy_threshold": 80}],
        },
    )
    trace = replace(
        trace_of(160, 5),
        arrival_ms=np.array([0.0, arrival_ms]),
        input_tokens=np.array([160, 16]),
        output_tokens=np.array([5, 5]),
        hash_offsets=np.zeros(3, np.int64),
    )
    assert run(config, trace=trace).result.requests.dispatch_ms.tolist() == [0.0, dispatch_ms]


def test_events_are_kept_when_asked_for() -> None:
    assert run(configured()).result.kv_events is None
    events = run(configured(), record_kv_events=True).result.kv_events
    assert events is not None and len(events.num_blocks) > 0


def test_the_mode_that_needs_named_workers_is_refused_where_none_are_named() -> None:
    with pytest.raises(ConfigError, match="direct"):
        run(configured(router={"mode": "direct"}))


def test_a_router_log_is_whole_when_the_run_is_over(tmp_path: Path) -> None:
    path = tmp_path / "router.jsonl"
    run(configured(router={"mode": "kv"}), router_log=path)
    lines = path.read_text().splitlines()
    assert len(lines) > 12
    assert all(json.loads(line) for line in lines)


@pytest.mark.parametrize("is_enabled", [True, False])
def test_the_collector_rests_and_is_left_as_it_was(is_enabled: bool) -> None:
    was_enabled = gc.isenabled()
    try:
        (gc.enable if is_enabled else gc.disable)()
        with pytest.raises(KeyError), collector_paused():
            assert not gc.isenabled()
            raise KeyError
        assert gc.isenabled() is is_enabled
    finally:
        (gc.enable if was_enabled else gc.disable)()


def test_a_prompts_time_is_that_of_its_steps_one_behind_the_other() -> None:
    timing = LinearModel(
        base_ms=1.0, per_prefill_token_ms=0.1, per_decode_ms=5.0, per_context_token_ms=0.01
    )
    estimator = StepTimeEstimator(timing, 40)
    steps = [
        timing.step_ms(StepShape.of_prompts(1, 40, 20)),
        timing.step_ms(StepShape.of_prompts(1, 40, 60)),
    ]
    rest = timing.step_ms(StepShape.of_prompts(1, 15, 100))
    assert estimator.predict_ms(80, 20) == pytest.approx(sum(steps))
    assert estimator.predict_ms(95, 20) == pytest.approx(sum(steps) + rest)
    assert estimator.predict_ms(0, 20) == 0.0


@pytest.mark.parametrize(
    ("name", "tiers"),
    [
        ("host_cache_hit_weight", None),
        ("disk_cache_hit_weight", None),
        ("host_cache_hit_weight", {"host": {"num_blocks": 9, "scope": "node"}}),
        ("disk_cache_hit_weight", {"host": {"num_blocks": 9}}),
    ],
)
def test_weights_of_tiers_that_engines_lack_are_refused(name: str, tiers: object) -> None:
    data: dict[str, Any] = {
        "workload": {"synthetic": {"requests": 2, "isl": 8, "osl": 2, "rate_rps": 1}},
        "engine": {"num_gpu_blocks": 100},
        "timing": {"kind": "polynomial"},
    }
    with pytest.raises(ConfigError, match=f"router.{name}: no worker has such a tier"):
        router = {"mode": "kv", name: 0.5}
        run(RunConfig.model_validate(data | {"router": router, "cluster": {"tiers": tiers}}))
    default = RouterConfig.model_fields[name].default
    run(RunConfig.model_validate(data | {"router": {"mode": "kv", name: default}}))
