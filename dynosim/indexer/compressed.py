"""A path-compressed radix tree: one node per run of blocks that nobody has parted yet.

Prompts share long prefixes and part in few places, so a query compares a few lists of hashes
instead of walking thousands of nodes. A node keeps the set of workers that hold its whole run, and
for partial holders the blocks they hold as bits of an integer.

Splitting a node leaves the per-worker tables alone: an entry (node, position) whose position lies
beyond the node's end means a place in the node that was split off, which `tail` leads to.
"""

from collections.abc import Sequence

from dynosim.indexer.base import BlockEvent, IndexCounters, Overlaps, Removed, Stored, Tier


class Run:
    """Consecutive blocks after one prefix."""

    __slots__ = ("blocks", "children", "full", "parent", "part", "tail")

    def __init__(self, parent: "Run | None", blocks: list[int]) -> None:
        self.parent = parent
        self.blocks = blocks  # local hashes, never empty but for the root
        self.full = 0  # workers that hold all of them
        self.part: dict[int, int] = {}  # worker -> blocks it holds, as bits; neither none nor all
        self.children: dict[int, Run] = {}  # by their first block
        self.tail: Run | None = None  # the child that was split off this run last

    @property
    def is_bare(self) -> bool:
        """Whether nothing is left that needs this run."""
        return not (self.full or self.part or self.children or self.parent is None)


Place = tuple[Run, int]


class CompressedRadixIndex:
    """Exact prefix index over runs of blocks."""

    def __init__(self) -> None:
        self.counters = IndexCounters()
        self._root = Run(None, [])
        self._places: dict[int, dict[int, Place]] = {}  # worker -> block hash -> place

    def apply(self, worker: int, event: BlockEvent) -> None:
        """Take one event of a worker into account."""
        if isinstance(event, Stored):
            self._store(worker, event)
        elif isinstance(event, Removed):
            self._remove(worker, event.block_hashes)
        elif event.tier is None or event.tier is Tier.DEVICE:
            self.remove_worker(worker)

    def find_matches(self, blocks: Sequence[int]) -> Overlaps:
        """Who holds how many leading blocks; `blocks` are local hashes."""
        if not isinstance(blocks, list):
            blocks = list(blocks)
        counters = self.counters
        counters.queries += 1
        counters.query_blocks += len(blocks)
        depths: dict[int, int] = {}  # depth -> workers
        alive = -1  # everybody
        run = self._root
        depth = 0
        while depth < len(blocks):
            counters.lookups += 1
            child = run.children.get(blocks[depth])
            if child is None:
                break
            run = child
            matched = _num_equal(run.blocks, blocks, depth)
            still = alive & run.full
            if still != alive:
                still = _part_ways(run, alive, still, depth, matched, depths)
            alive = still
            depth += matched
            if not alive or matched < len(run.blocks):
                break
        if alive and depth:
            depths[depth] = depths.get(depth, 0) | alive
        return Overlaps([(depths[d], d) for d in sorted(depths)])

    def remove_worker(self, worker: int) -> None:
        """Forget everything about a worker."""
        places = self._places.pop(worker, {})
        for run in {_resolve(place)[0] for place in places.values()}:
            run.full &= ~(1 << worker)
            run.part.pop(worker, None)
            _prune(run)

    @property
    def size(self) -> int:
        """(worker, block) pairs held."""
        return sum(len(places) for places in self._places.values())

    def dump(self, worker: int) -> list[Stored]:
        """Stored events that rebuild what a worker holds, parents first.

        Blocks behind a missing one cannot be told of and are left out.
        """
        hashes = {_resolve(place): block for block, place in self._places.get(worker, {}).items()}
        events: list[Stored] = []
        pending: list[tuple[int | None, Run]] = [(None, self._root)]
        while pending:
            parent, run = pending.pop()
            num_held = 0
            while (run, num_held) in hashes:
                num_held += 1
            if num_held:
                names = [hashes[run, position] for position in range(num_held)]
                events.append(Stored(parent, names, run.blocks[:num_held]))
                parent = names[-1]
            if num_held == len(run.blocks):
                pending += [(parent, child) for child in run.children.values()]
        return events

    # ---- events --------------------------------------------------------------------------------

    def _store(self, worker: int, event: Stored) -> None:
        places = self._places.setdefault(worker, {})
        run, position = self._root, 0
        if event.parent is not None:
            found = places.get(event.parent)
            if found is None:
                self.counters.unknown_parents += 1
                return
            run, position = _resolve(found)
            position += 1
        blocks = list(event.local_hashes)
        names = event.block_hashes
        done = 0
        while done < len(blocks):
            if position == len(run.blocks):
                run, position = self._enter(run, worker, blocks, done)
            matched = _num_equal(run.blocks, blocks, done, position)
            if matched == 0:
                _split(run, position)
                continue
            self._hold(run, worker, position, matched)
            stop = position + matched
            places.update(
                zip(names[done : done + matched], _places(run, position, stop), strict=True)
            )
            done += matched
            position = stop

    def _enter(self, run: Run, worker: int, blocks: list[int], done: int) -> Place:
        """Where blocks that follow a whole run begin; makes room for them if they are new."""
        child = run.children.get(blocks[done])
        if child is not None:
            return child, 0
        if not run.children and not run.part and run.full == 1 << worker:
            position = len(run.blocks)
            run.blocks += blocks[done:]
            run.full = 0
            run.part[worker] = (1 << position) - 1
            return run, position
        child = Run(run, blocks[done:])
        run.children[blocks[done]] = child
        return child, 0

    def _hold(self, run: Run, worker: int, position: int, num_blocks: int) -> None:
        """Note that a worker holds blocks of a run."""
        if run.full >> worker & 1:
            self.counters.duplicate_blocks += num_blocks
            return
        before = run.part.get(worker, 0)
        held = before | ((1 << num_blocks) - 1) << position
        num_new = held.bit_count() - before.bit_count() if before else num_blocks
        self.counters.stored_blocks += num_new
        self.counters.duplicate_blocks += num_blocks - num_new
        if held.bit_count() == len(run.blocks):
            run.full |= 1 << worker
            run.part.pop(worker, None)
        else:
            run.part[worker] = held

    def _remove(self, worker: int, block_hashes: Sequence[int]) -> None:
        places = self._places.get(worker, {})
        run: Run | None = None
        gone = 0
        for block_hash in block_hashes:
            place = places.pop(block_hash, None)
            if place is None:
                self.counters.unknown_blocks += 1
                continue
            self.counters.removed_blocks += 1
            here, position = _resolve(place)
            if here is not run:
                if run is not None:
                    _let_go(run, worker, gone)
                run, gone = here, 0
            gone |= 1 << position
        if run is not None:
            _let_go(run, worker, gone)


def _resolve(place: Place) -> Place:
    """Where a place is now, after splits."""
    run, position = place
    while position >= len(run.blocks):
        position -= len(run.blocks)
        assert run.tail is not None
        run = run.tail
    return run, position


def _places(run: Run, start: int, stop: int) -> list[Place]:
    return [(run, position) for position in range(start, stop)]


def _num_equal(known: list[int], blocks: list[int], done: int, position: int = 0) -> int:
    """How many blocks of a run, from `position`, equal those of a prompt, from `done`."""
    length = min(len(known) - position, len(blocks) - done)
    ours = known if position == 0 and length == len(known) else known[position : position + length]
    theirs = blocks[done : done + length]
    if ours == theirs:
        return length
    for index, (one, other) in enumerate(zip(ours, theirs, strict=True)):
        if one != other:
            return index
    return length


def _part_ways(
    run: Run, alive: int, still: int, depth: int, matched: int, depths: dict[int, int]
) -> int:
    """Note how far the workers come that lack something of a run; returns who goes on."""
    lost = alive & ~still
    for worker, held in run.part.items():
        if lost >> worker & 1:
            leading = (~held & (held + 1)).bit_length() - 1
            if leading >= matched:
                still |= 1 << worker
            elif leading:
                depths[depth + leading] = depths.get(depth + leading, 0) | 1 << worker
            else:
                continue
            lost ^= 1 << worker
    if depth and lost:
        depths[depth] = depths.get(depth, 0) | lost
    return still


def _split(run: Run, position: int) -> None:
    """Part a run in two; the second becomes the child of the first."""
    tail = Run(run, run.blocks[position:])
    tail.children, run.children = run.children, {tail.blocks[0]: tail}
    for child in tail.children.values():
        child.parent = tail
    tail.tail, run.tail = run.tail, tail
    tail.full = run.full
    del run.blocks[position:]
    head_bits = (1 << position) - 1
    parts, run.part = run.part, {}
    for worker, held in parts.items():
        _set_held(run, worker, held & head_bits)
        _set_held(tail, worker, held >> position)


def _set_held(run: Run, worker: int, held: int) -> None:
    if held.bit_count() == len(run.blocks):
        run.full |= 1 << worker
    elif held:
        run.part[worker] = held


def _let_go(run: Run, worker: int, gone: int) -> None:
    """Note that a worker no longer holds some blocks of a run."""
    bit = 1 << worker
    if run.full & bit:
        run.full ^= bit
        held = (1 << len(run.blocks)) - 1
    else:
        held = run.part.get(worker, 0)
    held &= ~gone
    if held:
        run.part[worker] = held
        return
    run.part.pop(worker, None)
    _prune(run)


def _prune(run: Run) -> None:
    """Remove a run that nothing needs any more, and those above that only led to it."""
    while run.is_bare:
        parent = run.parent
        assert parent is not None
        if parent.children.get(run.blocks[0]) is run:
            del parent.children[run.blocks[0]]
        if parent.tail is run:
            parent.tail = None
        run = parent
