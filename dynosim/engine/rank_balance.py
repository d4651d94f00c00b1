"""Which data-parallel rank of a worker gets a request, as vLLM's own front end decides it.

Sources: vLLM 0.10 to 0.27, `v1/engine/core_client.py` (`DPLBAsyncMPClient`) and
`v1/engine/coordinator.py`. Every rank reports how many requests wait and run after each of its
steps; a coordinator hands the numbers on, 100 ms after the last time at the earliest if they have
changed, else after five seconds. In between the front end counts what it sends itself as waiting,
and the next numbers replace that. There is one front end here, and messages take no time.
"""

from dataclasses import dataclass

from dynosim.engine.vllm.versions import NEWEST, parse_version

CHANGED_INTERVAL_MS = 100.0
UNCHANGED_INTERVAL_MS = 5000.0
_WAITING_WEIGHT = 4
_PRESSED_FROM = 0.5  # share of the KV cache from which waiting requests count more
_PRESSED_WEIGHT = 6.0


@dataclass(frozen=True, slots=True)
class BalancingRule:
    """What a rank's load is, and who wins among equals.

    `counts_in_flight`: at least the front end's own requests in flight, else what waits and runs,
    more of it the fuller the cache is; otherwise four for a waiting request and one for a running
    one. `rotates`: the search begins one rank further each time.
    """

    counts_in_flight: bool
    rotates: bool


def rule_of(version: str | None) -> BalancingRule:
    """The rule of a version of vLLM; None: of the newest. Raises: ValueError for no version.

    The start rotates in 0.26, requests in flight count in 0.27.1; both may be a little older.
    """
    known = parse_version(version or NEWEST)
    return BalancingRule(counts_in_flight=known >= (0, 27), rotates=known >= (0, 26))


@dataclass(slots=True)
class RankLoad:
    """What is known of a rank."""

    waiting: int = 0
    running: int = 0
    kv_usage: float = 0.0


class RankBalancer:
    """The front end and the coordinator of one worker's ranks. Times never go back."""

    def __init__(self, num_ranks: int, rule: BalancingRule) -> None:
        self._rule = rule
        self._seen = [RankLoad() for _ in range(num_ranks)]  # by the front end
        self._reported = [RankLoad() for _ in range(num_ranks)]  # to the coordinator
        self._in_flight = [0] * num_ranks
        self._first = 0
        self._published_ms = -CHANGED_INTERVAL_MS
        self._has_changed = False
        self._changed_ms = 0.0

    def choose(self, now_ms: float) -> int:
        """The rank for the next request, which counts as waiting there from now on."""
        self._publish(now_ms)
        number = len(self._seen)
        best, least = 0, float("inf")
        for i in range(number):
            rank = (self._first + i) % number
            score = self._score(rank)
            if score < least:
                best, least = rank, score
        self._seen[best].waiting += 1
        self._in_flight[best] += 1
        if self._rule.rotates:
            self._first = (self._first + 1) % number
        return best

    def ended(self, rank: int, num_requests: int) -> None:
        """Requests have left a rank."""
        self._in_flight[rank] -= num_requests

    def report(
        self, rank: int, *, waiting: int, running: int, kv_usage: float, now_ms: float
    ) -> None:
        """What a rank says after a step."""
        self._publish(now_ms)
        load = self._reported[rank]
        is_new = load.waiting != waiting or load.running != running
        load.waiting, load.running, load.kv_usage = waiting, running, kv_usage
        if is_new and not self._has_changed:
            self._has_changed, self._changed_ms = True, now_ms

    def _score(self, rank: int) -> float:
        load = self._seen[rank]
        if not self._rule.counts_in_flight:
            return float(_WAITING_WEIGHT * load.waiting + load.running)
        score = float(max(self._in_flight[rank], load.waiting + load.running))
        pressure = max(0.0, load.kv_usage - _PRESSED_FROM)
        return score + _PRESSED_WEIGHT * load.waiting * pressure

    def _publish(self, now_ms: float) -> None:
        """Hand on what was reported, if that was due before now.

        Reports come one by one and each looks here first, so what is reported now is what was when
        it was due.
        """
        due_ms = self._published_ms + UNCHANGED_INTERVAL_MS
        if self._has_changed:
            due_ms = min(due_ms, max(self._published_ms + CHANGED_INTERVAL_MS, self._changed_ms))
        if due_ms >= now_ms:
            return
        for seen, reported in zip(self._seen, self._reported, strict=True):
            seen.waiting, seen.running = reported.waiting, reported.running
            seen.kv_usage = reported.kv_usage
        self._published_ms = due_ms + (now_ms - due_ms) // UNCHANGED_INTERVAL_MS * (
            UNCHANGED_INTERVAL_MS
        )
        self._has_changed = False
