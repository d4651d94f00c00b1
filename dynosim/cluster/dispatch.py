"""The way of a request to a worker: it comes, is placed or waits or is refused, and is handed over.

So are requests that come again: on their way from prefill to decode workers, or to another worker
when theirs is lost.
"""

from heapq import heappush

from dynosim.cluster.agenda import Agenda
from dynosim.cluster.endings import Endings
from dynosim.cluster.fleet import Fleet
from dynosim.cluster.frontend_stages import StagedLoad
from dynosim.cluster.generations import Generations
from dynosim.cluster.handoffs import PLACE_PREFILL, Handoffs
from dynosim.cluster.journal import Journal
from dynosim.cluster.lobby import Lobby
from dynosim.cluster.migrants import Migrants
from dynosim.cluster.passage import Passage
from dynosim.cluster.patience import Patience
from dynosim.cluster.placement import QUEUED, AnyPlacer
from dynosim.cluster.pool import Worker
from dynosim.cluster.pool_placers import PoolPlacers
from dynosim.cluster.requests import Requests
from dynosim.cluster.router_faults import frontends_of
from dynosim.engine.pace import NEVER
from dynosim.engine.sequence import Sequence
from dynosim.records import RequestStatus
from dynosim.router.eligibility import Constraints, both
from dynosim.router.handoff import Duty
from dynosim.router.refusals import RequestRefusedError
from dynosim.workload.load import Arrivals


class Dispatch:
    """Takes requests from the load and brings each to a worker, by way of whoever places them.

    Requests keep to one of the `generations` of workers, or to none in particular. In the `lobby`
    they wait while there is no worker for them; without it they are refused then. `frontend` is the
    load, if it has stages of a frontend. `handoffs` take requests from prefill to decode workers,
    whom `placer` knows as `PoolPlacers`.
    """

    def __init__(
        self,
        requests: Requests,
        *,
        load: Arrivals,
        placer: AnyPlacer,
        agenda: Agenda,
        fleet: Fleet,
        endings: Endings,
        migrants: Migrants,
        journal: Journal,
        handoffs: Handoffs | None,
        generations: Generations | None,
        patience: Patience | None,
        lobby: Lobby | None,
        frontend: StagedLoad | None,
    ) -> None:
        self.load = load
        self.placer = placer
        self.num_waiting = 0  # in the router
        self._requests = requests
        self._agenda = agenda
        self._fleet = fleet
        self._endings = endings
        self._migrants = migrants
        self._journal = journal
        self._handoffs = handoffs
        self._generations = generations
        self._patience = patience
        self._lobby = lobby
        self._frontend = frontend

    @property
    def has_prefetches(self) -> bool:
        """Whether some of the requests only have KV loaded ahead."""
        return bool(self._requests.prefetches)

    @property
    def num_in_lobby(self) -> int:
        """Requests that wait for a worker to come."""
        return 0 if self._lobby is None else len(self._lobby)

    # ---- coming --------------------------------------------------------------------------------

    def take_arrivals(self, instant_ms: float, now_ms: float) -> float:
        """Have what arrives by the end of an instant placed; returns the time by then.

        Arrivals that ends of requests bring about come in the order of the trace: their times
        differ by rounding only.
        """
        load = self.load
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
                self.place(index, num_tokens, now_ms)
            else:  # what vLLM says of a prompt that fills the context
                reason = f"prompt of {num_tokens} tokens >= max_model_len {max_model_len}"
                self._reject(index, reason, now_ms)
        self._agenda.touched.sort()
        return now_ms

    def call_in(self, now_ms: float) -> None:
        """Place those who waited for a worker, first come first."""
        if self._lobby is None:
            return
        for index in self._lobby.empty():
            if self._handoffs is not None:
                passage = self._handoffs.passage_of(index)
                self.place_next(passage, self._handoffs.placing(index), now_ms)
            elif index in self._migrants.waiting:
                self.place(index, self._migrants.waiting[index][0].known_tokens, now_ms)
            else:
                self.place(index, self._requests.input_tokens[index], now_ms)

    # ---- placing -------------------------------------------------------------------------------

    def place(self, index: int, num_tokens: int, now_ms: float) -> None:
        """Have a request with so many known tokens placed."""
        handoffs = self._handoffs_of(index)
        if handoffs is not None:
            passage, duty = handoffs.arrives(index, num_tokens, now_ms)
            self.place_next(passage, duty, now_ms)
            return
        try:
            priority = self._requests.priority(index)
            if self._generations is None or self._handoffs is not None:
                worker_id = self.placer.place(index, num_tokens, priority, now_ms)
            else:
                constraints = self._generations.choose(index)
                router = frontends_of(self.placer)
                assert not isinstance(router, PoolPlacers)
                worker_id = router.place(index, num_tokens, priority, now_ms, constraints)
        except RequestRefusedError as error:
            self._refuse(index, error, now_ms)
            return
        self._take_choice(index, worker_id, now_ms)

    def place_next(self, passage: Passage, duty: Duty, now_ms: float) -> None:
        """Have a request placed that goes on, or begins anew."""
        index, placer, handoffs = passage.index, self.placer, self._handoffs
        assert isinstance(placer, PoolPlacers) and handoffs is not None
        num_tokens = self._requests.input_tokens[index] + passage.tokens
        priority = self._requests.priority(index)
        try:
            constraints = handoffs.constraints(passage, duty)
            is_prefill = duty is PLACE_PREFILL
            if self._generations is not None:
                kept = _kept_generation(self._generations, passage, is_prefill=is_prefill)
                constraints = _all_of(kept, constraints)
            worker_id = placer.place_next(
                index, num_tokens, priority, now_ms, constraints, is_prefill=is_prefill
            )
        except RequestRefusedError as error:
            self._refuse(index, error, now_ms)
            return
        self._take_choice(index, worker_id, now_ms)

    def _take_choice(self, index: int, worker_id: int, now_ms: float) -> None:
        """A request goes where its router has chosen, or waits there."""
        if worker_id == QUEUED:
            self.num_waiting += 1
        else:
            self._hand_to(index, worker_id, now_ms)

    def release(self, now_ms: float) -> None:
        """Hand over what has waited in the router long enough."""
        for index, worker_id, error in self.placer.releases(now_ms):
            self.num_waiting -= 1
            if error is None:
                self._hand_to(index, worker_id, now_ms)
            else:
                self._refuse(index, error, now_ms)
        self._agenda.touched.sort()

    def _hand_to(self, index: int, worker_id: int, now_ms: float) -> None:
        """Give a request to a worker."""
        journal, worker = self._journal, self._fleet.workers[worker_id]
        journal.worker_id[index] = worker_id
        handoffs = self._handoffs_of(index)
        if handoffs is not None:
            sequence = handoffs.dispatched(index, worker, now_ms)
        elif self._migrants.waiting and index in self._migrants.waiting:
            sequence = self._migrants.move_in(index, worker)
        else:
            sequence = self._requests.sequence(index, now_ms)
            if now_ms != journal.arrival_ms[index]:
                journal.dispatch_ms[index] = now_ms
        if self._patience is not None:
            self._patience.placed(sequence)
        if sequence.is_prefetch:  # it computes nothing: to whoever places requests it is no load
            self.placer.discount(index, worker, now_ms)
        agenda = self._agenda
        if worker.engine.add(sequence, now_ms):
            heappush(agenda.ends, (worker.engine.next_ms, worker.station_id))
        agenda.touched.append(worker.station_id)

    def end_prefetches(self, worker: Worker, now_ms: float) -> None:
        """Note which of a worker's prefetches are over."""
        ended = worker.engine.core.take_prefetched()
        if not ended:
            return
        journal = self._journal
        for sequence in ended:
            journal.status[sequence.index] = int(RequestStatus.PREFETCHED)
            journal.finish_ms[sequence.index] = now_ms
        self.placer.receive(worker, [], now_ms)  # it hears of what is cached now
        self._endings.finished(ended, now_ms)

    def _handoffs_of(self, index: int) -> Handoffs | None:
        """Who takes a request from pool to pool; None: nobody, for a prefetch goes to one worker.

        It computes nothing that could be handed over.
        """
        return None if index in self._requests.prefetches else self._handoffs

    # ---- going without an answer ---------------------------------------------------------------

    def _refuse(self, index: int, error: RequestRefusedError, now_ms: float) -> None:
        """A router takes a request not, or no more; it may be on its way from pool to pool."""
        lobby, handoffs = self._lobby, self._handoffs
        if index not in self._requests.prefetches:  # for which no worker has to come
            if lobby is not None and lobby.takes(index, self._fleet.workers, handoffs):
                return
            if handoffs is not None:
                handoffs.let_go(index, now_ms)
                self._fleet.note_passed_on(now_ms)
        self._reject(index, f"HTTP {error.http_status}: {error}", now_ms)

    def _reject(self, index: int, reason: str, now_ms: float) -> None:
        """End a request that nobody takes: rejected, or failed if it had been placed before."""
        was_placed = self._migrants.leave(index)
        if self._handoffs is not None:
            was_placed |= self._handoffs.ended(index)
        status = RequestStatus.FAILED if was_placed else RequestStatus.REJECTED
        self._endings.refused(index, status, reason, now_ms)

    def withdraw(self, index: int, sequence: Sequence | None, now_ms: float) -> None:
        """Nobody waits for a request any more: it leaves the router, or its worker after its step.

        `sequence` is None if it has never been placed.
        """
        agenda, fleet, handoffs = self._agenda, self._fleet, self._handoffs_of(index)
        if handoffs is not None:
            handoffs.give_up(self, index, now_ms)
            fleet.note_passed_on(now_ms)
        elif self._lobby is not None and self._lobby.leave(index):
            self._migrants.leave(index)
        elif sequence is None or self._migrants.leave(index):
            self.num_waiting -= 1
            self.placer.give_up(index, None, now_ms)
        else:
            worker = fleet.workers[self._journal.worker_id[index]]
            if not sequence.is_prefetch:
                self.placer.give_up(index, worker, now_ms)
            if worker.is_hung:
                return
            self._journal.leaving.add(index)
            if worker.engine.give_up(sequence, now_ms):
                agenda.moved(worker)
            elif worker.engine.next_ms == NEVER:
                agenda.touched.append(worker.station_id)
                fleet.let_go(now_ms)

    def leave_queue(self, index: int, *, at_decode: bool, now_ms: float) -> None:
        """Nobody waits any more for a request that waits in the lobby, or in a router of a pool."""
        if self._lobby is not None and self._lobby.leave(index):
            return
        placer = self.placer
        assert isinstance(placer, PoolPlacers)
        self.num_waiting -= 1
        placer.give_up_queued(index, at_decode=at_decode, now_ms=now_ms)


def _kept_generation(
    generations: Generations, passage: Passage, *, is_prefill: bool
) -> Constraints | None:
    """The generation of workers that a request keeps to, or with which it begins."""
    if passage.source is None and passage.target is None:
        return generations.choose(passage.index)
    return generations.stay(passage.index, "prefill" if is_prefill else "decode")


def _all_of(first: Constraints | None, second: Constraints | None) -> Constraints | None:
    """What both ask for."""
    if first is None or second is None:
        return first or second
    return both(first, second)
