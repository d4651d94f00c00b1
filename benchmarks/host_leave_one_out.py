#!/usr/bin/env python3
"""What the host's constants of an asynchronous engine were chosen on, and how well they carry over.

    python benchmarks/host_leave_one_out.py --file MEASURED.json [--json]

MEASURED as for `experiments.py`. Two constants are chosen on published experiments of vLLM 0.15.1
on H100: host time of a step that the device does not hide, and the way from a client to the
scheduler. Here both are chosen anew on all models but one, by the least mean |error| of E2E and
TTFT means over a grid, and tried on the model that was left out.
"""

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments import compare, read_measured

from dynosim.errors import DynosimError

EXPOSED_MS = (0.2, 0.35, 0.5, 0.65, 0.8, 1.0)
INGRESS_MS = (2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0)
OUTLIER = 0.3
"""A TTFT error that no such constant explains: it counts as so much."""


@dataclass(frozen=True, slots=True)
class Tried:
    """An experiment at one host time, without a client path; ms."""

    name: str
    model: str
    e2e_ms: float
    ttft_ms: float
    e2e_measured_ms: float
    ttft_measured_ms: float

    def errors(self, ingress_ms: float) -> tuple[float, float]:
        """Of the means of E2E and TTFT, with a way of so much."""
        return (
            (self.e2e_ms + ingress_ms) / self.e2e_measured_ms - 1,
            (self.ttft_ms + ingress_ms) / self.ttft_measured_ms - 1,
        )


Grid = dict[float, list[Tried]]  # by exposed host time


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the table; 2 for bad input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--file", type=Path, required=True, help="measured values, JSON")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    args = parser.parse_args(arguments)
    try:
        grid = tried(args.file)
    except DynosimError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    found = document(grid)
    print(json.dumps(found, indent=2) if args.json else text(found))
    return 0


def tried(path: Path) -> Grid:
    """Every experiment that is fit, at every host time. Raises: ConfigError."""
    grid: Grid = {}
    fit = [row for row in read_measured(path, None) if row["unfit"] is None]
    for exposed_ms in EXPOSED_MS:
        changes = [f"timing.step_overhead_ms={exposed_ms}", "timing.ingress_ms=0"]
        for row in fit:
            one = compare(row, changes, is_given=False)
            if not one.error:
                e2e, ttft = one.figures["e2e_mean"], one.figures["ttft_mean"]
                grid.setdefault(exposed_ms, []).append(
                    Tried(
                        row["id"],
                        row["model"],
                        e2e.predicted,
                        ttft.predicted,
                        e2e.measured,
                        ttft.measured,
                    )
                )
    return grid


def chosen(grid: Grid, without: str | None) -> tuple[float, float]:
    """Host time and ingress with the least mean |error| over all models but one."""

    def cost(pair: tuple[float, float]) -> float:
        exposed_ms, ingress_ms = pair
        rows = [one for one in grid[exposed_ms] if one.model != without]
        return statistics.mean(
            abs(e2e) + min(abs(ttft), OUTLIER)
            for e2e, ttft in (one.errors(ingress_ms) for one in rows)
        )

    return min(((a, b) for a in grid for b in INGRESS_MS), key=cost)


def document(grid: Grid) -> dict[str, Any]:
    """The constants chosen on all, and without each model with the errors on it."""
    models = sorted({one.model for one in next(iter(grid.values()))})
    exposed_ms, ingress_ms = chosen(grid, None)
    left_out = []
    for model in models:
        exposed, ingress = chosen(grid, model)
        for one in grid[exposed]:
            if one.model == model:
                e2e, ttft = one.errors(ingress)
                left_out.append(
                    {
                        "id": one.name,
                        "model": model,
                        "exposed_ms": exposed,
                        "ingress_ms": ingress,
                        "e2e_error": e2e,
                        "ttft_error": ttft,
                    }
                )
    return {
        "all": {"exposed_ms": exposed_ms, "ingress_ms": ingress_ms},
        "left_out": left_out,
        "median_abs_e2e_error": statistics.median(abs(row["e2e_error"]) for row in left_out),
        "median_abs_ttft_error": statistics.median(abs(row["ttft_error"]) for row in left_out),
    }


def text(found: dict[str, Any]) -> str:
    """A line for each experiment."""
    lines = [f"on all: {found['all']['exposed_ms']} ms of host, {found['all']['ingress_ms']} ms in"]
    for row in found["left_out"]:
        lines.append(
            f"{row['id']:>16}  {row['model'].split('/')[-1]:<42} without it:"
            f" {row['exposed_ms']:.2f} + {row['ingress_ms']:.0f} ms,"
            f" E2E {row['e2e_error']:+.1%}, TTFT {row['ttft_error']:+.1%}"
        )
    lines.append(
        f"median |error| of what was left out: E2E {found['median_abs_e2e_error']:.1%},"
        f" TTFT {found['median_abs_ttft_error']:.1%}"
    )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
