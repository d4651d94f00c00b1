"""From the `cluster:` section of a disaggregated cluster to links, handoffs and their costs."""

from math import lcm

from dynosim.build.knobs import from_section
from dynosim.config.cluster import TransferConfig
from dynosim.config.schema import RunConfig
from dynosim.errors import ConfigError
from dynosim.memory.kv_transfer import KvGeometry
from dynosim.memory.links import LinkSpec, link_spec
from dynosim.router.handoff import ConditionalSpec, HandoffSpec
from dynosim.router.topology import KvTransferPolicy

FP8_BYTES, PLAIN_BYTES = 1.0, 2.0
"""Of an element of the cache."""


def handoff_spec(config: RunConfig) -> HandoffSpec:
    """How requests go from prefill to decode workers; what is not stated is as vLLM does it.

    Raises: ConfigError for a preference that the decode router cannot weigh.
    """
    cluster = config.cluster
    handoff, conditional, policy = cluster.handoff, cluster.conditional, cluster.kv_transfer
    if policy is not None and policy.enforcement == "preferred":
        router = config.for_pool("decode").router
        if router.mode != "kv":
            raise ConfigError(
                f"cluster.kv_transfer.enforcement: preferred, but decode workers are chosen by "
                f"{router.mode}, which weighs nothing (set router.mode: kv, or enforcement: "
                "required)"
            )
    return HandoffSpec(
        order=handoff.order or "prefill_first",
        first_token=handoff.first_token or "decode",
        conditional=None if conditional is None else from_section(ConditionalSpec, conditional),
        kv_transfer=None if policy is None else from_section(KvTransferPolicy, policy),
    )


def link_of(transfer: TransferConfig) -> LinkSpec:
    """The link of each worker. A stated rate is that of all its GPUs together."""
    rate = transfer.bandwidth_gb_s
    return link_spec(
        transfer.preset,
        bandwidth_gb_s=rate,
        latency_us=transfer.latency_us,
        per_descriptor_us=transfer.per_descriptor_us,
        handshake_ms=transfer.handshake_ms,
        per_gpu=None if rate is None else False,
    )


def kv_geometry(config: RunConfig) -> KvGeometry:
    """How large the KV of a token is, and of how many pieces.

    Raises: ConfigError if neither the model nor the size is stated.
    """
    transfer = config.cluster.transfer
    assert transfer is not None
    stated = transfer.kv_bytes_per_token
    pools = config.pools()
    if stated is not None:
        heads = lcm(*[pool.engine.tensor_parallel for pool in pools])  # so that none is kept twice
        return KvGeometry(layers=1, kv_heads=heads, head_dim=1, element_bytes=stated / (2 * heads))
    geometry = model_geometry(config)
    if geometry is None:
        raise ConfigError(
            "cluster.transfer.kv_bytes_per_token: missing; no model is named that it would follow "
            "from (state it, or add `model: Qwen/Qwen3-32B` or another known name)"
        )
    return geometry


def model_geometry(config: RunConfig) -> KvGeometry | None:
    """The KV cache of the model that is named; None if none is."""
    if config.model_source is None:
        return None
    from dynosim.silicon.catalogue import model_entry
    from dynosim.timing.architecture import model_shape

    dtype = config.pools()[0].engine.kv_cache_dtype
    element_bytes = FP8_BYTES if dtype.startswith("fp8") else PLAIN_BYTES
    return KvGeometry.of_model(model_shape(model_entry(config.model_source)), element_bytes)
