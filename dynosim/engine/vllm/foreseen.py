"""What vLLM's loop would do with the running list, where that is plain beforehand.

If there are blocks and tokens for all, it serves all, and their order does not matter: every
decoding sequence computes one token, and a lone unfinished prompt takes what is left of the budget.
That costs the same however many sequences decode, unless somebody wants to know of each. Where all
events are told, blocks are evicted one by one, so that they are told in the order of the loop.
"""

from dynosim.engine.kv_cache import KvCache
from dynosim.engine.plan import StepPlan
from dynosim.engine.sequence import DECODING
from dynosim.engine.spec import EngineSpec
from dynosim.engine.vllm.seats import Seats


class ForeseenService:
    """The shortcut for `SchedulingLoop.serve`."""

    __slots__ = ("_cache", "_may_pass_over", "_names_emitting", "_seats", "_token_budget")

    def __init__(
        self, spec: EngineSpec, cache: KvCache, seats: Seats, *, names_emitting: bool
    ) -> None:
        self._cache = cache
        self._seats = seats
        self._token_budget = spec.max_num_batched_tokens
        self._names_emitting = names_emitting
        # A prompt that found no block, while those of a victim could not be freed, is not the last.
        self._may_pass_over = spec.async_scheduling and spec.takes_kv

    def serve(self, plan: StepPlan, cap: int) -> int | None:
        """Serve all running requests; returns what is left of the budget.

        None, and nothing done, if order decides who gets how much.
        """
        cache, decodes, prefilling = self._cache, self._seats.decodes, self._seats.prefilling
        budget = self._token_budget - decodes.count
        need = decodes.blocks_next_step()
        num_tokens = prompt_blocks = 0
        if prefilling:
            if cap > 0 or len(prefilling) > 1:
                return None
            sequence = prefilling[0]
            if self._may_pass_over and next(reversed(self._seats.running)) is not sequence:
                return None
            computed = sequence.num_computed
            num_tokens = sequence.prompt_tokens + sequence.generated_tokens - computed
            if num_tokens > budget:
                num_tokens = budget
            prompt_blocks = cache.blocks_to_take(sequence, computed, computed + num_tokens)
            need += prompt_blocks
        pool = cache.pool
        if need > pool.blank_blocks + pool.idle_blocks:
            return None
        plan.num_decodes = decodes.count
        plan.decode_context_tokens = decodes.context_tokens
        if pool.publishes_all and need > pool.blank_blocks:
            self._serve_in_order(plan, num_tokens, prompt_blocks)
            return budget - num_tokens
        if need:
            pool.allocate(need)
        if self._names_emitting or cache.registers_decodes:
            self._serve_each(plan)
        if num_tokens > 0:
            self._serve_prompt(plan, num_tokens)
        return budget - num_tokens

    def _serve_each(self, plan: StepPlan) -> None:
        """Note what the step means to each decoding sequence."""
        cache = self._cache
        next_step = self._seats.decodes.step + 1
        for sequence in self._seats.running:
            if sequence.state == DECODING:
                sequence.registration_lag = sequence.in_flight
                if cache.registers_decodes:
                    cache.register(sequence, sequence.anchor + next_step)
                if self._names_emitting:
                    plan.emitting.append(sequence)

    def _serve_in_order(self, plan: StepPlan, num_tokens: int, prompt_blocks: int) -> None:
        """Serve one after the other, the prompt (if `num_tokens` > 0) in its place."""
        step = self._seats.decodes.step
        for sequence in self._seats.running:
            if sequence.state == DECODING:
                sequence.registration_lag = sequence.in_flight
                self._cache.decode(sequence, sequence.anchor + step)
                if self._names_emitting:
                    plan.emitting.append(sequence)
            elif num_tokens > 0 and sequence is self._seats.prefilling[0]:
                self._cache.pool.allocate(prompt_blocks)
                self._serve_prompt(plan, num_tokens)

    def _serve_prompt(self, plan: StepPlan, num_tokens: int) -> None:
        """Compute the next tokens of the lone unfinished prompt."""
        sequence = self._seats.prefilling[0]
        plan.take_chunk(sequence, num_tokens)
        self._cache.register(sequence, sequence.num_computed)
