"""Whether a run carried its load: enough requests within the SLA, and no queue that grows.

Judged are the requests that arrive inside the window of `in_system`. The load is carried if

* at least `attainment` of them keep every bound; one that is rejected, fails or is not finished
  misses (where a statistic is named in its place: that of each bounded latency is within its bound,
  and who is not served has waited for ever);
* the last third of the window does, too, within its statistical error (95 %, or more where the
  parts of the window before it differ by more than single requests would): a run that is about to
  collapse begins well;
* what is in the system does not grow (`in_system`). In a closed loop it cannot.
"""

from dataclasses import dataclass, field
from math import isfinite, sqrt

import numpy as np
from numpy.typing import NDArray

from dynosim.metrics.in_system import growth_in_system, mean_in_system, measuring_window
from dynosim.metrics.percentiles import PERCENTILES, percentile
from dynosim.metrics.resampling import drawn_attainments
from dynosim.records import FloatArray, IntArray, RequestLog, RequestStatus

CONFIDENCE = 1.96
NUM_PARTS, NUM_LATE = 18, 6
"""Parts of the window that are compared, and those of its last third."""

BoolArray = NDArray[np.bool_]
NOT_SERVED = "not served"
OVERLOADED = "overloaded"


@dataclass(frozen=True, slots=True)
class Bounds:
    """What every request must keep; None: no bound. All in ms."""

    ttft_ms: float | None = None
    tpot_ms: float | None = None  # mean gap between a request's tokens
    e2e_ms: float | None = None

    def measured(self, log: RequestLog) -> dict[str, tuple[FloatArray, float]]:
        """By name of each bound that is set what requests took, (n,) in ms, and the bound.

        NaN where there is nothing to measure: a request of a single token has no gap.
        """
        gaps = np.where(log.output_tokens > 1, log.output_tokens - 1, np.nan)
        measured = (
            ("ttft_ms", log.first_token_ms - log.arrival_ms, self.ttft_ms),
            ("tpot_ms", (log.finish_ms - log.first_token_ms) / gaps, self.tpot_ms),
            ("e2e_ms", log.finish_ms - log.arrival_ms, self.e2e_ms),
        )
        return {name: (values, bound) for name, values, bound in measured if bound is not None}


@dataclass(frozen=True, slots=True)
class SlaTarget:
    """What is asked of a load: of how many requests the bounds must be kept, or by which statistic
    of each latency (a name of `percentiles.STATISTICS`)."""

    bounds: Bounds = field(default_factory=Bounds)
    attainment: float = 0.95
    statistic: str | None = None


@dataclass(frozen=True, slots=True)
class LoadVerdict:
    """Whether a load was carried, and why not."""

    is_carried: bool
    reason: str  # empty if it was
    attainment: float | None  # of the requests in the window; None: there are none
    num_judged: int
    start_ms: float
    end_ms: float
    growth: float | None = None  # of the number in the system; None: a closed loop
    misses: dict[str, int] = field(default_factory=dict)  # requests by what they miss, most first
    draws: tuple[float, ...] = ()  # attainment if other sessions had come, see `resampling`
    in_flight: float | None = None  # requests in the system, on average over the window
    miss_tokens: dict[str, float] = field(default_factory=dict)  # median prompt of those that miss


def judge_load(log: RequestLog, target: SlaTarget, session: IntArray | None = None) -> LoadVerdict:
    """The verdict of this module on a run. With the `session` of each request it says how sure the
    attainment is."""
    start_ms, end_ms = measuring_window(log)
    inside = (log.arrival_ms >= start_ms) & (log.arrival_ms <= end_ms)
    num_judged = int(inside.sum())
    if num_judged == 0:
        return LoadVerdict(False, "nothing arrived", None, 0, start_ms, end_ms)
    served = np.asarray(log.status == RequestStatus.COMPLETED)
    measured = target.bounds.measured(log)
    kept = {name: np.asarray(~(values > bound)) for name, (values, bound) in measured.items()}
    good = served.copy()
    for keeps in kept.values():
        good &= keeps
    reached = float(good[inside].mean())
    growth, limit = growth_in_system(log, start_ms, end_ms)
    missing = {name: inside & served & ~keeps for name, keeps in kept.items()}
    missing[NOT_SERVED] = inside & ~served
    misses = {name: int(those.sum()) for name, those in missing.items() if those.any()}
    draws = () if session is None else tuple(drawn_attainments(session, good, inside).tolist())
    if growth is not None and growth > limit:
        reason = f"{OVERLOADED}: {growth:.0f} more requests in the system at the end"
    elif target.statistic is not None:
        reason = _excess(target, measured, served, inside)
    else:
        part = np.floor((log.arrival_ms - start_ms) * (NUM_PARTS / max(end_ms - start_ms, 1e-9)))
        part = np.where(inside, np.minimum(part, NUM_PARTS - 1), -1.0)
        reason = _shortfall(good, part, target.attainment)
    return LoadVerdict(
        not reason,
        reason,
        reached,
        num_judged,
        start_ms,
        end_ms,
        growth,
        dict(sorted(misses.items(), key=lambda item: -item[1])),
        draws,
        mean_in_system(log, start_ms, end_ms) if end_ms > start_ms else None,
        {name: float(np.median(log.input_tokens[missing[name]])) for name in misses},
    )


def _shortfall(good: BoolArray, part: FloatArray, target: float) -> str:
    """In what the requests of a window, or of its last third, fall short; empty: in nothing.

    `part` is the one of the window's parts, equal in time, that a request arrives in; -1: none.
    """
    reached = float(good[part >= 0].mean())
    if reached < target:
        return f"{reached:.1%} of requests within the SLA"
    late = part >= NUM_PARTS - NUM_LATE
    num_late = int(late.sum())
    if num_late == 0:
        return ""
    reached_late = float(good[late].mean())
    error = max(sqrt(target * (1.0 - target) / num_late), _error_of_parts(good, part))
    if reached_late < target - CONFIDENCE * error:
        return f"{reached_late:.1%} of the last third's requests within the SLA"
    return ""


def _error_of_parts(good: BoolArray, part: FloatArray) -> float:
    """Standard error of the last third's attainment, from how much that of the parts before it
    differs from one to the next: requests that come together wait together."""
    early = (part >= 0) & (part < NUM_PARTS - NUM_LATE)
    index = part[early].astype(np.int64)
    counts = np.bincount(index, minlength=NUM_PARTS - NUM_LATE)
    kept = np.bincount(index, good[early], minlength=NUM_PARTS - NUM_LATE)
    shares = kept[counts > 0] / counts[counts > 0]
    return float(shares.std(ddof=1)) / sqrt(NUM_LATE) if len(shares) > 2 else 0.0


def _excess(
    target: SlaTarget,
    measured: dict[str, tuple[FloatArray, float]],
    served: BoolArray,
    inside: BoolArray,
) -> str:
    """Which statistic of a window is above its bound; empty: none."""
    assert target.statistic is not None
    for name, (values, bound) in measured.items():
        reached = _statistic(np.where(served, values, np.inf)[inside], target.statistic)
        if reached is not None and reached > bound:
            shown = f"{reached:,.0f} ms" if isfinite(reached) else "for ever"
            return f"{target.statistic} of {name} is {shown}, the bound {bound:,.0f} ms"
    return ""


def _statistic(sample: FloatArray, name: str) -> float | None:
    """A statistic of the numbers of a sample, which may be infinite; None where it has none."""
    ordered = np.sort(sample[~np.isnan(sample)])
    if name == "mean":
        return float(ordered.mean()) if len(ordered) else None
    return percentile(ordered, PERCENTILES[name])
