"""From the `cluster.tiers` section to the tiers of each worker."""

from typing import Any

from dynosim.build.disagg import model_geometry
from dynosim.config.cluster import TierConfig
from dynosim.config.schema import RunConfig
from dynosim.engine.spec import HostCacheSpec
from dynosim.errors import ConfigError, InfeasibleError
from dynosim.memory.storage import STORAGE
from dynosim.memory.tiers import TierName, TierSpec, TiersSpec

PAGE_BYTES = 4096
"""Of memory; vLLM rounds a block in a host's memory up to them."""


def tiers_spec(config: RunConfig) -> TiersSpec | None:
    """The tiers of the workers of one pool, the nearest first; None if there are none.

    Raises: ConfigError if the size of a token's KV is not known; InfeasibleError for a tier that
    holds no block.
    """
    section = config.cluster.tiers
    if section is None:
        return None
    block_bytes = config.engine.block_size * _kv_bytes_per_token(config)
    tiers: list[TierSpec] = []
    names: tuple[TierName, ...] = ("host", "disk", "remote")
    for name in names:
        stated = getattr(section, name)
        if stated is not None:
            tiers.append(_tier(config, stated, name, block_bytes))
        if name == "host" and section.peers_gb_s is not None:
            rate = section.peers_gb_s
            tiers.append(TierSpec(name="peers", num_blocks=0, read_gb_s=rate, write_gb_s=rate))
    return TiersSpec(
        tiers=tuple(tiers),
        block_bytes=block_bytes,
        domain=section.domain,
        writes_evicted=section.offload == "on_eviction",
        is_choosy=section.onboard == "faster",
        granularity_blocks=section.onboard_granularity_blocks,
    )


def host_cache_spec(tiers: TiersSpec | None) -> HostCacheSpec | None:
    """The nearest tier, as the engine's scheduler knows it."""
    if tiers is None:
        return None
    nearest = tiers.tiers[0]
    return HostCacheSpec(
        num_chunks=nearest.num_blocks,
        policy=nearest.policy,
        store_threshold=nearest.store_threshold,
        prompt_only=nearest.prompt_only,
    )


def _tier(config: RunConfig, tier: TierConfig, name: TierName, block_bytes: int) -> TierSpec:
    preset = getattr(tier, "preset", None)
    kind = None if preset is None else STORAGE[preset]
    factor = config.engine.gpus_per_worker if kind is not None and kind.per_gpu else 1
    rates: dict[str, Any] = {}
    for key in ("read_gb_s", "write_gb_s"):
        stated = getattr(tier, key)
        rates[key] = factor * getattr(kind, key) if stated is None else stated
    latency_ms = tier.latency_ms
    if latency_ms is None:
        latency_ms = 0.0 if kind is None else kind.latency_ms
    return TierSpec(
        name=name,
        num_blocks=_num_blocks(tier, name, block_bytes),
        latency_ms=latency_ms,
        scope=getattr(tier, "scope", "cluster"),
        policy=tier.policy,
        store_threshold=getattr(tier, "store_threshold", 0),
        prompt_only=getattr(tier, "prompt_only", False),
        total_read_gb_s=tier.total_read_gb_s,
        total_write_gb_s=tier.total_write_gb_s,
        **rates,
    )


def host_bytes(config: RunConfig) -> int:
    """Memory of a host for KV, of all GPUs of a worker together, to hold what the twin's host tier
    does in an engine that starts blocks at pages.

    Raises: ConfigError if it is stated in blocks and the size of a token's KV is not known.
    """
    section = config.cluster.tiers
    assert section is not None and section.host is not None
    host = section.host
    if host.capacity_gb is not None:
        return int(host.capacity_gb * 1e9)
    assert host.num_blocks is not None
    pages = -(-config.engine.block_size * _kv_bytes_per_token(config) // PAGE_BYTES)
    return host.num_blocks * pages * PAGE_BYTES


def _num_blocks(tier: TierConfig, name: str, block_bytes: int) -> int:
    if tier.num_blocks is not None:
        return tier.num_blocks
    assert tier.capacity_gb is not None
    num_blocks = int(tier.capacity_gb * 1e9 / block_bytes)
    if num_blocks < 1:
        raise InfeasibleError(
            f"cluster.tiers.{name}.capacity_gb: {tier.capacity_gb:g} GB is less than one block of "
            f"{block_bytes / 1e9:g} GB (raise it)"
        )
    return num_blocks


def _kv_bytes_per_token(config: RunConfig) -> int:
    """Of all GPUs of a worker together."""
    tiers = config.cluster.tiers
    assert tiers is not None
    if tiers.kv_bytes_per_token is not None:
        return tiers.kv_bytes_per_token
    geometry = model_geometry(config)
    if geometry is None:
        raise ConfigError(
            "cluster.tiers.kv_bytes_per_token: missing; no model is named that it would follow "
            "from (state it, or add `model: Qwen/Qwen3-32B` or another known name)"
        )
    return geometry.worker_bytes_per_token(config.engine.tensor_parallel)
