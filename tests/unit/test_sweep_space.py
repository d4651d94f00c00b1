"""From a space to trials: which values, which points, and what each becomes."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from router_support import Points

from dynosim.config import load_run, load_sweep
from dynosim.config.dimensions import MAX_VALUES, Dimension, parse_dimension
from dynosim.config.loading import dump_run
from dynosim.config.sweep_loading import SweepConfig
from dynosim.errors import ConfigError
from dynosim.sweep import search
from dynosim.sweep.search import MAX_GRID, points_of
from dynosim.sweep.space import Trial, digest, trials_of

BASE = """\
name: small
workload: {trace: t.jsonl}
engine: {num_gpu_blocks: 100}
timing: {kind: polynomial}
"""
SweepOf = Callable[..., SweepConfig]


@pytest.fixture
def sweep_of(tmp_path: Path) -> SweepOf:
    """A sweep file of these lines, loaded."""

    def made(*lines: str) -> SweepConfig:
        path = tmp_path / "sweep.yaml"
        path.write_text(BASE + "\n".join(lines) + "\n")
        return load_sweep(path)

    return made


def values_of(raw: Any, *, is_grid: bool = True) -> tuple[Any, ...]:
    dimension = parse_dimension("a.b", raw, is_grid=is_grid)
    assert isinstance(dimension, Dimension), dimension
    assert dimension.values is not None
    return dimension.values


# ---- values of one key ---------------------------------------------------------------------------


@settings(max_examples=100, deadline=None)
@given(st.integers(-20, 20), st.integers(0, 60), st.integers(1, 15))
def test_a_range_of_integers_has_every_step_from_one_end_to_the_other(
    low: int, width: int, step: int
) -> None:
    values = values_of({"min": low, "max": low + width, "step": step})
    assert list(values) == list(range(low, low + width + 1, step))
    assert all(type(value) is int for value in values)


@settings(max_examples=100, deadline=None)
@given(st.integers(-50, 50), st.integers(0, 60), st.integers(1, 15))
def test_a_range_of_decimals_has_them_too_as_they_are_written(
    low: int, width: int, step: int
) -> None:
    """In tenths: 0.1, 0.2, 0.3 and not 0.30000000000000004."""
    values = values_of({"min": low / 10, "max": (low + width) / 10, "step": step / 10})
    assert list(values) == [tenths / 10 for tenths in range(low, low + width + 1, step)]
    assert all(type(value) is float for value in values)


def test_one_number_written_as_a_decimal_makes_a_range_of_decimals() -> None:
    assert [type(v) for v in values_of({"min": 1, "max": 2, "step": 0.5})] == [float] * 3
    assert [type(v) for v in values_of({"min": 1.0, "max": 2, "step": 1})] == [float] * 2
    assert [type(v) for v in values_of({"min": 1, "max": 2.0, "step": 1})] == [float] * 2


@pytest.mark.parametrize(
    ("low", "high", "values"),
    [(1, 16, [1, 2, 4, 8, 16]), (1, 15, [1, 2, 4, 8]), (3, 3, [3]), (3, 13, [3, 6, 12]),
     (0.5, 2.0, [0.5, 1.0, 2.0])],
)  # fmt: skip
def test_a_logarithmic_range_doubles_up_to_its_end(
    low: float, high: float, values: list[float]
) -> None:
    assert list(values_of({"min": low, "max": high, "log": True})) == values


def test_a_range_may_have_ten_thousand_values_and_no_more() -> None:
    assert MAX_VALUES == 10_000
    assert len(values_of({"min": 1, "max": 10_000, "step": 1})) == 10_000
    (problem,) = parse_dimension("a", {"min": 0, "max": 10_000, "step": 1}, is_grid=True)  # type: ignore[misc]
    assert "10001 values are too many" in problem.text


def test_a_list_keeps_its_order_and_its_types() -> None:
    values = values_of([3, "a", True, 1, 1.0, None, {"x": 1}])
    assert list(values) == [3, "a", True, 1, 1.0, None, {"x": 1}]
    assert values_of({"choices": [2, 1]}) == (2, 1)
    (problem,) = parse_dimension("a", [1, 2, 1, 1.0], is_grid=True)  # type: ignore[misc]
    assert problem.path == ("space", "a", 2)


def free(**raw: Any) -> Dimension:
    dimension = parse_dimension("a.b", raw, is_grid=False)
    assert isinstance(dimension, Dimension) and dimension.values is None
    return dimension


def test_a_free_range_is_drawn_from_end_to_end() -> None:
    whole = free(min=3, max=6)
    assert whole.samples() == (3, 6) and whole.path == ("a", "b")
    drawn = [whole.draw(random.Random(seed)) for seed in range(200)]
    assert set(drawn) == {3, 4, 5, 6} and all(type(value) is int for value in drawn)
    real = free(min=2.0, max=4.0)
    assert [real.draw(Points(point)) for point in (0.0, 0.25, 1.0)] == [2.0, 2.5, 4.0]


def test_with_log_every_factor_is_as_likely() -> None:
    real, whole = free(min=1.0, max=16.0, log=True), free(min=1, max=16, log=True)
    points = (0.0, 0.25, 0.5, 0.75, 1.0)
    assert [real.draw(Points(point)) for point in points] == [1.0, 2.0, 4.0, 8.0, 16.0]
    assert [whole.draw(Points(point)) for point in points] == [1, 2, 4, 8, 16]
    assert [whole.draw(Points(math.log2(1.5) / 4)), whole.draw(Points(math.log2(2.6) / 4))] == [
        2,
        3,
    ]


def test_choices_are_drawn_evenly() -> None:
    dimension = Dimension("a", ("x", "y", "z"))
    drawn = [dimension.draw(random.Random(seed)) for seed in range(300)]
    assert dimension.samples() == ("x", "y", "z")
    assert all(70 <= drawn.count(value) <= 130 for value in "xyz")


# ---- points --------------------------------------------------------------------------------------

TWO = ("space:", "  cluster.workers: [1, 2, 3]", "  engine.block_size: [16, 32]")


def test_a_grid_has_every_combination_once_the_last_key_fastest(sweep_of: SweepOf) -> None:
    points = points_of(sweep_of(*TWO))
    assert [tuple(point.values()) for point in points] == [
        (1, 16), (1, 32), (2, 16), (2, 32), (3, 16), (3, 32),
    ]  # fmt: skip
    assert {tuple(point) for point in points} == {("cluster.workers", "engine.block_size")}


def test_a_grid_may_be_as_large_as_the_limit(
    sweep_of: SweepOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MAX_GRID == 100_000
    monkeypatch.setattr(search, "MAX_GRID", 6)
    assert len(points_of(sweep_of(*TWO))) == 6
    monkeypatch.setattr(search, "MAX_GRID", 5)
    with pytest.raises(ConfigError, match="a grid of 6 points is too large, at most 5"):
        points_of(sweep_of(*TWO))


def test_a_random_search_finds_every_point_of_a_small_space_once(sweep_of: SweepOf) -> None:
    for trials, count in ((1, 1), (5, 5), (6, 6), (7, 6), (100, 6)):
        sweep = sweep_of(f"search: {{method: random, trials: {trials}}}", *TWO)
        points = [tuple(point.values()) for point in points_of(sweep)]
        assert len(points) == len(set(points)) == count
        assert set(points) <= {(w, b) for w in (1, 2, 3) for b in (16, 32)}


@pytest.mark.parametrize("limit", [1, 2, 3, 4])
def test_a_search_gives_up_after_so_many_repeats_in_a_row(
    sweep_of: SweepOf, monkeypatch: pytest.MonkeyPatch, limit: int
) -> None:
    """A draw that is new starts the count again."""
    monkeypatch.setattr(search, "MAX_REPEATS", limit)
    for seed in range(12):
        sweep = sweep_of(f"search: {{method: random, trials: 6, seed: {seed}}}", *TWO)
        rng = random.Random(seed)
        seen: set[tuple[int, int]] = set()
        repeats = 0
        while len(seen) < 6 and repeats < limit:
            draw = (rng.choice([1, 2, 3]), rng.choice([16, 32]))
            repeats = repeats + 1 if draw in seen else 0
            seen.add(draw)
        assert {tuple(point.values()) for point in points_of(sweep)} == seen


# ---- trials --------------------------------------------------------------------------------------


def test_every_point_becomes_a_run_with_its_values_and_a_name_of_its_own(sweep_of: SweepOf) -> None:
    trials = trials_of(sweep_of("seed: 7", *TWO))
    assert [trial.index for trial in trials] == list(range(6))
    for trial in trials:
        assert trial.config is not None and trial.reason == ""
        assert trial.config.name == f"small-{trial.index}"
        assert trial.config.cluster.workers == trial.values["cluster.workers"]
        assert trial.config.engine.block_size == trial.values["engine.block_size"]
        assert (trial.config.seed, trial.config.engine.num_gpu_blocks) == (7, 100)


def test_a_budget_is_kept_at_it_and_exceeded_above_it(sweep_of: SweepOf) -> None:
    trials = trials_of(sweep_of("constraints: {gpu_budget: 2}", *TWO))
    assert [trial.config is not None for trial in trials] == [True] * 4 + [False] * 2
    assert {trial.reason for trial in trials[4:]} == {"needs 3 GPUs, constraints.gpu_budget is 2"}


def test_a_random_search_spends_no_trial_beyond_the_budget(sweep_of: SweepOf) -> None:
    wide = (
        "space:",
        "  cluster.workers: {min: 1, max: 40, step: 1}",
        "  engine.block_size: [16, 32]",
    )

    def values(trials: int, budget: int) -> list[tuple[Any, ...]]:
        search = f"search: {{method: random, trials: {trials}}}"
        made = trials_of(sweep_of(f"constraints: {{gpu_budget: {budget}}}", search, *wide))
        assert [trial.index for trial in made] == list(range(len(made)))
        assert all(trial.config is not None for trial in made)
        return [tuple(trial.values.values()) for trial in made]

    five = values(5, budget=4)
    assert len(set(five)) == 5 and {workers for workers, _ in five} <= {1, 2, 3, 4}
    assert values(8, budget=4)[:5] == five
    assert set(values(100, budget=4)) == {(w, b) for w in (1, 2, 3, 4) for b in (16, 32)}


def test_a_random_search_of_what_nobody_can_afford_says_so(sweep_of: SweepOf) -> None:
    space = ("space:", "  cluster.workers: [5, 6]")
    trials = trials_of(
        sweep_of("constraints: {gpu_budget: 4}", "search: {method: random, trials: 2}", *space)
    )
    assert sorted(trial.reason for trial in trials) == [
        f"needs {workers} GPUs, constraints.gpu_budget is 4" for workers in (5, 6)
    ]


def test_a_combination_that_vllm_refuses_is_infeasible_with_all_reasons(sweep_of: SweepOf) -> None:
    trials = trials_of(sweep_of("space:", "  engine.max_num_seqs: [128, 16384]"))
    assert trials[0].config is not None
    assert trials[1].config is None and "less than max_num_seqs (16384)" in trials[1].reason
    assert trials[1].reason.startswith("engine.")


def test_trials_carry_the_sla_of_the_constraints_unless_they_have_their_own(
    sweep_of: SweepOf,
) -> None:
    bounds = "constraints: {sla: {ttft_ms: 100, itl_ms: 5, statistic: p90}}"
    config = trials_of(sweep_of(bounds, *TWO))[0].config
    assert config is not None and config.sla is not None
    assert (config.sla.ttft_ms, config.sla.itl_ms, config.sla.e2e_ms) == (100, 5, None)
    config = trials_of(sweep_of(bounds, "sla: {e2e_ms: 9}", *TWO))[0].config
    assert config is not None and config.sla is not None
    assert (config.sla.ttft_ms, config.sla.e2e_ms) == (None, 9)
    config = trials_of(sweep_of(*TWO))[0].config
    assert config is not None and config.sla is None


def test_hashes_tell_configurations_apart_and_infeasible_points_by_their_values(
    sweep_of: SweepOf,
) -> None:
    trials = trials_of(sweep_of("constraints: {gpu_budget: 2}", *TWO))
    hashes = [trial.config_hash for trial in trials]
    assert len(set(hashes)) == 6
    assert hashes == [trial.config_hash for trial in trials_of(sweep_of(
        "constraints: {gpu_budget: 2}", *TWO))]  # fmt: skip
    assert trials[4].config_hash == digest(trials[4].values)
    assert trials[0].config is not None
    assert trials[0].config_hash == digest(trials[0].config.model_dump(mode="json"))
    assert Trial(9, {"a": 1}, None).config_hash == Trial(0, {"a": 1}, None, "why").config_hash


def test_a_digest_does_not_depend_on_the_order_of_keys() -> None:
    assert digest({"a": 1, "b": [1, 2]}) == digest({"b": [1, 2], "a": 1})
    assert len({digest(value) for value in ({}, [], 0, 1, "1", [1, 2], [2, 1])}) == 7
    assert len(digest({})) == 16 and int(digest({}), 16) >= 0


def test_a_dumped_trial_is_the_same_run(sweep_of: SweepOf, tmp_path: Path) -> None:
    for trial in trials_of(sweep_of(*TWO)):
        assert trial.config is not None
        path = tmp_path / f"{trial.index}.yaml"
        path.write_text(dump_run(trial.config))
        again = load_run(path)
        assert dump_run(again) == path.read_text()
        assert again.cluster == trial.config.cluster and again.engine == trial.config.engine
