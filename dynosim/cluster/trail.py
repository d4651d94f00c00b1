"""Writes down what single requests do in the steps of their engines: chunks of prompts, and seats.

Reports do without; whoever asks why a request was slow, or draws a run, needs it.
"""

from array import array
from collections.abc import Sequence as List

import numpy as np

from dynosim.engine.plan import StepPlan
from dynosim.engine.recorder import Recorder
from dynosim.engine.sequence import Sequence
from dynosim.records import ChunkLog, RequestTrail, SeatLog


class TrailColumns:
    """What the recorders of all workers have written, in order of time by worker."""

    def __init__(self) -> None:
        self.chunk_counts = array("q")  # request, worker, tokens, computed before: in turn
        self.chunk_times = array("d")  # start, end
        self.seat_counts = array("q")  # request, worker, whether it was taken
        self.seat_times = array("d")

    def log(self, end_ms: float) -> RequestTrail:
        """All as columns; seats in steps that were planned and never began are left out."""
        chunks = np.array(self.chunk_counts, np.int64).reshape(-1, 4).T
        times = np.array(self.chunk_times, np.float64).reshape(-1, 2).T
        at_ms = np.array(self.seat_times, np.float64)
        began = at_ms <= end_ms
        seats = np.array(self.seat_counts, np.int64).reshape(-1, 3)[began].T
        return RequestTrail(
            ChunkLog(chunks[0], chunks[1], times[0], times[1], chunks[2], chunks[3]),
            SeatLog(seats[0], seats[1], at_ms[began], seats[2].astype(np.bool_)),
        )


class TrailRecorder(Recorder):
    """The recorder of one engine; everything goes on to `behind`, the one that reports need.

    Plans must list every request (`keep_rows` of a core).
    """

    def __init__(self, behind: Recorder, columns: TrailColumns, worker_id: int) -> None:
        self._behind = behind
        self._columns = columns
        self._worker_id = worker_id

    def admitted(self, sequences: List[Sequence], start_ms: float) -> None:
        """Each takes a seat."""
        self._behind.admitted(sequences, start_ms)
        for sequence in sequences:
            self._note_seat(sequence, start_ms, is_taken=True)

    def missed(self, plan: StepPlan, last_token_ms: float) -> None:
        """The preempted have lost their seats."""
        self._behind.missed(plan, last_token_ms)
        for sequence in plan.preempted:
            self._note_seat(sequence, last_token_ms, is_taken=False)

    def delivered(self, plan: StepPlan, num_waiting: int) -> None:
        """A step has computed parts of prompts."""
        self._behind.delivered(plan, num_waiting)
        if not plan.num_prefills:
            return
        columns = self._columns
        for row in plan.rows:
            if not row.is_decode:
                counts = (row.sequence.index, self._worker_id, row.num_tokens)
                columns.chunk_counts.extend((*counts, row.num_computed_before))
                columns.chunk_times.extend((plan.start_ms, plan.end_ms))

    def delivered_run(
        self, start_ms: float, end_ms: float, num_steps: int, first_context: int, num_waiting: int
    ) -> None:
        """Everyone has decoded; no prompt was computed."""
        self._behind.delivered_run(start_ms, end_ms, num_steps, first_context, num_waiting)

    def ended(self, sequences: List[Sequence], end_ms: float) -> None:
        """Requests got their last token."""
        self._behind.ended(sequences, end_ms)

    def dropped(self, sequence: Sequence, num_tokens: int, under_way: StepPlan | None) -> None:
        """As the one behind has it: whoever is given up has no seat from then on."""
        self._behind.dropped(sequence, num_tokens, under_way)

    def wants_single_steps(self) -> bool:
        """As the one behind wants."""
        return self._behind.wants_single_steps()

    def _note_seat(self, sequence: Sequence, at_ms: float, *, is_taken: bool) -> None:
        self._columns.seat_counts.extend((sequence.index, self._worker_id, int(is_taken)))
        self._columns.seat_times.append(at_ms)
