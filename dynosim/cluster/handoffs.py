"""Requests on their way from prefill to decode workers: the driver of `HandoffFlow` in virtual time.

The flow says what is to be done when something has happened. It is done once all ends of an instant
are over, in the order in which it came up; who got something by that starts in the same instant.
"""

from collections import deque
from typing import TYPE_CHECKING

from dynosim.cluster.journal import HandoffColumns, Journal
from dynosim.cluster.pool import Worker
from dynosim.cluster.transfers import Transfers
from dynosim.engine.sequence import Sequence
from dynosim.memory.network import Transfer
from dynosim.records import RequestStatus
from dynosim.router.handoff import Duty, HandoffEvent, HandoffFlow, HandoffPhase

if TYPE_CHECKING:
    from dynosim.cluster.cluster import Cluster


class Passage:
    """One request in flight: who has it, and what is under way for it."""

    __slots__ = (
        "decode",
        "index",
        "last_token_ms",
        "prefill",
        "reserved_ms",
        "source",
        "target",
        "tokens",
        "transfer",
    )

    def __init__(self, index: int) -> None:
        self.index = index
        self.tokens = 0  # that the client has got when it was last placed
        self.last_token_ms = 0.0
        self.source: Worker | None = None  # computes its prompt, or holds its KV
        self.prefill: Sequence | None = None  # there
        self.target: Worker | None = None
        self.decode: Sequence | None = None
        self.transfer: Transfer | None = None
        self.reserved_ms = 0.0  # when the blocks for its KV were taken


class Handoffs:
    """All requests in flight, and the links between both pools."""

    def __init__(self, flow: HandoffFlow, transfers: Transfers, journal: Journal) -> None:
        assert journal.handoffs is not None
        self.flow = flow
        self.transfers = transfers
        self._journal = journal
        self._columns: HandoffColumns = journal.handoffs
        self._passages: dict[int, Passage] = {}
        self._by_transfer: dict[int, Passage] = {}  # by number of its transfer
        self._due: deque[tuple[Passage, Duty]] = deque()
        self._shows_prefill_tokens = self._columns.shows_prefill_tokens

    @property
    def has_news(self) -> bool:
        """Whether something is to be done."""
        return bool(self._due) or bool(self.transfers.arrived)

    def passage_of(self, index: int) -> Passage | None:
        """A request in flight; None: it is not."""
        return self._passages.get(index)

    # ---- what has happened ---------------------------------------------------------------------

    def arrives(self, index: int, *, is_local: bool) -> tuple[Passage, Duty]:
        """A request has come; returns whom to place it with first."""
        passage = self._passages[index] = Passage(index)
        return passage, self.flow.arrives(index, is_local=is_local)

    def dispatched(self, worker: Worker, sequence: Sequence) -> None:
        """A request went to a worker."""
        passage = self._passages[sequence.index]
        if worker.is_prefill:
            passage.source, passage.prefill = worker, sequence
            self._columns.prefill_worker_id[sequence.index] = worker.worker_id
        else:
            passage.target, passage.decode = worker, sequence

    def prefilled(
        self, cluster: "Cluster", finished: list[Sequence], now_ms: float
    ) -> list[Sequence]:
        """Prompts are computed; returns the requests that wanted no more than that token."""
        over: list[Sequence] = []
        for sequence in finished:
            index = sequence.index
            passage = self._passages[index]
            if self._shows_prefill_tokens:
                passage.tokens = sequence.output_tokens
                passage.last_token_ms = now_ms
                self._journal.produced_tokens[index] = passage.tokens
                if passage.tokens == cluster.wanted_tokens(index):
                    self._journal.finish_ms[index] = now_ms
                    self._journal.status[index] = int(RequestStatus.COMPLETED)
                    self._release_source(cluster, passage, now_ms)
                    over.append(sequence)
                    continue
            self._happens(passage, HandoffEvent.PREFILLED)
        return over

    def loads_started(self, worker: Worker) -> None:
        """A decode worker has taken blocks for KV to come, or has found that it needs none."""
        started = worker.engine.started_loads
        for sequence, start_ms in started:
            passage = self._passages.get(sequence.index)
            if passage is None or passage.decode is not sequence:
                continue  # given up meanwhile
            self._columns.held_tokens[sequence.index] = max(sequence.cached_tokens, 0)
            if sequence.external_tokens <= 0:
                self._happens(passage, HandoffEvent.NOT_NEEDED)
            else:
                passage.reserved_ms = start_ms
                self._happens(passage, HandoffEvent.RESERVED)
        started.clear()

    def worker_lost(self, worker: Worker, now_ms: float) -> list[Passage]:
        """A worker is gone; returns the requests that are to be placed anew for it."""
        lost: list[Passage] = []
        for index in sorted(self._passages):
            passage = self._passages[index]
            if passage.source is worker:
                phase = self.flow.phase_of(index)
                if phase is HandoffPhase.PREFILLING or phase is HandoffPhase.PROMISED:
                    lost.append(passage)
                passage.source = passage.prefill = None
                self._happens(passage, HandoffEvent.SOURCE_LOST)
            elif passage.target is worker:
                lost.append(passage)
                passage.target = passage.decode = None
                self._happens(passage, HandoffEvent.DESTINATION_LOST)
        return lost

    def ended(self, index: int) -> None:
        """A request is over, however it ended."""
        self.flow.ends(index)
        self._passages.pop(index, None)

    def give_up(self, cluster: "Cluster", index: int, now_ms: float) -> None:
        """A client waits no more. KV on its way arrives all the same, and is forgotten then."""
        passage = self._passages[index]
        self._due = deque([one for one in self._due if one[0] is not passage])
        if passage.transfer is None and passage.source is not None:
            self._release_source(cluster, passage, now_ms)
        self.ended(index)

    # ---- what is to be done --------------------------------------------------------------------

    def settle(self, cluster: "Cluster", now_ms: float) -> None:
        """Do all that is due."""
        due, arrived = self._due, self.transfers.arrived
        while due or arrived:
            if arrived:
                self._arrive(cluster, arrived.pop(0), now_ms)
                continue
            passage, duty = due.popleft()
            if duty is Duty.PLACE_PREFILL or duty is Duty.PLACE_DECODE:
                cluster.place_next(passage, duty, now_ms)
            elif duty is Duty.BEGIN_TRANSFER:
                self._begin(passage, now_ms)
            elif duty is Duty.CANCEL_TRANSFER:
                self._cancel(passage, now_ms)
            elif duty is Duty.RELEASE_SOURCE:
                self._release_source(cluster, passage, now_ms)
            else:
                self._report_loss(cluster, passage, now_ms)

    def _happens(self, passage: Passage, event: HandoffEvent) -> None:
        for duty in self.flow.happens(passage.index, event):
            self._due.append((passage, duty))

    def _begin(self, passage: Passage, now_ms: float) -> None:
        source, target, decode = passage.source, passage.target, passage.decode
        assert source is not None and target is not None and decode is not None
        index, journal = passage.index, self._journal
        num_tokens = decode.known_tokens if self.transfers.moves_all else decode.external_tokens
        compute_ms = self._columns.prefill_end_ms[index] - journal.scheduled_ms[index]
        transfer, begins_ms, num_bytes = self.transfers.begin(
            source, target, num_tokens, compute_ms, passage.reserved_ms, now_ms
        )
        passage.transfer = transfer
        self._by_transfer[transfer.number] = passage
        self._columns.transfer_start_ms[index] = begins_ms
        self._columns.moved_bytes[index] = num_bytes

    def _arrive(self, cluster: "Cluster", transfer: Transfer, now_ms: float) -> None:
        """The KV of a request is complete at its decode worker."""
        passage = self._by_transfer.pop(transfer.number)
        decode, target = passage.decode, passage.target
        passage.transfer = None
        assert target is not None and decode is not None
        moved = target.engine.loaded(
            decode, now_ms, max(decode.cached_tokens, 0) + decode.external_tokens
        )
        cluster.has_news(target, moved)
        if self._passages.get(passage.index) is not passage:  # given up meanwhile
            self._release_source(cluster, passage, now_ms)
            return
        self._columns.transfer_end_ms[passage.index] = now_ms
        self._happens(passage, HandoffEvent.ARRIVED)

    def _cancel(self, passage: Passage, now_ms: float) -> None:
        transfer = passage.transfer
        assert transfer is not None
        passage.transfer = None
        del self._by_transfer[transfer.number]
        self.transfers.cancel(transfer, now_ms)

    def _release_source(self, cluster: "Cluster", passage: Passage, now_ms: float) -> None:
        """The prefill worker may forget a request's KV."""
        source, prefill = passage.source, passage.prefill
        if source is None or prefill is None:
            return
        passage.source = passage.prefill = None
        cluster.has_news(source, source.engine.sent(prefill, now_ms))

    def _report_loss(self, cluster: "Cluster", passage: Passage, now_ms: float) -> None:
        """The decode worker goes on with what it held itself, or ends the request."""
        decode, target = passage.decode, passage.target
        assert target is not None and decode is not None
        moved = target.engine.loaded(decode, now_ms, max(decode.cached_tokens, 0))
        cluster.has_news(target, moved)
        cluster.note_failed(target, now_ms)
