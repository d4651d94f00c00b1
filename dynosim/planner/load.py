"""One replica more, one fewer or none: from what the engines of a pool report of themselves.

Up if the pool is overloaded now; down only if what is there, spread over one engine fewer, would
not ask for that engine back. That, and that nothing is decided while replicas come or go, is what
keeps a pool from swinging. Source of the rules and thresholds: Dynamo's planner 1.6.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from dynosim.planner.engine_model import EngineModel, RequestMix
from dynosim.planner.observation import EngineReport
from dynosim.planner.vote import Vote

SCALE_UP = "scale_up"
SCALE_DOWN = "scale_down"
NO_CHANGE = "no_change"
REFUSED = "scale_down_refused_consolidation"


@dataclass(frozen=True, slots=True)
class LoadThresholds:
    """When an engine's load asks for one more (any engine's) or allows one fewer (all engines').

    `up_at` and `down_at` say whether the threshold itself counts. `unit` is for sentences.
    """

    what: str
    up: float
    down: float
    up_at: bool
    down_at: bool
    unit: str = ""

    def asks_for_more(self, load: float) -> bool:
        """Whether an engine is overloaded."""
        return load > self.up or (self.up_at and load == self.up)

    def allows_fewer(self, load: float) -> bool:
        """Whether an engine has next to nothing to do."""
        return load < self.down or (self.down_at and load == self.down)


QUEUE = "queued prompt tokens by context length"
KV = "KV in use and asked for by KV there is"
EASY: dict[tuple[str, str], LoadThresholds] = {
    ("throughput", "prefill"): LoadThresholds(QUEUE, 1.0, 0.1, True, False),
    ("latency", "prefill"): LoadThresholds(QUEUE, 0.1, 0.0, True, True),
    ("throughput", "decode"): LoadThresholds(KV, 1.0, 0.6, False, False),
    ("latency", "decode"): LoadThresholds(KV, 0.4, 0.1, False, False),
}
"""By target and role; an aggregated pool goes by "decode", its queued prompts added to the KV."""


def threshold_load(role: str, target: str, report: EngineReport, size: int) -> float:
    """An engine's load as `EASY` and the thresholds of "load" measure it.

    `size`: of a prefill engine the longest request's tokens, of others the KV tokens it can hold.
    For "load" in tokens (prefill) or percent (others).
    """
    if role == "prefill":
        tokens = report.queued_prefill_tokens
        return float(tokens) if target == "load" else tokens / size
    held = report.decode_kv_tokens + report.queued_decode_kv_tokens
    if role == "agg":
        held += report.queued_prefill_tokens
    return held / size * (100.0 if target == "load" else 1.0)


def by_thresholds(loads: Sequence[float], rule: LoadThresholds) -> Vote:
    """A pool's vote; one load for each of its engines, at least one."""
    num, most, unit = len(loads), max(loads), rule.unit
    figures = {"load_max": most, "load_mean": sum(loads) / num}
    what = f"{rule.what}: the most of {num} engines is {most:.4g}{unit}"
    if rule.asks_for_more(most):
        return Vote(1, SCALE_UP, (f"{what}, one more from {rule.up:g}{unit}",), figures)
    if not all(rule.allows_fewer(load) for load in loads):
        between = f"between {rule.down:g}{unit} and {rule.up:g}{unit}"
        return Vote(0, NO_CHANGE, (f"{what}, {between}",), figures)
    if num > 1:
        then = most * num / (num - 1)
        if then >= rule.up:
            reason = f"{what}; on {num - 1} it would be {then:.4g}{unit}, {rule.up:g}{unit} or more"
            return Vote(0, REFUSED, (reason,), figures, is_at_ease=True)
    reasons = (f"{what}, one fewer from {rule.down:g}{unit}",)
    return Vote(-1, SCALE_DOWN, reasons, figures, is_at_ease=True)


def by_ttft(
    reports: Sequence[EngineReport],
    engine: EngineModel,
    mix: RequestMix,
    ttft_ms: float,
    sensitivity: float,
) -> Vote:
    """Whether the next request's first token is in time, behind what each engine has queued.

    `sensitivity`: share of the wait that the target leaves which fewer engines must stay below.
    """
    num = len(reports)
    own_ms = engine.prompts_ms(mix.computed_isl, mix)
    waits_ms = [_ttft_ms(report, engine, mix, 1.0) for report in reports]
    figures = {
        "estimated_ttft_ms_max": max(waits_ms),
        "estimated_ttft_ms_min": min(waits_ms),
        "own_prefill_ms": own_ms,
        "queued_prefill_tokens_max": float(max(one.queued_prefill_tokens for one in reports)),
    }
    what = f"TTFT behind the queues of {num} engines {_span(waits_ms)} ms, target {ttft_ms:g} ms"
    if min(waits_ms) > ttft_ms:
        return Vote(1, SCALE_UP, (f"{what}: all are above it",), figures)
    allowed_ms = (ttft_ms - own_ms) * sensitivity
    at_ease = max(waits_ms) - own_ms < allowed_ms
    if num == 1:
        told = f"{what}: the only one, and not idle"
        return Vote(0, NO_CHANGE, (told,), figures, at_ease)
    then_ms = max(_ttft_ms(report, engine, mix, num / (num - 1)) - own_ms for report in reports)
    rest = f"waiting would be {then_ms:.4g} ms with one fewer, {allowed_ms:.4g} ms are allowed"
    if then_ms < allowed_ms:
        return Vote(-1, SCALE_DOWN, (f"{what}; {rest}",), figures, at_ease)
    return Vote(0, REFUSED if at_ease else NO_CHANGE, (f"{what}; {rest}",), figures, at_ease)


def by_itl(
    reports: Sequence[EngineReport],
    engine: EngineModel,
    mix: RequestMix,
    itl_ms: float,
    sensitivity: float,
) -> Vote:
    """Whether tokens follow each other in time on engines that take one request more."""
    num = len(reports)
    gaps_ms = [_itl_ms(report, engine, mix) for report in reports]
    kv_tokens = [report.decode_kv_tokens + report.queued_decode_kv_tokens for report in reports]
    figures = {
        "estimated_itl_ms_max": max(gaps_ms),
        "estimated_itl_ms_min": min(gaps_ms),
        "kv_tokens_max": float(max(kv_tokens)),
    }
    what = f"ITL of {num} engines with one request more {_span(gaps_ms)} ms, target {itl_ms:g} ms"
    if min(gaps_ms) > itl_ms:
        return Vote(1, SCALE_UP, (f"{what}: all are above it",), figures)
    allowed_ms = itl_ms * sensitivity
    at_ease = max(gaps_ms) < allowed_ms
    if num == 1:
        told = f"{what}: the only one, and not idle"
        return Vote(0, NO_CHANGE, (told,), figures, at_ease)
    spread = num / (num - 1)
    then_ms = max(_itl_ms(report, engine, mix, spread) for report in reports)
    then_kv = max(kv_tokens) * spread
    rest = (
        f"with one fewer {then_ms:.4g} ms and {then_kv:.0f} KV tokens, "
        f"allowed are {allowed_ms:.4g} ms and {engine.max_kv_tokens}"
    )
    if then_ms < allowed_ms and then_kv < engine.max_kv_tokens:
        return Vote(-1, SCALE_DOWN, (f"{what}; {rest}",), figures, at_ease)
    return Vote(0, REFUSED if at_ease else NO_CHANGE, (f"{what}; {rest}",), figures, at_ease)


def both(first: Vote, second: Vote) -> Vote:
    """Of a pool with two votes: up if either says so, down if both do."""
    reasons, figures = first.reasons + second.reasons, first.figures | second.figures
    at_ease = first.is_at_ease and second.is_at_ease
    if max(first.step, second.step) > 0:
        return Vote(1, SCALE_UP, reasons, figures)
    if max(first.step, second.step) < 0:
        return Vote(-1, SCALE_DOWN, reasons, figures, at_ease)
    verdict = REFUSED if REFUSED in (first.verdict, second.verdict) else NO_CHANGE
    return Vote(0, verdict, reasons, figures, at_ease)


def _ttft_ms(report: EngineReport, engine: EngineModel, mix: RequestMix, spread: float) -> float:
    """First token of one prompt more behind `spread` times the queue; decodes ride along."""
    computed = mix.computed_isl / mix.isl
    queued = report.queued_prefill_tokens * spread * computed
    decoding = 0
    if report.decode_kv_tokens:
        decoding = min(report.num_running, max(1, report.decode_kv_tokens // mix.context_tokens))
    return engine.prompts_ms(queued + mix.computed_isl, mix, decoding, report.decode_kv_tokens)


def _itl_ms(
    report: EngineReport, engine: EngineModel, mix: RequestMix, spread: float = 1.0
) -> float:
    """A decode step of what runs and waits to, times `spread`, and one request more."""
    kv_tokens = (report.decode_kv_tokens + report.queued_decode_kv_tokens) * spread
    waiting = report.queued_decode_kv_tokens / mix.context_tokens
    num_seqs = round((report.num_running + waiting) * spread) + 1
    return engine.decode_ms(num_seqs, kv_tokens + mix.context_tokens) / mix.accept_length


def _span(values: Sequence[float]) -> str:
    low, high = f"{min(values):.4g}", f"{max(values):.4g}"
    return low if low == high else f"{low} to {high}"
