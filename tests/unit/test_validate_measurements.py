"""Logs and the columns that they become: every form, every column, every edge of a check."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynosim.errors import ConfigError, TraceError
from dynosim.fit.log_file import read_measurements
from dynosim.fit.measurements import Measurements

SETUP = {"vllm_version": "0.19.0", "engine_kwargs": {"max_num_seqs": 8}}
ENGINE = [
    {"arrival_ms": 100.0, "input_tokens": 40, "output_tokens": 5, "queue_ms": 1.0, "ttft_ms": 30.0,
     "decode_ms": 50.0},
    {"arrival_ms": 120, "input_tokens": 33, "output_tokens": 1, "queue_ms": 0.0, "ttft_ms": 31,
     "decode_ms": 0},
    {"arrival_ms": 120.5, "input_tokens": 16, "output_tokens": 2, "queue_ms": 9.0, "ttft_ms": 32.5,
     "decode_ms": 11.5},
]  # fmt: skip
CLIENTS = [{key: value for key, value in row.items() if key != "queue_ms"} for row in ENGINE]
ABSOLUTE = [
    {
        **{key: row[key] for key in ("arrival_ms", "input_tokens", "output_tokens")},
        "first_token_ms": row["arrival_ms"] + row["ttft_ms"],
        "last_token_ms": row["arrival_ms"] + row["ttft_ms"] + row["decode_ms"],
    }
    for row in ENGINE
]
FINISH = [
    {("finish_ms" if key == "last_token_ms" else key): value for key, value in row.items()}
    for row in ABSOLUTE
]


def log(tmp_path: Path, rows: list[dict[str, Any]], **first: Any) -> Path:
    path = tmp_path / "log.jsonl"
    lines = ([first] if first else []) + rows
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.mark.parametrize(
    ("rows", "clock"),
    [(ENGINE, "engine"), (CLIENTS, "clients"), (ABSOLUTE, "clients"), (FINISH, "clients")],
    ids=["engine", "clients", "absolute", "finish"],
)
def test_every_form_gives_every_column(
    tmp_path: Path, rows: list[dict[str, Any]], clock: str
) -> None:
    measured = read_measurements(log(tmp_path, rows, setup=SETUP))
    assert (measured.source, measured.setup) == (str(tmp_path / "log.jsonl"), SETUP)
    assert measured.clock == clock
    assert measured.arrival_ms.tolist() == [0.0, 20.0, 20.5]  # the first is 0
    assert measured.input_tokens.tolist() == [40, 33, 16]
    assert measured.output_tokens.tolist() == [5, 1, 2]
    assert measured.ttft_ms.tolist() == [30.0, 31.0, 32.5]
    assert measured.decode_ms.tolist() == [50.0, 0.0, 11.5]
    assert measured.latency_ms.tolist() == [80.0, 31.0, 44.0]
    assert measured.end_ms.tolist() == [80.0, 51.0, 64.5]
    assert (measured.block_tokens, measured.hashes, len(measured)) == (0, ((), (), ()), 3)
    for name in ("input_tokens", "output_tokens"):
        assert getattr(measured, name).dtype == np.int64


@pytest.mark.parametrize("setup", [None, 3, []])
def test_a_set_up_that_is_none_says_nothing(tmp_path: Path, setup: Any) -> None:
    assert read_measurements(log(tmp_path, ENGINE, setup=setup)).setup == {}


def test_only_what_comes_first_is_a_set_up(tmp_path: Path) -> None:
    late = [ENGINE[0], ENGINE[1] | {"setup": {"a": 1}}]
    measured = read_measurements(log(tmp_path, late))
    assert (measured.setup, len(measured)) == ({}, 2)
    assert read_measurements(log(tmp_path, late, setup=SETUP)).setup == SETUP


def test_a_table_reads_as_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    names = [*ENGINE[0], "status", "hash_ids_16", "error"]
    cells = [
        ["100.0", "40", "5", "1.0", "30.0", "50.0", "completed", '"[1, 2]"', ""],
        ["120", "33", "1", "0.0", "31", "0", "200", '"[1, 7]"', ""],
    ]
    path.write_text("\n".join([",".join(names), *(",".join(row) for row in cells)]) + "\n")
    measured = read_measurements(path)
    assert (measured.clock, measured.setup) == ("engine", {})
    assert measured.decode_ms.tolist() == [50.0, 0.0]
    assert measured.hashes == ((1, 2), (1, 7))
    assert measured.block_tokens == 16


@pytest.mark.parametrize(
    "status", ["", "completed", "Success", "ok", "stop", "length", "200", None]
)
def test_requests_that_ended_well_are_taken(tmp_path: Path, status: str | None) -> None:
    rows = [ENGINE[0] | {"status": status, "error": None}]
    assert len(read_measurements(log(tmp_path, rows))) == 1


BAD_ROWS: list[tuple[dict[str, Any], str]] = [
    ({"status": "500"}, "status: a failed request (500)"),
    ({"error": "x", "status": "ok"}, "error: a failed request (x)"),
    ({"arrival_ms": None}, "arrival_ms: missing; expected a number of ms"),
    ({"arrival_ms": True}, "arrival_ms: expected a number of ms, got True"),
    ({"ttft_ms": "3"}, "ttft_ms: expected a number of ms, got '3'"),
    ({"decode_ms": None}, "decode_ms: missing; expected a number of ms"),
    ({"ttft_ms": -0.5}, "first token: 0.5 ms before what it follows from"),
    ({"decode_ms": -0.5}, "last token: 0.5 ms before what it follows from"),
    ({"input_tokens": 1.0}, "input_tokens: expected a whole number >= 1, got 1.0"),
    ({"input_tokens": 0}, "input_tokens: expected a whole number >= 1, got 0"),
    ({"output_tokens": True}, "output_tokens: expected a whole number >= 1, got True"),
    ({"hash_ids_16": [1, 2, 3]}, "hash_ids_16: 3 full blocks do not fit in 40 tokens"),
    ({"hash_ids_16": [1.5]}, "hash_ids_16: expected a list of whole numbers"),
    ({"hash_ids_16": 5}, "hash_ids_16: expected a list of whole numbers"),
    ({"hash_ids_0": []}, "hash_ids_0: 0 full blocks do not fit in 40 tokens"),
]


@pytest.mark.parametrize(("changes", "message"), BAD_ROWS)
def test_a_bad_row_is_named_by_line_and_field(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    rows = [ENGINE[0], ENGINE[0] | changes]
    with pytest.raises(TraceError) as caught:
        read_measurements(log(tmp_path, rows, setup=SETUP))
    assert str(caught.value).startswith(f"{tmp_path / 'log.jsonl'}:3:{message}")


def test_two_full_blocks_fit_exactly(tmp_path: Path) -> None:
    rows = [ENGINE[0] | {"input_tokens": 32, "hash_ids_16": [1, 2]}]
    assert read_measurements(log(tmp_path, rows)).hashes == ((1, 2),)


@pytest.mark.parametrize(("back_ms", "is_taken"), [(0.0, True), (1e-7, True), (1e-3, False)])
def test_arrivals_that_go_back_by_more_than_rounding_are_refused(
    tmp_path: Path, back_ms: float, is_taken: bool
) -> None:
    rows = [ENGINE[0], ENGINE[0] | {"arrival_ms": 100.0 - back_ms}]
    if is_taken:
        assert len(read_measurements(log(tmp_path, rows))) == 2
    else:
        with pytest.raises(TraceError, match=r":2:arrival_ms: 99.999 is before 100 of the request"):
            read_measurements(log(tmp_path, rows))


@pytest.mark.parametrize(
    ("gap_ms", "outputs", "is_taken"),
    [
        (10.0 * 50, 5, True),
        (10.0 * 50 + 0.1, 5, False),
        (1e9, 1, True),  # one token has no gap
    ],
)
def test_a_gap_fifty_times_the_usual_one_is_the_last_that_is_believed(
    tmp_path: Path, gap_ms: float, outputs: int, is_taken: bool
) -> None:
    usual = ENGINE[0] | {"decode_ms": 40.0}  # 10 ms for each of four gaps
    slow = ENGINE[0] | {"decode_ms": gap_ms * max(outputs - 1, 1), "output_tokens": outputs}
    path = log(tmp_path, [usual, usual, slow])
    if is_taken:
        assert len(read_measurements(path)) == 3
    else:
        with pytest.raises(TraceError, match=r":3:decode_ms: 500 ms per token .* median is 10.0"):
            read_measurements(path)


@pytest.mark.parametrize("text", ["", "\n\n", '{"setup": {}}\n'])
def test_a_log_without_requests_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(text)
    with pytest.raises(TraceError, match="no requests; record some first"):
        read_measurements(path)


@pytest.mark.parametrize(("line", "message"), [("{nonsense", "not JSON"), ("[]", "a JSON object")])
def test_a_line_that_is_no_request_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps(ENGINE[0]) + "\n" + line + "\n")
    with pytest.raises(TraceError, match=f"log.jsonl:2: .*{message}"):
        read_measurements(path)


def made(count: int) -> Measurements:
    numbers = np.arange(count)
    return Measurements(
        source="log",
        setup=SETUP,
        clock="engine",
        arrival_ms=numbers * 10.0,
        input_tokens=20 + numbers,
        output_tokens=3 + numbers,
        ttft_ms=100.0 + numbers,
        decode_ms=200.0 + numbers,
        block_tokens=16,
        hashes=tuple((number,) for number in range(count)),
    )


def test_the_first_of_a_log_have_all_their_columns() -> None:
    measured = made(5)
    first = measured.first(2)
    assert len(first) == 2
    for name in ("arrival_ms", "input_tokens", "output_tokens", "ttft_ms", "decode_ms"):
        assert getattr(first, name).tolist() == getattr(measured, name)[:2].tolist()
    assert first.hashes == ((0,), (1,))
    assert (first.source, first.setup, first.clock) == ("log", SETUP, "engine")
    assert first.block_tokens == 16


@pytest.mark.parametrize(
    ("requests", "fraction", "count"),
    [(100, 0.3, 30), (100, 0.7, 70), (30, 1.0, 30), (99, 0.305, 30), (61, 0.5, 30), (64, 0.5, 32)],
)
def test_the_leading_part_is_rounded(requests: int, fraction: float, count: int) -> None:
    assert made(requests).fit_count(fraction) == count


@pytest.mark.parametrize(("requests", "fraction", "count"), [(29, 1.0, 29), (98, 0.3, 29)])
def test_thirty_requests_are_the_least(requests: int, fraction: float, count: int) -> None:
    with pytest.raises(ConfigError) as caught:
        made(requests).fit_count(fraction)
    assert str(caught.value) == (
        f"log: {count} requests to fit on (fraction {fraction:g} of {requests}); at least 30 are"
        " needed: record more, or raise --fit-fraction"
    )


def test_the_workload_of_a_log_has_its_lengths_and_no_times() -> None:
    trace = made(3).trace()
    assert trace.arrival_ms.tolist() == [0.0, 10.0, 20.0]
    assert trace.input_tokens.tolist() == [20, 21, 22]
    assert trace.output_tokens.tolist() == [3, 4, 5]
    assert (trace.trace_block_size, trace.source) == (16, "log")
    # A full block each, and one part-full that is nobody else's.
    assert trace.hash_ids.tolist() == [0, 3, 1, 4, 2, 5]
    assert trace.hash_offsets.tolist() == [0, 2, 4, 6]


def test_without_hashes_nothing_is_shared() -> None:
    fields = {name: getattr(made(2), name) for name in Measurements.__dataclass_fields__}
    plain = Measurements(**(fields | {"block_tokens": 0, "hashes": ((), ())}))
    trace = plain.trace()
    assert (trace.hash_ids.tolist(), trace.hash_offsets.tolist()) == ([], [0, 0, 0])
    assert trace.trace_block_size == 16


def test_prompts_without_a_full_block_have_ids_of_their_own() -> None:
    fields = {name: getattr(made(2), name) for name in Measurements.__dataclass_fields__}
    lengths = {"input_tokens": np.array([5, 33]), "hashes": ((), (7, 8))}
    trace = Measurements(**(fields | lengths)).trace()
    assert trace.hash_ids.tolist() == [9, 7, 8, 10]
    assert trace.hash_offsets.tolist() == [0, 1, 4]
