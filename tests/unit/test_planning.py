"""What a comparison of controllers is put together from."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dynosim.cli.plan import contestants
from dynosim.config.controllers import PlannerConfig
from dynosim.config.loading import run_config_from_dict, written_out
from dynosim.config.schema import CONTROLLERS, RunConfig
from dynosim.config.yaml_source import Document
from dynosim.errors import ConfigError
from dynosim.metrics.lives import mean_gpus
from dynosim.planner.capacity import OperatingPoint
from dynosim.planner.decision import PoolDecision, ScalingDecision
from dynosim.planner.look import Look
from dynosim.planner.observation import Observation, PoolState
from dynosim.planning.bound import Bound
from dynosim.planning.capacity_of import ladder
from dynosim.planning.defaults import Limits, derived_section, limits_of
from dynosim.planning.document import changes_of
from dynosim.planning.fixed import FixedRuns, layout
from dynosim.planning.plan_file import PlanFile, plan_file
from dynosim.planning.played import (
    OfferedLoad,
    Played,
    Replayer,
    attainment_by_bin,
    good_by_bin,
    held_by_bin,
)
from dynosim.planning.study import CONTESTANTS, said
from dynosim.records import FloatArray, WorkerLog

DATA: dict[str, Any] = {
    "workload": {
        "synthetic": {"isl": 600, "osl": 20},
        "stages": [
            {"rate_rps": 2, "duration_s": 60},
            {"rate_rps": 16, "duration_s": 60},
            {"rate_rps": 2, "duration_s": 60},
        ],
    },
    "engine": {"num_gpu_blocks": 600, "max_num_seqs": 16, "max_num_batched_tokens": 2048},
    "timing": {"kind": "fixed", "prefill_ms": 100, "decode_ms": 10},
    "cluster": {"workers": 2, "startup": {"boot_s": 15}},
    "router": {"mode": "least-loaded"},
    "sla": {"ttft_ms": 1000},
}
POINT = OperatingPoint(rps=2.5, num_seqs=12, ttft_ms=100.0, itl_ms=10.0, miss=0.5)


def file_of(**sections: Any) -> PlanFile:
    return plan_file(Document({**DATA, **sections}, "plan.yaml", Path.cwd()))


def config_of(**sections: Any) -> RunConfig:
    return run_config_from_dict({**DATA, "planner": {}, **sections})


def fixed_runs(stage: Replayer, file: PlanFile, most: int = 8) -> FixedRuns:
    return FixedRuns(stage, file, ladder([1.0], most), 0.95, lambda _: None)


# ---- sizes and sections --------------------------------------------------------------------------


def test_a_ladder_grows_the_pool_that_serves_least() -> None:
    assert ladder([1.0], 3) == [(1,), (2,), (3,)]
    rungs = ladder([4.0, 1.0], 6)
    assert rungs == [(1, 1), (1, 2), (1, 3), (1, 4), (2, 4)]
    assert [layout(sizes) for sizes in ((1,), (3,), (2, 4))] == ["1 worker", "3 workers", "2P4D"]


@pytest.mark.parametrize("controller", CONTROLLERS)
@pytest.mark.parametrize("ttft_ms", [None, 0.4, 1500.0])
def test_every_derived_section_is_a_valid_one(controller: str, ttft_ms: float | None) -> None:
    limits = Limits(ttft_ms, None, least=0, most=7, in_flight=12, rps=2.5)
    section = derived_section(controller, limits)
    config = file_of().under(controller, section)
    assert config.controllers() == [controller]
    most = section.get("max_replicas", section.get("max_endpoint"))
    assert most == 7
    assert str(most) in said(section)


def test_limits_are_those_of_a_stated_planner_else_twice_the_fixed_peak() -> None:
    config = config_of()
    assert limits_of(config, None, 5, POINT).most == 10
    planner = PlannerConfig(max_gpu_budget=6, min_endpoint=2)
    found = limits_of(config, planner, 5, POINT)
    assert (found.least, found.most, found.in_flight, found.rps) == (2, 6, 12, 2.5)
    wide = PlannerConfig(max_gpu_budget=None, max_endpoint=20)
    assert limits_of(config, wide, 5, POINT).most == 20


def test_who_waits_at_the_target_is_what_keda_aims_at() -> None:
    limits = Limits(2000.0, 50.0, least=1, most=4, in_flight=12, rps=2.5)
    (trigger,) = derived_section("keda", limits)["triggers"]
    assert trigger == {"metric": "pending_requests", "target": 5.0}  # 2.5/s for 2 s
    assert derived_section("hpa", limits)["target"] == 2.0
    assert derived_section("concurrency", limits)["target"] == 12.0


def test_a_list_of_contestants() -> None:
    assert contestants("") == CONTESTANTS
    assert contestants("hpa, perfect,hpa") == ("hpa", "perfect")
    with pytest.raises(ConfigError, match="vpa"):
        contestants("vpa")


# ---- the file ------------------------------------------------------------------------------------


def test_a_file_may_state_several_controllers_each_its_own_run() -> None:
    hpa = {"target": 2.0, "max_replicas": 4}
    file = file_of(planner={}, hpa=hpa, scaling={"scrape_interval_ms": 5000})
    assert file.under("hpa").controllers() == ["hpa"]
    assert file.under("planner").controllers() == ["planner"]
    assert file.states("hpa") and not file.states("keda")
    under = file.under("hpa")
    assert under.scaling is not None and under.scaling.scrape_interval_ms == 5000


def test_a_fixed_cluster_has_nobody_who_scales_and_nobody_who_starts() -> None:
    fixed = file_of().fixed((3,))
    assert fixed.cluster.workers == 3 and not fixed.is_scaled and fixed.scaling is None
    assert fixed.cluster.startup is None
    run_config_from_dict(fixed.model_dump(mode="json", exclude_none=True))  # stands for itself
    starting = {"workers": 2, "startup": {"boot_s": 15, "initial": "starting"}}
    assert file_of(cluster=starting).fixed((3,)).cluster.startup is not None


def test_no_limit_is_written_out_where_there_is_one_by_default() -> None:
    config = config_of(planner={"max_gpu_budget": None, "min_endpoint": 2})
    data = written_out(config)
    assert data["planner"]["max_gpu_budget"] is None and "max_endpoint" not in data["planner"]
    assert run_config_from_dict(data).planner == config.planner
    assert "hpa" not in data and "ttft_ms" not in data["planner"]  # which is the SLA's


# ---- over time -----------------------------------------------------------------------------------


def test_hours_and_requests_of_bins_add_up_to_the_runs() -> None:
    file = file_of(hpa={"metric": "pending_requests", "target": 2, "max_replicas": 5})
    stage = Replayer(file.base, 1, 10.0)
    (load,) = stage.loads
    played = stage.play(file.under("hpa"), load)
    result = played.outcome.result
    held = held_by_bin(result, load)
    hours = result.end_ms * mean_gpus(result.workers, 0.0, result.end_ms) / 3.6e6
    assert held["gpu_hours"].sum() == pytest.approx(hours)
    assert held["gpu_hours"].sum() == pytest.approx(played.report["gpu_hours"])
    assert held["starting"].max() > 0 and load.num_bins == 18
    num, good = good_by_bin(played, load)
    assert num.sum() == played.report["num_requests"]
    assert good.sum() / num.sum() == pytest.approx(played.attainment)


def test_workers_of_a_bin_are_means_of_its_time() -> None:
    """One all along; one launched at 5, ready at 15, told to go at 25, gone at 35 s."""
    workers = replace(
        WorkerLog.equal(2, gpus=2),
        launched_ms=np.array([0.0, 5e3]),
        ready_ms=np.array([0.0, 15e3]),
        draining_ms=np.array([np.nan, 25e3]),
        ended_ms=np.array([np.nan, 35e3]),
    )
    load = OfferedLoad(0, None, 10e3, 3, 1.0, 1.0, 1.0)  # type: ignore[arg-type]
    result: Any = type("Result", (), {"workers": workers, "end_ms": 40e3})()
    held = held_by_bin(result, load)
    assert held["starting"].tolist() == [0.5, 0.5, 0.0]
    assert held["ready"].tolist() == [1.0, 1.5, 1.25]  # the last bin goes to the end
    assert held["draining"].tolist() == [0.0, 0.0, 0.5]
    assert held["gpu_hours"].sum() == pytest.approx(2 * (40 + 30) / 3600)


def test_a_bin_in_which_nobody_came_misses_nothing() -> None:
    file = file_of()
    stage = Replayer(file.base, 1, 1.0)
    played = stage.play(file.fixed((1,)), stage.loads[0])
    num, _ = good_by_bin(played, stage.loads[0])
    kept = attainment_by_bin(played, stage.loads[0])
    assert (num == 0).any() and (kept[num == 0] == 1.0).all() and kept.min() < 0.5


# ---- fixed clusters and the bound ----------------------------------------------------------------


def test_the_fewest_fixed_workers_are_found_from_both_ends() -> None:
    file = file_of()
    stage = Replayer(file.base, 1, 10.0)
    kept = [fixed_runs(stage, file).keeps(place) for place in range(8)]
    assert kept == sorted(kept) and not kept[0] and kept[-1]
    first = kept.index(True)
    assert fixed_runs(stage, file).fewest(from_above=False) == first
    assert fixed_runs(stage, file).fewest(from_above=True) == first
    assert fixed_runs(stage, file, most=first).fewest(from_above=False) is None
    assert fixed_runs(stage, file, most=first).fewest(from_above=True) is None


@pytest.mark.parametrize("is_from_above", [False, True])
@pytest.mark.parametrize("first", range(9))
def test_the_search_finds_any_first_rung(first: int, is_from_above: bool) -> None:
    class Known(FixedRuns):
        def keeps(self, place: int) -> bool:
            return place >= first

    known = Known(None, None, ladder([1.0], 8), 0.95, print)  # type: ignore[arg-type]
    assert known.fewest(from_above=is_from_above) == (first if first < 8 else None)


def test_the_bound_has_workers_ready_when_the_burst_comes_and_no_longer() -> None:
    file = file_of()
    stage = Replayer(file.base, 1, 10.0)
    fixed = fixed_runs(stage, file)
    peak = fixed.fewest(from_above=False)
    assert peak is not None
    most = fixed.rungs[peak][0]
    (load,) = stage.loads
    enough = fixed.fewest_by_bin(load, 0, peak, 1)
    assert enough[0, :6].max() < most == enough[0, 6:12].max()
    bound = Bound(stage, file, load, 0.95, (2 * most,), lambda _: None)
    played = bound.seek(enough, 1)
    assert played.attainment >= 0.95
    fixed_hours = fixed.of((most,))[0].report["gpu_hours"]
    assert played.report["gpu_hours"] < 0.8 * fixed_hours
    assert bound.start_ms == 15_000.0
    launched = played.outcome.result.workers.launched_ms
    assert ((launched > 0) & (launched < 60e3)).any()  # before the burst, not at it


def test_the_bound_takes_from_either_pool_what_is_not_needed() -> None:
    needed = np.array([[1, 3, 3, 1], [2, 2, 4, 4]])

    class Priced(Bound):
        def _play(self, fewest: FloatArray) -> Played:
            report = {
                "sla_attainment": float((fewest >= needed).mean()),
                "gpu_hours": fewest.sum(),
            }
            return Played(SimpleNamespace(report=report))  # type: ignore[arg-type]

    bound = Priced(None, None, None, 1.0, (9, 9), print)  # type: ignore[arg-type]
    assert bound.seek(needed + 1.0, 1).report["gpu_hours"] == needed.sum()


def test_only_decisions_that_change_a_number_are_told() -> None:
    def look(at_ms: float, wanted: int, target: int, *, is_advisory: bool = False) -> Look:
        seen = Observation(at_ms, (PoolState("workers", wanted, ()),))
        pools = (PoolDecision("workers", wanted, target, "scale_up", (f"why {target}",)),)
        return Look(seen, ScalingDecision(at_ms, "me", pools, is_advisory))

    looks = [
        look(1e3, 1, 1),
        look(2e3, 1, 3),
        look(3e3, 3, 4, is_advisory=True),
        Look(look(4e3, 3, 3).seen, None),
        look(5e3, 3, 2),
    ]
    told = [(one["at_s"], one["before"], one["after"], one["reasons"]) for one in changes_of(looks)]
    assert told == [(2.0, 1, 3, ["why 3"]), (5.0, 3, 2, ["why 2"])]
