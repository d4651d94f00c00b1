"""Attention of steps that compute prompts and decode: what decodes cost in one kernel with prompts.

An engine that hands both to one variable-length kernel has it made for prompts: it works on tiles
of many query rows. A decoding sequence has one row, and its tile computes all the others for
nothing. With grouped queries it matters which rows a tile holds. FlashAttention 3 packs the query
heads that share keys into one tile, so a tile of 128 rows per KV head is computed. FlashAttention 2
does so for pure decodes only; beside prompts it has a tile of 64 rows for each query head, and each
of these reads the keys and values of its group again, from the cache if not from memory. Loads and
arithmetic overlap, so a token of context takes the longest of three:

    reading it once from memory    tile rows x heads pairs of arithmetic    reading it for each tile

The first is what decodes take alone. On H100 it is the longest, where heads are packed; elsewhere
the others take 1.5 to 4 times as long.

Source: FlashAttention's `run_mha_fwd_splitkv_dispatch` (v2: 64 rows) and `tile_size_fwd_sm90`,
`should_pack_gqa` (v3: 128 rows, always packed where lengths vary).
"""

from dataclasses import dataclass

from dynosim.timing.architecture import ModelShape

CACHE_RATE = 2.2
"""How many times faster than memory the cache serves keys that several tiles read; 2 to 3. Chosen
on a kernel measured alone on an RTX PRO 6000: 128 decodes of 1,024 tokens beside 512 new ones take
9.7 ms more in one kernel than in two (32 layers, 4 query heads to a KV head)."""


@dataclass(frozen=True, slots=True)
class SharedKernel:
    """A kernel that serves prompts and decodes together."""

    name: str
    tile_rows: int
    packs_heads: bool  # whether a tile holds the query heads of one KV head


FLASH_ATTENTION_2 = SharedKernel("FlashAttention 2", 64, packs_heads=False)
FLASH_ATTENTION_3 = SharedKernel("FlashAttention 3", 128, packs_heads=True)


def mixed_context_ms(
    shape: ModelShape,
    kernel: SharedKernel | None,
    *,
    ranks: int,
    flops_per_ms: float,
    bytes_per_ms: float,
) -> float:
    """The least that a token of a decode's context takes beside prompts, all layers, one rank.

    Rates are what attention reaches. Latent attention has kernels of its own for decodes, and so
    have engines without a `kernel` for both: 0.
    """
    if kernel is None or shape.latent_width:
        return 0.0
    kv_heads = max(1.0, shape.kv_heads / ranks)
    tiles = kv_heads if kernel.packs_heads else shape.heads / ranks
    computing = 2 * shape.layers * tiles * kernel.tile_rows * 2 * shape.head_dim / flops_per_ms
    reading = tiles / kv_heads * shape.kv_bytes_per_token(ranks, 2.0) / bytes_per_ms
    return max(computing, reading / CACHE_RATE)
