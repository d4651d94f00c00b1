"""KV that is loaded ahead of its request: cases that can be worked out by hand.

A device holds 10 blocks of 4 tokens; a block takes a ms to or from its host, 2 ms from the store,
and a prompt token a ms of a step that takes 10 ms besides.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from probing import Ask, trace_of
from test_cluster_tiers import BLOCK, HOST, SLOW_STORE, STORE, cluster, prompt

from dynosim.cluster import ClusterSpec, RunOptions, simulate
from dynosim.cluster.control import ControlPlane, ProcessGenerator
from dynosim.errors import ConfigError
from dynosim.metrics import check_conservation
from dynosim.records import PrefetchLog, RequestStatus, Retention, RunResult, Trace
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import LinearModel

IDS = (1, 2, 3, 4, 5, 6)
OTHERS = tuple(range(11, 21))
QUICK = LinearModel(
    base_ms=0.5, per_prefill_token_ms=0.05, per_decode_ms=0.0, per_context_token_ms=0.0
)
FIRST, OTHER = prompt(0, *IDS), prompt(100, *OTHERS)  # the other one takes all of the device


def ahead(at_ms: float, *ids: int) -> Ask:
    """What is to be loaded: all but the last, as of a request with these ids."""
    return replace(prompt(at_ms, *ids), output_tokens=-1)


def asked(asks: Sequence[Ask]) -> Trace:
    """Those without an answer are prefetches."""
    is_prefetch = np.array([ask.output_tokens < 0 for ask in asks])
    trace = trace_of([replace(ask, output_tokens=max(1, ask.output_tokens)) for ask in asks], BLOCK)
    if not is_prefetch.any():
        return trace
    return replace(trace, is_speculative=is_prefetch, is_prefetch=is_prefetch)


def run(asks: Sequence[Ask], spec: ClusterSpec, *acts: Any, **options: Any) -> RunResult:
    trace = asked(asks)
    result = simulate(trace, spec, RunOptions(**options), processes=acts)
    check_conservation(result, trace)
    single = simulate(trace, spec, RunOptions(exact_stepping=True, **options), processes=acts)
    np.testing.assert_allclose(result.requests.finish_ms, single.requests.finish_ms)
    assert result.prefetches == single.prefetches
    return result


def test_a_request_finds_on_the_device_what_was_loaded_before_it_came() -> None:
    asks = [FIRST, OTHER, ahead(160, *IDS), prompt(200, *IDS)]
    result = run(asks, cluster(HOST))
    log = result.requests
    assert log.onboards is not None
    assert log.onboards.num_tokens.tolist() == [0, 0, 20, 0]
    assert log.onboards.end_ms[2] == log.finish_ms[2] == pytest.approx(165)
    assert log.status[2] == RequestStatus.PREFETCHED
    assert log.cached_tokens[3] == 20 and log.scheduled_ms[3] == pytest.approx(200)
    assert log.finish_ms[3] == pytest.approx(200 + 10 + 1)
    assert result.prefetches == PrefetchLog(5, 5, 0)
    assert result.tiers[0].loaded_blocks == 5


def test_who_comes_before_it_is_there_waits_for_the_rest() -> None:
    asks = [FIRST, OTHER, ahead(198, *IDS), prompt(200, *IDS)]
    result = run(asks, cluster(HOST))
    log = result.requests
    assert log.onboards is not None and log.onboards.num_tokens[3] == 0
    assert log.cached_tokens[3] == 20 and log.scheduled_ms[3] == pytest.approx(203)
    assert result.prefetches == PrefetchLog(5, 5, 0)


def test_what_the_device_has_is_not_loaded() -> None:
    result = run([FIRST, ahead(50, *IDS), prompt(100, *IDS)], cluster(HOST))
    assert result.prefetches == PrefetchLog(0, 0, 0)
    assert result.requests.finish_ms[1] == pytest.approx(50)
    assert result.requests.cached_tokens[2] == 20


def test_what_the_device_has_in_part_is_loaded_whole_and_in_its_place() -> None:
    """The last request makes two extents of the first prompt, of 2 blocks each. The two others need
    7 blocks and evict one of the second extent; the last blocks of both are blank again."""
    others = [prompt(100, *OTHERS[:4]), prompt(100, *OTHERS[5:8])]
    five, split = IDS[:5], prompt(1000, 1, 2, 9)
    asks = [prompt(0, *five), *others, ahead(160, *five), prompt(200, *five), split]
    result = run(asks, cluster(HOST))
    assert result.prefetches == PrefetchLog(2, 2, 0)
    assert result.requests.cached_tokens[4] == 16
    assert result.tiers[0].loaded_blocks == 2


def test_all_full_blocks_of_a_prompt_are_loaded_also_its_last() -> None:
    """Whoever asks for it has another token behind them."""
    whole = replace(ahead(160, *IDS), last_tokens=None)
    six = replace(prompt(0, *IDS), last_tokens=None)
    result = run([six, OTHER, whole, prompt(200, *IDS, 7)], cluster(HOST))
    assert result.prefetches == PrefetchLog(6, 6, 0)
    result = run([six, replace(whole, at_ms=50.0)], cluster(HOST))
    assert result.prefetches == PrefetchLog(0, 0, 0)


@pytest.mark.parametrize(("blocks", "log"), [(4, PrefetchLog(5, 0, 0)), (5, PrefetchLog(0, 0, 1))])
def test_it_takes_no_block_that_a_request_may_need_soon(blocks: int, log: PrefetchLog) -> None:
    """Who runs has so many of ten blocks for its prompt: one more is left for what it adds."""
    running = Ask(140.0, tuple(range(31, 31 + blocks)), None, output_tokens=21, last_tokens=3)
    assert run([FIRST, OTHER, running, ahead(180, *IDS)], cluster(HOST)).prefetches == log


def test_it_takes_none_while_a_request_waits_for_room() -> None:
    """The running one has 5 blocks and the next one asks for 6, of 5 that are free."""
    running = Ask(140.0, tuple(range(31, 36)), None, output_tokens=12, last_tokens=3)
    waiting = Ask(150.0, tuple(range(41, 47)), None)
    asks = [FIRST, OTHER, running, waiting, ahead(170, 1, 2, 3), prompt(1000, *IDS)]
    result = run(asks, cluster(HOST))
    assert result.prefetches == PrefetchLog(0, 0, 1)
    alone = run([FIRST, OTHER, running, ahead(170, 1, 2, 3), prompt(1000, *IDS)], cluster(HOST))
    assert alone.prefetches == PrefetchLog(2, 2, 0)


def test_what_is_evicted_again_was_loaded_in_vain() -> None:
    asks = [FIRST, OTHER, ahead(160, *IDS), prompt(170, *OTHERS), prompt(300, *IDS)]
    result = run(asks, cluster(HOST))
    assert result.prefetches == PrefetchLog(5, 0, 0)
    assert result.requests.onboards is not None
    assert result.requests.onboards.num_tokens.tolist() == [0, 0, 20, 36, 20]


def test_a_block_is_of_use_once() -> None:
    asks = [FIRST, OTHER, ahead(160, *IDS), prompt(200, *IDS), prompt(250, *IDS)]
    assert run(asks, cluster(HOST)).prefetches == PrefetchLog(5, 5, 0)


def test_a_request_that_shares_half_of_it_uses_that_half() -> None:
    asks = [FIRST, OTHER, ahead(160, *IDS), prompt(200, 1, 2, 3, 54)]
    assert run(asks, cluster(HOST)).prefetches == PrefetchLog(5, 3, 0)


def test_it_comes_in_the_middle_of_a_run_of_steps_and_slows_it_not() -> None:
    running = Ask(140.0, (31, 32), None, output_tokens=12, last_tokens=3)
    asks = [FIRST, OTHER, running, ahead(205, *IDS), prompt(1000, *IDS)]
    result = run(asks, cluster(HOST))
    without = run([FIRST, OTHER, running, prompt(1000, *IDS)], cluster(HOST))
    assert result.requests.finish_ms[2] == without.requests.finish_ms[2]
    assert result.requests.onboards is not None
    # A step of 10 ms ends at 203, and the next one at 213.
    assert result.requests.onboards.start_ms[3] == pytest.approx(213)
    assert result.prefetches == PrefetchLog(5, 5, 0)


def test_from_a_store_it_comes_over_its_link_and_to_the_host_as_well() -> None:
    """The host has room for the other prompt alone; what comes from the store is offered to it."""
    spec = cluster(replace(HOST, num_blocks=9), STORE)
    result = run([FIRST, OTHER, ahead(160, *IDS), prompt(200, *IDS)], spec)
    assert result.requests.finish_ms[2] == pytest.approx(160 + 10)
    assert result.prefetches == PrefetchLog(5, 5, 0)
    host, store = result.tiers
    assert (host.loaded_blocks, store.loaded_blocks) == (0, 5)
    assert host.stored_blocks == 5 + 9 + 5


def test_what_is_on_its_way_to_a_tier_is_as_good_as_not_there() -> None:
    """The store has the first worker's prompt at 81 ms."""
    asks = [FIRST, ahead(60, *IDS), ahead(90, *IDS)]
    result = run([asks[0], prompt(40, 31), *asks[1:]], cluster(SLOW_STORE, workers=2))
    assert result.requests.worker_id.tolist() == [0, 1, 0, 1]
    assert result.prefetches == PrefetchLog(5, 0, 0)


def test_one_that_loses_its_worker_is_loaded_elsewhere() -> None:
    def lose_the_second(control: ControlPlane) -> ProcessGenerator:
        yield control.env.timeout(92.0)
        control.fail(1)

    asks = [FIRST, prompt(40, 31), prompt(80, 32), ahead(90, *IDS)]
    result = run(asks, cluster(STORE, workers=2), lose_the_second)
    assert result.requests.status[3] == RequestStatus.PREFETCHED
    assert result.requests.worker_id[3] == 0


def test_a_worker_that_drains_goes_when_its_loads_have_come() -> None:
    def drain_the_only_one(control: ControlPlane) -> ProcessGenerator:
        yield control.env.timeout(162.0)
        control.drain(0)

    result = run([FIRST, OTHER, ahead(160, *IDS)], cluster(HOST), drain_the_only_one)
    assert result.workers.ended_ms.tolist() == pytest.approx([165.0])
    assert result.prefetches == PrefetchLog(5, 0, 0)


@pytest.mark.parametrize("timeout_ms", [3.0, 7.0])
def test_one_that_is_given_up_leaves_nothing_behind(timeout_ms: float) -> None:
    """A load that comes too late is let go; the prompts are short enough to be over before."""
    asks = [replace(prompt(0, 1, 2, 3), last_tokens=None)]
    slow = replace(HOST, read_gb_s=0.5, write_gb_s=1.0)
    spec = cluster(slow)
    quick = replace(spec.pools[0], times=QUICK)
    spec = replace(spec, pools=(quick,))
    asks = [*asks, prompt(100, *OTHERS), replace(ahead(160, 1, 2, 3), last_tokens=None)]
    result = run(asks, spec, client_timeout_ms=timeout_ms)
    is_late = timeout_ms < 6.0
    assert result.requests.status[2] == (
        RequestStatus.TIMED_OUT if is_late else RequestStatus.PREFETCHED
    )
    assert result.prefetches == PrefetchLog(0 if is_late else 3, 0, 0)


def test_a_pin_keeps_what_it_brought() -> None:
    """What it says holds from its end, as of a request; else what was used later stays."""
    said = Retention(pin_ttl_ms=1000.0)
    later = [prompt(170, *OTHERS[:6]), prompt(230, 61, 62, 63, 64), prompt(300, *IDS[:4])]
    trace = asked([FIRST, OTHER, ahead(160, *IDS[:4]), *later])
    for retention, used in ((None, 0), ((None, None, said, None, None, None), 3)):
        result = simulate(replace(trace, retention=retention), cluster(HOST), RunOptions())
        assert result.prefetches == PrefetchLog(3, used, 0)


def test_without_a_tier_it_is_refused() -> None:
    spec = cluster(HOST)
    spec = replace(spec, pools=(replace(spec.pools[0], tiers=None),))
    with pytest.raises(ConfigError, match="row 1 is a prefetch: there is no tier to load from"):
        simulate(asked([FIRST, ahead(50, *IDS)]), spec, RunOptions())


def test_a_router_counts_it_as_no_load_but_hears_of_what_it_brought() -> None:
    """One worker has the prompt on its host: the prefetch goes there, and so does a short request
    that shares its beginning, in the middle of the load and when it is over."""
    routing = RoutingSpec(RouterSpec(BLOCK, mode="kv"))
    slow = replace(HOST, read_gb_s=0.1)  # 50 ms for 5 blocks
    spec = replace(cluster(slow, workers=2), routing=routing)
    others = [
        prompt(100 * number, *range(start := 20 * number, start + 10)) for number in range(1, 5)
    ]
    for at_ms in (1010.0, 1100.0):
        result = run([FIRST, *others, ahead(1000, *IDS), prompt(at_ms, 1, 2, 9)], spec)
        worker = result.requests.worker_id.tolist()
        assert set(worker[:5]) == {0, 1}
        assert worker[6] == worker[5] == worker[0]
        assert result.prefetches == PrefetchLog(5, 2, 0)
