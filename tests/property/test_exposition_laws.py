"""The twin's frontend metrics at any moment, beside what every single token says."""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from random import Random

import numpy as np
import pytest
from controllers import Script
from hypothesis import given, settings
from hypothesis import strategies as st
from report_runs import Told, told_run
from scripts import World, aggregated, disaggregated

from dynosim.cluster.exposition import FrontendLabels
from dynosim.cluster.scaling import ScalingProcess, ScalingSpec
from dynosim.cluster.scenario import LoseFrontend
from dynosim.planner import frontend_metrics as names
from dynosim.planner.frontend_metrics import le_text, sample_name
from dynosim.planner.observation import Observation
from dynosim.records import FloatArray, RequestLog, RequestStatus

LABELS = FrontendLabels("test", "m")
EVERY_MS = 41.37  # no step ends just then
HAIR_S = 1e-9


def watched(seed: int) -> tuple[Told, dict[float, Mapping[str, float]]]:
    """A run, and its scrapes by time."""
    script = Script([10 * EVERY_MS * k for k in range(1, 100)], [])
    spec = ScalingSpec(scrape_interval_ms=EVERY_MS, labels=LABELS)
    process = ScalingProcess(script, spec)
    told = told_run(seed, processes=[process])
    scrapes = [scrape for look in process.looks for scrape in look.seen.scrapes]
    return told, {scrape.at_ms: scrape.values for scrape in scrapes}


def histogram(name: str, values_s: Iterable[float]) -> dict[str, float]:
    """Its samples, from all that was observed."""
    values = sorted(values_s)
    bounds = (*names.BUCKETS[name], math.inf)
    found = {
        sample_name(f"{name}_bucket", {**LABELS.common, "le": le_text(bound)}): float(
            bisect_left(values, bound + HAIR_S)
        )
        for bound in bounds
    }
    found[sample_name(f"{name}_count", LABELS.common)] = float(len(values))
    found[sample_name(f"{name}_sum", LABELS.common)] = sum(values)
    return found


def expected(told: Told, now_ms: float) -> dict[str, float]:
    """What the metrics say at a moment of the engines' clock, token by token."""
    timing = told.outcome.timing
    outside_ms = timing.ingress_ms + timing.egress_ms
    limit = told.outcome.report["max_model_len"]
    seen_ms = now_ms + outside_ms
    requests = [one for one in told.run.requests if one.arrival_ms is not None]
    came = [one for one in requests if one.arrival_ms <= now_ms]
    firsts, gaps, ends = [], [], []
    for one in came:
        times_ms = [token_ms for token_ms in one.token_ms if token_ms <= seen_ms]
        if times_ms:
            firsts.append((times_ms[0] - one.arrival_ms) / 1e3)
        gaps += [(after - before) / 1e3 for before, after in pairwise(times_ms)]
        if one.is_completed and one.finish_ms is not None and one.finish_ms <= seen_ms:
            ends.append(one)
    fitting = [one for one in came if one.input_tokens < limit]
    refused = [one for one in fitting if one.status == "rejected"]  # when they came
    return {
        **histogram(names.TTFT, firsts),
        **histogram(names.ITL, gaps),
        **histogram(names.INPUT_TOKENS, [one.input_tokens for one in fitting]),
        **histogram(names.OUTPUT_TOKENS, [len(one.token_ms) for one in (*ends, *refused)]),
        **total(names.PROMPT_TOKENS, sum(one.input_tokens for one in fitting)),
        **total(names.ENGINE_CACHED_TOKENS, sum(one.cached_tokens for one in ends)),
    }


def total(name: str, value: float) -> dict[str, float]:
    return {sample_name(f"{name}_total", LABELS.common): float(value)}


class Reader(Script):
    """Reads all, or a few samples, of some of what it is shown; `read` by time."""

    def __init__(self, times_ms: list[float], seed: int) -> None:
        super().__init__(times_ms, [])
        self._choice = Random(seed)
        self.read: dict[float, dict[str, float]] = {}

    def look(self, seen: Observation) -> None:
        """Not always in the order of time."""
        super().look(seen)
        for scrape in self._choice.sample(seen.scrapes, self._choice.randrange(len(seen.scrapes))):
            names_read = list(scrape.values)
            if self._choice.random() < 0.5:
                names_read = self._choice.sample(names_read, 5)
            self.read[scrape.at_ms] = {name: scrape.values[name] for name in names_read}


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_a_scrape_says_the_same_whenever_it_is_read(seed: int) -> None:
    reader = Reader([10 * EVERY_MS * k for k in range(1, 100)], seed)
    process = ScalingProcess(reader, ScalingSpec(scrape_interval_ms=EVERY_MS, labels=LABELS))
    told_run(seed, processes=[process])
    _, late = watched(seed)
    for at_ms, values in reader.read.items():
        assert values.items() <= dict(late[at_ms]).items()
    for look in process.looks:
        for scrape in look.seen.scrapes:
            assert scrape.values == late[scrape.at_ms]
            assert list(scrape.values) == list(late[scrape.at_ms])


def is_plain(told: Told) -> bool:
    """Whether every request ended by itself, or was refused when it came."""
    return all(one.status in ("completed", "rejected") for one in told.run.requests)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_every_scrape_says_what_single_tokens_say(seed: int) -> None:
    told, scrapes = watched(seed)
    if not is_plain(told):
        return
    for now_ms, values in scrapes.items():
        for name, value in expected(told, now_ms).items():
            near = pytest.approx(value, rel=1e-9, abs=2e-6)
            assert values[name] == (near if "_seconds_sum" in name else value), (name, now_ms)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_requests_are_somewhere_until_they_end(seed: int) -> None:
    told, scrapes = watched(seed)
    for now_ms, values in scrapes.items():
        active = values[of(names.ACTIVE_REQUESTS)]
        stages = [value for name, value in values.items() if name.startswith(names.STAGE_REQUESTS)]
        assert len(stages) == 3 and active == sum(stages)
        ended = sum(value for name, value in values.items() if name.startswith(names.REQUESTS))
        came = sum(
            one.arrival_ms is not None and one.arrival_ms <= now_ms for one in told.run.requests
        )
        assert active + ended == came


def test_the_last_scrape_agrees_with_the_report() -> None:
    num_compared = 0
    for seed in range(16):
        process = ScalingProcess(Script([], []), ScalingSpec(labels=LABELS))
        told = told_run(seed, processes=[process])
        report = told.outcome.report
        statuses = {one.status for one in told.run.requests}
        if statuses != {"completed"}:
            continue
        num_compared += 1
        values = process.scrape_at_end(told.outcome.result.end_ms).values
        for name, count, mean in (
            (names.TTFT, "num_ttft_samples", "mean_ttft_ms"),
            (names.ITL, "num_itl_samples", "mean_itl_ms"),
            (names.DURATION, "num_e2e_latency_samples", "mean_e2e_latency_ms"),
        ):
            assert values[of(f"{name}_count")] == report[count]
            total_s = report[count] * (report[mean] or 0.0) / 1e3
            assert values[of(f"{name}_sum")] == pytest.approx(total_s, rel=1e-9, abs=2e-6)
        assert values[of(f"{names.PROMPT_TOKENS}_total")] == report["total_input_tokens"]
        assert values[of(f"{names.OUTPUT_TOKENS}_sum")] == report["total_output_tokens"]
    assert num_compared > 4


def over_ms(world: World, log: RequestLog) -> FloatArray:
    """When clients gave up, or lost their frontend; infinity for all others."""
    found = np.full(len(log.status), np.inf)
    if log.gave_up_ms is not None:
        found = np.where(np.isnan(log.gave_up_ms), np.inf, log.gave_up_ms)
    losses_ms = [one.at_ms for one in world.events if isinstance(one, LoseFrontend)]
    for index, why in log.errors.items():
        if why.startswith("frontend"):
            found[index] = losses_ms[0]
    return found


Made = Callable[[int], World]
NOT_SENT = RequestStatus.NOT_SENT
STATUSES = {
    "success": [RequestStatus.COMPLETED],
    "error": [RequestStatus.FAILED, RequestStatus.REJECTED],
    "cancelled": [RequestStatus.TIMED_OUT],
}
OUTCOMES = {
    RequestStatus.COMPLETED: "completed",
    RequestStatus.FAILED: "failed",
    RequestStatus.REJECTED: "rejected",
    RequestStatus.TIMED_OUT: "cancelled",
}


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from([aggregated, disaggregated]))
def test_under_any_script_the_last_scrape_agrees_with_the_records(seed: int, make: Made) -> None:
    world = replace(make(seed), scaling_seed=seed)
    result, process = world.scaled_run()
    assert process is not None
    log = result.requests
    values = process.scrape_at_end(result.end_ms).values
    common = FrontendLabels().common

    def value(name: str, **labels: str) -> float:
        return values.get(sample_name(name, common | labels), 0.0)

    numbers = Counter(RequestStatus(one) for one in log.status.tolist())
    too_long = world.trace.input_tokens >= world.cluster.max_model_len
    arrived = ~np.isnan(log.arrival_ms)
    over = arrived & (log.status != RequestStatus.UNFINISHED) & (log.status != NOT_SENT)
    assert value(names.ACTIVE_REQUESTS) == (arrived & ~over).sum()
    assert value(f"{names.MIGRATIONS}_total") == log.migrations.sum()
    labels = {"endpoint": "chat_completions", "request_type": "stream"}
    for status, outcomes in STATUSES.items():
        expected = sum(numbers[one] for one in outcomes)
        assert value(f"{names.REQUESTS}_total", status=status, **labels) == expected
    for status, outcome in OUTCOMES.items():
        refused_at_once = (too_long & arrived).sum() if status is RequestStatus.REJECTED else 0
        expected = numbers[status] - refused_at_once
        assert value(f"{names.GENERATIONS}_total", outcome=outcome) == expected
    assert value(f"{names.DURATION}_count") == over.sum()
    assert value(f"{names.OUTPUT_TOKENS}_sum") == log.output_tokens[over & ~too_long].sum()
    has_first = log.first_token_ms <= over_ms(world, log)  # else it came for nobody
    assert value(f"{names.TTFT}_count") == has_first.sum()
    ttft_s = (log.first_token_ms - log.arrival_ms)[has_first].sum() / 1e3
    assert value(f"{names.TTFT}_sum") == pytest.approx(ttft_s, rel=1e-9, abs=2e-6)
    assert value(f"{names.ITL}_count") == np.maximum(log.output_tokens - 1, 0).sum()


def of(name: str) -> str:
    return sample_name(name, LABELS.common)
