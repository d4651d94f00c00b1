"""The twin's data plane: workers advanced in virtual time, arrivals placed on them.

Events are ends of steps and runs, arrivals, and news that reach a router late. Order within an
instant (see `dynosim.engine.instant`): all step ends, lowest worker first, then what waited in the
router and can go now, then all arrivals, then the idle workers with work start; so an arrival at a
step's end makes the next step.

Between two instants the control plane may act: workers are launched, become ready, drain, fail.
"""

import sys
from heapq import heappop, heappush
from typing import Final

from dynosim.cluster.agenda import Agenda
from dynosim.cluster.dispatch import Dispatch
from dynosim.cluster.endings import Endings
from dynosim.cluster.event_faults import EventFault
from dynosim.cluster.fleet import Fleet
from dynosim.cluster.generations import Generations
from dynosim.cluster.handoffs import Handoffs
from dynosim.cluster.journal import Journal
from dynosim.cluster.migrants import Migrants
from dynosim.cluster.patience import Patience
from dynosim.cluster.placement import AnyPlacer
from dynosim.cluster.pool import Worker
from dynosim.cluster.router_faults import RouterFault, begin_event_fault, frontends_of
from dynosim.cluster.spec import PoolSpec
from dynosim.cluster.tier_traffic import TierTraffic
from dynosim.engine.instant import RELATIVE_TOLERANCE, TOLERANCE_MS, instant_end, instant_start
from dynosim.engine.sequence import Sequence
from dynosim.records import RequestStatus
from dynosim.timing.model import StepTimeModel
from dynosim.workload.load import NEVER, Arrivals

LAST_MS: Final = sys.float_info.max  # any event comes before
MOVED_ENOUGH: Final = "lost its worker more often than migration_limit allows"


class Cluster:
    """The loop that all parts of a running cluster share, and what can be done to them between."""

    def __init__(
        self,
        *,
        agenda: Agenda,
        fleet: Fleet,
        dispatch: Dispatch,
        endings: Endings,
        migrants: Migrants,
        tiers: TierTraffic,
        journal: Journal,
        handoffs: Handoffs | None = None,
        patience: Patience | None = None,
        generations: Generations | None = None,
    ) -> None:
        """See `dynosim.cluster.assembly`, which makes all of it. `patience` is that of the clients;
        without it they wait for ever. Without `handoffs` a request is over when it leaves a worker.
        """
        self.now_ms = 0.0
        self.fleet = fleet
        self.generations = generations
        self._agenda = agenda
        self._dispatch = dispatch
        self._endings = endings
        self._migrants = migrants
        self._tiers = tiers
        self._journal = journal
        self.handoffs = handoffs
        self._patience = patience

    # ---- how far it is -------------------------------------------------------------------------

    @property
    def workers(self) -> list[Worker]:
        """By worker id, also those that have gone."""
        return self.fleet.workers

    @property
    def num_ended(self) -> int:
        """Requests that finished, failed, were rejected or given up, or will never be sent."""
        return self._endings.number

    @property
    def num_requests(self) -> int:
        """All of the run, be they still to come."""
        return len(self._journal.status)

    @property
    def num_queued(self) -> int:
        """Requests that wait in a router, or for a worker to come."""
        return self._dispatch.num_waiting + self._dispatch.num_in_lobby

    @property
    def num_in_lobby(self) -> int:
        """Of them, those that wait for a worker to come."""
        return self._dispatch.num_in_lobby

    @property
    def has_unended(self) -> bool:
        """Whether there are requests that have not ended."""
        return self.num_ended < self.num_requests

    def has_unfinished(self, generation: int) -> bool:
        """Whether requests of a generation have not ended, where generations do not mix."""
        generations = self.generations
        return generations is not None and generations.has_unfinished(
            generation, self._journal.status
        )

    # ---- time ----------------------------------------------------------------------------------

    def follow(self, load: Arrivals, placer: AnyPlacer) -> None:
        """From the start, with this load alone; what has not ended by now goes on where it was."""
        self.now_ms = 0.0
        self._dispatch.load = load
        self._dispatch.placer = placer

    def next_ms(self) -> float:
        """Time of the next event; infinity when nothing is left to happen."""
        dispatch = self._dispatch
        give_up_ms = NEVER if self._patience is None else self._patience.next_ms()
        next_ms = min(dispatch.load.next_ms, dispatch.placer.next_ms, give_up_ms)
        return min(next_ms, self._agenda.next_ms())

    def run_until(self, until_ms: float) -> None:
        """Process every event before or at `until_ms`; in an instant clients give up first."""
        patience, load = self._patience, self._dispatch.load
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
        agenda, dispatch, fleet = self._agenda, self._dispatch, self.fleet
        ends, stations, touched = agenda.ends, agenda.stations, agenda.touched
        worker_at, passed_to = agenda.worker_at, agenda.passed_to
        load, placer, handoffs = dispatch.load, dispatch.placer, self.handoffs
        hears_late = placer.hears_late
        draining = fleet.draining
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
                    worker = worker_at[station_id]
                    if worker is None:
                        self._heed(station_id, finished, now_ms)
                    else:
                        placer.receive(worker, finished, now_ms)
                        if handoffs is not None:
                            finished = handoffs.left(worker, finished, now_ms)
                    if finished:
                        self._endings.finished(finished, now_ms)
                    if draining:
                        fleet.let_go(now_ms)
            if handoffs is not None and (handoffs.has_news or passed_to):
                self._settle_handoffs(handoffs, now_ms)
            elif passed_to:
                fleet.note_passed_on(now_ms)
                touched.sort()
            if dispatch.num_waiting or (hears_late and placer.next_ms <= instant_ms):
                dispatch.release(now_ms)
            while load.next_ms <= instant_ms:
                now_ms = dispatch.take_arrivals(instant_ms, now_ms)
            self.now_ms = now_ms
            while ends[0][0] <= instant_ms:
                end_ms, station_id = ends[0]
                if stations[station_id].next_ms != end_ms:
                    heappop(ends)
                elif worker_at[station_id] is not None:
                    break  # what came has cut a run off that ends now: all start together
                else:
                    self._start_touched(now_ms)
                    break
            else:
                self._start_touched(now_ms)

    def _heed(self, station_id: int, finished: list[Sequence], now_ms: float) -> None:
        """Something has ended at a station that is not of one worker alone."""
        if self.fleet.has_ranks_at(station_id):
            self.fleet.receive_ranks(station_id, finished, now_ms)
        elif self._tiers.has(station_id):
            self._tiers.ended(station_id, now_ms)
        elif self.handoffs is not None:
            self.handoffs.take_arrived(now_ms)

    def _settle_handoffs(self, handoffs: Handoffs, now_ms: float) -> None:
        """Once all ends of an instant are over: do what is due, and who got something may start."""
        handoffs.settle(self._dispatch, now_ms)
        self.fleet.note_passed_on(now_ms)
        self._agenda.touched.sort()

    def _start_touched(self, now_ms: float) -> None:
        """At the end of an instant: the idle among those with news begin what they have to do."""
        agenda, handoffs = self._agenda, self.handoffs
        stations, ends = agenda.stations, agenda.ends
        has_more = handoffs is not None or self._tiers.is_used
        has_failed = False
        for station_id in agenda.touched:
            station = stations[station_id]
            if station.next_ms == NEVER:  # also told twice, it starts once
                station.start(now_ms)
                end_ms = station.next_ms
                if end_ms != NEVER:
                    heappush(ends, (end_ms, station_id))
            if has_more:
                has_failed |= self._heed_start(station_id, now_ms)
        agenda.touched.clear()
        if self.fleet.draining:  # of these, who had nothing left to begin
            self.fleet.let_go(now_ms)
        if handoffs is not None and (has_failed or handoffs.has_news):
            self._settle_handoffs(handoffs, now_ms)
            if self._dispatch.num_waiting:  # who is refused leaves room for others
                self._dispatch.release(now_ms)
            self._start_touched(now_ms)

    def _heed_start(self, station_id: int, now_ms: float) -> bool:
        """Copies and loads may have begun or ended; returns whether some have failed."""
        worker = self._agenda.worker_at[station_id]
        if worker is None:
            return False
        if self._tiers.is_used:
            self._tiers.look_ahead(station_id, now_ms)
            if self._dispatch.has_prefetches:
                self._dispatch.end_prefetches(worker, now_ms)
        return self.handoffs is not None and self.handoffs.started(worker, now_ms)

    def _go_on(self, now_ms: float) -> None:
        """After a change from outside: hand over what can go now, and start who has work."""
        self.now_ms = max(self.now_ms, now_ms)
        if self._agenda.passed_to:
            self.fleet.note_passed_on(now_ms)
        if self._dispatch.num_waiting:
            self._dispatch.release(now_ms)
        self._agenda.touched.sort()
        self._start_touched(now_ms)

    # ---- clients and their load ----------------------------------------------------------------

    def _give_up_due(self, patience: Patience, now_ms: float) -> None:
        """All clients whose time is up in this instant give up."""
        instant_ms = instant_end(now_ms)
        while patience.next_ms() <= instant_ms:
            index, sequence = patience.pop()
            self._endings.given_up(index, now_ms)
            self._dispatch.withdraw(index, sequence, now_ms)

    def hold_load(self) -> None:
        """Let nothing arrive until `release_load`: what is due meanwhile waits outside."""
        self._dispatch.load.hold()

    def release_load(self, now_ms: float) -> None:
        """Let arrive what was held: it arrived when it was due, so its wait counts."""
        self.now_ms = max(self.now_ms, now_ms)
        self._dispatch.load.release()

    # ---- workers -------------------------------------------------------------------------------

    def launch(self, pool: PoolSpec, now_ms: float) -> Worker:
        """A new worker, or the first of its ranks; it serves nobody before `make_ready`."""
        return self.fleet.launch(pool, now_ms)

    def make_ready(self, worker: Worker, now_ms: float) -> None:
        """A worker has come up: it may get requests, also those that wait for one."""
        self.fleet.make_ready(worker, now_ms)
        self._dispatch.call_in(now_ms)
        self._go_on(now_ms)

    def drain(self, worker: Worker, now_ms: float) -> None:
        """Place nothing more on a worker; it goes once what it has is done.

        Raises: ValueError if it has gone or failed.
        """
        if self.fleet.drain(worker, now_ms):
            self._go_on(now_ms)

    def fail(self, worker: Worker, now_ms: float) -> None:
        """A worker dies; what it had in flight is placed anew, with the tokens it has got.

        Raises: ValueError if it has gone or failed already.
        """
        had = self.fleet.lose(worker, now_ms)
        lost = [one for one in had if self._endings.is_open(one[0].index)]
        requests = [one for one in lost if not one[0].is_prefetch]
        if self.handoffs is None:
            self._dispatch.placer.forget([sequence.index for sequence, _ in requests])
            self._move(lost, now_ms)
        else:
            self._move_between_pools(self.handoffs, worker, requests, now_ms)
            self._move([one for one in lost if one[0].is_prefetch], now_ms)
        self._go_on(now_ms)

    def hang(self, worker: Worker, now_ms: float) -> None:
        """A worker does nothing any more; nobody knows, so it goes on getting requests.

        Raises: ValueError if it takes no requests, or has hung already.
        """
        self.fleet.hang(worker, now_ms)
        self._go_on(now_ms)

    def repace(self, worker: Worker, times: StepTimeModel | None, now_ms: float) -> None:
        """Let a worker's steps take other times from its next one; None: its usual ones.

        Raises: ValueError if it has gone, hung or failed.
        """
        if self.fleet.repace(worker, times, now_ms):
            self._go_on(now_ms)

    # ---- requests that have lost their worker --------------------------------------------------

    def _move(self, lost: list[tuple[Sequence, int]], now_ms: float) -> None:
        """Have requests placed anew, each with the tokens it has got."""
        for sequence, num_tokens in sorted(lost, key=_by_index):
            index = sequence.index
            if self._migrants.may_move(index):
                had_it = self.workers[self._journal.worker_id[index]]
                self._migrants.set_out(had_it, sequence, num_tokens)
                self._dispatch.place(index, sequence.known_tokens, now_ms)
            else:
                self._endings.refused(index, RequestStatus.FAILED, MOVED_ENOUGH, now_ms)

    def _move_between_pools(
        self,
        handoffs: Handoffs,
        worker: Worker,
        lost: list[tuple[Sequence, int]],
        now_ms: float,
    ) -> None:
        """The same for requests of a pool's worker, and those whose KV it held."""
        for passage in handoffs.worker_lost(worker, lost, now_ms):
            index = passage.index
            if self._migrants.may_move(index):
                self._migrants.count(index)
            else:
                handoffs.abandon(self._dispatch, passage, now_ms)
                handoffs.ended(index)
                self._endings.refused(index, RequestStatus.FAILED, MOVED_ENOUGH, now_ms)
        self._settle_handoffs(handoffs, now_ms)

    # ---- links, frontends, events --------------------------------------------------------------

    def cut_links(self, now_ms: float) -> None:
        """Nothing gets from prefill to decode workers until `mend_links`.

        Raises: ValueError if there are no such pools.
        """
        if self.handoffs is None:
            raise ValueError("there are no prefill and decode pools to be cut off from each other")
        self.handoffs.cut()
        self._settle_handoffs(self.handoffs, now_ms)
        self._go_on(now_ms)

    def mend_links(self) -> None:
        """What prefill workers have computed gets to decode workers again."""
        if self.handoffs is not None:
            self.handoffs.is_cut = False

    def lose_frontend(self, number: int, now_ms: float) -> None:
        """A frontend dies, and with it the streams of its requests; others serve what comes.

        Raises: ValueError if there is no such frontend, or no other.
        """
        lost = frontends_of(self._dispatch.placer).lose_frontend(number)
        placed = {
            one.index: one
            for worker in self.workers
            if worker.is_alive
            for one, _ in worker.engine.core.unfinished()
        }
        placed |= {index: sequence for index, (sequence, _) in self._migrants.waiting.items()}
        for index in lost:
            reason = f"frontend {number} was lost"
            self._endings.refused(index, RequestStatus.FAILED, reason, now_ms)
            self._dispatch.withdraw(index, placed.get(index), now_ms)
        self._go_on(now_ms)

    def restore_frontend(self, number: int) -> None:
        """A frontend is back; it learns from its peers what is cached where.

        Raises: ValueError if it was not lost.
        """
        frontends_of(self._dispatch.placer).restore_frontend(number)

    def begin_event_fault(self, fault: EventFault, now_ms: float) -> list[RouterFault]:
        """What some workers publish is lost or late; returns what `end_event_fault` needs.

        Raises: ValueError if no router hears of events, or if they have no numbers.
        """
        return begin_event_fault(self._dispatch.placer, fault, now_ms)


def _by_index(lost: tuple[Sequence, int]) -> int:
    return lost[0].index
