"""Scrapes over time, against values worked out by Prometheus' rules."""

import math

import pytest

from dynosim.planner.observation import Scrape
from dynosim.planner.series import ScrapeStore, SelectorError, bucket_quantile

S = 1000.0


def store(*rows: tuple[float, dict[str, float]], keep_s: float = 600) -> ScrapeStore:
    kept = ScrapeStore(keep_ms=keep_s * S)
    for at_s, values in rows:
        kept.add(Scrape(at_s * S, values))
    return kept


def counter(*points: tuple[float, float]) -> ScrapeStore:
    return store(*((at_s, {"c_total": value}) for at_s, value in points))


class Reads(dict[str, float]):
    """Samples that note which of them are read."""

    def __init__(self, values: dict[str, float], read: list[str]) -> None:
        super().__init__(values)
        self._read = read

    def get(self, name: str, default: float | None = None) -> float | None:  # type: ignore[override]
        self._read.append(name)
        return super().get(name, default)


def test_of_a_scrape_only_what_is_asked_for_is_read_and_that_once() -> None:
    read: list[str] = []
    seen = ScrapeStore(keep_ms=60 * S)
    for at_s in range(0, 100, 10):
        seen.add(Scrape(at_s * S, Reads({"c_total": float(at_s), "d_total": 1.0}, read)))
        if at_s:
            assert seen.increase("c_total", 20 * S, at_s * S, extrapolate=False) == 10
    assert read == ["c_total"] * 10


def test_a_counter_that_was_first_asked_for_late_is_known_from_the_oldest_scrape_on() -> None:
    seen = ScrapeStore(keep_ms=30 * S)
    for at_s in range(0, 100, 10):
        seen.add(Scrape(at_s * S, {"c_total": float(at_s % 40)}))
    # kept are 60, 70, 80, 90: values 20, 30, 0, 10, which began again once
    assert seen.increase("c_total", 60 * S, 90 * S, extrapolate=False) == 20
    assert seen.increase("c_total", 15 * S, 90 * S, extrapolate=False) == 10
    seen.add(Scrape(100 * S, {"c_total": 25.0}))
    assert seen.increase("c_total", 60 * S, 100 * S, extrapolate=False) == 25


# ---- counters ------------------------------------------------------------------------------------


def test_increase_reaches_to_both_ends_of_the_window_when_scrapes_are_near_them() -> None:
    seen = counter((5, 100), (20, 110), (35, 120), (50, 130))
    # 30 in 45 s; 5 s before the first and 10 s after the last are less than 1.1 x 15 s
    assert seen.increase("c_total", 60 * S, 60 * S) == pytest.approx(30 * 60 / 45)
    assert seen.rate("c_total", 60 * S, 60 * S) == pytest.approx(30 / 45)
    assert seen.increase("c_total", 60 * S, 60 * S, extrapolate=False) == 30


def test_increase_reaches_half_an_interval_when_scrapes_are_far_from_the_ends() -> None:
    seen = counter((40, 1000), (50, 1010), (60, 1020))
    # 40 s to the start and 30 s to the end are more than 1.1 x 10 s: 5 s each
    assert seen.increase("c_total", 90 * S, 90 * S) == pytest.approx(20 * 30 / 20)


def test_increase_does_not_reach_below_a_counter_of_zero() -> None:
    seen = counter((10, 2), (20, 12), (30, 22))
    # 2 would have been 0 two seconds before the first scrape
    assert seen.increase("c_total", 30 * S, 30 * S) == pytest.approx(20 * 22 / 20)


def test_increase_counts_what_a_counter_had_before_it_began_again() -> None:
    seen = counter((10, 50), (20, 60), (30, 3), (40, 7))
    assert seen.increase("c_total", 40 * S, 40 * S, extrapolate=False) == 17


def test_increase_when_one_of_two_processes_began_again_counts_each_by_itself() -> None:
    rows = [(10, 50.0, 50.0), (20, 60.0, 2.0)]
    seen = store(*((at, {'c_total{a="x"}': x, 'c_total{a="y"}': y}) for at, x, y in rows))
    assert seen.increase("c_total", 20 * S, 20 * S, extrapolate=False) == 12


def test_window_is_open_to_the_left_and_sees_nothing_later_than_now() -> None:
    seen = counter((10, 1), (20, 2), (30, 4), (40, 8))
    assert seen.increase("c_total", 20 * S, 30 * S, extrapolate=False) == 2  # 20 and 30
    assert seen.increase("c_total", 10 * S, 30 * S) is None  # 30 alone
    assert seen.increase("other_total", 30 * S, 30 * S) is None


# ---- gauges --------------------------------------------------------------------------------------

STAGES = {
    'stage_requests{stage="preprocess"}': 1.0,
    'stage_requests{stage="route"}': 2.0,
    'stage_requests{phase="decode",stage="dispatch"}': 4.0,
    'stage_requests{stage="routed"}': 8.0,
    "other": 16.0,
}


@pytest.mark.parametrize(
    ("selector", "total"),
    [
        ("stage_requests", 15),
        ('stage_requests{stage="route"}', 2),
        ('stage_requests{stage=~"preprocess|route|dispatch"}', 7),  # not "routed": whole values
        ('stage_requests{stage!="route"}', 13),
        ('stage_requests{stage!~"rou.*"}', 5),
        ('stage_requests{phase="", stage=~".*"}', 11),  # a label that is not there is empty
        ('stage_requests{stage="none"}', None),
        ("stage", None),
    ],
)
def test_sum_takes_what_a_selector_names(selector: str, total: float | None) -> None:
    assert store((10, STAGES)).sum(selector, 10 * S) == total


@pytest.mark.parametrize(
    "selector", ["", "{a=}", 'g{a="x"', "g{a=x}", 'g{a="x" b="y"}', 'g{a=~"("}']
)
def test_what_is_no_selector_is_refused_with_its_text(selector: str) -> None:
    with pytest.raises(SelectorError):
        store((10, STAGES)).sum(selector, 10 * S)


def test_label_values_are_read_as_prometheus_escapes_them() -> None:
    seen = store((10, {r'g{a="say \"hi\", {you}"}': 3.0}))
    assert seen.sum(r'g{a="say \"hi\", {you}"}', 10 * S) == 3


def test_gauge_when_stale_is_none_and_age_goes_on() -> None:
    seen = store((10, {"g": 1.0}))
    assert seen.last("g", 309 * S) == seen.sum("g", 309 * S) == 1
    assert seen.last("g", 310 * S) is seen.sum("g", 310 * S) is None
    assert seen.age_ms(310 * S) == 300 * S
    assert seen.age_ms(9 * S) == math.inf
    assert seen.is_stale(9 * S)


def test_gauge_that_the_latest_scrape_lacks_is_none() -> None:
    seen = store((10, {"g": 1.0}), (20, {}))
    assert seen.last("g", 20 * S) is None
    assert seen.sum("g", 20 * S) is None
    assert seen.sum("g", 19 * S) == 1  # as of then


def test_average_is_over_scrapes_of_the_window() -> None:
    seen = store((10, {"g": 100.0}), (20, {"g": 2.0}), (30, {}), (40, {"g": 6.0}))
    assert seen.average("g", 30 * S, 40 * S) == 4
    assert seen.average("g", 5 * S, 50 * S) is None


# ---- histograms ----------------------------------------------------------------------------------

BOUNDS = ("0.1", "0.5", "1.0", "+Inf")


def histogram(*counts: tuple[float, ...]) -> ScrapeStore:
    """Cumulative counts at 10 s, 20 s and so on; `counts` are of the buckets of `BOUNDS`."""
    return store(
        *(
            (10.0 * (1 + i), {f'h_bucket{{le="{b}"}}': c for b, c in zip(BOUNDS, row, strict=True)})
            for i, row in enumerate(counts)
        )
    )


@pytest.mark.parametrize(
    ("q", "expected"),
    [
        (0.25, 0.05),  # the 5th of 10 in the first bucket, which begins at 0
        (0.5, 0.1),
        (0.75, 0.3),  # half way through the second
        (0.95, 1.0),  # beyond: the last bound that is a number
        (-0.1, -math.inf),
        (1.1, math.inf),
    ],
)
def test_quantile_is_interpolated_inside_its_bucket(q: float, expected: float) -> None:
    last = (1010, 1018, 1018, 1020) if q == 0.95 else (1010, 1020, 1020, 1020)
    seen = histogram((1000, 1000, 1000, 1000), last)
    assert seen.histogram_quantile(q, "h", 20 * S, 20 * S) == pytest.approx(expected)


def test_quantile_sees_the_window_only() -> None:
    seen = histogram((0, 0, 0, 0), (100, 100, 100, 100), (100, 110, 110, 110))
    assert seen.histogram_quantile(0.5, "h", 20 * S, 30 * S) == pytest.approx(0.3)


def test_quantile_of_nothing_observed_is_nan_and_of_nothing_scraped_none() -> None:
    idle = histogram((5, 5, 5, 5), (5, 5, 5, 5))
    assert math.isnan(idle.histogram_quantile(0.95, "h", 20 * S, 20 * S) or 0.0)
    assert idle.histogram_quantile(0.95, "h", 20 * S, 200 * S) is None
    assert idle.histogram_quantile(0.95, "other", 20 * S, 20 * S) is None


def test_quantile_adds_buckets_of_several_series() -> None:
    one = {f'h_bucket{{a="{a}",le="{b}"}}': 0.0 for a in "xy" for b in BOUNDS}
    two = one | {'h_bucket{a="x",le="+Inf"}': 10.0, 'h_bucket{a="x",le="1.0"}': 10.0}
    two |= {f'h_bucket{{a="y",le="{b}"}}': 10.0 for b in BOUNDS}
    seen = store((10, one), (20, two))
    assert seen.histogram_quantile(0.75, "h", 20 * S, 20 * S) == pytest.approx(0.75)
    assert seen.histogram_quantile(0.75, 'h{a="y"}', 20 * S, 20 * S) == pytest.approx(0.075)


def test_quantile_without_a_bucket_for_all_is_nan() -> None:
    assert math.isnan(bucket_quantile(0.5, [(0.1, 1), (0.5, 2)]))
    assert math.isnan(bucket_quantile(0.5, [(math.inf, 2)]))
    assert bucket_quantile(0.5, [(-1.0, 9), (math.inf, 10)]) == -1.0
    assert bucket_quantile(0.9, [(1.0, 10), (2.0, 9), (math.inf, 10)]) == pytest.approx(0.9)


def test_mean_of_a_histogram_is_its_sum_by_its_count() -> None:
    seen = store((10, {"h_sum": 1.0, "h_count": 1.0}), (20, {"h_sum": 7.0, "h_count": 4.0}))
    assert seen.mean("h", 20 * S, 20 * S) == pytest.approx(2.0 * (1 + 1 / 6) / (1 + 1 / 3))
    idle = store((10, {"h_sum": 1.0, "h_count": 1.0}), (20, {"h_sum": 1.0, "h_count": 1.0}))
    assert math.isnan(idle.mean("h", 20 * S, 20 * S) or 0.0)
    assert idle.mean("g", 20 * S, 20 * S) is None


# ---- what is kept --------------------------------------------------------------------------------


def test_scrapes_older_than_is_kept_are_forgotten() -> None:
    seen = store(*((at, {"c_total": at}) for at in range(10, 200, 10)), keep_s=30)
    assert seen.increase("c_total", 1000 * S, 190 * S, extrapolate=False) == 30
    assert seen.last("c_total", 150 * S) is None


def test_scrape_that_is_not_later_is_refused_and_changes_nothing() -> None:
    seen = counter((10, 1), (20, 2))
    with pytest.raises(ValueError, match="20000"):
        seen.add(Scrape(20 * S, {"c_total": 9.0}))
    assert seen.last("c_total", 20 * S) == 2


def test_samples_of_labels_that_come_and_go_are_forgotten() -> None:
    seen = ScrapeStore(keep_ms=20 * S)
    for at_s in range(3000):
        seen.add(Scrape(at_s * S, {f'g{{worker="{at_s}"}}': 1.0, "c_total": float(at_s)}))
        assert len(seen._labels) <= 1100
    assert seen.sum("g", 2999 * S) == 1
    assert seen.increase("c_total", 20 * S, 2999 * S, extrapolate=False) == 19
