"""A load for many workers: copies of a trace side by side, then that again.

Each copy has hash ids of its own, so that no copy helps another one's cache; each worker gets what
one of `WORKERS_PER_COPY` workers gets from a single copy.
"""

import argparse
import gzip
import json
from pathlib import Path
from typing import Any

WORKERS_PER_COPY = 16
PAUSE_MS = 3000  # between two repetitions; also the grain of Mooncake's timestamps


def write_load(trace: Path, out: Path, *, workers: int, requests: int) -> Path:
    """Write the first `requests` rows of as many copies of `trace` as suit so many workers.

    The copies start evenly over the grain of the timestamps: a router sees a flow, not a wave.
    """
    with (gzip.open if trace.suffix == ".gz" else open)(trace, "rt") as lines:
        rows: list[dict[str, Any]] = [json.loads(line) for line in lines if line.strip()]
    num_ids = 1 + max(max(row["hash_ids"]) for row in rows)
    span_ms = max(row["timestamp"] for row in rows) + PAUSE_MS
    side_by_side = max(round(workers / WORKERS_PER_COPY), 1)
    order = sorted(
        (row["timestamp"] + copy * PAUSE_MS // side_by_side, copy, number)
        for copy in range(side_by_side)
        for number, row in enumerate(rows)
    )
    with out.open("w") as file:
        for written in range(requests):
            repetition, place = divmod(written, len(order))
            start_ms, copy, number = order[place]
            row = rows[number]
            first_id = (repetition * side_by_side + copy) * num_ids
            changed = {
                "timestamp": start_ms + repetition * span_ms,
                "hash_ids": [first_id + h for h in row["hash_ids"]],
            }
            file.write(json.dumps({**row, **changed}, separators=(",", ":")) + "\n")
    return out


def main() -> None:
    """Write one load."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("trace", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--workers", type=int, required=True)
    parser.add_argument("--requests", type=int, required=True)
    args = parser.parse_args()
    write_load(args.trace, args.out, workers=args.workers, requests=args.requests)


if __name__ == "__main__":
    main()
