"""How many requests a second one engine serves within the targets, and which targets it can meet.

The engine is taken to be in balance: what comes is what leaves. Batches up to its limits are tried,
and the best of those within the targets counts. Queueing is not in it: load scaling sees that.
Source of the rules: Dynamo's planner 1.6 (engine queries); unlike there, cached prefixes weigh on
the steps that attend to them, targets that no batch meets give way as little as they can, and an
aggregated engine computes prompts in as few steps as they fit in, as engines do.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import ceil, inf

from dynosim.planner.engine_model import EngineModel, RequestMix
from dynosim.planner.operating_point import OperatingPoint

_ALL_UP_TO = 32
"""Batches that are all tried; beyond, two an octave, then as many again around the best."""
BEST_EFFORT = 1.25
"""Where no batch meets the targets: how far from the nearest to them a batch may be."""


def best_point(
    role: str, engine: EngineModel, mix: RequestMix, ttft_ms: float, itl_ms: float
) -> OperatingPoint:
    """The most requests a second within the targets, by an engine of a role.

    If no batch meets them: within `BEST_EFFORT` of the nearest to them.
    """
    return _best(operating_points(role, engine, mix, ttft_ms, itl_ms))


def _best(points: list[OperatingPoint]) -> OperatingPoint:
    meeting = [point for point in points if point.meets_targets]
    if not meeting:
        allowed = BEST_EFFORT * min(point.miss for point in points)
        meeting = [point for point in points if point.miss <= allowed]
    return max(meeting, key=lambda point: (point.rps, -point.miss))


@dataclass(frozen=True, slots=True)
class Reach:
    """Whether targets can be met at all, and the nearest to them: one request after the other."""

    is_reachable: bool
    ttft_ms: float | None
    itl_ms: float | None

    def sentence(self, ttft_ms: float, itl_ms: float) -> str:
        """What to tell a user who asked for `ttft_ms` and `itl_ms`."""
        asked, nearest = [], []
        for name, wanted, found in (("TTFT", ttft_ms, self.ttft_ms), ("ITL", itl_ms, self.itl_ms)):
            if found is not None:
                asked.append(f"{name} {wanted:g} ms")
                nearest.append(f"{name} {found:.4g} ms")
        word = "can" if self.is_reachable else "cannot"
        return (
            f"one engine {word} meet {' and '.join(asked)}; "
            f"the nearest that it reaches is {' and '.join(nearest)}"
        )


def reachable(
    role: str, engine: EngineModel, mix: RequestMix, ttft_ms: float, itl_ms: float
) -> Reach:
    """Whether an engine of a role can meet the targets with any batch. To ask before a run."""
    points = operating_points(role, engine, mix, ttft_ms, itl_ms)
    nearest = min(points, key=lambda point: (point.miss, -point.rps))
    return Reach(nearest.meets_targets, nearest.ttft_ms, nearest.itl_ms)


def operating_points(
    role: str, engine: EngineModel, mix: RequestMix, ttft_ms: float, itl_ms: float
) -> list[OperatingPoint]:
    """Batches that an engine of a role can run, and what they come to; at least one."""
    most, at = _ROLES[role](engine, mix, ttft_ms, itl_ms)
    sizes = list(range(1, min(max(1, most), _ALL_UP_TO) + 1))
    while sizes[-1] < most:
        sizes.append(min(most, ceil(sizes[-1] * 1.4142)))
    points = _tried(at, sizes)
    if most > _ALL_UP_TO and len(points) > 1:
        best = points.index(_best(points))
        low = points[max(0, best - 1)].num_seqs
        high = sizes[min(len(sizes) - 1, best + 1)]
        step = max(1, (high - low) // _ALL_UP_TO)
        points += _tried(at, range(low + 1, high, step))
    return points or [_one_by_one(engine, mix, ttft_ms, itl_ms)]


_At = Callable[[int], OperatingPoint | None]


def _tried(at: _At, sizes: Iterable[int]) -> list[OperatingPoint]:
    return [point for size in sizes if (point := at(size)) is not None]


def _prefill_points(
    engine: EngineModel, mix: RequestMix, ttft_ms: float, itl_ms: float
) -> tuple[int, _At]:
    """Prompts computed together, all of which have their first token when the last one is."""
    tokens = mix.computed_isl

    def at(num_seqs: int) -> OperatingPoint:
        own_ms = engine.prompts_ms(num_seqs * tokens, mix)
        rps = _per_second(num_seqs, own_ms)
        return OperatingPoint(rps, num_seqs, own_ms, None, own_ms / ttft_ms)

    return min(engine.max_num_seqs, engine.max_num_batched_tokens // tokens), at


def _decode_points(
    engine: EngineModel, mix: RequestMix, ttft_ms: float, itl_ms: float
) -> tuple[int, _At]:
    context = mix.context_tokens

    def at(num_seqs: int) -> OperatingPoint:
        gap_ms = engine.decode_ms(num_seqs, num_seqs * context) / mix.accept_length
        rps = _per_second(num_seqs, max(1.0, mix.osl) * gap_ms)
        return OperatingPoint(rps, num_seqs, None, gap_ms, gap_ms / itl_ms)

    return min(engine.max_num_seqs, engine.max_kv_tokens // context), at


def _aggregated_points(
    engine: EngineModel, mix: RequestMix, ttft_ms: float, itl_ms: float
) -> tuple[int, _At]:
    """As much of prompts is computed as decodes, in balance, make room for."""
    context, tokens, osl = mix.context_tokens, mix.computed_isl, max(1.0, mix.osl)
    budget = engine.max_num_batched_tokens

    def at(num_seqs: int) -> OperatingPoint | None:
        share = ceil(num_seqs * mix.accept_length * tokens / osl - 1e-9)
        if share > budget - num_seqs:
            return None
        kv_tokens = num_seqs * context
        gap_ms = _gap_ms(engine, mix, share, num_seqs) / mix.accept_length
        first_ms = engine.prompts_ms(share + tokens, mix, num_seqs, kv_tokens)
        miss = max(first_ms / ttft_ms, gap_ms / itl_ms)
        rps = _per_second(num_seqs, osl * gap_ms)
        return OperatingPoint(rps, num_seqs, first_ms, gap_ms, miss)

    return min(engine.max_num_seqs, engine.max_kv_tokens // context, budget - 1), at


def _gap_ms(engine: EngineModel, mix: RequestMix, share: int, num_seqs: int) -> float:
    """A step on average: prompts are computed as far at a time as they are long and there is room,
    in as many steps as that takes, or in every step as much as is its share."""
    kv_tokens = num_seqs * mix.context_tokens
    if engine.spreads_prompts:
        return engine.mixed_ms(share, num_seqs, kv_tokens, mix)
    chunk = max(share, min(mix.computed_isl, engine.max_num_batched_tokens - num_seqs))
    with_prompts = share / chunk
    return with_prompts * engine.mixed_ms(chunk, num_seqs, kv_tokens, mix) + (
        1 - with_prompts
    ) * engine.decode_ms(num_seqs, kv_tokens)


def _one_by_one(
    engine: EngineModel, mix: RequestMix, ttft_ms: float, itl_ms: float
) -> OperatingPoint:
    """Prompts so long beside their answers that no balance fits: one request after the other."""
    first_ms = engine.prompts_ms(mix.computed_isl, mix)
    gap_ms = engine.decode_ms(1, mix.context_tokens) / mix.accept_length
    rps = _per_second(1, first_ms + gap_ms * max(0.0, mix.osl - 1))
    return OperatingPoint(rps, 1, first_ms, gap_ms, max(first_ms / ttft_ms, gap_ms / itl_ms))


def _per_second(num_seqs: int, took_ms: float) -> float:
    return num_seqs / took_ms * 1e3 if took_ms > 0 else inf


_Role = Callable[[EngineModel, RequestMix, float, float], tuple[int, _At]]
_ROLES: dict[str, _Role] = {
    "prefill": _prefill_points,
    "decode": _decode_points,
    "agg": _aggregated_points,
}
"""By role: the largest batch, and what a batch comes to."""
