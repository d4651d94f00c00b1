"""Our scheduler decides what vLLM 0.32's own scheduler decided, step by step.

`random_scenarios.jsonl.gz` was generated for dynosim and recorded with vLLM's scheduler: small
engines under pressure, both policies, caps, watermarks, caching and chunking on and off, both
loops.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from shared_data import shared_path

from dynosim.conformance import first_difference, run_scenario
from dynosim.errors import ConfigError

HERE = Path(__file__).parent


def recorded() -> list[dict[str, Any]]:
    with gzip.open(HERE / "random_scenarios.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


def plain(log: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a file."""
    loaded: dict[str, Any] = json.loads(json.dumps(log))
    return loaded


def test_random_scenarios_when_run_equal_the_recorded_logs() -> None:
    entries = recorded()
    for entry in entries:
        log = plain(run_scenario(entry["scenario"]))
        difference = first_difference(log, entry["golden"])
        assert difference is None, f"{entry['scenario']['name']}: {difference}"
    assert sum(entry["golden"]["totals"]["preemptions"] for entry in entries) > 500


def test_published_scenarios_when_run_equal_the_golden_logs_in_every_step() -> None:
    paths = sorted(shared_path("conformance/scenarios").glob("*.json"))
    assert len(paths) >= 12
    for path in paths:
        golden = json.loads((path.parent.parent / "golden" / path.name).read_text())
        difference = first_difference(plain(run_scenario(json.loads(path.read_text()))), golden)
        assert difference is None, f"{path.stem}: {difference}"


def test_difference_when_a_log_is_altered_is_found_at_its_step() -> None:
    scenario = {
        "name": "tiny",
        "engine": {
            "num_gpu_blocks": 9,
            "block_size": 16,
            "max_num_seqs": 2,
            "max_num_batched_tokens": 32,
            "max_model_len": 64,
        },
        "requests": [{"id": "a", "prompt_ranges": [[5, 20]], "output_length": 3}],
    }
    log = plain(run_scenario(scenario))
    altered = plain(log)
    altered["steps"][1]["free"] += 1
    difference = first_difference(log, altered)
    assert difference is not None and difference.startswith("steps[1]")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"engine": {"blocks": 3}}, "unknown key 'blocks'"),
        ({"requests": [{"id": "a"}]}, "not well formed"),
    ],
)
def test_scenario_when_malformed_is_refused(change: dict[str, Any], message: str) -> None:
    scenario = {
        "engine": {
            "num_gpu_blocks": 9,
            "block_size": 16,
            "max_num_seqs": 2,
            "max_num_batched_tokens": 32,
            "max_model_len": 64,
        },
        "requests": [],
    }
    with pytest.raises(ConfigError, match=message):
        run_scenario({**scenario, **change})
