"""Step times learned from steps that were seen, where no step-time model is given.

Milliseconds are a sum of products with what a step computes, found by least squares:

    prefill  a + b * prompt tokens
    decode   a + b * sequences + c * KV tokens
    agg      a + b * prompt tokens + c * KV tokens of decodes

What is kept covers the range that was seen: samples lie in a grid over it, and one too many pushes
the oldest out of the fullest cell. Time does not shrink with work: a fit with a negative
coefficient is none; only that of sequences is left out instead, since it is small. A worker's first
steps compile and warm up: they tell nothing of later ones, and are not taken in.
Source: Dynamo's planner 1.6 (live regression), but for young workers.
"""

from collections import Counter
from dataclasses import dataclass
from math import isqrt

import numpy as np

from dynosim.planner.observation import EngineReport, Pass
from dynosim.timing.step import StepShape

_COLUMNS: dict[str, tuple[str, ...]] = {
    "prefill": ("prefill_tokens",),
    "decode": ("num_decodes", "decode_kv_tokens"),
    "agg": ("prefill_tokens", "decode_kv_tokens"),
}


@dataclass(frozen=True, slots=True)
class FittedPasses:
    """Step times by the coefficients of a fit, in ms."""

    base_ms: float
    per_prefill_token_ms: float = 0.0
    per_decode_ms: float = 0.0
    per_kv_token_ms: float = 0.0

    def step_ms(self, step: StepShape) -> float:
        """See `PassTimes`. What the fit did not know (cached prefixes) has no weight."""
        return (
            self.base_ms
            + self.per_prefill_token_ms * step.prefill_tokens
            + self.per_decode_ms * step.num_decodes
            + self.per_kv_token_ms * step.decode_context_tokens
        )


class PassSamples:
    """The steps of a pool that the fit is made from.

    max_samples: how many are kept. num_cells: of the grid, a square number.
    min_samples: with fewer there is no fit. warmup_ms: how long a ready worker's steps are not
    taken in.
    """

    def __init__(
        self, role: str, *, max_samples: int, num_cells: int, min_samples: int, warmup_ms: float
    ) -> None:
        self._columns = _COLUMNS[role]
        self._max_samples = max_samples
        self._cells_per_axis = num_cells if len(self._columns) == 1 else isqrt(num_cells)
        self._min_samples = min_samples
        self._warmup_ms = warmup_ms
        self._samples: list[tuple[tuple[float, ...], float]] = []  # (what it computed, ms)
        self._heard_ms: dict[int, float] = {}  # by worker: its last report
        self._fit: FittedPasses | None = None
        self._is_fresh = True
        self.num_young = 0  # steps left out because of their worker's youth

    @property
    def num_samples(self) -> int:
        """How many are kept now."""
        return len(self._samples)

    def take(self, report: EngineReport, ready_ms: float) -> None:
        """Take in the steps of a worker that is ready since `ready_ms`; a report seen before adds
        nothing.

        Its steps ran since its report before: they count if the worker was old enough by then.
        """
        since_ms = self._heard_ms.get(report.worker_id, ready_ms)
        if report.worker_id in self._heard_ms and report.at_ms <= since_ms:
            return
        self._heard_ms[report.worker_id] = report.at_ms
        if since_ms < ready_ms + self._warmup_ms:
            self.num_young += len(report.passes)
            return
        for one in report.passes:
            self._add(one)

    def forget(self, alive: set[int]) -> None:
        """Workers that are gone are heard no more; their steps stay."""
        self._heard_ms = {key: at for key, at in self._heard_ms.items() if key in alive}

    def fitted(self) -> FittedPasses | None:
        """Step times; None with too few samples, or if they do not determine them."""
        if not self._is_fresh:
            self._fit, self._is_fresh = self._fit_all(), True
        return self._fit

    def _add(self, one: Pass) -> None:
        work = tuple(float(getattr(one, column)) for column in self._columns)
        if one.wall_ms <= 0 or not any(work):
            return  # a heartbeat, or nothing of this role's work
        self._samples.append((work, one.wall_ms))
        self._is_fresh = False
        if len(self._samples) > self._max_samples:
            self._retire()

    def _retire(self) -> None:
        """Drop the oldest of the fullest cell; of equally full ones that with the oldest sample."""
        works = np.array([work for work, _ in self._samples])
        low, high = works.min(axis=0), works.max(axis=0)
        width = np.where(high > low, high - low, 1.0)
        places = np.floor((works - low) / width * self._cells_per_axis)
        cells = [tuple(row) for row in np.minimum(places, self._cells_per_axis - 1).tolist()]
        counts = Counter(cells)
        most = max(counts.values())
        del self._samples[next(i for i, cell in enumerate(cells) if counts[cell] == most)]

    def _fit_all(self) -> FittedPasses | None:
        if len(self._samples) < self._min_samples:
            return None
        columns = list(self._columns)
        found = self._solve(columns)
        if found is not None and found.get("num_decodes", 0.0) < 0:
            columns.remove("num_decodes")
            found = self._solve(columns)
        if found is None or min(found.values()) < 0:
            return None
        return FittedPasses(
            found["base"],
            found.get("prefill_tokens", 0.0),
            found.get("num_decodes", 0.0),
            found.get("decode_kv_tokens", 0.0),
        )

    def _solve(self, columns: list[str]) -> dict[str, float] | None:
        """Coefficients by name; None if the samples do not determine them."""
        works = np.array([work for work, _ in self._samples])
        wall_ms = np.array([took_ms for _, took_ms in self._samples])
        chosen = works[:, [self._columns.index(column) for column in columns]]
        scale = np.maximum(chosen.max(axis=0), 1.0)  # one size for all, so that ranks are told
        table = np.column_stack([np.ones(len(chosen)), chosen / scale])
        weights, _, rank, _ = np.linalg.lstsq(table, wall_ms, rcond=1e-9)
        if rank < table.shape[1]:
            return None
        # Rounding of a coefficient that is none is not a sign.
        noise_ms = 1e-9 * float(wall_ms.max())
        clean = [0.0 if abs(weight) <= noise_ms else weight for weight in weights.tolist()]
        per_unit = [weight / size for weight, size in zip(clean[1:], scale.tolist(), strict=True)]
        return {"base": clean[0], **dict(zip(columns, per_unit, strict=True))}
