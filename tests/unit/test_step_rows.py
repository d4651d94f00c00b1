"""Every column of the step log, by hand: a prefill step takes 10 ms and a decode step 5."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from clusters import run_twin
from probing import Ask, trace_of

from dynosim.engine.spec import EngineSpec
from dynosim.records import StepLog
from dynosim.timing.formulas import FixedModel

SPEC = EngineSpec(num_gpu_blocks=101, max_model_len=80, block_size=4)
COLUMNS = tuple(StepLog.__slots__)
BOTH_WAYS = pytest.mark.parametrize("exact", [False, True])

# One request after the other: A of nine tokens, A again (eight are cached), B of ten others.
ALONE = [
    Ask(0.0, (1, 2, 3), 0, output_tokens=4, last_tokens=1),
    Ask(100.0, (1, 2, 3), 0, output_tokens=1, last_tokens=1),
    Ask(200.0, (7, 8, 9), 0, output_tokens=2, last_tokens=2),
]
#   start, ms, steps | prefills, tokens, cached | decodes, context | running, waiting, blocks in use
PREFILL_A = (0.0, 10.0, 1, 1, 9, 0, 0, 0, 1, 0, 3)
DECODE_A = [
    (10.0, 5.0, 1, 0, 0, 0, 1, 10, 1, 0, 3),
    (15.0, 5.0, 1, 0, 0, 0, 1, 11, 1, 0, 3),
    (20.0, 5.0, 1, 0, 0, 0, 1, 12, 1, 0, 3),
]
AGAIN = (100.0, 10.0, 1, 1, 1, 8, 0, 0, 1, 0, 3)
PREFILL_B = (200.0, 10.0, 1, 1, 10, 0, 0, 0, 1, 0, 3)
DECODE_B = (210.0, 5.0, 1, 0, 0, 0, 1, 11, 1, 0, 3)


def rows_of(asks: list[Ask], spec: EngineSpec = SPEC, **options: Any) -> list[tuple[float, ...]]:
    """The step log without its worker."""
    steps = run_twin(
        trace_of(asks, 4), engine=spec, timing=FixedModel(10.0, 5.0), num_workers=1, **options
    ).steps
    assert (steps.worker_id == 0).all()
    columns = [getattr(steps, name).tolist() for name in COLUMNS if name != "worker_id"]
    return list(zip(*columns, strict=True))


@pytest.mark.parametrize("is_async", [False, True])
def test_each_step_is_told_with_what_it_computed_and_what_was_there(is_async: bool) -> None:
    rows = rows_of(ALONE, replace(SPEC, async_scheduling=is_async), exact_stepping=True)
    assert rows == [PREFILL_A, *DECODE_A, AGAIN, PREFILL_B, DECODE_B]


def test_steps_of_one_kind_are_told_together() -> None:
    together = (10.0, 15.0, 3, 0, 0, 0, 1, 10, 1, 0, 3)
    assert rows_of(ALONE) == [PREFILL_A, together, AGAIN, PREFILL_B, DECODE_B]


@BOTH_WAYS
def test_blocks_that_requests_share_count_once_and_those_that_nobody_uses_not_at_all(
    exact: bool,
) -> None:
    """A twice at once: two shared blocks and one each. Then B: A's two stay cached, unused."""
    twice = [replace(ALONE[0], output_tokens=1), replace(ALONE[0], output_tokens=1), ALONE[2]]
    assert rows_of(twice, exact_stepping=exact) == [
        (0.0, 10.0, 1, 2, 10, 8, 0, 0, 2, 0, 4),
        PREFILL_B,
        DECODE_B,
    ]


@BOTH_WAYS
def test_requests_that_wait_and_run_are_counted_at_the_end_of_a_row(exact: bool) -> None:
    """One seat: of three requests one runs; the last one comes in the middle of its decoding."""
    asks = [
        Ask(0.0, (1,), 0, output_tokens=4),
        Ask(0.0, (2,), 0),
        Ask(16.0, (3,), 0),
    ]
    rows = rows_of(asks, replace(SPEC, max_num_seqs=1), exact_stepping=exact)
    counts = [row[8:] for row in rows]
    assert counts[0] == (1, 1, 1)
    assert counts[-3:] == [(1, 2, 2), (1, 1, 1), (1, 0, 1)]
    assert [row[0] for row in rows][-2:] == [25.0, 35.0]


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
def test_a_long_prompt_is_computed_in_chunks_beside_who_decodes(
    exact: bool, is_async: bool
) -> None:
    """Eight tokens a step, one of them for A, which decodes: seven of B's ten, then three."""
    asks = [Ask(0.0, (1,), 0, output_tokens=9), Ask(12.0, (7, 8, 9), 0, last_tokens=2)]
    spec = replace(SPEC, max_num_seqs=4, max_num_batched_tokens=8, async_scheduling=is_async)
    rows = rows_of(asks, spec, exact_stepping=exact)
    mixed = [row for row in rows if row[3] and row[6]]
    start_ms = 20.0 if is_async else 15.0
    context = 7 if is_async else 6
    assert [row[:8] for row in mixed] == [
        (start_ms, 15.0, 1, 1, 7, 0, 1, context),
        (start_ms + 15.0, 15.0, 1, 1, 3, 7, 1, context + 1),
    ]
    assert np.sum([row[6] * row[2] for row in rows]) == 8
