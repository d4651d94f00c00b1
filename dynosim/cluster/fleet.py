"""The twin's data plane: workers advanced in virtual time, arrivals routed to them.

Events are run ends and arrivals. Order at equal times: all step ends, then all arrivals, then the
idle workers with work start, lowest id first; so an arrival at a step's end makes the next step.
"""

from heapq import heappop, heappush

from dynosim.cluster.journal import Journal
from dynosim.cluster.worker import Worker
from dynosim.engine.sequence import Sequence
from dynosim.engine.spec import EngineSpec
from dynosim.records import RequestStatus, RequestView, Trace
from dynosim.router.policies import RoutingPolicy
from dynosim.workload.extents import PrefixExtents
from dynosim.workload.load import NEVER, LoadDriver


class Fleet:
    """N aggregated workers, a routing policy and a load."""

    def __init__(
        self,
        trace: Trace,
        extents: PrefixExtents,
        spec: EngineSpec,
        *,
        workers: list[Worker],
        policy: RoutingPolicy,
        load: LoadDriver,
        journal: Journal,
    ) -> None:
        self.now_ms = 0.0
        self._workers = workers
        self._policy = policy
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
        self._num_requests = [0] * len(workers)
        self._num_ended = 0
        self._touched: list[int] = []  # workers with news in the current instant
        self._ends: list[tuple[float, int]] = []  # heap of (time, worker)

    @property
    def num_requests(self) -> tuple[int, ...]:
        """Requests placed and not ended, by worker."""
        return tuple(self._num_requests)

    @property
    def num_ended(self) -> int:
        """Requests that finished or were rejected."""
        return self._num_ended

    def next_ms(self) -> float:
        """Time of the next event; infinity when nothing is left to happen."""
        ends = (worker.end_ms for worker in self._workers)
        return min(self._load.next_ms, min(ends, default=NEVER))

    def run_until(self, until_ms: float) -> None:  # noqa: C901
        """Process every event before or at `until_ms`.

        The one hot loop, hence one function: it runs once per scheduling event.
        """
        ends = self._ends
        load = self._load
        workers = self._workers
        while True:
            while ends and ends[0][0] != workers[ends[0][1]].end_ms:
                heappop(ends)  # the run was cut short since
            now_ms = load.next_ms
            if ends and ends[0][0] < now_ms:
                now_ms = ends[0][0]
            if now_ms > until_ms or now_ms == NEVER:
                return
            self.now_ms = now_ms
            touched = self._touched
            while ends and ends[0][0] == now_ms:
                worker_id = heappop(ends)[1]
                worker = workers[worker_id]
                if worker.end_ms == now_ms:
                    finished = worker.complete(now_ms)
                    if finished:
                        self._note_ends(worker_id, finished, now_ms)
                    touched.append(worker_id)
            while load.next_ms == now_ms:
                self._place(load.pop(), now_ms)
            if len(touched) > 1:
                touched.sort()
            for worker_id in touched:
                worker = workers[worker_id]
                if worker.end_ms == NEVER:  # also told twice, a worker starts once
                    worker.start(now_ms)
                    if worker.end_ms != NEVER:
                        heappush(ends, (worker.end_ms, worker_id))
            touched.clear()

    def _note_ends(self, worker_id: int, finished: list[Sequence], now_ms: float) -> None:
        self._num_requests[worker_id] -= len(finished)
        self._num_ended += len(finished)
        if self._load.reacts:
            for sequence in finished:
                self._load.on_end(sequence.index, now_ms)

    def _place(self, index: int, now_ms: float) -> None:
        """Hand an arriving request to the worker that the policy chooses."""
        journal = self._journal
        journal.arrival_ms[index] = now_ms
        input_tokens = self._input_tokens[index]
        if input_tokens >= self._max_model_len:
            self._reject(index, now_ms)
            return
        priority = 0 if self._priorities is None else self._priorities[index]
        view = RequestView(index, input_tokens, priority)
        worker_id = self._policy.choose(view, self._num_requests, now_ms)
        self._num_requests[worker_id] += 1
        journal.worker_id[index] = worker_id
        worker = self._workers[worker_id]
        if worker.enqueue(self._sequence(index, priority, now_ms), now_ms):
            heappush(self._ends, (worker.end_ms, worker_id))
        self._touched.append(worker_id)

    def _sequence(self, index: int, priority: int, now_ms: float) -> Sequence:
        input_tokens = self._input_tokens[index]
        output_tokens = min(self._output_tokens[index], self._max_model_len - input_tokens)
        path: list[int] = []
        path_blocks = 0
        if self._has_paths:
            path = self._path[self._path_offsets[index] : self._path_offsets[index + 1]]
            path_blocks = self._path_blocks[index]
        request_id = "" if self._request_ids is None else self._request_ids[index]
        return Sequence(
            index, input_tokens, output_tokens, path, path_blocks, now_ms, priority, request_id
        )

    def _reject(self, index: int, now_ms: float) -> None:
        """What vLLM's front end does with a prompt that fills the context: an error, no tokens."""
        journal = self._journal
        self._num_ended += 1
        journal.status[index] = int(RequestStatus.REJECTED)
        journal.errors[index] = (
            f"prompt of {self._input_tokens[index]} tokens >= max_model_len {self._max_model_len}"
        )
        if self._load.reacts:
            self._load.on_end(index, now_ms)
