"""A workload as rows that AIPerf sends."""

import gzip
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from dynosim.build.workload import load_trace
from dynosim.config.loading import check_run
from dynosim.config.schema import RunConfig
from dynosim.experiment.run import run
from dynosim.experiment.schedule import row_block_tokens, schedule_rows, write_schedule

CHAT = {"sessions": 6, "isl": 700, "osl": 20, "turns": 3, "rate_rps": 3, "think_time_ms": 40}


def plan(synthetic: dict[str, Any], **workload: Any) -> RunConfig:
    config = check_run(
        {
            "workload": {"synthetic": synthetic, **workload},
            "engine": {"num_gpu_blocks": 9000},
            "timing": {"kind": "fixed", "prefill_ms": 4, "decode_ms": 2},
        },
        Path(),
    )
    assert isinstance(config, RunConfig), config
    return config


def rows_of(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_turns_are_due_when_the_twin_sends_them(tmp_path: Path) -> None:
    config = plan(CHAT)
    assert write_schedule(config, tmp_path / "rows.jsonl") == 18
    rows = rows_of(tmp_path / "rows.jsonl")
    arrivals = sorted(run(config).result.requests.arrival_ms.tolist())
    assert [row["timestamp"] for row in rows] == pytest.approx(arrivals, abs=1e-3)
    trace = load_trace(config)
    assert sorted(row["input_length"] for row in rows) == sorted(trace.input_tokens.tolist())
    assert not any("session_id" in row for row in rows)  # AIPerf would repeat the history


def test_prompts_share_what_they_shared_to_within_a_block(tmp_path: Path) -> None:
    """Of every pair of prompts the common beginning, from the rows and from the trace."""
    config = plan(CHAT)
    trace = load_trace(config)
    size = row_block_tokens(trace.trace_block_size)
    assert trace.trace_block_size == 512 and size == 64
    rows = list(schedule_rows(trace, None))
    offsets = trace.hash_offsets.tolist()
    ids = [trace.hash_ids[a:b].tolist() for a, b in pairwise(offsets)]
    num_shared = 0
    for one in range(len(trace)):
        assert len(rows[one]["hash_ids"]) == rows[one]["input_length"] // size
        for other in range(one):
            lengths = (int(trace.input_tokens[one]), int(trace.input_tokens[other]))
            real = min(common(ids[one], ids[other]) * 512, *lengths)
            told = common(rows[one]["hash_ids"], rows[other]["hash_ids"]) * size
            assert real - size < told <= real
            num_shared += told > 0
    assert num_shared > 10


def common(one: list[int], other: list[int]) -> int:
    places = [a != b for a, b in zip(one, other, strict=False)]
    return places.index(True) if True in places else len(places)


def test_an_id_is_always_as_many_tokens() -> None:
    """AIPerf refuses a trace where it is not."""
    for row in schedule_rows(load_trace(plan(CHAT)), None):
        assert len(row["hash_ids"]) * 64 <= row["input_length"]


def test_a_closed_loop_has_no_times(tmp_path: Path) -> None:
    config = plan({**CHAT, "arrival": "closed", "rate_rps": None}, concurrency=2)
    write_schedule(config, tmp_path / "rows.jsonl.gz")
    with gzip.open(tmp_path / "rows.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    assert len(rows) == 18 and not any("timestamp" in row for row in rows)


def test_the_load_is_that_of_the_run_file(tmp_path: Path) -> None:
    single = {"requests": 5, "isl": 30, "osl": 2, "rate_rps": 1}
    write_schedule(plan(single), tmp_path / "a")
    write_schedule(plan(single, arrival_scale=2.0, repeat=2), tmp_path / "b")
    slow, fast = rows_of(tmp_path / "a"), rows_of(tmp_path / "b")
    assert len(fast) == 10
    assert [row["timestamp"] for row in fast[:5]] == pytest.approx(
        [row["timestamp"] / 2 for row in slow], abs=1e-3
    )
    assert "hash_ids" not in slow[0]  # shorter than a block: its own


@pytest.mark.parametrize(
    ("of", "size"), [(512, 64), (16, 16), (100, 50), (67, 67), (8, 8), (64, 64)]
)
def test_a_rows_block_is_a_part_of_the_traces(of: int, size: int) -> None:
    assert row_block_tokens(of) == size
