"""What each worker of the twin says of itself at a moment, as engines tell planners.

Loads are those after the step that is being computed has been planned, as an engine counts them: of
a run under way they are worked out. Of the steps since the last report some are told, evenly spread
over them, each with its own length; so it does not matter whether they went by in bulk.

A worker that hangs says no more: what it said last stays, and grows old.
"""

from collections.abc import Sequence

from msgspec.structs import replace

from dynosim.cluster.pool import Worker
from dynosim.cluster.run_steps import (
    CONTEXT,
    DURATION,
    NUM_DECODES,
    NUM_PREFILLS,
    NUM_STEPS,
    PREFILL_TOKENS,
    WORKER,
    NewSteps,
    Runs,
    StepRow,
    rows_of,
)
from dynosim.engine.sequence import DECODING, DRAINING, LOADING, PREFILLING, SPECULATING
from dynosim.engine.sequence import Sequence as EngineSequence
from dynosim.planner.observation import EngineReport, Pass
from dynosim.timing.model import StepTimeModel
from dynosim.timing.step import StepShape
from dynosim.workers.lifecycle import Phase

SEATED = (PREFILLING, DECODING, DRAINING, SPECULATING)


class EngineReporter:
    """Reports of all workers; at most `max_passes` steps in each."""

    def __init__(self, max_passes: int) -> None:
        self._max_passes = max_passes
        self._shape = StepShape()
        self._told: dict[int, int] = {}  # by worker: steps of the run under way told of already
        self._last: dict[int, EngineReport] = {}  # by worker, without steps

    def reports(
        self, steps: NewSteps | None, runs: Runs, alive: Sequence[Worker], now_ms: float
    ) -> tuple[EngineReport, ...]:
        """The latest report of each worker that serves; `steps` are new since the last ones, and
        None where none is to be told."""
        rows = {} if steps is None else _by_worker(steps)
        told, self._told = self._told, {}
        found = []
        for worker in alive:
            worker_id = worker.worker_id
            so_far = runs.get(worker_id)
            if so_far is not None:
                self._told[worker_id] = so_far.num_steps + (so_far.first is not None)
            phase = worker.phase
            if worker.rank or (phase is not Phase.READY and phase is not Phase.DRAINING):
                continue
            if worker.is_hung:
                found += [self._last[worker_id]] if worker_id in self._last else []
                continue
            ranks = [worker]
            if worker.num_ranks > 1:
                ranks = [one for one in alive if one.first_id == worker_id]
            report = self._last[worker_id] = _report(worker, ranks, runs, now_ms)
            if worker_id in rows:
                of_it, before = rows[worker_id], told.get(worker_id, 0)
                passes = self._passes(of_it, before, worker.pool.times)
                report = replace(report, passes=passes)
            found.append(report)
        return tuple(found)

    def _passes(self, rows: list[StepRow], told: int, times: StepTimeModel) -> tuple[Pass, ...]:
        """Some of a worker's steps, of which so many have been told already."""
        new = sum([row[NUM_STEPS] for row in rows]) - told
        number = min(new, self._max_passes)
        if number <= 0:
            return ()
        places = [told + (2 * i + 1) * new // (2 * number) for i in range(number)]
        found: list[Pass] = []
        first, place = 0, places[0]  # the first step of a row, and the next to be told
        for row in rows:
            end = first + row[NUM_STEPS]
            while place < end:
                found.append(_pass(row, place - first, times, self._shape))
                if len(found) == number:
                    return tuple(found)
                place = places[len(found)]
            first = end
        return tuple(found)


def _by_worker(steps: NewSteps) -> dict[int, list[StepRow]]:
    rows: dict[int, list[StepRow]] = {}
    for part in (rows_of(steps.over), steps.under_way):
        for row in part:
            worker_id = row[WORKER]
            if worker_id in rows:
                rows[worker_id].append(row)
            else:
                rows[worker_id] = [row]
    return rows


def _pass(row: StepRow, step: int, times: StepTimeModel, shape: StepShape) -> Pass:
    """One step of a row."""
    number, duration_ms = row[NUM_DECODES], row[DURATION]
    context_tokens = row[CONTEXT] + step * number
    if row[NUM_STEPS] > 1 or duration_ms != duration_ms:
        shape.num_decodes, shape.decode_context_tokens = number, context_tokens
        duration_ms = times.step_ms(shape)
    return Pass(duration_ms, row[NUM_PREFILLS], row[PREFILL_TOKENS], number, context_tokens)


def _report(
    worker: Worker,
    ranks: Sequence[Worker],
    runs: Runs,
    now_ms: float,
) -> EngineReport:
    """What a worker says of its load, all its ranks together."""
    running = waiting = prefill_tokens = decode_tokens = queued_decode_tokens = blocks = 0
    for rank in ranks:
        core = rank.engine.core
        decodes = core.decodes
        running += core.num_running
        waiting += core.num_waiting
        decode_tokens += decodes.context_tokens - decodes.count
        blocks += core.used_blocks
        so_far = runs.get(rank.worker_id)
        if so_far is not None:  # an engine that goes singly has planned them by now
            decode_tokens += decodes.count * so_far.num_ahead
            blocks += decodes.blocks_opened(so_far.num_ahead)
        if core.num_waiting:
            to_compute, to_decode = _queued(rank)
            prefill_tokens += to_compute
            queued_decode_tokens += to_decode
    return EngineReport(
        worker.worker_id,
        worker.pool_name,
        now_ms,
        running,
        waiting,
        prefill_tokens,
        decode_tokens,
        queued_decode_tokens,
        blocks / (worker.usable_blocks * len(ranks)),
    )


def _queued(worker: Worker) -> tuple[int, int]:
    """Tokens of those without a seat: of prompts to be computed, of KV to be decoded on."""
    to_compute = to_decode = 0
    for sequence, _ in worker.engine.core.unfinished():
        if sequence.state in SEATED:
            continue
        if sequence.generated_tokens or (worker.is_decode and _is_handed_over(sequence)):
            to_decode += sequence.known_tokens
        else:
            to_compute += sequence.prompt_tokens - sequence.num_computed
    return to_compute, to_decode


def _is_handed_over(sequence: EngineSequence) -> bool:
    """Whether a request's KV comes from elsewhere."""
    is_loading = sequence.state == LOADING
    return is_loading or sequence.remote_tokens > 0 or sequence.external_tokens > 0
