"""AIConfigurator's closed form of a serving engine: no arrivals, no queue, no host, mean steps.

What its estimates of releases 0.5 and 0.6 are made of, from the times of two steps. It explains
published tables and stands beside a run of the twin; nothing in the twin uses it. Rules: those
releases' aggregated estimate and rate matching of two pools (`dynosim.timing.mean_field`).
"""

from dataclasses import dataclass

from dynosim.timing.mean_field import ALLOWANCES, MS_PER_S, answer_steps, cycle_ms, steps_for

PREFILL_CORRECTION, DECODE_CORRECTION = 1.1, 1.08
"""What multiplies the times of the tables there; an aggregated engine's are taken as they are."""

_UNCOUNTED_STEPS = 3  # mixed steps that no request's time per token counts


@dataclass(frozen=True, slots=True, kw_only=True)
class EqualLoad:
    """Equal requests."""

    isl: int
    osl: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Means. `tokens_per_s` is of one engine, or of all of a disaggregated cluster."""

    ttft_ms: float
    tpot_ms: float
    tokens_per_s: float

    def latency_ms(self, load: EqualLoad) -> float:
        """From a request to its last token."""
        return self.ttft_ms + (load.osl - 1) * self.tpot_ms


def mixed_steps(load: EqualLoad, batch: int, step_tokens: int) -> int:
    """Steps in which the prompts of a batch are computed, so many tokens in each."""
    return steps_for(load.isl * batch, step_tokens)


def queue_factor(num_mixed: int) -> float:
    """How many times its own prompt a request is said to wait for its first token."""
    return min(2 + (num_mixed - 3) / 20, 4.0)


def aggregated(
    load: EqualLoad, *, batch: int, step_tokens: int, mixed_ms: float, decode_ms: float
) -> Estimate:
    """One engine with `batch` requests in flight, whose prompts refill in fewer steps than `osl`.

    Raises: ValueError where prompts fill every step, which other rules are for.
    """
    num_mixed = mixed_steps(load, batch, step_tokens)
    if num_mixed >= load.osl:
        raise ValueError(f"{num_mixed} mixed steps do not go into an answer of {load.osl} tokens")
    num_plain = load.osl - num_mixed
    counted = max(1, num_mixed - _UNCOUNTED_STEPS)
    period_ms = cycle_ms(num_mixed, mixed_ms, num_plain, decode_ms)
    return Estimate(
        ttft_ms=mixed_ms * steps_for(load.isl, step_tokens) * queue_factor(num_mixed),
        tpot_ms=cycle_ms(counted, mixed_ms, num_plain, decode_ms) / (counted + num_plain),
        tokens_per_s=MS_PER_S * batch * (load.osl - 1) / period_ms,
    )


def steps_of(
    load: EqualLoad, *, batch: int, step_tokens: int, ttft_ms: float, tokens_per_s: float
) -> tuple[float, float]:
    """The mixed and the plain step (ms) from which `aggregated` has these two figures."""
    num_mixed = mixed_steps(load, batch, step_tokens)
    mixed_ms = ttft_ms / queue_factor(num_mixed) / steps_for(load.isl, step_tokens)
    period_ms = MS_PER_S * batch * (load.osl - 1) / tokens_per_s
    return mixed_ms, (period_ms - num_mixed * mixed_ms) / (load.osl - num_mixed)


def disaggregated(
    load: EqualLoad, *, prefill_workers: int, prefill_ms: float, in_decode: int, decode_ms: float
) -> Estimate:
    """Workers that compute one prompt at a time, and others that decode `in_decode` together."""
    prefill_rps = ALLOWANCES.prefill * prefill_workers * MS_PER_S / prefill_ms
    decode_rps = ALLOWANCES.decode * in_decode * MS_PER_S / (decode_ms * answer_steps(load.osl))
    return Estimate(
        ttft_ms=ALLOWANCES.ttft * prefill_ms,
        tpot_ms=decode_ms,
        tokens_per_s=load.osl * min(prefill_rps, decode_rps),
    )
