"""The roofline's step times by hand: a dense, an MoE and an FP8 model on one GPU and on several.

Each sum is written out from the model's config and the data sheet, in bytes, operations and ms, for
Hopper's factors: 79 % of the peak in products, slowed by a tenth, 86 % of the bandwidth for
weights, both together by the fourth power, 3.5 us a launch; FP8 79 % of that and 2.8 us more; 68 %
of the peak and 33 us a layer in prompts' attention; 95 % of the bandwidth, 11.8 us a layer and 28
ns for each sequence and KV head in decodes'; 3 us and 80 % of the bandwidth in norms and
activations; 5 us and 60 % of the link in all-reduces.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
from model_configs import DENSE, EXPERTS, LATENT, shape
from timing_support import engine, timing

from dynosim.build.timing import build_timing
from dynosim.errors import ConfigError
from dynosim.silicon.hardware import hardware_sheet
from dynosim.timing.roofline import RooflineModel
from dynosim.timing.roofline_factors import ADA, HOPPER, RooflineFactors, factors_of
from dynosim.timing.roofline_products import experts_ms
from dynosim.timing.sheets import HardwareSheet
from dynosim.timing.step import StepShape

H100_CACHE_B_PER_MS = 3350e6 * 0.95
H100_ATTENTION_PER_MS = 989e9 * 0.68
NVLINK_B_PER_MS = 450e6 * 0.6

EXACT = 1e-12
"""Sums of a dozen doubles in another order."""

DECODE = (0, 0, 0, 16, 16 * 1000)
PREFILL = (2, 3000, 500, 0, 0)
MIXED = (1, 512, 1024, 16, 16 * 1000)
PREFILL_PAIRS = 3000 * (250 + 1501 / 2)
MIXED_PAIRS = 512 * (1024 + 513 / 2)


def built(model: str, hardware: str, *, step_overhead_ms: float = 0.0, **keys: Any) -> Any:
    """Without host, client path, sampling and padding."""
    timed: Any = build_timing(
        timing("roofline", step_overhead_ms=step_overhead_ms),
        model=model,
        hardware=hardware,
        engine=engine(**keys),
        num_gpu_blocks=0,
        graph_sizes=(),
    )
    timed._per_sequence_ms = 0.0
    return timed


def product_ms(
    tokens: int, inner: float, outer: float, *, weight_b: int = 2, bandwidth: float = 3350e6
) -> float:
    """One matrix product on Hopper."""
    launch_ms, per_ms = (0.0035, 989e9 * 0.79) if weight_b == 2 else (0.0063, 1979e9 * 0.79**2)
    computing = 1.1 * 2 * tokens * inner * outer / per_ms
    reading = weight_b * inner * outer / (0.86 * bandwidth)
    reading += 2 * tokens * (inner + outer) * 2 / bandwidth
    return float(launch_ms + (computing**4 + reading**4) ** 0.25)


def all_reduces_ms(layers: int, hidden: int, tokens: int, ranks: int) -> float:
    """Two in each layer and the embedding's; a ring moves twice what a rank has, less its own."""
    if ranks == 1:
        return 0.0
    moved_b = 2 * (ranks - 1) / ranks * tokens * hidden * 2
    per_ms = NVLINK_B_PER_MS * (1.25 if ranks == 8 else 1)
    return (2 * layers + 1) * (0.005 + moved_b / per_ms)


def elements_ms(layers: int, hidden: int, inner: float, tokens: int, bandwidth: float) -> float:
    """Norms, activations, the embedding."""
    widths = layers * (8 * hidden + 3 * inner)
    launches = 1 + layers * (3 if inner else 2)
    return launches * 0.003 + tokens * widths * 2 / (0.8 * bandwidth)


def llama_8b_ms(tokens: int, sequences: int, ranks: int) -> float:
    """Llama 3.1 8B in bf16 on H100: 32 layers, hidden 4096, 32 heads of 128, 8 KV heads."""
    layer_ms = (
        product_ms(tokens, 4096, (4096 + 2 * 1024) / ranks)
        + product_ms(tokens, 4096 / ranks, 4096)
        + product_ms(tokens, 4096, 2 * 14_336 / ranks)
        + product_ms(tokens, 14_336 / ranks, 4096)
    )
    output_ms = product_ms(sequences, 4096, 128_256 / ranks)
    rest_ms = elements_ms(32, 4096, 14_336 / ranks, tokens, 3350e6)
    return 32 * layer_ms + output_ms + rest_ms + all_reduces_ms(32, 4096, tokens, ranks)


def prompts_ms(layers: int, heads: float, kv_heads: float, tokens: int, pairs: float) -> float:
    """Attention of prompts with heads of 128, on H100."""
    moved_ms = tokens * (2 * heads + 2 * kv_heads) * 128 * 2 * 2.8 / 3350e6
    pair_ms = 2 * heads * (128 + 128) / H100_ATTENTION_PER_MS
    return layers * (0.033 + moved_ms + pairs * pair_ms)


def decodes_ms(layers: int, kv_heads: int, context_b: float) -> float:
    """Attention of 16 decodes, on H100."""
    return layers * (0.0118 + 16 * kv_heads * 28e-6) + context_b / H100_CACHE_B_PER_MS


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_a_dense_model_in_bf16(ranks: int) -> None:
    model = built("meta-llama/Llama-3.1-8B", "h100_sxm", tensor_parallel=ranks)
    kv_heads = 8 // ranks
    cache_b = 32 * 2 * kv_heads * 128 * 2  # of a token, on a rank
    decodes = decodes_ms(32, kv_heads, 16_000 * cache_b)
    decode_ms = llama_8b_ms(16, 16, ranks) + decodes
    prefill_ms = llama_8b_ms(3000, 2, ranks)
    prefill_ms += prompts_ms(32, 32 / ranks, kv_heads, 3000, PREFILL_PAIRS)
    mixed_ms = llama_8b_ms(512 + 16, 17, ranks) + decodes
    mixed_ms += prompts_ms(32, 32 / ranks, kv_heads, 512, MIXED_PAIRS)
    # Beside prompts the kernel's tiles take longer than reading at the rate of decodes alone.
    mixed_ms += 16_000 * max(0.0, model._mixed_context_ms - cache_b / H100_CACHE_B_PER_MS)
    assert model.step_ms(StepShape(*DECODE)) == pytest.approx(decode_ms, rel=EXACT)
    assert model.step_ms(StepShape(*PREFILL)) == pytest.approx(prefill_ms, rel=EXACT)
    assert model.step_ms(StepShape(*MIXED)) == pytest.approx(mixed_ms, rel=EXACT)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize("quantisation", [None, "fp8"])
def test_a_model_with_experts(ranks: int, quantisation: str | None) -> None:
    """Qwen3 30B-A3B on H200: 48 layers, hidden 2048, 32 heads of 128, 4 KV heads; 8 of 128 experts.

    Every token of a step draws 8 experts. An expert is idle with (1 - 8/128) to the power of the
    tokens; the others' weights are read once, and 24 rows more computed for each.
    """
    model = built(
        "Qwen/Qwen3-30B-A3B", "h200_sxm", tensor_parallel=ranks, quantization=quantisation
    )
    weight_b = 1 if quantisation else 2
    plain_ms = (
        product_ms(16, 2048, (4096 + 1024) / ranks, weight_b=weight_b, bandwidth=4800e6)
        + product_ms(16, 4096 / ranks, 2048, weight_b=weight_b, bandwidth=4800e6)
        + product_ms(16, 2048, 128, bandwidth=4800e6)
    )
    inner = 768 / ranks
    distinct = 128 * (1 - (120 / 128) ** 16)
    expert = 3 * 2048 * inner
    experts_ms = 0.035 + (3 * 0.0028 if quantisation else 0)
    experts_ms += 1.1 * 2 * (16 * 8 + 24 * distinct) * expert / (989e9 * 0.73)
    experts_ms += distinct * expert * weight_b / (4800e6 * 1.2)
    experts_ms += 1.5 * 2 * (3 * 16 * 8 * (2048 + inner) + 16 * 2048) / 4800e6
    kv_heads = 4 // ranks
    attention_ms = 48 * (0.0118 + 16 * kv_heads * 28e-6)
    attention_ms += 16_000 * 48 * 2 * kv_heads * 128 * 2 / (4800e6 * 0.95)
    decode_ms = (
        48 * (plain_ms + experts_ms)
        + product_ms(16, 2048, 151_936 / ranks, bandwidth=4800e6)
        + elements_ms(48, 2048, 0, 16, 4800e6)
        + all_reduces_ms(48, 2048, 16, ranks)
        + attention_ms
    )
    assert model.step_ms(StepShape(*DECODE)) == pytest.approx(decode_ms, rel=EXACT)


def test_one_token_reads_its_own_experts_and_many_read_all() -> None:
    config = EXPERTS | {"mlp_only_layers": [1]}  # 4 of 16 experts in two layers of three
    model, no_experts = (
        RooflineModel(
            shape(config | {"num_experts_per_tok": drawn}), sheet(bf16_tflops=1e12), factors=FREE
        )
        for drawn in (4, 0)
    )
    expert_ms = 3 * 64 * 24 * 2 / 1000e6
    for tokens, distinct in ((1, 4), (2, 4 + 4 * 12 / 16), (10_000, 16)):
        step, plain = (one.step_ms(StepShape.of_decodes(tokens, 0)) for one in (model, no_experts))
        moved_ms = 1.5 * 2 * (3 * tokens * 4 * (64 + 24) + tokens * 64) / 1000e6
        assert step - plain == pytest.approx(2 * (distinct * expert_ms + moved_ms), rel=1e-6)


@pytest.mark.parametrize(
    ("number_format", "fp8_tflops", "times"),
    [
        ("fp8", 300.0, 2.0),
        ("fp8_block", 300.0, 2.0),
        ("fp8", 100.0, 1.0),  # as many as in 16 bits: the GPU has none for fp8
        ("mxfp4", 300.0, 1.0),
        (None, 300.0, 1.0),
    ],
)
def test_experts_in_fp8_compute_so_many_times_faster_where_the_gpu_does(
    number_format: str | None, fp8_tflops: float, times: float
) -> None:
    """On a memory that costs nothing."""
    free = sheet(memory_gb_per_s=1e12, fp8_tflops=fp8_tflops)
    slow_ms, fast_ms = (
        experts_ms(shape(EXPERTS), 10, 1, number_format, free, replace(FREE, expert_fp8=factor))
        for factor in (1.0, 2.0)
    )
    assert slow_ms / fast_ms == pytest.approx(times)


@pytest.mark.parametrize("ranks", [1, 2])
@pytest.mark.parametrize(
    ("model", "quantisation"), [("Qwen/Qwen3-32B", "fp8"), ("Qwen/Qwen3-32B-FP8", None)]
)
@pytest.mark.parametrize(("cache", "element_b"), [("auto", 2), ("fp8", 1), ("fp8_e4m3", 1)])
def test_an_fp8_model(
    ranks: int, model: str, quantisation: str | None, cache: str, element_b: int
) -> None:
    """Qwen3 32B on H100: 64 layers, hidden 5120, 64 heads of 128, 8 KV heads; output in 16 bits."""
    timed = built(
        model, "h100_sxm", tensor_parallel=ranks, quantization=quantisation, kv_cache_dtype=cache
    )
    layer_ms = sum(
        product_ms(16, inner, outer, weight_b=1)
        for inner, outer in (
            (5120, (8192 + 2048) / ranks),
            (8192 / ranks, 5120),
            (5120, 2 * 25_600 / ranks),
            (25_600 / ranks, 5120),
        )
    )
    kv_heads = 8 // ranks
    decode_ms = (
        64 * layer_ms
        + product_ms(16, 5120, 151_936 / ranks)
        + elements_ms(64, 5120, 25_600 / ranks, 16, 3350e6)
        + all_reduces_ms(64, 5120, 16, ranks)
        + decodes_ms(64, kv_heads, 16_000 * 64 * 2 * kv_heads * 128 * element_b)
    )
    assert timed.step_ms(StepShape(*DECODE)) == pytest.approx(decode_ms, rel=EXACT)


def test_modules_that_a_checkpoint_leaves_in_16_bits_are_timed_so() -> None:
    """gpt-oss: experts in MXFP4, attention and router in bf16."""
    model = built("openai/gpt-oss-120b", "h100_sxm")
    assert (model._formats.attention, model._formats.experts) == (None, "mxfp4")


@pytest.mark.parametrize(("ranks", "heads"), [(1, 2), (2, 1), (4, 1), (8, 1)])
def test_a_rank_reads_whole_heads_of_the_cache(ranks: int, heads: int) -> None:
    model = RooflineModel(shape(DENSE), hardware_sheet("h100_sxm"), tensor_parallel=ranks)
    longer, shorter = (
        model.step_ms(StepShape.of_decodes(1, context)) for context in (20_000, 10_000)
    )
    token_b = 3 * 2 * heads * 8 * 2  # layers, keys and values, KV heads of a rank, width, bytes
    assert longer - shorter == pytest.approx(10_000 * token_b / H100_CACHE_B_PER_MS, rel=1e-6)


def sheet(**changes: Any) -> HardwareSheet:
    figures = {
        "memory_gib": 80.0,
        "cuda_total_gib": 79.5,
        "memory_gb_per_s": 1000.0,
        "bf16_tflops": 100.0,
        "fp8_tflops": 300.0,
        "link_gb_per_s": 50.0,
    }
    return HardwareSheet(name="x", **(figures | changes))


FREE = RooflineFactors(
    compute=1.0, memory=1.0, overlap=math.inf, product_us=0.0, product_widths=0.0,
    fp8_compute=1.0, quantise_us=0.0, slowdown=0.0, expert_us=0.0, expert_compute=1.0,
    expert_memory=1.0, prefill_us=0.0, prefill_attention=1.0, prefill_widths=0.0, latent_us=0.0,
    decode_us=0.0, decode_head_us=0.0, decode_attention=1.0, element_us=0.0,
    element_memory=math.inf, latency_us=0.0, link=1.0,
)  # fmt: skip
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
    ("factor", "value", "step", "expected_ms"),
    [
        ("product_us", 9.0, (0, 0, 0, 40, 0), (3 * 4 + 1) * 0.009),
        ("element_us", 5.0, (0, 0, 0, 40, 0), (3 * 3 + 1) * 0.005),
        ("latency_us", 4.0, (0, 0, 0, 40, 0), (3 * 2 + 1) * 0.004),
        ("decode_us", 7.0, (0, 0, 0, 40, 0), 3 * 0.007),
        ("decode_head_us", 7.0, (0, 0, 0, 40, 0), 3 * 40 * 1 * 0.007),
        ("prefill_us", 7.0, (2, 40, 0, 0, 0), 3 * 0.007),
        ("latent_us", 7.0, (2, 40, 0, 0, 0), 0.0),
    ],
)
def test_what_is_added_one_by_one(
    factor: str, value: float, step: tuple[int, int, int, int, int], expected_ms: float
) -> None:
    """Three layers of four products, two KV heads, on two GPUs."""
    free = RooflineModel(shape(DENSE), sheet(), tensor_parallel=2, factors=FREE)
    factors = replace(FREE, **{factor: value})
    model = RooflineModel(shape(DENSE), sheet(), tensor_parallel=2, factors=factors)
    added_ms = model.step_ms(StepShape(*step)) - free.step_ms(StepShape(*step))
    assert added_ms == pytest.approx(expected_ms, rel=1e-9, abs=1e-12)


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
    few_ms = model.step_ms(StepShape.of_decodes(1, 0)) - head_ms
    assert few_ms == pytest.approx(weight_b * weights / 1000e6, rel=1e-9)
    many_ms = model._linear_ms(100_000)
    assert many_ms == pytest.approx(2 * 100_000 * weights / (peak_tflops * 1e9), rel=1e-9)


def test_products_take_the_longer_of_computing_and_reading() -> None:
    # 100 operations for each byte: two bytes of a weight are read while it serves 100 tokens.
    model = RooflineModel(shape(DENSE), sheet(), factors=FREE)
    times = [model._linear_ms(tokens) for tokens in (1, 99, 100, 101, 200)]
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


def test_a_stated_link_is_taken_as_measured_and_cards_on_pcie_share_theirs() -> None:
    def moving_ms(ranks: int, *, is_stated: bool = False, **figures: float) -> float:
        """An all-reduce's bytes over the link's rate, without its latency."""
        one = RooflineModel(
            shape(DENSE),
            sheet(**figures),
            tensor_parallel=ranks,
            factors=FREE,
            is_link_stated=is_stated,
        )
        return one._ring.all_reduce_ms(2e6) - one._ring.all_reduce_ms(1e6)

    pair_ms = 1e6 / 32e6
    assert moving_ms(2, link_gb_per_s=32) == pytest.approx(pair_ms)
    # Four cards together get 0.48 of one card's link; each sends half as much again as one of two.
    assert moving_ms(4, link_gb_per_s=32) == pytest.approx(1.5 * pair_ms * 4 / 0.48)
    assert moving_ms(4, link_gb_per_s=32, is_stated=True) == pytest.approx(1.5 * pair_ms)
    assert moving_ms(4, link_gb_per_s=64) == pytest.approx(1.5 * pair_ms / 2 / 0.43)
    alone = moving_ms(4, link_gb_per_s=64, has_peer_access=False)
    assert alone == pytest.approx(1.5 * pair_ms / 2 * 4 / 0.48)
    assert moving_ms(4, link_gb_per_s=450) == pytest.approx(1.5e6 / 450e6)


def test_a_card_has_the_factors_of_its_class() -> None:
    assert factors_of(hardware_sheet("h200_sxm")) == factors_of(hardware_sheet("h100_pcie"))
    assert factors_of(hardware_sheet("l40s")) == ADA
    # No error correction in memory, and tensor cores at half rate.
    geforce = factors_of(hardware_sheet("rtx_4090"))
    assert geforce.memory == pytest.approx(ADA.memory * 16 / 15)
    assert geforce.compute > ADA.compute
    # The same rate in GB/s as the server's card reaches of its slower sheet.
    sheets = [hardware_sheet(name) for name in ("rtx_pro_6000_server", "rtx_5090")]
    rates = [factors_of(one).memory * one.memory_gb_per_s for one in sheets]
    assert rates[0] == pytest.approx(rates[1])
    assert factors_of(sheet(memory_gb_per_s=3000.0)) == HOPPER
    assert factors_of(sheet(memory_gb_per_s=800.0)) == ADA
