"""What came in a window, from a frontend's metrics."""

from planner_support import CountingFrontend
from pytest import approx

from dynosim.planner.series import ScrapeStore
from dynosim.planner.traffic import LastMix, Traffic, traffic

MINUTE_MS = 60_000.0


def _minute(*before: CountingFrontend, **served: int) -> Traffic:
    """40 requests in a minute that was scraped every 10 s, after a silent one."""
    frontend, store = before[0] if before else CountingFrontend(), ScrapeStore(1e9)
    for index in range(13):
        if 6 < index <= 10:
            frontend.serve(10, **served)  # type: ignore[arg-type]
        store.add(frontend.scrape(index * 10_000.0))
    found = traffic(store, 2 * MINUTE_MS, MINUTE_MS, 0.95)
    assert found is not None
    return found


def test_requests_and_their_lengths() -> None:
    found = _minute(isl=300, osl=7, cached=75)
    assert found.num_requests == approx(40, rel=0.25)  # the window's ends are extrapolated
    assert found.rps == approx(found.num_requests / 60)
    assert (found.isl, found.osl) == (approx(300), approx(7))
    assert found.hit_rate == approx(0.25)
    assert (found.accept_length, found.age_ms) == (approx(1.0), 0.0)


def test_latencies_as_means_and_tails() -> None:
    """All of 50 ms lie between 25 and 50 ms: the 95th percentile is 48.75."""
    found = _minute(isl=300)
    assert found.ttft_ms == approx(50.0)
    assert found.ttft_ms_tail == approx(48.75)
    assert found.itl_ms == approx(20.0)


def test_tokens_that_come_together_tell_of_accepted_drafts() -> None:
    assert _minute(osl=10, together=2).accept_length == approx(2.0)


def test_a_window_without_requests_has_no_lengths() -> None:
    store, frontend = ScrapeStore(1e9), CountingFrontend()
    frontend.serve(5)
    for index in range(7):
        store.add(frontend.scrape(index * 10_000.0))
    found = traffic(store, MINUTE_MS, 50_000.0)
    assert found is not None
    assert (found.num_requests, found.isl, found.ttft_ms, found.hit_rate) == (0.0, None, None, None)


def test_counters_that_begin_again_are_followed() -> None:
    """20 requests, a restart, 10 more: 30 or so, never fewer than none."""
    store, frontend = ScrapeStore(1e9), CountingFrontend()
    for index in range(7):
        if index == 4:
            frontend = CountingFrontend()
        if index in (2, 3, 5):
            frontend.serve(10, isl=100)
        store.add(frontend.scrape(index * 10_000.0))
    found = traffic(store, MINUTE_MS, MINUTE_MS)
    assert found is not None
    assert found.num_requests == approx(30, rel=0.05)
    assert found.isl == approx(100)


def test_nothing_is_known_before_two_scrapes() -> None:
    store = ScrapeStore(1e9)
    store.add(CountingFrontend().scrape(0.0))
    assert traffic(store, 10.0, MINUTE_MS) is None


def test_a_silent_window_leaves_the_last_mix() -> None:
    last = LastMix()
    assert last.mix() is None
    last.take(Traffic(0.0, 5, 1.0, isl=100.0, osl=7.0, hit_rate=0.5, accept_length=9.0), 3)
    last.take(Traffic(0.0, 0, 0.0), 3)
    mix = last.mix()
    assert mix is not None
    assert (mix.isl, mix.osl, mix.hit_rate, mix.accept_length) == (100.0, 7.0, 0.5, 3.0)
