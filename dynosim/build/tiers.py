"""From the `cluster.tiers` section to the tiers of each worker."""

from dynosim.build.disagg import model_geometry
from dynosim.config.cluster import TierConfig
from dynosim.config.schema import RunConfig
from dynosim.engine.spec import HostCacheSpec
from dynosim.errors import ConfigError, InfeasibleError
from dynosim.memory.storage import STORAGE
from dynosim.memory.tiers import TierSpec, TiersSpec


def tiers_spec(config: RunConfig) -> TiersSpec | None:
    """The tiers of the workers of one pool; None if there are none.

    Raises: ConfigError if the size of a token's KV is not known; InfeasibleError for a tier that
    holds no block.
    """
    tiers = config.cluster.tiers
    if tiers is None or tiers.host is None:
        return None
    block_bytes = config.engine.block_size * _kv_bytes_per_token(config)
    host = _tier(config, tiers.host, "host", block_bytes)
    return TiersSpec(tiers=(host,), block_bytes=block_bytes)


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


def _tier(config: RunConfig, tier: TierConfig, name: str, block_bytes: int) -> TierSpec:
    preset = getattr(tier, "preset", None)
    kind = STORAGE[preset] if preset is not None else None
    factor = config.engine.gpus_per_worker if kind is not None and kind.per_gpu else 1
    rates = {}
    for key in ("read_gb_s", "write_gb_s"):
        stated = getattr(tier, key)
        rates[key] = stated if stated is not None else factor * getattr(kind, key)
    latency_ms = tier.latency_ms
    if latency_ms is None:
        latency_ms = 0.0 if kind is None else kind.latency_ms
    return TierSpec(
        name="host",
        num_blocks=_num_blocks(tier, name, block_bytes),
        latency_ms=latency_ms,
        policy=tier.policy,
        store_threshold=getattr(tier, "store_threshold", 0),
        prompt_only=getattr(tier, "prompt_only", False),
        **rates,
    )


def _num_blocks(tier: TierConfig, name: str, block_bytes: int) -> int:
    if tier.num_blocks is not None:
        return tier.num_blocks
    assert tier.capacity_gb is not None
    num_blocks = int(tier.capacity_gb * 1e9 / block_bytes)
    if num_blocks < 1:
        raise InfeasibleError(
            f"cluster.tiers.{name}.capacity_gb: {tier.capacity_gb:g} GB is less than one block of "
            f"{block_bytes / 1e6:.1f} MB (raise it)"
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
