"""Workers that start: each node goes through its phases, those who read share what they read from.

No clock of its own: whoever owns it calls `advance` at `next_ms`, as with the network that carries
what is read. What depends on others is decided here: who reads weights from whom, who compiles for
all, who makes the checkpoint.
"""

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Final

import numpy as np

from dynosim.engine.instant import instant_end
from dynosim.engine.pace import NEVER
from dynosim.errors import InvariantError
from dynosim.memory.network import BYTES_PER_MS, FairNetwork, Transfer
from dynosim.records import StartupLog
from dynosim.workers.startup import (
    NO_TIME,
    PHASES,
    CheckpointSpec,
    Duration,
    ReadSpec,
    StartupSpec,
    stream,
)

ALL_NODES: Final = -1
"""The number of what all nodes of a worker do together."""

NOWHERE: Final = -1
"""Instead of a worker's id: storage, or nothing was read."""

NAN = float("nan")
_LAUNCHED: Final = "launched"
_DONE: Final = "done"  # waits for the other nodes
_Row = tuple[int, int, str, float, float, int, int, bool]


class _Track:
    """One node of a worker, or all of them once each has its weights."""

    __slots__ = (
        "began_ms",
        "bytes_left",
        "has_weights",
        "num_read",
        "num_receivers",
        "number",
        "phase",
        "send_id",
        "source",
        "transfer",
        "worker",
    )

    def __init__(self, worker: "_Starter", number: int, now_ms: float) -> None:
        self.worker = worker
        self.number = number
        self.phase = _LAUNCHED
        self.began_ms = now_ms
        self.transfer: Transfer | None = None
        self.source: _Track | None = None  # that it reads from; None: storage
        self.bytes_left = worker.spec.part_bytes(number)
        self.num_read = 0  # bytes, in this phase
        self.num_receivers = 0  # that read from it
        self.send_id = -1  # its resource of the network
        self.has_weights = False

    @property
    def key(self) -> tuple[str, int]:
        """Those with an equal one hold, or want, the same part of the same weights."""
        return self.worker.pool, self.number


class _Starter:
    """A worker that starts, or that has and may send its weights to others."""

    __slots__ = ("is_gone", "is_ready", "num_loaded", "pool", "spec", "tracks", "worker_id")

    def __init__(self, worker_id: int, pool: str, spec: StartupSpec, now_ms: float) -> None:
        self.worker_id = worker_id
        self.pool = pool
        self.spec = spec
        self.is_ready = False
        self.is_gone = False
        self.num_loaded = 0
        self.tracks = [_Track(self, number, now_ms) for number in range(spec.nodes)]


class _Checkpoint:
    """That of a pool, as far as it has come."""

    __slots__ = ("exists", "maker", "waiting")

    def __init__(self, spec: CheckpointSpec) -> None:
        self.exists = spec.exists
        self.maker: _Starter | None = None
        self.waiting: list[_Track] = []


class StartUps:
    """The workers of a run that come up, and those that others may read from.

    `next_ms` is when `advance` is to be called; infinity: nothing goes on. Same seed and calls: the
    same times to the bit.
    """

    def __init__(self, seed: int) -> None:
        self.network = FairNetwork()
        self._seed = seed
        self._starters: dict[int, _Starter] = {}
        self._timed: list[tuple[float, int, _Track]] = []  # heap of when a phase ends
        self._num_timed = 0
        self._reading: dict[int, _Track] = {}  # by number of the transfer
        self._shared: dict[ReadSpec, int] = {}  # resources of the network
        self._nodes: dict[tuple[str, int], list[_Track]] = {}  # alive, by what they hold
        self._waiting: dict[tuple[str, int], list[_Track]] = {}  # for a source
        self._compiled: set[str] = set()  # pools of which one has compiled
        self._checkpoints: dict[str, _Checkpoint] = {}
        self._ready: list[int] = []
        self._rows: list[_Row] = []

    @property
    def next_ms(self) -> float:
        """When the next phase ends."""
        timed_ms = self._timed[0][0] if self._timed else NEVER
        return min(timed_ms, self.network.next_ms)

    def launch(self, worker_id: int, pool: str, spec: StartupSpec, now_ms: float) -> None:
        """A worker starts."""
        starter = self._add(worker_id, pool, spec, now_ms)
        for track in starter.tracks:
            self._end_at(track, now_ms)

    def add_running(self, worker_id: int, pool: str, spec: StartupSpec, now_ms: float) -> None:
        """A worker is there that has started before the run: others may read from it."""
        starter = self._add(worker_id, pool, spec, now_ms)
        starter.is_ready = True
        self._compiled.add(pool)
        for track in starter.tracks:
            track.has_weights = True

    def advance(self, now_ms: float) -> list[int]:
        """Do what is due; returns the workers that have come up, by id."""
        timed, until_ms = self._timed, instant_end(now_ms)
        while (timed and timed[0][0] <= now_ms) or self.network.next_ms <= until_ms:
            if timed and timed[0][0] <= now_ms:
                track = heappop(timed)[2]
                if not track.worker.is_gone:
                    self._end(track, now_ms)
                continue
            for transfer in self.network.complete(now_ms):
                self._has_read(self._reading.pop(transfer.number), now_ms)
        ready, self._ready = sorted(self._ready), []
        return ready

    def leave(self, worker_id: int, now_ms: float) -> None:
        """A worker drains or has failed: it starts no further, and sends nothing more; who was
        reading from it reads the rest elsewhere."""
        starter = self._starters.pop(worker_id, None)
        if starter is None:
            return
        starter.is_gone = True
        orphans = [one for one in self._reading.values() if one.source in starter.tracks]
        for track in starter.tracks:
            if track.number != ALL_NODES:
                self._nodes[track.key].remove(track)
                self._stop_waiting(track)
            if not starter.is_ready and track.phase in PHASES:
                self._cut(track, now_ms)
        for orphan in orphans:
            self._cut(orphan, now_ms)
            self._load(orphan, now_ms)
        for track in starter.tracks:
            self._serve_waiting(track.key, now_ms)
        self._replace_maker(starter, now_ms)

    def log(self) -> StartupLog:
        """All phases so far, also those under way, by worker, time and node."""
        under_way = [
            self._row(track, NAN, is_complete=False)
            for starter in self._starters.values()
            for track in starter.tracks
            if not starter.is_ready and track.phase in PHASES
        ]
        rows = sorted([*self._rows, *under_way], key=lambda row: (row[0], row[3], row[1]))
        columns = list(zip(*rows, strict=True)) or [()] * 8
        return StartupLog(
            worker_id=np.array(columns[0], np.int64),
            node=np.array(columns[1], np.int64),
            phase=tuple(columns[2]),
            start_ms=np.array(columns[3], np.float64),
            end_ms=np.array(columns[4], np.float64),
            num_bytes=np.array(columns[5], np.int64),
            source=np.array(columns[6], np.int64),
            is_complete=np.array(columns[7], np.bool_),
        )

    # ---- phases ----------------------------------------------------------------------------------

    def _add(self, worker_id: int, pool: str, spec: StartupSpec, now_ms: float) -> _Starter:
        if worker_id in self._starters:
            raise InvariantError(f"worker {worker_id} has been launched")
        starter = self._starters[worker_id] = _Starter(worker_id, pool, spec, now_ms)
        for track in starter.tracks:
            self._nodes.setdefault(track.key, []).append(track)
        if spec.checkpoint is not None and pool not in self._checkpoints:
            self._checkpoints[pool] = _Checkpoint(spec.checkpoint)
        return starter

    def _end_at(self, track: _Track, at_ms: float) -> None:
        self._num_timed += 1
        heappush(self._timed, (at_ms, self._num_timed, track))

    def _begin(self, track: _Track, phase: str, now_ms: float) -> None:
        track.phase = phase
        track.began_ms = now_ms
        track.num_read = 0

    def _end(self, track: _Track, now_ms: float) -> None:
        """A phase is over: note it, and go on to what comes then."""
        if track.phase in PHASES:
            self._rows.append(self._row(track, now_ms, is_complete=True))
        _AFTER[track.phase](self, track, now_ms)

    def _cut(self, track: _Track, now_ms: float) -> None:
        """A phase ends before it is complete."""
        if track.transfer is not None:
            num_bytes = self.network.cancel(track.transfer, now_ms)
            del self._reading[track.transfer.number]
            self._count_read(track, num_bytes)
        self._rows.append(self._row(track, now_ms, is_complete=False))
        track.source = None

    def _row(self, track: _Track, end_ms: float, *, is_complete: bool) -> _Row:
        source = NOWHERE if track.source is None else track.source.worker.worker_id
        where = track.worker.worker_id, track.number
        return (*where, track.phase, track.began_ms, end_ms, track.num_read, source, is_complete)

    def _take(self, track: _Track, phase: str, time: Duration, now_ms: float) -> None:
        """Begin a phase that only takes time; one that takes none is none."""
        self._begin(track, phase, now_ms)
        if time == NO_TIME:
            _AFTER[phase](self, track, now_ms)
        else:
            self._end_at(track, now_ms + self._draw_ms(track, phase, time))

    def _draw_ms(self, track: _Track, phase: str, time: Duration) -> float:
        return time.draw_ms(stream(self._seed, track.worker.worker_id, track.number, phase))

    def _schedule(self, track: _Track, now_ms: float) -> None:
        self._take(track, "schedule", track.worker.spec.schedule, now_ms)

    def _join(self, track: _Track, now_ms: float) -> None:
        self._take(track, "node", track.worker.spec.node, now_ms)

    def _pull(self, track: _Track, now_ms: float) -> None:
        self._take(track, "image", track.worker.spec.image, now_ms)

    def _choose_way(self, track: _Track, now_ms: float) -> None:
        """Restore the checkpoint, wait for it, or start cold and perhaps make it."""
        starter, spec = track.worker, track.worker.spec
        if spec.checkpoint is not None:
            checkpoint = self._checkpoints[starter.pool]
            if checkpoint.exists:
                self._begin(track, "restore", now_ms)
                self._read(track, spec.checkpoint.storage, spec.checkpoint.num_bytes, now_ms)
                return
            if checkpoint.maker is None:
                checkpoint.maker = starter
            elif spec.checkpoint.waits:
                self._begin(track, "wait_checkpoint", now_ms)
                checkpoint.waiting.append(track)
                return
        self._take(track, "boot", spec.boot, now_ms)

    def _has_restored(self, track: _Track, now_ms: float) -> None:
        self._keep_weights(track, now_ms)
        self._become_one(track.worker, now_ms)
        self._await_probe(track.worker.tracks[-1], now_ms)

    def _has_loaded(self, track: _Track, now_ms: float) -> None:
        starter = track.worker
        starter.num_loaded += 1
        self._keep_weights(track, now_ms)
        if starter.num_loaded == starter.spec.nodes:
            self._become_one(starter, now_ms)
            is_cached = starter.spec.compile_cache == "warm" or (
                starter.spec.compile_cache == "shared" and starter.pool in self._compiled
            )
            time = starter.spec.compile_cached if is_cached else starter.spec.compile
            self._take(starter.tracks[-1], "compile", time, now_ms)

    def _become_one(self, starter: _Starter, now_ms: float) -> None:
        """From now on all nodes go together."""
        starter.tracks.append(_Track(starter, ALL_NODES, now_ms))

    def _has_compiled(self, track: _Track, now_ms: float) -> None:
        self._compiled.add(track.worker.pool)
        self._take(track, "warm_up", track.worker.spec.warm_up, now_ms)

    def _has_warmed_up(self, track: _Track, now_ms: float) -> None:
        spec = track.worker.spec.checkpoint
        if spec is None or self._checkpoints[track.worker.pool].maker is not track.worker:
            self._await_probe(track, now_ms)
            return
        assert spec.write_gb_s is not None
        time_ms = spec.num_bytes / (spec.write_gb_s * BYTES_PER_MS)
        self._take(track, "checkpoint", Duration(time_ms), now_ms)

    def _has_made_checkpoint(self, track: _Track, now_ms: float) -> None:
        checkpoint = self._checkpoints[track.worker.pool]
        checkpoint.exists = True
        self._go_on_waiting(checkpoint, now_ms)
        self._await_probe(track, now_ms)

    def _go_on_waiting(self, checkpoint: _Checkpoint, now_ms: float) -> None:
        """Let those choose again who waited for a checkpoint."""
        waiting, checkpoint.waiting = checkpoint.waiting, []
        for track in waiting:
            self._end(track, now_ms)

    def _replace_maker(self, gone: _Starter, now_ms: float) -> None:
        """If the one has gone that was to make the checkpoint, another one is to."""
        checkpoint = self._checkpoints.get(gone.pool)
        if checkpoint is None:
            return
        checkpoint.waiting = [track for track in checkpoint.waiting if track.worker is not gone]
        if checkpoint.maker is gone and not checkpoint.exists:
            checkpoint.maker = None
            self._go_on_waiting(checkpoint, now_ms)

    def _await_probe(self, track: _Track, now_ms: float) -> None:
        self._take(track, "probe", track.worker.spec.probe, now_ms)

    def _is_up(self, track: _Track, now_ms: float) -> None:
        track.worker.is_ready = True
        self._ready.append(track.worker.worker_id)

    # ---- reading ---------------------------------------------------------------------------------

    def _read(self, track: _Track, storage: ReadSpec, num_bytes: int, now_ms: float) -> None:
        path = [self.network.add_resource(storage.node_gb_s)]
        if storage.total_gb_s is not None:
            if storage not in self._shared:
                self._shared[storage] = self.network.add_resource(storage.total_gb_s)
            path.append(self._shared[storage])
        self._transfer(track, tuple(path), num_bytes, now_ms + storage.first_byte_ms, now_ms)

    def _transfer(
        self, track: _Track, path: tuple[int, ...], num_bytes: int, starts_ms: float, now_ms: float
    ) -> None:
        track.transfer = self.network.begin(path, num_bytes, starts_ms, now_ms)
        self._reading[track.transfer.number] = track

    def _count_read(self, track: _Track, num_bytes: int) -> None:
        """So many bytes have come, and no more do."""
        track.transfer = None
        track.num_read += num_bytes
        if track.phase == "weights":
            track.bytes_left -= num_bytes
        if track.source is not None:
            track.source.num_receivers -= 1

    def _has_read(self, track: _Track, now_ms: float) -> None:
        assert track.transfer is not None
        self._count_read(track, track.transfer.num_bytes)
        checkpoint = track.worker.spec.checkpoint
        if track.phase == "restore" and checkpoint is not None:
            self._end_at(track, now_ms + self._draw_ms(track, "restore", checkpoint.restore))
        else:
            self._end(track, now_ms)

    def _load(self, track: _Track, now_ms: float) -> None:
        """Read the weights, or what is left of them; wait if they come from a node that sends to
        others yet, or that reads them itself."""
        weights = track.worker.spec.weights
        if weights is None or track.bytes_left == 0:
            self._begin(track, "weights", now_ms)
            self._has_loaded(track, now_ms)
        elif weights.peer_gb_s is None:
            self._begin(track, "weights", now_ms)
            self._read(track, weights.storage, track.bytes_left, now_ms)
        elif not self._load_from_peer(track, now_ms):
            self._begin(track, "wait_source", now_ms)
            self._waiting.setdefault(track.key, []).append(track)

    def _load_from_peer(self, track: _Track, now_ms: float) -> bool:
        """Returns whether it could begin; the first reads from storage."""
        weights = track.worker.spec.weights
        assert weights is not None and weights.peer_gb_s is not None
        others = [one for one in self._nodes[track.key] if one is not track]
        holders = [one for one in others if one.has_weights]
        most = weights.receivers_per_source
        free = [one for one in holders if most is None or one.num_receivers < most]
        if not free and (holders or any([one.transfer is not None for one in others])):
            return False
        self._begin(track, "weights", now_ms)
        if not free:
            self._read(track, weights.storage, track.bytes_left, now_ms)
            return True
        source = min(free, key=lambda one: (one.num_receivers, one.worker.worker_id))
        if source.send_id < 0:
            source.send_id = self.network.add_resource(weights.peer_gb_s)
        source.num_receivers += 1
        track.source = source
        receive_id = self.network.add_resource(weights.peer_gb_s)
        path = (source.send_id, receive_id)
        self._transfer(track, path, track.bytes_left, now_ms, now_ms)
        return True

    def _keep_weights(self, track: _Track, now_ms: float) -> None:
        """A node has its weights: others may read them, also from who has sent them to it."""
        track.phase = _DONE
        track.has_weights = True
        track.source = None
        self._serve_waiting(track.key, now_ms)

    def _serve_waiting(self, key: tuple[str, int], now_ms: float) -> None:
        """Let those read who waited for a source, in the order in which they came."""
        waiting = self._waiting.get(key, [])
        while waiting:
            track = waiting[0]
            phase, began_ms = track.phase, track.began_ms
            if not self._load_from_peer(track, now_ms):
                return
            del waiting[0]
            if now_ms > began_ms:
                row = (track.worker.worker_id, track.number, phase, began_ms, now_ms, 0, NOWHERE)
                self._rows.append((*row, True))

    def _stop_waiting(self, track: _Track) -> None:
        waiting = self._waiting.get(track.key, [])
        if track in waiting:
            waiting.remove(track)


_AFTER: Final[dict[str, Callable[[StartUps, _Track, float], None]]] = {
    _LAUNCHED: StartUps._schedule,
    "schedule": StartUps._join,
    "node": StartUps._pull,
    "image": StartUps._choose_way,
    "wait_checkpoint": StartUps._choose_way,
    "restore": StartUps._has_restored,
    "boot": StartUps._load,
    "weights": StartUps._has_loaded,
    "compile": StartUps._has_compiled,
    "warm_up": StartUps._has_warmed_up,
    "checkpoint": StartUps._has_made_checkpoint,
    "probe": StartUps._is_up,
}
"""What comes when a phase is over."""
