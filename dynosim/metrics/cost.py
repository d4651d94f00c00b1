"""What tokens cost in GPU time: the cost that needs no price."""

from typing import Any

TOKENS = 1e6
MS_PER_S = 1000.0

COST_KEYS = (
    "gpu_hours_per_m_output_tokens",
    "gpu_hours_per_m_good_output_tokens",
    "gpu_hours_per_m_tokens",
)


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
