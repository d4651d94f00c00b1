"""What a run writes down: per-request times and one row per run of engine steps."""

from array import array

import numpy as np

from dynosim.records import RequestLog, RequestStatus, StepLog, Trace

NAN = float("nan")
STEP_COLUMNS = 12


class Journal:
    """Columns that workers write into by request index, and the common step log.

    The step log is one flat array of doubles (all integers in it are far below 2**53), fed through
    a list that the fleet flushes from time to time: that is the cheapest way to append a row.
    """

    def __init__(self, trace: Trace) -> None:
        num_requests = len(trace)
        self.trace = trace
        self.arrival_ms = [NAN] * num_requests
        self.scheduled_ms = [NAN] * num_requests
        self.first_token_ms = [NAN] * num_requests
        self.second_token_ms = [NAN] * num_requests
        self.finish_ms = [NAN] * num_requests
        self.produced_tokens = [0] * num_requests
        self.cached_tokens = [0] * num_requests
        self.worker_id = [-1] * num_requests
        self.preemptions: dict[int, int] = {}
        self.status = [int(RequestStatus.UNFINISHED)] * num_requests
        self.errors: dict[int, str] = {}
        self.stalled_gaps_ms = array("d")
        self.step_buffer: list[float] = []
        self._steps = array("d")

    def flush(self) -> None:
        """Move buffered step rows to compact storage."""
        self._steps.extend(array("d", self.step_buffer))
        self.step_buffer.clear()

    def request_log(self) -> RequestLog:
        """The request columns as arrays."""
        arrival = np.array(self.arrival_ms)
        worker = np.array(self.worker_id, np.int64)
        preemptions = np.zeros(len(worker), np.int64)
        preemptions[list(self.preemptions)] = list(self.preemptions.values())
        return RequestLog(
            arrival_ms=arrival,
            dispatch_ms=np.where(worker >= 0, arrival, np.nan),
            scheduled_ms=np.array(self.scheduled_ms),
            first_token_ms=np.array(self.first_token_ms),
            second_token_ms=np.array(self.second_token_ms),
            finish_ms=np.array(self.finish_ms),
            input_tokens=self.trace.input_tokens,
            output_tokens=np.array(self.produced_tokens, np.int64),
            cached_tokens=np.array(self.cached_tokens, np.int64),
            worker_id=worker,
            preemptions=preemptions,
            status=np.array(self.status, np.int64),
            errors=self.errors,
        )

    def step_log(self) -> StepLog:
        """The step rows as arrays."""
        self.flush()
        rows = np.frombuffer(self._steps).reshape(-1, STEP_COLUMNS)
        whole = rows.astype(np.int64)
        return StepLog(
            worker_id=whole[:, 0],
            start_ms=rows[:, 1],
            duration_ms=rows[:, 2],
            num_steps=whole[:, 3],
            num_prefills=whole[:, 4],
            prefill_tokens=whole[:, 5],
            prefix_tokens=whole[:, 6],
            num_decodes=whole[:, 7],
            decode_context_tokens=whole[:, 8],
            num_running=whole[:, 9],
            num_waiting=whole[:, 10],
            used_blocks=whole[:, 11],
        )
