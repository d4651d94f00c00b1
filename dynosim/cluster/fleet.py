"""The workers of a run and their lives: launched, ready, slowed, hung, drained, lost."""

from collections.abc import Sequence as List

from dynosim.cluster.agenda import Agenda
from dynosim.cluster.generations import Generations
from dynosim.cluster.journal import Journal
from dynosim.cluster.launcher import Launcher
from dynosim.cluster.placement import AnyPlacer
from dynosim.cluster.pool import Worker
from dynosim.cluster.spec import PoolSpec
from dynosim.cluster.station import HUNG
from dynosim.cluster.tier_traffic import TierTraffic
from dynosim.engine.lock_step import LockStep
from dynosim.engine.sequence import Sequence
from dynosim.records import LockStepLog, PrefetchLog, RetentionLog
from dynosim.timing.lock_step import LockStepTimes
from dynosim.timing.model import StepTimeModel
from dynosim.workers.ids import WorkerId
from dynosim.workers.lifecycle import Phase, WorkerEvent


class Fleet:
    """All workers by id, also those that have gone; whoever places requests is told of each.

    What happens to one of several data-parallel ranks happens to all of the same worker.
    """

    def __init__(
        self,
        launcher: Launcher,
        *,
        agenda: Agenda,
        placer: AnyPlacer,
        tiers: TierTraffic,
        journal: Journal,
        generations: Generations | None,
    ) -> None:
        self.workers: list[Worker] = []
        self.draining: list[Worker] = []
        self._launcher = launcher
        self._agenda = agenda
        self._placer = placer
        self._tiers = tiers
        self._journal = journal
        self._generations = generations
        self._ranks_at: dict[int, list[Worker]] = {}  # by station, of ranks in lock step
        self._lock_steps: list[LockStep] = []  # all there have been

    # ---- coming --------------------------------------------------------------------------------

    def launch(self, pool: PoolSpec, now_ms: float) -> Worker:
        """A new worker, or the first of its ranks; it serves nobody before `make_ready`."""
        ranks, group = self._launcher.launch(WorkerId(len(self.workers)), pool, now_ms)
        self.workers += ranks
        if group is None:
            for worker in ranks:
                worker.station_id = self._agenda.add(worker.engine, worker)
                self._tiers.equip(worker)
        else:
            station_id = self._agenda.add(group)
            self._lock_steps.append(group)
            self._ranks_at[station_id] = ranks
            for worker in ranks:
                worker.station_id = station_id
        return ranks[0]

    def make_ready(self, worker: Worker, now_ms: float) -> None:
        """A worker has come up: it may get requests."""
        for rank in self._ranks_of(worker):
            rank.move(WorkerEvent.BECAME_READY, now_ms)
            self._placer.join(rank, now_ms)
            if self._generations is not None:
                self._generations.joined(rank)

    # ---- serving -------------------------------------------------------------------------------

    def has_ranks_at(self, station_id: int) -> bool:
        """Whether a station is that of ranks in lock step."""
        return station_id in self._ranks_at

    def receive_ranks(self, station_id: int, finished: List[Sequence], now_ms: float) -> None:
        """Have the placer take note of a step that ranks have ended together."""
        worker_id = self._journal.worker_id
        for rank in self._ranks_at[station_id]:
            mine = [one for one in finished if worker_id[one.index] == rank.worker_id]
            self._placer.receive(rank, mine, now_ms)

    def note_passed_on(self, now_ms: float) -> None:
        """Who got what others left has news now; who has nothing left but had to drain goes."""
        self._agenda.touch_passed_to()
        self.let_go(now_ms)

    def repace(self, worker: Worker, times: StepTimeModel | None, now_ms: float) -> bool:
        """Let a worker's steps take other times from its next one; None: its usual ones.

        Returns whether that may move what is under way. Raises: ValueError if it has gone, hung or
        failed.
        """
        if not worker.is_alive or worker.is_hung:
            raise ValueError(f"worker {worker.worker_id} is gone: its steps take no time")
        station, pool = self._agenda.stations[worker.station_id], worker.pool
        if isinstance(station, LockStep):
            station.repace(LockStepTimes(times or pool.times, pool.ranks.padded_up_to))
            return False
        for rank in self._ranks_of(worker):
            self._agenda.has_news(rank, rank.engine.repace(times, now_ms))
        return True

    def hang(self, worker: Worker, now_ms: float) -> None:
        """A worker does nothing any more; nobody knows, so it goes on getting requests.

        Raises: ValueError if it takes no requests, or has hung already.
        """
        if worker.phase is not Phase.READY or worker.is_hung:
            state = "hung" if worker.is_hung else worker.phase.value
            raise ValueError(f"worker {worker.worker_id} is {state}: it cannot hang")
        for rank in self._ranks_of(worker):
            self._tiers.lose(rank, now_ms)
            rank.hang(now_ms)
            self._agenda.stations[rank.station_id] = HUNG
            self._placer.receive(rank, [], now_ms)

    # ---- what engines are told; one that hangs does not hear of it ------------------------------

    def drop(self, worker: Worker, sequence: Sequence, now_ms: float) -> None:
        """Nobody waits any more for what a worker has of a request."""
        self._placer.give_up(sequence.index, worker, now_ms)
        if not worker.is_hung:
            if not worker.is_prefill:
                self._journal.leaving.add(sequence.index)
            self._agenda.has_news(worker, worker.engine.give_up(sequence, now_ms))

    def tell_loaded(
        self, worker: Worker, sequence: Sequence, num_valid_tokens: int, now_ms: float
    ) -> None:
        """KV that a worker loads has come, or will not."""
        if not worker.is_hung:
            has_moved = worker.engine.loaded(sequence, now_ms, num_valid_tokens)
            self._agenda.has_news(worker, has_moved)

    def tell_sent(self, worker: Worker, sequence: Sequence, now_ms: float) -> None:
        """Nobody needs the KV that a worker holds."""
        if not worker.is_hung:
            self._agenda.has_news(worker, worker.engine.sent(sequence, now_ms))

    # ---- going ---------------------------------------------------------------------------------

    def drain(self, worker: Worker, now_ms: float) -> bool:
        """Place nothing more on a worker; once what it has is done, `let_go` lets it go.

        Returns whether it served. Raises: ValueError if it has gone or failed.
        """
        was_ready = worker.phase is Phase.READY
        for rank in self._ranks_of(worker):
            rank.move(WorkerEvent.TOLD_TO_DRAIN, now_ms)
            if was_ready:
                self._stop_serving(rank, now_ms)
                self.draining.append(rank)
        return was_ready

    def let_go(self, now_ms: float) -> None:
        """Let the draining workers go that have nothing left."""
        for worker in list(self.draining):
            if all([rank.engine.is_done for rank in self._ranks_of(worker)]):
                self.draining.remove(worker)
                worker.move(WorkerEvent.DRAINED, now_ms)
                self._tiers.leave(worker)

    def lose(self, worker: Worker, now_ms: float) -> list[tuple[Sequence, int]]:
        """A worker dies; returns what its engines had, each with the tokens it has got.

        Raises: ValueError if it has gone or failed already.
        """
        was_ready = worker.phase is Phase.READY
        lost: list[tuple[Sequence, int]] = []
        for rank in self._ranks_of(worker):
            rank.move(WorkerEvent.DIED, now_ms)
            self._tiers.lose(rank, now_ms)
            lost += rank.stop(now_ms)
            self._placer.receive(rank, [], now_ms)
            if was_ready:
                self._stop_serving(rank, now_ms)
            elif rank in self.draining:
                self.draining.remove(rank)
        station = self._agenda.stations[worker.station_id]
        if isinstance(station, LockStep):
            station.halt()
        return lost

    def _stop_serving(self, worker: Worker, now_ms: float) -> None:
        """A worker takes no more requests."""
        self._placer.leave(worker, now_ms)
        if self._generations is not None:
            self._generations.left(worker)

    def _ranks_of(self, worker: Worker) -> list[Worker]:
        """All ranks of the one that a worker belongs to, in order."""
        return self.workers[worker.first_id : worker.first_id + worker.pool.ranks.number]

    # ---- the end -------------------------------------------------------------------------------

    def lock_step_log(self) -> LockStepLog | None:
        """How ranks in lock step spent their time, all workers together; None without such."""
        counts = [group.counts for group in self._lock_steps]
        if not counts:
            return None
        return LockStepLog(
            sum([one.rank_steps for one in counts]),
            sum([one.dummy_rank_steps for one in counts]),
            sum([one.rank_ms for one in counts]),
            sum([one.waiting_ms for one in counts]),
        )

    def retention_log(self) -> RetentionLog | None:
        """What became of pinned blocks; None where no cache heeds such words."""
        caches = [worker.engine.core.retention for worker in self.workers]
        heeding = [cache for cache in caches if cache is not None]
        if not heeding:
            return None
        return RetentionLog(
            max([cache.peak_pinned_blocks for cache in heeding]),
            sum([cache.broken_blocks for cache in heeding]),
        )

    def prefetch_log(self) -> PrefetchLog:
        """What was loaded ahead of requests."""
        logs = [worker.engine.core.prefetch_log for worker in self.workers]
        return PrefetchLog(
            sum([log.loaded_blocks for log in logs]),
            sum([log.used_blocks for log in logs]),
            sum([log.num_without_room for log in logs]),
        )

    def stop(self, until_ms: float) -> None:
        """The run is over: note what the unfinished requests have got so far."""
        for worker in self.workers:
            if worker.is_alive and not worker.is_hung:
                worker.stop(until_ms)
