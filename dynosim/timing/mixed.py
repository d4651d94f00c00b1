"""Attention of steps that compute prompts and decode: what decodes cost more in one kernel.

An engine that hands both to one variable-length kernel has it made for prompts: it works on tiles
of many query rows. A decoding sequence has one row, and its tile computes all the others for
nothing: each token of context costs as many attention pairs as a tile has rows, where a kernel for
decodes only waits for memory. With grouped queries it matters which rows a tile holds.
FlashAttention 3 packs the query heads that share keys into one tile, so a tile of 128 rows per KV
head is computed; FlashAttention 2 does so for pure decodes only, and has a tile of 64 rows for each
query head.

So a token of context costs `rows * (query heads or KV heads)` pairs of arithmetic, of which a part
is hidden behind the reading of keys and values: `NOT_HIDDEN` is the one constant.

Source: FlashAttention's `run_mha_fwd_splitkv_dispatch` (v2: 64 rows) and `tile_size_fwd_sm90`,
`should_pack_gqa` (v3: 128 rows, always packed where lengths vary).
"""

from dataclasses import dataclass

from dynosim.timing.architecture import ModelShape

NOT_HIDDEN = 0.75
"""Share of a decode's tile that reading the cache does not hide; 0.5 to 1. Chosen on a kernel
measured alone: FlashAttention 2 takes 9.7 ms more for 128 decodes of 1,024 tokens beside 512 new
ones than two kernels do (32 layers of 32 query heads). Version 3 is taken to hide as much."""


@dataclass(frozen=True, slots=True)
class SharedKernel:
    """A kernel that serves prompts and decodes together."""

    name: str
    tile_rows: int
    packs_heads: bool  # whether a tile holds the query heads of one KV head


FLASH_ATTENTION_2 = SharedKernel("FlashAttention 2", 64, packs_heads=False)
FLASH_ATTENTION_3 = SharedKernel("FlashAttention 3", 128, packs_heads=True)


def mixed_context_token_ms(
    shape: ModelShape, kernel: SharedKernel | None, *, bf16_tflops: float, ranks: int, share: float
) -> float:
    """What a token of a decode's context takes more in a step with prompts, all layers, one rank.

    `share` is the part of the peak that attention of prompts reaches. Latent attention has kernels
    of its own for decodes, and so have engines without a `kernel` for both: 0.
    """
    if kernel is None or shape.latent_width:
        return 0.0
    heads = max(1.0, shape.kv_heads / ranks) if kernel.packs_heads else shape.heads / ranks
    flops = 2 * shape.layers * heads * kernel.tile_rows * 2 * shape.head_dim
    return NOT_HIDDEN * flops / (bf16_tflops * 1e9 * share)
