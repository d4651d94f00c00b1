"""Records what vLLM's own scheduler does with random scenarios, for the `*_scenarios.jsonl.gz`.

    cd tests/conformance
    ../../.venv-vllm/bin/python record_scenarios.py --check
    ../../.venv-vllm/bin/python record_scenarios.py --seed 7 --count 100 --out new.jsonl.gz
    ../../.venv-vllm/bin/python record_scenarios.py --kind remote --count 300 --out new.jsonl.gz

`--check` gives the scenarios of the files to the installed vLLM again, and compares with what they
say: all of it but the version. Without it, `--count` new scenarios are drawn by `--seed` and
recorded: plain ones, or of the `--kind` stated. `remote_scenarios.jsonl.gz` are the first 300 of
kind remote and seed 1. The 274 of `random_scenarios.jsonl.gz` were drawn by a program that is lost;
what is drawn here is alike. Those of `offload_scenarios.jsonl.gz` are the first 200 of seed 2 that
have an end, less one: a prompt of a single token, in blocks of one token, which vLLM loads again
and again. Those of `spec_scenarios.jsonl.gz` are the first 121 of seed 1 that have an end, less
one: vLLM tells twice there that a step waits for a copy.

Each line is {"scenario": ..., "golden": ...}, in the format of `dynosim conformance` without the
steps themselves, of which a digest is kept.
"""

import argparse
import contextlib
import gzip
import json
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

from scenario_draws import (
    draw_offload_scenario,
    draw_remote_scenario,
    draw_scenario,
    draw_spec_scenario,
)

Json = dict[str, Any]
HERE = Path(__file__).resolve().parent
DRAWS = {
    "random": draw_scenario,
    "remote": draw_remote_scenario,
    "offload": draw_offload_scenario,
    "spec": draw_spec_scenario,
}
RECORDED = [HERE / f"{kind}_scenarios.jsonl.gz" for kind in DRAWS]
QUIET = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}


def read_entries(path: Path) -> list[Json]:
    """The lines of a file."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def write_entries(path: Path, entries: Iterable[Json]) -> None:
    """Write lines; the same entries make the same bytes."""
    lines = (json.dumps(entry, separators=(",", ":")) + "\n" for entry in entries)
    path.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


def difference(recorded: Json, golden: Json) -> str | None:
    """Where two logs of one scenario part, versions aside."""
    ours, theirs = ({**log, "vllm": None} for log in (recorded, golden))
    for key in theirs | ours:
        if ours.get(key) != theirs.get(key):
            return f"{key}: vLLM says {ours.get(key)}, the file {theirs.get(key)}"
    return None


def record(scenario: Json) -> Json:
    """What vLLM does with a scenario; the import takes seconds."""
    from vllm_recorder import Recording

    return Recording(scenario).run()


def check(path: Path, every: int) -> int:
    """Record again; returns how many differ."""
    entries = read_entries(path)[::every]
    num_different = 0
    for entry in entries:
        found = difference(record(entry["scenario"]), entry["golden"])
        if found is not None:
            num_different += 1
            print(f"{entry['scenario']['name']}: {found}")
    print(f"{len(entries) - num_different} of {len(entries)} scenarios recorded alike")
    return num_different


def new_entries(seed: int, kind: str = "random") -> Iterator[Json]:
    """Scenarios with what vLLM did; left out are those without an end, and such as fail in blocks
    that requests share."""
    from vllm_recorder import NoEndError
    from vllm_transfers import HitFailedError

    for number in count():
        scenario = DRAWS[kind](seed, number)
        with contextlib.suppress(NoEndError, HitFailedError):
            yield {"scenario": scenario, "golden": record(scenario)}


def main() -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare instead of recording anew")
    parser.add_argument("--every", type=int, default=1, help="of the file, only each n-th")
    parser.add_argument("--kind", choices=DRAWS, default="random", help="what they are about")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--out", type=Path, help="where new entries go")
    options = parser.parse_args()
    sys.path.append(str(HERE.parents[1]))  # dynosim's formats
    os.environ.update(QUIET)
    logging.disable(logging.WARNING)
    if options.check:
        return int(sum([check(path, options.every) for path in RECORDED]) > 0)
    if options.out is None:
        parser.error("--out FILE is needed, or --check")
    entries = new_entries(options.seed, options.kind)
    write_entries(options.out, islice(entries, options.count))
    return 0


if __name__ == "__main__":
    sys.exit(main())
