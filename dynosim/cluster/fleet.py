"""The twin's data plane: workers advanced in virtual time, arrivals routed to them.

Events are run ends, arrivals and news that reach a router late. Order within an instant (see
`instant.py`): all step ends, lowest worker first, then what waited in the router and can go now,
then all arrivals, then the idle workers with work start; so an arrival at a step's end makes the
next step.
"""

import sys
from heapq import heappop, heappush

from dynosim.cluster.journal import Journal
from dynosim.cluster.placement import QUEUED, Placer
from dynosim.cluster.worker import Worker
from dynosim.engine.instant import RELATIVE_TOLERANCE, TOLERANCE_MS, instant_end
from dynosim.engine.sequence import Sequence
from dynosim.engine.spec import EngineSpec
from dynosim.records import RequestStatus, Trace
from dynosim.router.refusals import RequestRefusedError
from dynosim.workload.extents import PrefixExtents
from dynosim.workload.load import NEVER, LoadDriver

LAST_MS = sys.float_info.max  # any event comes before


class Fleet:
    """N aggregated workers, somebody who places requests on them, and a load."""

    def __init__(
        self,
        trace: Trace,
        extents: PrefixExtents,
        spec: EngineSpec,
        *,
        workers: list[Worker],
        placer: Placer,
        load: LoadDriver,
        journal: Journal,
        turnaround_ms: float = 0.0,
    ) -> None:
        """`turnaround_ms` is from a request's end until a request it causes can be placed."""
        self.now_ms = 0.0
        self._turnaround_ms = turnaround_ms
        self._workers = workers
        self._engines = [worker.engine for worker in workers]
        self._placer = placer
        self._load = load
        self._journal = journal
        self._max_model_len = spec.max_model_len
        self._input_tokens: list[int] = trace.input_tokens.tolist()
        self._output_tokens: list[int] = trace.output_tokens.tolist()
        self._priorities = None if trace.priority is None else trace.priority.tolist()
        self._request_ids = trace.request_ids
        self._has_paths = spec.enable_prefix_caching and len(extents.path) > 0
        self._path: list[int] = extents.path.tolist()
        self._path_offsets: list[int] = extents.path_offsets.tolist()
        self._path_blocks: list[int] = extents.path_blocks.tolist()
        self._num_ended = 0
        self._num_queued = 0  # in the router
        self._touched: list[int] = []  # workers with news in the current instant
        # Heap of (time, worker). Its last entry saves looking whether there is one: once that is
        # the first, all workers are idle, and worker 0 really ends never.
        self._ends: list[tuple[float, int]] = [(NEVER, 0)]

    @property
    def num_requests(self) -> tuple[int, ...]:
        """Requests placed and not ended, by worker."""
        return tuple(self._placer.num_requests)

    @property
    def num_ended(self) -> int:
        """Requests that finished or were rejected."""
        return self._num_ended

    def next_ms(self) -> float:
        """Time of the next event; infinity when nothing is left to happen."""
        ends = (engine.next_ms for engine in self._engines)
        return min(self._load.next_ms, self._placer.next_ms, min(ends, default=NEVER))

    def run_until(self, until_ms: float) -> None:  # noqa: C901
        """Process every event before or at `until_ms`.

        The one hot loop, hence one function: it runs once per scheduling event.
        """
        ends = self._ends
        load = self._load
        workers, engines = self._workers, self._engines
        placer = self._placer
        touched = self._touched
        until_ms = min(instant_end(until_ms), LAST_MS)
        while True:
            end_ms, worker_id = ends[0]
            while engines[worker_id].next_ms != end_ms:
                heappop(ends)  # the run was cut short since
                end_ms, worker_id = ends[0]
            now_ms = end_ms
            if load.next_ms < now_ms:
                now_ms = load.next_ms
            if placer.next_ms < now_ms:
                now_ms = placer.next_ms
            if now_ms > until_ms:
                return
            instant_ms = now_ms + TOLERANCE_MS + RELATIVE_TOLERANCE * now_ms  # instant_end
            if now_ms < self.now_ms:
                now_ms = self.now_ms  # rounding turns no clock back
            while end_ms <= instant_ms:
                heappop(ends)
                if engines[worker_id].next_ms == end_ms:
                    touched.append(worker_id)
                    if end_ms > now_ms:
                        now_ms = end_ms
                end_ms, worker_id = ends[0]
            if len(touched) > 1:
                touched.sort()
            for worker_id in touched:
                engine = engines[worker_id]
                end_ms = engine.next_ms
                if end_ms != NEVER:  # told twice, it ends once
                    finished = engine.complete(end_ms)
                    placer.hear(workers[worker_id], finished, now_ms)
                    if finished:
                        self._note_ends(finished, now_ms)
            if self._num_queued or placer.next_ms <= instant_ms:
                self._release(now_ms)
            while load.next_ms <= instant_ms:
                now_ms = self._place_all(instant_ms, now_ms)
            self.now_ms = now_ms
            for worker_id in touched:
                engine = engines[worker_id]
                if engine.next_ms == NEVER:  # also told twice, it starts once
                    engine.start(now_ms)
                    end_ms = engine.next_ms
                    if end_ms != NEVER:
                        heappush(ends, (end_ms, worker_id))
            touched.clear()

    def _note_ends(self, finished: list[Sequence], now_ms: float) -> None:
        self._num_ended += len(finished)
        if self._load.reacts:
            for sequence in finished:
                self._load.on_end(sequence.index, now_ms + self._turnaround_ms)

    def _place_all(self, instant_ms: float, now_ms: float) -> float:
        """Have what arrives by the end of an instant placed; returns the time by then.

        Arrivals that ends of requests bring about come in the order of the trace: their times
        differ by rounding only.
        """
        load = self._load
        arrivals: list[int] = []
        while load.next_ms <= instant_ms:
            arrival_ms = load.next_ms
            if arrival_ms > now_ms:
                now_ms = arrival_ms
            index = load.pop()
            self._journal.arrival_ms[index] = arrival_ms
            arrivals.append(index)
        if load.reacts and len(arrivals) > 1:
            arrivals.sort()
        for index in arrivals:
            self._place(index, now_ms)
        self._touched.sort()
        return now_ms

    def _place(self, index: int, now_ms: float) -> None:
        """Have an arriving request placed."""
        input_tokens = self._input_tokens[index]
        if input_tokens >= self._max_model_len:
            # What vLLM's front end does with a prompt that fills the context: an error, no tokens.
            limit = self._max_model_len
            self._reject(index, f"prompt of {input_tokens} tokens >= max_model_len {limit}", now_ms)
            return
        priority = 0 if self._priorities is None else self._priorities[index]
        try:
            worker_id = self._placer.place(index, input_tokens, priority, now_ms)
        except RequestRefusedError as error:
            self._reject(index, f"HTTP {error.http_status}: {error}", now_ms)
            return
        if worker_id == QUEUED:
            self._num_queued += 1
        else:
            self._dispatch(index, worker_id, now_ms)

    def _release(self, now_ms: float) -> None:
        """Dispatch what has waited in the router long enough."""
        for index, worker_id, error in self._placer.releases(now_ms):
            self._num_queued -= 1
            if error is None:
                self._dispatch(index, worker_id, now_ms)
            else:
                self._reject(index, f"HTTP {error.http_status}: {error}", now_ms)
        self._touched.sort()

    def _dispatch(self, index: int, worker_id: int, now_ms: float) -> None:
        """Hand a request to a worker."""
        journal = self._journal
        journal.worker_id[index] = worker_id
        if now_ms != journal.arrival_ms[index]:
            journal.dispatch_ms[index] = now_ms
        engine = self._engines[worker_id]
        if engine.add(self._sequence(index, now_ms), now_ms):
            heappush(self._ends, (engine.next_ms, worker_id))
        self._touched.append(worker_id)

    def _sequence(self, index: int, now_ms: float) -> Sequence:
        input_tokens = self._input_tokens[index]
        output_tokens = min(self._output_tokens[index], self._max_model_len - input_tokens)
        path: list[int] = []
        path_blocks = 0
        if self._has_paths:
            path = self._path[self._path_offsets[index] : self._path_offsets[index + 1]]
            path_blocks = self._path_blocks[index]
        priority = 0 if self._priorities is None else self._priorities[index]
        request_id = "" if self._request_ids is None else self._request_ids[index]
        return Sequence(
            index, input_tokens, output_tokens, path, path_blocks, now_ms, priority, request_id
        )

    def _reject(self, index: int, reason: str, now_ms: float) -> None:
        """End a request without a token."""
        self._num_ended += 1
        self._journal.status[index] = int(RequestStatus.REJECTED)
        self._journal.errors[index] = reason
        if self._load.reacts:
            self._load.on_end(index, now_ms + self._turnaround_ms)
