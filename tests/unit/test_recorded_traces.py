"""Others' recordings of agents: agentic Mooncake, Dynamo request traces, Weka, Bailian."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynosim.cli import main
from dynosim.errors import ConfigError, TraceError
from dynosim.records import Trace
from dynosim.workload.agents import write_agents
from dynosim.workload.inspect import shared_prefixes
from dynosim.workload.readers import read_trace, read_trace_file
from dynosim.workload.writers import write_trace

HEADER = {"schema": "dynamo.agentic_mooncake", "version": 2, "block_size": 64}


def saved(path: Path, *lines: dict[str, Any]) -> Path:
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return path


def waits(trace: Trace, name: str) -> list[tuple[str, float, bool]]:
    """What a request waits for: names, delays, and whether from the start."""
    assert trace.request_ids is not None and trace.previous_turn is not None
    names = trace.request_ids
    row = names.index(name)
    graph = trace.dependencies
    if graph is not None and graph.offsets[row] < graph.offsets[row + 1]:
        edges = range(graph.offsets[row], graph.offsets[row + 1])
        return [
            (names[graph.rows[e]], float(graph.delay_ms[e]), bool(graph.from_start[e]))
            for e in edges
        ]
    if trace.previous_turn[row] < 0:
        return []
    assert trace.delay_ms is not None
    return [(names[trace.previous_turn[row]], float(trace.delay_ms[row]), False)]


def ids(trace: Trace, name: str) -> list[int]:
    assert trace.request_ids is not None
    row = trace.request_ids.index(name)
    return trace.hash_ids[trace.hash_offsets[row] : trace.hash_offsets[row + 1]].tolist()


# ---- agentic Mooncake ------------------------------------------------------------------------


def call(
    name: str, after: tuple[Any, ...] = (), *, play: str = "p", **changes: Any
) -> dict[str, Any]:
    keys = ("request_id", "trigger", "delay_ms", "relation")
    found = {
        "request_id": name, "play_id": play, "session_id": f"{play}-s", "model": "m",
        "input_length": 100, "output_length": 10, "hash_ids": [1, 2], "not_before_ms": 0,
        "dependencies": [dict(zip(keys, one, strict=True)) for one in after],
    }  # fmt: skip
    return found | changes


def test_agentic_mooncake_tells_its_format_and_its_blocks(tmp_path: Path) -> None:
    lines = [
        HEADER,
        call("join", (("a", "completion", 5, "join"), ("b", "completion", 0, "sequence"))),
        call("a", (("b", "dispatch", 9, "spawn"),), session_id="kid"),
        call("b", not_before_ms=100),
        call("late", (("b", "completion", 0, "sequence"),), not_before_ms=400),
    ]
    read = read_trace_file(saved(tmp_path / "a.jsonl", *lines))
    trace = read.trace
    assert (read.format, trace.trace_block_size) == ("agentic_mooncake", 64)
    assert trace.request_ids is not None and trace.request_ids[0] == "b"
    assert waits(trace, "b") == []
    assert waits(trace, "a") == [("b", 9.0, True)]
    assert waits(trace, "join") == [("a", 5.0, False), ("b", 0.0, False)]
    assert waits(trace, "late") == [("b", 0.0, False), ("b", 300.0, True)]


def test_an_agentic_file_may_be_packed_and_cut(tmp_path: Path) -> None:
    lines = [HEADER, call("b"), *(call(f"r{n}", not_before_ms=n + 1) for n in range(9))]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("".join(f"{json.dumps(x)}\n" for x in lines).encode()))
    assert len(read_trace(path, limit=3)) == 3


# ---- Dynamo ----------------------------------------------------------------------------------

T0 = 1_700_000_000_000


def record(
    name: str, start: int, took: int, *, session: str | None = "lead", parent: str | None = None,
    tokens: int = 100, hashes: tuple[int, ...] = (7, 8),
) -> dict[str, Any]:  # fmt: skip
    replay = {
        "trace_block_size": 64,
        "input_length": tokens,
        "input_sequence_hashes": list(hashes),
    }
    request = {
        "request_id": name, "output_tokens": 3, "request_received_ms": T0 + start,
        "total_time_ms": float(took), "replay": replay,
    }  # fmt: skip
    found: dict[str, Any] = {
        "schema": "dynamo.request.trace.v1",
        "event_type": "request_end",
        "event_time_unix_ms": T0 + start + took,
        "request": request,
    }
    if session is not None:
        found["agent_context"] = {"session_id": session, "parent_session_id": parent}
    return found


def tool(session: str, start: int, end: int) -> dict[str, Any]:
    return {
        "schema": "dynamo.request.trace.v1",
        "event_type": "tool_end",
        "event_time_unix_ms": T0 + end,
        "agent_context": {"session_id": session},
        "tool": {"started_at_unix_ms": T0 + start, "ended_at_unix_ms": T0 + end},
    }


def test_sessions_of_a_dynamo_trace_wait_as_they_did(tmp_path: Path) -> None:
    lines = [
        record("a", 0, 500),
        record("c1", 700, 300, session="kid", parent="lead"),
        record("early", 100, 20, session="twin", parent="lead"),
        {"event": record("c2", 1200, 300, session="kid", parent="lead")},
        tool("lead", 600, 1600),
        {"schema": "dynamo.request.trace.v1", "event_type": "request_payload"},
        record("b", 1700, 500),
    ]
    read = read_trace_file(saved(tmp_path / "a.jsonl", *lines))
    trace = read.trace
    assert (read.format, trace.trace_block_size, len(trace)) == ("dynamo", 64, 5)
    assert waits(trace, "early") == [("a", 100.0, True)]  # while it ran
    assert waits(trace, "c1") == [("a", 200.0, False)]  # after it
    assert waits(trace, "c2") == [("c1", 200.0, False)]
    assert waits(trace, "b") == [("a", 1200.0, False), ("c2", 200.0, False)]  # the tool call's
    assert trace.arrival_ms.tolist() == [0.0, 100.0, 700.0, 1200.0, 1700.0]


def test_a_dynamo_trace_without_contexts_has_its_arrivals(tmp_path: Path) -> None:
    lines = [record("b", 40, 9, session=None), record("a", 0, 500, session=None)]
    trace = read_trace(saved(tmp_path / "a.jsonl", *lines))
    assert trace.arrival_ms.tolist() == [0.0, 40.0]
    assert trace.previous_turn is None


# ---- Weka ------------------------------------------------------------------------------------


def weka(t: float, tokens: int, hashes: list[int], api: float = 1.0) -> dict[str, Any]:
    return {"t": t, "type": "n", "model": "m", "in": tokens, "out": 5, "hash_ids": hashes,
            "api_time": api}  # fmt: skip


def thread(t: float, *requests: dict[str, Any], name: str = "kid") -> dict[str, Any]:
    return {"t": t, "type": "subagent", "agent_id": name, "requests": list(requests)}


def play(*requests: dict[str, Any], name: str = "p") -> dict[str, Any]:
    return {"id": name, "models": ["m"], "block_size": 64, "hash_id_scope": "local",
            "requests": list(requests)}  # fmt: skip


FAMILY = play(
    weka(0, 150, [0, 1, 2]),
    weka(3, 300, [0, 1, 3, 4, 5], api=2.0),
    thread(5.5, weka(5.5, 130, [0, 6, 7]), weka(7.5, 200, [0, 6, 8, 9])),
    thread(5.6, weka(5.6, 130, [0, 6, 10]), name="other"),
    weka(10, 400, [0, 1, 3, 4, 11, 12, 13]),
)


def test_threads_of_a_weka_play_wait_as_they_did(tmp_path: Path) -> None:
    trace = read_trace(saved(tmp_path / "w.jsonl", FAMILY), "weka")
    assert trace.trace_block_size == 64
    assert waits(trace, "p/1") == [("p/0", 2000.0, False)]
    assert waits(trace, "p/2") == [("p/1", 500.0, False)]
    assert waits(trace, "p/3") == [("p/2", 1000.0, False)]
    assert waits(trace, "p/5") == [
        ("p/1", 5000.0, False), ("p/3", 1500.0, False), ("p/4", 3400.0, False),
    ]  # fmt: skip
    assert trace.classes == ("lead", "lead", "sub_agent", "sub_agent", "sub_agent", "lead")
    # Whole blocks are the play's, part-full ends each prompt's own.
    assert ids(trace, "p/1")[:2] == ids(trace, "p/0")[:2]
    assert ids(trace, "p/4")[:2] == ids(trace, "p/2")[:2]
    assert ids(trace, "p/4")[2] != ids(trace, "p/2")[2]


def test_plays_share_no_ids_and_a_folder_is_all_its_files(tmp_path: Path) -> None:
    saved(tmp_path / "one.json", FAMILY)
    saved(tmp_path / "two.jsonl", play(weka(0, 64, [0]), name="q"))
    trace = read_trace(tmp_path, "weka")
    assert len(trace) == 7
    assert not set(ids(trace, "q/0")) & set(ids(trace, "p/0"))


def test_times_inside_a_thread_may_count_from_its_start(tmp_path: Path) -> None:
    lines = play(weka(0, 64, [0]), thread(5, weka(0.5, 64, [0]), weka(3, 64, [0])))
    trace = read_trace(saved(tmp_path / "w.jsonl", lines), "weka")
    assert trace.arrival_ms.tolist() == [0.0, 5500.0, 8000.0]


# ---- Bailian ---------------------------------------------------------------------------------


def chat(number: int, parent: int, timestamp: float, **changes: Any) -> dict[str, Any]:
    found = {
        "chat_id": number, "parent_chat_id": parent, "timestamp": timestamp, "turn": 1,
        "input_length": 40, "output_length": 5, "type": "text", "hash_ids": [1, 2, 3],
    }  # fmt: skip
    return found | changes


def test_turns_of_a_bailian_trace_follow_their_parents(tmp_path: Path) -> None:
    lines = [
        chat(7, -1, 10.0),
        chat(9, -1, 10.5, type="file", hash_ids=[1, 2]),
        chat(8, 7, 61.114),
        chat(10, 7, 80.0),
    ]
    trace = read_trace(saved(tmp_path / "b.jsonl", *lines), "bailian")
    assert trace.trace_block_size == 16
    assert trace.arrival_ms.tolist() == [0.0, 500.0, 51114.0, 70000.0]
    assert waits(trace, "8") == [("7", 51114.0, False)]
    assert waits(trace, "10") == [("7", 70000.0, False)]  # a branch of the same chat
    assert trace.classes == ("text", "file", "text", "text")
    assert ids(trace, "9")[:2] == ids(trace, "7")[:2] and ids(trace, "9")[2] != ids(trace, "7")[2]


# ---- bad input -------------------------------------------------------------------------------

CYCLE = (("c", "completion", 0, "sequence"),)
BAD: dict[str, tuple[str, list[dict[str, Any]], str]] = {
    "a cycle": (
        "agentic_mooncake",
        [HEADER, call("a"), call("b", CYCLE), call("c", (("b", "completion", 0, "join"),))],
        "t.jsonl:3:dependencies: a cycle: b waits for c waits for b",
    ),
    "a request that is not there": (
        "agentic_mooncake",
        [HEADER, call("a", CYCLE)],
        "t.jsonl:2:dependencies: 'a' waits for 'c', which the file does not have",
    ),
    "two of a name": (
        "agentic_mooncake",
        [HEADER, call("a"), call("a")],
        "t.jsonl:3: 'a' was given to an earlier request, in line 2",
    ),
    "too few ids": (
        "agentic_mooncake",
        [HEADER, call("a", hash_ids=[1])],
        "t.jsonl:2:hash_ids: 1 ids, but 100 tokens are 2 blocks of 64",
    ),
    "no header": ("agentic_mooncake", [call("a")], "t.jsonl:1: expected the header"),
    "another version": (
        "agentic_mooncake",
        [HEADER | {"version": 1}],
        "t.jsonl:1:version: expected 2, got 1",
    ),
    "a parent that is not there": (
        "dynamo",
        [record("a", 0, 5), record("b", 9, 5, session="kid", parent="nobody")],
        "t.jsonl:2:agent_context.parent_session_id: session 'kid' has the parent 'nobody'",
    ),
    "half of the contexts": (
        "dynamo",
        [record("a", 0, 5), record("b", 9, 5, session=None)],
        "t.jsonl:2: has no agent_context, but other requests have one",
    ),
    "ids of all plays": (
        "weka",
        [play(weka(0, 64, [0])) | {"hash_id_scope": "global"}],
        't.jsonl:1:hash_id_scope: expected "local", got "global"',
    ),
    "two block sizes": (
        "weka",
        [play(weka(0, 64, [0])), play(weka(0, 64, [0]), name="q") | {"block_size": 32}],
        "t.jsonl:2: blocks of 32 tokens, but",
    ),
    "an unknown parent": (
        "bailian",
        [chat(1, 55, 0.0)],
        "t.jsonl:1:parent_chat_id: no earlier row is chat 55",
    ),
    "other blocks": (
        "bailian",
        [chat(1, -1, 0.0, input_length=400)],
        "t.jsonl:1:hash_ids: 3 ids, but 400 tokens are 25 whole blocks of 16",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_a_recording_that_cannot_be_used_is_one_message(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    form, lines, message = BAD[what]
    saved(tmp_path / "t.jsonl", *lines)
    monkeypatch.chdir(tmp_path)
    assert main(["trace", "inspect", "t.jsonl", "--format", form]) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("form", "lines", "size"),
    [
        ("agentic_mooncake", [HEADER, call("a")], 64),
        ("dynamo", [record("a", 0, 5)], 64),
        ("weka", [FAMILY], 64),
        ("bailian", [chat(1, -1, 0.0)], 16),
    ],
)
def test_another_block_size_than_declared_is_refused(
    form: str, lines: list[dict[str, Any]], size: int, tmp_path: Path
) -> None:
    path = saved(tmp_path / "t.jsonl", *lines)
    assert read_trace(path, form, size).trace_block_size == size
    with pytest.raises(TraceError, match=f"blocks of {size} tokens, but trace_block_size"):
        read_trace(path, form, 512)


def test_what_a_recording_states_is_not_worked_out(tmp_path: Path) -> None:
    path = saved(tmp_path / "t.jsonl", HEADER, call("a"))
    with pytest.raises(ConfigError, match="lengths_from_hash_ids: agentic_mooncake states"):
        read_trace(path, lengths_from_hash_ids=True)


def test_bad_rows_of_a_recording_can_be_left_out(tmp_path: Path) -> None:
    lines = [HEADER, call("a"), call("b", output_length=0), call("c", input_length=-1)]
    trace = read_trace(saved(tmp_path / "t.jsonl", *lines), skip_bad_lines=True)
    assert (trace.request_ids, trace.skipped_lines) == (("a",), 2)
    lines = [chat(1, -1, 0.0), chat(2, 55, 1.0), chat(3, 2, 2.0)]  # 3 follows one left out
    trace = read_trace(saved(tmp_path / "b.jsonl", *lines), "bailian", skip_bad_lines=True)
    assert (trace.request_ids, trace.skipped_lines) == (("1",), 2)


# ---- writing ---------------------------------------------------------------------------------


def test_agents_are_written_as_agentic_mooncake_and_read_as_they_were(tmp_path: Path) -> None:
    spec = {"tasks": 3, "rate_rps": 1.0, "team_share": 1.0, "lead_turns": 20, "snapshot_tasks": 1}
    trace = write_agents(spec, 3)
    lost = write_trace(trace, tmp_path / "a.jsonl", "agentic_mooncake")
    again = read_trace(tmp_path / "a.jsonl")
    assert lost == ["classes"]
    assert trace.request_ids is not None
    assert sorted(again.request_ids or ()) == sorted(trace.request_ids)
    for name in trace.request_ids:
        assert waits(again, name) == waits(trace, name)
    rows = [trace.request_ids.index(name) for name in again.request_ids or ()]
    same = trace.take(np.array(rows))
    for column in ("input_tokens", "output_tokens", "hash_offsets"):
        assert getattr(again, column).tolist() == getattr(same, column).tolist()
    assert shared_prefixes(again)[1].sum() == shared_prefixes(same)[1].sum()
    starts = same.previous_turn == -1  # type: ignore[operator]
    np.testing.assert_allclose(again.arrival_ms[starts], same.arrival_ms[starts])


def test_a_trace_without_hash_ids_is_no_agentic_mooncake(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("arrived_at,num_prefill_tokens,num_decode_tokens\n0,9,9\n")
    with pytest.raises(ConfigError, match="agentic_mooncake rows need hash ids"):
        write_trace(read_trace(tmp_path / "a.csv"), tmp_path / "b.jsonl", "agentic_mooncake")
    with pytest.raises(ConfigError, match="cannot write trace format 'weka'"):
        write_trace(read_trace(tmp_path / "a.csv"), tmp_path / "b.jsonl", "weka")
