"""The data sheet of an accelerator: what formulas need to know of it."""

from dataclasses import dataclass

from dynosim.timing.number_formats import compute_format

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
    link_gb_per_s: float  # to the other GPUs of the node, one direction
    int8_tops: float | None = None  # dense; None: the tensor cores have no int8
    fp4_tflops: float | None = None  # dense; None: the tensor cores have no fp4
    gpus_per_node: int = 8
    nvlink_domain_gpus: int | None = None  # GPUs that the link joins beyond a node; None: a node's
    links_by_gpus: tuple[tuple[int, float], ...] = ()
    """Up to so many GPUs reach each other at so many GB/s, where that depends on their number."""
    has_peer_access: bool = True  # False: traffic between GPUs passes the host's memory
    tdp_w: float | None = None  # power limit; None: not known
    idle_w: float | None = None  # with a loaded model and no work
    source: str = ""  # where the figures were taken from

    @property
    def memory_bytes(self) -> int:
        return int(self.memory_gib * GIB)

    @property
    def linked_gpus(self) -> int:
        """How many GPUs the link joins; more of them talk over a slower network."""
        return self.nvlink_domain_gpus or self.gpus_per_node

    def link_gb_per_s_of(self, num_gpus: int) -> float:
        """What one of `num_gpus` that work together sends to the others, one direction.

        Beyond `linked_gpus` it is an upper bound: networks between nodes are not known here.
        """
        for at_most, gb_per_s in self.links_by_gpus:
            if num_gpus <= at_most:
                return gb_per_s
        return self.links_by_gpus[-1][1] if self.links_by_gpus else self.link_gb_per_s

    def matrix_tflops(self, quantisation: str | None) -> float:
        """Dense rate of matrix products with weights of that format (None: 16 bits).

        Where the tensor cores lack the format, engines widen the weights and compute in bf16.
        """
        rates = {"fp8": self.fp8_tflops, "int8": self.int8_tops, "fp4": self.fp4_tflops}
        return rates.get(compute_format(quantisation)) or self.bf16_tflops


def derived_cuda_total_gib(memory_gib: float) -> float:
    """What CUDA reports as total where nobody has published it for the card.

    Source: where it has been published (22 kinds of card in `silicon.cuda_totals`) CUDA reports 0.2
    to 1.1 GiB less than the driver, 0.5 GiB in the median, hardly more on large cards than on small
    ones: each card left out in turn, the median difference misses by 0.17 GiB in the mean, the
    median ratio by 0.5 GiB.
    """
    return memory_gib - min(_WITHHELD_GIB, _WITHHELD_SHARE_AT_MOST * memory_gib)


_WITHHELD_GIB = 0.5
_WITHHELD_SHARE_AT_MOST = 0.02
