"""From a configuration to ranks: what it means, what it cannot mean, what engines are told."""

from pathlib import Path
from typing import Any

import pytest

from dynosim.build.cluster import cluster_spec
from dynosim.build.engine import prepare
from dynosim.build.engine_command import vllm_gpu_flags
from dynosim.build.ranks import rank_spec
from dynosim.build.workload import load_trace
from dynosim.config.engine import EngineConfig
from dynosim.config.loading import check_run
from dynosim.config.schema import RunConfig
from dynosim.errors import ConfigError
from dynosim.silicon import resolve_num_gpu_blocks
from dynosim.sweep.bound import rate_bound_rps
from dynosim.sweep.engine_script import engine_script
from dynosim.sweep.winners import family_of
from dynosim.timing.roofline_ranks import RankedRoofline

MOE, DENSE = "Qwen/Qwen3-30B-A3B", "Qwen/Qwen3-4B"
TWO = {"data_parallel": 2}


def plan(*, model: str | None = MOE, engine: dict[str, Any], **keys: Any) -> RunConfig:
    data: dict[str, Any] = {
        "workload": {"synthetic": {"requests": 4, "isl": 100, "osl": 5, "rate_rps": 5}},
        "timing": {"kind": "roofline"},
        "hardware": "h100_sxm",
        "engine": {"num_gpu_blocks": 9000, "max_model_len": 1000, **engine},
    }
    if model is None:
        data["timing"] = {"kind": "fixed", "prefill_ms": 1, "decode_ms": 1}
    else:
        data["model"] = model
    config = check_run({**data, **keys}, Path())
    assert isinstance(config, RunConfig), config
    return config


@pytest.mark.parametrize(("model", "in_lock_step"), [(MOE, True), (DENSE, False)])
def test_ranks_of_a_model_with_experts_wait_for_each_other(model: str, in_lock_step: bool) -> None:
    ranks = rank_spec(plan(model=model, engine=TWO | {"max_num_seqs": 100, "version": "0.19.0"}))
    assert (ranks.number, ranks.in_lock_step, ranks.padded_up_to) == (2, in_lock_step, 200)
    assert ranks.rule is not None and not ranks.rule.counts_in_flight


def test_whoever_follows_caches_chooses_among_ranks_himself() -> None:
    assert rank_spec(plan(engine=TWO, router={"mode": "kv"})).rule is None
    assert rank_spec(plan(engine=TWO | {"rank_balancing": "router"})).rule is None
    assert rank_spec(plan(engine=TWO | {"rank_balancing": "internal"})).rule is not None


def test_step_times_and_gpus_are_those_of_the_whole_worker() -> None:
    config = plan(engine=TWO | {"tensor_parallel": 2, "expert_parallel": True})
    prepared = prepare(config)
    assert isinstance(prepared.timing, RankedRoofline)
    assert "data_parallel 2 (whole experts on each GPU)" in prepared.timing.description
    (pool,) = cluster_spec(config, prepared).pools
    assert (pool.gpus_per_worker, pool.ranks) == (4, prepared.ranks)
    assert config.num_gpus == 4


def test_step_times_that_know_no_common_part_say_so() -> None:
    fixed = {"kind": "fixed", "prefill_ms": 1, "decode_ms": 1}
    notes = prepare(plan(engine=TWO, timing=fixed)).timing.notes
    assert any("ranks in lock step: a step takes as long as the slowest" in one for one in notes)
    assert prepare(plan(model=DENSE, engine=TWO, timing=fixed)).timing.notes == ()


def test_two_ranks_carry_twice_as_much() -> None:
    config = plan(engine=TWO)
    prepared, trace = prepare(config), load_trace(config)
    one = rate_bound_rps(trace, prepare(plan(engine={})), 1)
    assert 1.5 * one < rate_bound_rps(trace, prepared, 1) < 4 * one


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"model": DENSE, "engine": {"expert_parallel": True}},
         r"engine.expert_parallel: Qwen/Qwen3-4B has no experts \(leave it out"),
        ({"model": None, "engine": {"expert_parallel": True}},
         r"engine.expert_parallel: no model is named \(add `model:`"),
        ({"model": None, "engine": TWO}, "engine.data_parallel: whether ranks wait .*add `model"),
        ({"engine": TWO, "cluster": {"workers": 2, "cpu_workers": 1}},
         "engine.data_parallel: 2, but 1 of the workers run on CPUs"),
        ({"engine": TWO | {"rank_balancing": "internal"}, "router": {"mode": "kv"}},
         "engine.rank_balancing: internal, but the router follows the caches"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare(plan(**given))


def test_balancing_of_one_rank_is_refused_with_its_key() -> None:
    with pytest.raises(AssertionError, match=r"(?s)rank_balancing.*a worker has one rank"):
        plan(engine={"rank_balancing": "internal"})


def test_experts_are_spread_over_all_ranks_memory_and_the_rest_is_in_each() -> None:
    def weights(**parallel: Any) -> int:
        engine = EngineConfig.of({"max_model_len": 1000, **parallel})
        found = resolve_num_gpu_blocks(engine, model=MOE, hardware="rtx_pro_6000_workstation")
        return found.breakdown["weights_bytes"]

    one, two = weights(), weights(data_parallel=2, expert_parallel=True)
    assert one * 0.5 < two < one * 0.56
    assert weights(tensor_parallel=2) < two


def test_an_engine_is_told_of_its_ranks() -> None:
    engine = EngineConfig.of({"data_parallel": 4, "expert_parallel": True})
    flags = vllm_gpu_flags(engine)
    assert flags[flags.index("--data-parallel-size") + 1] == "4"
    assert "--enable-expert-parallel" in flags
    assert not {"--data-parallel-size", "--enable-expert-parallel"} & set(
        vllm_gpu_flags(EngineConfig.of({}))
    )


def test_a_winners_script_gives_a_worker_the_gpus_of_all_its_ranks(tmp_path: Path) -> None:
    config = plan(
        engine=TWO | {"tensor_parallel": 2, "expert_parallel": True}, cluster={"workers": 2}
    )
    text = engine_script(config, title="winner", folder=tmp_path)
    for part in ("GPUS:-0,1,2,3}", "GPUS:-4,5,6,7}", "--data-parallel-size 2"):
        assert part in text
    assert "--kv-events-config" not in text
    assert family_of(config) == "agg TP2 DP2 EP"
