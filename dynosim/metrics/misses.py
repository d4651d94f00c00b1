"""Which bound requests miss, and which requests those are, in words."""

from collections.abc import Mapping
from typing import Any

from dynosim.metrics.carried import NOT_SERVED

_NAMES = {"ttft_ms": "TTFT", "tpot_ms": "time per token", "e2e_ms": "end to end"}


def misses_text(verdict: Mapping[str, Any]) -> str:
    """What most of those that miss something miss, as in "15 % miss TTFT (median prompt 31,000
    tokens)"; empty where none do. `verdict` are the fields of a `LoadVerdict`."""
    misses, num_judged = verdict["misses"], verdict["num_judged"]
    if not misses or not num_judged:
        return ""
    name, number = next(iter(misses.items()))
    share = _percent(number / num_judged)
    what = "are not served" if name == NOT_SERVED else f"miss {_NAMES[name]}"
    return f"{share} {what} (median prompt {verdict['miss_tokens'][name]:,.0f} tokens)"


def _percent(share: float) -> str:
    percent = 100.0 * share
    return f"{percent:.0f} %" if percent >= 10 else f"{percent:.2g} %"
