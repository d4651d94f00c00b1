"""What layouts should do at best, by step times of steady batches: a screen for large spaces.

The mean field knows no arrivals, no queues and no single request: all prompts and answers are of
the mean length, and every worker runs one batch that never changes its size. Formulas and factors
are AIConfigurator's (`dynosim.timing.mean_field`), so that the numbers can be laid beside its own;
the step times are those that the simulator uses.

Aggregated: of a cycle in which a worker's `b` requests are served, `ceil(b isl / budget)` steps
compute prompts beside tokens, the others only tokens. TTFT is that of a mixed step, as often as the
prompt needs one; TPOT the mean over the steps of the cycle.

Disaggregated: the rate is the smallest of what the prefill workers, the decode workers and the
links can do, each pool by itself and its rate times a factor; TTFT is the prefill times a factor,
and the transfer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, inf

import numpy as np

from dynosim.engine.spec import EngineSpec
from dynosim.records import FloatArray, IntArray
from dynosim.timing.mean_field import (
    ALLOWANCES,
    MS_PER_S,
    Allowances,
    answer_steps,
    cycle_ms,
    steps_for,
)
from dynosim.timing.model import StepTimeModel
from dynosim.timing.step import StepShape

GROWTH = 1.05
"""From one batch size that is looked at to the next."""


@dataclass(frozen=True, slots=True)
class MeanRequest:
    """A workload by its means. `reused` is the share of a prompt that caches hold."""

    isl: float
    osl: float
    reused: float = 0.0


@dataclass(frozen=True, slots=True)
class MeanBounds:
    """What means must keep; infinite: nothing."""

    ttft_ms: float = inf
    tpot_ms: float = inf
    e2e_ms: float = inf


@dataclass(frozen=True, slots=True)
class MeanField:
    """What a layout should do: all of it, not a worker. `batch` is that of a rank which answers."""

    rps: float
    ttft_ms: float
    tpot_ms: float
    osl: float
    num_gpus: int
    batch: int
    limit: str  # what bounds it: batch, prefill, decode, link, load

    @property
    def e2e_ms(self) -> float:
        """Of a request, from its arrival to its last token."""
        return self.ttft_ms + self.tpot_ms * (self.osl - 1.0)

    @property
    def tok_s_per_gpu(self) -> float:
        """Output tokens a second and GPU."""
        return self.rps * self.osl / self.num_gpus

    @property
    def tok_s_per_user(self) -> float:
        """Output tokens a second that a user sees behind the first one."""
        return MS_PER_S / self.tpot_ms if self.tpot_ms > 0 else inf


@dataclass(frozen=True, slots=True)
class BatchCurve:
    """Of a worker, by its ranks' batch size: requests a second, and their means."""

    batches: IntArray
    rps: FloatArray
    ttft_ms: FloatArray
    tpot_ms: FloatArray


def batch_sizes(most: int) -> IntArray:
    """From one to the most, each a little larger than the one before."""
    sizes = [1]
    while sizes[-1] < most:
        sizes.append(min(most, max(sizes[-1] + 1, int(sizes[-1] * GROWTH))))
    return np.array(sizes, dtype=np.int64)


def seats_of(engine: EngineSpec, request: MeanRequest) -> int:
    """Requests that a rank can have at once: as many as it may, and as its cache holds."""
    held = int(engine.capacity_tokens / (request.isl + request.osl))
    return max(1, min(engine.max_num_seqs, held))


def step_tokens(engine: EngineSpec, request: MeanRequest) -> int:
    """Prompt tokens of a step."""
    most = engine.max_num_batched_tokens
    return most if engine.enable_chunked_prefill else max(most, ceil(request.isl))


def aggregated_curve(
    engine: EngineSpec, times: StepTimeModel, request: MeanRequest, *, ranks: int = 1
) -> BatchCurve:
    """What a worker that serves whole requests does, by batch size."""
    new_tokens = max(1.0, request.isl * (1.0 - request.reused))
    budget, context = step_tokens(engine, request), request.isl + request.osl / 2
    batches = batch_sizes(seats_of(engine, request))
    plain_ms = times.decode_step_ms_array(batches, np.round(batches * context).astype(np.int64))
    rps, ttft_ms, tpot_ms = (np.empty(len(batches)) for _ in range(3))
    for place, batch in enumerate(batches.tolist()):
        num_mixed = steps_for(new_tokens * batch, budget)
        tokens = min(float(budget), new_tokens * batch)
        prompts = max(1, ceil(tokens / new_tokens - 1e-9))
        decoding = max(0, batch - prompts)
        if num_mixed >= request.osl:  # prompts never end: fewer of a batch are beyond theirs
            decoding = min(decoding, max(1, int(batch * request.osl / num_mixed)))
        mixed_ms = times.step_ms(
            StepShape(
                prompts, round(tokens), round(tokens / new_tokens * request.isl * request.reused),
                decoding, round(decoding * context),
            )
        )  # fmt: skip
        num_plain = max(0.0, request.osl - num_mixed)
        spent_ms = cycle_ms(num_mixed, mixed_ms, num_plain, float(plain_ms[place]))
        rps[place] = ranks * batch * MS_PER_S / spent_ms
        ttft_ms[place] = mixed_ms * steps_for(new_tokens, budget)
        tpot_ms[place] = spent_ms / (num_mixed + num_plain)
    return BatchCurve(batches, rps, ttft_ms + times.ingress_ms + times.egress_ms, tpot_ms)


def prefill_curve(
    engine: EngineSpec, times: StepTimeModel, request: MeanRequest, *, ranks: int = 1
) -> BatchCurve:
    """What a worker that computes prompts does, by how many it computes in a step."""
    new_tokens = max(1.0, request.isl * (1.0 - request.reused))
    budget = step_tokens(engine, request)
    most = max(1, min(engine.max_num_seqs, int(budget / new_tokens)))
    batches = batch_sizes(most)
    num_steps = steps_for(new_tokens, budget)
    cached = request.isl * request.reused
    spent_ms = np.array(
        [
            num_steps
            * times.step_ms(
                StepShape.of_prompts(
                    batch, round(batch * new_tokens / num_steps), round(batch * cached)
                )
            )
            for batch in batches.tolist()
        ]
    )
    rps = ranks * batches * MS_PER_S / spent_ms
    return BatchCurve(batches, rps, spent_ms, np.zeros(len(batches)))


def decode_curve(
    engine: EngineSpec, times: StepTimeModel, request: MeanRequest, *, ranks: int = 1
) -> BatchCurve:
    """What a worker that computes answers does, by batch size."""
    batches = batch_sizes(seats_of(engine, request))
    context = request.isl + request.osl / 2
    tpot_ms = times.decode_step_ms_array(batches, np.round(batches * context).astype(np.int64))
    rps = ranks * batches * MS_PER_S / (tpot_ms * answer_steps(request.osl))
    return BatchCurve(batches, rps, np.zeros(len(batches)), tpot_ms)


@dataclass(frozen=True, slots=True)
class MeanLoad:
    """What a layout is asked for; nothing given: as much as it carries within the bounds."""

    rps: float | None = None
    in_flight: float | None = None


def aggregated(
    curve: BatchCurve,
    request: MeanRequest,
    *,
    workers: int,
    num_gpus: int,
    ranks: int = 1,
    bounds: MeanBounds = MeanBounds(),
    load: MeanLoad = MeanLoad(),
) -> MeanField | None:
    """What so many workers do together; None: no batch keeps the bounds."""
    allowed = _within(curve.ttft_ms, curve.tpot_ms, request, bounds)
    place = _chosen(curve.batches * ranks * workers, curve.rps * workers, allowed, load)
    if place is None:
        return None
    rps = float(curve.rps[place]) * workers
    return MeanField(
        rps if load.rps is None else min(rps, load.rps),
        float(curve.ttft_ms[place]), float(curve.tpot_ms[place]), request.osl, num_gpus,
        int(curve.batches[place]), "load" if load.rps is not None and load.rps < rps else "batch",
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class MeanTransfer:
    """What a request's KV takes of the links."""

    rps: float = inf  # that all links together carry
    exposed_ms: float = 0.0  # on idle links, beyond the prefill


def disaggregated(
    prefill: BatchCurve,
    decode: BatchCurve,
    request: MeanRequest,
    *,
    workers: tuple[int, int],
    num_gpus: int,
    ranks: int = 1,
    transfer: MeanTransfer = MeanTransfer(),
    factors: Allowances = ALLOWANCES,
    bounds: MeanBounds = MeanBounds(),
    load: MeanLoad = MeanLoad(),
) -> MeanField | None:
    """What both pools do together; None: no batch keeps the bounds. `ranks` are a decode worker's.

    Of the batches that keep the bounds the prefill pool has that of the highest rate, and the
    decode pool the smallest that keeps up with what comes.
    """
    num_prefill, num_decode = workers
    ttft_ms = factors.ttft * prefill.ttft_ms + transfer.exposed_ms
    allowed = ttft_ms <= bounds.ttft_ms
    if not allowed.any():
        return None
    prompts = int(np.argmax(np.where(allowed, prefill.rps, -1.0)))
    first_ms = float(ttft_ms[prompts])
    rates = {
        "prefill": factors.prefill * num_prefill * float(prefill.rps[prompts]),
        "link": transfer.rps,
        "load": inf if load.rps is None else load.rps,
    }
    limit = min(rates, key=lambda name: rates[name])
    fits = _within(np.full(len(decode.tpot_ms), first_ms), decode.tpot_ms, request, bounds)
    answered = factors.decode * num_decode * decode.rps
    asked = MeanLoad(rates[limit], load.in_flight)
    place = _chosen(decode.batches * ranks * num_decode, answered, fits, asked)
    if place is None:
        return None
    decoded = float(answered[place])
    rps = min(rates[limit], decoded)
    return MeanField(
        rps, first_ms, float(decode.tpot_ms[place]), request.osl, num_gpus,
        int(decode.batches[place]), limit if rates[limit] <= decoded else "decode",
    )  # fmt: skip


def _within(
    ttft_ms: FloatArray, tpot_ms: FloatArray, request: MeanRequest, bounds: MeanBounds
) -> "np.ndarray[tuple[int], np.dtype[np.bool_]]":
    """Which batches keep the bounds."""
    e2e_ms = ttft_ms + tpot_ms * (request.osl - 1.0)
    kept = (ttft_ms <= bounds.ttft_ms) & (tpot_ms <= bounds.tpot_ms) & (e2e_ms <= bounds.e2e_ms)
    return np.asarray(kept)


def _chosen(
    in_flight: IntArray,
    rps: FloatArray,
    allowed: "np.ndarray[tuple[int], np.dtype[np.bool_]]",
    load: MeanLoad,
) -> int | None:
    """The place of the batch that is run: the highest rate that is allowed, or the first that keeps
    up with the load. What is asked for at a load is run, whatever it keeps."""
    if load.in_flight is not None:
        within = np.flatnonzero(in_flight <= load.in_flight)
        return int(within[-1]) if len(within) else 0
    if not allowed.any():
        return None
    rates = np.where(allowed, rps, -1.0)
    best = int(np.argmax(rates))
    if load.rps is None or load.rps >= rates[best]:
        return best
    return int(np.flatnonzero(rates >= load.rps)[0])


def kendall_tau(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Kendall's rank correlation of two lists (tau-b, which counts ties); None: there is none."""
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    upper = np.triu_indices(len(a), 1)
    by_a = np.sign(a[:, None] - a[None, :])[upper]
    by_b = np.sign(b[:, None] - b[None, :])[upper]
    size = float(np.sqrt((by_a != 0).sum() * (by_b != 0).sum()))
    return float((by_a * by_b).sum() / size) if size else None
