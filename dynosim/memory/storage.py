"""What memory and storage below a device achieve, by kind.

Rates are of large copies in one direction; those of the links to a host's memory are of each GPU,
the others of a worker. Where no measurement was found, `sources` says that a figure is assumed.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageSpec:
    """One kind."""

    name: str
    read_gb_s: float
    write_gb_s: float
    latency_ms: float
    per_gpu: bool = False
    sources: tuple[str, ...] = ()


STORAGE: Mapping[str, StorageSpec] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            StorageSpec(
                name="pcie5",
                read_gb_s=52.0,
                write_gb_s=52.0,
                latency_ms=0.008,
                per_gpu=True,
                sources=(
                    "measured: pinned memory over PCIe generation 5 with 16 lanes, 52 to 55.6 GB/s "
                    "to the GPU and 52 to 54 from it (sglang#18968)",
                    "latency: assumed by UCX for cuda_copy",
                ),
            ),
            StorageSpec(
                name="pcie4",
                read_gb_s=24.0,
                write_gb_s=24.0,
                latency_ms=0.008,
                per_gpu=True,
                sources=(
                    "measured: pinned memory over PCIe generation 4 with 16 lanes, 24 to 26.4 GB/s "
                    "(nvbandwidth#11)",
                    "latency: assumed by UCX for cuda_copy",
                ),
            ),
            StorageSpec(
                name="c2c",
                read_gb_s=342.0,
                write_gb_s=295.0,
                latency_ms=0.008,
                per_gpu=True,
                sources=(
                    "measured: GH200, 342 to 346 GB/s to the GPU and 295 from it (vllm#6496, "
                    "nvbandwidth#23)",
                    "latency: assumed by UCX for cuda_copy",
                ),
            ),
            StorageSpec(
                name="nvme4",
                read_gb_s=7.0,
                write_gb_s=3.5,
                latency_ms=0.1,
                sources=(
                    "read: data sheet, one drive of PCIe generation 4",
                    "write: assumed, half of it",
                    "latency: Dynamo's simulator",
                ),
            ),
            StorageSpec(
                name="nvme5",
                read_gb_s=13.3,
                write_gb_s=6.7,
                latency_ms=0.1,
                sources=(
                    "read: measured, one of four drives of PCIe generation 5 (FarmGPU's report on "
                    "GPUDirect Storage)",
                    "write: assumed, half of it",
                    "latency: Dynamo's simulator",
                ),
            ),
            StorageSpec(
                name="rdma_store",
                read_gb_s=46.0,
                write_gb_s=46.0,
                latency_ms=0.05,
                sources=(
                    "measured: one NIC of InfiniBand NDR 400 Gb/s (nccl-tests#290)",
                    "latency: assumed",
                ),
            ),
            StorageSpec(
                name="nfs_rdma",
                read_gb_s=27.9,
                write_gb_s=14.0,
                latency_ms=1.0,
                sources=(
                    "read: measured, one GPU over 400 Gb/s Ethernet, 26 GiB/s (FarmGPU's report on "
                    "GPUDirect Storage)",
                    "write: assumed, half of it",
                    "latency: assumed",
                ),
            ),
            StorageSpec(
                name="s3",
                read_gb_s=0.8,
                write_gb_s=0.8,
                latency_ms=150.0,
                sources=(
                    "measured: one host with 64 streams (s3-getobject-accelerator)",
                    "write: assumed to be equal",
                    "latency: S3's guidelines, 100 to 200 ms to the first byte",
                ),
            ),
        )
    }
)
"""By name."""
