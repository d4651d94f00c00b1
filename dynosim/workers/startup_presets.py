"""Published starts of workers, as figures with their sources.

A figure that was found only in part, or derived, says so in `sources`. A GB is 1e9 bytes.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Literal

from dynosim.workers.startup import CompileCache, Duration

Start = Literal["vllm_cold", "vllm_cached", "vllm_new_node", "sglang", "sglang_deepgemm", "restore"]
WeightsPlace = Literal["page_cache", "nvme", "pvc", "efs", "s3", "hub", "p2p"]
CheckpointKind = Literal["snapshot", "criu"]


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsPreset:
    """Where weights come from: rates of one node, and of all together."""

    node_gb_s: float
    total_gb_s: float | None = None
    first_byte_ms: float = 0.0
    peer_gb_s: float | None = None
    receivers_per_source: int | None = None
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointPreset:
    """How a checkpoint is made and restored. Its size is `fixed_gb` and `per_weights` times that of
    the weights."""

    node_gb_s: float
    restore: Duration
    write_gb_s: float
    fixed_gb: float
    per_weights: float
    sources: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupPreset:
    """A start: times by phase, and where weights or a checkpoint come from unless it is stated."""

    times: Mapping[str, Duration] = field(default_factory=dict)
    compile_cache: CompileCache = "none"
    weights: WeightsPlace = "nvme"
    checkpoint: CheckpointKind | None = None
    sources: tuple[str, ...]


def _s(seconds: float) -> Duration:
    return Duration(seconds * 1e3)


def _from_to_s(least: float, most: float) -> Duration:
    return Duration.between(least * 1e3, most * 1e3)


_VLLM = {
    "boot": _s(10),
    "compile": _s(31),
    "compile_cached": _s(15),
    "warm_up": _from_to_s(2.7, 7),
    "probe": _from_to_s(0, 10),
}
_VLLM_SOURCES = (
    "boot: measured, imports and worker processes of vLLM 0.10 (vllm-startup-profiler)",
    "compile: measured, Qwen3-32B, 31 s cold and 15 s from the cache (vllm#32191)",
    "warm_up: measured, profiling 1.8 to 5 s and graph capture 0.9 to 2 s, 0.5B to 14B "
    "(vllm-startup-profiler); 54 s of capture were seen with more sizes (Tensorfuse)",
    "probe: a readiness probe every 10 s (Kubernetes' default)",
)

STARTS: Mapping[Start, StartupPreset] = MappingProxyType(
    {
        "vllm_cold": StartupPreset(times=_VLLM, sources=_VLLM_SOURCES),
        "vllm_cached": StartupPreset(
            times=_VLLM, compile_cache="warm", weights="page_cache", sources=_VLLM_SOURCES
        ),
        "vllm_new_node": StartupPreset(
            times=_VLLM | {
                "schedule": _from_to_s(1, 10),
                "node": _from_to_s(240, 360),
                "image": _from_to_s(420, 600),
            },
            sources=(
                "schedule: Karpenter gathers pods for 1 to 10 s (its documentation)",
                "node: measured, a GPU node joins and runs pods in 4 to 6 min (autoscaler#3464)",
                "image: claimed, 10 GB from a registry in 7 to 10 min (Tensorfuse)",
                *_VLLM_SOURCES,
            ),
        ),
        "sglang": StartupPreset(
            times={"boot": _s(10), "warm_up": _s(60), "probe": _from_to_s(0, 10)},
            sources=(
                "boot: assumed, as vLLM's",
                "compile: none by default",
                "warm_up: assumed, what a fleet's mean start of 84 s (Modal) leaves after boot and "
                "some 14 s for weights",
                "probe: a readiness probe every 10 s (Kubernetes' default)",
            ),
        ),
        "sglang_deepgemm": StartupPreset(
            times={"boot": _s(10), "warm_up": _from_to_s(600, 1200), "probe": _from_to_s(0, 10)},
            sources=(
                "boot: assumed, as vLLM's",
                "warm_up: measured, kernels that were not compiled before, 10 to 20 min at every "
                "start (sglang#9867, #10424)",
                "probe: a readiness probe every 10 s (Kubernetes' default)",
            ),
        ),
        "restore": StartupPreset(times=_VLLM, checkpoint="snapshot", sources=_VLLM_SOURCES),
    }
)  # fmt: skip
"""By name. Those of vLLM differ in what is there before: nothing but the image, also the caches,
not even the node, or a checkpoint."""

WEIGHTS: Mapping[WeightsPlace, WeightsPreset] = MappingProxyType(
    {
        "page_cache": WeightsPreset(
            node_gb_s=17.0,
            sources=(
                "measured: a tuned loader, TP4; 5 to 13 GB/s with TP1 (vllm#52462); vLLM's default "
                "loader gets 1.8 of it (vllm-startup-profiler)",
            ),
        ),
        "nvme": WeightsPreset(
            node_gb_s=7.0,
            sources=("measured: eight local drives, cold, TP4, 6.5 to 7.5 GB/s (vllm#52462)",),
        ),
        "pvc": WeightsPreset(
            node_gb_s=2.0,
            total_gb_s=2.0,
            sources=(
                "derived: Azure's managed Lustre, the least capacity of every class gives about "
                "2 GB/s (Dynamo's documentation)",
            ),
        ),
        "efs": WeightsPreset(
            node_gb_s=1.6,
            total_gb_s=21.5,
            first_byte_ms=1.0,
            sources=("data sheet: EFS elastic, 1.5 GiB/s a client, 20 GiB/s in all",),
        ),
        "s3": WeightsPreset(
            node_gb_s=0.66,
            first_byte_ms=150.0,
            sources=(
                "derived: eight streams (the model streamer's default) of 75 to 90 MB/s "
                "(S3's guidelines)",
                "first byte: S3's guidelines, 100 to 200 ms",
            ),
        ),
        "hub": WeightsPreset(
            node_gb_s=0.26,
            sources=("measured: 8B, 16 GB in 61 s (Tensorfuse)",),
        ),
        "p2p": WeightsPreset(
            node_gb_s=2.0,
            total_gb_s=2.0,
            peer_gb_s=8.5,
            receivers_per_source=1,
            sources=(
                "peer: claimed, 681 GB over RDMA in 40 to 80 s, the slower (modelexpress#135)",
                "receivers: assumed, one at a time",
                "storage: as pvc",
            ),
        ),
    }
)
"""By name."""

CHECKPOINTS: Mapping[CheckpointKind, CheckpointPreset] = MappingProxyType(
    {
        "snapshot": CheckpointPreset(
            node_gb_s=9.6,
            restore=_s(1.7),
            write_gb_s=0.5,
            fixed_gb=5.0,
            per_weights=1.15,
            sources=(
                "fitted: restores of 6.2, 26, 74, 129 and 164 GiB in 2.4, 4.7, 9.9, 15 and 20 s "
                "(Dynamo Snapshot, B200, network storage)",
                "size: fitted to the same, Qwen3 0.6B and 32B, Qwen2.5 72B within 2 %, 8B 14 % "
                "less than seen",
                "write: derived, a dump of 0.6B in 13 s (dynamo#5786)",
            ),
        ),
        "criu": CheckpointPreset(
            node_gb_s=1.42,
            restore=_s(2.1),
            write_gb_s=0.5,
            fixed_gb=5.0,
            per_weights=1.15,
            sources=(
                "fitted: the same with stock CRIU in 6.8 to 126 s (Dynamo Snapshot)",
                "size, write: as snapshot",
            ),
        ),
    }
)
"""By name."""
