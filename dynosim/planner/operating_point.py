"""What one engine does with a batch of some size."""

import msgspec


class OperatingPoint(msgspec.Struct, frozen=True):
    """One engine at work: `num_seqs` at a time, `rps` requests a second.

    `ttft_ms` and `itl_ms` are None where the engine makes no first tokens or no later ones.
    `miss` is the larger of latency by target; up to 1 both are met.
    """

    rps: float
    num_seqs: int
    ttft_ms: float | None
    itl_ms: float | None
    miss: float

    @property
    def meets_targets(self) -> bool:
        """Whether no latency is above its target."""
        return self.miss <= 1.0
