"""What a request goes through in the frontend before a router chooses its worker."""

from heapq import heappop, heappush

from dynosim.records import IntArray
from dynosim.router.frontend import FrontendSpec
from dynosim.workload.load import NEVER, Arrivals


class StagedLoad(Arrivals):
    """A load behind the stages of a frontend: its requests arrive when those are over.

    `came_ms` is when the request that was popped last came to the frontend.
    """

    def __init__(self, load: Arrivals, input_tokens: IntArray, spec: FrontendSpec) -> None:
        self.reacts = load.reacts
        self.next_ms = NEVER
        self.came_ms = NEVER
        self._load = load
        preprocess_ms = spec.preprocess_ms + input_tokens * (spec.preprocess_us_per_token / 1e3)
        self._preprocess_ms: list[float] = preprocess_ms.tolist()
        self._route_ms = spec.route_ms
        self._rest_ms = spec.route_ms + spec.dispatch_ms
        self._startup_ms = spec.startup_ms
        # Heap of (when it is through, how many came before it, request, when it came): those in
        # the stages, and perhaps those that come next.
        self._inside: list[tuple[float, int, int, float]] = []
        self._num_come = 0
        self._is_held = False
        self._look_ahead()

    def pop(self) -> int:
        """See `Arrivals`."""
        _, _, index, self.came_ms = heappop(self._inside)
        self._look_ahead()
        return index

    def on_end(self, index: int, now_ms: float) -> None:
        """See `Arrivals`."""
        self._load.on_end(index, now_ms)
        self._look_ahead()

    def on_give_up(self, index: int, now_ms: float) -> list[int]:
        """See `Arrivals`."""
        unsent = self._load.on_give_up(index, now_ms)
        self._look_ahead()
        return unsent

    def in_stages(self, now_ms: float) -> tuple[int, int, int]:
        """Requests that are preprocessed, routed and dispatched at the end of an instant.

        Of those that are held, the ones that are through wait for a worker: they are routed.
        """
        while self._load.next_ms <= now_ms:
            self._take_in()
        num_preprocessed = num_routed = num_dispatched = 0
        for through_ms, _, index, came_ms in self._inside:
            begun_ms = max(came_ms, self._startup_ms)
            routed_ms = begun_ms + self._preprocess_ms[index]
            if now_ms < begun_ms:
                continue
            if now_ms < routed_ms:
                num_preprocessed += 1
            elif now_ms < routed_ms + self._route_ms or now_ms >= through_ms:
                num_routed += 1
            else:
                num_dispatched += 1
        return num_preprocessed, num_routed, num_dispatched

    def _look_ahead(self) -> None:
        """Take in all that may be through before anything else can come, even while held."""
        load, inside = self._load, self._inside
        while load.next_ms < NEVER and (not inside or load.next_ms <= inside[0][0]):
            self._take_in()
        self.next_ms = NEVER if self._is_held or not inside else inside[0][0]

    def _take_in(self) -> None:
        """Let the next request come."""
        came_ms = self._load.next_ms
        index = self._load.pop()
        begun_ms = came_ms if came_ms > self._startup_ms else self._startup_ms
        through_ms = begun_ms + (self._preprocess_ms[index] + self._rest_ms)
        heappush(self._inside, (through_ms, self._num_come, index, came_ms))
        self._num_come += 1
