"""Trace files as users have them: every format, and every way to be wrong."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from shared_data import shared_path

from dynosim.errors import ConfigError, TraceError
from dynosim.workload.readers import format_of, read_trace, read_trace_file

ROW = {"timestamp": 0, "input_length": 600, "output_length": 5, "hash_ids": [1, 2]}


def write_rows(path: Path, *rows: Any) -> Path:
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def row(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in (ROW | changes).items() if value is not ...}


def test_mooncake_fields_and_their_aliases_mean_the_same(tmp_path: Path) -> None:
    alias = {"created_time": 20.5, "input_tokens": 600, "output_tokens": 5, "hash_ids": [1, 2]}
    trace = read_trace(
        write_rows(tmp_path / "a.jsonl", row(timestamp=10), alias, {**alias, "x": 1})
    )
    assert trace.arrival_ms.tolist() == [0.0, 10.5, 10.5]
    assert trace.input_tokens.tolist() == [600] * 3
    assert trace.output_tokens.tolist() == [5] * 3
    assert trace.hash_ids.tolist() == [1, 2] * 3
    assert trace.hash_offsets.tolist() == [0, 2, 4, 6]
    assert trace.trace_block_size == 512
    assert (trace.previous_turn, trace.delay_ms, trace.priority) == (None, None, None)
    assert (trace.session_ids, trace.request_ids) == (None, None)


def test_gzip_is_told_by_content_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    text = f"\ufeff{json.dumps(ROW)}\r\n\n  \n{json.dumps(row(timestamp=5))}"
    path.write_bytes(gzip.compress(text.encode()) + gzip.compress(b"\n" + json.dumps(ROW).encode()))
    with pytest.raises(TraceError, match=rf"{path}:5:timestamp: goes back: 0 ms after 5 ms"):
        read_trace(path)
    assert len(read_trace(path, skip_bad_lines=True)) == 2


def test_a_prompt_without_a_length_is_refused_or_fills_its_blocks_and_is_counted(
    tmp_path: Path,
) -> None:
    path = write_rows(
        tmp_path / "a.jsonl", row(), row(input_length=...), row(input_length=..., hash_ids=[1])
    )
    with pytest.raises(
        TraceError, match=r":2:input_length: missing field \(--lengths-from-hash-ids"
    ):
        read_trace(path)
    left_out = read_trace(path, skip_bad_lines=True)
    assert (len(left_out), left_out.skipped_lines, left_out.assumed_lengths) == (1, 2, 0)
    trace = read_trace(path, lengths_from_hash_ids=True)
    assert trace.input_tokens.tolist() == [600, 1024, 512]
    assert (trace.skipped_lines, trace.assumed_lengths) == (0, 2)
    assert read_trace(path, limit=2, lengths_from_hash_ids=True).assumed_lengths == 1
    none = write_rows(tmp_path / "b.jsonl", row(input_length=..., hash_ids=[]))
    with pytest.raises(TraceError, match="1:input_length: missing field"):
        read_trace(none, lengths_from_hash_ids=True)


def test_hash_ids_behind_the_prompt_are_left_out(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", row(input_length=3), row(), row(input_length=512))
    trace = read_trace(path)
    assert trace.hash_ids.tolist() == [1, 1, 2, 1]
    assert trace.hash_offsets.tolist() == [0, 1, 3, 4]


@pytest.mark.parametrize("ids", [[2**64 - 1, 7], [2**63, 7], [-1, 7], [10**9, 7]])
def test_large_or_negative_hash_ids_become_dense(tmp_path: Path, ids: list[int]) -> None:
    path = write_rows(tmp_path / "a.jsonl", row(hash_ids=ids), row(hash_ids=[ids[0], 9]))
    assert read_trace(path).hash_ids.tolist() == [0, 1, 0, 2]


@pytest.mark.parametrize("chunk_bytes", [60, 1 << 20])
def test_signed_beside_large_unsigned_hash_ids_are_refused(
    tmp_path: Path, chunk_bytes: int
) -> None:
    path = write_rows(tmp_path / "a.jsonl", row(hash_ids=[2**63, 1]), row(hash_ids=[-1, 1]))
    with pytest.raises(TraceError, match=":2:hash_ids: negative ids beside"):
        read_trace_file(path, chunk_bytes=chunk_bytes)


def test_turns_follow_each_other_with_stated_or_timed_delays(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "a.jsonl",
        row(session_id="a"),
        row(timestamp=5),
        row(timestamp=7, session_id="a"),
        row(timestamp=..., session_id="a", delay=3.5),
        row(timestamp=..., session_id="a"),
        row(timestamp=9, session_id=4, priority=2),
        row(timestamp=11, session_id=4, delay_ms=1),
    )
    trace = read_trace(path)
    assert trace.previous_turn is not None and trace.delay_ms is not None
    assert trace.previous_turn.tolist() == [-1, -1, 0, 2, 3, -1, 5]
    assert trace.delay_ms.tolist() == [0, 0, 7, 3.5, 0, 0, 1]
    assert trace.arrival_ms.tolist() == [0, 5, 7, 7, 7, 9, 11]
    assert trace.session_ids == ("a", "", "a", "a", "a", "4", "4")
    assert trace.priority is not None and trace.priority.tolist() == [0, 0, 0, 0, 0, 2, 0]


def test_sorting_moves_rows_counts_them_and_keeps_links(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "a.jsonl",
        row(timestamp=50, session_id="a", request_id="a0"),
        row(timestamp=90, session_id="a", request_id="a1", hash_ids=[3, 4]),
        row(timestamp=20, session_id="b", request_id="b0"),
        row(timestamp=60, session_id="b", request_id="b1", hash_ids=[5, 6]),
    )
    read = read_trace_file(path, sort=True)
    trace = read.trace
    assert read.moved_rows == 2
    assert trace.request_ids == ("b0", "a0", "b1", "a1")
    assert trace.arrival_ms.tolist() == [0, 30, 40, 70]
    assert trace.previous_turn is not None and trace.previous_turn.tolist() == [-1, -1, 0, 1]
    assert trace.hash_ids.tolist() == [1, 2, 1, 2, 5, 6, 3, 4]
    assert "2 rows moved" in trace.source


def test_sorting_never_reorders_the_turns_of_a_session(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "a.jsonl",
        row(timestamp=50, session_id="a"),
        row(timestamp=40, session_id="a"),
    )
    with pytest.raises(TraceError, match=":2:timestamp: goes back inside its session"):
        read_trace(path, sort=True)


BAD_ROWS = [
    ("{nonsense", "", "not JSON"),
    ('{"timestamp": NaN}', "", "not JSON: NaN and Infinity are not numbers in JSON"),
    ("[1, 2]", "", "expected an object"),
    (row(output_length=...), "output_length", "missing field"),
    (row(output_length=None), "output_length", "missing field"),
    (row(timestamp=...), "timestamp", "missing field"),
    (row(hash_ids=...), "hash_ids", "missing field.*jsonl"),
    (row(input_length=-5), "input_length", "expected an integer >= 1, got -5"),
    (row(input_length=0), "input_length", ".*got 0: an engine refuses"),
    (row(output_length=0), "output_length", ".*got 0: an engine refuses"),
    (row(input_length=2**40), "input_length", "expected fewer than"),
    (row(input_length=10**30), "input_length", ".*fits in 64 bits"),
    (row(input_length=5.5), "input_length", "expected an integer, got 5.5"),
    (row(output_length="12"), "output_length", 'expected an integer, got "12"'),
    (row(output_length=True), "output_length", "expected an integer, got true"),
    (row(timestamp="now"), "timestamp", 'expected a number, got "now"'),
    (row(hash_ids=[1, "x"]), r"hash_ids\[1\]", 'expected an integer, got "x"'),
    (row(hash_ids=[1, 2**64]), r"hash_ids\[1\]", ".*fits in 64 bits"),
    (row(hash_ids=[1]), "hash_ids", "1 ids of 512 tokens cover 512 of 600 prompt tokens"),
    (row(input_tokens=600), "input_length", "given twice, also as input_tokens"),
    (row(session_id="new", delay=4), "delay", "expected 0 on the first turn of a session, got 4"),
    (row(delay=-1), "delay", "expected >= 0 ms, got -1"),
    (row(timestamp=-1), "timestamp", "goes back: -1 ms after 0 ms"),
    (row(timestamp="1e999"), "timestamp", "expected a number"),
    ('{"timestamp": 1e999}', "timestamp", "number out of range"),
    (row(request_id="first"), "request_id", "'first' was given to an earlier row"),
]


@pytest.mark.parametrize(("bad", "field", "message"), BAD_ROWS)
def test_a_bad_row_is_named_and_can_be_skipped(
    tmp_path: Path, bad: Any, field: str, message: str
) -> None:
    path = write_rows(tmp_path / "a.jsonl", row(request_id="first"), bad, row())
    place = f":2:{field}: " if field else ":2: "
    with pytest.raises(TraceError, match=place + message) as caught:
        read_trace(path)
    assert caught.value.line == 2
    assert "--skip-bad-lines" in str(caught.value)
    trace = read_trace(path, skip_bad_lines=True)
    assert (len(trace), trace.skipped_lines) == (2, 1)


def test_only_the_first_bad_lines_are_spelled_out(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROW, *[row(output_length=-1)] * 20)
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    text = str(caught.value)
    assert text.count("expected an integer >= 1, got -1") == 6
    assert "and 14 more bad lines" in text


def test_a_bad_line_after_ten_thousand_good_ones_is_found(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", *[ROW] * 10_000, "oops", ROW)
    with pytest.raises(TraceError, match=":10001: not JSON"):
        read_trace(path)
    assert read_trace(path, skip_bad_lines=True).skipped_lines == 1
    assert len(read_trace(path, limit=10_000)) == 10_000


def test_limit_takes_the_first_usable_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", ROW, "oops", row(timestamp=1), row(timestamp=2), "oops")
    trace = read_trace(path, limit=2, skip_bad_lines=True)
    assert (trace.arrival_ms.tolist(), trace.skipped_lines) == ([0, 1], 1)


@pytest.mark.parametrize("text", ["", "\n\n"])
def test_an_empty_file_has_no_requests(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text(text)
    with pytest.raises(TraceError, match=r"a\.jsonl: no requests: the file has no row"):
        read_trace(path)


def test_unreadable_files_and_unknown_formats_are_told(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match=r"none\.jsonl: no such file"):
        read_trace(tmp_path / "none.jsonl")
    with pytest.raises(TraceError, match="cannot be read"):
        read_trace(tmp_path, "jsonl")
    with pytest.raises(ConfigError, match=r"state format, one of mooncake, azure, jsonl"):
        read_trace(tmp_path / "trace.txt")
    with pytest.raises(ConfigError, match="unknown trace format 'moon'"):
        read_trace(tmp_path / "a.jsonl", "moon")
    with pytest.raises(ConfigError, match="limit: expected an integer >= 1, got 0"):
        read_trace(tmp_path / "a.jsonl", limit=0)


def test_truncated_gzip_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(ROW).encode())[:-9])
    with pytest.raises(TraceError, match=r"broken gzip file \(it ends too early\)"):
        read_trace(path)
    path.write_bytes(b"\x1f\x8bno gzip at all")
    with pytest.raises(TraceError, match="broken gzip file"):
        read_trace(path)


def test_formats_are_told_by_name() -> None:
    assert format_of(Path("x.CSV.gz")) == "azure"
    assert format_of(Path("x.jsonl.gz")) == "mooncake"


def test_plain_jsonl_needs_no_hash_ids_and_knows_its_fields(tmp_path: Path) -> None:
    plain = {"arrival_ms": 3, "input_tokens": 10, "output_tokens": 2}
    trace = read_trace(write_rows(tmp_path / "a.jsonl", plain, {**plain, "priority": -1}), "jsonl")
    assert (len(trace.hash_ids), trace.hash_offsets.tolist()) == (0, [0, 0, 0])
    assert trace.priority is not None and trace.priority.tolist() == [0, -1]
    path = write_rows(tmp_path / "b.jsonl", plain, {**plain, "output_token": 2})
    with pytest.raises(TraceError, match=":2:output_token: unknown field, did you mean output_tok"):
        read_trace(path, "jsonl")
    path = write_rows(tmp_path / "c.jsonl", plain, {**plain, "prompt_hash_ids": [1]})
    with pytest.raises(TraceError, match=":2:prompt_hash_ids: given here but not in the first row"):
        read_trace(path, "jsonl")


def test_a_closed_loop_needs_no_arrivals(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "a.jsonl", row(timestamp=...), row(timestamp=...))
    assert read_trace(path, needs_arrival=False).arrival_ms.tolist() == [0, 0]


def test_azure_in_seconds_and_as_released(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n1.5,374,44\n1.75,10,2\n")
    trace = read_trace(path)
    assert trace.arrival_ms.tolist() == [0, 250]
    assert (trace.input_tokens.tolist(), trace.output_tokens.tolist()) == ([374, 10], [44, 2])
    assert len(trace.hash_ids) == 0
    path.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        "2023-11-16 18:15:46.6805900,374,44\r\n"
        "2023-11-16 18:15:50.9951690+00:00,396,109"
    )
    assert np.allclose(read_trace(path).arrival_ms, [0, 4314.579], atol=1e-9)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("1,2", ":3: expected 3 columns, got 2"),
        ("x,2,3", ":3:arrived_at: expected seconds, got 'x'"),
        ("nan,2,3", ":3:arrived_at: expected seconds, got 'nan'"),
        ("1,2.5,3", ":3:num_prefill_tokens: expected an integer, got '2.5'"),
        ("1,2,0", ":3:num_decode_tokens: expected an integer >= 1, got 0"),
        ("-1,2,3", ":3:arrived_at: goes back: -1000 ms after 0 ms"),
    ],
)
def test_bad_azure_rows_are_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"arrived_at,num_prefill_tokens,num_decode_tokens\n0,1,1\n{line}\n")
    with pytest.raises(TraceError, match=message):
        read_trace(path)


def test_an_azure_file_needs_a_known_header(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("time,prompt,answer\n0,1,1\n")
    with pytest.raises(TraceError, match=":1: expected a header with the columns arrived_at"):
        read_trace(path)


@pytest.mark.parametrize(
    ("name", "rows", "input_mean", "output_mean"),
    [
        ("mooncake_conversation.jsonl.gz", 12031, 12035.06, 342.62),
        ("azure_conv_2023.csv.gz", 19366, 1154.70, 211.12),
    ],
)
def test_public_traces_load(name: str, rows: int, input_mean: float, output_mean: float) -> None:
    trace = read_trace(shared_path(f"traces/{name}"))
    assert len(trace) == rows
    assert trace.input_tokens.mean() == pytest.approx(input_mean, abs=0.01)
    assert trace.output_tokens.mean() == pytest.approx(output_mean, abs=0.01)
