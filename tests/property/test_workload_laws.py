"""Laws of traces: files give back what was written, chunks do not matter, reuse is exact."""

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.errors import TraceError
from dynosim.records import Trace
from dynosim.workload.inspect import engine_cached_tokens, shared_prefixes
from dynosim.workload.lines import line_chunks
from dynosim.workload.readers import read_trace, read_trace_file
from dynosim.workload.writers import write_trace

BLOCK = 4
COLUMNS = ("arrival_ms", "input_tokens", "output_tokens", "hash_ids", "hash_offsets")
OPTIONAL = ("previous_turn", "delay_ms", "priority", "expected_output_tokens")
GRAPH = ("offsets", "rows", "delay_ms", "from_start")


def same(first: Trace, second: Trace) -> bool:
    for name in ("session_ids", "request_ids", "classes"):
        if getattr(first, name) != getattr(second, name):
            return False
    if any(not np.array_equal(getattr(first, n), getattr(second, n)) for n in COLUMNS):
        return False
    pairs = [(getattr(first, name), getattr(second, name)) for name in OPTIONAL]
    graphs = first.dependencies, second.dependencies
    pairs += [tuple(g and getattr(g, name) for g in graphs) for name in GRAPH]
    return all(a is b or (a is not None and np.array_equal(a, b)) for a, b in pairs)


OPTIONAL_FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "request_class": st.sampled_from(["lead", "sub_agent"]),
    "expected_output_tokens": st.integers(1, 500),
    "priority": st.integers(-2, 2),
}


def draw_waits(draw: st.DrawFn, named: list[str], item: dict[str, Any]) -> None:
    """A row waits for some earlier ones, in either spelling."""
    item.pop("delay", None)
    others = draw(st.lists(st.sampled_from(named), min_size=1, max_size=3, unique=True))
    triggers = st.sampled_from(["completion", "dispatch"])
    item["wait_for"] = [
        name
        if draw(st.booleans())
        else {"request_id": name, "delay_ms": draw(st.floats(0, 100)), "trigger": draw(triggers)}
        for name in others
    ]
    if draw(st.booleans()):
        item.pop("timestamp", None)


@st.composite
def rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Mooncake rows that are right: sessions, prefixes that branch, any optional field."""
    result: list[dict[str, Any]] = []
    seen: set[str] = set()
    now = draw(st.floats(-1e6, 1e6))
    for index in range(draw(st.integers(1, 12))):
        now += draw(st.floats(0, 1e5))
        ids = draw(st.lists(st.integers(0, 3), min_size=1, max_size=5))
        tokens = draw(st.integers((len(ids) - 1) * BLOCK + 1, len(ids) * BLOCK))
        item: dict[str, Any] = {"timestamp": now, "input_length": tokens, "hash_ids": ids}
        item["output_length"] = draw(st.integers(1, 1000))
        session = draw(st.sampled_from([None, "a", "b"]))
        if session is not None:
            item["session_id"] = session
            if session in seen:
                if draw(st.booleans()):
                    item["delay"] = draw(st.floats(0, 1e4))
                if draw(st.booleans()):
                    del item["timestamp"]
            seen.add(session)
        named = [row["request_id"] for row in result if "request_id" in row]
        if named and draw(st.integers(0, 3)) == 0:
            draw_waits(draw, named, item)
        for name, values in OPTIONAL_FIELDS.items():
            if draw(st.booleans()):
                item[name] = draw(values)
        if draw(st.booleans()):
            item["request_id"] = f"r{index}"
        result.append(item)
    return result


def read_text(text: str, **options: Any) -> Trace:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.jsonl"
        path.write_text(text)
        return read_trace_file(path, trace_block_size=BLOCK, **options).trace


def as_text(items: list[dict[str, Any]]) -> str:
    return "".join(f"{json.dumps(item)}\n" for item in items)


@given(rows(), st.sampled_from(["mooncake", "jsonl"]), st.sampled_from(["a.jsonl", "a.jsonl.gz"]))
@settings(max_examples=35, deadline=None)
def test_a_written_trace_reads_back_the_same(
    items: list[dict[str, Any]], form: str, name: str
) -> None:
    trace = read_text(as_text(items))
    with tempfile.TemporaryDirectory() as folder:
        write_trace(trace, Path(folder) / name, form)
        assert same(trace, read_trace(Path(folder) / name, form, BLOCK))


@given(rows(), st.integers(1, 300), st.data())
@settings(max_examples=50, deadline=None)
def test_chunk_boundaries_do_not_matter(
    items: list[dict[str, Any]], chunk_bytes: int, data: st.DataObject
) -> None:
    lines = [json.dumps(item) for item in items]
    for bad in data.draw(st.lists(st.sampled_from(["", "oops", "{}", lines[0]]), max_size=3)):
        lines.insert(data.draw(st.integers(0, len(lines))), bad)
    text = "\n".join(lines)
    outcomes = []
    for size in (chunk_bytes, 1 << 20):
        try:
            trace = read_text(text, chunk_bytes=size, skip_bad_lines=True)
            outcomes.append(trace)
        except TraceError as error:
            outcomes.append(str(error).partition("a.jsonl")[2])
    if isinstance(outcomes[0], str):
        assert outcomes[0] == outcomes[1]
    else:
        assert same(*outcomes)
        assert outcomes[0].skipped_lines == outcomes[1].skipped_lines


@given(st.binary(max_size=200), st.integers(1, 50))
@settings(max_examples=35, deadline=None)
def test_chunks_are_whole_lines_that_make_up_the_file(content: bytes, chunk_bytes: int) -> None:
    content = b"x" + content  # neither gzip nor a byte order mark
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a"
        path.write_bytes(content)
        chunks = list(line_chunks(path, chunk_bytes))
    assert b"".join(chunk.data for chunk in chunks) == content
    assert all(chunk.data.endswith(b"\n") for chunk in chunks[:-1])
    numbers = [number for chunk in chunks for number, _ in chunk.numbered_lines()]
    lines = content.split(b"\n")
    assert numbers == [at for at, line in enumerate(lines, 1) if line and not line.isspace()]


def tokens_of(trace: Trace, row: int) -> list[int]:
    ids = trace.hash_ids[slice(*trace.hash_offsets[row : row + 2])]
    return np.repeat(ids, BLOCK)[: trace.input_tokens[row]].tolist()


@given(rows(), st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_reuse_equals_comparing_all_prompts_token_by_token(
    items: list[dict[str, Any]], block_size: int
) -> None:
    trace = read_text(as_text(items))
    hits, shared = shared_prefixes(trace)
    prompts = [tokens_of(trace, row) for row in range(len(trace))]
    chains = [item["hash_ids"] for item in items]
    for row, prompt in enumerate(prompts):
        assert shared[row] == max([common(prompt, earlier) for earlier in prompts[:row]] + [0])
        assert hits[row] == max([common(chains[row], earlier) for earlier in chains[:row]] + [0])
        blocks = [prompt[:end] for end in range(block_size, len(prompt), block_size)]
        held = [any(earlier[: len(b)] == b for earlier in prompts[:row]) for b in blocks]
        cached = engine_cached_tokens(shared, trace.input_tokens, block_size)[row]
        assert cached == sum(held) * block_size


def common(first: list[int], second: list[int]) -> int:
    length = 0
    for a, b in zip(first, second, strict=False):
        if a != b:
            break
        length += 1
    return length


@given(rows(), st.randoms(use_true_random=False))
@settings(max_examples=35, deadline=None)
def test_sorting_gives_the_order_of_arrivals(items: list[dict[str, Any]], random: Any) -> None:
    plain = [item for item in items if not {"session_id", "wait_for"} & item.keys()]
    if not plain:
        return
    shuffled = random.sample(plain, len(plain))
    expected = sorted(shuffled, key=lambda item: item["timestamp"])
    trace = read_text(as_text(shuffled), sort=True)
    assert trace.input_tokens.tolist() == [item["input_length"] for item in expected]
    assert trace.output_tokens.tolist() == [item["output_length"] for item in expected]
    flat = [value for item in expected for value in item["hash_ids"]]
    assert trace.hash_ids.tolist() == flat


def test_a_seed_gives_the_same_trace_in_another_process(root: Path) -> None:
    import os
    import subprocess
    import sys

    code = (
        "import hashlib; from dynosim.workload.synthetic import synthesize; "
        "t = synthesize({'requests': 99, 'isl': {'dist': 'lognormal', 'mean': 900, 'std': 500}, "
        "'osl': 9, 'rate_rps': 3, 'shared_prefix_ratio': 0.5, 'prefix_groups': 4}, 5); "
        "print(hashlib.sha256(t.arrival_ms.tobytes() + t.hash_ids.tobytes()).hexdigest())"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", code],
            cwd=root,
            env=os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(root)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(digests) == 1


@pytest.mark.parametrize("sort", [False, True])
def test_skipping_a_first_turn_skips_turns_that_cannot_start(sort: bool) -> None:
    items = [
        {"timestamp": 0, "input_length": 4, "output_length": 0, "hash_ids": [1], "session_id": "a"},
        {"input_length": 4, "output_length": 1, "hash_ids": [1], "session_id": "a", "delay": 5},
        {"timestamp": 9, "input_length": 4, "output_length": 1, "hash_ids": [1], "session_id": "a"},
    ]
    trace = read_text(as_text(items), sort=sort, skip_bad_lines=True)
    assert (len(trace), trace.skipped_lines, trace.previous_turn) == (1, 2, None)
