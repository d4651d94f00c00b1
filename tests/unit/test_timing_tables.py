"""The silicon table's step times by hand: at its nodes, between them, and beyond."""

from typing import Any

import numpy as np
import pytest

from dynosim.timing.host import HostTime
from dynosim.timing.silicon_model import SiliconModel
from dynosim.timing.silicon_table import SiliconTable
from dynosim.timing.step import StepShape


def table(**changes: Any) -> SiliconTable:
    """Times that are easy to tell apart.

    Matrix products: 10 ms and 1 ms a token up to 8 tokens; sampling heads 0.5 ms a sequence.
    Prefill attention: 100 ms a prompt, 10 ms a new and 1 ms a cached token, at the nodes. Decode
    attention: 3 ms a sequence and 2 ms a token of mean context, at the nodes.
    """
    counts, new, prefix = np.array([1.0, 3.0]), np.array([1.0, 2.0, 6.0]), np.array([0.0, 4.0, 8.0])
    batches, contexts = np.array([1.0, 2.0, 4.0]), np.array([1.0, 3.0, 7.0])
    prefill = 100 * counts[:, None, None] + 10 * new[None, :, None] + 1 * prefix[None, None, :]
    values: dict[str, Any] = {
        "linear_ms": np.array([0.0, *(10.0 + tokens for tokens in range(1, 9))]),
        "collective_ms": np.zeros(9),
        "head_ms": np.array([0.0, 0.5, 1.0, 1.5, 2.0]),
        "counts": counts,
        "new_tokens": new,
        "prefix_tokens": prefix,
        "prefill_ms": prefill.astype(np.float32),
        "batches": batches,
        "contexts": contexts,
        "decode_ms": (3 * batches[:, None] + 2 * contexts[None, :]).astype(np.float32),
        "measured_batches": np.zeros(0),
        "measured_contexts": np.zeros(0),
        "measured_counts": np.zeros(0),
        "measured_new_tokens": np.zeros(0),
        "meta": {},
    }
    return SiliconTable(**(values | changes))


def test_a_table_tells_its_largest_step() -> None:
    assert (table().max_tokens, table().max_batch) == (8, 4)


@pytest.mark.parametrize(
    ("batch", "context", "attention_ms"),
    [
        (1, 1, 3 + 2),
        (1, 3, 3 + 6),
        (1, 2, 3 + 4),
        (2, 7, 6 + 14),
        (3, 5, 9 + 10),  # between two batches and two contexts
        (4, 7, 12 + 14),
        (4, 9, 12 + 18),  # beyond, in line
        (4, 0, 12 + 0),
    ],
)
def test_a_decode_step_is_products_head_and_attention(
    batch: int, context: int, attention_ms: float
) -> None:
    model = SiliconModel(table(), host=HostTime(base_ms=0.25))
    expected_ms = 0.25 + (10 + batch) + 0.5 * batch + attention_ms
    assert model.step_ms(StepShape.of_decodes(batch, batch * context)) == pytest.approx(
        expected_ms, rel=1e-6
    )
    assert model.decode_run_ms(batch, batch * context, 1) == pytest.approx(expected_ms, rel=1e-6)


def test_a_mean_context_is_no_whole_number() -> None:
    model = SiliconModel(table())
    expected_ms = (10 + 4) + 2.0 + 12 + 2 * (5 / 4)
    assert model.step_ms(StepShape.of_decodes(4, 5)) == pytest.approx(expected_ms, rel=1e-6)


def test_a_batch_beyond_the_table_takes_the_last_head_and_goes_on_in_line() -> None:
    model = SiliconModel(table())
    expected_ms = (10 + 6) + 2.0 + 3 * 6 + 2 * 3
    assert model.step_ms(StepShape.of_decodes(6, 6 * 3)) == pytest.approx(expected_ms, rel=1e-6)


@pytest.mark.parametrize(
    ("prompts", "new", "prefix", "attention_ms"),
    [
        (1, 1, 0, 110),  # at a node
        (1, 2, 4, 100 + 20 + 4),
        (1, 6, 8, 100 + 60 + 8),
        (3, 2, 8, 300 + 20 + 8),
        (1, 4, 0, 100 + 40),  # between new tokens
        (1, 2, 6, 100 + 20 + 6),  # between cached ones
        (2, 2, 4, 200 + 20 + 4),  # between numbers of prompts
        (2, 4, 2, 200 + 40 + 2),
        (1, 8, 0, 100 + 80),  # beyond
        (1, 1, 10, 100 + 10 + 10),
        (4, 2, 0, 400 + 20),
    ],
)
def test_a_prefill_step_is_products_and_attention_of_the_mean_prompt(
    prompts: int, new: int, prefix: int, attention_ms: float
) -> None:
    model = SiliconModel(table(), host=HostTime(base_ms=0.25))
    expected_ms = 0.25 + (10 + prompts * new) + attention_ms  # no head: that is in the products
    found_ms = model.step_ms(StepShape.of_prompts(prompts, prompts * new, prompts * prefix))
    assert found_ms == pytest.approx(expected_ms, rel=1e-6)


def test_uneven_prompts_count_as_their_mean() -> None:
    model = SiliconModel(table())
    expected_ms = (10 + 5) + 200 + 10 * (5 / 2) + 7 / 2
    assert model.step_ms(StepShape.of_prompts(2, 5, 7)) == pytest.approx(expected_ms, rel=1e-6)


def test_a_mixed_step_has_products_of_all_tokens_and_both_attentions() -> None:
    model = SiliconModel(table(), host=HostTime(base_ms=0.25))
    prefill_ms, decode_ms = 100 + 20 + 4, 6 + 2 * 3
    expected_ms = 0.25 + (10 + 2 + 2) + prefill_ms + decode_ms
    assert model.step_ms(StepShape(1, 2, 4, 2, 2 * 3)) == pytest.approx(expected_ms, rel=1e-6)


def test_one_decode_beside_a_prompt_has_its_attention() -> None:
    model = SiliconModel(table())
    expected_ms = (10 + 2 + 1) + (100 + 20 + 4) + 3 + 2 * 5
    assert model.step_ms(StepShape(1, 2, 4, 1, 5)) == pytest.approx(expected_ms, rel=1e-6)


def test_products_keep_their_jumps() -> None:
    linear = np.array([0.0, 1.0, 1.0, 9.0, 9.0, 9.0, 9.0, 9.0, 20.0])
    model = SiliconModel(table(linear_ms=linear))
    times = [model.step_ms(StepShape.of_prompts(1, tokens)) for tokens in (2, 3, 8)]
    attentions = [100 + 10 * tokens for tokens in (2, 3, 8)]
    products = [ms - attention for ms, attention in zip(times, attentions, strict=True)]
    assert products == pytest.approx([1.0, 9.0, 20.0], rel=1e-5)


def test_products_beyond_the_table_follow_its_last_quarter() -> None:
    # Nine values; the last quarter begins at the seventh: (20 - 9) ms over 2 tokens.
    linear = np.array([0.0, 1.0, 1.0, 9.0, 9.0, 9.0, 9.0, 9.0, 20.0])
    model = SiliconModel(table(linear_ms=linear))
    at_end_ms, beyond_ms = (
        model.step_ms(StepShape.of_prompts(1, tokens)) - (100 + 10 * tokens) for tokens in (8, 11)
    )
    assert at_end_ms == pytest.approx(20.0, rel=1e-5)
    assert beyond_ms == pytest.approx(20.0 + 3 * 5.5, rel=1e-5)
    falling = SiliconModel(table(linear_ms=linear[::-1] - 0.0))
    ends_ms = [falling.step_ms(StepShape.of_prompts(1, n)) - (100 + 10 * n) for n in (8, 50)]
    assert ends_ms == pytest.approx([0.0, 0.0], abs=1e-4)  # never less for more


def test_attention_that_falls_somewhere_is_taken_as_it_is() -> None:
    bent = np.array([[5.0, 3.0, 4.0], [6.0, 6.0, 8.0], [7.0, 9.0, 9.0]], np.float32)
    model = SiliconModel(table(decode_ms=bent))
    assert not model.decode_is_monotone
    steps = [model.step_ms(StepShape.of_decodes(1, context)) for context in (1, 2, 3)]
    assert np.subtract(steps, 11 + 0.5).tolist() == pytest.approx([5.0, 4.0, 3.0])
    assert SiliconModel(table()).decode_is_monotone


def test_what_the_model_is_is_what_it_was_told() -> None:
    plain = SiliconModel(table())
    assert (plain.source, plain.description, plain.notes) == ("measured", "", ())
    told = SiliconModel(table(), source="derived", description="d", notes=("n",))
    assert told.describe() == {"source": "derived", "description": "d", "notes": ["n"]}
    assert (told.ingress_ms, told.egress_ms) == (0.0, 0.0)
