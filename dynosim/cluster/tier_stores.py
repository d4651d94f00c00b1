"""The tiers of a cluster: what each worker gets to use, and what all of them held in the end."""

from dynosim.cluster.pool import Worker
from dynosim.engine.host_cache import HostCache
from dynosim.engine.tiers import Beyond, PeerCaches
from dynosim.memory.onboarding import FasterOnboarding
from dynosim.memory.tiers import TierSpec, TiersSpec
from dynosim.records import TierLog
from dynosim.timing.prefill_estimate import StepTimeEstimator


class TierStores:
    """Makes each tier once for those that share it; `of_all` is that of all workers."""

    def __init__(self) -> None:
        self.of_all: HostCache | None = None
        self._shared: dict[tuple[str, str], HostCache] = {}  # by name and place
        self._nearest: list[HostCache] = []  # of all workers that live
        self._all: dict[str, list[HostCache]] = {}  # by name of the tier

    def equip(self, worker: Worker, spec: TiersSpec) -> Beyond:
        """Let a new worker use its tiers; returns those beyond the nearest."""
        core = worker.engine.core
        retains = spec.heed_worth and core.retention is not None
        caches: list[HostCache] = []
        for tier in spec.tiers:
            if tier.name == "peers":
                caches.append(self._keep(tier, PeerCaches(caches[0], self._nearest)))
            else:
                caches.append(self._cache(worker, spec, tier, retains=retains))
        self._nearest.append(caches[0])
        beyond = Beyond(
            caches[1:],
            [tier.label for tier in spec.tiers],
            _onboarding(worker, spec),
            writes_evicted=spec.writes_evicted,
            is_live=spec.goes_elsewhere,
        )
        core.use_tiers(caches[0], beyond)
        worker.nearest_tier = caches[0]
        return beyond

    def leave(self, worker: Worker) -> None:
        """A worker is gone, and the memory of its host with it."""
        if worker.nearest_tier is not None and worker.nearest_tier in self._nearest:
            self._nearest.remove(worker.nearest_tier)

    def clear(self) -> None:
        """The run is over: what is held refers to each other, and no collector looks for that."""
        for caches in self._all.values():
            for cache in caches:
                cache.clear()

    def _cache(
        self, worker: Worker, spec: TiersSpec, tier: TierSpec, *, retains: bool
    ) -> HostCache:
        if not tier.is_shared:
            return self._keep(tier, tier.make_cache(retains=retains))
        place = worker.card.topology[spec.domain] if tier.scope == "node" else ""
        found = self._shared.get((tier.name, place))
        if found is None:
            cache = tier.make_cache(retains=retains)
            found = self._shared[tier.name, place] = self._keep(tier, cache)
            if tier.scope == "cluster":
                self.of_all = found
        return found

    def _keep(self, tier: TierSpec, cache: HostCache) -> HostCache:
        self._all.setdefault(tier.name, []).append(cache)
        return cache

    def log(self) -> tuple[TierLog, ...]:
        """What was stored, loaded and thrown out, tier by tier."""
        return tuple(
            TierLog(
                name=name,
                capacity_blocks=sum(cache.capacity for cache in caches),
                stored_blocks=sum(cache.num_stored for cache in caches),
                evicted_blocks=sum(cache.num_evicted for cache in caches),
                lost_blocks=sum(cache.num_lost for cache in caches),
                resident_blocks=sum(len(cache) for cache in caches),
                loaded_blocks=sum(cache.num_loaded for cache in caches),
            )
            for name, caches in self._all.items()
        )


def _onboarding(worker: Worker, spec: TiersSpec) -> FasterOnboarding | None:
    if not spec.is_choosy:
        return None
    pool = worker.pool
    return FasterOnboarding(
        StepTimeEstimator(pool.times, pool.engine.max_num_batched_tokens),
        pool.block_size,
        [tier.latency_ms for tier in spec.tiers],
        [spec.load_block_ms(tier) for tier in spec.tiers],
        spec.granularity_blocks,
    )
