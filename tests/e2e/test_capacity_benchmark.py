"""Block counts that vLLM printed against ours, by the benchmark that prints them."""

import re
import subprocess
import sys

from shared_data import ROOT, shared_path


def test_printed_block_counts_are_met_within_two_percent() -> None:
    recorded = shared_path("ground_truth/h100_experiments.json")
    shown = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "capacity.py"), str(recorded)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    errors = [
        [float(percent) for percent in re.findall(r"([+-]\d+\.\d+)%", line)]
        for line in shown.splitlines()
    ]
    of_start_ups = [pair for pair in errors if len(pair) == 2]
    assert len(of_start_ups) == 13
    assert max(abs(percent) for pair in of_start_ups for percent in pair) < 1.0
    assert "DOES NOT COVER" not in shown
