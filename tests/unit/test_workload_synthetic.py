"""Synthetic workloads: distributions as asked for, sessions that grow, prefixes that are shared."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from dynosim.errors import ConfigError, TraceError
from dynosim.workload.arrivals import draw_arrivals
from dynosim.workload.distributions import as_distribution, draw_ms, draw_tokens
from dynosim.workload.inspect import shared_prefixes
from dynosim.workload.streams import stream
from dynosim.workload.synthetic import NOMINAL_TOKEN_MS, synthesize
from dynosim.workload.writers import write_trace

BASE: dict[str, Any] = {"requests": 50, "isl": 1000, "osl": 10, "rate_rps": 5}


def spec(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (BASE | changes).items() if value is not ...}


def test_streams_differ_by_purpose_and_seed_only() -> None:
    draws = [stream(*key).random() for key in [(0, "a"), (0, "a"), (0, "b"), (1, "a")]]
    assert draws[0] == draws[1]
    assert len(set(draws)) == 3
    assert stream(7, "isl").integers(0, 1 << 30) == 753567521


@pytest.mark.parametrize("dist", ["normal", "lognormal"])
def test_mean_and_std_are_those_of_the_lengths(dist: str) -> None:
    wanted = as_distribution({"dist": dist, "mean": 4000, "std": 900}, "isl")
    tokens = draw_tokens(wanted, 200_000, stream(1, "isl"), key="isl")
    assert tokens.mean() == pytest.approx(4000, rel=0.01)
    assert tokens.std() == pytest.approx(900, rel=0.02)


def test_bounds_are_kept_by_drawing_again() -> None:
    wanted = as_distribution({"dist": "normal", "mean": 10, "std": 10, "max": 12}, "osl")
    tokens = draw_tokens(wanted, 10_000, stream(1, "osl"), key="osl")
    assert (tokens.min(), tokens.max()) == (1, 12)
    assert np.bincount(tokens)[12] < 2 * np.bincount(tokens)[9]  # nothing piled up on the bound


def test_geometric_and_exponential_have_the_stated_mean() -> None:
    turns = draw_tokens(
        as_distribution({"dist": "geometric", "mean": 3}, "turns"), 50_000, stream(0, "t"), key="t"
    )
    pauses = draw_ms(
        as_distribution({"dist": "exponential", "mean": 250}, "p"), 50_000, stream(0, "p"), key="p"
    )
    assert turns.mean() == pytest.approx(3, rel=0.02)
    assert pauses.mean() == pytest.approx(250, rel=0.02)


def test_empirical_lengths_come_from_a_trace(tmp_path: Path) -> None:
    donor = synthesize(spec(isl={"dist": "normal", "mean": 500, "std": 100}, osl=33), 1)
    write_trace(donor, tmp_path / "donor.jsonl")
    drawn = {"dist": "empirical", "trace": "donor.jsonl"}
    trace = synthesize(spec(isl=drawn, osl=drawn), 2, resolve=lambda name: tmp_path / name)
    assert set(trace.input_tokens.tolist()) <= set(donor.input_tokens.tolist())
    assert set(trace.output_tokens.tolist()) == {33}
    with pytest.raises(TraceError, match="no such file"):
        synthesize(spec(isl=drawn), 2)


def test_arrival_processes_keep_the_rate_and_the_burstiness() -> None:
    for process, burstiness, cv in [("poisson", 1, 1.0), ("gamma", 0.25, 2.0), ("constant", 1, 0)]:
        arrival_ms = draw_arrivals(
            process, 100_000, stream(0, "arrivals"), rate_per_s=8, burstiness=burstiness
        )
        gaps_ms = np.diff(arrival_ms)
        assert arrival_ms[0] == 0
        assert gaps_ms.min() >= 0
        assert gaps_ms.mean() == pytest.approx(125, rel=0.02)
        assert gaps_ms.std() / gaps_ms.mean() == pytest.approx(cv, rel=0.03, abs=1e-3)
    assert not draw_arrivals("closed", 5, stream(0, "arrivals"), rate_per_s=1.0).any()


def test_the_rate_counts_all_turns() -> None:
    trace = synthesize(spec(requests=30_000, turns=3, isl=10), 0)
    assert trace.previous_turn is not None
    starts_ms = trace.arrival_ms[trace.previous_turn < 0]
    assert len(trace) / starts_ms[-1] * 1000 == pytest.approx(5, rel=0.02)


def test_another_arrival_process_leaves_the_lengths_as_they_were() -> None:
    lengths = {"dist": "lognormal", "mean": 900, "std": 400}
    first = synthesize(spec(isl=lengths), 3)
    second = synthesize(spec(isl=lengths, arrival="gamma", burstiness=0.3), 3)
    assert first.input_tokens.tolist() == second.input_tokens.tolist()
    assert first.arrival_ms.tolist() != second.arrival_ms.tolist()
    assert first.input_tokens.tolist() != synthesize(spec(isl=lengths), 4).input_tokens.tolist()


def test_a_later_turn_holds_the_whole_conversation() -> None:
    trace = synthesize(
        spec(requests=..., sessions=20, isl=1000, turn_isl=100, osl=30, turns=4, think_time_ms=50),
        0,
    )
    assert len(trace) == 80
    assert trace.previous_turn is not None and trace.delay_ms is not None
    for row, before in enumerate(trace.previous_turn.tolist()):
        if before < 0:
            assert (trace.input_tokens[row], trace.delay_ms[row]) == (1000, 0)
            continue
        assert before < row
        assert trace.input_tokens[row] == trace.input_tokens[before] + 30 + 100
        assert trace.delay_ms[row] == 50
        waited_ms = trace.arrival_ms[row] - trace.arrival_ms[before]
        assert waited_ms == pytest.approx(50 + 30 * NOMINAL_TOKEN_MS, abs=0.002)
        mine, earlier = (
            trace.hash_ids[slice(*trace.hash_offsets[i : i + 2])] for i in (row, before)
        )
        assert mine[: len(earlier)].tolist() == earlier.tolist()


def test_the_last_session_is_cut_to_the_requests_asked_for() -> None:
    for requests in (1, 7, 50):
        trace = synthesize(spec(requests=requests, turns=4, turn_isl=10), 0)
        assert len(trace) == requests
    growing = spec(requests=40, turns=9, turn_isl=600, max_context_tokens=2500)
    trace = synthesize(growing, 0)
    assert len(trace) == 40
    assert int((trace.input_tokens + trace.output_tokens).max()) <= 2500


def test_groups_share_the_stated_part_of_their_prompts() -> None:
    trace = synthesize(spec(requests=400, isl=4096, shared_prefix_ratio=0.5, prefix_groups=3), 0)
    hits, shared = shared_prefixes(trace)
    assert sorted(set(hits.tolist())) == [0, 4]
    assert (hits == 0).sum() == 3
    assert set(shared.tolist()) == {0, 2048}
    heads = trace.hash_ids[trace.hash_offsets[:-1]]
    assert np.bincount(np.unique(heads, return_inverse=True)[1]).min() > 90


def test_skew_makes_the_first_group_the_most_popular() -> None:
    trace = synthesize(
        spec(requests=3000, shared_prefix_tokens=512, prefix_groups=4, prefix_group_skew=1.0), 0
    )
    heads = trace.hash_ids[trace.hash_offsets[:-1]]
    sizes = sorted(np.bincount(np.unique(heads, return_inverse=True)[1]).tolist(), reverse=True)
    assert np.allclose(np.array(sizes) / 3000, np.array([12, 6, 4, 3]) / 25, atol=0.03)


def test_a_description_may_be_any_object_with_the_fields() -> None:
    fields = SimpleNamespace(
        requests=50, sessions=None, isl=SimpleNamespace(dist="fixed", mean=1000.0, std=None),
        osl=SimpleNamespace(dist="fixed", mean=10.0), arrival="poisson", rate_rps=5.0, turns=1,
        think_time_ms=0.0,
    )  # fmt: skip
    from_object, from_mapping = synthesize(fields, 0), synthesize(spec(), 0)
    assert from_object.arrival_ms.tolist() == from_mapping.arrival_ms.tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sessions": 3}, "requests, sessions: give exactly one"),
        ({"requests": ...}, "requests, sessions: give exactly one"),
        ({"requests": 0}, "requests: expected at least 1, got 0"),
        ({"isl": ...}, "isl: missing"),
        ({"isl": "many"}, "isl: expected a number"),
        ({"isl": 0}, "isl.mean: expected at least 1, got 0"),
        ({"isl": float("nan")}, "isl.mean: expected a finite number, got nan"),
        ({"isl": {"dist": "normal"}}, "isl.mean: missing: normal needs a mean"),
        ({"isl": {"dist": "gauss", "mean": 1}}, "isl.dist: unknown 'gauss'"),
        ({"isl": {"dist": "fixed", "meen": 1}}, "isl.meen: unknown key, did you mean mean?"),
        ({"isl": {"dist": "normal", "mean": 9, "std": -1}}, "isl.std: expected a number >= 0"),
        ({"isl": {"dist": "fixed", "mean": 9, "max": 5}}, "isl: fixed hardly ever falls"),
        ({"isl": {"dist": "fixed", "mean": 9, "min": 6, "max": 5}}, "isl.max: 5 is below"),
        ({"isl": {"dist": "empirical"}}, "isl.trace: missing"),
        ({"think_time_ms": -1}, "think_time_ms.mean: expected at least 0"),
        ({"rate_rps": ...}, "rate_rps: missing: arrival poisson needs a rate"),
        ({"rate_rps": 0}, "rate_rps: expected a number > 0"),
        ({"rate_rps": float("nan")}, "rate_rps: expected a number > 0"),
        ({"arrival": "weibull"}, "arrival: unknown process 'weibull'"),
        ({"burstiness": 0}, "burstiness: expected a number > 0"),
        ({"shared_prefix_ratio": 1.5}, "shared_prefix_ratio: expected 0 to 1"),
        ({"shared_prefix_ratio": 0.5, "shared_prefix_tokens": 5}, "give only one of them"),
        ({"max_context_tokens": 900}, "max_context_tokens: 900 is less than a first turn of 1010"),
        ({"turn": 3}, "turn: unknown key of a synthetic workload, did you mean turns?"),
    ],
)
def test_what_cannot_be_drawn_is_refused_by_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        synthesize(spec(**changes), 0)
    assert message in str(caught.value)


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="seed: expected an integer >= 0, got -1"):
        synthesize(spec(), -1)


def test_priorities_are_of_sessions_and_move_nothing_else() -> None:
    spec = {"sessions": 400, "isl": 300, "osl": 9, "turns": 2, "rate_rps": 3.0}
    shares = [{"priority": 0, "share": 3}, {"priority": 7, "share": 1}]
    plain, classed = synthesize(spec, 1), synthesize({**spec, "priorities": shares}, 1)
    assert plain.priority is None and classed.priority is not None
    assert plain.arrival_ms.tolist() == classed.arrival_ms.tolist()
    previous = classed.previous_turn
    assert previous is not None
    later = np.flatnonzero(previous >= 0)
    assert (classed.priority[later] == classed.priority[previous[later]]).all()
    share = float((classed.priority == 7).mean())
    assert 0.18 < share < 0.32
    with pytest.raises(ConfigError, match="all shares are 0"):
        synthesize({**spec, "priorities": [{"priority": 1, "share": 0}]}, 1)
