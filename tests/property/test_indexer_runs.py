"""Runs of blocks, of which a compressed tree is made, against lists of blocks."""

import random
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.indexer.runs import Run, num_equal

SEEDS = st.integers(0, 2**32 - 1)


def held_of(run: Run) -> dict[int, set[int]]:
    """worker -> positions that it holds."""
    return {
        worker: {i for i in range(len(run.blocks)) if run.held_by(worker) >> i & 1}
        for worker in range(4)
    }


@settings(max_examples=80, deadline=None)
@given(SEEDS)
def test_a_run_knows_who_holds_which_of_its_blocks(seed: int) -> None:
    draw = random.Random(seed)
    root = Run(0, None, [], [])
    blocks = [draw.randrange(9) for _ in range(draw.randint(2, 9))]
    run = Run(1, root, list(blocks), list(range(100, 100 + len(blocks))))
    root.children[blocks[0]] = run
    wanted: dict[int, set[int]] = {}
    for worker in range(4):
        for _ in range(2):  # what was noted before is forgotten
            held = draw.choice([0, (1 << len(blocks)) - 1, draw.randrange(1 << len(blocks))])
            run.set_held(worker, held)
        wanted[worker] = {i for i in range(len(blocks)) if held >> i & 1}
    assert held_of(run) == wanted
    assert run.is_bare == (not any(wanted.values())) and not root.is_bare
    matched, depth = draw.randint(1, len(blocks)), draw.choice([0, 5])
    check_part_ways(run, wanted, matched, depth)
    at = draw.randint(1, len(blocks) - 1)
    grandchild = Run(7, run, [3], [300])
    run.children[3] = grandchild
    tail = run.split(at, 2)
    assert (run.blocks, tail.blocks) == (blocks[:at], blocks[at:])
    assert (run.places[0], tail.places[0], tail.number) == (100, 100 + at, 2)
    assert held_of(run) == {w: {i for i in held if i < at} for w, held in wanted.items()}
    assert held_of(tail) == {w: {i - at for i in held if i >= at} for w, held in wanted.items()}
    assert run.children == {blocks[at]: tail} and tail.children == {3: grandchild}
    assert (run.tail, tail.parent, grandchild.parent, run.parent) == (tail, run, tail, root)
    assert grandchild.detach() is tail and tail.children == {}
    if tail.part and not tail.full:
        last = max(max(held, default=0) for held in held_of(tail).values())
        before = held_of(tail)
        tail.trim()
        assert len(tail.blocks) == len(tail.places) == last + 1
        assert held_of(tail) == before
    assert tail.detach() is run
    assert run.children == {} and run.tail is None


def check_part_ways(run: Run, held: dict[int, set[int]], matched: int, depth: int) -> None:
    alive, depths = 0b1110, {}  # worker 0 has dropped out before
    still = run.part_ways(alive, depth, matched, depths)
    for worker in range(4):
        leading = next((i for i in range(99) if i not in held[worker]), 99)
        assert bool(still >> worker & 1) == (worker > 0 and leading >= matched)
        ends_at = [end for end, mask in depths.items() if mask >> worker & 1]
        dropped = worker > 0 and leading < matched and depth + leading > 0
        assert ends_at == ([depth + leading] if dropped else [])


@settings(max_examples=120, deadline=None)
@given(SEEDS)
def test_equal_items_are_counted_from_any_place(seed: int) -> None:
    draw = random.Random(seed)
    known = [draw.choice([1, 1, 1, 1, 1, 1, 1, 2]) for _ in range(draw.randint(0, 60))]
    blocks: list[Any] = [draw.choice([1, 1, 1, 1, 1, 1, 1, 2]) for _ in range(draw.randint(0, 60))]
    if draw.random() < 0.5:
        blocks = known[:]
        if blocks:
            blocks[draw.randrange(len(blocks))] = draw.choice([1, 9])
    position, done = draw.randint(0, len(known)), draw.randint(0, len(blocks))
    pairs = list(zip(known[position:], blocks[done:], strict=False))
    wanted = next((i for i, (one, other) in enumerate(pairs) if one != other), len(pairs))
    assert num_equal(known, position, blocks, done) == wanted
