"""Graphs of requests: who comes when, against a plain account of what everybody waits for."""

import random
from dataclasses import replace
from typing import Any

import numpy as np
from clusters import run_twin
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.engine.spec import EngineSpec
from dynosim.records import NO_REQUEST, Dependencies, RequestStatus, Trace
from dynosim.timing.formulas import LinearModel
from dynosim.workload.load import NEVER, LoadDriver
from dynosim.workload.scaling import tiled
from dynosim.workload.trees import tree_numbers

SEEDS = st.integers(0, 2**32 - 1)
Edge = tuple[int, float, bool]


def random_graph(rng: random.Random, size: int | None = None) -> tuple[Trace, list[list[Edge]]]:
    """Requests that wait for some earlier ones; also all they wait for, previous turns included."""
    size = size or rng.randint(1, 14)
    edges: list[list[Edge]] = []
    previous, delay_ms = np.full(size, NO_REQUEST), np.zeros(size)
    told: list[list[Edge]] = []  # what the trace's dependencies say
    for row in range(size):
        others = rng.sample(range(row), min(row, rng.choice([0, 0, 1, 1, 2, 3])))
        mine = [(one, rng.choice([0.0, 3.0, 40.5]), rng.random() < 0.3) for one in others]
        edges.append(mine)
        is_plain = len(mine) == 1 and not mine[0][2]
        told.append([] if is_plain else mine)
        if mine:
            previous[row] = mine[0][0]
            delay_ms[row] = mine[0][1] if is_plain else 777.0  # means nothing there
    arrival_ms = np.cumsum([rng.choice([0.0, 1.0, 25.0]) for _ in range(size)])
    flat = [edge for row in told for edge in row]
    trace = Trace(
        arrival_ms=arrival_ms - arrival_ms[0],
        input_tokens=np.array([rng.randint(1, 60) for _ in range(size)]),
        output_tokens=np.array([rng.randint(1, 9) for _ in range(size)]),
        hash_ids=np.zeros(0, np.int64),
        hash_offsets=np.zeros(size + 1, np.int64),
        trace_block_size=16,
        previous_turn=previous,
        delay_ms=delay_ms,
        dependencies=Dependencies(
            offsets=np.cumsum([0, *map(len, told)]),
            rows=np.array([edge[0] for edge in flat], np.int64),
            delay_ms=np.array([edge[1] for edge in flat], np.float64),
            from_start=np.array([edge[2] for edge in flat], np.bool_),
        ),
    )
    return trace, edges


def due_ms(edges: list[Edge], starts: Any, ends: Any) -> float:
    return max((starts if start else ends)[other] + delay for other, delay, start in edges)


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_in_a_run_everybody_comes_when_the_last_of_what_it_waits_for_is_over(seed: int) -> None:
    rng = random.Random(seed)
    trace, edges = random_graph(rng)
    times = LinearModel(
        base_ms=4.0, per_prefill_token_ms=0.03, per_decode_ms=0.2, per_context_token_ms=0.001
    )
    engine = EngineSpec(num_gpu_blocks=999, max_model_len=999, max_num_seqs=rng.choice([1, 9]))
    log = run_twin(trace, engine=engine, timing=times, num_workers=rng.choice([1, 2])).requests
    assert (log.status == RequestStatus.COMPLETED).all()
    for row, mine in enumerate(edges):
        expected = due_ms(mine, log.arrival_ms, log.finish_ms) if mine else trace.arrival_ms[row]
        np.testing.assert_allclose(log.arrival_ms[row], expected, rtol=0, atol=1e-8)


@given(SEEDS, st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_in_a_closed_loop_so_many_trees_are_under_way_until_none_waits(
    seed: int, concurrency: int
) -> None:
    rng = random.Random(seed)
    trace, edges = random_graph(rng)
    trees = tree_numbers(trace).tolist()
    driver = LoadDriver(trace, concurrency)
    starts, ends = dict[int, float](), dict[int, float]()
    running: list[tuple[float, int]] = []
    left = {tree: trees.count(tree) for tree in set(trees)}
    under_way: set[int] = set()
    while driver.next_ms < NEVER or running:
        running.sort()
        if running and running[0][0] < driver.next_ms:
            now_ms, row = running.pop(0)
            ends[row] = now_ms
            left[trees[row]] -= 1
            under_way -= {trees[row]} if not left[trees[row]] else set()
            driver.on_end(row, now_ms)
            continue
        now_ms = driver.next_ms
        row = driver.pop()
        assert row not in starts
        starts[row] = now_ms
        under_way.add(trees[row])
        assert len(under_way) <= concurrency
        running.append((now_ms + rng.choice([1.0, 5.0, 60.0]), row))
    assert len(ends) == len(trace)
    for row, mine in enumerate(edges):
        if mine:
            assert starts[row] == due_ms(mine, starts, ends)
    firsts = [trees.index(tree) for tree in range(max(trees) + 1)]
    assert sorted(starts[row] for row in firsts)[:concurrency] == [0.0] * min(
        concurrency, len(firsts)
    )


@given(SEEDS)
@settings(max_examples=60, deadline=None)
def test_what_waits_for_a_request_that_was_given_up_is_never_sent_and_all_else_is(
    seed: int,
) -> None:
    rng = random.Random(seed)
    trace, edges = random_graph(rng)
    driver = LoadDriver(trace)
    given_up, unsent, sent = set[int](), set[int](), set[int]()
    running: list[int] = []
    now_ms = 0.0
    while driver.next_ms < NEVER or running:
        if running and (driver.next_ms == NEVER or rng.random() < 0.5):
            row = running.pop(rng.randrange(len(running)))
            if rng.random() < 0.3:
                given_up.add(row)
                more = driver.on_give_up(row, now_ms)
                assert more == sorted(more) and not unsent & set(more)
                unsent |= set(more)
            else:
                driver.on_end(row, now_ms)
            continue
        now_ms = max(now_ms, driver.next_ms)
        row = driver.pop()
        sent.add(row)
        running.append(row)
    assert sent | unsent == set(range(len(trace))) and not sent & unsent
    for row, mine in enumerate(edges):
        lost = [
            other in unsent or (other in given_up and not from_start)
            for other, _, from_start in mine
        ]
        assert (row in unsent) == any(lost)


@given(SEEDS, st.integers(2, 3))
@settings(max_examples=30, deadline=None)
def test_tiles_of_a_graph_are_the_graph_so_many_times(seed: int, num_tiles: int) -> None:
    trace, _ = random_graph(random.Random(seed))
    names = tuple(f"r{row}" for row in range(len(trace)))
    trace = replace(trace, request_ids=names, classes=names)
    tiles = tiled(trace, num_tiles)
    assert len(set(tree_numbers(tiles))) == num_tiles * len(set(tree_numbers(trace)))
    for tile in range(num_tiles):
        rows = np.arange(len(trace)) + tile * len(trace)
        part = tiles.take(rows)
        assert trace.dependencies is not None
        if not len(trace.dependencies.rows):
            continue
        assert part.dependencies is not None
        for name in ("offsets", "rows", "delay_ms", "from_start"):
            ours, theirs = getattr(part.dependencies, name), getattr(trace.dependencies, name)
            np.testing.assert_array_equal(ours, theirs)
        np.testing.assert_array_equal(part.previous_turn, trace.previous_turn)
        assert part.classes == trace.classes
