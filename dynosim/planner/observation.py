"""What a controller sees at one moment. Nothing here says what a request will still do.

Records that a run makes by the thousand are msgspec's: they are made in a tenth of the time.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec

from dynosim.workers.lifecycle import Phase


@dataclass(frozen=True, slots=True)
class PoolCard:
    """What is known of a pool's workers before any of them runs.

    `role` is "agg", "prefill" or "decode". The limits are those of one worker: sequences and tokens
    of a step, tokens of KV it can hold, tokens of its longest request; None: not known.
    """

    name: str
    role: str
    gpus_per_worker: int
    max_num_seqs: int | None = None
    max_num_batched_tokens: int | None = None
    max_kv_tokens: int | None = None
    max_model_len: int | None = None


class WorkerState(msgspec.Struct, frozen=True):
    """One worker that is starting, ready or draining; `since_ms`: when it came to that phase."""

    worker_id: int
    phase: Phase
    since_ms: float
    num_requests: int = 0


class PoolState(msgspec.Struct, frozen=True):
    """The workers of a pool that hold GPUs, by id; `wanted`: how many it was last told to have.

    `wanted` may be somebody else's word: two controllers of one pool see each other by it.
    """

    name: str
    wanted: int
    workers: tuple[WorkerState, ...]

    def count(self, phase: Phase) -> int:
        """Workers in a phase."""
        return sum(worker.phase is phase for worker in self.workers)


class Scrape(msgspec.Struct, frozen=True):
    """The frontend's metrics as they stood at `at_ms`: value by sample name.

    A sample's name is as in Prometheus' text: `name` or `name{label="value",...}` with its labels
    in the order of their names. Counters grow from 0 and start again with the process. Values may
    be worked out as they are read: who wants few of many asks for those by name.
    """

    at_ms: float
    values: Mapping[str, float]


class Pass(msgspec.Struct, frozen=True):
    """One step of an engine; `prefill_tokens` are those computed, cached ones not among them."""

    wall_ms: float
    num_prefills: int
    prefill_tokens: int
    num_decodes: int
    decode_kv_tokens: int


class EngineReport(msgspec.Struct, frozen=True):
    """What one worker said of itself at `at_ms`: its load, and steps since its last report.

    `queued_prefill_tokens` are prompt tokens not yet computed of requests that wait for a seat;
    `decode_kv_tokens` the KV of those that decode, `queued_decode_kv_tokens` that of those that
    wait to (handed over, or preempted). `used_kv_share` is of its blocks, from 0 to 1.
    """

    worker_id: int
    pool: str
    at_ms: float
    num_running: int
    num_waiting: int
    queued_prefill_tokens: int
    decode_kv_tokens: int
    queued_decode_kv_tokens: int
    used_kv_share: float
    passes: tuple[Pass, ...] = ()


class Observation(msgspec.Struct, frozen=True):
    """All that a controller is given at `now_ms`.

    `scrapes` are those since it last looked, oldest first; none came while metrics are out, and
    each has its age. `reports` are the latest of each worker that ever reported and is alive.
    """

    now_ms: float
    pools: tuple[PoolState, ...]
    scrapes: tuple[Scrape, ...] = ()
    reports: tuple[EngineReport, ...] = ()

    def pool(self, name: str) -> PoolState:
        """The state of a pool. Raises: KeyError if there is none of that name."""
        for pool in self.pools:
            if pool.name == name:
                return pool
        raise KeyError(name)
