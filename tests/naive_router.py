"""The router by its definitions: every candidate priced from scratch, nothing kept up to date.

As docs/routing.md and the docstrings of `dynosim.router` put it, over `NaiveLoad`, `NaiveQueue`
and `NaiveCaches`. Where the router draws lots, it says where it went (`taken`), and the naive one
checks that it might. Everything else must come out equal.
"""

from collections.abc import Hashable, Sequence
from math import ceil, exp, tanh
from typing import Any

from naive_caches import NaiveCaches
from naive_workers import Home, NaiveWorkers

from dynosim.blocks.hashing import local_hashes, sequence_hashes
from dynosim.router.classes import UNKNOWN_TOKEN_BUDGET, PolicyClass
from dynosim.router.cost import WorkerOption
from dynosim.router.decision import Decision, Refusal
from dynosim.router.knobs import CostSpec, RouterSpec
from dynosim.router.queue import QueuedRequest
from dynosim.router.refusals import (
    InvalidRequestError,
    RequestRefusedError,
    WorkersBusyError,
)
from dynosim.router.request import RoutingRequest
from dynosim.router.workers import Candidate

NEAR = 1e-9  # costs that differ by less are equal: sums of floats in another order


class NaiveRouter(NaiveWorkers):
    """Takes what a `KvRouter` takes and answers as it must.

    `picks` stands for a placement policy: it chooses among the options.
    """

    def __init__(
        self,
        settings: RouterSpec,
        caches: NaiveCaches,
        *,
        estimator: Any = None,
        picks: Any = None,
    ) -> None:
        super().__init__(settings, caches, estimator=estimator)
        self.picks = picks
        self.next_slot = 0  # round-robin
        self.taken: list[int] = []  # where the router went, one for each placement

    # ---- requests ------------------------------------------------------------------------------

    def submit(self, request: RoutingRequest, now_ms: float) -> Decision | None:
        if request.input_tokens < 1:
            raise InvalidRequestError("empty")
        self._check_is_new(request.request_id)
        eligible = self.eligible(request, now_ms)
        if self._waits(request, eligible, now_ms):
            return None
        return self._place(request, eligible, now_ms, 0.0)

    def release(self, now_ms: float) -> list[Decision | Refusal]:
        placed: list[Decision | Refusal] = []
        while (entry := self.queue.pop(lambda r, e: self._can_go(r, e, now_ms))) is not None:
            request: RoutingRequest = entry.request
            try:
                eligible = self.eligible(request, now_ms)
            except RequestRefusedError as error:
                placed.append(Refusal(request.request_id, error))
                continue
            placed.append(self._place(request, eligible, now_ms, now_ms - entry.enqueue_ms))
        return placed

    def first_token(self, request_id: Hashable, now_ms: float) -> None:
        self.load.first_token(request_id, now_ms)

    def output_tokens(self, request_id: Hashable, num_tokens: int, now_ms: float) -> None:
        self.load.output_tokens(request_id, num_tokens, now_ms)

    def free(self, request_id: Hashable, now_ms: float) -> None:
        if not self.load.free(request_id, now_ms):
            self.queue.discard(request_id)
            return
        self.caches.end(request_id)
        for home in self.homes.values():
            if request_id in home.in_flight:
                home.in_flight.remove(request_id)
                home.idle_since_ms = now_ms

    def drop_stale(self, now_ms: float) -> list[Hashable]:
        stale = self.load.stale(now_ms)
        for request_id in stale:
            self.free(request_id, now_ms)
        return stale

    def unbind_session(self, session_id: str) -> None:
        self.homes.pop(session_id, None)

    def best_worker(
        self,
        token_ids: Sequence[int],
        request_id: Hashable = None,
        *,
        update_states: bool = False,
        router_config_override: CostSpec | None = None,
        now_ms: float = 0.0,
    ) -> tuple[int, int, int]:
        request = self._request_of(token_ids, request_id, router_config_override)
        if update_states:
            self._check_is_new(request_id)
            decision = self._place(request, self.eligible(request, now_ms), now_ms, 0.0)
            return decision.worker_id, decision.dp_rank, int(decision.overlap_blocks)
        found = self._choose(request, self.eligible(request, now_ms), now_ms)
        return found.worker_id, found.dp_rank, int(found.overlap_blocks)

    def get_potential_loads(
        self, token_ids: Sequence[int], now_ms: float = 0.0
    ) -> list[dict[str, int]]:
        request = self._request_of(token_ids, None, None)
        return [
            {
                "worker_id": option.worker_id,
                "dp_rank": option.dp_rank,
                "potential_prefill_tokens": option.prefill_tokens,
                "potential_decode_blocks": option.decode_blocks,
            }
            for option in self.options(request, self.eligible(request, now_ms), now_ms)
        ]

    @property
    def num_queued(self) -> int:
        return len(self.queue)

    # ---- who waits -----------------------------------------------------------------------------

    def _waits(self, request: RoutingRequest, eligible: list[int], now_ms: float) -> bool:
        classes = self.settings.classes
        if not classes:
            return False
        options = self.options(request, eligible, now_ms)
        cached_tokens = max(option.cached_tokens for option in options)
        uncached = max(request.input_tokens - cached_tokens, 0)
        rules = next(
            (c for c in classes if _takes(c, request.policy_family, uncached)), classes[-1]
        )
        if rules.prefill_busy_threshold is None and rules.prefill_busy_threshold_frac is None:
            return False
        if not self.queue.depth(rules.name) and not self._must_wait(rules, eligible, now_ms):
            return False
        is_pinned = (
            request.constraints is not None and request.constraints.pinned_worker is not None
        )
        pinned_slot = max(eligible) if is_pinned else None
        entry = QueuedRequest(request, cached_tokens, now_ms, pinned_slot)
        self.queue.push(rules.name, entry, len(self.cards))
        return True

    def _must_wait(self, rules: PolicyClass, eligible: list[int], now_ms: float) -> bool:
        def is_busy(slot: int) -> bool:
            tokens = self.load.prefill_tokens(slot, now_ms)
            most, times = rules.prefill_busy_threshold, rules.prefill_busy_threshold_frac
            budget = self.card(slot).max_num_batched_tokens
            budget = UNKNOWN_TOKEN_BUDGET if budget is None else budget
            by_budget = times is not None and tokens > times * budget
            return by_budget or (most is not None and tokens > most)

        return sum(map(is_busy, eligible)) >= rules.busy_worker_ratio * len(eligible)

    def _can_go(self, rules: PolicyClass, entry: QueuedRequest, now_ms: float) -> bool:
        try:
            eligible = self.eligible(entry.request, now_ms)
        except WorkersBusyError:
            return False
        except RequestRefusedError:
            return True  # goes, to be refused
        return not self._must_wait(rules, eligible, now_ms)

    # ---- who gets it ---------------------------------------------------------------------------

    def options(
        self, request: RoutingRequest, slots: list[int], now_ms: float
    ) -> list[WorkerOption]:
        """Every candidate with its cost, as the documentation writes the formula."""
        cost = request.overrides or self.settings.cost
        block_size = self.settings.block_size
        queued = {slot: self.load.prefill_tokens(slot, now_ms) for slot in slots}
        options = []
        for slot in slots:
            device, host, *beyond = self.caches.depths(slot, tuple(request.blocks), now_ms)
            slower = cost.host_cache_hit_weight * host + cost.disk_cache_hit_weight * sum(beyond)
            cached_tokens = round((device + slower) * block_size)
            keys = request.keys if cost.assume_kv_reuse else ()
            decode = self.load.blocks(slot) + request.num_blocks
            decode -= self.load.active_prefix(slot, keys)
            decay, tokens = 1.0, 0
            if cost.track_prefill_tokens:
                surplus = (queued[slot] - min(queued.values())) / block_size
                prompt_blocks = ceil(request.input_tokens / block_size)
                decay = 1 / (1 + cost.overlap_score_credit_decay * surplus / prompt_blocks)
                tokens = queued[slot] + max(request.input_tokens, cached_tokens)
            credit = cost.overlap_score_credit * decay * device + slower
            credit += cost.shared_cache_multiplier * _shared_blocks(
                request, device + host + sum(beyond)
            )
            price = cost.prefill_load_scale * max(tokens / block_size - credit, 0) + decode
            price += cost.active_request_weight * self.load.num_requests(slot)
            price *= self._taint_factor(slot, request)
            worker_id, rank = self.slots[slot]  # type: ignore[misc]
            left = max(tokens - cached_tokens, 0)
            options.append(
                WorkerOption(
                    worker_id, rank, slot, price, device + slower, cached_tokens, left, decode,
                    self.load.num_requests(slot),
                )
            )  # fmt: skip
        return options

    def _taint_factor(self, slot: int, request: RoutingRequest) -> float:
        wishes = {} if request.constraints is None else request.constraints.preferred_taints
        return exp(-tanh(sum(w for taint, w in wishes.items() if self.has_taint(slot, taint))))

    def _choose(self, request: RoutingRequest, slots: list[int], now_ms: float) -> WorkerOption:
        options = self.options(request, slots, now_ms)
        if self.picks is not None:
            return self.picks.choose(request, options, now_ms)  # type: ignore[no-any-return]
        if self.settings.mode not in ("kv", "direct"):
            slots = self._by_load(slots)
            options = [self.options(request, [slot], now_ms)[0] for slot in slots]
        elif (request.overrides or self.settings.cost).temperature == 0:
            lowest = min(option.cost for option in options)
            options = [option for option in options if option.cost <= lowest + NEAR]
        taken = self.taken.pop(0)
        assert taken in [option.slot for option in options], (taken, options)
        return next(option for option in options if option.slot == taken)

    def _by_load(self, slots: list[int]) -> list[int]:
        """The slots that a load mode may choose."""
        mode, count = self.settings.mode, self.load.num_requests
        if mode == "random":
            return slots
        if mode == "power-of-two":  # any but one that every other beats
            others = {slot: [o for o in slots if o != slot] for slot in slots}
            return [
                s for s in slots if not others[s] or any(count(o) >= count(s) for o in others[s])
            ]
        if mode == "round-robin":
            slot = min((s for s in slots if s >= self.next_slot), default=min(slots))
            self.next_slot = slot + 1
            return [slot]
        if mode == "device-aware-weighted":
            slots = self._lighter_devices(slots)
        return [min(slots, key=lambda slot: (count(slot), slot))]

    def _lighter_devices(self, slots: list[int]) -> list[int]:
        cpus = [slot for slot in slots if self.card(slot).device == "cpu"]
        gpus = [slot for slot in slots if self.card(slot).device != "cpu"]
        if not cpus or not gpus:
            return slots
        cpu_load = sum(map(self.load.num_requests, cpus)) / len(cpus)
        weight = len(gpus) * self.settings.cuda_to_cpu_ratio
        return gpus if sum(map(self.load.num_requests, gpus)) / weight <= cpu_load else cpus

    def _place(
        self, request: RoutingRequest, slots: list[int], now_ms: float, queued_ms: float
    ) -> Decision:
        option = self._choose(request, slots, now_ms)
        self.load.book(request, option.slot, option.cached_tokens, now_ms)
        self.caches.route(option.slot, request.request_id, tuple(request.blocks), now_ms)
        if self.settings.affinity is not None and request.session_id is not None:
            candidate = Candidate(option.worker_id, option.dp_rank)
            known = self.homes.get(request.session_id)
            in_flight = set() if known is None else known.in_flight
            self.homes[request.session_id] = Home(candidate, in_flight | {request.request_id})
        return Decision(
            request.request_id, option.worker_id, option.dp_rank, option.slot, option.cost,
            option.overlap_blocks, option.cached_tokens, queued_ms,
        )  # fmt: skip

    # ---- inside --------------------------------------------------------------------------------

    def _check_is_new(self, request_id: Hashable) -> None:
        if self.load.named(request_id) is not None or request_id in self.queue:
            raise InvalidRequestError("in flight already")

    def _request_of(
        self, token_ids: Sequence[int], request_id: Hashable, overrides: CostSpec | None
    ) -> RoutingRequest:
        local = local_hashes(token_ids, self.settings.block_size)
        return RoutingRequest(
            request_id, len(token_ids), len(local), local, sequence_hashes(local),
            overrides=overrides,
        )  # fmt: skip


def _shared_blocks(request: RoutingRequest, own_blocks: int) -> int:
    """Blocks behind a candidate's own that a store of all has, one by one."""
    held = {block for first, end in request.shared_ranges for block in range(first, end)}
    number = 0
    while own_blocks + number in held:
        number += 1
    return number


def _takes(rules: PolicyClass, family: str | None, uncached: int) -> bool:
    top = rules.max_uncached_tokens
    in_bucket = uncached >= rules.min_uncached_tokens and (top is None or uncached < top)
    return in_bucket and rules.policy_family in (None, family)
