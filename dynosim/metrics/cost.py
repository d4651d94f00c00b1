"""What tokens cost: GPU time always, money with a price, energy where the power is known."""

from dataclasses import dataclass
from typing import Any

TOKENS = 1e6
MS_PER_S = 1000.0
S_PER_HOUR = 3600.0
W_PER_MW = 1e6

_KINDS = ("output_tokens", "good_output_tokens", "tokens")
COST_KEYS = tuple(f"gpu_hours_per_m_{kind}" for kind in _KINDS)
MONEY_KEYS = tuple(f"cost_per_m_{kind}" for kind in _KINDS)
ENERGY_KEYS = ("energy_j_per_output_token", "output_tok_s_per_mw", "energy_source")
ESTIMATED = "estimated"


@dataclass(frozen=True, slots=True)
class Power:
    """What a GPU draws: without work, and at most. `pue` is how much more its building takes."""

    idle_w: float
    tdp_w: float
    pue: float = 1.0


def cost_keys(report: dict[str, Any]) -> dict[str, float | None]:
    """GPU hours per million tokens, from the other keys of a report.

    Good tokens are those of requests within the SLA: what is wasted on others, and on idle GPUs, is
    part of their cost. Total tokens are prompts' and answers'. None where there are none.
    """
    hours = report["gpu_hours"]
    outputs, inputs = report["total_output_tokens"], report["total_input_tokens"]
    good_tok_s = report["goodput_output_throughput_tok_s"]
    good = None if good_tok_s is None else good_tok_s * report["duration_ms"] / MS_PER_S
    tokens = (outputs, good, inputs + outputs)
    return {
        key: None if not amount else float(hours) * TOKENS / float(amount)
        for key, amount in zip(COST_KEYS, tokens, strict=True)
    }


def money_keys(report: dict[str, Any], gpu_hour: float | None) -> dict[str, float | None]:
    """The same hours at a price of each; None without one."""
    hours = (report[key] for key in COST_KEYS)
    return {
        key: None if gpu_hour is None or amount is None else gpu_hour * amount
        for key, amount in zip(MONEY_KEYS, hours, strict=True)
    }


def energy_keys(report: dict[str, Any], power: Power | None) -> dict[str, float | str | None]:
    """Energy of an output token, and output tokens a second and megawatt of the building.

    A GPU is taken to draw its idle power, and what is missing to its limit in the share of its time
    in which it computes; so it is estimated, and rather too much. None where the power is unknown.
    """
    if power is None:
        return dict.fromkeys(ENERGY_KEYS)
    mean_w = power.idle_w + (report["worker_busy_share"] or 0.0) * (power.tdp_w - power.idle_w)
    energy_j = power.pue * mean_w * report["gpu_hours"] * S_PER_HOUR
    tokens = report["total_output_tokens"]
    values = (
        energy_j / tokens if tokens else None,
        tokens * W_PER_MW / energy_j if energy_j else None,
        ESTIMATED,
    )
    return dict(zip(ENERGY_KEYS, values, strict=True))
