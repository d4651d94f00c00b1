"""The data sheet of an accelerator: what formulas need to know of it."""

from dataclasses import dataclass

GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareSheet:
    """One accelerator model."""

    name: str
    memory_gib: float  # as the driver reports it
    memory_gb_per_s: float
    bf16_tflops: float  # dense
    fp8_tflops: float  # dense; equals bf16 where the tensor cores have no fp8
    link_gb_per_s: float  # to another GPU of the node, one direction
    gpus_per_node: int = 8
    tdp_w: float | None = None  # power limit; None: not known
    idle_w: float | None = None  # with a loaded model and no work

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * GIB)
