"""The `kv` mode: places a request where cache and load together make it cheapest."""

from collections.abc import Callable
from random import Random
from typing import Generic, TypeVar

from dynosim.indexer.answers import Overlaps
from dynosim.indexer.base import Index
from dynosim.indexer.extents import ExtentIndex
from dynosim.indexer.tiered_extents import TieredExtents
from dynosim.indexer.tiers import KnowsTiers, TierOverlaps
from dynosim.router.cheapest import cheapest, group_by_savings, with_savings
from dynosim.router.cost import WorkerOption, draw_place, pick, worker_options
from dynosim.router.decision import ChosenSlot
from dynosim.router.eligibility import preference_factors
from dynosim.router.knobs import CostSpec
from dynosim.router.load import ActiveLoad
from dynosim.router.request import RoutingRequest
from dynosim.router.shared_cache import shared_overlaps
from dynosim.router.slots import nth_slot
from dynosim.router.workers import WorkerTable
from dynosim.workers.ids import Slot

NOTHING = Overlaps([])
E_contra = TypeVar("E_contra", contravariant=True)

Confirm = Callable[[int, float], bool]
"""Brings what an index knows of some slots up to date; see `LaggingIndex.confirm`."""


class KvChoice(Generic[E_contra]):
    """Chooses by the cost function of `dynosim.router.cost`.

    `confirm` is that of an index that may lag: it is asked about the slots that look cheapest, or
    about all that are looked at, before anything is decided by what the index says of them.
    """

    def __init__(
        self,
        table: WorkerTable,
        load: ActiveLoad,
        index: Index[E_contra],
        cost: CostSpec,
        generator: Random,
        confirm: Confirm | None = None,
    ) -> None:
        self._table = table
        self._block_size = table.block_size
        self._load = load
        self._index: ExtentIndex | Index[E_contra] = index
        given: object = index  # or a type checker takes it for impossible that it has tiers
        self._tiers: TieredExtents | KnowsTiers | None = None
        if isinstance(given, TieredExtents):  # named, so that a compiler calls it directly
            self._tiers = given
        elif isinstance(given, KnowsTiers):
            self._tiers = given
        self._cost = cost
        self._generator = generator
        self._confirm = confirm
        self._shared_prefix = load.active.shared_prefix
        self._load_scale = cost.prefill_load_scale if cost.track_prefill_tokens else 0.0
        self._price = cost.overlap_score_credit * self._load_scale
        self._slower_weights = list(cost.slower_weights)
        self._shared_multiplier = cost.shared_cache_multiplier
        self._assumes_reuse = cost.assume_kv_reuse
        self._has_plain_costs = cost.is_plain and not load.decays
        # A weight above 1 could drive prefill below 0; above the device's, evictions there would
        # add to what is saved, and an index that lags would err on the wrong side.
        # So would a store that all share, if what a tier has thrown out saved more from there.
        most = max(self._slower_weights)
        device_weight = min(1.0, cost.overlap_score_credit)
        self._is_shared_least = cost.shared_cache_multiplier <= device_weight
        self._has_plain_weights = most <= device_weight and cost.shared_cache_multiplier <= min(
            self._slower_weights
        )

    @property
    def is_plain(self) -> bool:
        """Whether, as things are, a plain cost and blocks on devices are all there is to see."""
        return self._has_plain_costs and not self._shared_multiplier and not self._has_slower

    @property
    def _has_slower(self) -> bool:
        return self._tiers is not None and self._tiers.has_slower

    def choose(self, request: RoutingRequest, eligible: int, now_ms: float) -> ChosenSlot:
        """The cheapest eligible slot; there must be one."""
        constraints = request.constraints
        has_preference = constraints is not None and bool(constraints.preferred_taints)
        if self._has_plain_costs and request.overrides is None and not has_preference:
            if self.is_plain:
                return self._choose_plain(request, eligible, now_ms)
            if self._has_plain_weights if self._has_slower else self._is_shared_least:
                return self._choose_by_tiers(request, eligible, now_ms)
        cost = self._cost if request.overrides is None else request.overrides
        options = self.fresh_options(request, eligible, now_ms)
        return placement_of(pick(options, cost.temperature, self._generator))

    def fresh_options(
        self, request: RoutingRequest, eligible: int, now_ms: float
    ) -> list[WorkerOption]:
        """`options`, with every candidate's part of the index up to date."""
        if self._confirm is not None:
            self._confirm(eligible, now_ms)
        return self.options(request, eligible, now_ms)

    def options(self, request: RoutingRequest, eligible: int, now_ms: float) -> list[WorkerOption]:
        """Every eligible candidate with its cost, in slot order."""
        constraints = request.constraints
        preference = {}
        if constraints is not None and constraints.preferred_taints:
            preference = preference_factors(self._table, constraints.preferred_taints)
        return worker_options(
            request,
            eligible,
            now_ms,
            table=self._table,
            load=self._load,
            tiers=self._overlaps(request),
            cost=self._cost if request.overrides is None else request.overrides,
            preference=preference,
        )

    def placement_on(self, slot: Slot, request: RoutingRequest, now_ms: float) -> ChosenSlot:
        """What a request would find on a slot that was chosen otherwise."""
        if self._confirm is not None:
            self._confirm(1 << slot, now_ms)
        return placement_of(self.options(request, 1 << slot, now_ms)[0])

    def best_cached_tokens(self, request: RoutingRequest, eligible: int, now_ms: float) -> int:
        """The most tokens of the prompt that an eligible candidate holds, slower tiers weighed."""
        if self._confirm is not None:
            self._confirm(eligible, now_ms)
        found = self._overlaps(request)
        groups = group_by_savings(eligible, found.device.classes, [], 1.0)
        weights = (self._cost if request.overrides is None else request.overrides).slower_weights
        for overlaps, weight in zip(found[1:], weights, strict=True):
            groups = with_savings(groups, overlaps.classes, weight)
        return round(max([blocks for blocks, _ in groups], default=0.0) * self._block_size)

    def _choose_plain(self, request: RoutingRequest, eligible: int, now_ms: float) -> ChosenSlot:
        """`choose`, where costs are plain and the request has no wishes."""
        load, confirm = self._load, self._confirm
        active = self._shared_prefix(request.keys if self._assumes_reuse else ())
        own_costs = load.own_costs()
        while True:
            overlaps = self._index.find_matches(request.blocks)
            groups = group_by_savings(eligible, overlaps.classes, active, self._price)
            best, lowest = cheapest(groups, own_costs)
            if confirm is None or confirm(best, now_ms):
                break
        slot = nth_slot(best, draw_place(best.bit_count(), self._generator))
        depth = overlaps.depth_of(slot)
        block_size = self._block_size
        prompt_cost = self._load_scale * (request.input_tokens / block_size)
        cost = lowest + prompt_cost + request.num_blocks
        return ChosenSlot(slot, cost, depth, depth * block_size)

    def _choose_by_tiers(self, request: RoutingRequest, eligible: int, now_ms: float) -> ChosenSlot:
        """`_choose_plain`, where somebody may hold blocks in slower tiers, or all in one."""
        confirm, scale, weights = self._confirm, self._load_scale, self._slower_weights
        active = self._shared_prefix(request.keys if self._assumes_reuse else ())
        own_costs = self._load.own_costs()
        while True:
            found = self._by_tier(request)
            groups = group_by_savings(eligible, found[0].classes, active, self._price)
            for number, weight in enumerate(weights):
                classes = found[number + 1].classes
                if classes:
                    groups = with_savings(groups, classes, weight * scale)
            if self._shared_multiplier and request.shared_ranges:
                shared = shared_overlaps(request.shared_ranges, TierOverlaps(*found), eligible)
                groups = with_savings(groups, shared, self._shared_multiplier * scale)
            best, lowest = cheapest(groups, own_costs)
            if confirm is None or confirm(best, now_ms):
                break
        slot = nth_slot(best, draw_place(best.bit_count(), self._generator))
        overlap_blocks = float(found[0].depth_of(slot))
        for number, weight in enumerate(weights):
            overlap_blocks += weight * found[number + 1].depth_of(slot)
        block_size = self._block_size
        cost = lowest + scale * (request.input_tokens / block_size) + request.num_blocks
        return ChosenSlot(slot, cost, overlap_blocks, round(overlap_blocks * block_size))

    def _by_tier(self, request: RoutingRequest) -> list[Overlaps]:
        """`_overlaps`, tier by tier."""
        tiers = self._tiers
        if isinstance(tiers, TieredExtents):
            return tiers.overlaps_by_tier(request.blocks)
        return list(self._overlaps(request))

    def _overlaps(self, request: RoutingRequest) -> TierOverlaps:
        if self._tiers is not None:
            return self._tiers.find_tier_matches(request.blocks)
        return TierOverlaps(self._index.find_matches(request.blocks), NOTHING, NOTHING, NOTHING)


def placement_of(option: WorkerOption) -> ChosenSlot:
    """The part of an option that a booking needs."""
    return ChosenSlot(option.slot, option.cost, option.overlap_blocks, option.cached_tokens)
