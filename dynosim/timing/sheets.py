"""The data sheet of an accelerator: what formulas need to know of it."""

from dataclasses import dataclass

GIB = 1024**3


@dataclass(frozen=True, slots=True, kw_only=True)
class HardwareSheet:
    """One accelerator model."""

    name: str
    memory_gib: float  # as the driver reports it (nvidia-smi)
    cuda_total_gib: float  # as CUDA reports it: what engines take their memory fraction of
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


def derived_cuda_total_gib(memory_gib: float) -> float:
    """What CUDA reports as total where nobody has published it for the card.

    Source: on the 20 kinds of card of `silicon.cuda_totals` CUDA reports 0.27 to 1.1 GiB less than
    the driver, in the median 0.5 GiB, hardly more on large cards than on small ones (each left out
    in turn: mean error 0.17 GiB, with the median ratio 0.5 GiB).
    """
    return memory_gib - min(_WITHHELD_GIB, _WITHHELD_SHARE_AT_MOST * memory_gib)


_WITHHELD_GIB = 0.5
_WITHHELD_SHARE_AT_MOST = 0.02
