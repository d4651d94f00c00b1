"""Synthetic workloads, drawn a second time turn by turn; and the distributions behind them."""

import math
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.records import Trace
from dynosim.workload.arrivals import draw_arrivals
from dynosim.workload.distributions import Distribution, draw_ms, draw_tokens
from dynosim.workload.streams import stream
from dynosim.workload.synthetic import NOMINAL_TOKEN_MS, synthesize
from dynosim.workload.writers import write_trace

SEEDS = st.integers(0, 2**32 - 1)
Draw = dict[str, Any]


def some_spec(rng: random.Random) -> Draw:
    """Sessions that grow, share prefixes and end early; each quantity fixed or drawn."""
    spec: Draw = {
        "isl": rng.choice([100, {"dist": "normal", "mean": 90, "std": 40, "max": 200}]),
        "osl": rng.choice([7, {"dist": "geometric", "mean": 20, "max": 60}]),
        "turns": rng.choice([1, 3, {"dist": "geometric", "mean": 2, "max": 6}]),
        "think_time_ms": rng.choice([0, 250, {"dist": "exponential", "mean": 400}]),
        "turn_isl": rng.choice([None, 11, {"dist": "lognormal", "mean": 30, "std": 20}]),
        "block_size": rng.choice([1, 16, 32]),
        "prefix_groups": rng.choice([1, 3]),
        "prefix_group_skew": rng.choice([0.0, 1.0]),
        "arrival": rng.choice(["poisson", "gamma", "constant"]),
        "rate_rps": rng.choice([0.5, 20.0]),
    }
    if spec["arrival"] == "gamma":
        spec["burstiness"] = rng.choice([0.3, 4.0])
    if rng.random() < 0.5:
        spec["shared_prefix_ratio"] = rng.choice([0.0, 0.5, 1.0])
    else:
        spec["shared_prefix_tokens"] = rng.choice([0, 31, 64, 1000])
    if rng.random() < 0.4:
        spec["max_context_tokens"] = rng.choice([270, 320, 500])
    spec[rng.choice(["requests", "sessions"])] = rng.randint(1, 25)
    return {key: value for key, value in spec.items() if value is not None}


def sessions_of(trace: Trace) -> list[list[int]]:
    """The rows of each session, first turn first, in the order in which sessions start."""
    follower = {}
    if trace.previous_turn is not None:
        follower = {before: row for row, before in enumerate(trace.previous_turn.tolist())}
    found = []
    for row in range(len(trace)):
        if trace.previous_turn is None or trace.previous_turn[row] < 0:
            turns = [row]
            while turns[-1] in follower:
                turns.append(follower[turns[-1]])
            found.append(turns)
    return found


def ids_of(trace: Trace, row: int) -> list[int]:
    ids: list[int] = trace.hash_ids[slice(*trace.hash_offsets[row : row + 2])].tolist()
    return ids


@settings(max_examples=80, deadline=None)
@given(SEEDS)
def test_sessions_are_told_apart_grow_turn_by_turn_and_start_in_order(seed: int) -> None:
    rng = random.Random(seed)
    spec = some_spec(rng)
    trace = synthesize(spec, seed % 100)
    sessions = sessions_of(trace)
    assert sum(len(turns) for turns in sessions) == len(trace)
    if "requests" in spec:
        assert len(trace) == spec["requests"]
    else:
        assert len(sessions) == spec["sessions"]
    assert (np.diff(trace.arrival_ms) >= 0).all() and trace.arrival_ms[0] == 0
    assert (trace.previous_turn is None) == (len(sessions) == len(trace))
    assert (trace.delay_ms is None) == (trace.previous_turn is None)
    limit = spec.get("max_context_tokens", math.inf)
    for turns in sessions:
        check_turns(trace, turns, spec)
        assert all(trace.input_tokens[row] + trace.output_tokens[row] <= limit for row in turns)
    if trace.session_ids is None:
        assert trace.previous_turn is None
    else:
        names = [{trace.session_ids[row] for row in turns} for turns in sessions]
        assert [len(found) for found in names] == [1] * len(sessions)
        assert sorted(set().union(*names)) == sorted(f"s{k}" for k in range(len(sessions)))


def check_turns(trace: Trace, turns: list[int], spec: Draw) -> None:
    """A turn's prompt is the last one, its answer, and something new; it comes when it can."""
    for before, row in pairwise(turns):
        assert trace.delay_ms is not None
        new = trace.input_tokens[row] - trace.input_tokens[before] - trace.output_tokens[before]
        assert new == spec["turn_isl"] if isinstance(spec.get("turn_isl"), int) else new >= 1
        waited_ms = trace.output_tokens[before] * NOMINAL_TOKEN_MS + trace.delay_ms[row]
        arrival_ms = trace.arrival_ms[before] + waited_ms
        assert trace.arrival_ms[row] == pytest.approx(arrival_ms, abs=2e-3)  # two roundings to µs
        if isinstance(spec["think_time_ms"], int):
            assert trace.delay_ms[row] == spec["think_time_ms"]
        earlier = ids_of(trace, before)
        assert ids_of(trace, row)[: len(earlier)] == earlier
    assert trace.delay_ms is None or trace.delay_ms[turns[0]] == 0
    for row in turns:
        ids = ids_of(trace, row)
        assert len(set(ids)) == len(ids) == -(-trace.input_tokens[row] // spec["block_size"])


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_sessions_of_a_group_share_the_stated_part_and_nothing_else_is_shared(seed: int) -> None:
    rng = random.Random(seed)
    spec = some_spec(rng)
    trace = synthesize(spec, seed % 100)
    block = spec["block_size"]
    longest = [ids_of(trace, turns[-1]) for turns in sessions_of(trace)]
    firsts = [int(trace.input_tokens[turns[0]]) for turns in sessions_of(trace)]
    shared = []
    for first in firsts:
        if "shared_prefix_tokens" in spec:
            wanted = spec["shared_prefix_tokens"] // block
        else:
            wanted = round(spec["shared_prefix_ratio"] * first / block)
        shared.append(min(wanted, first // block))
    heads = set()
    for one, mine in enumerate(longest):
        if shared[one]:
            heads.add(mine[0])
        for other in range(one):
            theirs = longest[other]
            common = len(set(mine) & set(theirs))
            assert common in (0, min(shared[one], shared[other]))
            assert mine[:common] == theirs[:common]
            if shared[one] and shared[other]:
                assert (mine[0] == theirs[0]) == (common > 0)
    assert len(heads) <= spec["prefix_groups"]
    order = list(dict.fromkeys(trace.hash_ids.tolist()))
    assert order == list(range(len(order)))  # numbered as they appear


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_a_bound_on_the_context_ends_sessions_and_changes_nothing_else(seed: int) -> None:
    rng = random.Random(seed)
    spec = some_spec(rng) | {"max_context_tokens": rng.choice([270, 320, 500])}
    spec = {key: value for key, value in spec.items() if key != "requests"} | {"sessions": 12}
    bounded = synthesize(spec, seed % 100)
    free = synthesize(spec | {"max_context_tokens": 1 << 30}, seed % 100)

    def lengths(trace: Trace) -> list[list[tuple[int, int]]]:
        pairs = list(zip(trace.input_tokens.tolist(), trace.output_tokens.tolist(), strict=True))
        return sorted([pairs[row] for row in turns] for turns in sessions_of(trace))

    limit = spec["max_context_tokens"]
    cut = [[pair for pair in turns if sum(pair) <= limit] for turns in lengths(free)]
    assert lengths(bounded) == sorted(cut)


# ---- arrivals and distributions, from their own streams ------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 50])
@pytest.mark.parametrize("process", ["poisson", "gamma", "constant", "closed"])
def test_arrivals_are_the_sums_of_the_gaps_that_were_drawn(process: str, size: int) -> None:
    rng = stream(3, "arrivals")
    gaps: dict[str, Callable[[], list[float]]] = {
        "poisson": lambda: rng.exponential(125.0, size).tolist(),
        "gamma": lambda: rng.gamma(0.25, 500.0, size).tolist(),
        "constant": lambda: [125.0] * size,
        "closed": lambda: [0.0] * size,
    }
    drawn = gaps[process]()
    wanted = [round(sum(drawn[1 : count + 1]), 3) for count in range(size)]
    found = draw_arrivals(
        process, size, stream(3, "arrivals"), rate_per_s=8.0, burstiness=0.25
    ).tolist()
    assert found == pytest.approx(wanted, abs=1e-9)


@pytest.mark.parametrize("turns", [1, 4])
def test_sessions_start_at_the_rate_of_requests_over_their_turns(turns: int) -> None:
    spec = {"sessions": 5, "isl": 5, "osl": 5, "turns": turns, "rate_rps": 8.0}
    trace = synthesize(spec | {"arrival": "constant"}, 0)
    starts_ms = [trace.arrival_ms[rows[0]] for rows in sessions_of(trace)]
    assert starts_ms == [125.0 * turns * k for k in range(5)]


def redrawn(draw: Callable[[int], Any], size: int, low: float, high: float, digits: int) -> Any:
    """As many values as asked for; what lies outside is drawn again, all of it at a time."""
    values = np.round(draw(size), digits)
    while ((values < low) | (values > high)).any():
        outside = (values < low) | (values > high)
        values[outside] = np.round(draw(int(outside.sum())), digits)
    return values


SPREAD = math.log(1 + (30 / 60) ** 2)


@pytest.mark.parametrize("bounds", [(None, None), (50.0, None), (None, 70.0), (58.0, 62.0)])
@pytest.mark.parametrize(
    ("kind", "draw"),
    [
        ("fixed", lambda rng, size: np.full(size, 60.0)),
        ("normal", lambda rng, size: rng.normal(60.0, 30.0, size)),
        (
            "lognormal",
            lambda rng, size: np.exp(
                rng.normal(math.log(60.0) - SPREAD / 2, math.sqrt(SPREAD), size)
            ),
        ),
        ("geometric", lambda rng, size: rng.geometric(1 / 60.0, size).astype(float)),
        ("exponential", lambda rng, size: rng.exponential(60.0, size)),
    ],
)
def test_each_distribution_draws_what_its_stream_gives_within_its_bounds(
    kind: str, draw: Any, bounds: tuple[float | None, float | None]
) -> None:
    std = 30.0 if kind in ("normal", "lognormal") else 0.0
    wanted = Distribution(kind, mean=60.0, std=std, min=bounds[0], max=bounds[1])
    high = math.inf if bounds[1] is None else bounds[1]
    for least, digits, found in (
        (1.0, 0, draw_tokens(wanted, 200, stream(5, "x"), key="x")),
        (0.0, 3, draw_ms(wanted, 200, stream(5, "x"), key="x")),
    ):
        rng = stream(5, "x")
        low = least if bounds[0] is None else bounds[0]
        naive = redrawn(lambda size, rng=rng: draw(rng, size), 200, low, high, digits)
        np.testing.assert_allclose(found, naive, rtol=1e-12)
    assert draw_tokens(wanted, 5, stream(5, "x"), key="x").dtype == np.int64


def test_lengths_of_a_trace_are_drawn_from_its_column_within_the_bounds(tmp_path: Path) -> None:
    prompts = {"dist": "normal", "mean": 50, "std": 20}
    answers = {"dist": "normal", "mean": 500, "std": 99}
    donor = synthesize({"requests": 40, "isl": prompts, "osl": answers, "rate_rps": 1}, 1)
    path = tmp_path / "donor.txt"
    write_trace(donor, path, "azure")
    for column in ("input_tokens", "output_tokens"):
        lengths = getattr(donor, column)
        low, high = sorted(lengths.tolist())[10], sorted(lengths.tolist())[30]
        drawn = Distribution(
            "empirical", trace=str(path), format="azure", min=float(low), max=float(high)
        )
        found = draw_tokens(drawn, 300, stream(2, "x"), key="x", column=column)
        pool = [length for length in lengths.tolist() if low <= length <= high]
        assert found.tolist() == [pool[k] for k in stream(2, "x").integers(0, len(pool), 300)]
        assert {low, high} <= set(found.tolist())
