"""Clusters with a pool for each phase, small enough to be followed by hand.

A prefill step takes 10 ms, a decode step 5. A token's KV is 1,000 bytes.
"""

from dataclasses import replace

from dynosim.cluster import ClusterSpec, PoolSpec
from dynosim.cluster.spec import DisaggSpec, TransferSpec
from dynosim.engine.spec import EngineSpec
from dynosim.memory.kv_transfer import KvGeometry, Moved
from dynosim.memory.links import LinkSpec
from dynosim.router.handoff import HandoffSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import FixedModel
from dynosim.timing.model import StepTimeModel

TIMES = FixedModel(prefill_ms=10.0, decode_ms=5.0)
ENGINE = EngineSpec(num_gpu_blocks=400, max_model_len=1024, block_size=4, max_num_seqs=8)
KV = KvGeometry(layers=1, kv_heads=1, head_dim=250, element_bytes=2.0)  # 1,000 bytes a token
BYTES_PER_MS = 1e6  # of one GB/s


def pools(
    *,
    prefill: int = 1,
    decode: int = 1,
    gb_s: float = 0.001,
    engine: EngineSpec = ENGINE,
    times: StepTimeModel = TIMES,
    handoff: HandoffSpec = HandoffSpec(),  # noqa: B008 (a value that never changes)
    link: LinkSpec | None = None,
    failure_policy: str = "fail",
    moves: Moved = "destination_missing",
    exposed_share: float = 1.0,
    uplinks: dict[str, float] | None = None,
    places: tuple[dict[str, tuple[str, ...]], dict[str, tuple[str, ...]]] = ({}, {}),
    routing: RoutingSpec | None = None,
    decode_routing: RoutingSpec | None = None,
) -> ClusterSpec:
    """A cluster whose links carry `gb_s` (by default a token's KV in a millisecond)."""
    common = {"times": times}
    policy = {"kv_load_failure_policy": failure_policy}
    return ClusterSpec(
        pools=(
            PoolSpec(
                name="prefill",
                role="prefill",
                engine=replace(engine, kv_role="kv_producer"),
                workers=prefill,
                topology=places[0],
                **common,
            ),
            PoolSpec(
                name="decode",
                role="decode",
                engine=replace(engine, kv_role="kv_consumer", **policy),  # type: ignore[arg-type]
                workers=decode,
                topology=places[1],
                **common,
            ),
        ),
        routing=routing,
        disagg=DisaggSpec(
            handoff=handoff,
            transfer=TransferSpec(
                link=link or LinkSpec(name="test", line_gb_s=None, achieved_gb_s=gb_s),
                geometry=KV,
                moves=moves,
                exposed_share=exposed_share,
                uplinks=uplinks or {},
            ),
            decode_routing=decode_routing,
        ),
    )
