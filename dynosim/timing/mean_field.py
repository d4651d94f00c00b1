"""AIConfigurator's rules for engines whose batch never changes: no arrivals, no queue, mean steps.

A batch is refilled while it decodes: of its cycle some steps compute prompts beside decodes
(mixed), the others decode only (plain). Two pools do what the slower of them does. Rules and
allowances are those of its releases 0.5 and 0.6.
"""

from dataclasses import dataclass
from math import ceil

MS_PER_S = 1000.0
_ROUNDING = 1e-9  # of a step: what sums of floats may be off


@dataclass(frozen=True, slots=True)
class Allowances:
    """Of a disaggregated cluster: what it loses against pools that are never idle.

    `prefill` and `decode` multiply the rate of each pool; `ttft` says how many times a prompt's own
    time the first token takes.
    """

    prefill: float = 0.9
    decode: float = 0.92
    ttft: float = 1.8


ALLOWANCES = Allowances()
"""AIConfigurator's own."""


def steps_for(tokens: float, step_tokens: int) -> int:
    """Steps in which so many prompt tokens are computed, so many in each."""
    return ceil(tokens / step_tokens - _ROUNDING)


def cycle_ms(num_mixed: float, mixed_ms: float, num_plain: float, plain_ms: float) -> float:
    """How long a batch takes from its prompts to its last tokens."""
    return num_mixed * mixed_ms + num_plain * plain_ms


def answer_steps(output_tokens: float) -> float:
    """Steps of an answer whose first token comes from elsewhere."""
    return max(1.0, output_tokens - 1.0)
