"""What each worker of the twin says of itself at a moment, as engines tell planners.

Loads are those after the step that is being computed has been planned, as an engine counts them: of
a run under way they are worked out. Of the steps since the last report some are told, evenly spread
over them, each with its own length; so it does not matter whether they went by in bulk.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from dynosim.cluster.pool import Worker
from dynosim.cluster.run_steps import (
    CONTEXT,
    NUM_DECODES,
    NUM_PREFILLS,
    NUM_STEPS,
    PREFILL_TOKENS,
    NewSteps,
    RunUnderWay,
)
from dynosim.engine.sequence import DECODING, DRAINING, LOADING, PREFILLING, SPECULATING
from dynosim.engine.sequence import Sequence as EngineSequence
from dynosim.planner.observation import EngineReport, Pass
from dynosim.records import FloatArray
from dynosim.workers.lifecycle import Phase

SEATED = (PREFILLING, DECODING, DRAINING, SPECULATING)
REPORTING = (Phase.READY, Phase.DRAINING)


class EngineReporter:
    """Reports of all workers; at most `max_passes` steps in each."""

    def __init__(self, max_passes: int) -> None:
        self._max_passes = max_passes
        self._told: dict[int, int] = {}  # by worker: steps of the run under way told of already

    def reports(
        self, steps: NewSteps, alive: Sequence[Worker], now_ms: float
    ) -> tuple[EngineReport, ...]:
        """A report of each worker that serves; `steps` are new since the last reports."""
        order = np.argsort(steps.worker_id, kind="stable")
        ids = steps.worker_id[order]
        runs: dict[int, RunUnderWay] = {run.worker.worker_id: run for run in steps.runs}
        found = []
        for worker in alive:
            worker_id = worker.worker_id
            first, end = np.searchsorted(ids, (worker_id, worker_id + 1)).tolist()
            rows = order[first:end]
            passes = self._passes(worker, runs.get(worker_id), steps, rows)
            if worker.phase in REPORTING and worker.rank == 0:
                found.append(_report(worker, alive, passes, now_ms))
        return tuple(found)

    def _passes(
        self, worker: Worker, run: RunUnderWay | None, steps: NewSteps, rows: NDArray[np.int64]
    ) -> tuple[Pass, ...]:
        """Steps of a worker that were not told of yet."""
        told = self._told.pop(worker.worker_id, 0)
        if run is not None:
            self._told[worker.worker_id] = run.num_steps
        elif not len(rows):
            return ()
        lengths_ms, counts = steps.duration_ms[rows], steps.counts[rows]
        if run is not None:
            more_ms, more = run.rows()
            lengths_ms = np.concatenate((lengths_ms, more_ms))
            counts = np.concatenate((counts, np.array(more, np.int64)))
        ends = np.cumsum(counts[:, NUM_STEPS])
        new = int(ends[-1]) - told
        number = min(new, self._max_passes)
        if number <= 0:
            return ()
        places = told + (2 * np.arange(number, dtype=np.int64) + 1) * new // (2 * number)
        row = np.searchsorted(ends, places, side="right")
        return _told_of(worker, lengths_ms[row], counts[row], places - ends[row])


def _told_of(
    worker: Worker,
    lengths_ms: FloatArray,
    counts: NDArray[np.int64],
    from_end: NDArray[np.int64],
) -> tuple[Pass, ...]:
    """Steps of rows, each so many (less than 0) from the row's end."""
    num_decodes, contexts = counts[:, NUM_DECODES], counts[:, CONTEXT]
    contexts = contexts + num_decodes * (from_end + counts[:, NUM_STEPS])
    in_run = counts[:, NUM_STEPS] > 1
    in_run |= np.isnan(lengths_ms)  # of a run under way
    if in_run.any():
        lengths_ms = lengths_ms.copy()
        lengths_ms[in_run] = worker.pool.times.decode_step_ms_array(
            num_decodes[in_run], contexts[in_run]
        )
    columns = (
        lengths_ms.tolist(),
        counts[:, NUM_PREFILLS].tolist(),
        counts[:, PREFILL_TOKENS].tolist(),
        num_decodes.tolist(),
        contexts.tolist(),
    )
    return tuple(map(Pass, *columns))


def _report(
    worker: Worker,
    alive: Sequence[Worker],
    passes: tuple[Pass, ...],
    now_ms: float,
) -> EngineReport:
    """What a worker says, all its ranks together; its steps are those of its first rank."""
    ranks = [worker]
    if worker.pool.ranks.number > 1:
        ranks = [one for one in alive if one.first_id == worker.worker_id]
    running = waiting = prefill_tokens = decode_tokens = queued_decode_tokens = blocks = 0
    for rank in ranks:
        core = rank.engine.core
        decodes = core.decodes
        ahead = _planned_ahead(rank, now_ms)
        running += core.num_running
        waiting += core.num_waiting
        decode_tokens += decodes.context_tokens + decodes.count * (ahead - 1)
        blocks += core.used_blocks
        if ahead:
            blocks += decodes.blocks_opened(ahead)
        if core.num_waiting:
            to_compute, to_decode = _queued(rank)
            prefill_tokens += to_compute
            queued_decode_tokens += to_decode
    return EngineReport(
        worker_id=worker.worker_id,
        pool=worker.pool.name,
        at_ms=now_ms,
        num_running=running,
        num_waiting=waiting,
        queued_prefill_tokens=prefill_tokens,
        decode_kv_tokens=decode_tokens,
        queued_decode_kv_tokens=queued_decode_tokens,
        used_kv_share=blocks / (worker.pool.engine.usable_blocks * len(ranks)),
        passes=passes,
    )


def _planned_ahead(worker: Worker, now_ms: float) -> int:
    """Steps of a run that an engine which goes singly has planned by now, and its core has not."""
    so_far = worker.engine.run_so_far(now_ms)
    return 0 if so_far is None else so_far.num_ahead


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
