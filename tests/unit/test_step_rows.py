"""The rows of the step log: packed while a run goes on, columns once it is over."""

import numpy as np
import pytest

from dynosim.cluster.journal import CHUNK_ROWS, Journal, StepRows
from dynosim.cluster.run_steps import rows_of
from dynosim.records import Trace

MANY = 2 * CHUNK_ROWS + 7
TIMES, COUNTS = 2, 10


def row(number: int) -> tuple[float, float, int, int, int, int, int, int, int, int, int, int]:
    """A row that is like no other, each of its fields like no other field."""
    first = 12 * number
    counts = range(first + TIMES, first + TIMES + COUNTS)
    a, b, c, d, e, f, g, h, i, j = counts
    return (first + 0.5, first + 1.25, a, b, c, d, e, f, g, h, i, j)


def filled(num_rows: int) -> StepRows:
    rows = StepRows()
    for number in range(num_rows):
        rows.append(*row(number))
    return rows


@pytest.mark.parametrize("num_rows", [0, 1, 257, CHUNK_ROWS, CHUNK_ROWS + 1, MANY])
def test_rows_come_back_as_they_were_given(num_rows: int) -> None:
    rows = filled(num_rows)
    expected = [row(number) for number in range(num_rows)]
    assert len(rows) == num_rows and rows_of(rows.since(0)) == expected
    times, counts = rows.columns()
    assert times.shape == (TIMES, num_rows) and counts.shape == (COUNTS, num_rows)
    assert list(zip(*times.tolist(), *counts.tolist(), strict=True)) == expected


@pytest.mark.parametrize("is_over", [False, True])
def test_they_are_read_on_from_anywhere(is_over: bool) -> None:
    rows = filled(MANY)
    if is_over:
        rows.columns()
    assert len(rows) == MANY
    for first in (0, 5, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1, 2 * CHUNK_ROWS, MANY - 1, MANY):
        assert rows_of(rows.since(first)) == [row(number) for number in range(first, MANY)]


def test_what_was_read_up_to_the_end_of_a_buffer_goes_on_in_the_next() -> None:
    rows = filled(CHUNK_ROWS)
    assert rows_of(rows.since(CHUNK_ROWS)) == []
    rows.append(*row(CHUNK_ROWS))
    assert rows_of(rows.since(CHUNK_ROWS)) == [row(CHUNK_ROWS)]


def test_the_log_has_each_column_in_one_piece_and_can_be_asked_for_again() -> None:
    trace = Trace(
        arrival_ms=np.zeros(1),
        input_tokens=np.ones(1, np.int64),
        output_tokens=np.ones(1, np.int64),
        hash_ids=np.zeros(1, np.int64),
        hash_offsets=np.array([0, 1]),
        trace_block_size=16,
    )
    journal = Journal(trace)
    for number in range(300):
        journal.steps.append(*row(number))
    log, again = journal.step_log(), journal.step_log()
    assert log.start_ms.flags.c_contiguous and log.used_blocks.flags.c_contiguous
    assert log.worker_id.tolist() == again.worker_id.tolist() == [12 * n + 2 for n in range(300)]
    assert log.used_blocks.tolist() == [12 * n + 11 for n in range(300)]
