"""Trace files that we write: readable, whole, and the same bytes each time."""

import gzip
from dataclasses import replace
from pathlib import Path

import pytest

from dynosim.errors import ConfigError, TraceError
from dynosim.records import Trace
from dynosim.workload import writers
from dynosim.workload.agents import write_agents
from dynosim.workload.readers import read_trace
from dynosim.workload.spec_file import read_spec
from dynosim.workload.synthetic import synthesize
from dynosim.workload.writers import write_trace


@pytest.fixture
def trace() -> Trace:
    return synthesize({"sessions": 9, "isl": 900, "osl": 20, "turns": 2, "rate_rps": 3}, 0)


def test_packed_bytes_hold_neither_time_nor_name(tmp_path: Path, trace: Trace) -> None:
    for name in ("a.jsonl.gz", "b.jsonl.gz", "c.jsonl"):
        assert write_trace(trace, tmp_path / name) == []
    packed = (tmp_path / "a.jsonl.gz").read_bytes()
    assert packed == (tmp_path / "b.jsonl.gz").read_bytes()
    assert gzip.decompress(packed) == (tmp_path / "c.jsonl").read_bytes()


def test_an_azure_file_says_what_it_could_not_hold(tmp_path: Path, trace: Trace) -> None:
    path = tmp_path / "a.csv"
    assert write_trace(trace, path) == ["hash_ids", "sessions"]
    assert read_trace(path).input_tokens.tolist() == trace.input_tokens.tolist()
    assert read_trace(path).arrival_ms == pytest.approx(trace.arrival_ms, abs=1e-6)
    with pytest.raises(ConfigError, match="mooncake rows need hash ids"):
        write_trace(read_trace(path), tmp_path / "b.jsonl")


def test_nothing_half_written_stays_behind(
    tmp_path: Path, trace: Trace, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("as it was")
    monkeypatch.setattr(writers, "_ROWS_AT_A_TIME", 4)
    broken = replace(trace, session_ids=("s",) * 5)  # fails in the second block of rows
    with pytest.raises(IndexError):
        write_trace(broken, path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.jsonl"]
    assert path.read_text() == "as it was"


def test_a_file_that_cannot_be_written_is_told(tmp_path: Path, trace: Trace) -> None:
    with pytest.raises(TraceError, match="cannot be written"):
        write_trace(trace, tmp_path / "no such folder" / "a.jsonl")


@pytest.mark.parametrize("name", ["chat_sessions", "agentic_tools", "agentic_dag"])
def test_shipped_traces_are_what_their_description_gives(
    root: Path, tmp_path: Path, name: str
) -> None:
    written = read_spec(root / "traces" / f"{name}.yaml")
    make = write_agents if written.is_agents else synthesize
    write_trace(make(written.keys, written.seed), tmp_path / f"{name}.jsonl")
    shipped = gzip.decompress((root / "traces" / f"{name}.jsonl.gz").read_bytes())
    assert (tmp_path / f"{name}.jsonl").read_bytes() == shipped
