"""What a report says of tiers of KV below the devices. All None without any."""

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dynosim.metrics.percentiles import summarize_sample
from dynosim.records import FloatArray, RequestLog, RunResult

TIER_NAMES: Final = ("host", "peers", "disk", "remote")
TIER_COUNTS: Final = ("stored", "evicted", "resident", "loaded")
_REUSE: Final = ("device_reused_ratio", "onboarded_ratio", "beyond_onboarded_ratio")
_TIMES: Final = ("mean_onboard_ms", "median_onboard_ms", "p99_onboard_ms")


def onboard_ms(log: RequestLog) -> FloatArray:
    """From the step with which a load from tiers began to its end; NaN where nothing was loaded."""
    if log.onboards is None:
        return np.full(len(log.status), np.nan)
    return log.onboards.end_ms - log.onboards.start_ms


def tier_keys(result: RunResult, completed: NDArray[np.bool_]) -> dict[str, Any]:
    """Where reused prompt tokens came from, how long loads took, and what went in and out of each
    tier."""
    log = result.requests
    keys: dict[str, Any] = dict.fromkeys((*_REUSE, "onboarded_requests", *_TIMES))
    keys |= {f"{name}_{count}_blocks": None for name in TIER_NAMES for count in TIER_COUNTS}
    if log.onboards is None:
        return keys
    for tier in result.tiers:
        keys |= {f"{tier.name}_{count}_blocks": getattr(tier, f"{count}_blocks")
                 for count in TIER_COUNTS}  # fmt: skip
    inputs = int(log.input_tokens[completed].sum())
    # Of a prompt that is there to its last token, that one is computed again.
    onboarded = np.minimum(log.onboards.num_tokens, log.cached_tokens)
    beyond = np.minimum(log.onboards.num_beyond, onboarded)
    for name, tokens in zip(
        _REUSE, (log.cached_tokens - onboarded, onboarded, beyond), strict=True
    ):
        keys[name] = int(tokens[completed].sum()) / inputs if inputs else None
    keys["onboarded_requests"] = int((log.onboards.num_tokens[completed] > 0).sum())
    sample = summarize_sample(onboard_ms(log)[completed])
    return keys | {key: sample.statistics[key.partition("_")[0]] for key in _TIMES}
