"""What a mock engine counts."""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate
from typing import Literal, Protocol

from dynosim.engine.sequence import Sequence as EngineSequence

_TTFT_BOUNDS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
    20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
_ITL_BOUNDS_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
    40.0, 80.0,
)  # fmt: skip
_E2E_BOUNDS_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0,
    480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip

_BYTES_BOUNDS = tuple(float(1 << power) for power in range(11, 36, 2))


class Histogram:
    """Counts of durations in seconds by upper bound; many equal ones are counted at once."""

    def __init__(self, bounds_s: tuple[float, ...]) -> None:
        self._bounds_s = bounds_s
        self._counts = [0] * (len(bounds_s) + 1)
        self._sum_s = 0.0

    def observe(self, duration_s: float, count: int = 1) -> None:
        """Count `count` durations of that length."""
        self._counts[bisect_left(self._bounds_s, duration_s)] += count
        self._sum_s += duration_s * count

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative counts by bound, and the sum, as Prometheus wants them."""
        names = [*map(str, self._bounds_s), "+Inf"]
        return list(zip(names, accumulate(self._counts), strict=True)), self._sum_s


class CountedRequest(Protocol):
    """What is read of a request."""

    num_prompt: int
    arrival_ms: float
    last_token_ms: float  # written here
    num_delivered: int
    finish_reason: Literal["stop", "length"]

    @property
    def cached_tokens(self) -> int:
        """Prompt tokens found in the cache."""
        ...


class MockStats:
    """Counters of one engine. Durations are in real seconds: virtual ms over the speed-up."""

    def __init__(self, speedup: float = 1.0) -> None:
        self.speedup = speedup
        self._seconds_per_ms = 1e-3 / speedup
        self.num_steps = 0
        self.num_aborted = 0
        self.num_finished = {"stop": 0, "length": 0}
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self.generation_tokens = 0
        self.prefix_queries = 0  # tokens looked up in the cache, as vLLM counts them
        self.prefix_hits = 0
        self.external_hits = 0  # of a slower tier
        self.slipped_s = 0.0  # real time by which the engine fell behind its own step times
        self.ttft = Histogram(_TTFT_BOUNDS_S)
        self.itl = Histogram(_ITL_BOUNDS_S)
        self.e2e = Histogram(_E2E_BOUNDS_S)
        self.num_failed_transfers = 0
        self.transfer = Histogram(_TTFT_BOUNDS_S)
        self.transfer_bytes = Histogram(_BYTES_BOUNDS)
        self._last_end_ms = 0.0

    def note_transfer(self, duration_ms: float, num_bytes: int) -> None:
        """KV has come from elsewhere."""
        self.transfer.observe(duration_ms * self._seconds_per_ms)
        self.transfer_bytes.observe(num_bytes)

    def note_admitted(self, admitted: Iterable[EngineSequence]) -> None:
        """Requests got a seat; returning from a preemption does not count."""
        for sequence in admitted:
            if sequence.preemptions == 0:
                self.prefix_queries += sequence.prompt_tokens
                self.prefix_hits += sequence.cached_tokens
                self.external_hits += sequence.external_tokens

    def note_tokens(self, emitted: Sequence[CountedRequest], end_ms: float) -> None:
        """Each of `emitted` got a token at `end_ms`. Most got the last one a step before."""
        self.num_steps += 1
        self.generation_tokens += len(emitted)
        previous_ms, num_regular = self._last_end_ms, 0
        for request in emitted:
            if request.last_token_ms == previous_ms:
                num_regular += 1
            elif request.num_delivered > 1:
                self.itl.observe((end_ms - request.last_token_ms) * self._seconds_per_ms)
            else:
                self.ttft.observe((end_ms - request.arrival_ms) * self._seconds_per_ms)
                self.prompt_tokens += request.num_prompt
                self.cached_tokens += request.cached_tokens
            request.last_token_ms = end_ms
        if num_regular:
            self.itl.observe((end_ms - previous_ms) * self._seconds_per_ms, num_regular)
        self._last_end_ms = end_ms

    def note_finished(self, request: CountedRequest, end_ms: float) -> None:
        """A request got its last token."""
        self.num_finished[request.finish_reason] += 1
        self.e2e.observe((end_ms - request.arrival_ms) * self._seconds_per_ms)
