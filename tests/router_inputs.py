"""Random routers, and inputs to them that hit every threshold exactly as often as not.

Times, weights and lengths are such that sums of floats are exact in any order: what two routers
answer must then be equal, not nearly so.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any

from naive_caches import BoundedGuesses, NaiveCaches, TimedGuesses
from router_support import BLOCK, card

from dynosim.blocks.hashing import local_hashes, sequence_hashes
from dynosim.blocks.tier import Tier
from dynosim.indexer.approximate import ApproximateIndex, PredictedIndex
from dynosim.indexer.base import BlockEvent, Cleared, Removed, Stored
from dynosim.indexer.make import make_indexer
from dynosim.indexer.tiers import TieredIndex
from dynosim.router.busy import BusyThresholds
from dynosim.router.classes import PolicyClass
from dynosim.router.cost import WorkerOption
from dynosim.router.eligibility import Constraints
from dynosim.router.knobs import AffinitySpec, CostSpec, LoadSpec, RouterSpec
from dynosim.router.modes import MODES
from dynosim.router.request import RoutingRequest

TOKENS = [[kind] * BLOCK for kind in range(3)]
LOCAL = [local_hashes(tokens, BLOCK)[0] for tokens in TOKENS]
EXACT_INDEXES = ("radix", "compressed", "positional", "positional-binary")
TTL_MS = 8.0
Call = Callable[..., Any]


class Keeps:
    """A placement policy that takes the option with the fewest requests, and keeps all it saw."""

    def __init__(self) -> None:
        self.seen: list[list[WorkerOption]] = []

    def choose(
        self, request: RoutingRequest, options: Sequence[WorkerOption], now_ms: float
    ) -> WorkerOption:
        self.seen.append(list(options))
        return min(options, key=lambda option: (option.num_requests, -option.slot))


class PowersOfTwo:
    """Predicts prefill times whose shares are exact; of some prompts it cannot tell."""

    def predict_ms(self, new_tokens: int, cached_tokens: int) -> float | None:
        choices = (4.0, 8.0, 16.0, None, 0.0, 8.0)
        return choices[(new_tokens + cached_tokens // BLOCK) % len(choices)]


def random_cost(rng: random.Random, *, is_plain: bool) -> CostSpec:
    """Weights of the cost function; plain ones leave the price to be found by a shortcut."""
    return CostSpec(
        overlap_score_credit=rng.choice([1.0, 0.5, 0.0] if is_plain else [1.0, 1.5, 2.0, 0.25]),
        overlap_score_credit_decay=0.0 if is_plain else rng.choice([0.0, 0.5, 3.0]),
        prefill_load_scale=rng.choice([1.0, 0.25, 4.0, 0.0]),
        host_cache_hit_weight=rng.choice([0.75, 0.5, 1.5]),
        disk_cache_hit_weight=rng.choice([0.25, 0.125]),
        shared_cache_multiplier=rng.choice([0.0, 0.125] if is_plain else [0.0, 0.125, 0.5]),
        active_request_weight=rng.choice([0.0, 0.5, 2.0]),
        temperature=0.0 if is_plain else rng.choice([0.0, 0.0, 0.5]),
        track_prefill_tokens=rng.random() < 0.8,
        assume_kv_reuse=rng.random() < 0.8,
    )


def random_settings(rng: random.Random, *, is_plain: bool) -> RouterSpec:
    """Plain kv routing, or any mode with any features."""
    cost = random_cost(rng, is_plain=is_plain)
    point = rng.random()  # for both: their lots are independent
    load = LoadSpec(point < 0.5, 10 * point % 1 < 0.8, stale_after_ms=16.0)
    if is_plain:
        return RouterSpec(BLOCK, mode="kv", cost=cost, load=load, seed=rng.randint(0, 9))
    affinity = AffinitySpec(rng.choice([2.0, TTL_MS]), rng.choice(["hard", "soft"]))
    return RouterSpec(
        BLOCK,
        mode=rng.choice(["kv"] * len(MODES) + list(MODES)),
        cost=cost,
        load=load,
        classes=random_classes(rng) if rng.random() < 0.5 else (),
        busy=random_busy(rng) if rng.random() < 0.3 else BusyThresholds(),
        affinity=affinity if rng.random() < 0.5 else None,
        cuda_to_cpu_ratio=rng.choice([2.0, 8.0]),
        seed=rng.randint(0, 9),
    )


def random_busy(rng: random.Random) -> BusyThresholds:
    """Limits that a few blocks and prompts reach exactly."""
    return BusyThresholds(
        rng.choice([None, 0.25, 0.5]), rng.choice([None, 32, 48]), rng.choice([None, 0.5, 1.0])
    )


def random_classes(rng: random.Random) -> tuple[PolicyClass, ...]:
    """One to three classes with small quanta, limits and buckets."""

    def made(name: str, **fields: Any) -> PolicyClass:
        threshold = rng.choice([None, 0, 16, 32])
        return PolicyClass(
            name=name,
            queue_policy=rng.choice(["fcfs", "lcfs", "wspt"]),
            quantum=rng.choice([1, 16, 40, 64]),
            prefill_busy_threshold=threshold,
            prefill_busy_threshold_frac=rng.choice([None, 0.25, 0.5]),
            busy_worker_ratio=rng.choice([1.0, 1.0, 0.5, 0.75]),
            request_queue_limit_per_worker=rng.choice([None, None, 1, 2]),
            raw_isl_token_queue_limit_per_worker=rng.choice([None, None, 48]),
            cached_token_queue_limit_per_worker=rng.choice([None, None, 32]),
            **fields,
        )

    low = rng.choice([0, 16])
    classes = [
        made("batch", policy_family="batch", min_uncached_tokens=low),
        made("short", min_uncached_tokens=low, max_uncached_tokens=rng.choice([32, 48])),
        made("rest", min_uncached_tokens=rng.choice([0, 64])),
    ]
    return tuple(rng.sample(classes, rng.randint(1, 3)))


def random_caches(rng: random.Random, *, is_plain: bool) -> tuple[Call, NaiveCaches]:
    """What makes an empty index, and what that index must answer alike."""
    kind = 0.0 if is_plain else rng.random()
    name = rng.choice(EXACT_INDEXES)
    if kind < 0.6:
        return lambda: make_indexer(name), NaiveCaches()
    if kind < 0.75:
        return lambda: ApproximateIndex(ttl_ms=TTL_MS), NaiveCaches(TimedGuesses(TTL_MS))
    if kind < 0.85:
        return lambda: ApproximateIndex(capacity_blocks=4), NaiveCaches(BoundedGuesses(4))
    guesses = NaiveCaches(TimedGuesses(TTL_MS))
    return lambda: PredictedIndex(make_indexer(name), ApproximateIndex(ttl_ms=TTL_MS)), guesses


def tiers_of(index: Any) -> list[Tier] | None:
    """The tiers that events to an index may be about; None: it takes no events."""
    if isinstance(index, ApproximateIndex):
        return None
    primary = index.primary if isinstance(index, PredictedIndex) else index
    return list(Tier) if isinstance(primary, TieredIndex) else [Tier.DEVICE]


class Inputs:
    """What happens to a router: `next` gives one call after the other, to make of several."""

    def __init__(
        self, rng: random.Random, settings: RouterSpec, tiers: Sequence[Tier] | None
    ) -> None:
        self.rng = rng
        self.now_ms = 0.0
        self._settings = settings
        self._tiers = tiers  # of events; None: there are none
        self._names: list[Any] = []
        self._num_named = 0
        self._held: dict[tuple[int, int], dict[int, tuple[int, ...]]] = {}  # rank -> name -> prompt

    def next(self) -> Call:
        rng = self.rng
        self.now_ms += rng.choice([0.0, 0.0, 0.5, 1.0, 2.0])
        kinds = [self._arrive] * 7 + [self._first] * 3 + [self._end] * 3 + [self._tokens] * 3
        kinds += [self._event] * 6 + [self._release] * 3 + [self._rare] * 2
        kinds += [self._join] * (20 if len(self._held) < 2 else 1)
        return rng.choice(kinds)()

    # ---- requests ------------------------------------------------------------------------------

    def _arrive(self) -> Call:
        now_ms = self.now_ms
        made = self._request(self._name())
        return lambda router: router.submit(made, now_ms)

    def _request(self, name: Any) -> RoutingRequest:
        """Whole blocks, blocks of nobody else's, and a rest; or nothing at all."""
        rng = self.rng
        local = self._some_blocks(rng.choice([0, 1, 2, 2, 3, 4, 5]))
        num_blocks = len(local) + rng.choice([0, 0, 0, 2])
        wishes = not self._is_plain or rng.random() < 0.1
        return RoutingRequest(
            name,
            BLOCK * num_blocks + rng.choice([0, 0, 1, 8, BLOCK - 1]),
            num_blocks,
            local,
            sequence_hashes(local),
            priority_jump=rng.choice([0.0, 0.0, 0.002, -1.0]),
            strict_priority=rng.choice([0, 0, 0, 1, 2]),
            expected_output_tokens=rng.choice([None, None, 64, 16, 0]),
            session_id=rng.choice([None, "a", "b", "c"]),
            constraints=self._constraints() if wishes else None,
            policy_family=rng.choice([None, "batch", "other"]),
            overrides=random_cost(rng, is_plain=False) if wishes and rng.random() < 0.15 else None,
            shared_ranges=self._shared_ranges(num_blocks),
        )

    def _shared_ranges(self, num_blocks: int) -> tuple[tuple[int, int], ...]:
        """What a store of all workers holds of a prompt: nothing, all, or a part of it."""
        first, end, last = sorted(self.rng.choices(range(num_blocks + 1), k=3))
        two = ((0, first), (end, last)) if first < end else ((0, last),)
        parts = self.rng.choice([(), ((0, num_blocks),), ((first, end),), two])
        return tuple((begin, stop) for begin, stop in parts if begin < stop)

    def _some_blocks(self, count: int) -> list[int]:
        """Mostly the same few prompts, so that caches are met."""
        return self.rng.choices(LOCAL, (6, 2, 1), k=count)

    @property
    def _is_plain(self) -> bool:
        settings = self._settings
        return settings == RouterSpec(
            BLOCK, mode="kv", cost=settings.cost, load=settings.load, seed=settings.seed
        )

    def _constraints(self) -> Constraints | None:
        rng = self.rng
        if rng.random() < (0.1 if self._settings.mode == "direct" else 0.55):
            return None
        some = frozenset(rng.sample(range(5), rng.randint(2, 4)))
        pinned = rng.random() < (0.9 if self._settings.mode == "direct" else 0.25)
        worker_id, rank = rng.choice(list(self._held) or [(0, 0)])
        taints = [(), (), (), (), ("x",), ("dynamo.topology/zone=a",)]
        return Constraints(
            allowed_workers=some if rng.random() < 0.4 else None,
            pinned_worker=worker_id if pinned else None,
            pinned_dp_rank=rng.choice([None, None, rank, 3]) if pinned else None,
            required_taints=frozenset(rng.choice(taints)),
            preferred_taints=rng.choice([{}, {"y": 0.5, "x": -0.25}, {"x": 0.25, "y": 0.25}]),
        )

    def _first(self) -> Call:
        name, now_ms = self._known(), self.now_ms
        return lambda router: router.first_token(name, now_ms)

    def _tokens(self) -> Call:
        name, now_ms = self._known(), self.now_ms
        count = self.rng.choice([0, 1, 4, 8, 15, 16, 17, 32, 48, 64, 80])
        return lambda router: router.output_tokens(name, count, now_ms)

    def _end(self) -> Call:
        name, now_ms = self._known(), self.now_ms
        if name in self._names:
            self._names.remove(name)
        return lambda router: router.free(name, now_ms)

    def _release(self) -> Call:
        now_ms = self.now_ms
        return lambda router: router.release(now_ms)

    def _name(self) -> Any:
        """A new name, or (rarely) one that is in flight."""
        if self._names and self.rng.random() < 0.04:
            return self.rng.choice(self._names)
        self._num_named += 1
        self._names.append(self._num_named)
        return self._num_named

    def _known(self) -> Any:
        return self.rng.choice(self._names) if self._names else "nobody"

    # ---- workers -------------------------------------------------------------------------------

    def _join(self) -> Call:
        rng = self.rng
        made = card(
            rng.randint(0, 4),
            dp_size=rng.choice([1, 1, 2]),
            dp_start=rng.choice([0, 0, 3]),
            total_kv_blocks=rng.choice([None, 8, 16]),
            max_num_batched_tokens=rng.choice([None, 32, 64]),
            device=rng.choice(["gpu", "gpu", "cpu"]),
            taints=frozenset(rng.sample(["x", "y"], rng.randint(0, 2))),
            topology={"zone": rng.choice(["a", "b"])},
        )
        self._forget(made.worker_id)
        for rank in range(made.dp_start, made.dp_start + made.dp_size):
            self._held[made.worker_id, rank] = {}
        return lambda router: router.add_worker(made)

    def _forget(self, worker_id: int) -> None:
        for who in [who for who in self._held if who[0] == worker_id]:
            del self._held[who]

    def _event(self) -> Call:
        if self._tiers is None or not self._held:
            return self._arrive()
        who = self.rng.choice(list(self._held))
        held = self._held[who]
        events = [self._block_event(held) for _ in range(self.rng.randint(1, 2))]
        return lambda router: router.apply_events(*who, events)

    def _block_event(self, held: dict[int, tuple[int, ...]]) -> BlockEvent:
        """Stored, removed (also with holes, also unknown) and cleared blocks of some tier."""
        rng = self.rng
        assert self._tiers is not None
        tier, point = rng.choice(self._tiers), rng.random()
        if point < 0.65:
            parent = rng.choice([None, *held])
            before = () if parent is None else held[parent]
            local = self._some_blocks(rng.randint(1, 4))
            names = sequence_hashes([*before, *local])[len(before) :]
            held |= {n: (*before, *local[: i + 1]) for i, n in enumerate(names)}
            return Stored(parent, names, local, tier)
        if point < 0.7:
            return Stored(12345, [54321], [LOCAL[0]], tier)  # behind a block that is not there
        if point < 0.96:
            return Removed(rng.sample([*held, 777], min(len(held) + 1, rng.randint(1, 2))), tier)
        return Cleared(rng.choice([None, tier]))

    def _rare(self) -> Call:
        rng, now_ms = self.rng, self.now_ms
        kind = rng.choice(
            ["leave", "leave", "stale", "unbind", "stranger", "best", "best", "loads"]
        )
        if kind == "leave":
            worker_id = rng.randint(0, 4)
            self._forget(worker_id)
            return lambda router: router.remove_worker(worker_id)
        if kind == "stale":
            return lambda router: router.drop_stale(now_ms)
        if kind == "unbind":
            session_id = rng.choice(["a", "b", "c"])
            return lambda router: router.unbind_session(session_id)
        if kind == "stranger":
            return lambda router: router.apply_events(9, 0, [Removed([1])])
        tokens = [token for kind in rng.choices(TOKENS, (6, 2, 1), k=3) for token in kind]
        tokens += [7] * rng.randint(0, BLOCK - 1)
        if kind == "loads":
            return lambda router: router.get_potential_loads(tokens, now_ms)
        keeps_turn = self._settings.mode == "round-robin"  # a peek would move on whose turn it is
        name = self._name() if keeps_turn or rng.random() < 0.5 else None
        overrides = random_cost(rng, is_plain=False) if rng.random() < 0.3 else None
        return lambda router: router.best_worker(
            tokens, name, update_states=name is not None, router_config_override=overrides,
            now_ms=now_ms,
        )  # fmt: skip
