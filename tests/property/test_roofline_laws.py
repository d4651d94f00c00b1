"""What holds of the roofline for every class of card: more work takes longer, better cards do not,
and GPUs that share the work are at best as many times as fast."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from model_configs import DENSE, EXPERTS, LATENT, shape

from dynosim.silicon.hardware import hardware_sheet
from dynosim.timing.architecture import ModelShape
from dynosim.timing.mixed import FLASH_ATTENTION_2
from dynosim.timing.roofline import RooflineModel
from dynosim.timing.sheets import HardwareSheet
from dynosim.timing.step import StepShape

CARDS = ("h100_sxm", "b200_sxm", "a100_sxm", "a10g", "l40s", "rtx_4090", "rtx_5090", "mi300x")
SIZES = {"num_attention_heads": 16, "hidden_size": 2048, "intermediate_size": 6144}
SHAPES = {
    "dense": shape(DENSE | SIZES | {"num_key_value_heads": 8, "head_dim": 128}),
    "experts": shape(EXPERTS | SIZES | {"num_key_value_heads": 8, "moe_intermediate_size": 768}),
    "latent": shape(LATENT | SIZES),
}
counts, lengths = st.integers(0, 300), st.integers(1, 20_000)
steps = st.tuples(st.integers(0, 4), st.integers(1, 4000), lengths, counts, lengths).map(
    lambda s: StepShape(s[0], s[0] * s[1], s[0] * s[2], s[3], s[3] * s[4])
)
cards, shapes = st.sampled_from(CARDS), st.sampled_from(sorted(SHAPES))
EXACT = 1 + 1e-12


def model(of: ModelShape, sheet: HardwareSheet, ranks: int = 1) -> RooflineModel:
    return RooflineModel(of, sheet, tensor_parallel=ranks, kernel=FLASH_ATTENTION_2)


@given(card=cards, name=shapes, step=steps, more=st.tuples(counts, lengths, lengths))
@settings(max_examples=60, deadline=None)
def test_more_work_is_not_faster(
    card: str, name: str, step: StepShape, more: tuple[int, int, int]
) -> None:
    decodes, new, context = more
    one = model(SHAPES[name], hardware_sheet(card))
    larger = StepShape(
        step.num_prefills,
        step.prefill_tokens + (new if step.num_prefills else 0),
        step.prefix_tokens,
        step.num_decodes + decodes,
        step.decode_context_tokens + decodes * context,
    )
    assert one.step_ms(larger) * EXACT >= one.step_ms(step)


@pytest.mark.parametrize(
    "figure", ["memory_gb_per_s", "bf16_tflops", "fp8_tflops", "link_gb_per_s"]
)
@given(card=cards, name=shapes, step=steps, ranks=st.sampled_from([1, 2, 4, 8]))
@settings(max_examples=25, deadline=None)
def test_a_better_card_is_not_slower(
    figure: str, card: str, name: str, step: StepShape, ranks: int
) -> None:
    sheet = hardware_sheet(card)
    better = replace(sheet, **{figure: 1.3 * getattr(sheet, figure)})
    ours, theirs = (model(SHAPES[name], one, ranks).step_ms(step) for one in (sheet, better))
    assert theirs <= ours * EXACT


@given(card=cards, name=shapes, step=steps, ranks=st.sampled_from([2, 4, 8]))
@settings(max_examples=60, deadline=None)
def test_gpus_that_share_the_work_are_at_best_as_many_times_as_fast(
    card: str, name: str, step: StepShape, ranks: int
) -> None:
    alone, together = (
        model(SHAPES[name], hardware_sheet(card), n).step_ms(step) for n in (1, ranks)
    )
    assert together * EXACT >= alone / ranks


@given(card=cards, name=shapes, step=steps, ranks=st.sampled_from([1, 2, 8]))
@settings(max_examples=60, deadline=None)
def test_nothing_is_faster_than_the_data_sheet(
    card: str, name: str, step: StepShape, ranks: int
) -> None:
    """Weights that every token uses are read once, and computed at the sheet's rate."""
    of, sheet = SHAPES[name], hardware_sheet(card)
    tokens = step.prefill_tokens + step.num_decodes
    reading_ms = 2 * of.plain_parameters / ranks / (sheet.memory_gb_per_s * 1e6)
    computing_ms = 2 * tokens * of.plain_parameters / ranks / (sheet.bf16_tflops * 1e9)
    floor_ms = max(reading_ms, computing_ms) if tokens else 0.0
    assert model(of, sheet, ranks).step_ms(step) >= floor_ms


def test_a_run_of_decodes_is_its_steps_one_by_one() -> None:
    for card in CARDS:
        one = model(SHAPES["experts"], hardware_sheet(card), 2)
        single_ms = sum(one.step_ms(StepShape.of_decodes(7, 7000 + 7 * i)) for i in range(50))
        assert one.decode_run_ms(7, 7000, 50) == pytest.approx(single_ms, rel=1e-12)
