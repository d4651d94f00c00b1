"""What kernels reach of a data sheet, and what they cost beyond it, by class of GPU.

Fitted to single kernels of aiconfigurator-core 0.12's tables for vLLM, not to models: bf16 matrix
products of 1 to 8,192 tokens (3,976 shapes a card, mean error 8 to 14 %), experts in bf16 and fp8
blocks that are chosen by a power law (7 to 19 %), attention of prompts (9 to 14 %) and the slope of
decodes' attention between long contexts, which no cache holds. Hopper is H100 and H200 SXM, the
others are one card each: B200, A100 SXM, L40S, RTX PRO 6000 Server.

- On sums of kernels were chosen: Hopper's share of peak (3 % less than single products reach), the
  launches of prompts' attention (Llama 3.1 8B, Qwen3 32B), those of latent attention (DeepSeek-V3
  on H200) and B200's share of its link (Qwen3 32B).
- Products and experts compute a tenth longer than in the tables, see `sustained`.
- FP8 products were fitted to scales a tensor or a channel; those with a scale a block take 50 to
  200 us each in the tables for few tokens, because kernels were started one by one.
- Norms and activations are not measured anywhere: 3 us each and 80 % of the bandwidth, as the
  tables' library reckons.
- The RTX PRO 6000 Server's data sheet states 1,597 GB/s, of which its kernels read 97 %: 86 % of
  the 1,792 that other cards with this chip and bus state, and of these 86 % are assumed.
- Cards without tables are taken for the nearest with some. GDDR6 of Ampere is read as Ada's. The
  tables' L40S corrects errors in memory, with checks that take a sixteenth of it and, as is assumed
  here, of the bandwidth; workstation cards and GeForce do not. GeForce Ada has its tensor cores at
  half rate, of which it reaches as much as cards that power does not limit.
"""

from dataclasses import dataclass, replace

from dynosim.timing.architecture import ModelShape
from dynosim.timing.mixed import SharedKernel, mixed_context_ms
from dynosim.timing.sheets import HardwareSheet
from dynosim.timing.sustained import SUSTAINED_SLOWDOWN


@dataclass(frozen=True, slots=True, kw_only=True)
class RooflineFactors:
    """Of one class of GPU; the defaults are Hopper's. A launch is counted where a kernel starts."""

    compute: float = 0.79  # share of peak in matrix products
    memory: float = 0.86  # share of bandwidth when reading weights
    overlap: float = 4.0  # computing and reading take (a^p + b^p)^(1/p); 1: in turn, inf: together
    product_us: float = 3.5  # launch of a product
    product_widths: float = 2.0  # times that what a product reads and writes is moved
    fp8_compute: float = 0.79  # of the share of peak, where activations are quantised
    quantise_us: float = 2.8  # and the launch of that
    slowdown: float = SUSTAINED_SLOWDOWN  # further time of computing
    expert_us: float = 35.0  # sorting, two products, activation, sum
    expert_compute: float = 0.73  # share of the bf16 peak in experts of 16 bits
    expert_fp8: float = 1.0  # how many times faster they compute in fp8
    expert_memory: float = 1.2  # of bandwidth, with as many read as if all were as likely
    prefill_us: float = 33.0  # launches: norms of queries and keys, rotation, writing the cache
    prefill_attention: float = 0.68  # share of peak
    prefill_widths: float = 2.8  # times that queries, keys, values and results are moved
    latent_us: float = 60.0  # further launches of latent attention
    decode_us: float = 11.8  # launch
    decode_head_us: float = 0.028  # of each sequence and KV head
    decode_attention: float = 0.95  # share of bandwidth when reading the cache
    element_us: float = 3.0  # launch of a norm or an activation
    element_memory: float = 0.8  # share of bandwidth in these
    latency_us: float = 5.0  # of an all-reduce
    link: float = 0.6  # share of the link's rate in all-reduces

    def mixed_context_ms(
        self, shape: ModelShape, kernel: SharedKernel | None, sheet: HardwareSheet, ranks: int
    ) -> float:
        """The least that a token of context takes a decode beside prompts, see `mixed`."""
        return mixed_context_ms(
            shape,
            kernel,
            ranks=ranks,
            flops_per_ms=sheet.bf16_tflops * 1e9 * self.prefill_attention,
            bytes_per_ms=sheet.memory_gb_per_s * 1e6 * _MIXED_MEMORY,
        )


_MIXED_MEMORY = 0.88
"""What `mixed.CACHE_RATE` was chosen with."""

HOPPER = RooflineFactors()
BLACKWELL = RooflineFactors(
    compute=0.70, memory=0.82, expert_us=18.0, expert_compute=0.5,
    prefill_attention=0.57, prefill_widths=3.9, decode_us=9.0, decode_head_us=0.012,
    latency_us=7.0, link=0.5,
)  # fmt: skip
AMPERE = RooflineFactors(
    compute=0.84, memory=0.76, overlap=2.0, product_us=5.0, expert_us=27.0, expert_compute=0.44,
    prefill_us=25.0, prefill_attention=0.56, decode_us=18.4, decode_head_us=0.039,
    decode_attention=0.83, latency_us=5.5,
)  # fmt: skip
ADA = RooflineFactors(
    compute=0.62, memory=0.81, overlap=3.0, product_us=2.0, product_widths=1.3, quantise_us=0.5,
    expert_us=2.0, expert_compute=0.97, expert_fp8=2.0, expert_memory=0.95,
    prefill_us=28.0, prefill_attention=0.53, prefill_widths=1.0, decode_us=12.1,
    decode_head_us=0.029, decode_attention=0.84,
)  # fmt: skip
PRO_BLACKWELL = RooflineFactors(
    compute=0.85, memory=0.97, overlap=2.0, product_us=2.0, product_widths=1.6, quantise_us=1.8,
    expert_us=25.5, expert_compute=0.55, expert_memory=1.3, prefill_us=25.0,
    prefill_attention=0.61, prefill_widths=1.2, decode_us=12.9, decode_head_us=0.023,
)  # fmt: skip

_STATED_SHARE = 1597 / 1792
_NO_CORRECTION = 16 / 15


def _with_memory_of(
    factors: RooflineFactors, other: RooflineFactors, more: float
) -> RooflineFactors:
    """Factors with another card's shares of bandwidth, so many times as high."""
    return replace(
        factors,
        memory=other.memory * more,
        expert_memory=other.expert_memory * more,
        decode_attention=other.decode_attention * more,
    )


_ADA_WORKSTATION = _with_memory_of(ADA, ADA, _NO_CORRECTION)
_GEFORCE_ADA = replace(
    _ADA_WORKSTATION,
    compute=AMPERE.compute,
    prefill_attention=PRO_BLACKWELL.prefill_attention,
)
_CLASSES = (
    (("h100", "h200", "h800", "h20", "gh200"), HOPPER),
    (("b200", "b300", "gb200", "gb300"), BLACKWELL),
    (("a100", "a800", "a30", "v100", "t4"), AMPERE),
    (("a10", "a40"), _with_memory_of(AMPERE, ADA, 1.0)),
    (("rtx_30", "rtx_a"), _with_memory_of(AMPERE, ADA, _NO_CORRECTION)),
    (("l4", "l20"), ADA),
    (("rtx_5000_ada", "rtx_6000_ada"), _ADA_WORKSTATION),
    (("rtx_40",), _GEFORCE_ADA),
    (("rtx_pro_6000_server",), PRO_BLACKWELL),
    (("rtx_pro", "rtx_50"), _with_memory_of(PRO_BLACKWELL, PRO_BLACKWELL, _STATED_SHARE)),
)
_HBM_GB_PER_S = 1400.0
"""Cards that are not known: those with so much are taken for Hopper, others for Ada."""


def factors_of(sheet: HardwareSheet) -> RooflineFactors:
    """The factors of a card's class, by its name; of its bandwidth where that is not known."""
    for names, factors in _CLASSES:
        if sheet.name.startswith(names):
            return factors
    return HOPPER if sheet.memory_gb_per_s >= _HBM_GB_PER_S else ADA
