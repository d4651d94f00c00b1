"""What GPUs of a worker exchange over a link, by a formula.

Time of an all-reduce: a fixed latency, and the bytes that every GPU sends, 2 (n - 1) / n of the
message, at a share of the link's rate.

The share and the latency were chosen on the all-reduce tables of aiconfigurator-core for vLLM
(custom kernels in CUDA graphs): messages of 2 and 16 MB over 2, 4 and 8 H100 (NVLink 4) and over 2
RTX PRO 6000 (PCIe gen 5, with peer-to-peer) take 0.8 to 1.2 times what this says. More than two
GPUs behind one PCIe root, and machines without peer-to-peer access, reach a third to a half of it:
state the rate that was measured there.
"""

import numpy as np

from dynosim.records import FloatArray

LATENCY_US = 5.0
SHARE_OF_LINK = 0.6

LINK_GB_S = {
    "nvlink2": 150.0,
    "nvlink3": 300.0,
    "nvlink4": 450.0,
    "nvlink5": 900.0,
    "infinity_fabric": 448.0,
    "pcie_gen3": 16.0,
    "pcie_gen4": 32.0,
    "pcie_gen5": 64.0,
    "pcie_gen6": 128.0,
}
"""GB/s per GPU and direction by what connects them, as data sheets state it: NVLink of V100, A100,
H100 and B200, seven Infinity Fabric links of an MI300X, PCIe with 16 lanes."""


def all_reduce_ms(message_bytes: float, ranks: int, link_gb_per_s: float) -> float:
    """Time of one all-reduce of a message that every rank holds."""
    if ranks <= 1 or message_bytes <= 0:
        return 0.0
    return _ms(2.0 * (ranks - 1) / ranks * message_bytes, link_gb_per_s)


def all_reduces_ms(messages_bytes: FloatArray, ranks: int, link_gb_per_s: float) -> FloatArray:
    """`all_reduce_ms`, element by element."""
    if ranks <= 1:
        return np.zeros(len(messages_bytes))
    sent = 2.0 * (ranks - 1) / ranks * messages_bytes
    times = LATENCY_US / 1e3 + sent / (link_gb_per_s * 1e6 * SHARE_OF_LINK)
    return np.where(messages_bytes > 0, times, 0.0)


def all_gather_ms(message_bytes: float, ranks: int, link_gb_per_s: float) -> float:
    """Time until every rank holds the `message_bytes` that all hold together; as long as it takes
    to scatter sums of them (reduce-scatter) or to exchange them (all-to-all)."""
    if ranks <= 1 or message_bytes <= 0:
        return 0.0
    return _ms((ranks - 1) / ranks * message_bytes, link_gb_per_s)


def _ms(sent_bytes: float, link_gb_per_s: float) -> float:
    return LATENCY_US / 1e3 + sent_bytes / (link_gb_per_s * 1e6 * SHARE_OF_LINK)
