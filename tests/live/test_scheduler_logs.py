"""The recorded logs are vLLM's own: the installed one decides so again, and new scenarios as we do.

`tests/conformance` compares our scheduler with the recorded logs in every run; this compares the
logs with vLLM.
"""

import gzip
import json
import random
import subprocess
from pathlib import Path

import pytest
from cluster import VLLM_PYTHON
from shared_data import ROOT

from dynosim.conformance import first_difference, run_scenario

RECORDER = ROOT / "tests" / "conformance" / "record_scenarios.py"
EVERY = 7  # of the 274, of the 300 with KV exchanged, the 199 with a host tier, the 120 with drafts
NUM_NEW = 30


def recorder(*options: object) -> str:
    command = [str(part) for part in (VLLM_PYTHON, RECORDER, *options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_recorded_scenarios_come_out_alike() -> None:
    counts = [f"{count} of {count} scenarios recorded alike\n" for count in (40, 43, 29, 18)]
    assert recorder("--check", "--every", EVERY).endswith("".join(counts))


@pytest.mark.parametrize("kind", ["random", "remote"])
def test_new_scenarios_are_decided_as_vllm_decides_them(tmp_path: Path, kind: str) -> None:
    seed = random.randrange(10**6)  # new in every run: there is nothing to be luckier with
    recorder("--kind", kind, "--seed", seed, "--count", NUM_NEW, "--out", tmp_path / "new.jsonl.gz")
    with gzip.open(tmp_path / "new.jsonl.gz", "rt") as lines:
        entries = [json.loads(line) for line in lines]
    assert len(entries) == NUM_NEW
    assert sum(entry["golden"]["totals"]["preemptions"] for entry in entries) > 0
    for entry in entries:
        log = json.loads(json.dumps(run_scenario(entry["scenario"])))
        difference = first_difference(log, entry["golden"])
        assert difference is None, f"{entry['scenario']['name']}: {difference}"
