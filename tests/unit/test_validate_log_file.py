"""Request logs: every accepted form reads the same, every bad line is named."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from recorded_runs import rows, workload, write

from dynosim.errors import ConfigError, TraceError
from dynosim.fit.log_file import read_measurements

ROW: dict[str, Any] = {
    "arrival_ms": 0.0,
    "input_tokens": 40,
    "output_tokens": 5,
    "first_token_ms": 30.0,
    "last_token_ms": 80.0,
}


def _log(tmp_path: Path, *lines: dict[str, Any]) -> Path:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_gzipped_and_plain_logs_read_the_same(tmp_path: Path) -> None:
    log = rows(workload(8))
    plain = read_measurements(write(tmp_path / "a.jsonl", log))
    packed = read_measurements(write(tmp_path / "a.jsonl.gz", log))
    assert plain.clock == packed.clock == "engine"
    np.testing.assert_array_equal(plain.ttft_ms, packed.ttft_ms)
    assert plain.hashes == packed.hashes
    assert plain.setup == packed.setup


def test_csv_reads_like_json(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text(",".join(ROW) + "\n" + ",".join(map(str, ROW.values())) + "\n")
    measured = read_measurements(path)
    assert measured.clock == "clients"
    assert measured.ttft_ms.tolist() == [30.0]
    assert measured.decode_ms.tolist() == [50.0]


def test_trace_of_a_log_shares_full_blocks_only(tmp_path: Path) -> None:
    shared = ROW | {"hash_ids_16": [7, 8]}
    trace = read_measurements(_log(tmp_path, shared, shared | {"arrival_ms": 5.0})).trace()
    # 40 tokens: two full blocks, and a part-full one that nobody shares.
    assert trace.hash_ids.tolist() == [7, 8, 9, 7, 8, 10]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"output_tokens": 0}, ":2:output_tokens: expected a whole number >= 1, got 0"),
        ({"output_tokens": None}, ":2:output_tokens: missing"),
        ({"last_token_ms": None}, ":2:finish_ms: missing"),
        ({"first_token_ms": -4.0}, "the clock jumped"),
        ({"last_token_ms": 29.0}, "the clock jumped"),
        ({"error": "timeout"}, ":2:error: a failed request (timeout)"),
        ({"status": "aborted"}, ":2:status: a failed request (aborted)"),
        ({"arrival_ms": -1.0}, ":2:arrival_ms: -1 is before 0"),
        ({"hash_ids_16": [1, 2, 3]}, "3 full blocks do not fit in 40 tokens"),
        ({"first_token_ms": float("nan")}, "expected a number of ms"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    second = {key: value for key, value in (ROW | changes).items() if value is not None}
    with pytest.raises(TraceError) as caught:
        read_measurements(_log(tmp_path, ROW, second))
    assert message in str(caught.value)


def test_request_that_slept_is_named(tmp_path: Path) -> None:
    slow = ROW | {"last_token_ms": 90_000.0}
    with pytest.raises(TraceError, match="the machine slept"):
        read_measurements(_log(tmp_path, *[ROW] * 5, slow))


def test_log_without_times_says_which_are_needed(tmp_path: Path) -> None:
    with pytest.raises(TraceError, match="needs first_token_ms and last_token_ms, or ttft_ms"):
        read_measurements(_log(tmp_path, {"arrival_ms": 0, "input_tokens": 1, "output_tokens": 1}))


def test_too_few_requests_are_refused_with_the_number_needed(tmp_path: Path) -> None:
    measured = read_measurements(_log(tmp_path, *[ROW] * 40))
    with pytest.raises(ConfigError, match=r"12 requests to fit on .* at least 30 are needed"):
        measured.fit_count(0.3)
