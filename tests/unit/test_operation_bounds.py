"""What a kernel needs at least, and what good ones take: by hand."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.silicon.hardware import hardware_sheet
from dynosim.timing.operation_bounds import (
    Operation,
    decode_bounds,
    peak_tflops,
    prefill_bounds,
    token_bounds,
    weight_bytes,
)

SHEET = replace(
    hardware_sheet("l4"), memory_gb_per_s=1000, bf16_tflops=100, fp8_tflops=200, link_gb_per_s=64
)


def gemm(**changes: Any) -> Operation:
    fields = {"n": 1000, "k": 2000, "quant_mode": "bfloat16", **changes}
    return Operation("product", "Gemm", 3.0, fields)


def experts(**changes: Any) -> Operation:
    fields = {
        "hidden_size": 1000,
        "inter_size": 500,
        "topk": 2,
        "num_experts": 8,
        "moe_tp_size": 1,
        "moe_ep_size": 1,
        "quant_mode": "fp8",
        **changes,
    }
    return Operation("experts", "Moe", 1.0, fields)


@pytest.mark.parametrize(
    ("quantisation", "size", "peak"),
    [
        ("bfloat16", 2.0, 100),
        ("fp8", 1.0, 200),
        ("fp8_block", 1.0, 200),
        ("sq", 1.0, 200),
        ("int8_wo", 1.0, 100),
        ("int4_wo", 0.5625, 100),
        ("w4a16_mxfp4", 0.5625, 100),
        ("w4a8_mxfp4_mxfp8", 0.5625, 200),
        ("w4afp8", 0.5625, 200),
        ("nvfp4", 0.5625, 400),
        ("nvfp4_wo", 0.5625, 100),
    ],
)
def test_formats_have_a_width_and_a_rate(quantisation: str, size: float, peak: float) -> None:
    assert weight_bytes(quantisation) == size
    assert peak_tflops(quantisation, SHEET) == peak


def test_a_product_reads_its_weights_or_computes() -> None:
    tokens = np.array([1.0, 10_000.0])
    bounds = token_bounds(gemm(), tokens, SHEET)
    assert bounds is not None
    reading = 1000 * 2000 * 2 / 1000e6  # ms
    computing = 2 * 10_000 * 1000 * 2000 / 100e9
    assert bounds.floor_ms.tolist() == pytest.approx([3 * reading, 3 * computing])
    assert np.all(bounds.usual_ms > bounds.floor_ms)
    half = token_bounds(gemm(quant_mode="fp8"), tokens, SHEET)
    assert half is not None
    assert half.floor_ms.tolist() == pytest.approx([1.5 * reading, 1.5 * computing])


def test_a_launch_takes_time_however_little_it_does() -> None:
    tiny = token_bounds(gemm(n=8, k=8), np.ones(1), SHEET)
    assert tiny is not None
    assert tiny.usual_ms[0] == pytest.approx(3 * 8e-3, rel=0.01) and tiny.floor_ms[0] < 1e-5


def test_of_experts_those_are_read_that_a_token_chose() -> None:
    size = 3 * 1000 * 500
    one, many = (token_bounds(experts(), np.array([n]), SHEET) for n in (1.0, 1000.0))
    assert one is not None and many is not None
    assert one.floor_ms[0] == pytest.approx(2 * size / 1000e6)
    computing = 2 * 1000 * 2 * size / 200e9
    assert many.floor_ms[0] == pytest.approx(max(8 * size / 1000e6, computing))


def test_experts_over_ranks_are_fewer_on_each() -> None:
    tokens = np.array([1.0, 64.0, 4096.0])
    whole = token_bounds(experts(), tokens, SHEET)
    for split in ({"moe_tp_size": 4}, {"moe_ep_size": 4}):
        part = token_bounds(experts(**split), tokens, SHEET)
        assert whole is not None and part is not None
        assert part.floor_ms.tolist() == pytest.approx((whole.floor_ms / 4).tolist())


def attention(kind: str, **changes: Any) -> Operation:
    fields = {
        "n": 8,
        "n_kv": 2,
        "head_size": 128,
        "window_size": 0,
        "kv_cache_dtype": "bfloat16",
        **changes,
    }
    return Operation("attention", kind, 1.0, fields)


def test_decode_attention_reads_the_cache() -> None:
    batch, context = np.array([[4.0]]), np.array([[1000.0]])
    bounds = decode_bounds(attention("GenerationAttention"), batch, context, SHEET)
    assert bounds is not None
    assert bounds.floor_ms[0, 0] == pytest.approx(4 * 1000 * 2 * 2 * 128 * 2 / 1000e6)
    windowed = attention("GenerationAttention", window_size=100)
    of_window = decode_bounds(windowed, batch, context, SHEET)
    assert of_window is not None
    assert of_window.floor_ms[0, 0] == pytest.approx(bounds.floor_ms[0, 0] / 10)


def test_prefill_attention_computes_half_of_its_own_square() -> None:
    counts, new, cached = np.array([2.0]), np.array([1000.0]), np.array([0.0])
    bounds = prefill_bounds(attention("ContextAttention"), counts, new, cached, SHEET)
    assert bounds is not None
    assert bounds.floor_ms[0] == pytest.approx(4 * 2 * 1000 * 500.5 * 8 * 128 / 100e9)


def test_what_no_roofline_is_known_of_has_none() -> None:
    other = Operation("other", "Kda", 1.0, {})
    assert other.family is None
    one = np.ones(1)
    assert token_bounds(other, one, SHEET) is None
    assert decode_bounds(other, one, one, SHEET) is None
    assert prefill_bounds(other, one, one, one, SHEET) is None


@given(st.integers(1, 20_000), st.sampled_from(["bfloat16", "fp8", "int4_wo", "nvfp4"]))
def test_more_tokens_never_take_less(tokens: int, quantisation: str) -> None:
    sizes = np.array([tokens, tokens + 1.0, 2.0 * tokens])
    for one in (gemm(quant_mode=quantisation), experts(quant_mode=quantisation)):
        bounds = token_bounds(one, sizes, SHEET)
        assert bounds is not None
        assert np.all(np.diff(bounds.floor_ms) >= 0) and np.all(np.diff(bounds.usual_ms) >= 0)
        assert np.all(bounds.floor_ms < bounds.usual_ms)


def test_experts_beside_shared_ones_are_held_like_experts() -> None:
    """The library's name for both on streams of their own, and what it holds of them."""
    tokens = np.array([1.0, 16.0, 256.0])
    router = {"name": "router", "scale_factor": 4.0, "n": 64, "k": 512, "quant_mode": "bfloat16"}
    experts = {
        "name": "experts",
        "scale_factor": 4.0,
        "hidden_size": 512,
        "inter_size": 256,
        "topk": 4,
        "num_experts": 64,
        "moe_tp_size": 2,
        "moe_ep_size": 1,
        "quant_mode": "fp8",
    }
    sent = {"name": "sent", "scale_factor": 4.0, "pre_dispatch": False}
    parts = [{"Gemm": router}, {"Moe": experts}, {"MoeDispatch": sent}]
    both = Operation("beside", "Overlap", 1.0, {"group_a": parts, "group_b": []})
    found = token_bounds(both, tokens, SHEET)
    alone = [
        token_bounds(Operation(of["name"], kind, 4.0, of), tokens, SHEET)
        for kind, of in (("Gemm", router), ("Moe", experts))
    ]
    assert both.family == "experts"
    assert found is not None and alone[0] is not None and alone[1] is not None
    assert found.floor_ms == pytest.approx(alone[0].floor_ms + alone[1].floor_ms)
    usual = alone[0].usual_ms + alone[1].usual_ms
    assert found.usual_ms == pytest.approx(usual + 4 * 0.008)
