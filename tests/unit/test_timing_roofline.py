"""The roofline's step times by hand: a dense, an MoE and an FP8 model on one GPU and on several.

Each sum is written out from the model's config and the data sheet, in bytes, operations and ms.
Shares of the data sheet that kernels reach: 78 % of the peak in products, 85 % of the bandwidth
for weights and activations, 68 % of the bf16 peak in prefill attention, 88 % of the bandwidth for
the cache, 90 % of the link. On top 47 us a layer, 50 us a step, 1 us for each doubling of ranks in
an all-reduce, and 32 hidden widths of activations moved for each token and layer.
"""

from dataclasses import replace
from typing import Any

import pytest
from model_configs import DENSE, EXPERTS, LATENT, shape
from timing_support import engine, timing

from dynosim.build.timing import build_timing
from dynosim.errors import ConfigError
from dynosim.silicon.hardware import hardware_sheet
from dynosim.timing.roofline import RooflineFactors, RooflineModel
from dynosim.timing.sheets import HardwareSheet
from dynosim.timing.step import StepShape

H100_WEIGHTS_B_PER_MS = 3350e6 * 0.85
H100_CACHE_B_PER_MS = 3350e6 * 0.88
H100_BF16_PER_MS = 989e9 * 0.78
H100_FP8_PER_MS = 1979e9 * 0.78
H100_ATTENTION_PER_MS = 989e9 * 0.68
H200_WEIGHTS_B_PER_MS = 4800e6 * 0.85
NVLINK_B_PER_MS = 450e6 * 0.9

EXACT = 1e-12
"""Sums of a dozen doubles in another order."""

DECODE = (0, 0, 0, 16, 16 * 1000)
PREFILL = (2, 3000, 500, 0, 0)
MIXED = (1, 512, 1024, 16, 16 * 1000)
PREFILL_PAIRS = 3000 * (250 + 1501 / 2)
MIXED_PAIRS = 512 * (1024 + 513 / 2)


def built(model: str, hardware: str, *, step_overhead_ms: float = 0.0, **keys: Any) -> Any:
    """Without host, client path and padding."""
    return build_timing(
        timing("roofline", step_overhead_ms=step_overhead_ms),
        model=model,
        hardware=hardware,
        engine=engine(**keys),
        num_gpu_blocks=0,
        graph_sizes=(),
    )


def all_reduces_ms(layers: int, hidden: int, tokens: int, ranks: int) -> float:
    """Two in each layer; a ring moves twice what a rank has, less its own part."""
    doublings = {1: 0, 2: 1, 3: 2, 4: 2, 8: 3}[ranks]
    moved_b = 2 * (ranks - 1) / ranks * tokens * hidden * 2
    one_ms = 0.001 * doublings + moved_b / NVLINK_B_PER_MS
    return 2 * layers * one_ms if ranks > 1 else 0.0


def llama_8b_linear_ms(tokens: int, ranks: int) -> float:
    """Llama 3.1 8B in bf16 on H100: 32 layers, hidden 4096, 32 heads of 128, 8 KV heads."""
    attention = 4096 * 4096 + 2 * 4096 * 1024 + 4096 * 4096
    feed_forward = 3 * 4096 * 14_336
    weights = 32 * (attention + feed_forward)
    computing_ms = 2 * tokens * weights / ranks / H100_BF16_PER_MS
    reading_ms = 2 * weights / ranks / H100_WEIGHTS_B_PER_MS
    head_ms = 128_256 * 4096 * 2 / ranks / H100_WEIGHTS_B_PER_MS
    activations_ms = tokens * 32 * (32 * 4096) * 2 / H100_WEIGHTS_B_PER_MS
    fixed_ms = 0.050 + 32 * 0.047
    reduces_ms = all_reduces_ms(32, 4096, tokens, ranks)
    return max(computing_ms, reading_ms) + head_ms + activations_ms + fixed_ms + reduces_ms


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_a_dense_model_in_bf16(ranks: int) -> None:
    model = built("meta-llama/Llama-3.1-8B", "h100_sxm", tensor_parallel=ranks)
    cache_b = 32 * 2 * (8 // ranks) * 128 * 2  # of a token, on a rank
    contexts_ms = 16_000 * cache_b / H100_CACHE_B_PER_MS
    pair_ms = 2 * 32 * (32 / ranks) * (128 + 128) / H100_ATTENTION_PER_MS
    decode_ms = llama_8b_linear_ms(16, ranks) + contexts_ms
    prefill_ms = llama_8b_linear_ms(3000, ranks) + PREFILL_PAIRS * pair_ms
    mixed_ms = llama_8b_linear_ms(512 + 16, ranks) + MIXED_PAIRS * pair_ms + contexts_ms
    assert model.step_ms(StepShape(*DECODE)) == pytest.approx(decode_ms, rel=EXACT)
    assert model.step_ms(StepShape(*PREFILL)) == pytest.approx(prefill_ms, rel=EXACT)
    assert model.step_ms(StepShape(*MIXED)) == pytest.approx(mixed_ms, rel=EXACT)


def qwen_moe_linear_ms(tokens: int, ranks: int, weight_b: int, peak_per_ms: float) -> float:
    """Qwen3 30B-A3B on H200: 48 layers, hidden 2048, 32 heads of 128, 4 KV heads; 8 of 128 experts.

    Every token of a step draws 8 experts. An expert is idle with (1 - 8/128) to the power of the
    tokens; the others' weights are read once.
    """
    attention = 2048 * 4096 + 2 * 2048 * 512 + 4096 * 2048
    router = 2048 * 128
    plain = 48 * (attention + router)
    plain_ms = max(
        2 * tokens * plain / ranks / peak_per_ms,
        weight_b * plain / ranks / H200_WEIGHTS_B_PER_MS,
    )
    expert = 3 * 2048 * 768
    distinct = 128 * (1 - (120 / 128) ** tokens)
    experts_ms = 48 * max(
        2 * tokens * 8 * expert / ranks / peak_per_ms,
        weight_b * distinct * expert / ranks / H200_WEIGHTS_B_PER_MS,
    )
    head_ms = 151_936 * 2048 * 2 / ranks / H200_WEIGHTS_B_PER_MS
    activations_ms = tokens * 48 * (32 * 2048) * 2 / H200_WEIGHTS_B_PER_MS
    fixed_ms = 0.050 + 48 * 0.047
    reduces_ms = all_reduces_ms(48, 2048, tokens, ranks)
    return plain_ms + experts_ms + head_ms + activations_ms + fixed_ms + reduces_ms


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("quantisation", [None, "fp8"])
def test_a_model_with_experts(ranks: int, quantisation: str | None) -> None:
    model = built(
        "Qwen/Qwen3-30B-A3B", "h200_sxm", tensor_parallel=ranks, quantization=quantisation
    )
    weight_b, peak = (1, 1979e9 * 0.78) if quantisation else (2, 989e9 * 0.78)
    contexts_ms = 16_000 * (48 * 2 * (4 // ranks) * 128 * 2) / (4800e6 * 0.88)
    pair_ms = 2 * 48 * (32 / ranks) * (128 + 128) / H100_ATTENTION_PER_MS  # peaks of both are equal
    decode_ms = qwen_moe_linear_ms(16, ranks, weight_b, peak) + contexts_ms
    prefill_ms = qwen_moe_linear_ms(3000, ranks, weight_b, peak) + PREFILL_PAIRS * pair_ms
    mixed_ms = qwen_moe_linear_ms(528, ranks, weight_b, peak) + MIXED_PAIRS * pair_ms + contexts_ms
    assert model.step_ms(StepShape(*DECODE)) == pytest.approx(decode_ms, rel=EXACT)
    assert model.step_ms(StepShape(*PREFILL)) == pytest.approx(prefill_ms, rel=EXACT)
    assert model.step_ms(StepShape(*MIXED)) == pytest.approx(mixed_ms, rel=EXACT)


def test_one_token_reads_its_own_experts_and_many_read_all() -> None:
    config = EXPERTS | {"mlp_only_layers": [1]}  # 4 of 16 experts in two layers of three
    model, no_experts = (
        RooflineModel(shape(config | {"num_experts_per_tok": drawn}), hardware_sheet("h100_sxm"))
        for drawn in (4, 0)
    )
    expert_ms = 3 * 64 * 24 * 2 / H100_WEIGHTS_B_PER_MS
    for tokens, distinct in ((1, 4), (2, 4 + 4 * 12 / 16), (10_000, 16)):
        step, plain = (one.step_ms(StepShape.of_decodes(tokens, 0)) for one in (model, no_experts))
        reading_ms = 2 * distinct * expert_ms
        computing_ms = 2 * 2 * tokens * 4 * (3 * 64 * 24) / H100_BF16_PER_MS
        assert step - plain == pytest.approx(max(reading_ms, computing_ms), rel=1e-9)


def qwen_32b_fp8_linear_ms(tokens: int, ranks: int) -> float:
    """Qwen3 32B with fp8 weights on H100: 64 layers, hidden 5120, 64 heads of 128, 8 KV heads."""
    attention = 5120 * 8192 + 2 * 5120 * 1024 + 8192 * 5120
    feed_forward = 3 * 5120 * 25_600
    weights = 64 * (attention + feed_forward)
    computing_ms = 2 * tokens * weights / ranks / H100_FP8_PER_MS
    reading_ms = 1 * weights / ranks / H100_WEIGHTS_B_PER_MS
    head_ms = 151_936 * 5120 * 2 / ranks / H100_WEIGHTS_B_PER_MS  # stays in 16 bits
    activations_ms = tokens * 64 * (32 * 5120) * 2 / H100_WEIGHTS_B_PER_MS
    fixed_ms = 0.050 + 64 * 0.047
    reduces_ms = all_reduces_ms(64, 5120, tokens, ranks)
    return max(computing_ms, reading_ms) + head_ms + activations_ms + fixed_ms + reduces_ms


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("model", "quantisation"), [("Qwen/Qwen3-32B", "fp8"), ("Qwen/Qwen3-32B-FP8", None)]
)
@pytest.mark.parametrize(("cache", "element_b"), [("auto", 2), ("fp8", 1), ("fp8_e4m3", 1)])
def test_an_fp8_model(
    ranks: int, model: str, quantisation: str | None, cache: str, element_b: int
) -> None:
    timed = built(
        model, "h100_sxm", tensor_parallel=ranks, quantization=quantisation, kv_cache_dtype=cache
    )
    contexts_ms = 16_000 * (64 * 2 * (8 // ranks) * 128 * element_b) / H100_CACHE_B_PER_MS
    pair_ms = 2 * 64 * (64 / ranks) * (128 + 128) / H100_ATTENTION_PER_MS  # attention: bf16
    decode_ms = qwen_32b_fp8_linear_ms(16, ranks) + contexts_ms
    prefill_ms = qwen_32b_fp8_linear_ms(3000, ranks) + PREFILL_PAIRS * pair_ms
    # Beside prompts a decode computes tiles of 128 rows, for 8 query heads to a KV head.
    beside_ms = max(contexts_ms, 16_000 * 128 * pair_ms / 8)
    mixed_ms = qwen_32b_fp8_linear_ms(528, ranks) + MIXED_PAIRS * pair_ms + beside_ms
    assert timed.step_ms(StepShape(*DECODE)) == pytest.approx(decode_ms, rel=EXACT)
    assert timed.step_ms(StepShape(*PREFILL)) == pytest.approx(prefill_ms, rel=EXACT)
    assert timed.step_ms(StepShape(*MIXED)) == pytest.approx(mixed_ms, rel=EXACT)


@pytest.mark.parametrize(("ranks", "heads"), [(1, 2), (2, 1), (4, 1), (8, 1)])
def test_a_rank_reads_whole_heads_of_the_cache(ranks: int, heads: int) -> None:
    model = RooflineModel(shape(DENSE), hardware_sheet("h100_sxm"), tensor_parallel=ranks)
    longer, shorter = (
        model.step_ms(StepShape.of_decodes(1, context)) for context in (20_000, 10_000)
    )
    token_b = 3 * 2 * heads * 8 * 2  # layers, keys and values, KV heads of a rank, width, bytes
    assert longer - shorter == pytest.approx(10_000 * token_b / H100_CACHE_B_PER_MS, rel=1e-6)


def sheet(**changes: float) -> HardwareSheet:
    figures = {
        "memory_gib": 80.0,
        "cuda_total_gib": 79.5,
        "memory_gb_per_s": 1000.0,
        "bf16_tflops": 100.0,
        "fp8_tflops": 300.0,
        "link_gb_per_s": 50.0,
    }
    return HardwareSheet(name="x", **(figures | changes))  # type: ignore[arg-type]


FREE = RooflineFactors(
    compute=1.0,
    memory=1.0,
    prefill_attention=1.0,
    decode_attention=1.0,
    layer_us=0.0,
    element_widths=0.0,
    all_reduce_us=0.0,
    link=1.0,
    step_us=0.0,
)
"""Kernels that reach what the data sheet says and cost nothing else."""


def test_latent_attention_reads_entries_or_computes_on_them() -> None:
    latent = shape(LATENT)  # 5 layers, 4 heads, entries of 160 of which 96 are values
    contexts_ms = {}
    for name, rate in (("reading", 1e9), ("computing", 1e-3)):
        model = RooflineModel(latent, sheet(bf16_tflops=rate), factors=FREE)
        longer, shorter = (
            model.step_ms(StepShape.of_decodes(2, context)) for context in (2000, 1000)
        )
        contexts_ms[name] = longer - shorter
    assert contexts_ms["reading"] == pytest.approx(1000 * 5 * 160 * 2 / 1e9, rel=1e-9)
    operations = 2 * 5 * 4 * (160 + 96)
    assert contexts_ms["computing"] == pytest.approx(1000 * operations / 1e6, rel=1e-9)
    # Four ranks share the heads, none shares the entries.
    split = RooflineModel(latent, sheet(bf16_tflops=1e-3), tensor_parallel=4, factors=FREE)
    saved_ms = split.step_ms(StepShape.of_decodes(2, 2000)) - split.step_ms(
        StepShape.of_decodes(2, 1000)
    )
    assert saved_ms == pytest.approx(1000 * operations / 4 / 1e6, rel=1e-9)


def test_latent_attention_in_prefill_has_keys_with_rotation_and_narrower_values() -> None:
    model = RooflineModel(shape(LATENT), sheet(), factors=FREE)
    operations = 2 * 5 * 4 * ((32 + 64) + 40)  # of a pair
    cached_ms = model.step_ms(StepShape.of_prompts(1, 10, 1000)) - model.step_ms(
        StepShape.of_prompts(1, 10)
    )
    assert cached_ms == pytest.approx(10 * 1000 * operations / 100e9, rel=1e-9)


@pytest.mark.parametrize(
    ("factor", "value", "expected_ms"),
    [
        ("step_us", 70.0, 0.070),
        ("layer_us", 9.0, 3 * 0.009),
        ("element_widths", 5.0, 40 * 3 * (5 * 64) * 2 / 1000e6),
        ("all_reduce_us", 4.0, 2 * 3 * 0.004),
    ],
)
def test_what_is_added_to_products_one_by_one(
    factor: str, value: float, expected_ms: float
) -> None:
    """Three layers of width 64 on two GPUs, 40 tokens."""
    free = RooflineModel(shape(DENSE), sheet(), tensor_parallel=2, factors=FREE)
    factors = replace(FREE, **{factor: value})
    model = RooflineModel(shape(DENSE), sheet(), tensor_parallel=2, factors=factors)
    step = (0, 0, 0, 40, 0)
    assert model.step_ms(StepShape(*step)) - free.step_ms(StepShape(*step)) == pytest.approx(
        expected_ms, rel=1e-9
    )


def test_shares_of_the_data_sheet_are_of_the_part_that_they_name() -> None:
    def extra(name: str, step: tuple[int, int, int, int, int], **figures: float) -> float:
        """How many times longer a step takes if a share is halved, all else being free."""
        whole, half = (
            RooflineModel(
                shape(DENSE),
                sheet(**figures),
                tensor_parallel=2,
                factors=replace(FREE, **{name: s}),
            )
            for s in (1.0, 0.5)
        )
        return half.step_ms(StepShape(*step)) / whole.step_ms(StepShape(*step))

    fast, slow = 1e9, 1e-9
    decode, prefill = (0, 0, 0, 8, 10**9), (1, 1000, 10**6, 0, 0)
    # All but one of the rates are out of the way: the step takes what that one takes.
    assert extra("compute", (0, 0, 0, 8, 0), bf16_tflops=slow) == pytest.approx(2, rel=1e-6)
    assert extra("memory", (0, 0, 0, 8, 0), bf16_tflops=fast, link_gb_per_s=fast) == pytest.approx(
        2, rel=1e-6
    )
    assert extra("link", (0, 0, 0, 8, 0), link_gb_per_s=slow) == pytest.approx(2, rel=1e-6)
    assert extra("decode_attention", decode) == pytest.approx(2, rel=1e-3)
    assert extra("prefill_attention", prefill, bf16_tflops=1e-3) == pytest.approx(2, rel=1e-3)
    assert extra("prefill_attention", decode) == 1.0
    assert extra("decode_attention", prefill) == 1.0


@pytest.mark.parametrize(
    ("quantisation", "weight_b", "peak_tflops"),
    [(None, 2, 100), ("fp8", 1, 300), ("fp8_block", 1, 300)],
)
def test_the_format_sets_bytes_and_peak(
    quantisation: str | None, weight_b: int, peak_tflops: float
) -> None:
    weights = 3 * (10_240 + 3 * 64 * 160)
    head_ms = 1000 * 64 * 2 / 1000e6
    model = RooflineModel(shape(DENSE), sheet(), quantisation=quantisation, factors=FREE)
    few_ms, many_ms = (
        model.step_ms(StepShape.of_decodes(tokens, 0)) - head_ms for tokens in (1, 100_000)
    )
    assert few_ms == pytest.approx(weight_b * weights / 1000e6, rel=1e-9)
    assert many_ms == pytest.approx(2 * 100_000 * weights / (peak_tflops * 1e9), rel=1e-9)


def test_products_take_the_longer_of_computing_and_reading() -> None:
    # 100 operations for each byte: two bytes of a weight are read while it serves 100 tokens.
    model = RooflineModel(shape(DENSE), sheet(), factors=FREE)
    times = [model.step_ms(StepShape.of_decodes(tokens, 0)) for tokens in (1, 99, 100, 101, 200)]
    assert times[0] == times[1] == pytest.approx(times[2], rel=1e-12)
    weights_ms = 2 * 3 * (10_240 + 3 * 64 * 160) / 1000e6
    assert times[3] - times[2] == pytest.approx(weights_ms / 100, rel=1e-9)
    assert times[4] - times[2] == pytest.approx(weights_ms, rel=1e-9)


def test_a_step_overhead_is_added_to_every_step_once() -> None:
    plain = built("meta-llama/Llama-3.1-8B", "h100_sxm")
    slower = built("meta-llama/Llama-3.1-8B", "h100_sxm", step_overhead_ms=1.25)
    for step in (DECODE, PREFILL, MIXED):
        assert slower.step_ms(StepShape(*step)) - plain.step_ms(StepShape(*step)) == pytest.approx(
            1.25, rel=1e-9
        )
    assert slower.step_ms(StepShape()) == 0.0


def test_the_model_says_that_it_is_an_estimate_and_of_what() -> None:
    model = built("meta-llama/Llama-3.1-8B", "h100_sxm", tensor_parallel=2, step_overhead_ms=0.5)
    assert model.source == "estimated"
    assert model.description == (
        "roofline: meta-llama/Meta-Llama-3.1-8B on h100_sxm, tensor_parallel 2,"
        " plus 0.5 ms per step"
    )
    note = "estimated from the model's shape and a data sheet; no measurement of this engine"
    assert model.notes == (note,)
    plain = built("meta-llama/Llama-3.1-8B", "h100_sxm")
    assert plain.description.endswith("on h100_sxm, tensor_parallel 1")


def test_what_makes_the_estimate_worse_is_noted() -> None:
    windows = shape(DENSE | {"attention_chunk_size": 8192})
    assert RooflineModel(windows, sheet()).notes[1:] == (
        "sliding-window layers are counted as full attention: too slow if long",
    )
    of_eight = RooflineModel(shape(DENSE), sheet(), tensor_parallel=8)
    assert len(of_eight.notes) == 1
    of_four = RooflineModel(shape(DENSE), sheet(gpus_per_node=4), tensor_parallel=8)
    assert of_four.notes[1:] == ("more GPUs than the 4 of a node: links are slower",)
    of_rack = sheet(gpus_per_node=4, nvlink_domain_gpus=8)
    assert len(RooflineModel(shape(DENSE), of_rack, tensor_parallel=8).notes) == 1
    of_racks = RooflineModel(shape(DENSE), of_rack, tensor_parallel=16)
    assert of_racks.notes[1:] == ("more GPUs than the 8 of an NVLink domain: links are slower",)
    alone, pair = (
        RooflineModel(shape(DENSE), hardware_sheet("rtx_4090"), tensor_parallel=ranks)
        for ranks in (1, 2)
    )
    assert len(alone.notes) == 1
    assert pair.notes[1:] == (
        "rtx_4090 has no peer-to-peer: traffic between GPUs passes the host, and the link's rate is"
        " an upper bound",
    )


def test_a_model_that_formulas_do_not_cover_is_refused() -> None:
    sparse = shape(DENSE | {"index_topk": 2048})
    with pytest.raises(ConfigError, match="roofline does not cover m: its attention is sparse"):
        RooflineModel(sparse, sheet(), name="m")
