"""The sequences that decode: every one gains a token in every step, so they are kept as sums.

A decoding sequence stores `anchor`; its computed tokens in step s are `anchor + s`. The set knows
how many decode, their total context, when each ends, and in which steps blocks are opened: all that
timing and block accounting need, at a cost that does not grow with the number of sequences.
"""

from heapq import heapify, heappop, heappush
from typing import Final

from dynosim.engine.sequence import DECODING, Sequence

_OUTDATED_ALLOWED: Final = 64  # entries not worth a rebuild


class DecodeSet:
    """Sums over the decoding sequences of one engine, and its step counter."""

    __slots__ = ("_crossings", "block_size", "context_tokens", "count", "finishes", "step")

    def __init__(self, block_size: int) -> None:
        self.block_size = block_size
        self.step = 0  # index of the next step
        self.count = 0
        self.context_tokens = 0  # in the next step, the tokens it computes included
        self.finishes: list[tuple[int, int, Sequence]] = []  # heap of (finish_step, order, ...)
        # How many take a new block in steps = i (modulo block size).
        self._crossings = [0] * block_size

    def enter(self, sequence: Sequence, finish_step: int) -> None:
        """Add a sequence whose `anchor` is set; it leaves before step `finish_step`."""
        anchor = sequence.anchor
        sequence.finish_step = finish_step
        heappush(self.finishes, (finish_step, sequence.order, sequence))
        self._crossings[-anchor % self.block_size] += 1
        self.count += 1
        self.context_tokens += anchor + self.step + 1

    def leave(self, sequence: Sequence) -> None:
        """Take a sequence out; its `anchor` stays valid until the step changes."""
        anchor = sequence.anchor
        self._crossings[-anchor % self.block_size] -= 1
        self.count -= 1
        self.context_tokens -= anchor + self.step + 1

    def delay(self, sequence: Sequence) -> None:
        """Leave a sequence out of the next step: it falls back by one token."""
        self.leave(sequence)
        sequence.anchor -= 1
        self.enter(sequence, sequence.finish_step + 1)

    def pop_due(self, done_step: int) -> list[Sequence]:
        """Take out the sequences whose last step lies before `done_step`, in running order."""
        due: list[Sequence] = []
        heap = self.finishes
        while heap and heap[0][0] <= done_step:
            entry = heappop(heap)
            if _is_current(entry):
                finish_step, _, sequence = entry
                self.leave(sequence)
                sequence.num_computed = sequence.anchor + finish_step
                due.append(sequence)
        return due

    def drop_outdated(self) -> None:
        """Rid `finishes` of outdated entries if they are most of it, as aborts leave them."""
        if len(self.finishes) > 2 * self.count + _OUTDATED_ALLOWED:
            self.finishes = [entry for entry in self.finishes if _is_current(entry)]
            heapify(self.finishes)

    def blocks_next_step(self) -> int:
        """Blocks that the next step opens."""
        return self._crossings[self.step % self.block_size]

    def blocks_opened(self, num_steps: int) -> int:
        """Blocks that the next `num_steps` steps open."""
        block_size = self.block_size
        if num_steps == 1:
            return self._crossings[self.step % block_size]
        opened = self.count * (num_steps // block_size)
        rest = num_steps % block_size
        if rest:
            first = self.step % block_size
            last = first + rest
            opened += sum(self._crossings[first:last])
            if last > block_size:
                opened += sum(self._crossings[: last - block_size])
        return opened

    def steps_within(self, num_steps: int, free_blocks: int) -> int:
        """The most steps, up to `num_steps`, that open at most `free_blocks` blocks."""
        if self.count * (num_steps // self.block_size + 1) <= free_blocks:
            return num_steps
        low, high = 0, num_steps
        while low < high:
            middle = (low + high + 1) // 2
            if self.blocks_opened(middle) <= free_blocks:
                low = middle
            else:
                high = middle - 1
        return low


def _is_current(entry: tuple[int, int, Sequence]) -> bool:
    """Whether an entry still holds: its sequence was not preempted, delayed or aborted since."""
    finish_step, order, sequence = entry
    is_same = sequence.finish_step == finish_step and sequence.order == order
    return is_same and sequence.state == DECODING
