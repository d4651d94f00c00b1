"""Scrapes kept for a while, and what Prometheus would make of them.

A selector is written as in PromQL: `name`, or `name{label="value",stage=~"route|dispatch"}` with
`=`, `!=`, `=~` and `!~`; a regular expression must match the whole value, and a label that a sample
lacks is empty. Every query is as of a moment `now_ms`: what was scraped later is not seen.

Two ways to have no figure: None when there is nothing to answer from (nothing scraped of late, or
no such sample), NaN when there is, and says nothing (a quantile of no observations).

Source: Prometheus 3, `promql/functions.go` and `promql/quantile.go`.
"""

import re
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable
from itertools import pairwise
from math import inf, isinf, nan

from dynosim.planner.observation import Scrape

LOOKBACK_MS = 300_000.0
"""How old the latest scrape may be before a gauge has no value any more (Prometheus: 5 min)."""

_MANY = 1000  # samples that are known beside those of the latest scrape, before any are forgotten
_LABEL = re.compile(r'\s*([A-Za-z_]\w*)\s*(=~|!~|!=|=)\s*"((?:[^"\\]|\\.)*)"\s*(?:,|$)')
_ESCAPES = {"\\\\": "\\", '\\"': '"', "\\n": "\n"}
_Labels = dict[str, str]


class SelectorError(ValueError):
    """A selector that PromQL would not read either."""


class _Column:
    """One sample in the scrapes that are kept, up to those that came since it was read last.

    `values` has NaN where it was missing. `breaks` counts by scrape how often, up to there, it was
    that or lower than before: where the count stays, a counter has only grown.
    """

    __slots__ = ("_num_breaks", "breaks", "values")

    def __init__(self) -> None:
        self.values: list[float] = []
        self.breaks: list[int] = []
        self._num_breaks = 0

    def read(self, sample: str, scrapes: list[Scrape]) -> None:
        """Take in what came."""
        values = self.values
        before = values[-1] if values else nan
        for scrape in scrapes[len(values) :]:
            value = scrape.values.get(sample, nan)
            if not value >= before:
                self._num_breaks += 1
            values.append(value)
            self.breaks.append(self._num_breaks)
            before = value

    def drop(self, number: int) -> None:
        """The oldest are kept no more."""
        del self.values[:number], self.breaks[:number]


class ScrapeStore:
    """The scrapes of the last `keep_ms`, oldest first.

    Windows longer than `keep_ms` see what is kept. `lookback_ms`: see `LOOKBACK_MS`. Only what is
    asked for is read of a scrape.
    """

    def __init__(self, keep_ms: float = 2 * LOOKBACK_MS, lookback_ms: float = LOOKBACK_MS) -> None:
        self._keep_ms = keep_ms
        self._lookback_ms = lookback_ms
        self._scrapes: list[Scrape] = []
        self._at_ms: list[float] = []  # of each of them
        self._num_known = 0  # of them, those whose samples are known by name
        self._columns: dict[str, _Column] = {}  # by sample that was asked for
        self._labels: dict[str, tuple[str, _Labels]] = {}  # by sample: its name and labels
        self._matching: dict[str, tuple[int, list[str]]] = {}  # by selector; of how many samples

    def add(self, scrape: Scrape) -> None:
        """Keep one more. Raises: ValueError if it is no later than the latest."""
        at_ms = scrape.at_ms
        if self._at_ms and at_ms <= self._at_ms[-1]:
            raise ValueError(f"scrape at {at_ms} ms after one at {self._at_ms[-1]}")
        self._scrapes.append(scrape)
        self._at_ms.append(at_ms)
        num_old = bisect_left(self._at_ms, at_ms - self._keep_ms)
        if num_old:
            del self._scrapes[:num_old], self._at_ms[:num_old]
            self._num_known = max(0, self._num_known - num_old)
            for column in self._columns.values():
                column.drop(num_old)

    def add_all(self, scrapes: Iterable[Scrape]) -> None:
        """Keep some more, oldest first."""
        for scrape in scrapes:
            self.add(scrape)

    def age_ms(self, now_ms: float) -> float:
        """Age of the latest scrape; infinity if there is none."""
        latest = self._latest(now_ms)
        return inf if latest is None else now_ms - latest.at_ms

    def is_stale(self, now_ms: float) -> bool:
        """Whether the latest scrape is too old to tell a gauge from."""
        return self.age_ms(now_ms) >= self._lookback_ms

    def last(self, sample: str, now_ms: float) -> float | None:
        """The value of one sample in the latest scrape; None when stale or not in it."""
        latest = self._latest(now_ms)
        return None if latest is None or self.is_stale(now_ms) else latest.values.get(sample)

    def sum(self, selector: str, now_ms: float) -> float | None:
        """`sum(selector)`: all that match, in the latest scrape; None when stale or none does."""
        latest = self._latest(now_ms)
        if latest is None or self.is_stale(now_ms):
            return None
        return _sum_or_none(
            latest.values[sample] for sample in self._samples(selector) if sample in latest.values
        )

    def average(self, selector: str, window_ms: float, now_ms: float) -> float | None:
        """The mean over the window of what `sum` was in each scrape; None if there was none."""
        start, end = self._window(window_ms, now_ms)
        sums = [
            value
            for at_ms in self._at_ms[start:end]
            if (value := self.sum(selector, at_ms)) is not None
        ]
        return sum(sums) / len(sums) if sums else None

    def increase(
        self, selector: str, window_ms: float, now_ms: float, *, extrapolate: bool = True
    ) -> float | None:
        """`sum(increase(selector[window]))` of counters; None if no sample was scraped twice.

        A value below the one before is a counter that began again at 0. The window is open to the
        left. As Prometheus does, the increase between its first and last scrape is extrapolated to
        the window's ends, if these are no farther than 1.1 mean intervals, else by half an
        interval, and not below a counter of 0; so it need not be whole. With `extrapolate=False` it
        is the plain difference. What a counter had when first scraped counts for nothing.
        """
        start, end = self._window(window_ms, now_ms)
        found: float | None = None
        for sample in self._samples(selector):
            grown = self._grown(sample, start, end, window_ms, now_ms, extrapolate)
            if grown is not None:
                found = grown if found is None else found + grown
        return found

    def rate(
        self, selector: str, window_ms: float, now_ms: float, *, extrapolate: bool = True
    ) -> float | None:
        """`sum(rate(selector[window]))`: `increase` per second of the window."""
        grown = self.increase(selector, window_ms, now_ms, extrapolate=extrapolate)
        return None if grown is None else grown / (window_ms / 1e3)

    def mean(self, histogram: str, window_ms: float, now_ms: float) -> float | None:
        """What a histogram observed in the window, on average: its sum by its count; else NaN."""
        total = self.increase(_suffixed(histogram, "_sum"), window_ms, now_ms)
        count = self.increase(_suffixed(histogram, "_count"), window_ms, now_ms)
        if total is None or count is None:
            return None
        return total / count if count > 0 else nan

    def histogram_quantile(
        self, q: float, histogram: str, window_ms: float, now_ms: float
    ) -> float | None:
        """`histogram_quantile(q, sum by (le) (rate(histogram_bucket[window])))`.

        `histogram` is a selector without `_bucket`. None if no bucket was scraped twice. NaN if
        nothing was observed in the window, or there is no bucket +Inf, or none beside it; the upper
        bound of the last bucket but one if the quantile is beyond it. Inside a bucket observations
        are taken to be spread evenly, and the first bucket to begin at 0.
        """
        start, end = self._window(window_ms, now_ms)
        counts: dict[float, float] = {}
        for sample in self._samples(_suffixed(histogram, "_bucket")):
            le = self._labels[sample][1].get("le")
            grown = self._grown(sample, start, end, window_ms, now_ms, extrapolate=True)
            if le is not None and grown is not None:
                counts[float(le)] = counts.get(float(le), 0.0) + grown
        return bucket_quantile(q, sorted(counts.items())) if counts else None

    def _forget(self) -> None:
        """Drop samples that no scrape has any more, as of labels that come and go."""
        kept = {sample for scrape in self._scrapes for sample in scrape.values}
        self._labels = {name: parsed for name, parsed in self._labels.items() if name in kept}
        self._matching.clear()

    def _latest(self, now_ms: float) -> Scrape | None:
        index = bisect_right(self._at_ms, now_ms)
        return self._scrapes[index - 1] if index else None

    def _window(self, window_ms: float, now_ms: float) -> tuple[int, int]:
        """The first scrape of a window, and the first after it."""
        at_ms = self._at_ms
        return bisect_right(at_ms, now_ms - window_ms), bisect_right(at_ms, now_ms)

    def _learn(self) -> None:
        """Know the samples of what came since somebody asked."""
        for scrape in self._scrapes[self._num_known :]:
            values = scrape.values
            if not values.keys() <= self._labels.keys():
                for sample in values:
                    if sample not in self._labels:
                        self._labels[sample] = _parse_sample(sample)
            if len(self._labels) > 2 * len(values) + _MANY:
                self._forget()
        self._num_known = len(self._scrapes)

    def _samples(self, selector: str) -> list[str]:
        """Those of all samples ever scraped that a selector names."""
        if self._num_known < len(self._scrapes):
            self._learn()
        known = len(self._labels)
        if selector not in self._matching or self._matching[selector][0] != known:
            fits = _parse_selector(selector)
            names = [sample for sample, parsed in self._labels.items() if fits(*parsed)]
            self._matching[selector] = (known, names)
        return self._matching[selector][1]

    def _grown(
        self,
        sample: str,
        start: int,
        end: int,
        window_ms: float,
        now_ms: float,
        extrapolate: bool,
    ) -> float | None:
        """How much one counter grew in a window; None with fewer than two scrapes of it."""
        if end - start < 2:
            return None
        column = self._columns.get(sample)
        if column is None:
            column = self._columns[sample] = _Column()
        if len(column.values) < len(self._scrapes):
            column.read(sample, self._scrapes)
        first = column.values[start]
        if first == first and column.breaks[start] == column.breaks[end - 1]:
            grown = column.values[end - 1] - first
            if not extrapolate:
                return grown
            ends = (self._at_ms[start], self._at_ms[end - 1])
            return grown * _stretch(ends, end - start, first, grown, window_ms, now_ms)
        values, at_ms = column.values[start:end], self._at_ms[start:end]
        points = [(at, value) for at, value in zip(at_ms, values, strict=True) if value == value]
        return _grown_anew(points, window_ms, now_ms, extrapolate)


def bucket_quantile(q: float, buckets: list[tuple[float, float]]) -> float:
    """The `q` quantile of cumulative counts by upper bound, in order; see `histogram_quantile`.

    A count below the one before it (scrapes between two updates) is raised to that.
    """
    if q < 0 or q > 1:
        return -inf if q < 0 else inf
    if len(buckets) < 2 or not isinf(buckets[-1][0]):
        return nan
    bounds = [bound for bound, _ in buckets]
    counts: list[float] = []
    for _, count in buckets:
        counts.append(max(count, counts[-1] if counts else 0.0))
    if counts[-1] == 0:
        return nan
    rank = q * counts[-1]
    index = next(i for i, count in enumerate(counts) if count >= rank)
    if index == len(bounds) - 1:
        return bounds[-2]
    if index == 0 and bounds[0] <= 0:
        return bounds[0]
    start, below = (bounds[index - 1], counts[index - 1]) if index else (0.0, 0.0)
    inside = counts[index] - below
    return start + (bounds[index] - start) * (rank - below) / inside if inside > 0 else nan


def _grown_anew(
    points: list[tuple[float, float]], window_ms: float, now_ms: float, extrapolate: bool
) -> float | None:
    """The same of a counter that may have begun again at 0; `points` are (ms, value)."""
    if len(points) < 2:
        return None
    first = points[0][1]
    grown = points[-1][1] - first
    for (_, before), (_, after) in pairwise(points):
        if after < before:
            grown += before
    if not extrapolate:
        return grown
    ends = (points[0][0], points[-1][0])
    return grown * _stretch(ends, len(points), first, grown, window_ms, now_ms)


def _stretch(
    ends_ms: tuple[float, float],
    num_points: int,
    first: float,
    grown: float,
    window_ms: float,
    now_ms: float,
) -> float:
    """By what an increase between scrapes, from `first`, is multiplied to be the whole window's."""
    first_ms, last_ms = ends_ms
    sampled_ms = last_ms - first_ms
    mean_ms = sampled_ms / (num_points - 1)
    before_ms = first_ms - (now_ms - window_ms)
    after_ms = now_ms - last_ms
    if before_ms >= 1.1 * mean_ms:
        before_ms = mean_ms / 2
    if after_ms >= 1.1 * mean_ms:
        after_ms = mean_ms / 2
    if grown > 0 and first >= 0:
        before_ms = min(before_ms, sampled_ms * first / grown)
    return (sampled_ms + before_ms + after_ms) / sampled_ms


def _sum_or_none(values: Iterable[float]) -> float | None:
    found = list(values)
    return sum(found) if found else None


def _suffixed(selector: str, suffix: str) -> str:
    name, brace, labels = selector.partition("{")
    return f"{name}{suffix}{brace}{labels}"


def _parse_sample(sample: str) -> tuple[str, _Labels]:
    name, matchers = _parse(sample)
    return name, {label: value for label, _, value in matchers}


def _parse_selector(selector: str) -> Callable[[str, _Labels], bool]:
    wanted_name, matchers = _parse(selector)
    claims: list[tuple[str, re.Pattern[str], bool]] = []
    for label, operator, value in matchers:
        pattern = value if operator.endswith("~") else re.escape(value)
        try:
            claims.append((label, re.compile(pattern, re.DOTALL), operator[0] != "!"))
        except re.error as error:
            raise SelectorError(f"{selector}: label {label}: {error}") from error

    def fits(name: str, labels: _Labels) -> bool:
        return name == wanted_name and all(
            (pattern.fullmatch(labels.get(label, "")) is not None) is is_wanted
            for label, pattern, is_wanted in claims
        )

    return fits


def _parse(text: str) -> tuple[str, list[tuple[str, str, str]]]:
    """A name, and label, operator and value of each matcher. Raises: SelectorError."""
    name, brace, rest = text.strip().partition("{")
    if not re.fullmatch(r"[A-Za-z_:][\w:]*", name) or (brace and not rest.endswith("}")):
        raise SelectorError(f'not a selector: {text} (write name or name{{label="value"}})')
    matchers = []
    inner, at = rest.removesuffix("}"), 0
    while inner[at:].strip():
        match = _LABEL.match(inner, at)
        if match is None:
            raise SelectorError(f'not a selector: {text}: expected label="value" at {inner[at:]}')
        label, operator, value = match.groups()
        value = re.sub(r'\\[\\"n]', lambda found: _ESCAPES[found.group()], value)
        matchers.append((label, operator, value))
        at = match.end()
    return name, matchers
