"""Points by what others gave: found soon, never twice, the same for the same answers."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from dynosim.config import load_sweep
from dynosim.config.sweep_loading import SweepConfig
from dynosim.errors import ConfigError
from dynosim.sweep.proposals import PointOutcome, Proposals
from dynosim.sweep.search import Point

METHODS = ("tpe", "nsga2")
BASE = """\
workload: {trace: t.jsonl}
engine: {num_gpu_blocks: 100}
timing: {kind: polynomial}
"""
WIDE = (
    "space:",
    "  engine.max_num_seqs: {min: 1, max: 32, step: 1}",
    "  engine.block_size: {min: 1, max: 32}",
    "  router.mode: [round-robin, random, least-loaded, kv]",
)
TWO_GOALS = "objectives: {output_tok_s_per_gpu: max, mean_ttft_ms: min}"
ONE_GOAL = "objectives: {mean_ttft_ms: min}"


@pytest.fixture
def sweep_of(tmp_path: Path) -> Callable[..., SweepConfig]:
    def made(method: str, *lines: str, seed: int = 0, batch: int = 8) -> SweepConfig:
        search = f"search: {{method: {method}, trials: 999, seed: {seed}, batch: {batch}}}"
        (tmp_path / "sweep.yaml").write_text(BASE + "\n".join([search, *lines]) + "\n")
        return load_sweep(tmp_path / "sweep.yaml")

    return made


Sweeps = Callable[..., SweepConfig]


def batches(
    sweep: SweepConfig, outcome: Callable[[Point], PointOutcome], num_batches: int
) -> Iterator[list[Point]]:
    proposals = Proposals(sweep)
    for _ in range(num_batches):
        points = proposals.ask(sweep.search.batch_size)
        yield points
        proposals.tell([outcome(point) for point in points])


def asked(*arguments: Any) -> list[Point]:
    return [point for batch in batches(*arguments) for point in batch]


def distance(point: Point) -> float:
    """From the best: 24 sequences, blocks of 9, routed by KV."""
    far = (point["engine.max_num_seqs"] - 24) ** 2 + (point["engine.block_size"] - 9) ** 2
    return float(far) + 100.0 * (point["router.mode"] != "kv")


@pytest.mark.parametrize("method", METHODS)
def test_the_best_is_found_with_a_small_part_of_the_grid(sweep_of: Sweeps, method: str) -> None:
    """Of 4,096 points 128 are tried."""
    sweep = sweep_of(method, ONE_GOAL, *WIDE)
    found = [distance(p) for p in asked(sweep, lambda p: PointOutcome((distance(p),)), 16)]
    assert min(found) <= 1.0  # one step in one direction
    assert median(found[32:]) < 0.75 * median(found[:32])


@pytest.mark.parametrize("method", METHODS)
def test_a_frontier_is_found(sweep_of: Sweeps, method: str) -> None:
    """What is best for one goal is worst for the other; blocks of 9 and KV routing serve both."""

    def outcome(point: Point) -> PointOutcome:
        waste = abs(point["engine.block_size"] - 9) + 10 * (point["router.mode"] != "kv")
        seqs = point["engine.max_num_seqs"]
        return PointOutcome((float(seqs - waste), float(seqs + waste)))

    points = asked(sweep_of(method, TWO_GOALS, *WIDE), outcome, 16)
    frontier = [p for p in points if p["engine.block_size"] == 9 and p["router.mode"] == "kv"]
    at_random = len(points) / 32 / 4
    assert len(frontier) > 3 * at_random
    seqs = [point["engine.max_num_seqs"] for point in frontier]
    assert max(seqs) - min(seqs) >= 8  # it is spread


@pytest.mark.parametrize("method", METHODS)
def test_what_cannot_be_used_is_soon_avoided(sweep_of: Sweeps, method: str) -> None:
    """However good it looks."""

    def outcome(point: Point) -> PointOutcome:
        seqs = point["engine.max_num_seqs"]
        return PointOutcome((float(-seqs),), max(0.0, (seqs - 8) / 32))

    points = asked(sweep_of(method, ONE_GOAL, *WIDE), outcome, 16)
    late = [point["engine.max_num_seqs"] for point in points[-32:]]
    assert sum(seqs <= 8 for seqs in late) > 1.5 * 32 * 8 / 32
    assert max(seqs for point in points if (seqs := point["engine.max_num_seqs"]) <= 8) == 8


@pytest.mark.parametrize("method", METHODS)
def test_no_point_comes_twice_and_a_small_space_ends(sweep_of: Sweeps, method: str) -> None:
    small = ("space:", "  cluster.workers: [1, 2, 4, 8]", "  engine.block_size: {min: 1, max: 9}")
    points = asked(sweep_of(method, ONE_GOAL, *small), lambda _: PointOutcome((1.0,)), 20)
    names = {(point["cluster.workers"], point["engine.block_size"]) for point in points}
    assert len(points) == len(names) == 36


@pytest.mark.parametrize("method", METHODS)
def test_the_same_answers_bring_the_same_points(sweep_of: Sweeps, method: str) -> None:
    def near(point: Point) -> PointOutcome:
        return PointOutcome((distance(point),))

    points = asked(sweep_of(method, ONE_GOAL, *WIDE), near, 6)
    assert asked(sweep_of(method, ONE_GOAL, *WIDE), near, 6) == points
    assert asked(sweep_of(method, ONE_GOAL, *WIDE), near, 4) == points[:32]
    far = asked(sweep_of(method, ONE_GOAL, *WIDE), lambda p: PointOutcome((-distance(p),)), 6)
    assert far[:8] == points[:8] and far != points
    assert asked(sweep_of(method, ONE_GOAL, *WIDE, seed=1), near, 6) != points


@pytest.mark.parametrize("method", METHODS)
def test_a_shorter_batch_is_the_beginning_of_a_longer_one(sweep_of: Sweeps, method: str) -> None:
    """So that a search can be given more trials."""
    long, short = (Proposals(sweep_of(method, ONE_GOAL, *WIDE)) for _ in range(2))
    for _ in range(3):
        points = long.ask(8)
        assert short.ask(8) == points
        for proposals in (long, short):
            proposals.tell([PointOutcome((distance(point),)) for point in points])
    assert short.ask(3) == long.ask(8)[:3]


@pytest.mark.parametrize("method", METHODS)
def test_crashes_say_nothing(sweep_of: Sweeps, method: str) -> None:
    points = asked(sweep_of(method, TWO_GOALS, *WIDE), lambda _: PointOutcome(None), 4)
    assert len({str(point) for point in points}) == 32


def test_values_of_any_kind_can_be_chosen(sweep_of: Sweeps) -> None:
    sweep = sweep_of(
        "tpe",
        ONE_GOAL,
        "space:",
        "  timing: [{kind: polynomial}, {kind: fixed, prefill_ms: 3, decode_ms: 1}]",
        "  engine.watermark: {min: 0.001, max: 0.5, log: true}",
        "  engine.max_num_seqs: [512, 64, 256]",
        "  engine.block_size: {min: 2, max: 64, log: true}",
    )
    points = asked(sweep, lambda p: PointOutcome((p["engine.watermark"],)), 8)
    assert {point["timing"]["kind"] for point in points} == {"polynomial", "fixed"}
    assert {point["engine.max_num_seqs"] for point in points} == {512, 64, 256}
    assert all(0.001 <= point["engine.watermark"] <= 0.5 for point in points)
    assert all(type(p["engine.block_size"]) is int for p in points)
    assert min(point["engine.watermark"] for point in points) < 0.004


def test_a_missing_library_is_one_message(
    sweep_of: Sweeps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(ConfigError, match=r"search\.method: tpe needs Optuna.*dynosim\[search\]"):
        Proposals(sweep_of("tpe", *WIDE))


def test_optuna_says_nothing(sweep_of: Sweeps, capfd: pytest.CaptureFixture[str]) -> None:
    asked(sweep_of("tpe", ONE_GOAL, *WIDE), lambda p: PointOutcome((distance(p),)), 3)
    assert capfd.readouterr() == ("", "")
