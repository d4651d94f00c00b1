"""All-reduces of a roofline, by what connects the GPUs.

Over NVLink, and between two cards on PCIe: a latency, and the bytes at a share of the link's rate.
More cards on PCIe pass their messages around a ring, each step of which has its own latency, and
share what leads to the processor: on the L40S machine of the tables (PCIe gen 4) all cards together
move 0.48 of one card's link, on that with RTX PRO 6000 Server (gen 5) each 0.43 of its own. Cards
of gen 4 and those without peer-to-peer access are taken for the former.

Source: aiconfigurator-core's all-reduce tables for vLLM, messages of 256 B to 1 GB, 2 to 8 GPUs. A
rate that somebody states is taken to be one that was measured with so many GPUs.
"""

from dataclasses import dataclass

from dynosim.timing.roofline_factors import RooflineFactors
from dynosim.timing.sheets import HardwareSheet

_NVLINK_GB_PER_S = 129.0
"""Slower links are PCIe."""
_SHARED_GB_PER_S = 32.0
"""PCIe links up to this rate share the way to the processor."""
_SHARED = 0.48
_OWN = 0.43
_STEP_US = 1.7
_EIGHT = 1.25
"""How much more of NVLink 8 GPUs reach than 2 and 4: sums are made in the switch."""


@dataclass(frozen=True, slots=True)
class Ring:
    """The GPUs of one worker."""

    ranks: int
    latency_ms: float
    bytes_per_ms: float

    @classmethod
    def of(
        cls, sheet: HardwareSheet, ranks: int, factors: RooflineFactors, *, is_link_stated: bool
    ) -> "Ring":
        """Of so many cards."""
        gb_per_s = sheet.link_gb_per_s_of(ranks)
        latency_us, share = factors.latency_us, factors.link
        if ranks > 2 and gb_per_s < _NVLINK_GB_PER_S and not is_link_stated:
            latency_us += 2 * (ranks - 2) * _STEP_US
            is_shared = gb_per_s <= _SHARED_GB_PER_S or not sheet.has_peer_access
            share = _SHARED / ranks if is_shared else _OWN
        elif ranks >= 8 and gb_per_s >= _NVLINK_GB_PER_S:
            share *= _EIGHT
        return cls(ranks, latency_us / 1e3, gb_per_s * 1e6 * share)

    def all_reduce_ms(self, message_bytes: float) -> float:
        """Of a message that every rank holds."""
        if self.ranks <= 1:
            return 0.0
        sent = 2 * (self.ranks - 1) / self.ranks * message_bytes
        return self.latency_ms + sent / self.bytes_per_ms
