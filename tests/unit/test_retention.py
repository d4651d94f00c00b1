"""What requests say of their blocks: what it is worth, how long, and what becomes of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from clusters import equal_workers, run_twin

from dynosim.blocks.retention import (
    DEFAULT_PRIORITY,
    EPHEMERAL,
    FOR_GOOD,
    PINNED,
    PLAIN,
    Claim,
    RetentionClasses,
    Worth,
    block_claims,
    claims_of,
    moved,
)
from dynosim.build import workload as build_workload
from dynosim.cluster.assembly import extents_for
from dynosim.cluster.pins import check_pins_together
from dynosim.config.loading import load_run
from dynosim.engine.block_pool import Extent
from dynosim.engine.retaining_pool import RetainingPool
from dynosim.engine.spec import EngineSpec
from dynosim.errors import ConfigError, InfeasibleError, TraceError
from dynosim.records import NO_REQUEST, Retention, RetentionRange, RunResult, Trace
from dynosim.timing.formulas import LinearModel
from dynosim.workload.readers import read_trace
from dynosim.workload.scaling import tiled
from dynosim.workload.template import with_template
from dynosim.workload.writers import lost_parts, write_trace


def worth(*claims: Claim, at_ms: float = 0.0) -> Worth:
    one = Worth()
    for claim in claims:
        one.add((claim,), at_ms)
    return one


# ---- claims --------------------------------------------------------------------------------------


def test_the_highest_claim_counts_and_falls_back_to_the_next_when_its_time_is_over() -> None:
    one = worth(Claim(80, 100.0), Claim(100, 10.0), Claim(1, FOR_GOOD), Claim(PINNED, 5.0))
    seen = [(one.level(now_ms), one.until_ms) for now_ms in (0.0, 5.0, 10.0, 100.0)]
    assert seen == [(PINNED, 5.0), (100, 10.0), (80, 100.0), (DEFAULT_PRIORITY, FOR_GOOD)]


def test_a_low_claim_rises_to_the_default_when_its_time_is_over() -> None:
    one = worth(Claim(1, 50.0), Claim(0, 20.0))
    assert [one.level(now_ms) for now_ms in (0.0, 19.0, 20.0, 60.0)] == [1, 1, 35, 35]


def test_whoever_says_nothing_lifts_a_block_to_the_default() -> None:
    one = worth(Claim(1, FOR_GOOD), Claim(EPHEMERAL, FOR_GOOD))
    assert one.level(0.0) == 1
    one.add(PLAIN, 3.0)
    assert (one.level(3.0), one.until_ms) == (DEFAULT_PRIORITY, FOR_GOOD)


def test_a_duration_runs_from_the_release_and_again_from_the_next_one() -> None:
    one = worth(Claim(100, 10.0))
    one.add((Claim(100, 10.0),), 8.0)
    assert [one.level(now_ms) for now_ms in (8.0, 17.9, 18.0)] == [100, 100, 35]


def test_a_block_takes_the_range_that_holds_its_first_token() -> None:
    said = Retention((RetentionRange(0, 20, 100), RetentionRange(40, None, 1, 5.0)), 9.0)
    claims = block_claims(said, [1, 1, 1, 1], 16, 60)
    assert [one[0].level for one in claims.path] == [100, 100, 35, 1]
    assert [len(one) for one in claims.path] == [2, 2, 2, 1]  # the last block is not full
    assert claims.own == (Claim(1, 5.0),)


def test_ephemeral_is_what_no_range_speaks_of() -> None:
    said = Retention((RetentionRange(0, 16, 100),), is_ephemeral=True)
    levels = [claims_of(said, token, is_pinned=False)[0].level for token in (0, 16, 99)]
    assert levels == [100, EPHEMERAL, EPHEMERAL]
    assert block_claims(said, [2], 16, 32, session=4, ends_session=True).session == 4


def test_what_a_template_puts_in_front_is_of_the_first_range() -> None:
    said = Retention((RetentionRange(0, 20, 100), RetentionRange(20, None, 1)))
    assert moved(said, 7).ranges == (RetentionRange(0, 27, 100), RetentionRange(27, None, 1))
    assert moved(Retention((RetentionRange(5, 9, 3),)), 7).ranges == (RetentionRange(12, 16, 3),)


def test_classes_put_the_system_first_and_the_answer_last() -> None:
    ranges = RetentionClasses().ranges(32, 100, duration_ms=45_000.0)
    assert [(span.start, span.end, span.priority) for span in ranges] == [
        (0, 32, 100),
        (32, 100, 80),
        (100, None, 1),
    ]
    assert [span.duration_ms for span in ranges] == [None, 45_000.0, None]
    alone = RetentionClasses().ranges(0, 100, is_subagent=True)
    assert [(span.start, span.priority) for span in alone] == [(0, 1), (100, 1)]


def test_a_pin_of_a_session_ends_with_it_or_when_its_time_is_over() -> None:
    pins = [Claim(1, FOR_GOOD), Claim(PINNED, 50.0, 7), Claim(PINNED, 30.0, 8)]
    one = worth(*pins)
    assert (one.level(0.0), one.until_ms) == (PINNED, 50.0)
    assert one.end_session(7) and not one.end_session(7)
    assert (one.level(0.0), one.until_ms) == (PINNED, 30.0)
    assert one.end_session(8)
    assert (one.level(0.0), one.until_ms) == (1, FOR_GOOD)  # as if it had never been
    late = worth(*pins)
    assert late.level(50.0) == DEFAULT_PRIORITY


def test_what_is_claimed_elsewhere_adds_up() -> None:
    one, other = worth(Claim(1, 90.0), Claim(80, 40.0)), worth(Claim(100, 20.0), Claim(0, 60.0))
    other.add((Claim(PINNED, 10.0, 3),), 0.0)
    one.merge(other)
    seen = [one.level(now_ms) for now_ms in (0.0, 10.0, 20.0, 40.0, 60.0)]
    assert seen == [PINNED, 100, 80, 35, 35]
    assert worth(Claim(PINNED, 10.0, 3)).sessions == [3]


# ---- the pool ------------------------------------------------------------------------------------


class Blocks:
    """A pool of extents of one size, each used once and let go."""

    def __init__(self, num_blocks: int, num_extents: int, size: int = 2) -> None:
        self.size = size
        self.pool = RetainingPool(num_blocks, [size] * num_extents, publish_events=True)

    def hold(self, content: int) -> Extent:
        self.pool.allocate(self.size)
        extent = self.pool.open_extent(content)
        extent.num_cached = self.size
        return extent

    def use(self, content: int, said: Retention | None = None, session: int = -1) -> None:
        extent = self.hold(content)
        claims = said and block_claims(said, [self.size], 16, 16 * self.size, session=session)
        self.pool.claim([extent], None, claims)
        self.pool.release([extent])

    def evicted(self, num_blocks: int) -> list[int]:
        before = set(self.pool.resident_blocks)
        self.pool.allocate(num_blocks)
        return sorted(before - set(self.pool.resident_blocks))


def priority(level: int, duration_ms: float | None = None) -> Retention:
    return Retention((RetentionRange(0, None, level, duration_ms),))


def test_low_priorities_go_before_plain_blocks_and_high_ones_after_pins_last() -> None:
    blocks = Blocks(12, 6)
    for content, said in enumerate(
        [priority(100), None, Retention(pin_ttl_ms=50.0), priority(1), Retention(is_ephemeral=True),
         priority(36)]
    ):  # fmt: skip
        blocks.use(content, said)
    assert [blocks.evicted(2) for _ in range(6)] == [[4], [3], [1], [5], [0], [2]]
    assert blocks.pool.broken_blocks == 2
    assert (blocks.pool.pinned_blocks, blocks.pool.peak_pinned_blocks) == (0, 2)


def test_a_lapsed_priority_is_plain_from_then_on_behind_those_that_are() -> None:
    blocks = Blocks(6, 3)
    blocks.use(0, priority(100, 10.0))
    blocks.use(1)
    blocks.pool.at(10.0)
    blocks.use(2)
    assert [blocks.evicted(2) for _ in range(3)] == [[1], [0], [2]]


def test_a_session_that_ends_leaves_its_ephemeral_blocks_blank() -> None:
    blocks = Blocks(8, 3)
    blocks.use(0, Retention(is_ephemeral=True), session=7)
    blocks.use(1, Retention(is_ephemeral=True), session=8)
    both = blocks.hold(2)
    for claims in (None, block_claims(Retention(is_ephemeral=True), [2], 16, 32, session=7)):
        blocks.pool.claim([both], None, claims)
    blocks.pool.release([both])
    blocks.pool.end_session(7)
    assert set(blocks.pool.resident_blocks) == {1, 2}
    assert (blocks.pool.blank_blocks, blocks.pool.idle_blocks) == (4, 4)
    assert [event.content for event in blocks.pool.take_events()] == [0]


def test_blocks_used_again_and_again_do_not_make_the_heap_grow() -> None:
    blocks = Blocks(8, 2)
    blocks.use(0, priority(100, 5.0))
    extents, _, _ = blocks.pool.lookup([0], 8)
    for _ in range(1000):
        blocks.pool.reference(extents)
        blocks.pool.claim(extents, None, block_claims(priority(100, 5.0), [2], 16, 32))
        blocks.pool.release(extents)
    assert len(blocks.pool._heap) < 200 and len(blocks.pool._lapses) < 200
    assert blocks.evicted(8) == [0]


# ---- the twin ------------------------------------------------------------------------------------

TIMES = LinearModel(
    base_ms=10.0, per_prefill_token_ms=0.1, per_decode_ms=0.0, per_context_token_ms=0.0
)


def prompts(*ids: list[int], every_ms: float = 1000.0, **columns: Any) -> Trace:
    """Prompts of whole blocks of 64 tokens and one token more, that answer with two tokens."""
    return Trace(
        arrival_ms=every_ms * np.arange(len(ids)),
        input_tokens=np.array([64 * len(one) + 1 for one in ids], np.int64),
        output_tokens=np.full(len(ids), 2, np.int64),
        hash_ids=np.array([x for i, one in enumerate(ids) for x in (*one, 10_000 + i)], np.int64),
        hash_offsets=np.concatenate([[0], np.cumsum([len(one) + 1 for one in ids])]),
        trace_block_size=64,
        **columns,
    )


def run(trace: Trace, *, blocks: int, **options: Any) -> RunResult:
    """On one worker with blocks of 64 tokens."""
    spec = EngineSpec(num_gpu_blocks=blocks + 1, max_model_len=64 * blocks, block_size=64)
    return run_twin(trace, engine=replace(spec, **options), timing=TIMES)


def hits(result: RunResult) -> list[int]:
    return (result.requests.cached_tokens // 64).tolist()


A, B, C = [1, 2, 3], [11, 12, 13], [21, 22, 23]


@pytest.mark.parametrize(
    ("said", "hit"),
    [
        (None, 0),
        (Retention(pin_ttl_ms=60_000.0), 3),
        (Retention(pin_ttl_ms=500.0), 0),  # over before the second prompt comes
        (Retention(pin_ttl_ms=1_500.0), 3),  # over later than that: as if used again then
        (Retention((RetentionRange(0, None, 80),)), 3),
        (Retention((RetentionRange(0, None, 80, 500.0),)), 0),
        (Retention((RetentionRange(0, 64, 80),)), 1),
    ],
)
def test_what_a_request_says_decides_what_its_next_turn_finds(
    said: Retention | None, hit: int
) -> None:
    trace = prompts(A, B, C, A, retention=(said, None, None, None))
    assert hits(run(trace, blocks=7))[3] == hit


def test_a_pin_gives_way_to_a_request_that_needs_all_blocks() -> None:
    trace = prompts(A, [31, 32, 33, 34, 35], retention=(Retention(pin_ttl_ms=60_000.0), None))
    result = run(trace, blocks=6)
    assert result.requests.finish_ms[1] > 0
    assert result.retention is not None
    assert (result.retention.peak_pinned_blocks, result.retention.broken_blocks) == (3, 3)


def test_the_last_turn_of_an_ephemeral_session_leaves_nothing() -> None:
    said = Retention(is_ephemeral=True)
    columns = {
        "previous_turn": np.array([NO_REQUEST, 0, NO_REQUEST]),
        "session_ids": ("s", "s", ""),
    }
    kept = prompts(A, A, A, retention=(said, said, None), **columns)
    assert hits(run(kept, blocks=20)) == [0, 3, 0]
    assert hits(run(replace(kept, retention=(said, None, None)), blocks=20)) == [0, 3, 3]


@pytest.mark.parametrize(("ends_with_session", "hit"), [(False, 3), (True, 0)])
@pytest.mark.parametrize("last_says", [False, True])
def test_a_pin_that_ends_with_its_session_leaves_room_when_that_is_over(
    ends_with_session: bool, hit: int, last_says: bool
) -> None:
    """Two turns, then as much as evicts what is not pinned, then the same prompt again."""
    said = Retention(pin_ttl_ms=60_000.0, pin_ends_with_session=ends_with_session)
    trace = prompts(
        A, A, C, B, A,
        previous_turn=np.array([NO_REQUEST, 0, *[NO_REQUEST] * 3]),
        session_ids=("s", "s", "", "", ""),
        retention=(said, said if last_says else None, None, None, None),
    )  # fmt: skip
    assert hits(run(trace, blocks=7)) == [0, 3, 0, 0, hit]


def test_pins_beyond_the_caches_are_refused_before_the_run() -> None:
    pin = Retention(pin_ttl_ms=5_000.0)
    large = prompts(A, [*B, *C], retention=(None, pin))
    with pytest.raises(
        InfeasibleError, match="request 1 pins 6 blocks, but a worker's cache has 5"
    ):
        run(large, blocks=5)

    def check(trace: Trace, blocks: int, num_workers: int = 1) -> None:
        spec = EngineSpec(num_gpu_blocks=blocks + 1, max_model_len=64 * 4, block_size=64)
        cluster = equal_workers(spec, TIMES, num_workers=num_workers)
        check_pins_together(trace, extents_for(trace, cluster), cluster)

    apart = prompts(A, B, C, retention=(pin,) * 3)
    with pytest.raises(InfeasibleError, match=r"request 2 pins.*9 would be at once, at 2\.0 s"):
        check(apart, 8)
    check(apart, 9)
    check(apart, 5, num_workers=2)
    check(prompts(A, B, A, retention=(pin,) * 3), 8)  # the same blocks twice
    check(prompts(A, B, C, every_ms=2_500.0, retention=(pin,) * 3), 8)  # one has run out
    later = np.array([NO_REQUEST, 0, 1])
    check(replace(apart, previous_turn=later, session_ids=("s",) * 3), 8)  # who knows when


# ---- reuse in coarser steps than blocks ----------------------------------------------------------


@pytest.mark.parametrize(("tokens", "hit"), [(None, 5), (64, 5), (128, 4), (192, 3), (640, 0)])
def test_prefixes_are_reused_in_multiples_of_the_granularity(tokens: int | None, hit: int) -> None:
    trace = prompts([1, 2, 3, 4, 5], [1, 2, 3, 4, 5, 6])
    assert hits(run(trace, blocks=20, reuse_granularity_tokens=tokens)) == [0, hit]


def thinking_turns_ttft_ms(granularity: int, *, is_changed: bool) -> float:
    """Of a turn behind 52K tokens of system prompt and 500 of thinking, on published times.

    The turn before had both in its prompt; with `is_changed` the thinking is in other words now.
    """
    system, thinking = list(range(3250)), list(range(4000, 4031))
    again = [one + 1000 for one in thinking] if is_changed else thinking
    ids = [system + thinking, system + again + [9000]]
    trace = Trace(
        arrival_ms=np.array([0.0, 5000.0]),
        input_tokens=np.array([16 * len(one) for one in ids], np.int64),
        output_tokens=np.ones(2, np.int64),
        hash_ids=np.array(ids[0] + ids[1], np.int64),
        hash_offsets=np.array([0, len(ids[0]), len(ids[0]) + len(ids[1])]),
        trace_block_size=16,
    )
    spec = EngineSpec(
        num_gpu_blocks=10_000,
        max_model_len=60_000,
        max_num_batched_tokens=60_000,
        reuse_granularity_tokens=granularity,
    )
    times = LinearModel(
        base_ms=167.0,
        per_prefill_token_ms=744 / 52_000,
        per_decode_ms=0.0,
        per_context_token_ms=0.0,
    )
    log = run_twin(trace, engine=spec, timing=times).requests
    return float(log.first_token_ms[1] - log.arrival_ms[1])


@pytest.mark.parametrize("granularity", [10_416, 10_432, 10_448, 10_480])
def test_changed_thinking_costs_what_was_published_where_states_are_10k_tokens_apart(
    granularity: int,
) -> None:
    """Dynamo on Nemotron: 167 ms for an unchanged turn, 322 ms for one with changed thinking."""
    assert thinking_turns_ttft_ms(granularity, is_changed=False) == pytest.approx(167, rel=0.05)
    assert thinking_turns_ttft_ms(granularity, is_changed=True) == pytest.approx(322, rel=0.02)


@pytest.mark.parametrize("granularity", [16, 64])
def test_changed_thinking_is_cheap_where_every_block_can_be_reused(granularity: int) -> None:
    """So paging alone does not explain what was published."""
    assert thinking_turns_ttft_ms(granularity, is_changed=True) < 180


# ---- traces and keys -----------------------------------------------------------------------------


def written(folder: Path, *more: dict[str, Any]) -> Path:
    path = folder / "t.jsonl"
    rows = [
        {"timestamp": 10 * i, "input_length": 5, "output_length": 2, "hash_ids": [i]} | row
        for i, row in enumerate(more)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


SAID = (
    {"retention": [{"start": 0, "end": 3, "priority": 100}, {"start": 3, "priority": 1,
                                                             "duration_ms": 45.5}]},
    {"pin_ttl_ms": 3_600_000, "ephemeral": True, "pin_ends_with_session": True},
)  # fmt: skip


@pytest.mark.parametrize("form", ["mooncake", "jsonl"])
def test_rows_of_a_trace_say_what_their_blocks_are_worth(tmp_path: Path, form: str) -> None:
    trace = read_trace(written(tmp_path, {}, *SAID, {"ephemeral": False, "retention": []}), form)
    assert trace.retention == (
        None,
        Retention((RetentionRange(0, 3, 100), RetentionRange(3, None, 1, 45.5))),
        Retention((), 3_600_000.0, is_ephemeral=True, pin_ends_with_session=True),
        None,
    )
    write_trace(trace, tmp_path / "again.jsonl", form)
    assert read_trace(tmp_path / "again.jsonl", form).retention == trace.retention
    assert lost_parts(trace, "azure") == ["hash_ids", "retention"]
    assert lost_parts(trace, "agentic_mooncake") == ["retention"]
    assert read_trace(written(tmp_path, {}), form).retention is None


@pytest.mark.parametrize("form", ["mooncake", "jsonl"])
def test_a_row_says_what_its_blocks_are_worth_beside_what_it_waits_for(
    tmp_path: Path, form: str
) -> None:
    first = {"request_id": "a", "request_class": "lead", **SAID[0]}
    second = {"request_id": "b", "wait_for": ["a"], "worker_id": 1, **SAID[1]}
    trace = read_trace(written(tmp_path, first, second), form)
    assert trace.dependencies is not None and trace.retention is not None
    write_trace(trace, tmp_path / "again.jsonl", form)
    again = read_trace(tmp_path / "again.jsonl", form)
    assert again.dependencies is not None
    assert again.dependencies.rows.tolist() == trace.dependencies.rows.tolist() == [0]
    assert (again.classes, again.wishes) == (trace.classes, trace.wishes)
    assert again.retention == trace.retention and None not in trace.retention


def test_what_rows_say_stays_with_them() -> None:
    one, two = Retention(pin_ttl_ms=1.0), Retention(is_ephemeral=True)
    trace = prompts(A, B, C, retention=(one, None, two))
    assert trace.take(np.array([2, 0])).retention == (two, one)
    assert tiled(trace, 2).retention == (one, None, two, one, None, two)
    assert with_template(trace, 9).retention == trace.retention


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"retention": [{"start": 0, "priority": 101}]},
         r"retention\[0\].priority: expected 0 to 100, got 101"),
        ({"retention": [{"start": 0, "end": 4, "priority": 1}, {"start": 3, "priority": 1}]},
         r"retention\[1\].start: expected a token from 4 on, got 3: ranges come in order"),
        ({"retention": [{"start": 2, "end": 2, "priority": 1}]},
         r"retention\[0\].end: expected more than start 2, got 2"),
        ({"retention": [{"start": 0, "priority": 1, "duration_ms": 0}]},
         r"retention\[0\].duration_ms: expected a number of ms > 0, got 0"),
        ({"retention": [{"start": 0}]}, "priority"),
        ({"retention": 5}, "expected a list of ranges, got 5"),
        ({"pin_ttl_ms": -1}, "pin_ttl_ms: expected a number of ms > 0, got -1"),
        ({"ephemeral": 1}, "ephemeral: expected true or false, got 1"),
        ({"pin_ends_with_session": True}, "pin_ends_with_session: nothing is pinned: add pin_ttl"),
        ({"pin_ends_with_session": "s"}, "pin_ends_with_session: expected true or false, got"),
    ],
)  # fmt: skip
def test_a_row_that_says_nonsense_is_refused(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(TraceError, match=message):
        read_trace(written(tmp_path, {}, row), "mooncake")


def configured(folder: Path, workload: str) -> Trace:
    file = folder / "run.yaml"
    file.write_text(
        f"engine: {{num_gpu_blocks: 100}}\ntiming: {{kind: polynomial}}\nworkload: {workload}\n"
    )
    return build_workload.load_trace(load_run(file))


def test_a_generated_load_says_it_by_the_parts_of_its_prompts(tmp_path: Path) -> None:
    synthetic = "{requests: 6, rate_rps: 1, isl: 300, turn_isl: 50, turns: 3, osl: 10,"
    synthetic += " shared_prefix_tokens: 128, block_size: 64}"
    retention = "{history_priority: 70, history_duration_ms: 500.0, pin_ttl_ms: 20.0,"
    retention += " pin_ends_with_session: true}"
    trace = configured(
        tmp_path, f"{{synthetic: {synthetic}, template_tokens: 7, retention: {retention}}}"
    )
    assert trace.retention is not None
    for said, tokens in zip(trace.retention, trace.input_tokens.tolist(), strict=True):
        assert said == Retention(
            (RetentionRange(0, 135, 100), RetentionRange(135, tokens, 70, 500.0),
             RetentionRange(tokens, None, 1)),
            20.0,
            pin_ends_with_session=True,
        )  # fmt: skip


AGENTS = "agents: {tasks: 3, rate_rps: 1, system_tokens: 64, unstable_preamble_tokens: 20,"
AGENTS += " sub_agent_share: 1, team_share: 1, snapshot_tasks: 2, warm_up: true}"


def test_agents_say_it_by_who_calls(tmp_path: Path) -> None:
    """A lead's history is worth more than that of those it starts, in calls that warm up, too."""
    retention = "{history_duration_ms: 9000, pin_ttl_ms: 50, sub_agent_priority: 7,"
    retention += " sub_agent_duration_ms: 800, sub_agent_pin_ttl_ms: 3}"
    trace = configured(tmp_path, f"{{{AGENTS}, template_tokens: 6, retention: {retention}}}")
    assert trace.retention is not None and trace.classes is not None
    assert set(trace.classes) == {"lead", "sub_agent", "teammate", "primer"}
    for kind, said, tokens in zip(
        trace.classes, trace.retention, trace.input_tokens.tolist(), strict=True
    ):
        system = RetentionRange(0, 90, 100)
        lead = (system, RetentionRange(90, tokens, 80, 9000.0), RetentionRange(tokens, None, 1))
        other = (system, RetentionRange(90, tokens, 7, 800.0), RetentionRange(tokens, None, 7))
        known = {"lead": [Retention(lead, 50.0)], "primer": [Retention(lead, 50.0),
                 Retention(other, 3.0)]}  # fmt: skip
        assert said in known.get(kind, [Retention(other, 3.0)])
    plain = configured(tmp_path, f"{{{AGENTS}, template_tokens: 6}}")
    assert plain.retention is None
    np.testing.assert_array_equal(plain.hash_ids, trace.hash_ids)


def test_a_pin_that_ends_with_its_session_is_a_pin(tmp_path: Path) -> None:
    message = r"pin_ends_with_session: nothing is pinned \(add pin_ttl_ms\)"
    with pytest.raises(ConfigError, match=message):
        configured(tmp_path, f"{{{AGENTS}, retention: {{pin_ends_with_session: true}}}}")


def test_only_agents_have_sub_agents(tmp_path: Path) -> None:
    pool = "pool: {system_prompts: 2, system_tokens: 9, question_tokens: 3, output_tokens: 5,"
    pool += " requests: 3}, concurrency: 1"
    message = r"workload.retention.sub_agent_priority: only agents have sub-agents \(remove it"
    with pytest.raises(ConfigError, match=message):
        configured(tmp_path, f"{{{pool}, retention: {{sub_agent_priority: 3}}}}")


def test_a_pool_says_it_of_its_system_prompts(tmp_path: Path) -> None:
    pool = "{system_prompts: 2, system_tokens: 100, question_tokens: 30, output_tokens: 5,"
    pool += " requests: 3}"
    trace = configured(tmp_path, f"{{pool: {pool}, concurrency: 1, retention: {{}}}}")
    said = Retention(RetentionClasses().ranges(100, 130))
    assert trace.retention == (said, said, said)
