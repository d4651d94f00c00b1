"""What a trace file says, read row by row in plain Python, is what the readers make of it."""

import gzip
import json
import random
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.records import NO_REQUEST, Trace
from dynosim.workload.readers import ReadTrace, read_trace_file
from dynosim.workload.writers import write_trace

BLOCK = 4
Item = dict[str, Any]

# Names of arrival, prompt, answer, delay and hash ids, each with what it may be called instead.
NAMES = {
    "mooncake": {
        "arrival": ("timestamp", "created_time"),
        "input": ("input_length", "input_tokens"),
        "output": ("output_length", "output_tokens"),
        "delay": ("delay", "delay_ms"),
        "ids": ("hash_ids",),
    },
    "jsonl": {
        "arrival": ("arrival_ms", "timestamp"),
        "input": ("input_tokens", "input_length"),
        "output": ("output_tokens", "output_length"),
        "delay": ("delay_ms", "delay"),
        "ids": ("prompt_hash_ids", "hash_ids"),
    },
}


@st.composite
def rows(draw: st.DrawFn, *, goes_back: bool) -> list[Item]:
    """Rows that are right, by what they mean; with `goes_back` sessions are interleaved in time."""
    big = draw(st.sampled_from([0, 0, 1 << 40, 1 << 63, -50]))
    now = {name: draw(st.integers(-1000, 1000)) / 4 for name in (None, "a", "b", "")}
    result: list[Item] = []
    seen: set[str] = set()
    for index in range(draw(st.integers(1, 10))):
        session = draw(st.sampled_from([None, "a", "b"]))
        clock = session if goes_back else ""
        now[clock] += draw(st.integers(0, 400)) / 4
        if goes_back and session is None:
            now[None] = draw(st.integers(-1000, 1000)) / 4
        ids = [value + big for value in draw(st.lists(st.integers(0, 3), min_size=1, max_size=5))]
        covered = draw(st.integers(1, len(ids)))  # ids behind the prompt stand for nothing
        tokens = draw(st.integers((covered - 1) * BLOCK + 1, covered * BLOCK))
        item: Item = {"arrival": now[clock], "input": tokens, "ids": ids}
        item["output"] = draw(st.integers(1, 1000))
        if draw(st.integers(0, 9)) == 0:
            del item["input"]  # as long as all its ids
        if session is not None:
            item["session"] = session
            if session in seen:
                if draw(st.booleans()):
                    item["delay"] = draw(st.integers(0, 100)) / 8
                if draw(st.booleans()):
                    del item["arrival"]
            seen.add(session)
        if draw(st.booleans()):
            item["priority"] = draw(st.integers(-2, 2))
        if draw(st.booleans()):
            item["request"] = f"r{index}"
        result.append(item)
    return result


def as_text(items: list[Item], form: str, rng: random.Random) -> str:
    """The rows as a file has them, fields under either of their names."""
    lines = []
    for item in items:
        row = {}
        for key, value in item.items():
            names = NAMES[form].get(key, (f"{key}_id" if key in ("session", "request") else key,))
            row[rng.choice(names)] = value
        lines.append(json.dumps(row))
    return "\n".join(lines)


def naive_read(items: list[Item], *, sort: bool, limit: int | None) -> tuple[list[Item], int]:
    """The rows with all that the file leaves unsaid, in order, and how many sorting moved.

    Adds `previous` and `wait`; arrivals begin with 0.
    """
    rows = [dict(item) for item in items[:limit]]
    last: dict[str, int] = {}
    latest = -np.inf
    for place, row in enumerate(rows):
        row["place"], row["line"] = place, place + 1
        row.setdefault("input", BLOCK * len(row["ids"]))
        row["ids"] = row["ids"][: -(-row["input"] // BLOCK)]
        stated = row.get("arrival")
        before = last.get(row.get("session", ""))
        row["previous"] = before
        row["wait"] = 0.0
        if before is not None:
            then = rows[before]["stated"]
            if "delay" in row:
                row["wait"] = row["delay"]
            elif stated is not None and then is not None:
                row["wait"] = stated - then
        row["stated"] = stated
        if stated is None:
            row["arrival"] = rows[before]["arrival"] if sort and before is not None else latest
        latest = max(latest, row["arrival"])
        if "session" in row:
            last[row["session"]] = place
    moved = 0
    if sort:
        most = -np.inf
        for row in rows:
            moved += row["arrival"] < most
            most = max(most, row["arrival"])
        rows.sort(key=lambda row: row["arrival"])  # equal ones stay in the order of the file
    start = rows[0]["arrival"]
    for row in rows:
        row["arrival"] -= start
    return rows, moved


def check(read: ReadTrace, rows: list[Item], moved: int, form: str) -> None:
    trace = read.trace
    assert (read.format, read.moved_rows) == (form, moved)
    assert trace.arrival_ms.tolist() == [row["arrival"] for row in rows]
    assert trace.input_tokens.tolist() == [row["input"] for row in rows]
    assert trace.output_tokens.tolist() == [row["output"] for row in rows]
    assert (
        trace.hash_offsets.tolist() == np.cumsum([0, *(len(row["ids"]) for row in rows)]).tolist()
    )
    check_ids(trace, [value for row in rows for value in row["ids"]])
    place_of = {row["place"]: index for index, row in enumerate(rows)}
    previous = [
        NO_REQUEST if row["previous"] is None else place_of[row["previous"]] for row in rows
    ]
    if all(value == NO_REQUEST for value in previous):
        assert trace.previous_turn is None and trace.delay_ms is None
    else:
        assert trace.previous_turn is not None and trace.delay_ms is not None
        assert trace.previous_turn.tolist() == previous
        assert trace.delay_ms.tolist() == [row["wait"] for row in rows]
    priorities = [row.get("priority", 0) for row in rows]
    assert (trace.priority is None) == (not any(priorities))
    if trace.priority is not None:
        assert trace.priority.tolist() == priorities
    names = tuple(row.get("session", "") for row in rows)
    assert trace.session_ids == (names if any(names) else None)
    requests = tuple(row.get("request", f"line-{row['line']}") for row in rows)
    assert trace.request_ids == (requests if any("request" in row for row in rows) else None)
    assert (trace.trace_block_size, trace.skipped_lines) == (BLOCK, 0)


def check_ids(trace: Trace, ids: list[int]) -> None:
    """Equal where the file's ids are, and neither negative nor sparse."""
    found = trace.hash_ids.tolist()
    assert len(set(zip(found, ids, strict=True))) == len(set(found)) == len(set(ids))
    assert min(found) >= 0 and max(found) < 2 * len(ids) + 1024


@given(st.booleans(), st.sampled_from(["mooncake", "jsonl"]), st.data())
@settings(max_examples=100, deadline=None)
def test_each_column_of_a_file_is_what_its_rows_say(
    sort: bool, form: str, data: st.DataObject
) -> None:
    items = data.draw(rows(goes_back=sort))
    limit = data.draw(st.sampled_from([None, 1, len(items), len(items) + 1]))
    text = as_text(items, form, random.Random(data.draw(st.integers(0, 99))))
    chunk_bytes = data.draw(st.sampled_from([50, 1 << 20]))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_bytes(gzip.compress(text.encode()) if limit == 1 else text.encode())
        read = read_trace_file(
            path,
            format=form,
            trace_block_size=BLOCK,
            limit=limit,
            sort=sort,
            lengths_from_hash_ids=True,
            chunk_bytes=chunk_bytes,
        )
    assert read.trace.assumed_lengths == sum("input" not in item for item in items[:limit])
    moved_note = f" (sorted, {read.moved_rows} rows moved)" if read.moved_rows else ""
    assert read.trace.source == f"{path}{moved_note}"
    wanted, moved = naive_read(items, sort=sort, limit=limit)
    check(read, wanted, moved, form)


@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 10**6), st.integers(1, 10**6)),
                min_size=1, max_size=8), st.booleans())  # fmt: skip
@settings(max_examples=40, deadline=None)
def test_each_column_of_an_azure_file_is_what_its_rows_say(
    numbers: list[tuple[int, int, int]], sort: bool
) -> None:
    lines = numbers if sort else sorted(numbers, key=lambda row: row[0])
    text = "num_decode_tokens,x,arrived_at,num_prefill_tokens\n"  # in any order, with others
    text += "".join(f"{output},?,{at / 8},{prompt}\n" for at, prompt, output in lines)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.csv"
        path.write_text(text)
        trace = read_trace_file(path, sort=sort).trace
        again = Path(folder) / "b.csv"
        assert write_trace(trace, again) == []
        back = read_trace_file(again).trace
    ordered = sorted(lines, key=lambda row: row[0])
    assert trace.arrival_ms.tolist() == [(at - ordered[0][0]) * 125.0 for at, _, _ in ordered]
    assert trace.input_tokens.tolist() == [prompt for _, prompt, _ in ordered]
    assert trace.output_tokens.tolist() == [output for _, _, output in ordered]
    for name in ("arrival_ms", "input_tokens", "output_tokens"):
        assert getattr(back, name).tolist() == getattr(trace, name).tolist()


def test_text_that_is_written_is_this_text(tmp_path: Path) -> None:
    trace = Trace(
        arrival_ms=np.array([0.0, 0.5, 2.0]),
        input_tokens=np.array([5, 4, 9]),
        output_tokens=np.array([1, 2, 3]),
        hash_ids=np.array([1, 2, 1, 1, 2, 3]),
        hash_offsets=np.array([0, 2, 3, 6]),
        trace_block_size=BLOCK,
        previous_turn=np.array([NO_REQUEST, NO_REQUEST, 0]),
        delay_ms=np.array([0.0, 0.0, 7.5]),
        priority=np.array([0, -1, 2]),
        session_ids=("a", "", "a"),
        request_ids=("x", "y", "z"),
    )
    path = tmp_path / "a"
    assert write_trace(trace, path, "mooncake") == []
    assert path.read_text().splitlines() == [
        '{"timestamp":0,"input_length":5,"output_length":1,"hash_ids":[1,2],"session_id":"a",'
        '"priority":0,"request_id":"x"}',
        '{"timestamp":0.5,"input_length":4,"output_length":2,"hash_ids":[1],"priority":-1,'
        '"request_id":"y"}',
        '{"timestamp":2,"input_length":9,"output_length":3,"hash_ids":[1,2,3],"session_id":"a",'
        '"delay":7.5,"priority":2,"request_id":"z"}',
    ]
    assert write_trace(trace, path, "jsonl") == []
    assert path.read_text().splitlines()[2] == (
        '{"arrival_ms":2,"input_tokens":9,"output_tokens":3,"prompt_hash_ids":[1,2,3],'
        '"session_id":"a","delay_ms":7.5,"priority":2,"request_id":"z"}'
    )
    lost = write_trace(trace, path, "azure")
    assert lost == ["hash_ids", "sessions", "priority", "request_ids"]
    assert path.read_text() == (
        "arrived_at,num_prefill_tokens,num_decode_tokens\n0.0,5,1\n0.0005,4,2\n0.002,9,3\n"
    )
