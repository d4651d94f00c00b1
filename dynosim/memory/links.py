"""Links that KV cache is moved over: what they promise, what they achieve, what each use costs.

A GB is 1e9 bytes; rates are of one direction. The line rate is what is printed on the hardware, the
achieved rate is what large transfers were seen to get; only the latter counts. Where no measurement
was found, `sources` says that a figure is assumed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from math import inf
from types import MappingProxyType
from typing import Any, Final

from dynosim.errors import ConfigError

HANDSHAKE_MS: Final = 2000.0
"""Before the first transfer between two workers. Measured: two NIXL agents that meet exchange what
they registered, about 2 s (vLLM's NIXL connector)."""


KEYS: Final = MappingProxyType({"achieved_gb_s": "bandwidth_gb_s"})
"""What run files call a field of a link, where it is not its name."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkSpec:
    """One kind of link."""

    name: str
    line_gb_s: float | None  # of one NIC or GPU, or of a worker; None: not stated
    achieved_gb_s: float  # of the same
    latency_us: float = 0.0  # from the first byte's sending to its arrival, software included
    per_descriptor_us: float = 0.0  # to post one contiguous piece of cache
    handshake_ms: float = 0.0  # once for each pair of workers, before its first transfer
    per_gpu: bool = False  # a worker has one for each of its GPUs; else one in all
    sources: tuple[str, ...] = ()  # where the figures come from: measured, data sheet or assumed

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in ("name", "per_gpu", "sources") or value is None:
                continue
            is_rate = field.name.endswith("gb_s")
            if not (0 < value < inf if is_rate else 0 <= value < inf):
                least = "above 0" if is_rate else "0 or more"
                raise ConfigError(
                    f"cluster.transfer.{KEYS.get(field.name, field.name)}: {value:g} is no "
                    f"such figure of a link (state one that is {least}, or leave it out for that "
                    f"of a preset: {', '.join(LINKS)})"
                )
        if self.line_gb_s is not None and self.line_gb_s < self.achieved_gb_s:
            raise ConfigError(
                f"cluster.transfer.line_gb_s: {self.line_gb_s:g} is less than the "
                f"{self.achieved_gb_s:g} GB/s that the link achieves (state both of one direction, "
                "or leave line_gb_s out)"
            )

    def worker_gb_s(self, gpus: int) -> float:
        """What a worker of so many GPUs sends, or receives, at most."""
        return self.achieved_gb_s * (gpus if self.per_gpu else 1)


def link_spec(
    preset: str | None = None,
    *,
    bandwidth_gb_s: float | None = None,
    line_gb_s: float | None = None,
    latency_us: float | None = None,
    per_descriptor_us: float | None = None,
    handshake_ms: float | None = None,
    per_gpu: bool | None = None,
) -> LinkSpec:
    """A preset with what is stated in place of its own figures; without one, what is stated.

    Raises: ConfigError for an unknown preset, neither preset nor bandwidth, impossible figures.
    """
    figures = {
        "line_gb_s": line_gb_s,
        "achieved_gb_s": bandwidth_gb_s,
        "latency_us": latency_us,
        "per_descriptor_us": per_descriptor_us,
        "handshake_ms": handshake_ms,
        "per_gpu": per_gpu,
    }
    stated: dict[str, Any] = {name: value for name, value in figures.items() if value is not None}
    base = _base(preset, bandwidth_gb_s)
    words = [_WORDS[name] for name in stated]
    if bandwidth_gb_s is not None and (base.line_gb_s or 0.0) < bandwidth_gb_s:
        stated.setdefault("line_gb_s", None)  # the preset's is that of a slower kind
    kept = [source for source in base.sources if source.partition(":")[0] not in words]
    return replace(base, **stated, sources=(*kept, *(f"{word}: stated" for word in words)))


def _base(preset: str | None, bandwidth_gb_s: float | None) -> LinkSpec:
    """What stated figures change."""
    if preset is not None:
        if preset in LINKS:
            return LINKS[preset]
        raise ConfigError(
            f"cluster.transfer.preset: {preset!r} is no link that is known (state one of "
            f"{', '.join(LINKS)}; or bandwidth_gb_s)"
        )
    if bandwidth_gb_s is None:
        raise ConfigError(
            "cluster.transfer: neither a link nor its rate is stated (state preset, one of "
            f"{', '.join(LINKS)}; or bandwidth_gb_s)"
        )
    return LinkSpec(name="stated", line_gb_s=None, achieved_gb_s=1.0)


_WORDS: Final = {
    "line_gb_s": "line",
    "achieved_gb_s": "achieved",
    "latency_us": "latency",
    "per_descriptor_us": "descriptor",
    "handshake_ms": "handshake",
    "per_gpu": "per GPU",
}
"""What `sources` calls a figure."""

_HANDSHAKE_SOURCE = "handshake: measured, two NIXL agents that meet (vLLM's NIXL connector)"

LINKS: Mapping[str, LinkSpec] = MappingProxyType(
    {
        link.name: link
        for link in (
            LinkSpec(
                name="nvlink",
                line_gb_s=450.0,
                achieved_gb_s=376.0,
                latency_us=8.0,
                per_descriptor_us=3.1,
                handshake_ms=HANDSHAKE_MS,
                per_gpu=True,
                sources=(
                    "line: data sheet, NVLink 4 (H100, H200), 18 links of a GPU",
                    "achieved: measured, copy engines from GPU to GPU (NVIDIA/nccl#1442)",
                    "latency: assumed by UCX for cuda_ipc, 1 us and 7 us of software",
                    "descriptor: measured, one copy call each, NIXL over cuda_ipc (nixl#115)",
                    _HANDSHAKE_SOURCE,
                ),
            ),
            LinkSpec(
                name="ib",
                line_gb_s=50.0,
                achieved_gb_s=46.0,
                latency_us=1.0,
                per_descriptor_us=0.9,
                handshake_ms=HANDSHAKE_MS,
                per_gpu=True,
                sources=(
                    "line: data sheet, InfiniBand NDR 400 Gb/s, one NIC for each GPU",
                    "achieved: measured, NCCL on large messages (nccl-tests#290)",
                    "latency: Dynamo's documentation",
                    "descriptor: measured, UCX on pieces of 4 KiB (LMCache#4161)",
                    _HANDSHAKE_SOURCE,
                ),
            ),
            LinkSpec(
                name="roce",
                line_gb_s=50.0,
                achieved_gb_s=43.0,
                latency_us=2.0,
                per_descriptor_us=0.9,
                handshake_ms=HANDSHAKE_MS,
                per_gpu=True,
                sources=(
                    "line: data sheet, 400 Gb/s Ethernet, one NIC for each GPU",
                    "achieved: fitted to measured KV transfers, 171 GB/s over four NICs (SGLang "
                    "with Mooncake)",
                    "latency: Dynamo's documentation",
                    "descriptor: as ib",
                    _HANDSHAKE_SOURCE,
                ),
            ),
            LinkSpec(
                name="efa",
                line_gb_s=50.0,
                achieved_gb_s=9.6,
                latency_us=20.0,
                handshake_ms=HANDSHAKE_MS,
                sources=(
                    "line: data sheet, four interfaces of 100 Gb/s for each worker",
                    "achieved: measured, KV transfers of a worker with NIXL and libfabric "
                    "(Dynamo's documentation)",
                    "latency: assumed",
                    "descriptor: none, the achieved rate is one of whole KV transfers",
                    _HANDSHAKE_SOURCE,
                ),
            ),
            LinkSpec(
                name="tcp",
                line_gb_s=12.5,
                achieved_gb_s=0.1,
                latency_us=50.0,
                handshake_ms=HANDSHAKE_MS,
                sources=(
                    "line: data sheet, 100 Gb/s Ethernet, one NIC for each worker",
                    "achieved: measured, KV transfers that fell back to TCP, staged in host memory "
                    "(Dynamo's documentation); UCX was seen to get 0.34 to 0.41 GB/s (ucx-py#370)",
                    "latency: Dynamo's documentation",
                    "descriptor: none, the achieved rate is one of whole KV transfers",
                    _HANDSHAKE_SOURCE,
                ),
            ),
            LinkSpec(
                name="pcie",
                line_gb_s=64.0,
                achieved_gb_s=52.0,
                latency_us=8.0,
                per_descriptor_us=0.5,
                per_gpu=True,
                sources=(
                    "line: data sheet, PCIe generation 5 with 16 lanes",
                    "achieved: measured, pinned host memory, one direction at a time "
                    "(sglang#18968)",
                    "latency: assumed by UCX for cuda_copy",
                    "descriptor: measured, processor time in a batched copy (vllm#48434)",
                ),
            ),
        )
    }
)
"""Presets by name. `efa` and `tcp` are of a whole worker, the others of each of its GPUs."""
