"""What a deployment tells of its KV memory."""

from typing import Any

import pytest

from dynosim_runtime.measure.capacity import engine_capacity, workers_capacity


def test_an_engine_tells_its_blocks() -> None:
    told = engine_capacity({"num_gpu_blocks": "901", "block_size": "16"}, block_size=16)
    assert told is not None
    assert (told.num_gpu_blocks, told.notes) == (901, ())
    assert "/metrics" in told.reported_by


@pytest.mark.parametrize("blocks", ["None", "", "-5", "1"])
def test_an_engine_that_does_not_tell(blocks: str) -> None:
    assert engine_capacity({"num_gpu_blocks": blocks, "block_size": "16"}, block_size=16) is None
    assert engine_capacity({}, block_size=16) is None


def test_other_block_sizes_are_converted_and_told() -> None:
    told = engine_capacity({"num_gpu_blocks": "101", "block_size": "32"}, block_size=16)
    assert told is not None
    assert told.num_gpu_blocks == 201
    assert "hold 32 tokens, the plan's 16" in told.notes[0]


def test_the_smallest_worker_counts() -> None:
    rows = [
        {"name": "a", "total_kv_blocks": 500, "block_size": 16},
        {"name": "b", "total_kv_blocks": 300, "block_size": 16},
    ]
    told = workers_capacity(rows, block_size=16)
    assert told is not None
    assert told.num_gpu_blocks == 301
    assert "300 to 500 KV blocks" in told.notes[0]


@pytest.mark.parametrize(
    "rows", [[], [{}], [3], [{"total_kv_blocks": None}], [{"total_kv_blocks": "9"}]]
)
def test_workers_that_do_not_tell(rows: list[Any]) -> None:
    assert workers_capacity(rows, block_size=16) is None
