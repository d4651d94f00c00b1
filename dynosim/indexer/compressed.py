"""A path-compressed radix tree: one node per run of blocks that nobody has parted yet.

Prompts share long prefixes and part in few places, so a query compares a few lists of hashes
instead of walking thousands of nodes. Events work on whole runs too.

Per worker a table leads from the engine's block hashes to places. A place is a number: the run's
number and the position in it. Splitting a run leaves these tables alone: a position beyond the
run's end means a place in the run that was split off, which `tail` leads to.
"""

from collections.abc import Iterator, Sequence
from itertools import repeat

from dynosim.errors import InvariantError
from dynosim.indexer.answers import IndexCounters, Overlaps
from dynosim.indexer.base import (
    BlockEvent,
    Removed,
    Stored,
    is_elsewhere,
    sequence_names,
    spare_names,
)
from dynosim.indexer.runs import Run, num_equal

POSITION_BITS = 32
POSITION_MASK = (1 << POSITION_BITS) - 1
UNKNOWN = -1  # no place

Places = dict[int, int]  # block hash -> place


class CompressedRadixIndex:
    """Exact prefix index over runs of blocks.

    Of two hashes that a worker uses for one block, or two blocks with one hash, the newer counts.
    """

    def __init__(self) -> None:
        self.counters = IndexCounters()
        self._root = Run(0, None, [], [])
        self._runs = {0: self._root}
        self._last_number = 0
        self._places: dict[int, Places] = {}  # by worker

    def apply(self, worker: int, event: BlockEvent) -> None:
        """Take one event of a worker into account; slower tiers are nothing to it."""
        if is_elsewhere(event):
            return
        if isinstance(event, Stored):
            self._store(worker, event)
        elif isinstance(event, Removed):
            self._remove(worker, event.block_hashes)
        else:
            self.remove_worker(worker)

    def find_matches(self, blocks: Sequence[int]) -> Overlaps:
        """Who holds how many leading blocks; `blocks` are local hashes."""
        if not isinstance(blocks, list):
            blocks = list(blocks)
        num_blocks = len(blocks)
        depths: dict[int, int] = {}  # depth -> workers
        alive = -1  # everybody
        children = self._root.children
        depth = lookups = 0
        while depth < num_blocks:
            lookups += 1
            run = children.get(blocks[depth])
            if run is None:
                break
            known = run.blocks
            matched = len(known)
            is_whole = matched == 1 or blocks[depth : depth + matched] == known
            if not is_whole:
                matched = num_equal(known, 0, blocks, depth)
            still = alive & run.full
            if still != alive:
                still = run.part_ways(alive, depth, matched, depths)
            alive = still
            depth += matched
            if not alive or not is_whole:
                break
            children = run.children
        counters = self.counters
        counters.queries += 1
        counters.query_blocks += num_blocks
        counters.lookups += lookups
        if alive and depth:
            depths[depth] = depths.get(depth, 0) | alive
        return Overlaps([(depths[d], d) for d in sorted(depths)])

    def remove_worker(self, worker: int) -> None:
        """Forget everything about a worker."""
        places = self._places.pop(worker, {})
        runs = []
        for number in {place >> POSITION_BITS for place in places.values()}:
            run: Run | None = self._runs[number]
            while run is not None:
                run.set_held(worker, 0)
                runs.append(run)
                run = run.tail
        for run in runs:
            if run.number in self._runs:
                self._tidy(run)

    @property
    def size(self) -> int:
        """(worker, block) pairs held."""
        return sum(len(places) for places in self._places.values())

    def names(self, worker: int) -> dict[int, int]:
        """Engine's block hash -> our sequence hash, of all that a worker holds."""
        return sequence_names(self.dump(worker))

    def dump(self, worker: int) -> list[BlockEvent]:
        """Events that lead an empty index to what a worker holds, parents first.

        Blocks that are not held, but stand before held ones, are published and then removed.
        """
        held = self._names_by_run(worker)
        published: dict[Run, int | None] = {self._root: None}  # name of the last block of each
        inner: set[Run] = set()  # runs that others stand behind
        runs: list[Run] = []
        for run in held:
            path = []
            while run not in published:
                published[run] = None
                path.append(run)
                assert run.parent is not None
                run = run.parent
                inner.add(run)
            runs += reversed(path)
        events: list[BlockEvent] = []
        spare = spare_names(self._places.get(worker, {}))
        missing: list[int] = []
        for run in runs:
            names = held.get(run, [])
            if run in inner:
                names += [None] * (len(run.blocks) - len(names))
            known = _without_holes(names, spare, missing)
            assert run.parent is not None
            events.append(Stored(published[run.parent], known, run.blocks[: len(known)]))
            published[run] = known[-1]
        return [*events, Removed(missing)] if missing else events

    def _names_by_run(self, worker: int) -> dict[Run, list[int | None]]:
        """The names of the blocks that a worker holds, by position, up to the last one held."""
        runs = self._runs
        found: dict[Run, list[int | None]] = {}
        for name, place in self._places.get(worker, {}).items():
            run, position = runs[place >> POSITION_BITS], place & POSITION_MASK
            if position >= len(run.blocks):
                run, position = self._resolve(place)
            names = found.get(run)
            if names is None:
                names = found[run] = [None] * len(run.blocks)
            names[position] = name
        for names in found.values():
            while names[-1] is None:
                names.pop()
        return found

    # ---- stored --------------------------------------------------------------------------------

    def _store(self, worker: int, event: Stored) -> None:
        places = self._places.setdefault(worker, {})
        run, position = self._root, 0
        if event.parent is not None:
            found = places.get(event.parent)
            if found is None:
                self.counters.unknown_parents += 1
                return
            run, position = self._resolve(found)
            position += 1
        names, blocks = event.block_hashes, event.local_hashes
        if len(names) != len(blocks):
            raise InvariantError(f"stored event: {len(names)} block, {len(blocks)} local hashes")
        if not isinstance(blocks, list):
            blocks = list(blocks)
        num_places, num_stored = len(places), self.counters.stored_blocks
        self._extend(worker, run, position, names, blocks)
        if len(places) - num_places != self.counters.stored_blocks - num_stored:
            self._mend(worker)

    def _extend(
        self, worker: int, run: Run, position: int, names: Sequence[int], blocks: list[int]
    ) -> None:
        """Let a worker hold blocks after a place."""
        done = 0
        while done < len(blocks):
            if position == len(run.blocks):
                child = run.children.get(blocks[done])
                if child is None:
                    self._append(worker, run, names[done:] if done else names, blocks[done:])
                    return
                run, position = child, 0
            matched = num_equal(run.blocks, position, blocks, done)
            if matched:
                self._hold(worker, run, position, names[done : done + matched])
                done += matched
                position += matched
            else:
                tail = run.split(position, self._new_number())
                self._runs[tail.number] = tail

    def _append(self, worker: int, run: Run, names: Sequence[int], blocks: list[int]) -> None:
        """Let blocks that nobody has yet follow the end of a run."""
        position = len(run.blocks)
        if run.full == 1 << worker and not run.children and not run.part:
            run.blocks += blocks  # nobody else would become a partial holder
            run.places += _new_places(run.number, position, len(blocks))
        else:
            parent, position = run, 0
            number = self._new_number()
            run = Run(number, parent, blocks, _new_places(number, 0, len(blocks)))
            run.full = 1 << worker
            self._runs[run.number] = parent.children[blocks[0]] = run
        self._note(worker, names, run, position)
        self.counters.stored_blocks += len(blocks)

    def _hold(self, worker: int, run: Run, position: int, names: Sequence[int]) -> None:
        """Let a worker hold blocks that others have had already, or still have."""
        before = run.held_by(worker)
        wanted = ((1 << len(names)) - 1) << position
        num_held = 0
        if before & wanted:
            num_held = (before & wanted).bit_count()
            self._forget_other_names(worker, run, before, position, names)
        self._note(worker, names, run, position)
        run.set_held(worker, before | wanted)
        self.counters.stored_blocks += len(names) - num_held
        self.counters.duplicate_blocks += num_held

    def _note(self, worker: int, names: Sequence[int], run: Run, position: int) -> None:
        """Enter names of blocks that follow each other in a run."""
        places = self._places[worker]
        for name, place in zip(names, run.places[position : position + len(names)], strict=True):
            places[name] = place  # a loop is 25 % faster than `update` of pairs

    # ---- names that changed their meaning: rare enough for a search ----------------------------

    def _forget_other_names(
        self, worker: int, run: Run, held: int, position: int, names: Sequence[int]
    ) -> None:
        """Of two names for one block the newer counts."""
        places = self._places[worker]
        renamed = 0
        for index, name in enumerate(names, position):
            if held >> index & 1:
                known = places.get(name)
                if known is None or self._resolve(known) != (run, index):
                    renamed |= 1 << index
        for name, place in list(places.items()) if renamed else ():
            here, index = self._resolve(place)
            if here is run and renamed >> index & 1:
                del places[name]

    def _mend(self, worker: int) -> None:
        """Let a worker hold just what its names mean now."""
        held: dict[Run, int] = {}
        for place in self._places[worker].values():
            run, position = self._resolve(place)
            held[run] = held.get(run, 0) | 1 << position
        wrong = [run for run in self._runs.values() if run.held_by(worker) != held.get(run, 0)]
        for run in wrong:
            run.set_held(worker, held.get(run, 0))
        for run in wrong:
            if run.number in self._runs:
                self._tidy(run)

    # ---- removed -------------------------------------------------------------------------------

    def _remove(self, worker: int, block_hashes: Sequence[int]) -> None:
        table = self._places.get(worker, {})
        places = list(map(table.pop, block_hashes, repeat(UNKNOWN)))
        done = 0
        while done < len(places):
            if places[done] == UNKNOWN:
                self.counters.unknown_blocks += 1
                done += 1
                continue
            run, last = self._resolve(places[done])
            first, length = last, 1
            num_left = min(last + 1, len(places) - done)
            if num_left > 1:  # engines evict backwards
                backwards = run.places[last - num_left + 1 : last + 1][::-1]
                length = num_equal(backwards, 0, places, done)
                first = last - length + 1
            if length == 1:
                length = num_equal(run.places, last, places, done)
            self._let_go(worker, run, first, length)
            done += length
            self.counters.removed_blocks += length

    def _let_go(self, worker: int, run: Run, first: int, num_blocks: int) -> None:
        """A worker no longer holds some blocks of a run."""
        gone = ((1 << num_blocks) - 1) << first
        run.set_held(worker, run.held_by(worker) & ~gone)
        self._tidy(run)

    def _tidy(self, run: Run) -> None:
        """Remove runs and ends of runs that nothing needs any more, upwards."""
        while run.is_bare:
            del self._runs[run.number]
            run = run.detach()
        if run.part and not run.full and not run.children:
            run.trim()

    # ---- places --------------------------------------------------------------------------------

    def _resolve(self, place: int) -> tuple[Run, int]:
        """The run and position of a place, after splits."""
        run = self._runs[place >> POSITION_BITS]
        position = place & POSITION_MASK
        while position >= len(run.blocks):
            position -= len(run.blocks)
            assert run.tail is not None
            run = run.tail
        return run, position

    def _new_number(self) -> int:
        self._last_number += 1
        return self._last_number


def _without_holes(names: list[int | None], spare: Iterator[int], missing: list[int]) -> list[int]:
    """The names, with spare ones, which are noted in `missing`, for blocks without."""
    known: list[int] = []
    for name in names:
        if name is None:
            name = next(spare)
            missing.append(name)
        known.append(name)
    return known


def _new_places(number: int, position: int, num_blocks: int) -> list[int]:
    """The places of further blocks of a run."""
    place = (number << POSITION_BITS) + position
    return list(range(place, place + num_blocks))
