"""Rows that wait for several others: from a file to a run, and what is wrong with such rows."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynosim.cli import main
from dynosim.metrics.resampling import sessions_of
from dynosim.records import Trace
from dynosim.workload.load import LoadDriver
from dynosim.workload.readers import read_trace
from dynosim.workload.writers import write_trace

RUN = """\
workload: {trace: graph.jsonl, trace_block_size: 16}
engine: {num_gpu_blocks: 2000, block_size: 16}
timing: {kind: fixed, prefill_ms: 10, decode_ms: 5}
"""


def row(name: str, wait_for: Any = None, **changes: Any) -> dict[str, Any]:
    found = {"request_id": name, "input_length": 10, "output_length": 2, "hash_ids": [1]}
    found |= {"timestamp": 0} if wait_for is None else {"wait_for": wait_for}
    return found | changes


def written(folder: Path, *rows: dict[str, Any]) -> Path:
    path = folder / "graph.jsonl"
    path.write_text("".join(f"{json.dumps(one)}\n" for one in rows))
    return path


def diamond(folder: Path) -> Trace:
    """A lead, two that it starts, one of them at once, and a lead that waits for both."""
    early = {"request_id": "a", "delay_ms": 7, "trigger": "dispatch"}
    return read_trace(
        written(
            folder,
            row("a", request_class="lead", expected_output_tokens=64),
            row("b", ["a"], request_class="sub_agent"),
            row("c", [early], request_class="sub_agent"),
            row("d", ["b", {"request_id": "c", "delay_ms": 100}], request_class="lead"),
            row("e"),
        )
    )


def test_a_join_comes_when_the_last_of_what_it_waits_for_is_over(tmp_path: Path) -> None:
    driver = LoadDriver(diamond(tmp_path))
    assert (driver.next_ms, driver.pop()) == (0.0, 0)
    assert (driver.next_ms, driver.pop()) == (0.0, 4)
    assert (driver.next_ms, driver.pop()) == (7.0, 2)
    driver.on_end(0, 20.0)
    assert (driver.next_ms, driver.pop()) == (20.0, 1)
    driver.on_end(2, 30.0)
    assert driver.next_ms == float("inf")
    driver.on_end(1, 50.0)
    assert (driver.next_ms, driver.pop()) == (130.0, 3)  # 30 and 100 later is after 50


def test_a_graph_is_one_session_and_is_written_as_it_was_read(tmp_path: Path) -> None:
    trace = diamond(tmp_path)
    assert sessions_of(trace).tolist() == [0, 0, 0, 0, 1]
    write_trace(trace, tmp_path / "plain.jsonl", "jsonl")
    again = read_trace(tmp_path / "plain.jsonl", "jsonl")
    for found in (trace, again):
        assert found.dependencies is not None
        assert found.dependencies.offsets.tolist() == [0, 0, 1, 2, 4, 4]
        assert found.dependencies.rows.tolist() == [0, 0, 1, 2]
        assert found.dependencies.delay_ms.tolist() == [0.0, 7.0, 0.0, 100.0]
        assert found.dependencies.from_start.tolist() == [False, True, False, False]
        assert found.classes == ("lead", "sub_agent", "sub_agent", "lead", "")
        assert found.expected_output_tokens is not None
        assert found.expected_output_tokens.tolist() == [64, 0, 0, 0, 0]


def test_a_format_without_graphs_tells_what_it_loses(tmp_path: Path) -> None:
    lost = write_trace(diamond(tmp_path), tmp_path / "a.csv")
    assert {"dependencies", "classes", "expected_output_tokens"} <= set(lost)


def test_sorting_keeps_who_waits_for_whom(tmp_path: Path) -> None:
    rows = [row("a", timestamp=50), row("b", ["a"], timestamp=60), row("c", timestamp=10)]
    trace = read_trace(written(tmp_path, *rows, row("d", ["b", "c"], timestamp=70)), sort=True)
    assert trace.request_ids == ("c", "a", "b", "d")
    assert trace.previous_turn is not None and trace.dependencies is not None
    assert trace.previous_turn.tolist() == [-1, -1, 1, 2]
    assert trace.dependencies.rows.tolist() == [1, 2, 0]
    np.testing.assert_array_equal(trace.dependencies.waiting(), [2, 3, 3])


BAD = {
    "a request that does not exist": (
        [row("a"), row("b", ["x"])],
        "graph.jsonl:2:wait_for: no row of the file has the request_id 'x'",
    ),
    "a cycle": (
        [row("a", ["c"]), row("b", ["a"]), row("c", ["b"])],
        "graph.jsonl:1:wait_for: a cycle: a waits for c waits for b waits for a",
    ),
    "itself": ([row("a", ["a"])], "graph.jsonl:1:wait_for: a cycle: a waits for a"),
    "a later row": (
        [row("a", ["b"]), row("b")],
        "graph.jsonl:1:wait_for: 'b' comes later, in line 2",
    ),
    "a bad row": (
        [row("a", output_length=0), row("b", ["a"])],
        "graph.jsonl:1:output_length",
    ),
    "a negative delay": (
        [row("a"), row("b", [{"request_id": "a", "delay_ms": -1}])],
        "graph.jsonl:2:wait_for[0].delay_ms: expected >= 0 ms, got -1",
    ),
    "twice the same": (
        [row("a"), row("b", ["a", "a"])],
        "graph.jsonl:2:wait_for: waits for the same of a request twice",
    ),
    "a delay outside": (
        [row("a"), row("b", ["a"], delay=5)],
        "graph.jsonl:2:delay: a row that states wait_for has its delays there",
    ),
    "an unknown trigger": (
        [row("a"), row("b", [{"request_id": "a", "trigger": "start"}])],
        "graph.jsonl:2:wait_for",
    ),
    "no list": ([row("a"), row("b", "a")], "graph.jsonl:2:wait_for: expected a list of request"),
    "a wrong guess": (
        [row("a", expected_output_tokens=0)],
        "graph.jsonl:1:expected_output_tokens: expected a number of tokens >= 1, got 0",
    ),
    "another block size": (
        [row("a", input_length=20)],
        "graph.jsonl:1:hash_ids: 1 ids of 16 tokens cover 16 of 20 prompt tokens",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_waited_for_is_one_message_before_the_run(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows, message = BAD[what]
    written(tmp_path, *rows)
    (tmp_path / "run.yaml").write_text(RUN)
    monkeypatch.chdir(tmp_path)
    assert main(["run", "run.yaml", "--out", "result"]) == 2
    told = capsys.readouterr()
    assert message in told.err
    assert told.err.count("Traceback") == 0 and not (tmp_path / "result").exists()


def test_rows_that_wait_for_a_bad_one_are_left_out_with_it(tmp_path: Path) -> None:
    rows = [row("a", output_length=0), row("b", ["a"]), row("c", ["b"]), row("d")]
    trace = read_trace(written(tmp_path, *rows), skip_bad_lines=True)
    assert trace.request_ids == ("d",)
    assert trace.skipped_lines == 3
