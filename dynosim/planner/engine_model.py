"""What one engine of a pool takes for its work, as the planner sees it before and while it runs."""

from dataclasses import dataclass
from math import ceil
from typing import Protocol

from dynosim.planner.observation import PoolCard
from dynosim.timing.step import StepShape

# What is assumed where a card is silent. Source: Dynamo's planner 1.6.
_MAX_NUM_SEQS = 512
_MAX_NUM_BATCHED_TOKENS = 8192
_MAX_KV_TOKENS = 2_000_000


class PassTimes(Protocol):
    """How long a step takes: a step-time model, or a fit to steps that were seen."""

    def step_ms(self, step: StepShape) -> float:
        """Milliseconds of one step."""
        ...


@dataclass(frozen=True, slots=True)
class RequestMix:
    """The requests of an interval, as means.

    `isl`, `osl`: tokens of prompts and answers. `hit_rate`: share of prompt tokens that were
    cached. `accept_length`: tokens that a decode step yields for one sequence.
    """

    isl: float
    osl: float
    hit_rate: float = 0.0
    accept_length: float = 1.0

    @property
    def computed_isl(self) -> int:
        """Prompt tokens to compute. A hit rate above 0.95 counts as that: means hide misses."""
        return max(1, ceil(self.isl * (1 - min(0.95, self.hit_rate)) - 1e-9))

    @property
    def cached_isl(self) -> int:
        """Prompt tokens found in the cache."""
        return max(0, ceil(self.isl - 1e-9) - self.computed_isl)

    @property
    def context_tokens(self) -> int:
        """Tokens of a sequence half through its answer."""
        return max(1, int(self.isl + self.osl / 2))


@dataclass(frozen=True, slots=True)
class EngineModel:
    """Times of one engine within its limits.

    `ttft_factor` and `itl_factor` are what the times of prompts and of decode steps are multiplied
    by, where observation has shown the times to be off. `spreads_prompts`: whether an aggregated
    engine computes a part of prompts in each step, not as much of one at a time as fits.
    """

    times: PassTimes
    max_num_seqs: int = _MAX_NUM_SEQS
    max_num_batched_tokens: int = _MAX_NUM_BATCHED_TOKENS
    max_kv_tokens: int = _MAX_KV_TOKENS
    ttft_factor: float = 1.0
    itl_factor: float = 1.0
    spreads_prompts: bool = False

    @staticmethod
    def of(
        card: PoolCard, times: PassTimes, ttft_factor: float = 1.0, itl_factor: float = 1.0
    ) -> "EngineModel":
        """An engine of a pool, with Dynamo's limits where its card has none."""
        return EngineModel(
            times,
            card.max_num_seqs or _MAX_NUM_SEQS,
            card.max_num_batched_tokens or _MAX_NUM_BATCHED_TOKENS,
            card.max_kv_tokens or _MAX_KV_TOKENS,
            ttft_factor,
            itl_factor,
        )

    def prompts_ms(
        self, tokens: float, mix: RequestMix, num_decodes: int = 0, decode_kv_tokens: float = 0
    ) -> float:
        """Until `tokens` of prompts are computed, in steps as full as they may be.

        Prompts are as long as the mix says; decodes ride along in each step.
        """
        room = max(1, self.max_num_batched_tokens - num_decodes)
        own, cached = mix.computed_isl, mix.cached_isl
        left, done, total_ms = max(1, ceil(tokens - 1e-9)), 0, 0.0
        while left > 0:
            chunk = min(left, room)
            num_prompts = max(1, ceil((done + chunk) / own) - done // own)
            computed = done % own  # of the prompt that the step before left unfinished
            shape = StepShape(
                num_prompts,
                chunk,
                num_prompts * cached + computed,
                num_decodes,
                round(decode_kv_tokens),
            )
            total_ms += self.times.step_ms(shape)
            left -= chunk
            done += chunk
        return total_ms * self.ttft_factor

    def decode_ms(self, num_decodes: int, decode_kv_tokens: float) -> float:
        """One step in which all decode."""
        shape = StepShape.of_decodes(num_decodes, round(decode_kv_tokens))
        return self.times.step_ms(shape) * self.itl_factor

    def mixed_ms(
        self, prefill_tokens: int, num_decodes: int, decode_kv_tokens: float, mix: RequestMix
    ) -> float:
        """One step in which some decode while `prefill_tokens` of prompts are computed."""
        num_prompts = ceil(prefill_tokens / mix.computed_isl)
        shape = StepShape(
            num_prompts,
            prefill_tokens,
            num_prompts * mix.cached_isl,
            num_decodes,
            round(decode_kv_tokens),
        )
        return self.times.step_ms(shape) * self.itl_factor
