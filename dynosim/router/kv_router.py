"""The router: who serves a request, and when it may go.

One object for twin and live layer. It takes requests, block events, news of first tokens and of
ends, all with their time, and answers with decisions; its state is the workers, their active load,
the block index, session bindings and the pending queue. Ties are drawn from the equal candidates
in slot order with a generator seeded once, so equal inputs give equal decisions.
"""

from collections.abc import Hashable, Iterable, Sequence
from random import Random
from typing import Any, NamedTuple

from dynosim.blocks.hashing import local_hashes, sequence_hashes
from dynosim.indexer.base import BlockEvent, OverlapSource, RoutingFollower
from dynosim.records import KvEvent
from dynosim.router.affinity import SessionAffinity
from dynosim.router.busy import busy_mask
from dynosim.router.classes import PolicyClass, class_for, must_wait
from dynosim.router.eligibility import Constraints, eligible_mask
from dynosim.router.kv_choice import KvChoice, Placement, placement_of
from dynosim.router.load import ActiveLoad
from dynosim.router.modes import make_load_mode
from dynosim.router.policy import LearningPolicy, PlacementPolicy, check_choice
from dynosim.router.prefill_load import PrefillEstimator
from dynosim.router.queue import PendingQueue, QueuedRequest
from dynosim.router.refusals import (
    InvalidRequestError,
    NoEligibleWorkerError,
    RequestRefusedError,
    UnknownWorkerError,
    WorkersBusyError,
)
from dynosim.router.request import RoutingRequest
from dynosim.router.settings import CostSettings, RouterSettings
from dynosim.router.workers import WorkerCard, WorkerTable

UNCONSTRAINED = Constraints()
new_tuple = tuple.__new__


class Decision(NamedTuple):
    """Where a request goes, and why: what the chosen candidate would cost and holds already."""

    request_id: Hashable
    worker_id: int
    dp_rank: int
    slot: int
    cost: float
    overlap_blocks: float
    cached_tokens: int
    queued_ms: float  # time spent waiting in the router


class Refusal(NamedTuple):
    """A request that waited in the queue and can no longer be placed."""

    request_id: Hashable
    error: RequestRefusedError


AnyEvent = BlockEvent | KvEvent
"""What the router's index understands: hash indexes block events, the twin's index extents."""


class KvRouter:
    """Places requests on workers; see `RouterSettings` for what it can be told.

    `index` follows the workers' caches; feeding it events is the caller's part, under the slots of
    `table`. `key_blocks`: see `ActiveLoad`. `estimator` makes prefill load decay. `policy` replaces
    the choice by cost. `stream` tells apart the random numbers of several
    routers with one seed.
    """

    def __init__(
        self,
        settings: RouterSettings,
        index: OverlapSource,
        *,
        key_blocks: Sequence[int] | None = None,
        estimator: PrefillEstimator | None = None,
        policy: PlacementPolicy | None = None,
        stream: str = "router",
    ) -> None:
        self.settings = settings
        self.index = index
        self.table = WorkerTable(settings.block_size)
        self.load = ActiveLoad(
            settings.block_size,
            settings.cost,
            settings.load,
            key_blocks=key_blocks,
            estimator=estimator,
        )
        generator = Random(f"{settings.seed}/{stream}")
        self.choice = KvChoice(self.table, self.load, index, settings.cost, generator)
        self.generator = generator
        self.estimator = estimator
        self.use_policy(policy)
        self._mode = None
        if settings.mode not in ("kv", "direct") and policy is None:
            ratio = settings.cuda_to_cpu_ratio
            self._mode = make_load_mode(settings.mode, generator, self.table, ratio)
        self._is_direct = settings.mode == "direct"
        self._queue = PendingQueue(settings.classes) if settings.classes else None
        affinity = settings.affinity
        self._affinity = None if affinity is None else SessionAffinity(affinity.ttl_ms)
        self._is_hard = affinity is not None and affinity.mode == "hard"
        self._leases: dict[Hashable, str] = {}  # requests in hand that belong to a session
        self._follower = index if isinstance(index, RoutingFollower) else None
        # Nothing but cost decides: most of `submit` can be skipped for requests without wishes.
        self._is_pure_kv = (
            self.choice.is_plain
            and settings.mode == "kv"
            and policy is None
            and self._queue is None
            and self._affinity is None
            and self._follower is None
            and not settings.busy.is_set
        )

    def use_policy(self, policy: PlacementPolicy | None) -> None:
        """Let another policy of the same kind choose from now on."""
        self.policy = policy
        self._learner = policy if isinstance(policy, LearningPolicy) else None

    # ---- workers -------------------------------------------------------------------------------

    def add_worker(self, card: WorkerCard) -> list[int]:
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

    def remove_worker(self, worker_id: int) -> list[Hashable]:
        """Let a worker go, and all that is known of it; returns its requests in hand."""
        lost: list[Hashable] = []
        for slot in self.table.remove(worker_id):
            lost += self.load.remove_slot(slot)
            self.index.remove_worker(slot)
        if self._affinity is not None:
            self._end_leases(self._affinity.remove_worker(worker_id))
            for request_id in lost:
                session_id = self._leases.pop(request_id, None)
                if session_id is not None:
                    self._affinity.lose(session_id)
        return lost

    def apply_events(self, worker_id: int, dp_rank: int, events: Iterable[AnyEvent]) -> None:
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
        index: Any = self.index
        for event in events:
            index.apply(slot, event)

    # ---- requests ------------------------------------------------------------------------------

    @property
    def num_queued(self) -> int:
        """Requests waiting in the router."""
        return 0 if self._queue is None else len(self._queue)

    def submit(self, request: RoutingRequest, now_ms: float) -> Decision | None:
        """Place a request, or let it wait (None; `release` will place it).

        Raises: RequestRefusedError with the reason if it can be neither placed nor queued.
        """
        request_id, input_tokens, _, _, _, _, _, _, _, constraints, _, overrides = request
        if input_tokens < 1:
            raise InvalidRequestError("the prompt is empty")
        if request_id in self.load.bookings or self._queue is not None:
            self._check_is_new(request_id)
        if self._is_pure_kv and constraints is None and overrides is None:
            eligible = self.table.all_mask
            if eligible:
                placement = self.choice.choose_plain(request, eligible, now_ms)
                return self._book(request, placement, now_ms, 0.0)
        eligible = self._eligible(request, now_ms)
        if self._queue is not None and self._waits(request, eligible, now_ms):
            return None
        return self._place(request, eligible, now_ms, 0.0)

    def release(self, now_ms: float) -> list[Decision | Refusal]:
        """Place the waiting requests that can go now; call after first tokens and ends."""
        placed: list[Decision | Refusal] = []
        queue = self._queue
        while queue is not None and len(queue):
            entry = queue.pop(lambda rules, entry: self._can_go(rules, entry, now_ms))
            if entry is None:
                break
            request: RoutingRequest = entry.payload
            try:
                eligible = self._eligible(request, now_ms)
                waited_ms = now_ms - entry.enqueue_ms
                placed.append(self._place(request, eligible, now_ms, waited_ms))
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
            if self._queue is not None:
                self._queue.discard(request_id)
            return
        if self._is_pure_kv:
            return
        if self._learner is not None:
            self._learner.on_end(request_id, now_ms)
        if self._follower is not None:
            self._follower.note_end(request_id, now_ms)
        if self._affinity is not None:
            session_id = self._leases.pop(request_id, None)
            if session_id is not None:
                self._affinity.end(session_id, now_ms)

    def drop_stale(self, now_ms: float) -> list[Hashable]:
        """Free requests that have not been heard of for `LoadSettings.stale_after_ms`."""
        stale = self.load.stale(now_ms)
        for request_id in stale:
            self.free(request_id, now_ms)
        return stale

    def unbind_session(self, session_id: str) -> None:
        """Let a session go anywhere again: its worker failed it."""
        if self._affinity is not None:
            self._affinity.unbind(session_id)
            self._end_leases([session_id])

    # ---- the field's names for it ----------------------------------------------------------------

    def best_worker(
        self,
        token_ids: Sequence[int],
        request_id: Hashable = None,
        *,
        update_states: bool = False,
        router_config_override: CostSettings | None = None,
        now_ms: float = 0.0,
    ) -> tuple[int, int, int]:
        """(worker, data-parallel rank, overlapping blocks) for a prompt.

        With `update_states` the request counts as placed there until `free(request_id)`.
        Raises: RequestRefusedError; InvalidRequestError for `update_states` without a request id.
        """
        if update_states and request_id is None:
            raise InvalidRequestError("update_states needs a request_id, to free the request by")
        request = self._request_of(token_ids, request_id, router_config_override)
        if update_states:
            self._check_is_new(request_id)
        eligible = self._eligible(request, now_ms)
        if update_states:
            placed = self._place(request, eligible, now_ms, 0.0)
            return placed.worker_id, placed.dp_rank, int(placed.overlap_blocks)
        self._forget_old_guesses(now_ms)
        found = self._choose(request, eligible, now_ms)
        candidate = self.table.candidate(found.slot)
        return candidate.worker_id, candidate.dp_rank, int(found.overlap_blocks)

    def get_potential_loads(
        self, token_ids: Sequence[int], now_ms: float = 0.0
    ) -> list[dict[str, int]]:
        """What each candidate would have in hand with this prompt, in slot order."""
        request = self._request_of(token_ids, None, None)
        eligible = self._eligible(request, now_ms)
        self._forget_old_guesses(now_ms)
        options = self.choice.fresh_options(request, eligible, now_ms)
        return [
            {
                "worker_id": option.worker_id,
                "dp_rank": option.dp_rank,
                "potential_prefill_tokens": option.prefill_tokens,
                "potential_decode_blocks": option.decode_blocks,
            }
            for option in options
        ]

    def _request_of(
        self, token_ids: Sequence[int], request_id: Hashable, overrides: CostSettings | None
    ) -> RoutingRequest:
        if not len(token_ids):
            raise InvalidRequestError("the prompt is empty")
        local = local_hashes(token_ids, self.settings.block_size)
        return RoutingRequest(
            request_id,
            len(token_ids),
            len(local),
            local,
            sequence_hashes(local),
            overrides=overrides,
        )

    # ---- inside --------------------------------------------------------------------------------

    def _check_is_new(self, request_id: Hashable) -> None:
        """Raises: InvalidRequestError if a request of that name is in hand."""
        queue = self._queue
        if request_id in self.load.bookings or (queue is not None and request_id in queue):
            raise InvalidRequestError(f"a request {request_id!r} is in hand already")

    def _eligible(self, request: RoutingRequest, now_ms: float) -> int:
        """Slots that may serve a request now. Raises: RequestRefusedError."""
        constraints = request.constraints
        if self._is_direct and (constraints is None or constraints.pinned_worker is None):
            raise InvalidRequestError("router mode direct: the request names no worker")
        if constraints is None and self.table.all_mask:
            mask = self.table.all_mask
        else:
            mask = eligible_mask(self.table, constraints or UNCONSTRAINED)
        if self._affinity is not None and request.session_id is not None:
            mask = self._near_session(request.session_id, mask, now_ms)
        thresholds = self.settings.busy
        if thresholds.is_set:
            prefill_tokens = self.load.active_prefill_tokens(now_ms)
            mask &= ~busy_mask(thresholds, self.table, self.load.active_blocks(), prefill_tokens)
            if not mask:
                raise WorkersBusyError("all eligible workers are above a busy threshold")
        return mask

    def _near_session(self, session_id: str, mask: int, now_ms: float) -> int:
        """What is left of the eligible slots for a session that has a home."""
        assert self._affinity is not None
        home = self._affinity.lookup(session_id, now_ms)
        if home is None:
            return mask
        slot = self.table.slot_of(*home)
        bit = 0 if slot is None else 1 << slot
        if mask & bit:
            return bit
        if self._is_hard:
            raise NoEligibleWorkerError(
                f"session {session_id!r} lives on worker {home.worker_id}, which this request "
                "may not use"
            )
        return mask

    def _end_leases(self, session_ids: Sequence[str]) -> None:
        """Sessions were forgotten: what they still have in hand must not end a later binding."""
        for request_id in [r for r, s in self._leases.items() if s in session_ids]:
            del self._leases[request_id]

    def _waits(self, request: RoutingRequest, eligible: int, now_ms: float) -> bool:
        """Queue a request if it has to wait. Raises: QueueFullError."""
        assert self._queue is not None
        self._forget_old_guesses(now_ms)
        cached_tokens = self.choice.best_cached_tokens(request, eligible, now_ms)
        uncached_tokens = max(request.input_tokens - cached_tokens, 0)
        classes = self.settings.classes
        rules = class_for(classes, request.policy_family, uncached_tokens)
        if not rules.can_wait:
            return False
        prefill_tokens = self.load.active_prefill_tokens(now_ms)
        has_backlog = self._queue.depth(rules.name) > 0
        if not has_backlog and not must_wait(rules, self.table, eligible, prefill_tokens):
            return False
        constraints = request.constraints
        is_pinned = constraints is not None and constraints.pinned_worker is not None
        entry = QueuedRequest(
            request.request_id,
            request.input_tokens,
            cached_tokens,
            now_ms,
            request.priority_jump,
            request.strict_priority,
            eligible.bit_length() - 1 if is_pinned else None,
            request,
        )
        self._queue.push(rules.name, entry, len(self.table.cards))
        return True

    def _can_go(self, rules: PolicyClass, entry: QueuedRequest, now_ms: float) -> bool:
        """Whether a waiting request need wait no longer; one that nobody can serve goes to fail."""
        try:
            eligible = self._eligible(entry.payload, now_ms)
        except WorkersBusyError:
            return False
        except RequestRefusedError:
            return True
        prefill_tokens = self.load.active_prefill_tokens(now_ms)
        return not must_wait(rules, self.table, eligible, prefill_tokens)

    def _place(
        self, request: RoutingRequest, eligible: int, now_ms: float, queued_ms: float
    ) -> Decision:
        """Choose a slot among the eligible ones, book the request there and tell why."""
        self._forget_old_guesses(now_ms)
        placement = self._choose(request, eligible, now_ms)
        decision = self._book(request, placement, now_ms, queued_ms)
        if self._follower is not None:
            self._follower.note_routed(placement.slot, request.request_id, request.blocks, now_ms)
        if self._affinity is not None and request.session_id is not None:
            home = self.table.candidate(placement.slot)
            self._affinity.begin(request.session_id, home, now_ms)
            self._leases[request.request_id] = request.session_id
        return decision

    def _book(
        self, request: RoutingRequest, placement: Placement, now_ms: float, queued_ms: float
    ) -> Decision:
        slot, cost, overlap_blocks, cached_tokens = placement
        self.load.book(request, slot, cached_tokens, now_ms)
        worker_id, dp_rank = self.table.candidate(slot)
        # As `Decision(...)`, without a call of Python code.
        return new_tuple(
            Decision,
            (request.request_id, worker_id, dp_rank,
             slot, cost, overlap_blocks, cached_tokens, queued_ms),
        )  # fmt: skip

    def _forget_old_guesses(self, now_ms: float) -> None:
        """To be called before the index is asked."""
        if self._follower is not None:
            self._follower.expire(now_ms)

    def _choose(self, request: RoutingRequest, eligible: int, now_ms: float) -> Placement:
        if self.policy is not None:
            options = self.choice.fresh_options(request, eligible, now_ms)
            option = self.policy.choose(request, options, now_ms)
            return placement_of(check_choice(option, options, self.policy))
        if self._mode is not None:
            slot = self._mode.choose(eligible, self.load.num_requests)
            return self.choice.placement_on(slot, request, now_ms)
        return self.choice.choose(request, eligible, now_ms)
