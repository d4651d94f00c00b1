"""The accuracy matrix: a row per recording and level, and medians over those that count."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from dynosim.verify.verdict import (
    CURVE,
    E2E,
    EXPERIMENT,
    ITL,
    LEVELS,
    LOG,
    THROUGHPUT,
    TPOT,
    TTFT,
    RecordingVerdict,
)

LEVEL_NAMES = {"apriori": "a priori", "capacity": "capacity given", "fitted": "fitted on 30 %"}
KIND_NAMES = {LOG: "request log", EXPERIMENT: "experiment", CURVE: "throughput curve"}
KINDS = (LOG, EXPERIMENT, CURVE)

HEAD = ("recording", "level", "E2E", "TTFT", "TPOT", "tok/s", "KS TTFT", "curve", "blocks",
        "inside", "largest cause")  # fmt: skip
"""Columns of the matrix: errors of means, distances, KV blocks, figures inside their interval."""

MISSES = {f"mean_{E2E}": 0.05, f"mean_{TTFT}": 0.10}
"""A blind mean that is further off is named as a miss."""


@dataclass(frozen=True, slots=True)
class MatrixSummary:
    """Medians of |error| over the counted recordings of one kind at one level, as shares.

    None where none of them has the figure; `worst_e2e` is the largest |error| of the mean.
    """

    kind: str
    level: str
    recordings: int
    e2e: float | None
    worst_e2e: float | None
    ttft: float | None
    tpot: float | None
    throughput: float | None
    blocks: float | None
    covered: int
    of: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "kind": self.kind,
            "level": self.level,
            "recordings": self.recordings,
            "median_abs_error": {
                f"mean_{E2E}": self.e2e,
                f"mean_{TTFT}": self.ttft,
                f"mean_{TPOT}": self.tpot,
                THROUGHPUT: self.throughput,
                "num_gpu_blocks": self.blocks,
            },
            f"worst_mean_{E2E}": self.worst_e2e,
            "coverage": {"covered": self.covered, "of": self.of},
        }


def token_error(verdict: RecordingVerdict) -> float | None:
    """Of the mean time between tokens: TPOT, or ITL where that was measured."""
    found = verdict.error(f"mean_{TPOT}")
    return verdict.error(f"mean_{ITL}") if found is None else found


def is_counted(verdict: RecordingVerdict) -> bool:
    """Whether it enters medians and coverage."""
    return not verdict.problem and not verdict.excluded


def summaries(verdicts: Iterable[RecordingVerdict]) -> list[MatrixSummary]:
    """One per kind and level that there are counted recordings of."""
    counted = [one for one in verdicts if is_counted(one)]
    groups = [
        (kind, level, [one for one in counted if (one.kind, one.level) == (kind, level)])
        for kind in KINDS
        for level in LEVELS
    ]
    return [_summary(kind, level, group) for kind, level, group in groups if group]


def _summary(kind: str, level: str, group: Sequence[RecordingVerdict]) -> MatrixSummary:
    e2e = _sizes(one.error(f"mean_{E2E}") for one in group)
    return MatrixSummary(
        kind=kind,
        level=level,
        recordings=len(group),
        e2e=_median(e2e),
        worst_e2e=max(e2e, default=None),
        ttft=_median(_sizes(one.error(f"mean_{TTFT}") for one in group)),
        tpot=_median(_sizes(token_error(one) for one in group)),
        throughput=_median(_sizes(one.error(THROUGHPUT) for one in group)),
        blocks=_median(_sizes(one.block_error for one in group)),
        covered=sum(one.coverage[0] for one in group),
        of=sum(one.coverage[1] for one in group),
    )


def _sizes(errors: Iterable[float | None]) -> list[float]:
    return [abs(one) for one in errors if one is not None and not math.isnan(one)]


def _median(sizes: Sequence[float]) -> float | None:
    return median(sizes) if sizes else None


def row(verdict: RecordingVerdict) -> list[str]:
    """The cells of `HEAD`."""
    covered, of = verdict.coverage
    return [
        verdict.recording,
        LEVEL_NAMES[verdict.level],
        percent(verdict.error(f"mean_{E2E}")),
        percent(verdict.error(f"mean_{TTFT}")),
        percent(token_error(verdict)),
        percent(verdict.error(THROUGHPUT)),
        decimal(verdict.distances.get(f"ks_{TTFT}")),
        percent(verdict.distances.get("curve"), signed=False),
        percent(verdict.block_error),
        f"{covered} of {of}" if of else "",
        cause_words(verdict),
    ]


def summary_row(summary: MatrixSummary) -> list[str]:
    """Its cells under `HEAD`."""
    return [
        f"median |error| of {counted(summary.recordings, KIND_NAMES[summary.kind])}",
        LEVEL_NAMES[summary.level],
        percent(summary.e2e, signed=False),
        percent(summary.ttft, signed=False),
        percent(summary.tpot, signed=False),
        percent(summary.throughput, signed=False),
        "",
        "",
        percent(summary.blocks, signed=False),
        f"{summary.covered} of {summary.of}" if summary.of else "",
        "",
    ]


def cause_words(verdict: RecordingVerdict) -> str:
    """The largest cause of a blind error, and what is left of the mean |error| without it."""
    part = verdict.largest_cause
    if verdict.level != "apriori" or not part:
        return ""
    before, after = verdict.causes["none"], verdict.causes[part]
    return f"{part} ({percent(before, signed=False)} to {percent(after, signed=False)})"


def missed(verdicts: Iterable[RecordingVerdict]) -> list[RecordingVerdict]:
    """Counted blind verdicts with a mean that is further off than `MISSES`."""
    return [one for one in verdicts if one.level == "apriori" and is_counted(one) and _misses(one)]


def _misses(verdict: RecordingVerdict) -> bool:
    errors = {name: verdict.error(name) for name in MISSES}
    return any(error is not None and abs(error) > MISSES[name] for name, error in errors.items())


def uncovered(verdicts: Iterable[RecordingVerdict]) -> list[tuple[RecordingVerdict, list[str]]]:
    """Counted verdicts with the measured figures that lie outside their interval."""
    found = [
        (one, [figure.name for figure in one.figures if figure.is_covered is False])
        for one in verdicts
        if is_counted(one)
    ]
    return [(one, names) for one, names in found if names]


def percent(value: float | None, *, signed: bool = True) -> str:
    """A share in per cent with one decimal; empty if there is none."""
    if value is None or math.isnan(value):
        return ""
    text = f"{100 * value:+.1f}" if signed else f"{100 * value:.1f}"
    return f"{text} %" if float(text) else "0.0 %"


def counted(number: int, noun: str) -> str:
    """A number of things."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def decimal(value: float | None) -> str:
    """A share with three decimals; empty if there is none."""
    return "" if value is None or math.isnan(value) else f"{value:.3f}"


def matrix_dict(verdicts: Sequence[RecordingVerdict]) -> dict[str, Any]:
    """What follows from all verdicts together, for JSON."""
    return {
        "summary": [one.to_dict() for one in summaries(verdicts)],
        "missed": [one.recording for one in missed(verdicts)],
        "not_covered": [
            {"recording": one.recording, "level": one.level, "figures": names}
            for one, names in uncovered(verdicts)
        ],
    }


def by_cause(
    verdicts: Iterable[RecordingVerdict],
) -> Mapping[str, Sequence[tuple[str, float, float]]]:
    """Blind recordings by their largest cause: name, mean |error|, and what is left without it."""
    found: dict[str, list[tuple[str, float, float]]] = {}
    for one in verdicts:
        part = one.largest_cause
        if one.level == "apriori" and is_counted(one) and part:
            found.setdefault(part, []).append((one.recording, one.causes["none"], one.causes[part]))
    return found
