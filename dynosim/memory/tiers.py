"""Tiers of KV below the device: what they hold, how fast they are, and who shares them.

The nearest tier takes what the device computes (`dynosim.engine.vllm.offload`); each further one
takes it from the one before. A GB is 1e9 bytes.
"""

from dataclasses import dataclass
from typing import Literal

from dynosim.engine.lanes import LaneSpec
from dynosim.engine.spec import EvictionPolicy
from dynosim.memory.network import BYTES_PER_MS

Scope = Literal["worker", "node", "cluster"]
"""Who shares a tier: nobody, the workers of one place, or all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TierSpec:
    """One tier. Rates are those of one worker's copies to and from it."""

    name: Literal["host", "disk", "remote"]
    num_blocks: int
    read_gb_s: float
    write_gb_s: float
    latency_ms: float = 0.0  # before the first byte
    scope: Scope = "worker"
    policy: EvictionPolicy = "lru"
    store_threshold: int = 0
    prompt_only: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class TiersSpec:
    """The tiers of each worker of a pool, the nearest first; `block_bytes` is the size of a block
    on all GPUs of a worker together."""

    tiers: tuple[TierSpec, ...]
    block_bytes: int

    def lanes(self) -> LaneSpec:
        """The copies between the device and the nearest tier."""
        nearest = self.tiers[0]
        return LaneSpec(
            store_setup_ms=nearest.latency_ms,
            store_block_ms=self.block_bytes / (nearest.write_gb_s * BYTES_PER_MS),
            load_setup_ms=nearest.latency_ms,
            load_block_ms=self.block_bytes / (nearest.read_gb_s * BYTES_PER_MS),
        )
