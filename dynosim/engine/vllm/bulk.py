"""Uniform steps, many at once: the same sequences decode, and nothing else can happen.

No plan is made for them. The sums of the decode set move on, and the blocks that the steps open are
taken together; but one by one, as vLLM's loop does, in a step by itself whose events all are told.
"""

from dynosim.engine.kv_cache import KvCache
from dynosim.engine.plan import StepPlan
from dynosim.engine.sequence import DECODING
from dynosim.engine.vllm.seats import Seats


class UniformSteps:
    """Bulk decoding of one engine, for as long as nobody prefills or could be admitted."""

    __slots__ = ("_cache", "_decodes", "_pool", "_seats")

    def __init__(self, cache: KvCache, seats: Seats) -> None:
        self._cache = cache
        self._pool = cache.pool
        self._seats = seats
        self._decodes = seats.decodes

    def count(self) -> int:
        """Steps from here until a sequence ends or blocks run out."""
        pool = self._pool
        return self.count_within(pool.blank_blocks + pool.idle_blocks)

    def count_within(self, free_blocks: int) -> int:
        """The same where no more than so many blocks are to be handed out."""
        decodes = self._decodes
        if decodes.count == 0 or free_blocks < 0:
            return 0
        until_end = decodes.finishes[0][0] - decodes.step
        if until_end <= 0:  # somebody has all tokens and is yet to be told so
            return 0
        return decodes.steps_within(until_end, free_blocks)

    def advance(self, num_steps: int) -> None:
        """Do so many of them."""
        decodes, pool = self._decodes, self._pool
        opened = decodes.blocks_opened(num_steps)
        if num_steps == 1 and pool.publishes_all and opened > pool.blank_blocks:
            self._advance_each()
            return
        if opened:
            pool.allocate(opened)
        decodes.context_tokens += decodes.count * num_steps
        decodes.step += num_steps
        if self._cache.registers_decodes:
            for sequence in self._seats.running:
                if sequence.state == DECODING:
                    self._cache.register(sequence, sequence.anchor + decodes.step)

    def _advance_each(self) -> None:
        """Do one step in which blocks are evicted, in the order in which vLLM would tell of it."""
        decodes, cache = self._decodes, self._cache
        for sequence in self._seats.running:
            if sequence.state == DECODING:
                cache.decode(sequence, sequence.anchor + decodes.step)
        decodes.context_tokens += decodes.count
        decodes.step += 1

    def last(self, plan: StepPlan) -> StepPlan:
        """The last step that was done; the same sequences are in it as in `plan`."""
        decodes = self._decodes
        last = StepPlan(decodes.step - 1)
        last.num_decodes = decodes.count
        last.decode_context_tokens = decodes.context_tokens - decodes.count
        last.emitting = plan.emitting
        return last

    def may_publish(self, num_steps: int) -> bool:
        """Whether so many could cause KV events that somebody wants."""
        decodes, pool = self._decodes, self._pool
        if pool.publishes_all:  # a block is full one step before the next is opened
            return decodes.blocks_opened(num_steps + 1) > 0
        return pool.idle_blocks > 0 and pool.blank_blocks < decodes.blocks_opened(num_steps)

    def quiet(self, max_steps: int) -> int:
        """Steps, at least 1, of which only the last may open blocks."""
        return max(self._decodes.steps_within(max_steps, 0), 1)
