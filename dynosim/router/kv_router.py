"""The router: who serves a request, and when it may go.

One object for twin and live layer. It takes requests, block events, news of first tokens and of
ends, all with their time, and answers with decisions; its state is the workers, their active load,
the block index, session bindings and the pending queue. Ties are drawn from the equal candidates
in slot order with a generator seeded once, so equal inputs give equal decisions.
"""

from collections.abc import Hashable, Iterable, Sequence
from random import Random
from typing import Generic, Never, overload

from dynosim.indexer.base import Index, LaggingIndex, RoutingFollower
from dynosim.router.admission import Admission
from dynosim.router.asking import asked_by, potential_load, request_of
from dynosim.router.backlog import Backlog
from dynosim.router.cost import WorkerOption
from dynosim.router.decision import ChosenSlot, Decision, Refusal
from dynosim.router.inputs import (
    Arrive,
    AskBest,
    AskLoads,
    Best,
    DropStale,
    E_contra,
    End,
    FirstToken,
    Input,
    Join,
    Leave,
    Loads,
    Outcome,
    Placed,
    Release,
    Tokens,
    Unbind,
    WorkerEvents,
)
from dynosim.router.knobs import CostSpec, RouterSpec
from dynosim.router.kv_choice import Confirm, KvChoice, placement_of
from dynosim.router.load import ActiveLoad
from dynosim.router.modes import RoundRobin, make_load_mode
from dynosim.router.policy import LearningPolicy, PlacementPolicy, StatefulPolicy, choose_by
from dynosim.router.prefill_load import PrefillEstimator
from dynosim.router.refusals import (
    InvalidRequestError,
    RequestRefusedError,
    UnknownWorkerError,
)
from dynosim.router.request import RoutingRequest
from dynosim.router.sessions import Sessions
from dynosim.router.snapshot import RouterSnapshot
from dynosim.router.witness import ChoiceWitness, SeenChoice
from dynosim.router.workers import Candidate, WorkerCard, WorkerTable
from dynosim.workers.ids import DpRank, Slot, WorkerId


class KvRouter(Generic[E_contra]):
    """Places requests on workers; see `RouterSpec` for what it can be told.

    Everything goes in through `take`, or through the doors below, which are what `take` opens: the
    same inputs in the same order lead to the same answers. `index` follows the workers' caches; one
    that may lag (`LaggingIndex`) is asked to confirm what a decision rests on. `key_blocks`: see
    `ActiveBlocks`. `estimator` makes prefill load decay. `policy` replaces the choice by cost.
    `stream` tells apart the random numbers of several routers with one seed. `witness` notes what
    some placements were chosen from.
    """

    def __init__(
        self,
        settings: RouterSpec,
        index: Index[E_contra] | LaggingIndex[E_contra],
        *,
        key_blocks: list[int] | None = None,
        estimator: PrefillEstimator | None = None,
        policy: PlacementPolicy | None = None,
        stream: str = "router",
        witness: ChoiceWitness | None = None,
    ) -> None:
        confirm: Confirm | None = None
        if isinstance(index, LaggingIndex):
            confirm = index.confirm
            index = index.index
        self.settings = settings
        self.index: Index[E_contra] = index
        self.table = WorkerTable(settings.block_size)
        self.load = ActiveLoad(
            settings.block_size,
            settings.cost,
            settings.load,
            key_blocks=key_blocks,
            estimator=estimator,
        )
        generator = Random(f"{settings.seed}/{stream}")
        self.choice = KvChoice(self.table, self.load, index, settings.cost, generator, confirm)
        self.generator = generator
        self.estimator = estimator
        self._witness = witness
        self.use_policy(policy)
        self._mode = None
        if settings.mode not in ("kv", "direct") and policy is None:
            ratio = settings.cuda_to_cpu_ratio
            self._mode = make_load_mode(settings.mode, generator, self.table, ratio)
        self._backlog: Backlog | None = None
        if settings.classes:
            self._backlog = Backlog(settings.classes, self.table, self.load)
        affinity = settings.affinity
        self._sessions = None if affinity is None else Sessions(affinity, self.table)
        admission = Admission(settings, self.table, self.load, self._sessions)
        self._eligible = admission.eligible
        follower: object = index
        self._follower = follower if isinstance(follower, RoutingFollower) else None
        # Nothing but cost decides: most of `submit` can be skipped for requests without wishes.
        self._is_pure_kv = (
            settings.mode == "kv"
            and policy is None
            and self._backlog is None
            and self._sessions is None
            and self._follower is None
            and not settings.busy.is_set
        )

    def use_policy(self, policy: PlacementPolicy | None) -> None:
        """Let another policy of the same kind choose from now on."""
        self.policy = policy
        given: object = policy
        self._learner = given if isinstance(given, LearningPolicy) else None

    # ---- inputs as values ----------------------------------------------------------------------

    @overload
    def take(self, given: Arrive) -> Placed | None: ...
    @overload
    def take(self, given: Release) -> list[Placed]: ...
    @overload
    def take(self, given: Leave | DropStale) -> list[Hashable]: ...
    @overload
    def take(self, given: Input[E_contra]) -> Outcome: ...
    def take(self, given: Input[E_contra]) -> Outcome:  # noqa: C901 (one row per input)
        """Everything the router can be given; a request that is refused is a `Refusal`.

        Raises: ConfigError, UnknownWorkerError, with nothing changed then, and what a placement
        policy raises.
        """
        try:
            match given:
                case WorkerEvents():
                    self.apply_events(given.worker_id, given.dp_rank, given.events)
                case Arrive():
                    return self.submit(given.request, given.now_ms)
                case FirstToken():
                    self.first_token(given.request_id, given.now_ms)
                case End():
                    self.free(given.request_id, given.now_ms)
                case Tokens():
                    self.output_tokens(given.request_id, given.num_tokens, given.now_ms)
                case Release():
                    return self.release(given.now_ms)
                case Join():
                    return self.add_worker(given.card)
                case Leave():
                    return self.remove_worker(given.worker_id)
                case DropStale():
                    return self.drop_stale(given.now_ms)
                case Unbind():
                    self.unbind_session(given.session_id)
                case AskBest():
                    return self._best_worker(given)
                case AskLoads():
                    return self.get_potential_loads(given.token_ids, given.now_ms)
        except RequestRefusedError as error:
            return Refusal(asked_by(given), error)
        return None

    # ---- the whole state -----------------------------------------------------------------------

    def snapshot(self) -> RouterSnapshot:
        """All but the workers and the blocks that they hold; see `restore`."""
        policy, mode = self.policy, self._mode
        return RouterSnapshot(
            load=self.load.snapshot(),
            queue=None if self._backlog is None else self._backlog.snapshot(),
            sessions=None if self._sessions is None else self._sessions.snapshot(),
            next_slot=mode.next_slot if isinstance(mode, RoundRobin) else None,
            random=self.generator.getstate(),
            policy=_state_of(policy),
            guesses=None if self._follower is None else self._follower.snapshot(),
        )

    def restore(self, snapshot: RouterSnapshot) -> None:
        """Make a router with the same settings and workers, and no requests yet, what one was."""
        self.load.restore(snapshot.load)
        if self._backlog is not None and snapshot.queue is not None:
            self._backlog.restore(snapshot.queue)
        if self._sessions is not None and snapshot.sessions is not None:
            self._sessions.restore(snapshot.sessions)
        if isinstance(self._mode, RoundRobin) and snapshot.next_slot is not None:
            self._mode.next_slot = snapshot.next_slot
        self.generator.setstate(snapshot.random)
        policy: object = self.policy
        if isinstance(policy, StatefulPolicy):
            policy.restore(snapshot.policy)
        if self._follower is not None and snapshot.guesses is not None:
            self._follower.restore(snapshot.guesses)

    def restore_workers(
        self, cards: Iterable[WorkerCard], candidates: Iterable[Candidate | None]
    ) -> None:
        """Give a router without workers those of another one, in the same slots."""
        for slot in self.table.restore(cards, candidates):
            self.load.add_slot(slot)

    # ---- workers -------------------------------------------------------------------------------

    def add_worker(self, card: WorkerCard) -> list[Slot]:
        """Take in a worker; returns the slots of its ranks.

        Raises: ConfigError if its block size differs from the router's, or it has no rank; nothing
        is changed then.
        """
        self.table.check(card)
        if card.worker_id in self.table.cards:
            self.remove_worker(card.worker_id)
        slots = self.table.add(card)
        for slot in slots:
            self.load.add_slot(slot)
        return slots

    def remove_worker(self, worker_id: WorkerId) -> list[Hashable]:
        """Let a worker go, and all that is known of it; returns its requests in flight."""
        lost: list[Hashable] = []
        for slot in self.table.remove(worker_id):
            lost += self.load.remove_slot(slot)
            self.index.remove_worker(slot)
        if self._sessions is not None:
            self._sessions.remove_worker(worker_id, lost)
        return lost

    def apply_events(
        self, worker_id: WorkerId, dp_rank: DpRank, events: Iterable[E_contra]
    ) -> None:
        """Take block events of a worker into account, in order.

        Raises: UnknownWorkerError if no such worker has joined; nothing is changed then.
        """
        slot = self.table.slot_of(worker_id, dp_rank)
        if slot is None:
            known = ", ".join(map(str, sorted(self.table.cards)[:8])) or "none"
            raise UnknownWorkerError(
                f"KV event from worker {worker_id} rank {dp_rank}, which has not joined; "
                f"known workers: {known}"
            )
        for event in events:
            self.index.apply(slot, event)

    # ---- requests ------------------------------------------------------------------------------

    @property
    def num_queued(self) -> int:
        """Requests waiting in the router."""
        return 0 if self._backlog is None else len(self._backlog)

    def submit(self, request: RoutingRequest, now_ms: float) -> Decision | None:
        """Place a request, or let it wait (None; `release` will place it).

        Raises: RequestRefusedError with the reason if it can be neither placed nor queued.
        """
        if request.input_tokens < 1:
            raise InvalidRequestError("the prompt is empty")
        if request.request_id in self.load.bookings or self._backlog is not None:
            self._check_is_new(request.request_id)
        if self._is_pure_kv and request.constraints is None and request.overrides is None:
            eligible = self.table.all_mask
            if eligible:
                placement = self.choice.choose(request, eligible, now_ms)
                return self._book(request, placement, now_ms, 0.0)
        eligible = self._eligible(request, now_ms)
        if self._backlog is not None and self._waits(request, eligible, now_ms):
            return None
        return self._place(request, eligible, now_ms, 0.0)

    def release(self, now_ms: float) -> list[Placed]:
        """Place the waiting requests that can go now; call after first tokens and ends."""
        placed: list[Placed] = []
        if self._backlog is None:
            return placed
        while (going := self._backlog.next(self._eligible, now_ms)) is not None:
            request, since_ms = going
            try:
                eligible = self._eligible(request, now_ms)
                placed.append(self._place(request, eligible, now_ms, now_ms - since_ms))
            except RequestRefusedError as error:
                placed.append(Refusal(request.request_id, error))
        return placed

    def first_token(self, request_id: Hashable, now_ms: float) -> None:
        """The first token of a request was produced: its prefill is done."""
        self.load.first_token(request_id, now_ms)
        if self._learner is not None:
            self._learner.on_first_token(request_id, now_ms)

    def output_tokens(self, request_id: Hashable, num_tokens: int, now_ms: float) -> None:
        """A request has produced `num_tokens` tokens in all."""
        self.load.output_tokens(request_id, num_tokens, now_ms)

    def free(self, request_id: Hashable, now_ms: float) -> None:
        """A request ended, failed or was cancelled, placed or still waiting."""
        if not self.load.free(request_id, now_ms):
            if self._backlog is not None:
                self._backlog.discard(request_id)
            return
        if self._is_pure_kv:
            return
        if self._learner is not None:
            self._learner.on_end(request_id, now_ms)
        if self._follower is not None:
            self._follower.note_end(request_id, now_ms)
        if self._sessions is not None:
            self._sessions.end(request_id, now_ms)

    def drop_stale(self, now_ms: float) -> list[Hashable]:
        """Free requests that have not been heard of for `LoadSpec.stale_after_ms`."""
        stale = self.load.stale(now_ms)
        for request_id in stale:
            self.free(request_id, now_ms)
        return stale

    def unbind_session(self, session_id: str) -> None:
        """Let a session go anywhere again: its worker failed it."""
        if self._sessions is not None:
            self._sessions.unbind(session_id)

    # ---- the field's names for it ----------------------------------------------------------------

    def best_worker(
        self,
        token_ids: Sequence[int],
        request_id: Hashable = None,
        *,
        update_states: bool = False,
        router_config_override: CostSpec | None = None,
        now_ms: float = 0.0,
    ) -> Best:
        """(worker, data-parallel rank, overlapping blocks) for a prompt.

        With `update_states` the request counts as placed there until `free(request_id)`.
        Raises: RequestRefusedError; InvalidRequestError for `update_states` without a request id.
        """
        asked = AskBest(now_ms, token_ids, request_id, update_states, router_config_override)
        return self._best_worker(asked)

    def get_potential_loads(self, token_ids: Sequence[int], now_ms: float = 0.0) -> Loads:
        """What each candidate would have in flight with this prompt, in slot order."""
        request = request_of(token_ids, self.settings.block_size)
        return [potential_load(option) for option in self._options(request, now_ms)]

    # ---- inside --------------------------------------------------------------------------------

    def _best_worker(self, asked: AskBest) -> Best:
        if asked.update_states and asked.request_id is None:
            raise InvalidRequestError("update_states needs a request_id, to free the request by")
        request = request_of(
            asked.token_ids, self.settings.block_size, asked.request_id, asked.overrides
        )
        if asked.update_states:
            self._check_is_new(asked.request_id)
        eligible = self._eligible(request, asked.now_ms)
        if asked.update_states:
            placed = self._place(request, eligible, asked.now_ms, 0.0)
            return placed.worker_id, placed.dp_rank, int(placed.overlap_blocks)
        self._forget_old_guesses(asked.now_ms)
        found = self._choose(request, eligible, asked.now_ms)
        home = self.table.candidate(found.slot)
        return home.worker_id, home.dp_rank, int(found.overlap_blocks)

    def _options(self, request: RoutingRequest, now_ms: float) -> list[WorkerOption]:
        """Every candidate for a request as things are, in slot order."""
        eligible = self._eligible(request, now_ms)
        self._forget_old_guesses(now_ms)
        return self.choice.fresh_options(request, eligible, now_ms)

    def _check_is_new(self, request_id: Hashable) -> None:
        """Raises: InvalidRequestError if a request of that name is in flight."""
        backlog = self._backlog
        if request_id in self.load.bookings or (backlog is not None and request_id in backlog):
            raise InvalidRequestError(f"a request {request_id!r} is in flight already")

    def _waits(self, request: RoutingRequest, eligible: int, now_ms: float) -> bool:
        """Queue a request if it has to wait. Raises: QueueFullError."""
        assert self._backlog is not None
        self._forget_old_guesses(now_ms)
        cached_tokens = self.choice.best_cached_tokens(request, eligible, now_ms)
        return self._backlog.takes(request, eligible, cached_tokens, now_ms)

    def _place(
        self, request: RoutingRequest, eligible: int, now_ms: float, queued_ms: float
    ) -> Decision:
        """Choose a slot among the eligible ones, book the request there and tell why."""
        self._forget_old_guesses(now_ms)
        placement = self._choose(request, eligible, now_ms)
        decision = self._book(request, placement, now_ms, queued_ms)
        if self._follower is not None:
            self._follower.note_routed(placement.slot, request.request_id, request.blocks, now_ms)
        if self._sessions is not None and request.session_id is not None:
            home = self.table.candidate(placement.slot)
            self._sessions.begin(request.session_id, request.request_id, home, now_ms)
        return decision

    def _book(
        self, request: RoutingRequest, placement: ChosenSlot, now_ms: float, queued_ms: float
    ) -> Decision:
        slot, cached_tokens = placement.slot, placement.cached_tokens
        if self._witness is not None and request.request_id in self._witness.watched:
            options = tuple(self._options(request, now_ms))
            seen = SeenChoice(request.request_id, now_ms, slot, options, queued_ms)
            self._witness.choices.append(seen)
        self.load.book(request, slot, cached_tokens, now_ms)
        home = self.table.candidate(slot)
        return Decision(
            request.request_id,
            home.worker_id,
            home.dp_rank,
            slot,
            placement.cost,
            placement.overlap_blocks,
            cached_tokens,
            queued_ms,
        )

    def _forget_old_guesses(self, now_ms: float) -> None:
        """To be called before the index is asked."""
        if self._follower is not None:
            self._follower.expire(now_ms)

    def _choose(self, request: RoutingRequest, eligible: int, now_ms: float) -> ChosenSlot:
        if self.policy is not None:
            options = self.choice.fresh_options(request, eligible, now_ms)
            return placement_of(choose_by(self.policy, request, options, now_ms))
        if self._mode is not None:
            slot = self._mode.choose(eligible, self.load.num_requests)
            return self.choice.placement_on(slot, request, now_ms)
        return self.choice.choose(request, eligible, now_ms)


def _state_of(policy: object) -> object:
    return policy.state() if isinstance(policy, StatefulPolicy) else None


AnyRouter = KvRouter[Never]
"""A router of any index: it can be given everything but events."""
