"""What a run writes down: per-request times and one row per run of engine steps."""

import struct
from array import array
from math import isnan
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dynosim.cluster.gap_tally import GapTally
from dynosim.engine.plan import CopyJob
from dynosim.records import (
    NO_REQUEST,
    FloatArray,
    HandoffLog,
    IntArray,
    OnboardLog,
    RequestLog,
    RequestStatus,
    StepLog,
    Trace,
)

NAN: Final = float("nan")
STEP_ROW = struct.Struct("2d10q")  # start and duration, then the counts in StepLog's order
pack_row_into = STEP_ROW.pack_into
ROW_BYTES: Final = 96
CHUNK_ROWS: Final = 16_384
STEP_TYPE = np.dtype([("times", "f8", 2), ("counts", "i8", 10)])


class StepRows:
    """The rows of the step log, packed in buffers: the cheapest way to append.

    Full buffers hold `CHUNK_ROWS` each, so none ever moves. Once the run is over the rows are
    columns, and the buffers are gone: both at once would be the most memory that a long run takes.
    `tallies` count the gaps of what is appended from when they are there.
    """

    __slots__ = ("_buffer", "_columns", "_end", "_full", "tallies")

    def __init__(self) -> None:
        self._full: list[bytearray] = []
        self._buffer = bytearray()
        self._end = 0  # in the last buffer
        self._columns: tuple[FloatArray, IntArray] | None = None
        self.tallies: list[GapTally] = []

    def append(
        self,
        start_ms: float,
        duration_ms: float,
        worker_id: int,
        num_steps: int,
        num_prefills: int,
        prefill_tokens: int,
        prefix_tokens: int,
        num_decodes: int,
        decode_context_tokens: int,
        num_running: int,
        num_waiting: int,
        used_blocks: int,
    ) -> None:
        """Add a row; see `StepLog`."""
        end = self._end
        if end == len(self._buffer):
            self._make_room()
            end = self._end
        pack_row_into(
            self._buffer,
            end,
            start_ms,
            duration_ms,
            worker_id,
            num_steps,
            num_prefills,
            prefill_tokens,
            prefix_tokens,
            num_decodes,
            decode_context_tokens,
            num_running,
            num_waiting,
            used_blocks,
        )
        self._end = end + ROW_BYTES
        if self.tallies:
            end_ms = start_ms + duration_ms
            for tally in self.tallies:
                tally.add(
                    end_ms, duration_ms, worker_id, num_steps, num_decodes, decode_context_tokens
                )

    def _make_room(self) -> None:
        """Let the last buffer grow by a little of itself, or begin another one."""
        num_rows = self._end // ROW_BYTES
        if num_rows == CHUNK_ROWS:
            self._full.append(self._buffer)
            self._buffer = bytearray(CHUNK_ROWS * ROW_BYTES)
            self._end = 0
            return
        more = min(num_rows // 8 + 256, CHUNK_ROWS - num_rows)
        self._buffer.extend(bytes(ROW_BYTES * more))

    def __len__(self) -> int:
        if self._columns is not None:
            return len(self._columns[0][0])
        return len(self._full) * CHUNK_ROWS + self._end // ROW_BYTES

    def since(self, first: int) -> NDArray[np.void]:
        """The rows from that one on, of `STEP_TYPE`; a copy."""
        rows = np.empty(max(0, len(self) - first), STEP_TYPE)
        if self._columns is not None:
            times, counts = self._columns
            rows["times"], rows["counts"] = times[:, first:].T, counts[:, first:].T
            return rows
        chunk, row = divmod(first, CHUNK_ROWS)
        place = 0
        for buffer in [*self._full, self._buffer][chunk:]:
            end = self._end if buffer is self._buffer else len(buffer)
            part = np.frombuffer(buffer, STEP_TYPE, end // ROW_BYTES)[row:]
            rows[place : place + len(part)] = part
            place += len(part)
            row = 0
        return rows

    def columns(self) -> tuple[FloatArray, IntArray]:
        """Times (2, rows) and counts (10, rows), each column in one piece; no row follows."""
        if self._columns is None:
            num_rows, first = len(self), 0
            times, counts = np.empty((2, num_rows)), np.empty((10, num_rows), np.int64)
            buffers, self._full, self._buffer = [*self._full, self._buffer], [], bytearray()
            for place, buffer in enumerate(buffers):
                rows = np.frombuffer(buffer, STEP_TYPE)[: num_rows - first]
                end = first + len(rows)
                times[:, first:end], counts[:, first:end] = rows["times"].T, rows["counts"].T
                buffers[place], first = bytearray(), end
            self._columns = times, counts
        return self._columns


class HandoffColumns:
    """What happens to requests between their prefill and their decode workers, by request index.

    `shows_prefill_tokens`: the client gets its first token from the prefill worker.
    """

    def __init__(self, num_requests: int, *, shows_prefill_tokens: bool) -> None:
        self.shows_prefill_tokens = shows_prefill_tokens
        self.prefill_worker_id = array("q", [-1]) * num_requests
        self.prefill_end_ms = array("d", [NAN]) * num_requests
        self.transfer_start_ms = array("d", [NAN]) * num_requests
        self.transfer_end_ms = array("d", [NAN]) * num_requests
        self.moved_bytes = array("q", [0]) * num_requests
        self.held_tokens = array("q", [0]) * num_requests

    def log(self) -> HandoffLog:
        """The columns as arrays."""
        return HandoffLog(
            prefill_worker_id=np.array(self.prefill_worker_id, np.int64),
            prefill_end_ms=np.array(self.prefill_end_ms),
            transfer_start_ms=np.array(self.transfer_start_ms),
            transfer_end_ms=np.array(self.transfer_end_ms),
            moved_bytes=np.array(self.moved_bytes, np.int64),
            held_tokens=np.array(self.held_tokens, np.int64),
        )


class TierColumns:
    """What requests loaded from tiers before they were first scheduled, by request index."""

    def __init__(self, scheduled_ms: "array[float]", block_size: int) -> None:
        num_requests = len(scheduled_ms)
        self._scheduled_ms = scheduled_ms  # the journal's
        self.onboard_start_ms = array("d", [NAN]) * num_requests
        self.onboard_end_ms = array("d", [NAN]) * num_requests
        self.onboarded_tokens = array("q", [0]) * num_requests
        self.beyond_tokens = array("q", [0]) * num_requests
        self._block_size = block_size

    def loaded(self, job: CopyJob, ends_ms: float) -> None:
        """A load has ended. Those of requests that some engine has begun are of no account here."""
        index = job.sequence.index
        if not isnan(self._scheduled_ms[index]):
            return
        num_blocks, beyond_blocks = job.num_blocks, 0
        for part in job.beyond:
            num_beyond = part.span.end - part.span.first
            num_blocks += num_beyond
            beyond_blocks += num_beyond
        self.onboard_start_ms[index] = job.starts_ms
        self.onboard_end_ms[index] = ends_ms
        self.onboarded_tokens[index] = num_blocks * self._block_size
        self.beyond_tokens[index] = beyond_blocks * self._block_size

    def forget(self, index: int) -> None:
        """A request begins anew with another worker."""
        self.onboard_start_ms[index] = self.onboard_end_ms[index] = NAN
        self.onboarded_tokens[index] = self.beyond_tokens[index] = 0

    def log(self) -> OnboardLog:
        """The columns as arrays."""
        return OnboardLog(
            start_ms=np.array(self.onboard_start_ms),
            end_ms=np.array(self.onboard_end_ms),
            num_tokens=np.array(self.onboarded_tokens, np.int64),
            num_beyond=np.array(self.beyond_tokens, np.int64),
        )


class Journal:
    """Columns that workers write into by request index, and the common step log.

    Columns are arrays: lists would leave every time as an object of its own somewhere in memory, to
    be looked for again when the run is over.
    """

    def __init__(self, trace: Trace) -> None:
        num_requests = len(trace)
        self.trace = trace
        self.arrival_ms = array("d", [NAN]) * num_requests
        self.scheduled_ms = array("d", [NAN]) * num_requests
        self.first_token_ms = array("d", [NAN]) * num_requests
        self.second_token_ms = array("d", [NAN]) * num_requests
        self.finish_ms = array("d", [NAN]) * num_requests
        self.produced_tokens = array("q", [0]) * num_requests
        self.cached_tokens = array("q", [0]) * num_requests
        self.worker_id = array("q", [-1]) * num_requests
        self.dispatch_ms: dict[int, float] = {}  # where later than the arrival
        self.preemptions: dict[int, int] = {}
        self.migrations: dict[int, int] = {}
        self.status = array("q", [int(RequestStatus.UNFINISHED)]) * num_requests
        self.errors: dict[int, str] = {}
        self.gave_up_ms: dict[int, float] = {}
        self.refused_ms: dict[int, float] = {}  # when rejected, or failed
        self.leaving: set[int] = set()  # over, but an engine has still to count their tokens
        self.arrived: array[int] | None = None  # in the order of arrival; None: nobody asks
        self.stalled_gaps_ms = array("d")
        self.steps = StepRows()
        self.handoffs: HandoffColumns | None = None  # None: whoever has a request keeps it
        self.tiers: TierColumns | None = None  # None: there are no tiers below the devices

    def request_log(self, *, is_closed_loop: bool) -> RequestLog:
        """The request columns as arrays. In a closed loop no arrival has a time of its own."""
        is_timed = np.full(len(self.status), not is_closed_loop)
        if self.trace.previous_turn is not None:
            is_timed &= self.trace.previous_turn == NO_REQUEST
        arrival = np.array(self.arrival_ms)
        worker = np.array(self.worker_id, np.int64)
        dispatch = np.where(worker >= 0, arrival, np.nan)
        dispatch[list(self.dispatch_ms)] = list(self.dispatch_ms.values())
        gave_up = None
        if self.gave_up_ms:
            gave_up = np.full(len(worker), np.nan)
            gave_up[list(self.gave_up_ms)] = list(self.gave_up_ms.values())
        cached = np.array(self.cached_tokens, np.int64)
        if self.tiers is not None:  # of what is there to the last token, that one is computed again
            found = cached + np.array(self.tiers.onboarded_tokens, np.int64)
            cached = np.minimum(found, self.trace.input_tokens - 1)
        return RequestLog(
            arrival_ms=arrival,
            dispatch_ms=dispatch,
            scheduled_ms=np.array(self.scheduled_ms),
            first_token_ms=np.array(self.first_token_ms),
            second_token_ms=np.array(self.second_token_ms),
            finish_ms=np.array(self.finish_ms),
            input_tokens=self.trace.input_tokens,
            output_tokens=np.array(self.produced_tokens, np.int64),
            cached_tokens=cached,
            worker_id=worker,
            preemptions=_counted(self.preemptions, len(worker)),
            migrations=_counted(self.migrations, len(worker)),
            status=np.array(self.status, np.int64),
            errors=self.errors,
            is_timed=is_timed,
            gave_up_ms=gave_up,
            handoffs=None if self.handoffs is None else self.handoffs.log(),
            onboards=None if self.tiers is None else self.tiers.log(),
        )

    def step_log(self) -> StepLog:
        """The step rows as arrays, each in one piece: reports go through them many times."""
        times, counts = self.steps.columns()
        return StepLog(
            worker_id=counts[0],
            start_ms=times[0],
            duration_ms=times[1],
            num_steps=counts[1],
            num_prefills=counts[2],
            prefill_tokens=counts[3],
            prefix_tokens=counts[4],
            num_decodes=counts[5],
            decode_context_tokens=counts[6],
            num_running=counts[7],
            num_waiting=counts[8],
            used_blocks=counts[9],
        )


def _counted(counts: dict[int, int], length: int) -> IntArray:
    """Rare counts as a column."""
    column = np.zeros(length, np.int64)
    column[list(counts)] = list(counts.values())
    return column
