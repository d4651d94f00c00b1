"""Runs of blocks: the nodes of a path-compressed radix tree.

A run keeps the set of workers that hold all its blocks, and for partial holders the blocks they
hold as bits of an integer. The last block of a run without children is always held by somebody.
"""

from collections.abc import Sequence

LINEAR_BLOCKS = 8  # comparing so few one by one is faster than slicing


class Run:
    """Consecutive blocks after one prefix."""

    __slots__ = ("blocks", "children", "full", "number", "parent", "part", "places", "tail")

    def __init__(
        self, number: int, parent: "Run | None", blocks: list[int], places: list[int]
    ) -> None:
        self.number = number
        self.parent = parent
        self.blocks = blocks  # local hashes, never empty but for the root
        self.places = places  # numbers that stand for the blocks in tables, for good
        self.full = 0  # workers that hold all of them
        self.part: dict[int, int] = {}  # worker -> blocks it holds, as bits; neither none nor all
        self.children: dict[int, Run] = {}  # by their first block
        self.tail: Run | None = None  # the child that was split off this run last

    @property
    def is_bare(self) -> bool:
        """Whether nothing is left that needs this run."""
        return not (self.full or self.part or self.children or self.parent is None)

    def held_by(self, worker: int) -> int:
        """The blocks that a worker holds, as bits."""
        if self.full >> worker & 1:
            return (1 << len(self.blocks)) - 1
        return self.part.get(worker, 0)

    def set_held(self, worker: int, held: int) -> None:
        """Note exactly which blocks a worker holds, as bits."""
        if held.bit_count() == len(self.blocks):
            self.full |= 1 << worker
            self.part.pop(worker, None)
            return
        self.full &= ~(1 << worker)
        if held:
            self.part[worker] = held
        else:
            self.part.pop(worker, None)

    def split(self, position: int, number: int) -> "Run":
        """Part the run in two; returns the second, which becomes the only child of the first."""
        tail = Run(number, self, self.blocks[position:], self.places[position:])
        tail.children, self.children = self.children, {tail.blocks[0]: tail}
        for child in tail.children.values():
            child.parent = tail
        tail.tail, self.tail = self.tail, tail
        tail.full = self.full
        del self.blocks[position:], self.places[position:]
        head_bits = (1 << position) - 1
        parts, self.part = self.part, {}
        for worker, held in parts.items():
            self.set_held(worker, held & head_bits)
            tail.set_held(worker, held >> position)
        return tail

    def trim(self) -> None:
        """Forget the last blocks of a run without children, as far as nobody holds them."""
        num_held = max(held.bit_length() for held in self.part.values())
        if num_held < len(self.blocks):
            del self.blocks[num_held:], self.places[num_held:]
            for worker, held in list(self.part.items()):
                self.set_held(worker, held)

    def detach(self) -> "Run":
        """Take a bare run off its parent, which is returned."""
        parent = self.parent
        assert parent is not None
        del parent.children[self.blocks[0]]
        if parent.tail is self:
            parent.tail = None
        return parent

    def part_ways(self, alive: int, depth: int, matched: int, depths: dict[int, int]) -> int:
        """Which of the workers `alive` hold the first `matched` blocks of this run.

        Those that do not are entered in `depths` (depth -> workers) with what they hold; `depth`
        is where the run begins.
        """
        still = alive & self.full
        lost = alive ^ still
        for worker, held in self.part.items():
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


def num_equal(known: list[int], position: int, blocks: Sequence[int], done: int) -> int:
    """How many items of `known`, from `position`, equal those of `blocks`, from `done`."""
    unsure = min(len(known) - position, len(blocks) - done)
    equal = 0
    if known[position : position + unsure] == blocks[done : done + unsure]:
        return unsure
    while unsure - equal > LINEAR_BLOCKS:  # slices compare much faster than a loop does
        half = (equal + unsure) // 2
        if known[position + equal : position + half] == blocks[done + equal : done + half]:
            equal = half
        else:
            unsure = half
    while equal < unsure and known[position + equal] == blocks[done + equal]:
        equal += 1
    return equal
