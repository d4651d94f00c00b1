"""Matrix products of a model's layers on one GPU, for the roofline.

One product takes its launch, and the longer of computing and of moving weights and activations,
with some of both where neither is much longer. Experts read the weights of those that any token
draws, and compute a tile of rows at least for each.
"""

from dataclasses import dataclass

from dynosim.timing.architecture import ModelShape
from dynosim.timing.module_formats import ModuleFormats
from dynosim.timing.number_formats import BF16, FP8, compute_format, weight_element_bytes
from dynosim.timing.roofline_factors import RooflineFactors
from dynosim.timing.sheets import HardwareSheet

_TILE_ROWS = 24
"""Rows that an expert's tile computes on top of those it has: half of a tile, over the tables."""
_EXPERT_MOVES = 1.5
"""Times that what experts read and write is moved."""
_ACTIVATION_BYTES = 2


@dataclass(frozen=True, slots=True)
class Product:
    """Products of one size, `count` of them in a step."""

    count: int
    inner: float  # width that is summed over
    outer: float
    number_format: str | None


def products_of(shape: ModelShape, ranks: int, formats: ModuleFormats) -> list[Product]:
    """All of a step but experts and the output's, of one rank."""
    found = [
        Product(shape.layers, inner, outer, formats.attention)
        for inner, outer in _attention(shape, ranks)
    ]
    dense, experts, hidden = shape.dense_layers, shape.expert_layers, shape.hidden
    found += _feed_forward(dense, hidden, shape.intermediate / ranks, formats.feed_forward)
    if experts and shape.experts:
        found.append(Product(experts, hidden, shape.experts, None))
        if shape.shared_intermediate:
            inner = shape.shared_intermediate / ranks
            found += _feed_forward(experts, hidden, inner, formats.shared)
    return found


def _attention(shape: ModelShape, ranks: int) -> list[tuple[float, float]]:
    hidden, heads = shape.hidden, shape.heads / ranks
    if not shape.latent_width:
        kv_heads = -(-shape.kv_heads // ranks)
        widths = (heads + 2 * kv_heads) * shape.head_dim
        return [(hidden, widths), (heads * shape.head_dim, hidden)]
    query = heads * (shape.head_dim + shape.rope_width)
    up = heads * (shape.head_dim + shape.value_head_dim)
    rest = [(shape.latent_rank, up), (heads * shape.value_head_dim, hidden)]
    if not shape.query_rank:
        return [(hidden, query + shape.latent_width), *rest]
    return [(hidden, shape.query_rank + shape.latent_width), (shape.query_rank, query), *rest]


def _feed_forward(
    layers: int, hidden: int, inner: float, number_format: str | None
) -> list[Product]:
    if not layers or not inner:
        return []
    return [
        Product(layers, hidden, 2 * inner, number_format),
        Product(layers, inner, hidden, number_format),
    ]


def product_ms(
    product: Product, tokens: float, sheet: HardwareSheet, factors: RooflineFactors
) -> float:
    """Of one of them."""
    size = product.inner * product.outer
    computes_in = compute_format(product.number_format)
    rate = sheet.matrix_tflops(product.number_format) * 1e9 * factors.compute
    launch_us = factors.product_us
    if computes_in != BF16 and rate > sheet.bf16_tflops * 1e9 * factors.compute:
        rate *= factors.fp8_compute
        launch_us += factors.quantise_us
    computing = 2 * tokens * size / rate * (1 + factors.slowdown)
    moved = tokens * (product.inner + product.outer) * _ACTIVATION_BYTES * factors.product_widths
    bandwidth = sheet.memory_gb_per_s * 1e6
    weights = size * weight_element_bytes(product.number_format)
    reading = weights / factors.memory / bandwidth + moved / bandwidth
    return launch_us / 1e3 + _together(computing, reading, factors.overlap)


def experts_ms(
    shape: ModelShape,
    tokens: float,
    ranks: int,
    number_format: str | None,
    sheet: HardwareSheet,
    factors: RooflineFactors,
) -> float:
    """Of one layer's experts, each split over all ranks."""
    if not shape.experts_per_token:
        return 0.0
    share = shape.experts_per_token / shape.experts
    touched = shape.experts * (1 - (1 - share) ** tokens)  # of evenly chosen ones
    pairs = tokens * shape.experts_per_token
    inner = shape.expert_intermediate / ranks
    return expert_kernels_ms(shape, tokens, pairs, touched, inner, number_format, sheet, factors)


def expert_kernels_ms(
    shape: ModelShape,
    tokens: float,
    pairs: float,
    touched: float,
    inner: float,
    number_format: str | None,
    sheet: HardwareSheet,
    factors: RooflineFactors,
) -> float:
    """Of one layer's experts on one GPU: so many of them are touched by `pairs` of a token and an
    expert, of `tokens` in all; `inner` is the width of an expert's part that the GPU has."""
    size = 3 * shape.hidden * inner
    is_quantised = compute_format(number_format) != BF16
    rate = sheet.bf16_tflops * 1e9 * factors.expert_compute
    if compute_format(number_format) == FP8 and sheet.fp8_tflops > sheet.bf16_tflops:
        rate *= factors.expert_fp8
    computing = 2 * (pairs + touched * _TILE_ROWS) * size / rate * (1 + factors.slowdown)
    bandwidth = sheet.memory_gb_per_s * 1e6
    reading = touched * size * weight_element_bytes(number_format) / bandwidth
    widths = 3 * pairs * (shape.hidden + inner) + tokens * shape.hidden
    moved = _EXPERT_MOVES * widths * _ACTIVATION_BYTES / bandwidth
    launch_us = factors.expert_us + (3 * factors.quantise_us if is_quantised else 0.0)
    return float(launch_us / 1e3 + computing + reading / factors.expert_memory + moved)


def _together(a: float, b: float, overlap: float) -> float:
    """The longer one, and a part of the other."""
    longer, shorter = max(a, b), min(a, b)
    if longer <= 0.0:
        return 0.0
    return float(longer * (1 + (shorter / longer) ** overlap) ** (1 / overlap))
