"""Tiers of KV below the device: what they hold, how fast they are, and who shares them.

The nearest tier takes what the device computes (`dynosim.engine.vllm.offload`); each further one
takes it from the one before. A GB is 1e9 bytes.
"""

from dataclasses import dataclass
from typing import Literal

from dynosim.blocks.tier import Tier
from dynosim.engine.host_cache import HostCache
from dynosim.engine.lanes import LaneSpec
from dynosim.engine.retaining_cache import RetainingCache
from dynosim.engine.spec import TierPolicy
from dynosim.memory.network import BYTES_PER_MS

Scope = Literal["worker", "node", "cluster"]
"""Who shares a tier: nobody, the workers of one place, or all."""

TierName = Literal["host", "disk", "remote", "peers"]
"""`peers`: what the nearest tiers of other workers hold, read over links between workers."""

LABELS: dict[TierName, Tier] = {"host": Tier.HOST, "disk": Tier.DISK, "remote": Tier.REMOTE}


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSpec:
    """One tier. Rates are those of one worker's copies to and from it; `total_read_gb_s` and
    `total_write_gb_s`, of all that share it."""

    name: TierName
    num_blocks: int
    read_gb_s: float
    write_gb_s: float
    latency_ms: float = 0.0  # before the first byte
    scope: Scope = "worker"
    policy: TierPolicy = "lru"
    store_threshold: int = 0
    prompt_only: bool = False
    total_read_gb_s: float | None = None  # None: no limit
    total_write_gb_s: float | None = None

    @property
    def is_shared(self) -> bool:
        """Whether several workers use it."""
        return self.scope != "worker"

    @property
    def label(self) -> Tier | None:
        """What KV events call it. Of a shared tier there are none: it favours no worker."""
        return None if self.is_shared else LABELS.get(self.name)

    def make_cache(self, *, retains: bool = False) -> HostCache:
        """An empty one; `retains`: it keeps in mind what requests say of their blocks."""
        if retains:
            return RetainingCache(self.num_blocks, self.policy, self.store_threshold)
        return HostCache(self.num_blocks, self.policy, self.store_threshold)


@dataclass(frozen=True, slots=True, kw_only=True)
class TiersSpec:
    """The tiers of each worker of a pool, the nearest first.

    `block_bytes` is the size of a block on all GPUs of a worker together. `domain` is the topology
    domain whose values are the nodes of tiers shared by one. `writes_evicted`: a tier takes what
    the nearer one throws out, not what it stores. `is_choosy`: what computing brings sooner is not
    loaded; at the end of what is found no fewer than `granularity_blocks` are.
    """

    tiers: tuple[TierSpec, ...]
    block_bytes: int
    domain: str = "node"
    writes_evicted: bool = False
    is_choosy: bool = False
    granularity_blocks: int = 1

    def load_block_ms(self, tier: TierSpec) -> float:
        """How long a worker takes to get a block from a tier, without what comes before the first
        byte."""
        return self.block_bytes / (tier.read_gb_s * BYTES_PER_MS)

    def lanes(self) -> LaneSpec:
        """The copies between the device and the nearest tier."""
        nearest = self.tiers[0]
        return LaneSpec(
            store_setup_ms=nearest.latency_ms,
            store_block_ms=self.block_bytes / (nearest.write_gb_s * BYTES_PER_MS),
            load_setup_ms=nearest.latency_ms,
            load_block_ms=self.load_block_ms(nearest),
            loads_elsewhere=nearest.is_shared,
            stores_are_heard=self.goes_elsewhere,
        )

    @property
    def are_published(self) -> bool:
        """Whether KV events tell of any."""
        return any(tier.label is not None for tier in self.tiers)

    @property
    def heed_worth(self) -> bool:
        """Whether any goes by what requests say of their blocks."""
        return any(tier.policy == "priority" for tier in self.tiers)

    @property
    def goes_elsewhere(self) -> bool:
        """Whether anything goes over links but those between a device and a tier of its own."""
        return len(self.tiers) > 1 or self.tiers[0].is_shared
