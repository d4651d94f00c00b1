"""Prefix caches kept the plain way: block by block, each named by all the tokens up to its end.

Requests come one after the other. Each finds the leading run of its prompt's full blocks that is
there, leaves at least one token to compute, and has then touched all of its blocks: those of the
prompt, and those that its answer filled, which no other prompt has.
"""

from collections import OrderedDict
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Protocol

from dynosim.records import Trace

Block = Hashable


@dataclass(frozen=True)
class Visit:
    """One request: its prompt's blocks, how many of them it may find, the blocks of its answer."""

    prompt: list[Block]
    limit: int
    answer: list[Block]

    @property
    def touched(self) -> list[Block]:
        return [*self.prompt, *self.answer]

    def found(self, held: object) -> int:
        """Leading blocks that are there."""
        count = 0
        while count < self.limit and self.prompt[count] in held:  # type: ignore[operator]
            count += 1
        return count


def visits_of(trace: Trace, block_size: int, *, with_answers: bool = True) -> list[Visit]:
    """Each request's blocks, a block being named by the one before it and its own tokens."""
    names: dict[tuple[int, tuple[int, ...]], int] = {}
    return [
        _visit(trace, request, block_size, names, with_answers=with_answers)
        for request in range(len(trace))
    ]


def _visit(
    trace: Trace,
    request: int,
    block_size: int,
    names: dict[tuple[int, tuple[int, ...]], int],
    *,
    with_answers: bool,
) -> Visit:
    length, answered = int(trace.input_tokens[request]), int(trace.output_tokens[request])
    prompt: list[Block] = []
    parent = -1
    for tokens in _full_blocks(trace, request, block_size):
        parent = names.setdefault((parent, tokens), len(names))
        prompt.append(parent)
    limit = 0
    while (limit + 1) * block_size < length:
        limit += 1
    computed = [token for token in range(length + answered - 1) if answered]  # not the last one
    filled = len(computed) // block_size - len(prompt) if answered else 0
    answer: list[Block] = [(request, place) for place in range(filled)] if with_answers else []
    return Visit(prompt, limit, answer)


def _full_blocks(trace: Trace, request: int, block_size: int) -> Iterator[tuple[int, ...]]:
    """What tells each full block's tokens: which trace block they are of, and where in it."""
    size = trace.trace_block_size
    ids = trace.hash_ids[trace.hash_offsets[request] : trace.hash_offsets[request + 1]].tolist()
    for start in range(0, int(trace.input_tokens[request]) - block_size + 1, block_size):
        end = start + block_size
        pieces: list[int] = []
        for place in range(start // size, -(-end // size)):
            first, last = max(start, place * size), min(end, (place + 1) * size)
            pieces += [ids[place], first - place * size, last - place * size]
        yield tuple(pieces)


class NaiveTier(Protocol):
    """A cache that is touched by one request after the other."""

    def __contains__(self, block: Block) -> bool: ...

    def touch(self, blocks: Sequence[Block]) -> None: ...


class NaiveLru:
    """The oldest block goes; of a prompt the last is the oldest."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.blocks: OrderedDict[Block, None] = OrderedDict()

    def __contains__(self, block: Block) -> bool:
        return block in self.blocks

    def touch(self, blocks: Sequence[Block]) -> None:
        for block in reversed(blocks):
            self.blocks.pop(block, None)
            self.blocks[block] = None
        while len(self.blocks) > self.capacity:
            self.blocks.popitem(last=False)


class NaiveArc:
    """ARC after Megiddo and Modha (2003), with what vLLM makes of it.

    A whole prompt comes at once, as much of it as there is room for at all. Blocks that come back
    from the ghosts move the target as in the paper, deepest first, and then are new. Room is made
    for all new blocks, at the cost of none of the prompt's own. At the end, deepest first, what was
    there goes to the young end of `again`, what is new to that of `once`.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.target = 0.0
        # The oldest first.
        self.once: OrderedDict[Block, None] = OrderedDict()
        self.again: OrderedDict[Block, None] = OrderedDict()
        self.ghosts_once: OrderedDict[Block, None] = OrderedDict()
        self.ghosts_again: OrderedDict[Block, None] = OrderedDict()

    def __contains__(self, block: Block) -> bool:
        return block in self.once or block in self.again

    def touch(self, blocks: Sequence[Block]) -> None:
        kept = list(blocks[: self.capacity])
        new = [block for block in kept if block not in self]
        for block in reversed(new):
            self._learn(block)
        while len(self.once) + len(self.again) + len(new) > self.capacity:
            self._evict(set(kept))
        for ghosts in (self.ghosts_once, self.ghosts_again):
            while len(ghosts) > self.capacity:
                ghosts.popitem(last=False)
            for block in new:
                ghosts.pop(block, None)
        for block in reversed(kept):
            if block in new:
                self.once[block] = None
            else:
                self.once.pop(block, None)
                self.again.pop(block, None)
                self.again[block] = None

    def _learn(self, block: Block) -> None:
        once, again = self.ghosts_once, self.ghosts_again
        if block in once:
            self.target = min(self.capacity, self.target + max(1, len(again) / len(once)))
            once.move_to_end(block)
        elif block in again:
            self.target = max(0, self.target - max(1, len(once) / len(again)))
            again.move_to_end(block)

    def _evict(self, kept: set[Block]) -> None:
        once = next((block for block in self.once if block not in kept), None)
        again = next((block for block in self.again if block not in kept), None)
        if once is not None and (len(self.once) >= int(self.target) or again is None):
            del self.once[once]
            self.ghosts_once[once] = None
        else:
            assert again is not None
            del self.again[again]
            self.ghosts_again[again] = None


def hits_of(visits: Sequence[Visit], tier: NaiveTier) -> list[int]:
    """What each request finds."""
    hits = []
    for visit in visits:
        hits.append(visit.found(tier))
        tier.touch(visit.touched)
    return hits


def hits_by_tier(
    visits: Sequence[Visit], device: NaiveTier, host: NaiveTier
) -> tuple[list[int], list[int]]:
    """What each request finds on the device, and behind that on the host."""
    on_device, on_host = [], []
    for visit in visits:
        first = visit.found(device)
        count = first
        while count < visit.limit and visit.prompt[count] in host:
            count += 1
        on_device.append(first)
        on_host.append(count - first)
        device.touch(visit.touched)
        host.touch(visit.touched)
    return on_device, on_host


def foreseen_hits(visits: Sequence[Visit], capacity: int) -> int:
    """What a cache hits that looks ahead: it keeps the blocks that are wanted soonest."""
    held: set[Block] = set()
    total = 0
    for now, visit in enumerate(visits):
        total += visit.found(held)
        wanted = []
        for block in held | set(visit.prompt):
            for later in range(now + 1, len(visits)):
                prompt = visits[later].prompt
                if block in prompt:
                    if prompt.index(block) < visits[later].limit:
                        wanted.append((later, prompt.index(block), block))
                    break
        held = {block for _, _, block in sorted(wanted, key=lambda one: one[:2])[:capacity]}
    return total


def best_hits(visits: Sequence[Visit], capacity: int) -> int:
    """The most that any choice of what to keep after each request hits: all of them are tried."""
    best: dict[frozenset[Block], int] = {frozenset(): 0}
    for visit in visits:
        after: dict[frozenset[Block], int] = {}
        for held, hits in best.items():
            hits += visit.found(held)
            there = held | set(visit.touched)
            for kept in combinations(sorted(there, key=repr), min(capacity, len(there))):
                state = frozenset(kept)
                after[state] = max(after.get(state, 0), hits)
        best = after
    return max(best.values())
