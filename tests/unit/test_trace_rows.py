"""The trace of some rows of a trace."""

from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from dynosim.records import Dependencies, Retention, Trace, Wishes

FULL = Trace(
    arrival_ms=np.array([0.0, 5.0, 9.0, 12.0]),
    input_tokens=np.array([20, 33, 7, 40]),
    output_tokens=np.array([1, 2, 3, 4]),
    hash_ids=np.array([1, 2, 1, 3, 4, 1, 2, 6]),
    hash_offsets=np.array([0, 2, 5, 5, 8]),
    trace_block_size=16,
    previous_turn=np.array([-1, -1, 0, 1]),
    delay_ms=np.array([0.0, 0.0, 4.0, 8.0]),
    priority=np.array([7, 8, 9, 6]),
    session_ids=("a", "b", "a", "b"),
    request_ids=("w", "x", "y", "z"),
    source="some file",
    skipped_lines=3,
    assumed_lengths=2,
    stages=np.array([0, 0, 1, 2]),
    wishes=(None, Wishes(worker_id=1), None, Wishes(required_taints=("gpu",))),
    dependencies=Dependencies(
        offsets=np.array([0, 0, 0, 0, 2]),
        rows=np.array([1, 2]),
        delay_ms=np.array([3.0, 5.0]),
        from_start=np.array([False, True]),
    ),
    classes=("lead", "", "sub_agent", "lead"),
    expected_output_tokens=np.array([0, 64, 0, 128]),
    is_speculative=np.array([False, True, True, False]),
    is_prefetch=np.array([False, True, False, False]),
    retention=(None, None, Retention(pin_ttl_ms=9.0), Retention(is_ephemeral=True)),
)


GRAPH = ("offsets", "rows", "delay_ms", "from_start")


def plain(trace: Trace) -> dict[str, Any]:
    """Every field of a trace by its name, arrays as lists."""
    values = {field.name: getattr(trace, field.name) for field in fields(trace) if field.init}
    graph = values["dependencies"]
    if graph is not None:
        values["dependencies"] = {name: getattr(graph, name).tolist() for name in GRAPH}
    return {name: v.tolist() if isinstance(v, np.ndarray) else v for name, v in values.items()}


def test_every_column_follows_the_rows() -> None:
    """All fields of a trace are told here: a new column has to be taken as well."""
    assert plain(FULL.take(np.array([1, 2, 3]))) == {
        "arrival_ms": [5.0, 9.0, 12.0],
        "input_tokens": [33, 7, 40],
        "output_tokens": [2, 3, 4],
        "hash_ids": [1, 3, 4, 1, 2, 6],
        "hash_offsets": [0, 3, 3, 6],
        "trace_block_size": 16,
        "previous_turn": [-1, -1, 0],
        "delay_ms": [0.0, 4.0, 8.0],
        "priority": [8, 9, 6],
        "session_ids": ("b", "a", "b"),
        "request_ids": ("x", "y", "z"),
        "source": "some file",
        "skipped_lines": 3,
        "assumed_lengths": 2,
        "stages": [0, 1, 2],
        "wishes": (Wishes(worker_id=1), None, Wishes(required_taints=("gpu",))),
        "dependencies": {
            "offsets": [0, 0, 0, 2],
            "rows": [0, 1],
            "delay_ms": [3.0, 5.0],
            "from_start": [False, True],
        },
        "classes": ("", "sub_agent", "lead"),
        "expected_output_tokens": [64, 0, 128],
        "is_speculative": [True, True, False],
        "is_prefetch": [True, False, False],
        "retention": (None, Retention(pin_ttl_ms=9.0), Retention(is_ephemeral=True)),
    }


def test_a_row_waits_for_those_that_are_kept() -> None:
    """Row 3 waits for rows 1 and 2, and row 1 is its previous turn."""
    found = FULL.take(np.array([0, 2, 3]))
    assert plain(found)["dependencies"] == {
        "offsets": [0, 0, 0, 1],
        "rows": [1],
        "delay_ms": [5.0],
        "from_start": [True],
    }
    assert found.previous_turn is not None and found.previous_turn.tolist() == [-1, 0, 1]
    alone = FULL.take(np.array([0, 3]))
    assert alone.dependencies is None
    assert alone.previous_turn is not None and alone.previous_turn.tolist() == [-1, -1]


@pytest.mark.parametrize(
    "optional",
    [
        "priority", "delay_ms", "session_ids", "request_ids", "stages", "wishes",
        "dependencies", "classes", "expected_output_tokens", "is_speculative", "is_prefetch",
        "retention",
    ],
)  # fmt: skip
def test_what_a_trace_does_not_have_no_part_of_it_has(optional: str) -> None:
    bare = Trace(**{field.name: getattr(FULL, field.name) for field in fields(FULL)[:6]})
    assert getattr(bare.take(np.array([0, 3])), optional) is None
    assert bare.take(np.array([0, 3])).previous_turn is None


def test_rows_may_change_places() -> None:
    found = FULL.take(np.array([3, 0, 1, 2]))
    assert found.previous_turn is not None
    assert found.previous_turn.tolist() == [2, -1, -1, 1]
    assert found.hash_ids.tolist() == [1, 2, 6, 1, 2, 1, 3, 4]
    back = found.take(np.array([1, 2, 3, 0]))
    assert plain(back) == plain(FULL)


def test_all_rows_are_the_trace_and_no_rows_are_none() -> None:
    assert plain(FULL.take(np.arange(4))) == plain(FULL)
    nothing = FULL.take(np.array([], dtype=np.int64))
    assert (len(nothing), nothing.hash_offsets.tolist(), len(nothing.hash_ids)) == (0, [0], 0)
