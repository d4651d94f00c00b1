"""Requests on their way from prefill to decode workers: drives `HandoffFlow` in virtual time.

The flow says what is to be done when something has happened. That is done once all ends of an
instant are over, in the order in which it came up, and who got something by it starts at once.
"""

from typing import TYPE_CHECKING, Final

from dynosim.cluster.agenda import Agenda
from dynosim.cluster.endings import Endings
from dynosim.cluster.fleet import Fleet
from dynosim.cluster.journal import HandoffColumns, Journal
from dynosim.cluster.passage import Passage
from dynosim.cluster.pool import Worker
from dynosim.cluster.pool_placers import PoolPlacers
from dynosim.cluster.requests import Requests
from dynosim.cluster.token_log import DecodeLog
from dynosim.cluster.transfers import Transfers
from dynosim.engine.sequence import Sequence
from dynosim.records import RequestStatus
from dynosim.router.eligibility import Constraints
from dynosim.router.handoff import Duty, HandoffEvent, HandoffFlow, HandoffPhase
from dynosim.router.topology import decode_constraints

if TYPE_CHECKING:
    from dynosim.cluster.dispatch import Dispatch

# Members under names of their own: compiled code looks these up once, not at every use.
PLACE_PREFILL: Final = Duty.PLACE_PREFILL
PLACE_DECODE: Final = Duty.PLACE_DECODE
BEGIN_TRANSFER: Final = Duty.BEGIN_TRANSFER
PREFILLED: Final = HandoffEvent.PREFILLED
RESERVED: Final = HandoffEvent.RESERVED
ARRIVED: Final = HandoffEvent.ARRIVED
LOCAL: Final = HandoffPhase.LOCAL
PROMISING: Final = HandoffPhase.PROMISING

BEFORE_PREFILLED: Final = (HandoffPhase.PREFILLING, HandoffPhase.PROMISED)
WITH_ALL: Final = (HandoffPhase.DECODING, LOCAL)
AWAITING_ROOM: Final = (HandoffPhase.HELD, HandoffPhase.ORPHANED, PROMISING)


class Handoffs:
    """All requests in flight, and the links between both pools, as a station of `agenda`.

    Made before all workers, so that what arrives at an instant does so before steps end.
    """

    def __init__(
        self,
        flow: HandoffFlow,
        transfers: Transfers,
        *,
        requests: Requests,
        placer: PoolPlacers,
        agenda: Agenda,
        fleet: Fleet,
        endings: Endings,
        journal: Journal,
    ) -> None:
        assert journal.handoffs is not None
        self.flow = flow
        self.transfers = transfers
        self._requests = requests
        self._placer = placer
        self._fleet = fleet
        self._agenda = agenda
        self._links_id = agenda.add(transfers)
        self._endings = endings
        self._journal = journal
        self._columns: HandoffColumns = journal.handoffs
        self._passages: dict[int, Passage] = {}
        self._by_transfer: dict[int, Passage] = {}  # by number of its transfer
        self._due: list[tuple[Passage, Duty]] = []
        self._dropped_prefills: list[tuple[Worker, Sequence]] = []
        self.shows_prefill_tokens = self._columns.shows_prefill_tokens
        self.is_cut = False  # nothing gets from one pool to the other

    @property
    def has_news(self) -> bool:
        """Whether something is to be done."""
        return len(self._due) > 0

    # ---- what has happened ---------------------------------------------------------------------

    def arrives(self, index: int, num_tokens: int, now_ms: float) -> tuple[Passage, Duty]:
        """A request has come; returns whom to place it with first."""
        is_local = False
        if self.flow.spec.conditional is not None:
            loads = self._placer.loads(index, num_tokens, now_ms)
            is_local = self.flow.spec.is_local(num_tokens, loads)
        passage = self._passages[index] = Passage(index)
        return passage, self.flow.arrives(index, is_local=is_local)

    def passage_of(self, index: int) -> Passage:
        """That of a request in flight."""
        return self._passages[index]

    def placing(self, index: int) -> Duty:
        """Whom a request is to be placed with that waits to be."""
        return PLACE_PREFILL if self.flow.phase_of(index) in BEFORE_PREFILLED else PLACE_DECODE

    def dispatched(self, index: int, worker: Worker, now_ms: float) -> Sequence:
        """A request goes to a worker; returns what that gets of it: its prompt alone, or all, but
        KV to come."""
        journal, requests = self._journal, self._requests
        passage = self._passages[index]
        first = passage.prefill
        if first is None:
            sequence = requests.sequence(index, now_ms)
        else:
            sequence = requests.again(first, now_ms)
        if journal.preemptions:
            sequence.preemptions = journal.preemptions.get(index, 0)
        if worker.is_prefill:
            self._to_prefill(passage, worker, sequence)
        else:
            self._to_decode(passage, worker, sequence)
        if not passage.is_dispatched and now_ms != journal.arrival_ms[index]:
            journal.dispatch_ms[index] = now_ms
        passage.is_dispatched = True
        return sequence

    def _to_prefill(self, passage: Passage, worker: Worker, sequence: Sequence) -> None:
        passage.source, passage.prefill = worker, sequence
        self._columns.prefill_worker_id[sequence.index] = worker.worker_id
        sequence.output_tokens = 1
        sequence.is_sent = True

    def _to_decode(self, passage: Passage, worker: Worker, sequence: Sequence) -> None:
        passage.target, passage.decode = worker, sequence
        sequence.generated_tokens = passage.tokens
        phase = self.flow.phase_of(passage.index)
        if phase is not LOCAL:
            sequence.remote_tokens = sequence.prompt_tokens
            sequence.decodes_last = True  # a query of one token, as any decode
        if passage.tokens:
            worker.token_log.moved_in(sequence, passage.last_token_ms)
        elif phase is PROMISING and self.shows_prefill_tokens:
            sequence.generated_tokens = 1  # it will have come by the time that this one goes on

    def left(self, worker: Worker, finished: list[Sequence], now_ms: float) -> list[Sequence]:
        """Requests have left a worker; returns those that are over."""
        if worker.is_prefill:
            return self._prefilled(worker, finished, now_ms)
        for sequence in finished:
            self.ended(sequence.index)
        if worker.engine.failed:
            self._note_failed(worker, now_ms)
        return finished

    def _prefilled(self, worker: Worker, finished: list[Sequence], now_ms: float) -> list[Sequence]:
        """Prompts are computed; returns the requests that wanted no more than that token."""
        if self._dropped_prefills:
            self._free_dropped(worker, now_ms)
        over: list[Sequence] = []
        for sequence in finished:
            index = sequence.index
            passage = self._passages[index]
            if self.shows_prefill_tokens and not passage.tokens:
                passage.tokens = 1
                passage.last_token_ms = now_ms
                self._journal.produced_tokens[index] = 1
                if self._requests.wanted_tokens(index) == 1:
                    self._journal.finish_ms[index] = now_ms
                    self._journal.status[index] = int(RequestStatus.COMPLETED)
                    self.let_go(index, now_ms)
                    self.ended(index)
                    over.append(sequence)
                    continue
                if passage.target is not None and passage.decode is not None:
                    passage.target.token_log.moved_in(passage.decode, now_ms)
            self._happens(passage, PREFILLED)
        return over

    def take_arrived(self, now_ms: float) -> None:
        """The KV of requests is complete at their decode workers, who hear of it first."""
        self._agenda.came(self._links_id)
        arrived = self.transfers.arrived
        for transfer in arrived:
            passage = self._by_transfer.pop(transfer.number)
            decode, target = passage.decode, passage.target
            assert target is not None and decode is not None
            passage.transfer = None
            num_valid = max(decode.cached_tokens, 0) + decode.external_tokens
            self._fleet.tell_loaded(target, decode, num_valid, now_ms)
            self.release_source(passage, now_ms)
            if self._passages.get(passage.index) is passage:  # else given up meanwhile
                self._columns.transfer_end_ms[passage.index] = now_ms
                self.flow.happens(passage.index, ARRIVED)
        arrived.clear()
        self._expect_links()

    def started(self, worker: Worker, now_ms: float) -> bool:
        """A worker may have made room for KV, or have heard of its loss; returns the latter."""
        if not worker.is_decode:
            return False
        self._loads_started(worker)
        if not worker.engine.failed:
            return False
        self._note_failed(worker, now_ms)
        return True

    def _loads_started(self, worker: Worker) -> None:
        """A decode worker has taken blocks for KV to come, or has found that it needs none."""
        engine, log = worker.engine, worker.token_log
        assert isinstance(log, DecodeLog)
        if not engine.started_loads and not log.seated:
            return
        for sequence, start_ms in engine.started_loads:
            passage = self._passages[sequence.index]
            self._columns.held_tokens[sequence.index] = max(sequence.cached_tokens, 0)
            passage.reserved_ms = start_ms
            self._happens(passage, RESERVED)
        engine.started_loads.clear()
        for sequence in log.seated:
            index = sequence.index
            if self.flow.phase_of(index) in AWAITING_ROOM:
                self._columns.held_tokens[index] = max(sequence.cached_tokens, 0)
                self._happens(self._passages[index], HandoffEvent.NOT_NEEDED)
        log.seated.clear()

    def _note_progress(self, worker: Worker, sequence: Sequence, num_tokens: int) -> None:
        """A request had so many tokens when its decode worker was lost."""
        passage = self._passages[sequence.index]
        if num_tokens > passage.tokens and self.flow.phase_of(passage.index) in WITH_ALL:
            delivery_ms = worker.engine.last_delivery_ms
            passage.tokens = num_tokens
            passage.last_token_ms = worker.token_log.last_token_ms(sequence, delivery_ms)

    def worker_lost(
        self, worker: Worker, had: list[tuple[Sequence, int]], now_ms: float
    ) -> list[Passage]:
        """A worker is gone, which had requests with so many tokens; returns those that it leaves to
        others."""
        self._placer.forget_of(worker, [sequence.index for sequence, _ in had])
        if worker.is_decode:
            for sequence, num_tokens in had:
                self._note_progress(worker, sequence, num_tokens)
        self._forget_given_up(worker, now_ms)
        lost: list[Passage] = []
        for index in sorted(self._passages):
            passage = self._passages[index]
            if passage.source is worker:
                if self.flow.phase_of(index) in BEFORE_PREFILLED:
                    lost.append(passage)
                passage.source = passage.prefill = None
                self._happens(passage, HandoffEvent.SOURCE_LOST)
            elif passage.target is worker:
                lost.append(passage)
                passage.target = passage.decode = None
                self._happens(passage, HandoffEvent.DESTINATION_LOST)
        return lost

    def cut(self) -> None:
        """From now on nothing gets from one pool to the other; what is on its way is lost."""
        self.is_cut = True
        for passage in list(self._by_transfer.values()):
            if self._passages.get(passage.index) is passage:  # else nobody waits for it
                self._happens(passage, HandoffEvent.LINK_LOST)

    def _forget_given_up(self, worker: Worker, now_ms: float) -> None:
        """What was still under way from or to a worker that is gone, though nobody waits for it."""
        self._dropped_prefills = [one for one in self._dropped_prefills if one[0] is not worker]
        for passage in list(self._by_transfer.values()):
            if self._passages.get(passage.index) is passage:
                continue
            source, target, decode = passage.source, passage.target, passage.decode
            assert target is not None and decode is not None
            if source is worker:
                self._cancel(passage, now_ms)
                self._fleet.tell_loaded(target, decode, 0, now_ms)
            elif target is worker:
                self._cancel(passage, now_ms)
                self.release_source(passage, now_ms)

    def ended(self, index: int) -> bool:
        """A request is over, however it ended; returns whether any worker has had it."""
        self.flow.ends(index)
        passage = self._passages.pop(index, None)
        return passage is not None and passage.is_dispatched

    def give_up(self, dispatch: "Dispatch", index: int, now_ms: float) -> None:
        """A client waits no more. KV on its way arrives all the same, and is forgotten then."""
        passage, phase = self._passages[index], self.flow.phase_of(index)
        self._due = [one for one in self._due if one[0] is not passage]
        target = passage.target
        if phase in BEFORE_PREFILLED:
            if passage.source is None:
                dispatch.leave_queue(index, at_decode=False, now_ms=now_ms)
            else:
                self._leave_source(passage, now_ms)
        elif passage.transfer is None:
            self.release_source(passage, now_ms)
        if target is not None:
            self._leave_target(passage, now_ms)
        elif phase not in BEFORE_PREFILLED:
            dispatch.leave_queue(index, at_decode=True, now_ms=now_ms)
        self.ended(index)

    def abandon(self, dispatch: "Dispatch", passage: Passage, now_ms: float) -> None:
        """A request that has lost a worker goes no further, whatever was to be done for it."""
        kept = [one for one in self._due if one[0] is not passage]
        is_due, self._due = len(kept) < len(self._due), kept
        if passage.transfer is not None:
            self._cancel(passage, now_ms)
        if self.flow.phase_of(passage.index) in BEFORE_PREFILLED:  # it has lost a decode worker
            if passage.source is not None:
                self._leave_source(passage, now_ms)
            elif not is_due:
                dispatch.leave_queue(passage.index, at_decode=False, now_ms=now_ms)
        self.let_go(passage.index, now_ms)

    def let_go(self, index: int, now_ms: float) -> None:
        """A request goes no further: neither its KV nor the room for it is needed."""
        passage = self._passages[index]
        self.release_source(passage, now_ms)
        if passage.target is not None:
            self._leave_target(passage, now_ms)

    def _leave_source(self, passage: Passage, now_ms: float) -> None:
        """Nobody needs the prompt that a prefill worker is computing."""
        source, prefill = passage.source, passage.prefill
        assert source is not None and prefill is not None
        passage.source = passage.prefill = None
        self._fleet.drop(source, prefill, now_ms)
        self._dropped_prefills.append((source, prefill))

    def _leave_target(self, passage: Passage, now_ms: float) -> None:
        target, decode = passage.target, passage.decode
        assert target is not None and decode is not None
        self._fleet.drop(target, decode, now_ms)
        if self.flow.phase_of(passage.index) is HandoffPhase.PROMISED:
            # Nothing will come for the blocks that it has taken.
            self._fleet.tell_loaded(target, decode, 0, now_ms)

    def _free_dropped(self, worker: Worker, now_ms: float) -> None:
        """Blocks of prompts that were computed by the very step in which they were given up."""
        kept: list[tuple[Worker, Sequence]] = []
        for source, sequence in self._dropped_prefills:
            if source is not worker:
                kept.append((source, sequence))
            elif worker.engine.core.holds(sequence):
                self._fleet.tell_sent(worker, sequence, now_ms)
        self._dropped_prefills = kept

    # ---- what is to be done --------------------------------------------------------------------

    def constraints(self, passage: Passage, duty: Duty) -> Constraints | None:
        """Where the worker to be placed on may be, seen from the one that is known.

        Raises: NoEligibleWorkerError if that one does not say where it is.
        """
        policy = self.flow.spec.kv_transfer
        other = passage.source if duty is PLACE_DECODE else passage.target
        if policy is None or other is None:
            return None
        return decode_constraints(policy, other.card)

    def settle(self, dispatch: "Dispatch", now_ms: float) -> None:
        """Do all that is due."""
        due = self._due
        for passage, duty in due:  # more may come to be due
            if duty is PLACE_PREFILL or duty is PLACE_DECODE:
                dispatch.place_next(passage, duty, now_ms)
            elif duty is BEGIN_TRANSFER:
                self._begin(passage, now_ms)
            elif duty is Duty.CANCEL_TRANSFER:
                self._cancel(passage, now_ms)
            elif duty is Duty.RELEASE_SOURCE:
                self.release_source(passage, now_ms)
            else:
                self._report_loss(passage, now_ms)
        due.clear()
        self._expect_links()

    def release_source(self, passage: Passage, now_ms: float) -> None:
        """The prefill worker may forget a request's KV."""
        source, prefill = passage.source, passage.prefill
        if source is not None and prefill is not None:
            passage.source = passage.prefill = None
            self._fleet.tell_sent(source, prefill, now_ms)

    def _happens(self, passage: Passage, event: HandoffEvent) -> None:
        for duty in self.flow.happens(passage.index, event):
            self._due.append((passage, duty))

    def _begin(self, passage: Passage, now_ms: float) -> None:
        source, target, decode = passage.source, passage.target, passage.decode
        assert source is not None and target is not None and decode is not None
        index, columns = passage.index, self._columns
        held_tokens = decode.prompt_tokens - decode.external_tokens
        compute_ms = columns.prefill_end_ms[index] - self._journal.scheduled_ms[index]
        transfer, begins_ms, num_bytes = self.transfers.begin(
            source,
            target,
            decode.prompt_tokens,
            held_tokens,
            compute_ms,
            passage.reserved_ms,
            now_ms,
        )
        passage.transfer = transfer
        self._by_transfer[transfer.number] = passage
        columns.transfer_start_ms[index] = begins_ms
        columns.moved_bytes[index] = num_bytes
        if self.is_cut:
            self._happens(passage, HandoffEvent.LINK_LOST)

    def _cancel(self, passage: Passage, now_ms: float) -> None:
        transfer = passage.transfer
        assert transfer is not None
        passage.transfer = None
        del self._by_transfer[transfer.number]
        self.transfers.cancel(transfer, now_ms)

    def _report_loss(self, passage: Passage, now_ms: float) -> None:
        """The decode worker goes on with what it held itself, or ends the request."""
        decode, target = passage.decode, passage.target
        assert target is not None and decode is not None
        num_valid = max(decode.cached_tokens, 0)
        self._fleet.tell_loaded(target, decode, num_valid, now_ms)
        self._note_failed(target, now_ms)

    def _expect_links(self) -> None:
        """Come back when the next transfer arrives."""
        self._agenda.expect(self._links_id, self.transfers.next_ms)

    def _note_failed(self, worker: Worker, now_ms: float) -> None:
        """End the requests whose KV did not come to a worker that will not compute it itself."""
        failed = worker.engine.failed
        for sequence in failed:
            index = sequence.index
            self._placer.give_up(index, worker, now_ms)
            self.ended(index)
            reason = "the KV of its prompt did not arrive"
            self._endings.refused(index, RequestStatus.FAILED, reason, now_ms)
        failed.clear()
