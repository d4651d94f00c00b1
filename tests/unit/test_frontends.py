"""What frontends know of load and when they let requests go: to the moment, by hand.

A prefill step takes 10 ms and a decode step 5. Prompts consist of blocks of four tokens.
"""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from clusters import run_twin
from probing import PROBE, Ask, Watched, trace_of, watched_run

from dynosim.engine.spec import EngineSpec
from dynosim.errors import ConfigError
from dynosim.router.classes import PolicyClass
from dynosim.router.knobs import AffinitySpec, LoadSpec, RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import FixedModel
from dynosim.timing.prefill_estimate import StepTimeEstimator

SPEC = EngineSpec(num_gpu_blocks=101, max_model_len=80, block_size=4)
TIMING = FixedModel(prefill_ms=10.0, decode_ms=5.0)
BEFORE_MS = 0.001
BOTH_WAYS = pytest.mark.parametrize("exact", [False, True])


def run(asks: list[Ask], engine: EngineSpec = SPEC, **options: Any) -> Watched:
    return watched_run(asks, engine=engine, timing=TIMING, **options)


# ---- several frontends ---------------------------------------------------------------------------


@pytest.mark.parametrize("frontends", [1, 2, 3])
def test_frontends_take_turns(frontends: int) -> None:
    asks = [Ask(3.0 * (number // 2), (number,), PROBE if number % 3 == 1 else 0)
            for number in range(12)]  # fmt: skip
    watched = run(asks, frontends=frontends)
    assert [watched.frontend(index) for index in range(12)] == [k % frontends for k in range(12)]
    assert watched.watch.counts() == dict.fromkeys(range(frontends), 12 // frontends)


LONG = Ask(0.0, (1, 2, 3), 0, output_tokens=3, last_tokens=1)  # nine tokens, two whole blocks
SEEN = (0.0, 2.999, 3.0, 9.999, 10.0, 12.999, 13.0, 19.999, 20.0, 22.999, 23.0, 500.0)
WAITS, DECODES, GONE = (1, 9, 2), (1, 0, 2), (0, 0, 0)
AT_ONCE = [WAITS] * 4 + [DECODES] * 4 + [GONE] * 4
LATER = [GONE] * 2 + [WAITS] * 4 + [DECODES] * 4 + [GONE] * 2


def loads_seen(sync_delay_ms: float | None, *, exact: bool) -> dict[int, list[tuple[int, ...]]]:
    """By frontend: requests, prompt tokens to compute and blocks of worker 0, at each time."""
    asks = [replace(LONG)]
    for time_ms in SEEN:
        asks += [Ask(time_ms, (99,), PROBE)] * 2
    watched = run(asks, num_workers=2, frontends=2, sync_delay_ms=sync_delay_ms, exact=exact)
    seen: dict[int, list[tuple[int, ...]]] = {0: [], 1: []}
    for index in range(1, len(asks)):
        option = watched.option(index)
        load = (option.num_requests, option.prefill_tokens - 4, option.decode_blocks - 1)
        seen[watched.frontend(index)].append(load)
        idle = watched.option(index, worker=1)
        assert (idle.num_requests, idle.prefill_tokens, idle.decode_blocks) == (0, 4, 1)
    return seen


@BOTH_WAYS
def test_a_frontend_knows_its_own_requests_at_once_and_those_of_others_a_delay_later(
    exact: bool,
) -> None:
    """Placed at 0, first token at 10, end at 20; the others hear of it at 3, 13 and 23."""
    assert loads_seen(3.0, exact=exact) == {0: AT_ONCE, 1: LATER}


@BOTH_WAYS
def test_frontends_that_tell_at_once_know_the_same_and_those_that_do_not_tell_know_nothing(
    exact: bool,
) -> None:
    assert loads_seen(0.0, exact=exact) == {0: AT_ONCE, 1: AT_ONCE}
    assert loads_seen(None, exact=exact) == {0: AT_ONCE, 1: [GONE] * len(SEEN)}


def test_a_booking_that_is_told_counts_what_is_left_to_compute() -> None:
    """The second time two of the blocks are cached, so that one token is left."""
    asks = [replace(LONG), replace(LONG, at_ms=100.0), *[Ask(105.0, (99,), PROBE)] * 2]
    watched = run(asks, frontends=2, sync_delay_ms=3.0)
    assert [watched.option(index).prefill_tokens for index in (2, 3)] == [1 + 4] * 2
    assert [watched.option(index).decode_blocks for index in (2, 3)] == [2 + 1] * 2


def test_blocks_that_others_have_booked_are_shared_with_an_equal_prompt() -> None:
    asks = [replace(LONG), *[Ask(5.0, (1, 2, 4), PROBE)] * 2]
    watched = run(asks, frontends=2, sync_delay_ms=3.0)
    assert [watched.option(index).decode_blocks for index in (1, 2)] == [2 + 1] * 2


# ---- waiting in the router -----------------------------------------------------------------------

PATIENT = PolicyClass(prefill_busy_threshold=0)


def waits_of(asks: list[Ask], **options: Any) -> tuple[list[float], list[float]]:
    """When each request went to its worker, and how long it waited in the router."""
    watched = run(asks, settings={"classes": (PATIENT,)} | options.pop("settings", {}), **options)
    routing = watched.result.routing
    assert routing is not None
    log = watched.result.requests
    waited_ms = log.dispatch_ms - log.arrival_ms
    np.testing.assert_allclose(waited_ms, routing.queued_ms, rtol=0, atol=1e-9)
    assert routing.num_queued == int((waited_ms > 0).sum())
    np.testing.assert_array_equal(log.scheduled_ms >= log.dispatch_ms, True)
    return log.dispatch_ms.tolist(), routing.queued_ms.tolist()


@BOTH_WAYS
def test_a_request_waits_in_the_router_until_the_one_before_has_its_first_token(
    exact: bool,
) -> None:
    asks = [Ask(float(number), (number,), 0, output_tokens=9) for number in range(3)]
    dispatched, queued = waits_of(asks, exact=exact)
    assert dispatched == [0.0, 10.0, 25.0]  # the second prompt's step decodes the first, too
    assert queued == [0.0, 9.0, 23.0]


@BOTH_WAYS
@pytest.mark.parametrize(
    ("sync_delay_ms", "dispatched"), [(3.0, 13.0), (0.0, 10.0), (None, 5.0), (6.0, 5.0)]
)
def test_news_of_another_frontends_first_token_lets_a_request_go(
    sync_delay_ms: float | None, dispatched: float, exact: bool
) -> None:
    """The second frontend's request comes at 5: it waits if it knows of the first one's by then."""
    asks = [Ask(0.0, (1,), 0, output_tokens=9), Ask(5.0, (2,), 0)]
    times, _ = waits_of(asks, frontends=2, sync_delay_ms=sync_delay_ms, exact=exact)
    assert times == [0.0, dispatched]


def test_below_zero_a_priority_counts_as_so_many_seconds_of_waiting() -> None:
    """Above zero it is none; what is more urgent overtakes what came up to its seconds before."""
    asks = [Ask(1.0 * number, (number,), 0) for number in range(6)]
    priorities = np.array([0, 0, 7, -1, -2, 0])
    times, _ = waits_of(asks, columns={"priority": priorities})
    assert np.argsort(times).tolist() == [0, 4, 3, 1, 2, 5]
    asks = [Ask(0.0, (0,), 0, output_tokens=400), Ask(0.5, (1,), 0), Ask(1000.4, (2,), 0)]
    times, _ = waits_of(asks, columns={"priority": np.array([0, 0, -1])})
    assert times == [0.0, 10.0, 1000.4]


def test_refusals_are_counted_by_what_clients_are_told() -> None:
    full = PolicyClass(prefill_busy_threshold=0, request_queue_limit_per_worker=2)
    asks = [Ask(0.0, (number,), 0) for number in range(5)] + [Ask(0.0, (9,), PROBE)]
    watched = run([*asks, Ask(500.0, (9,), PROBE)], settings={"classes": (full,)})
    routing, log = watched.result.routing, watched.result.requests
    assert routing is not None and routing.num_queued == 2
    assert routing.refused == {529: 3, 503: 1}
    assert log.status.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert [log.errors[index].split(":")[0] for index in (3, 4, 5, 6)] == ["HTTP 529"] * 3 + [
        "HTTP 503"
    ]


# ---- tokens, durations, guesses, sessions --------------------------------------------------------


@BOTH_WAYS
@pytest.mark.parametrize("is_async", [False, True])
def test_a_frontend_counts_the_blocks_of_answers_as_they_grow(is_async: bool, exact: bool) -> None:
    """Four tokens of prompt; one more from 10 ms on and from then on one every 5 ms."""
    times_ms = (9.999, 10.0, 24.999, 25.0, 29.999, 30.0, 49.999, 50.0, 54.999, 55.0)
    asks = [Ask(0.0, (1,), 0, output_tokens=10)] + [Ask(at_ms, (9,), PROBE) for at_ms in times_ms]
    watched = run(
        asks,
        replace(SPEC, async_scheduling=is_async),
        settings={"load": LoadSpec(track_output_blocks=True)},
        exact=exact,
    )
    blocks = [watched.option(index).decode_blocks - 1 for index in range(1, len(asks))]
    assert blocks == [1, 2, 2, 2, 2, 3, 3, 4, 4, 0]


def test_progress_is_told_to_the_frontend_of_a_request() -> None:
    asks = [Ask(0.0, (1,), 0, output_tokens=10), *[Ask(30.0, (9,), PROBE)] * 2]
    load = LoadSpec(track_output_blocks=True)
    watched = run(asks, frontends=2, sync_delay_ms=1.0, settings={"load": load})
    assert {watched.frontend(i): watched.option(i).decode_blocks - 1 for i in (1, 2)} == {
        0: 3,
        1: 1,
    }


@BOTH_WAYS
def test_prefill_load_shrinks_over_the_predicted_time(exact: bool) -> None:
    times_ms = (0.0, 4.999, 5.0, 9.999, 10.0)
    asks = [replace(LONG), *(Ask(at_ms, (99,), PROBE) for at_ms in times_ms)]
    watched = run(asks, estimator=StepTimeEstimator(TIMING, 64), exact=exact)
    left = [watched.option(index).prefill_tokens - 4 for index in range(1, 6)]
    assert left == [9, 9 - 4, 9 - 4, 9 - 8, 0]  # whole tokens of 9 x 0, 0.4999, 0.5, 0.9999


def guesses(times_ms: list[float], **options: Any) -> list[int]:
    """Blocks of a prompt that worker 0 is taken to hold at these times; it gets it at 20 ms."""
    asks = [Ask(20.0, (1, 2), 0), *(Ask(at_ms, (1, 2), PROBE) for at_ms in times_ms)]
    watched = run(asks, num_workers=2, **options)
    assert all(watched.overlaps(index)[1] == 0 for index in range(1, len(asks)))
    return [watched.overlaps(index)[0] for index in range(1, len(asks))]


def test_without_events_a_prompt_is_taken_to_be_where_it_was_sent_for_a_while() -> None:
    times_ms = [20.0, 69.999, 70.0, 500.0]
    assert guesses(times_ms, use_kv_events=False, ttl_ms=50.0) == [2, 2, 0, 0]


def test_with_events_and_a_guess_the_prompt_is_there_before_it_is_told() -> None:
    times_ms = [20.0, 24.999, 25.0, 29.999, 30.0, 500.0]
    assert guesses(times_ms, predicted_ttl_ms=5.0) == [2, 2, 0, 0, 2, 2]
    assert guesses(times_ms) == [0, 0, 0, 0, 2, 2]


def test_a_guess_by_capacity_holds_as_much_as_a_worker_does() -> None:
    """Six blocks: the third prompt of two blocks still fits, the fourth drives out the first."""
    asks = [Ask(100.0 * k, (10 * k + 1, 10 * k + 2), 0) for k in range(4)]
    asks.insert(3, Ask(250.0, (1, 2), PROBE))
    asks += [Ask(400.0, (10 * k + 1, 10 * k + 2), PROBE) for k in range(4)]
    watched = run(
        asks,
        replace(SPEC, num_gpu_blocks=7, max_model_len=20),
        use_kv_events=False,
        approximate_cache_policy="lru",
    )
    assert [watched.overlaps(index)[0] for index in (3, 5, 6, 7, 8)] == [2, 0, 2, 2, 2]


def test_a_session_is_offered_its_own_worker_only_and_what_has_no_session_all() -> None:
    asks = [Ask(0.0, (1,), 1), Ask(50.0, (2,), 1), Ask(60.0, (3,), 0), Ask(70.0, (4,), 1)]
    watched = run(
        [*asks, Ask(500.0, (5,), PROBE)],
        num_workers=2,
        settings={"affinity": AffinitySpec(ttl_ms=300.0)},
        columns={"session_ids": ("a", "a", "", "", "a")},
    )
    offered = [[o.worker_id for o in watched.watch.seen[index][1]] for index in range(5)]
    both = [0, 1]
    assert offered == [both, [1], both, both, both]  # the last comes 440 ms after the second's end


def test_a_log_is_of_one_frontend() -> None:
    def open_log(*_: Any) -> Any:
        return lambda entry: None

    routing = RoutingSpec(RouterSpec(4, mode="kv"), frontends=2, open_log=open_log)
    with pytest.raises(ConfigError, match=r"set router\.frontends: 1"):
        run_twin(trace_of([LONG], 4), engine=SPEC, timing=TIMING, num_workers=2, routing=routing)
