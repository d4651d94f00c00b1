"""Capacities that are known: by theory, by trying every load, and by what must follow."""

from itertools import pairwise
from math import exp, factorial
from pathlib import Path

import numpy as np
import pytest
from studies import SERVICE_MS, config_of, studied

from dynosim.metrics.carried import Bounds, SlaTarget
from dynosim.sweep.capacity import LoadRange
from dynosim.sweep.probe import probe_request, run_probe
from dynosim.sweep.study import LoadPlan, Probe


def waits_at_most(wait_ms: float, rate_per_ms: float) -> float:
    """P(wait <= t) of Poisson arrivals at a server that takes as long for everyone (Erlang)."""
    total = 0.0
    for k in range(int(wait_ms / SERVICE_MS) + 1):
        x = rate_per_ms * (k * SERVICE_MS - wait_ms)
        total += x**k / factorial(k) * exp(-x)
    return (1.0 - rate_per_ms * SERVICE_MS) * total


def load_of_theory(wait_ms: float, attainment: float) -> float:
    """The load (of 10 requests a second) at which so many wait no longer."""
    loads = np.linspace(0.05, 0.999, 2000)
    kept = [waits_at_most(wait_ms, load * 0.01) >= attainment for load in loads]
    return float(loads[np.flatnonzero(kept)[-1]])


@pytest.mark.parametrize(("wait_ms", "attainment"), [(250.0, 0.9), (450.0, 0.95)])
def test_a_queue_that_theory_knows(tmp_path: Path, wait_ms: float, attainment: float) -> None:
    config = config_of(tmp_path, requests=12_000)
    plan = LoadPlan(LoadRange(0.02, 8.0, 0.01), attainment)
    capacity = studied(config, plan, Bounds(ttft_ms=SERVICE_MS + wait_ms)).capacity
    assert capacity.low == pytest.approx(load_of_theory(wait_ms, attainment), rel=0.04)


def test_the_search_finds_what_trying_every_load_finds(tmp_path: Path) -> None:
    config = config_of(tmp_path, "engine.max_num_seqs=8", "workload.synthetic.osl=20")
    plan = LoadPlan(LoadRange(0.02, 8.0), 0.95)
    bounds = Bounds(ttft_ms=400.0)
    capacity = studied(config, plan, bounds).capacity
    assert capacity.low is not None and capacity.high is not None
    grid = []
    for load in capacity.low * 1.01 ** np.arange(-12, 13):
        asked = probe_request(config, load, vary="rate", target=SlaTarget(bounds, 0.95))
        grid.append((load, Probe.of(run_probe(asked)).is_carried))
    failed = [load for load, is_carried in grid if not is_carried]
    carried = [load for load, is_carried in grid if is_carried and load < min(failed)]
    assert max(carried) == pytest.approx(capacity.low, rel=0.03)


@pytest.mark.live
def test_twice_the_workers_carry_twice_the_load(tmp_path: Path) -> None:
    """Behind a router that knows nothing, where requests have nothing to do with each other."""
    plan = LoadPlan(LoadRange(0.02, 8.0, 0.01), 0.95)
    bounds = Bounds(ttft_ms=500.0)
    lows = []
    for workers in (2, 4):
        config = config_of(
            tmp_path, f"cluster.workers={workers}", "router.mode=random", requests=12_000
        )
        low = studied(config, plan, bounds).capacity.low
        assert low is not None
        lows.append(low)
    assert lows[1] == pytest.approx(2 * lows[0], rel=0.05)


def test_tighter_bounds_never_carry_more(tmp_path: Path) -> None:
    config = config_of(tmp_path, "engine.max_num_seqs=8", "workload.synthetic.osl=20")
    lows = []
    for ttft_ms, attainment in ((1000.0, 0.9), (500.0, 0.9), (500.0, 0.97), (250.0, 0.97)):
        plan = LoadPlan(LoadRange(0.02, 8.0), attainment)
        lows.append(studied(config, plan, Bounds(ttft_ms=ttft_ms)).capacity.low or 0.0)
    assert all(later <= earlier * 1.03 for earlier, later in pairwise(lows))


def test_a_bound_that_an_idle_cluster_misses(tmp_path: Path) -> None:
    plan = LoadPlan(LoadRange(0.02, 8.0), 0.95)
    study = studied(config_of(tmp_path), plan, Bounds(ttft_ms=99.0))
    assert study.capacity.low is None and min(study.probes) == 0.02


def test_tiles_lengthen_the_workload(tmp_path: Path) -> None:
    config = config_of(tmp_path, requests=300)
    asked = probe_request(
        config, 0.5, vary="rate", target=SlaTarget(Bounds(ttft_ms=300.0)), min_requests=1100
    )
    assert run_probe(asked)["report"]["num_requests"] == 1200


def test_concurrency_is_what_is_in_flight(tmp_path: Path) -> None:
    config = config_of(tmp_path, "engine.max_num_seqs=8", "workload.synthetic.osl=20", requests=200)
    asked = probe_request(
        config, 4.0, vary="concurrency", target=SlaTarget(Bounds(ttft_ms=500.0), 0.9)
    )
    answer = run_probe(asked)
    assert answer["status"] == "ok" and answer["verdict"]["is_carried"]
    assert answer["verdict"]["growth"] is None


def test_what_cannot_be_run_says_why(tmp_path: Path) -> None:
    asked = probe_request(config_of(tmp_path), 1.0, vary="rate", target=SlaTarget())
    asked["config"]["workload"] = {"trace": "gone.jsonl"}
    answer = run_probe(asked)
    assert answer["status"] == "bad-input" or "gone.jsonl" in answer["reason"]


def test_at_the_lowest_load_a_probe_is_not_stopped(tmp_path: Path) -> None:
    """It tells why no load is carried; at others that is known from a part of it."""
    target = SlaTarget(Bounds(ttft_ms=99.0), 0.95)
    found = []
    for ends in ((0.5, 8.0), (0.1, 8.0)):
        asked = probe_request(config_of(tmp_path), 0.5, vary="rate", target=target, ends=ends)
        found.append(run_probe(asked))
    lowest, other = found
    assert lowest["verdict"]["misses"] == {"ttft_ms": lowest["verdict"]["num_judged"]}
    assert lowest["verdict"]["miss_tokens"] == {"ttft_ms": 100.0}
    assert other["is_stopped"] and other["verdict"] is None


@pytest.mark.parametrize("vary", ["rate", "concurrency"])
def test_a_search_begins_within_its_range(tmp_path: Path, vary: str) -> None:
    for ends in ((3.0, 5.0), (900.0, 1000.0)):
        asked = probe_request(
            config_of(tmp_path, "engine.max_num_seqs=8", requests=20),
            None,
            vary=vary,
            target=SlaTarget(),
            ends=ends,
        )
        assert ends[0] <= run_probe(asked)["load"] <= ends[1]
