#!/usr/bin/env python3
"""Holds the twin's predictions against a recorded run of a real vLLM engine.

    python benchmarks/fidelity.py RUN.jsonl.gz --hardware h200_sxm [--model NAME]
        [--level apriori|capacity|fitted ...] [--fit-fraction 0.3] [--num-gpu-blocks N]
        [--other RUN2.jsonl.gz] [--json]

RUN: one JSON line `{"setup": {...}}`, then one request a line (see `dynosim.fit.log_file`).
Printed: measured, predicted and error of every statistic, for predictions from tables alone, fitted
on the first part of the run, and fitted on another run if one is given; blind and with the KV
capacity given. `unseen` is the error over requests whose times the fit has not seen. A fit that
does not explain the requests it was fitted to is marked, and the exit code is 1.
"""

import argparse
import json
import sys
from pathlib import Path

from dynosim.compare.fidelity import LEVELS, judge_file
from dynosim.compare.fidelity_text import fidelity_text
from dynosim.errors import EXIT_FAILURE, DynosimError


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path, help="recorded run")
    parser.add_argument("--hardware", help="as in `dynosim support`, for the a priori prediction")
    parser.add_argument("--model", help="in place of the set-up's")
    parser.add_argument(
        "--level", action="append", choices=LEVELS, help="repeatable; all if none is given"
    )
    parser.add_argument("--fit-fraction", type=float, default=0.3, help="leading part to fit on")
    parser.add_argument("--num-gpu-blocks", type=int, help="as the engine printed it")
    parser.add_argument("--other", type=Path, help="another run of the same deployment, to fit on")
    parser.add_argument("--seed", type=int, default=0, help="of bootstrap and jitter")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Prints the comparison; 1 for a fit that has failed, 2 for bad input."""
    args = parse_args(arguments)
    try:
        fidelity = judge_file(
            args.file,
            hardware=args.hardware,
            model=args.model,
            fit_fraction=args.fit_fraction,
            num_gpu_blocks=args.num_gpu_blocks,
            other=args.other,
            seed=args.seed,
            levels=args.level or LEVELS,
        )
    except DynosimError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    print(json.dumps(fidelity.to_dict(), indent=2) if args.json else fidelity_text(fidelity))
    for failure in fidelity.failures:
        print(f"error: does not explain its own part: {failure}", file=sys.stderr)
    return EXIT_FAILURE if fidelity.failures else 0


if __name__ == "__main__":
    sys.exit(main())
