"""The twin's data plane: workers advanced in virtual time, arrivals placed on them.

Events are ends of steps and runs, arrivals, and news that reach a router late. Order within an
instant (see `dynosim.engine.instant`): all step ends, lowest worker first, then what waited in the
router and can go now, then all arrivals, then the idle workers with work start; so an arrival at a
step's end makes the next step.

Between two instants the control plane may act: workers are launched, become ready, drain, fail.
"""

import sys
from collections.abc import Sequence as List
from heapq import heappop, heappush
from math import isnan
from typing import TYPE_CHECKING, Final, TypeAlias

from dynosim.cluster.event_faults import EventFault
from dynosim.cluster.frontend_stages import StagedLoad
from dynosim.cluster.generations import Generations
from dynosim.cluster.handoffs import LOCAL, PLACE_PREFILL, PROMISING, Handoffs, Passage
from dynosim.cluster.journal import Journal
from dynosim.cluster.launcher import Launcher
from dynosim.cluster.lobby import Lobby
from dynosim.cluster.patience import Patience
from dynosim.cluster.placement import QUEUED, LoadPlacer, Placer
from dynosim.cluster.pool import Worker
from dynosim.cluster.pool_placers import PoolPlacers
from dynosim.cluster.requests import Requests
from dynosim.cluster.spec import PoolSpec
from dynosim.cluster.station import HUNG, Station
from dynosim.cluster.tier_links import TierLinks
from dynosim.cluster.tier_stores import TierStores
from dynosim.cluster.transfers import Transfers
from dynosim.cluster.worker_tiers import TierStation
from dynosim.engine.engine import Engine
from dynosim.engine.instant import RELATIVE_TOLERANCE, TOLERANCE_MS, instant_end, instant_start
from dynosim.engine.lock_step import LockStep
from dynosim.engine.sequence import Sequence
from dynosim.records import LockStepLog, PrefetchLog, RequestStatus, RetentionLog
from dynosim.router.eligibility import Constraints, both
from dynosim.router.handoff import Duty
from dynosim.router.refusals import RequestRefusedError
from dynosim.timing.lock_step import LockStepTimes
from dynosim.timing.model import StepTimeModel
from dynosim.workers.ids import WorkerId
from dynosim.workers.lifecycle import Phase, WorkerEvent
from dynosim.workload.load import NEVER, Arrivals

if TYPE_CHECKING:
    from dynosim.cluster.lone_placer import LonePlacer
    from dynosim.cluster.rank_placer import RankPlacer
    from dynosim.cluster.router_placer import RouterPlacer

LAST_MS: Final = sys.float_info.max  # any event comes before

# Ours are named beside the protocols, so that a compiler calls them directly.
AnyStation = Engine | LockStep | Transfers | TierStation | TierLinks | Station
RouterFault: TypeAlias = "tuple[RouterPlacer, int]"  # a fault of events, and its number there
AnyPlacer: TypeAlias = "LoadPlacer | LonePlacer | PoolPlacers | RankPlacer | RouterPlacer | Placer"


class Cluster:
    """Workers, somebody who places requests on them, and a load."""

    def __init__(
        self,
        requests: Requests,
        *,
        launcher: Launcher,
        placer: AnyPlacer,
        load: Arrivals,
        journal: Journal,
        stores: TierStores,
        handoffs: Handoffs | None = None,
        turnaround_ms: float = 0.0,
        patience: Patience | None = None,
        migration_limit: int | None = None,
        generations: Generations | None = None,
        lobby: Lobby | None = None,
        frontend: StagedLoad | None = None,
    ) -> None:
        """`turnaround_ms` is from a request's end until a request it causes can be placed.
        `patience` is that of the clients; without it they wait for ever. A request that has lost
        its worker more than `migration_limit` times fails; None: it always moves on. Requests keep
        to one of the `generations` of workers, or to none in particular. In the `lobby` requests
        wait while there is no worker for them; without it they are refused then. `frontend` is the
        load, if it has stages of a frontend.

        `handoffs` take requests from prefill to decode workers, whom `placer` knows as
        `PoolPlacers`; without them a request is over when it leaves a worker.
        """
        self.now_ms = 0.0
        self.generations = generations
        self.workers: list[Worker] = []  # by worker id, also those that have gone
        self._requests = requests
        self._launcher = launcher
        self._placer = placer
        self._load = load
        self._frontend = frontend
        self._journal = journal
        self._turnaround_ms = turnaround_ms
        self._stations: list[AnyStation] = []
        self._workers_at: list[Worker | None] = []  # by station; None: not of one worker alone
        self._ranks_at: dict[int, list[Worker]] = {}  # by station, of ranks in lock step
        self._lock_steps: list[LockStep] = []  # all there have been
        self._handoffs = handoffs
        self._patience = patience
        self._migration_limit = migration_limit
        self._lobby = lobby
        self._num_ended = 0
        self._num_queued = 0  # in the router
        # Requests that have lost their worker and look for another, with the time of their last
        # token.
        self._moved: dict[int, tuple[Sequence, float]] = {}
        self._draining: list[Worker] = []
        self._passed_to: list[int] = []  # stations that took what left others, in this instant
        self._touched: list[int] = []  # stations with news in the current instant
        # Heap of (time, station). The last entry, of no station, spares the loop to ask whether
        # there is one: it lies behind all that can happen.
        self._ends: list[tuple[float, int]] = [(NEVER, -1)]
        self._stores = stores
        self._tier_links = TierLinks()
        self._tier_links_id = -1  # its station; -1: nobody needs them
        self._tier_links_end_ms = NEVER
        self._tiers_at: dict[int, TierStation] = {}  # by station
        self._tiers_of: dict[int, TierStation] = {}  # by the station of the worker's engine
        self._links_end_ms = NEVER  # when to come back to the links
        if handoffs is not None:  # the first station: what arrives does so before steps end
            self._links_id = self.add_station(handoffs.transfers)

    # ---- time ----------------------------------------------------------------------------------

    @property
    def num_ended(self) -> int:
        """Requests that finished, failed, were rejected or given up, or will never be sent."""
        return self._num_ended

    @property
    def num_requests(self) -> int:
        """All of the run, be they still to come."""
        return len(self._requests)

    @property
    def num_queued(self) -> int:
        """Requests that wait in a router, or for a worker to come."""
        return self._num_queued + self.num_in_lobby

    @property
    def num_in_lobby(self) -> int:
        """Of them, those that wait for a worker to come."""
        return 0 if self._lobby is None else len(self._lobby)

    @property
    def has_unended(self) -> bool:
        """Whether there are requests that have not ended."""
        return self._num_ended < self.num_requests

    def follow(self, load: Arrivals, placer: AnyPlacer) -> None:
        """From the start, with this load alone; what has not ended by now goes on where it was."""
        self.now_ms = 0.0
        self._load = load
        self._placer = placer

    def next_ms(self) -> float:
        """Time of the next event; infinity when nothing is left to happen."""
        ends = (station.next_ms for station in self._stations)
        give_up_ms = NEVER if self._patience is None else self._patience.next_ms()
        next_ms = min(self._load.next_ms, self._placer.next_ms, give_up_ms)
        return min(next_ms, min(ends, default=NEVER))

    def run_until(self, until_ms: float) -> None:
        """Process every event before or at `until_ms`; in an instant clients give up first."""
        patience, load = self._patience, self._load
        while patience is not None:
            give_up_ms = patience.next_ms()
            # While nobody waits, the next thing to happen is that some client begins to.
            next_ms = load.next_ms if give_up_ms == NEVER else give_up_ms
            if next_ms > until_ms or next_ms == NEVER:
                break
            if give_up_ms == NEVER:
                self._process_until(next_ms)
                continue
            self._process_until(instant_start(instant_start(give_up_ms)))
            if patience.next_ms() != give_up_ms:
                continue  # it has ended meanwhile
            now_ms = max(give_up_ms, self.now_ms)
            self._give_up_due(patience, now_ms)
            self._process_until(now_ms)
            self._go_on(now_ms)
        self._process_until(until_ms)

    def _process_until(self, until_ms: float) -> None:  # noqa: C901
        """Process every event before or at `until_ms` that is no client's giving up.

        The one hot loop, hence one function: it runs once per scheduling event.
        """
        ends = self._ends
        load = self._load
        stations, workers_at = self._stations, self._workers_at
        placer = self._placer
        hears_late = placer.hears_late
        touched, handoffs = self._touched, self._handoffs
        until_ms = min(instant_end(until_ms), LAST_MS)
        while True:
            end_ms, station_id = ends[0]
            while end_ms != NEVER:
                station = stations[station_id]
                if station.next_ms == end_ms:
                    break
                heappop(ends)  # the run was cut short since
                end_ms, station_id = ends[0]
            now_ms = end_ms
            if load.next_ms < now_ms:
                now_ms = load.next_ms
            if hears_late and placer.next_ms < now_ms:
                now_ms = placer.next_ms
            if now_ms > until_ms:
                return
            instant_ms = now_ms + TOLERANCE_MS + RELATIVE_TOLERANCE * now_ms  # instant_end
            if now_ms < self.now_ms:
                now_ms = self.now_ms  # rounding turns no clock back
            while end_ms <= instant_ms:
                heappop(ends)
                station = stations[station_id]
                if station.next_ms == end_ms:
                    touched.append(station_id)
                    if end_ms > now_ms:
                        now_ms = end_ms
                end_ms, station_id = ends[0]
            if len(touched) > 1:
                touched.sort()
            for station_id in touched:
                station = stations[station_id]
                end_ms = station.next_ms
                if end_ms <= instant_ms:  # told twice, it ends once
                    finished = station.complete(end_ms)
                    worker = workers_at[station_id]
                    if worker is not None:
                        placer.receive(worker, finished, now_ms)
                        if handoffs is not None:
                            finished = self._hand_over(worker, finished, now_ms)
                    elif station_id in self._ranks_at:
                        self._receive_ranks(self._ranks_at[station_id], finished, now_ms)
                    elif station_id in self._tiers_at:
                        self._report_copies(self._tiers_at[station_id], now_ms)
                    elif station_id == self._tier_links_id:
                        self._take_onboarded(now_ms)
                    elif handoffs is not None:
                        handoffs.take_arrived(self, now_ms)
                        self._links_end_ms = NEVER
                        self._await_links(handoffs)
                    if finished:
                        self._note_ends(finished, now_ms)
                    elif self._draining:
                        self._let_go(now_ms)
            if handoffs is not None and (handoffs.has_news or self._passed_to):
                self._settle_handoffs(now_ms)
            elif self._passed_to:
                self._note_passed_on(now_ms)
                touched.sort()
            if self._num_queued or (hears_late and placer.next_ms <= instant_ms):
                self._release(now_ms)
            while load.next_ms <= instant_ms:
                now_ms = self._place_all(instant_ms, now_ms)
            self.now_ms = now_ms
            while ends[0][0] <= instant_ms:
                end_ms, station_id = ends[0]
                if stations[station_id].next_ms != end_ms:
                    heappop(ends)
                elif workers_at[station_id] is not None:
                    break  # what came has cut a run off that ends now: all start together
                else:
                    self._start_touched(now_ms)
                    break
            else:
                self._start_touched(now_ms)

    def _receive_ranks(self, ranks: list[Worker], finished: List[Sequence], now_ms: float) -> None:
        """Have the placer take note of a step that ranks have ended together."""
        worker_id = self._journal.worker_id
        for rank in ranks:
            mine = [one for one in finished if worker_id[one.index] == rank.worker_id]
            self._placer.receive(rank, mine, now_ms)

    def _note_ends(self, finished: List[Sequence], now_ms: float) -> None:
        self._num_ended += len(finished)
        if self._load.reacts:
            for sequence in finished:
                self._load.on_end(sequence.index, now_ms + self._turnaround_ms)
        if self._draining:
            self._let_go(now_ms)

    # ---- tiers ---------------------------------------------------------------------------------

    def _report_copies(self, tiers: TierStation, now_ms: float) -> None:
        """A worker hears of copies that have ended; so does who waits for what others store."""
        self.has_news(tiers.worker, tiers.report(now_ms))
        self._await_copies(tiers, now_ms)
        if tiers.is_shared:
            self._wake_sharers(tiers.worker)

    def _wake_sharers(self, worker: Worker) -> None:
        """Who waits for what comes to the tier that a worker shares asks for it again."""
        for other in self._tiers_at.values():
            engine = other.worker.engine
            if (
                other.worker.nearest_tier is worker.nearest_tier
                and engine.next_ms == NEVER
                and engine.core.awaits_copies
            ):
                self._passed_to.append(other.worker.station_id)

    def _lose_tiers(self, worker: Worker, now_ms: float) -> None:
        """A worker is gone, and so are its copies and what it alone held, if it has tiers."""
        tiers = self._tiers_of.pop(worker.station_id, None)
        if tiers is None:
            return
        del self._tiers_at[tiers.station_id]
        tiers.next_ms = NEVER
        self._tier_links.drop(worker, now_ms)
        self._await_tier_links()
        self._stores.leave(worker)
        if tiers.is_shared:
            self._wake_sharers(worker)

    def _take_onboarded(self, now_ms: float) -> None:
        """Workers hear of loads that have come over links."""
        links = self._tier_links
        for worker, job in links.arrived:
            self.has_news(worker, self._tiers_of[worker.station_id].loaded(job, now_ms))
        links.arrived.clear()
        self._tier_links_end_ms = NEVER
        for tiers in self._tiers_at.values():  # what has arrived may go on to a tier further on
            if tiers.beyond.writes:
                tiers.give_on(links, now_ms)
        self._await_tier_links()

    def _await_tier_links(self) -> None:
        end_ms = self._tier_links.next_ms
        if end_ms != self._tier_links_end_ms:
            self._tier_links_end_ms = end_ms
            if end_ms != NEVER:
                heappush(self._ends, (end_ms, self._tier_links_id))

    def _await_copies(self, tiers: TierStation, now_ms: float) -> None:
        """Come back when the next copy ends that matters."""
        if self._tier_links_id >= 0:
            tiers.give_on(self._tier_links, now_ms)
            self._await_tier_links()
        next_ms = tiers.look_ahead()
        if next_ms != tiers.told_ms:
            tiers.told_ms = next_ms
            if next_ms != NEVER:
                heappush(self._ends, (next_ms, tiers.station_id))

    def _end_prefetches(self, worker: Worker, now_ms: float) -> None:
        """Note which of a worker's prefetches are over."""
        ended = worker.engine.core.take_prefetched()
        if not ended:
            return
        journal = self._journal
        for sequence in ended:
            journal.status[sequence.index] = int(RequestStatus.PREFETCHED)
            journal.finish_ms[sequence.index] = now_ms
        self._placer.receive(worker, [], now_ms)  # it hears of what is cached now
        self._note_ends(ended, now_ms)

    # ---- handing over --------------------------------------------------------------------------

    def _hand_over(self, worker: Worker, finished: list[Sequence], now_ms: float) -> list[Sequence]:
        """Pass on what a prefill worker has computed; returns the requests that are over."""
        handoffs = self._handoffs
        assert handoffs is not None
        if worker.is_prefill:
            return handoffs.prefilled(self, worker, finished, now_ms)
        for sequence in finished:
            handoffs.ended(sequence.index)
        if worker.engine.failed:
            self.note_failed(worker, now_ms)
        return finished

    def _settle_handoffs(self, now_ms: float) -> None:
        """Once all ends of an instant are over: do what is due, and who got something may start."""
        handoffs = self._handoffs
        assert handoffs is not None
        handoffs.settle(self, now_ms)
        self._await_links(handoffs)
        self._note_passed_on(now_ms)
        self._touched.sort()

    def _note_passed_on(self, now_ms: float) -> None:
        """Who got what others left may start; who has nothing left but had to drain goes."""
        self._touched += self._passed_to
        self._passed_to.clear()
        if self._draining:
            self._let_go(now_ms)

    def _await_links(self, handoffs: Handoffs) -> None:
        """Come back when the next transfer arrives."""
        end_ms = handoffs.transfers.next_ms
        if end_ms != self._links_end_ms:
            self._links_end_ms = end_ms
            if end_ms != NEVER:
                heappush(self._ends, (end_ms, self._links_id))

    def leave_queue(self, index: int, *, at_decode: bool, now_ms: float) -> None:
        """Nobody waits any more for a request that waits in a router."""
        if self._lobby is not None and self._lobby.leave(index):
            return
        placer = self._placer
        assert isinstance(placer, PoolPlacers)
        self._num_queued -= 1
        placer.give_up_queued(index, at_decode=at_decode, now_ms=now_ms)

    def drop(self, worker: Worker, sequence: Sequence, now_ms: float) -> None:
        """Nobody waits any more for what a worker has of a request."""
        self._placer.give_up(sequence.index, worker, now_ms)
        if not worker.is_hung:
            if not worker.is_prefill:
                self._journal.leaving.add(sequence.index)
            self.has_news(worker, worker.engine.give_up(sequence, now_ms))

    def tell_loaded(
        self, worker: Worker, sequence: Sequence, num_valid_tokens: int, now_ms: float
    ) -> None:
        """KV that a worker loads has come, or will not; one that hangs does not hear of it."""
        if not worker.is_hung:
            self.has_news(worker, worker.engine.loaded(sequence, now_ms, num_valid_tokens))

    def tell_sent(self, worker: Worker, sequence: Sequence, now_ms: float) -> None:
        """Nobody needs the KV that a worker holds; one that hangs does not hear of it."""
        if not worker.is_hung:
            self.has_news(worker, worker.engine.sent(sequence, now_ms))

    def has_news(self, worker: Worker, has_moved: bool) -> None:
        """A worker's engine was told something: its end may have moved, or it may start now."""
        engine = worker.engine
        if has_moved:
            heappush(self._ends, (engine.next_ms, worker.station_id))
        elif engine.next_ms == NEVER:
            self._passed_to.append(worker.station_id)

    def note_failed(self, worker: Worker, now_ms: float) -> None:
        """End the requests whose KV did not come to a worker that will not compute it itself."""
        failed = worker.engine.failed
        for sequence in failed:
            index = sequence.index
            self._placer.give_up(index, worker, now_ms)
            self._fail(index, "the KV of its prompt did not arrive", now_ms)
        failed.clear()

    def _fail(self, index: int, reason: str, now_ms: float) -> None:
        """End a request that somebody has begun to serve."""
        self._num_ended += 1
        self._journal.status[index] = int(RequestStatus.FAILED)
        self._journal.errors[index] = reason
        self._journal.refused_ms[index] = now_ms
        if self._handoffs is not None:
            self._handoffs.ended(index)
        if self._load.reacts:
            self._load.on_end(index, now_ms + self._turnaround_ms)

    def wanted_tokens(self, index: int) -> int:
        """Tokens that a request will produce."""
        return self._requests.wanted_tokens(index)

    def place_next(self, passage: Passage, duty: Duty, now_ms: float) -> None:
        """Have a request placed that goes on, or begins anew."""
        index, placer, handoffs = passage.index, self._placer, self._handoffs
        assert isinstance(placer, PoolPlacers) and handoffs is not None
        num_tokens = self._requests.input_tokens[index] + passage.tokens
        priority = self._requests.priority(index)
        try:
            constraints = handoffs.constraints(passage, duty)
            is_prefill = duty is PLACE_PREFILL
            if self.generations is not None:
                kept = self._kept_generation(passage, is_prefill=is_prefill)
                constraints = _all_of(kept, constraints)
            worker_id = placer.place_next(
                index, num_tokens, priority, now_ms, constraints, is_prefill=is_prefill
            )
        except RequestRefusedError as error:
            self._refuse(index, error, now_ms)
            return
        if worker_id == QUEUED:
            self._num_queued += 1
        else:
            self._dispatch(index, worker_id, now_ms)

    def _kept_generation(self, passage: Passage, *, is_prefill: bool) -> Constraints | None:
        """The generation of workers that a request keeps to, or with which it begins."""
        assert self.generations is not None
        if passage.source is None and passage.target is None:
            return self.generations.choose(passage.index)
        return self.generations.stay(passage.index, "prefill" if is_prefill else "decode")

    # ---- placing -------------------------------------------------------------------------------

    def _place_all(self, instant_ms: float, now_ms: float) -> float:
        """Have what arrives by the end of an instant placed; returns the time by then.

        Arrivals that ends of requests bring about come in the order of the trace: their times
        differ by rounding only.
        """
        load = self._load
        input_tokens, max_model_len = self._requests.input_tokens, self._requests.max_model_len
        arrivals: list[int] = []
        while load.next_ms <= instant_ms:
            arrival_ms = load.next_ms
            if arrival_ms > now_ms:
                now_ms = arrival_ms
            index = load.pop()
            if self._frontend is not None:
                arrival_ms = self._frontend.came_ms
            self._journal.arrival_ms[index] = arrival_ms
            if self._journal.arrived is not None and index not in self._requests.prefetches:
                self._journal.arrived.append(index)
            if self._patience is not None:
                self._patience.arrived(index)
            arrivals.append(index)
        if load.reacts and len(arrivals) > 1:
            arrivals.sort()
        for index in arrivals:
            num_tokens = input_tokens[index]
            if num_tokens < max_model_len:
                self._place(index, num_tokens, now_ms)
            else:  # what vLLM says of a prompt that fills the context
                reason = f"prompt of {num_tokens} tokens >= max_model_len {max_model_len}"
                self._reject(index, reason, now_ms)
        self._touched.sort()
        return now_ms

    def _place(self, index: int, num_tokens: int, now_ms: float) -> None:
        """Have a request with so many known tokens placed."""
        handoffs = None if index in self._requests.prefetches else self._handoffs
        if handoffs is not None:
            passage, duty = handoffs.arrives(index, num_tokens, self._placer, now_ms)
            self.place_next(passage, duty, now_ms)
            return
        try:
            priority = self._requests.priority(index)
            if self.generations is None or self._handoffs is not None:
                worker_id = self._placer.place(index, num_tokens, priority, now_ms)
            else:
                constraints = self.generations.choose(index)
                router = self._frontends()
                assert not isinstance(router, PoolPlacers)
                worker_id = router.place(index, num_tokens, priority, now_ms, constraints)
        except RequestRefusedError as error:
            self._refuse(index, error, now_ms)
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
                self._refuse(index, error, now_ms)
        self._touched.sort()

    def _dispatch(self, index: int, worker_id: int, now_ms: float) -> None:
        """Hand a request to a worker."""
        journal = self._journal
        journal.worker_id[index] = worker_id
        if self._handoffs is not None and index not in self._requests.prefetches:
            sequence = self._next_sequence(self._handoffs, index, self.workers[worker_id], now_ms)
        elif self._moved and index in self._moved:
            sequence, last_token_ms = self._moved.pop(index)
            journal.migrations[index] = journal.migrations.get(index, 0) + 1
            if sequence.generated_tokens:
                self.workers[worker_id].token_log.moved_in(sequence, last_token_ms)
        else:
            sequence = self._requests.sequence(index, now_ms)
            if now_ms != journal.arrival_ms[index]:
                journal.dispatch_ms[index] = now_ms
        if self._patience is not None:
            self._patience.placed(sequence)
        worker = self.workers[worker_id]
        if sequence.is_prefetch:  # it computes nothing: to whoever places requests it is no load
            self._placer.discount(index, worker, now_ms)
        if worker.engine.add(sequence, now_ms):
            heappush(self._ends, (worker.engine.next_ms, worker.station_id))
        self._touched.append(worker.station_id)

    def _next_sequence(
        self, handoffs: Handoffs, index: int, worker: Worker, now_ms: float
    ) -> Sequence:
        """What a worker of a pool gets of a request: its prompt alone, or all, but KV to come."""
        journal, requests = self._journal, self._requests
        passage = handoffs.passage_of(index)
        first = passage.prefill
        if first is None:
            sequence = requests.sequence(index, now_ms)
        else:
            sequence = requests.again(first, now_ms)
        if journal.preemptions:
            sequence.preemptions = journal.preemptions.get(index, 0)
        handoffs.dispatched(passage, worker, sequence)
        if worker.is_prefill:
            sequence.output_tokens = 1
            sequence.is_sent = True
        else:
            sequence.generated_tokens = passage.tokens
            phase = handoffs.flow.phase_of(index)
            if phase is not LOCAL:
                sequence.remote_tokens = sequence.prompt_tokens
                sequence.decodes_last = True  # a query of one token, as any decode
            if passage.tokens:
                worker.token_log.moved_in(sequence, passage.last_token_ms)
            elif phase is PROMISING and handoffs.shows_prefill_tokens:
                sequence.generated_tokens = 1  # it will have come by the time that this one goes on
        if not passage.is_dispatched and now_ms != journal.arrival_ms[index]:
            journal.dispatch_ms[index] = now_ms
        passage.is_dispatched = True
        return sequence

    def _refuse(self, index: int, error: RequestRefusedError, now_ms: float) -> None:
        """A router takes a request not, or no more; it may be on its way from pool to pool."""
        if index in self._requests.prefetches:  # no worker has to come for it
            self._reject(index, f"HTTP {error.http_status}: {error}", now_ms)
            return
        if self._lobby is not None and self._lobby.takes(index, self.workers, self._handoffs):
            return
        if self._handoffs is not None:
            self._handoffs.let_go(self, index, now_ms)
            self._note_passed_on(now_ms)
        self._reject(index, f"HTTP {error.http_status}: {error}", now_ms)

    def _reject(self, index: int, reason: str, now_ms: float) -> None:
        """End a request that nobody takes: rejected, or failed if it had been placed before."""
        self._num_ended += 1
        status = RequestStatus.REJECTED
        if self._moved.pop(index, None) is not None:
            status = RequestStatus.FAILED
        if self._handoffs is not None and self._handoffs.ended(index):
            status = RequestStatus.FAILED
        self._journal.status[index] = int(status)
        self._journal.errors[index] = reason
        self._journal.refused_ms[index] = now_ms
        if self._load.reacts:
            self._load.on_end(index, now_ms + self._turnaround_ms)

    def _give_up_due(self, patience: Patience, now_ms: float) -> None:
        """All clients whose time is up in this instant give up."""
        instant_ms = instant_end(now_ms)
        while patience.next_ms() <= instant_ms:
            index, sequence = patience.pop()
            self._give_up(index, sequence, now_ms)

    def _give_up(self, index: int, sequence: Sequence | None, now_ms: float) -> None:
        """A client waits no more."""
        self._journal.gave_up_ms[index] = now_ms
        self._withdraw(index, sequence, RequestStatus.TIMED_OUT, now_ms)
        if self._load.reacts:
            for later in self._load.on_give_up(index, now_ms + self._turnaround_ms):
                self._journal.status[later] = int(RequestStatus.NOT_SENT)
                self._num_ended += 1

    def _withdraw(
        self, index: int, sequence: Sequence | None, status: RequestStatus, now_ms: float
    ) -> None:
        """End a request for which nobody waits: it leaves the router, or its worker after its step.

        `sequence` is None if it has never been placed.
        """
        self._num_ended += 1
        self._journal.status[index] = int(status)
        if self._handoffs is not None and index not in self._requests.prefetches:
            self._give_up_passage(index, now_ms)
        elif self._lobby is not None and self._lobby.leave(index):
            self._moved.pop(index, None)
        elif sequence is None or self._moved.pop(index, None) is not None:
            self._num_queued -= 1
            self._placer.give_up(index, None, now_ms)
        else:
            worker = self.workers[self._journal.worker_id[index]]
            if not sequence.is_prefetch:
                self._placer.give_up(index, worker, now_ms)
            if worker.is_hung:
                return
            self._journal.leaving.add(index)
            if worker.engine.give_up(sequence, now_ms):
                heappush(self._ends, (worker.engine.next_ms, worker.station_id))
            elif worker.engine.next_ms == NEVER:
                self._touched.append(worker.station_id)
                if self._draining:
                    self._let_go(now_ms)

    def _give_up_passage(self, index: int, now_ms: float) -> None:
        """The same where requests go from pool to pool: whoever has it lets it go."""
        handoffs = self._handoffs
        assert handoffs is not None
        handoffs.give_up(self, index, now_ms)
        self._note_passed_on(now_ms)

    # ---- workers -------------------------------------------------------------------------------

    def launch(self, pool: PoolSpec, now_ms: float) -> Worker:
        """A new worker, or the first of its ranks; it serves nobody before `make_ready`."""
        ranks, group = self._launcher.launch(WorkerId(len(self.workers)), pool, now_ms)
        self.workers += ranks
        if group is None:
            for worker in ranks:
                worker.station_id = self.add_station(worker.engine, worker)
                self._add_tiers(worker)
        else:
            station_id = self.add_station(group)
            self._lock_steps.append(group)
            self._ranks_at[station_id] = ranks
            for worker in ranks:
                worker.station_id = station_id
        return ranks[0]

    def _add_tiers(self, worker: Worker) -> None:
        """Run a worker's copies to and from its tiers, if it has any."""
        lanes, columns, spec = worker.engine.lanes, self._journal.tiers, worker.pool.tiers
        if lanes is None:
            return
        assert columns is not None and spec is not None
        tiers = TierStation(worker, lanes, self._stores.equip(worker, spec), columns)
        if spec.goes_elsewhere and self._tier_links_id < 0:
            self._tier_links_id = self.add_station(self._tier_links)
        tiers.station_id = self.add_station(tiers)
        self._tiers_at[tiers.station_id] = self._tiers_of[worker.station_id] = tiers

    def add_station(self, station: AnyStation, worker: Worker | None = None) -> int:
        """Run a station from now on; returns the number that a flow calls it by."""
        self._stations.append(station)
        self._workers_at.append(worker)
        return len(self._stations) - 1

    def make_ready(self, worker: Worker, now_ms: float) -> None:
        """A worker has come up: it may get requests, also those that wait in the router."""
        for rank in self._ranks_of(worker):
            rank.move(WorkerEvent.BECAME_READY, now_ms)
            self._placer.join(rank, now_ms)
            if self.generations is not None:
                self.generations.joined(rank)
        if self.num_in_lobby:
            self._call_in(now_ms)
        self._go_on(now_ms)

    def _call_in(self, now_ms: float) -> None:
        """Place those who waited for a worker, first come first."""
        assert self._lobby is not None
        for index in self._lobby.empty():
            if self._handoffs is not None:
                passage = self._handoffs.passage_of(index)
                self.place_next(passage, self._handoffs.placing(index), now_ms)
            elif index in self._moved:
                self._place(index, self._moved[index][0].known_tokens, now_ms)
            else:
                self._place(index, self._requests.input_tokens[index], now_ms)

    def drain(self, worker: Worker, now_ms: float) -> None:
        """Place nothing more on a worker; it goes once what it has is done.

        Raises: ValueError if it has gone or failed.
        """
        was_ready = worker.phase is Phase.READY
        for rank in self._ranks_of(worker):
            rank.move(WorkerEvent.TOLD_TO_DRAIN, now_ms)
            if was_ready:
                self._leave(rank, now_ms)
                self._draining.append(rank)
        if was_ready:
            self._let_go(now_ms)
            self._go_on(now_ms)

    def fail(self, worker: Worker, now_ms: float) -> None:
        """A worker dies; what it had in flight is placed anew, with the tokens it has got.

        Raises: ValueError if it has gone or failed already.
        """
        was_ready = worker.phase is Phase.READY
        lost: list[tuple[Sequence, int]] = []
        for rank in self._ranks_of(worker):
            rank.move(WorkerEvent.DIED, now_ms)
            self._lose_tiers(rank, now_ms)
            had = rank.stop(now_ms)
            lost += [one for one in had if self._is_waited_for(one[0].index)]
            self._placer.receive(rank, [], now_ms)
            if was_ready:
                self._leave(rank, now_ms)
            elif rank in self._draining:
                self._draining.remove(rank)
        station = self._stations[worker.station_id]
        if isinstance(station, LockStep):
            station.halt()
        if self._handoffs is not None:
            self._lose(worker, lost, now_ms)
            self._go_on(now_ms)
            return
        self._placer.forget([sequence.index for sequence, _ in lost if not sequence.is_prefetch])
        for sequence, num_tokens in sorted(lost, key=_by_index):
            had_it = self.workers[self._journal.worker_id[sequence.index]]
            self._move(had_it, sequence, num_tokens, now_ms)
        self._go_on(now_ms)

    def _leave(self, worker: Worker, now_ms: float) -> None:
        """A worker takes no more requests."""
        self._placer.leave(worker, now_ms)
        if self.generations is not None:
            self.generations.left(worker)

    def has_unfinished(self, generation: int) -> bool:
        """Whether requests of a generation have not ended, where generations do not mix."""
        generations = self.generations
        return generations is not None and generations.has_unfinished(
            generation, self._journal.status
        )

    def hang(self, worker: Worker, now_ms: float) -> None:
        """A worker does nothing any more; nobody knows, so it goes on getting requests.

        Raises: ValueError if it takes no requests, or has hung already.
        """
        if worker.phase is not Phase.READY or worker.is_hung:
            state = "hung" if worker.is_hung else worker.phase.value
            raise ValueError(f"worker {worker.worker_id} is {state}: it cannot hang")
        for rank in self._ranks_of(worker):
            self._lose_tiers(rank, now_ms)
            rank.hang(now_ms)
            self._stations[rank.station_id] = HUNG
            self._placer.receive(rank, [], now_ms)
        self._go_on(now_ms)

    def repace(self, worker: Worker, times: StepTimeModel | None, now_ms: float) -> None:
        """Let a worker's steps take other times from its next one; None: its usual ones.

        Raises: ValueError if it has gone, hung or failed.
        """
        if not worker.is_alive or worker.is_hung:
            raise ValueError(f"worker {worker.worker_id} is gone: its steps take no time")
        station, pool = self._stations[worker.station_id], worker.pool
        if isinstance(station, LockStep):
            station.repace(LockStepTimes(times or pool.times, pool.ranks.padded_up_to))
            return
        for rank in self._ranks_of(worker):
            self.has_news(rank, rank.engine.repace(times, now_ms))
        self._go_on(now_ms)

    def cut_links(self, now_ms: float) -> None:
        """Nothing gets from prefill to decode workers until `mend_links`.

        Raises: ValueError if there are no such pools.
        """
        if self._handoffs is None:
            raise ValueError("there are no prefill and decode pools to be cut off from each other")
        self._handoffs.cut()
        self._settle_handoffs(now_ms)
        self._go_on(now_ms)

    def mend_links(self) -> None:
        """What prefill workers have computed gets to decode workers again."""
        if self._handoffs is not None:
            self._handoffs.is_cut = False

    def lose_frontend(self, number: int, now_ms: float) -> None:
        """A frontend dies, and with it the streams of its requests; others serve what comes.

        Raises: ValueError if there is no such frontend, or no other.
        """
        lost = self._frontends().lose_frontend(number)
        placed = {
            one.index: one
            for worker in self.workers
            if worker.is_alive
            for one, _ in worker.engine.core.unfinished()
        }
        placed |= {index: sequence for index, (sequence, _) in self._moved.items()}
        for index in lost:
            self._withdraw(index, placed.get(index), RequestStatus.FAILED, now_ms)
            self._journal.errors[index] = f"frontend {number} was lost"
            self._journal.refused_ms[index] = now_ms
            if self._load.reacts:
                self._load.on_end(index, now_ms + self._turnaround_ms)
        self._go_on(now_ms)

    def restore_frontend(self, number: int) -> None:
        """A frontend is back; it learns from its peers what is cached where.

        Raises: ValueError if it was not lost.
        """
        self._frontends().restore_frontend(number)

    def begin_event_fault(self, fault: EventFault, now_ms: float) -> "list[RouterFault]":
        """What some workers publish is lost or late; returns what `end_event_fault` needs.

        Raises: ValueError if no router hears of events, or if they have no numbers.
        """
        # Here, or every run would load the routers.
        from dynosim.cluster.router_placer import RouterPlacer

        placer = self._placer
        routers = [placer] if isinstance(placer, RouterPlacer) else []
        if isinstance(placer, PoolPlacers):
            routers = placer.routers
        hearing = [router for router in routers if router.events_may_worsen]
        if not hearing:
            raise ValueError("no router here gets KV events with numbers, to notice what is lost")
        return [(router, router.begin_event_fault(fault, now_ms)) for router in hearing]

    def end_event_fault(self, begun: "list[RouterFault]", now_ms: float) -> None:
        """What workers publish from now on arrives as usual."""
        for router, number in begun:
            router.end_event_fault(number, now_ms)

    def _frontends(self) -> "RouterPlacer | PoolPlacers":
        """Whoever places with frontends. Raises: ValueError if load alone decides."""
        # Here, or every run would load the routers.
        from dynosim.cluster.router_placer import RouterPlacer

        if not isinstance(self._placer, (RouterPlacer, PoolPlacers)):
            raise ValueError("there is but one frontend, and nobody to take its place")
        return self._placer

    def _lose(self, worker: Worker, lost: list[tuple[Sequence, int]], now_ms: float) -> None:
        """A worker of a pool is gone: its requests, and those whose KV it held, go on elsewhere."""
        handoffs, placer, journal = self._handoffs, self._placer, self._journal
        assert handoffs is not None and isinstance(placer, PoolPlacers)
        ahead = [one for one in lost if one[0].is_prefetch]
        lost = [one for one in lost if not one[0].is_prefetch]
        placer.forget_of(worker, [sequence.index for sequence, _ in lost])
        for sequence, num_tokens in lost:
            if worker.is_decode:
                last_ms = worker.token_log.last_token_ms(sequence, worker.engine.last_delivery_ms)
                handoffs.note_progress(sequence.index, num_tokens, last_ms)
        for passage in handoffs.worker_lost(self, worker, now_ms):
            index = passage.index
            if self._has_moved_enough(index):
                handoffs.abandon(self, passage, now_ms)
                self._fail(index, "lost its worker more often than migration_limit allows", now_ms)
            else:
                journal.migrations[index] = journal.migrations.get(index, 0) + 1
        for sequence, num_tokens in ahead:
            self._move(worker, sequence, num_tokens, now_ms)
        self._settle_handoffs(now_ms)

    def _ranks_of(self, worker: Worker) -> list[Worker]:
        """All ranks of the one that a worker belongs to, in order."""
        return self.workers[worker.first_id : worker.first_id + worker.pool.ranks.number]

    def _is_waited_for(self, index: int) -> bool:
        """Whether a request that an engine still has is not over: given up, refused or complete."""
        return self._journal.status[index] == int(RequestStatus.UNFINISHED)

    def _move(self, worker: Worker, sequence: Sequence, num_tokens: int, now_ms: float) -> None:
        """Have a request that has lost its worker placed anew."""
        index = sequence.index
        if self._has_moved_enough(index):
            self._fail(index, "lost its worker more often than migration_limit allows", now_ms)
            return
        last_token_ms = worker.token_log.last_token_ms(sequence, worker.engine.last_delivery_ms)
        sequence.restart(num_tokens)
        if isnan(self._journal.scheduled_ms[index]):
            sequence.cached_tokens = -1
            if self._journal.tiers is not None:
                self._journal.tiers.forget(index)
        self._moved[index] = (sequence, last_token_ms)
        self._place(index, sequence.known_tokens, now_ms)

    def _has_moved_enough(self, index: int) -> bool:
        """Whether a request may not be placed anew."""
        limit = self._migration_limit
        return limit is not None and self._journal.migrations.get(index, 0) >= limit

    def _let_go(self, now_ms: float) -> None:
        """Let the draining workers go that have nothing left."""
        for worker in list(self._draining):
            if all([rank.engine.is_done for rank in self._ranks_of(worker)]):
                self._draining.remove(worker)
                worker.move(WorkerEvent.DRAINED, now_ms)
                self._stores.leave(worker)

    def _go_on(self, now_ms: float) -> None:
        """After a change of workers: dispatch what can go now, and start who has work."""
        self.now_ms = max(self.now_ms, now_ms)
        if self._passed_to:
            self._note_passed_on(now_ms)
        if self._num_queued:
            self._release(now_ms)
        self._touched.sort()
        self._start_touched(now_ms)

    def _start_touched(self, now_ms: float) -> None:
        """At the end of an instant: the idle among those with news begin what they have to do."""
        stations, ends, handoffs = self._stations, self._ends, self._handoffs
        tiers_of = self._tiers_of
        has_failed = False
        for station_id in self._touched:
            station = stations[station_id]
            if station.next_ms == NEVER:  # also told twice, it starts once
                station.start(now_ms)
                end_ms = station.next_ms
                if end_ms != NEVER:
                    heappush(ends, (end_ms, station_id))
            if tiers_of and station_id in tiers_of:
                self._await_copies(tiers_of[station_id], now_ms)
                if self._requests.prefetches:
                    self._end_prefetches(tiers_of[station_id].worker, now_ms)
            if handoffs is not None:
                has_failed |= self._heed_loads(handoffs, self._workers_at[station_id], now_ms)
        self._touched.clear()
        if self._draining:  # who had nothing left to begin may have heard the last of its loads
            self._let_go(now_ms)
        if handoffs is not None and (has_failed or handoffs.has_news):
            self._settle_handoffs(now_ms)
            if self._num_queued:  # who is refused leaves room for others
                self._release(now_ms)
            self._start_touched(now_ms)

    def _heed_loads(self, handoffs: Handoffs, worker: Worker | None, now_ms: float) -> bool:
        """Who started may have made room for KV, or have heard of its loss; returns the latter."""
        if worker is None or not worker.is_decode:
            return False
        handoffs.loads_started(worker)
        if not worker.engine.failed:
            return False
        self.note_failed(worker, now_ms)
        return True

    # ---- the load ------------------------------------------------------------------------------

    def hold_load(self) -> None:
        """Let nothing arrive until `release_load`: what is due meanwhile waits outside."""
        self._load.hold()

    def release_load(self, now_ms: float) -> None:
        """Let arrive what was held: it arrived when it was due, so its wait counts."""
        self.now_ms = max(self.now_ms, now_ms)
        self._load.release()

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

    def prefetch_log(self) -> PrefetchLog | None:
        """What was loaded ahead of requests; None where nobody asked for that."""
        if not self._requests.prefetches:
            return None
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


def _by_index(lost: tuple[Sequence, int]) -> int:
    return lost[0].index


def _all_of(first: Constraints | None, second: Constraints | None) -> Constraints | None:
    """What both ask for."""
    if first is None or second is None:
        return first or second
    return both(first, second)
