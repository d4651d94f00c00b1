"""From the workload section of a run to its trace."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dynosim.build.workload import build_trace
from dynosim.errors import ConfigError
from dynosim.workload.synthetic import synthesize
from dynosim.workload.writers import write_trace

SPEC = {"sessions": 8, "isl": 700, "osl": 20, "turns": 3, "rate_rps": 3, "think_time_ms": 40}


def workload(**changes: Any) -> SimpleNamespace:
    fields: dict[str, Any] = {
        "trace": None, "synthetic": None, "format": None, "trace_block_size": 512, "speedup": 1.0,
        "arrival_scale": 1.0, "repeat": 1,
        "limit": None, "concurrency": None, "skip_bad_lines": False, "sort": False,
        "lengths_from_hash_ids": False, "retention": None, "pool": None, "agents": None,
        "stages": None,
        "template_tokens": 0,
    }  # fmt: skip
    return SimpleNamespace(**(fields | changes))


def test_a_trace_file_is_resolved_and_read(tmp_path: Path) -> None:
    write_trace(synthesize(SPEC, 0), tmp_path / "a.jsonl")
    trace = build_trace(workload(trace="a.jsonl"), seed=9, resolve=lambda name: tmp_path / name)
    assert trace.arrival_ms.tolist() == synthesize(SPEC, 0).arrival_ms.tolist()
    assert trace.source == str(tmp_path / "a.jsonl")


def test_speedup_divides_arrivals_and_delays() -> None:
    plain = build_trace(workload(synthetic=SPEC), seed=0, resolve=Path)
    fast = build_trace(workload(synthetic=SPEC, speedup=4.0), seed=0, resolve=Path)
    assert plain.delay_ms is not None and fast.delay_ms is not None
    assert fast.arrival_ms.tolist() == (plain.arrival_ms / 4).tolist()
    assert set(fast.delay_ms.tolist()) == {0.0, 10.0}


def test_limit_keeps_the_first_requests() -> None:
    trace = build_trace(workload(synthetic=SPEC, limit=5), seed=0, resolve=Path)
    assert len(trace) == 5
    assert len(trace.hash_ids) == trace.hash_offsets[-1]
    assert trace.session_ids is not None and len(trace.session_ids) == 5


def test_repeat_puts_it_end_to_end_before_its_arrivals_are_scaled() -> None:
    once = build_trace(workload(synthetic=SPEC), seed=0, resolve=Path)
    twice = build_trace(workload(synthetic=SPEC, repeat=2), seed=0, resolve=Path)
    assert len(twice) == 2 * len(once)
    assert twice.arrival_ms[: len(once)].tolist() == once.arrival_ms.tolist()
    assert not set(twice.hash_ids[len(once.hash_ids) :]) & set(once.hash_ids)
    fast = build_trace(workload(synthetic=SPEC, repeat=2, arrival_scale=4.0), seed=0, resolve=Path)
    assert fast.arrival_ms.tolist() == (twice.arrival_ms / 4).tolist()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "give exactly one of trace, synthetic, pool, agents"),
        ({"trace": "a", "synthetic": SPEC}, "give exactly one of trace, synthetic, pool, agents"),
        ({"synthetic": SPEC, "speedup": 0.0}, "speedup: expected a number > 0"),
        ({"synthetic": SPEC, "speedup": float("nan")}, "speedup: expected a number > 0"),
        ({"synthetic": SPEC, "limit": 0}, "limit: expected an integer >= 1"),
    ],
)
def test_senseless_sections_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_trace(workload(**changes), seed=0, resolve=Path)
