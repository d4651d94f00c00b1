"""Requests as they came from scrape to scrape: how many surely come now, and what bursts took.

Means over an interval hide bursts. Here the counts between scrapes are kept, so that every window
between two of them can be asked for.
"""

from collections import deque
from math import sqrt

_LEAST_GAP_MS = 1.0
_BURST_SHARE = 0.75


class RecentArrivals:
    """Requests that came and first tokens that were late, by scrape, for `keep_ms`.

    `window_ms`: the longest window that counts as a burst. `allowed_ms`: how long a request may
    wait, so that a burst may be served so much later than it came.
    """

    def __init__(self, window_ms: float, allowed_ms: float, keep_ms: float) -> None:
        self._window_ms = window_ms
        self._allowed_ms = allowed_ms
        self._keep_ms = keep_ms
        self._window: deque[tuple[float, float]] = deque()  # (scraped at, came until then)
        self._bursts: deque[tuple[float, float]] = deque()  # (scraped at, rate), falling
        self._late: deque[tuple[float, float, float]] = deque()  # (at, first tokens, late ones)
        self._came = self._first_tokens = self._late_ones = 0.0
        self._told: tuple[float, float, float] | None = None  # the counters, as last scraped
        self._high_ms: float | None = None  # when a burst was there last
        self._quiet: deque[tuple[float, float]] = deque()  # (burst at, how long after the last)

    def note(self, at_ms: float, came: float, first_tokens: float, in_time: float) -> None:
        """Take in a scrape's counters. One that fell began again at 0."""
        told = (came, first_tokens, first_tokens - in_time)
        grown = told
        if self._told is not None:
            grown = tuple(
                now - before if now >= before else now
                for now, before in zip(told, self._told, strict=True)
            )  # type: ignore[assignment]
            self._came += grown[0]
            self._first_tokens += grown[1]
            self._late_ones += grown[2]
        self._told = told
        self._window.append((at_ms, self._came))
        while self._window[0][0] < at_ms - self._window_ms:
            self._window.popleft()
        self._late.append((at_ms, self._first_tokens, self._late_ones))
        while self._late[0][0] < at_ms - self._keep_ms:
            self._late.popleft()
        self._note_burst(at_ms, self._burst_rps(at_ms))

    def sure_rps(self, least_ms: float = _LEAST_GAP_MS) -> float:
        """The highest rate of any window until now, of at least so long, that is no chance: less a
        root of its number."""
        at_ms, total = self._window[-1] if self._window else (0.0, 0.0)
        most = 0.0
        for since_ms, then in self._window:
            length_ms = at_ms - since_ms
            if length_ms > 0 and length_ms >= least_ms:
                came = total - then
                most = max(most, (came - sqrt(came)) / length_ms * 1e3)
        return most

    def late_share(self) -> float:
        """Share of the first tokens of `keep_ms` that were late."""
        if not self._late:
            return 0.0
        (_, first, late), (_, first_now, late_now) = self._late[0], self._late[-1]
        return (late_now - late) / (first_now - first) if first_now > first else 0.0

    def burst_rps(self, now_ms: float, memory_ms: float) -> float:
        """What had to be served a second for the worst burst of `memory_ms` to be in time."""
        for at_ms, rps in self._bursts:
            if at_ms >= now_ms - memory_ms:
                return rps
        return 0.0

    def _burst_rps(self, at_ms: float) -> float:
        total, most = self._came, 0.0
        for since_ms, then in self._window:
            if at_ms - since_ms >= _LEAST_GAP_MS:
                took_ms = at_ms - since_ms + self._allowed_ms
                most = max(most, (total - then) / took_ms * 1e3)
        return most

    def _note_burst(self, at_ms: float, rps: float) -> None:
        while self._bursts and self._bursts[-1][1] <= rps:
            self._bursts.pop()
        self._bursts.append((at_ms, rps))
        while self._bursts[0][0] < at_ms - self._keep_ms:
            self._bursts.popleft()
        while self._quiet and self._quiet[0][0] < at_ms - self._keep_ms:
            self._quiet.popleft()
        if rps >= _BURST_SHARE * self._bursts[0][1]:
            if self._high_ms is not None and at_ms - self._high_ms > self._window_ms:
                self._quiet.append((at_ms, at_ms - self._high_ms))
            self._high_ms = at_ms

    def longest_quiet_ms(self) -> float:
        """The longest time between two bursts of `keep_ms`; 0: there were no two."""
        return max((quiet_ms for _, quiet_ms in self._quiet), default=0.0)
