"""Our scheduler decides what vLLM 0.32's own scheduler decided, step by step.

`random_scenarios.jsonl.gz` was generated for dynosim and recorded with vLLM's scheduler: small
engines under pressure, both policies, caps, watermarks, caching and chunking on and off, both
loops. So was `remote_scenarios.jsonl.gz`, where KV is exchanged besides: whole and partial loads,
failures with both policies, blocks held until they are sent, requests given up, all roles; and
`offload_scenarios.jsonl.gz`, with a tier in host memory: both policies, chunks of several blocks,
thresholds, refused stores, flushes, requests given up; and `spec_scenarios.jsonl.gz`, with drafts,
alone or with either of these: n-grams, EAGLE and draft models.
"""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from shared_data import shared_path

from dynosim.conformance import first_difference, run_scenario
from dynosim.conformance.drive import ScenarioRun
from dynosim.errors import ConfigError

HERE = Path(__file__).parent


def recorded(name: str) -> list[dict[str, Any]]:
    with gzip.open(HERE / name, "rt") as lines:
        return [json.loads(line) for line in lines]


def plain(log: dict[str, Any]) -> dict[str, Any]:
    """As it comes back from a file."""
    loaded: dict[str, Any] = json.loads(json.dumps(log))
    return loaded


@pytest.mark.parametrize(
    ("name", "num_preemptions"),
    [
        ("random_scenarios.jsonl.gz", 500),
        ("remote_scenarios.jsonl.gz", 400),
        ("offload_scenarios.jsonl.gz", 150),
        ("spec_scenarios.jsonl.gz", 250),
    ],
)
def test_random_scenarios_when_run_equal_the_recorded_logs(name: str, num_preemptions: int) -> None:
    entries = recorded(name)
    for entry in entries:
        log = plain(run_scenario(entry["scenario"]))
        difference = first_difference(log, entry["golden"])
        assert difference is None, f"{entry['scenario']['name']}: {difference}"
    assert sum(entry["golden"]["totals"]["preemptions"] for entry in entries) > num_preemptions


PUBLISHED = {
    "conformance": (
        "pub-01-decode",
        "pub-02-chunk-edges",
        "pub-03-max-seqs",
        "pub-04-prefix-share",
        "pub-05-full-hit",
        "pub-06-preempt",
        "pub-07-lru",
        "pub-08-priority",
        "pub-09-multi-turn",
        "pub-10-time-mixed",
        "pub-11-trace50",
        "pub-12-async",
    ),
    "conformance_more": (
        "vx-pub-abort-01",
        "vx-pub-mix-01",
        "vx-pub-offload-01",
        "vx-pub-offload-02",
        "vx-pub-offload-03",
        "vx-pub-offload-04",
        "vx-pub-remote-01",
        "vx-pub-remote-02",
        "vx-pub-remote-03",
        "vx-pub-remote-04",
        "vx-pub-spec-01",
        "vx-pub-spec-02",
        "vx-pub-spec-03",
        "vx-pub-spec-04",
    ),
}
"""By folder of the shared data."""

LACKING = {
    **dict.fromkeys([f"vx-pub-lora-0{number}" for number in range(1, 5)], "max_loras"),
    **dict.fromkeys(["vx-pub-groups-01", "vx-pub-groups-02"], "groups"),
    "vx-pub-dpthrottle-01": "prefill_schedule_interval",
}
"""Scenarios that cannot be run yet, by the key of the engine that nothing here obeys."""


def scenario_file(folder: str, name: str) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(shared_path(f"{folder}/{name}.json").read_text())
    return loaded


@pytest.mark.parametrize(
    ("folder", "name"),
    [(folder, name) for folder, names in PUBLISHED.items() for name in names],
    ids=[name for names in PUBLISHED.values() for name in names],
)
def test_published_scenario_when_run_equals_the_golden_log_in_every_step(
    folder: str, name: str
) -> None:
    golden = scenario_file(f"{folder}/golden", name)
    log = plain(run_scenario(scenario_file(f"{folder}/scenarios", name)))
    assert golden.get("steps") or golden["steps_rle"]
    assert first_difference(log, golden) is None


def test_every_published_scenario_is_run_or_named_with_what_is_lacking() -> None:
    files = [
        path
        for folder in PUBLISHED
        for path in sorted(shared_path(f"{folder}/scenarios").iterdir())
    ]
    refused = {}
    for path in files:
        try:
            ScenarioRun(json.loads(path.read_text()))
        except ConfigError as error:
            refused[path.stem] = str(error).split(";")[0]
    assert refused == {name: f"engine: unknown key '{key}'" for name, key in LACKING.items()}
    run = {path.stem for path in files} - set(refused)
    assert run == {name for names in PUBLISHED.values() for name in names}


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
        ({"requests": [{"id": "a", "lora": "A"}]}, "request a: unknown key 'lora'"),
        (
            {"requests": [{"id": "a", "remote": {"wait": 3}}]},
            "request a: remote: unknown key 'wait'",
        ),
        ({"timing": {"c0": 5.0, "c4": 0.1}}, "timing: unknown key 'c4'"),
        ({"requests": [{"id": "a", "accept": [3]}]}, "request a: unknown key 'accept'"),
        ({"engine": {"spec": {"k": 2, "n": 3}}}, "engine.spec: unknown key 'n'"),
        ({"engine": {"spec": {"k": 0}}}, "engine.spec.k: expected at least one draft, got 0"),
        (
            {"engine": {"spec": {"k": 2, "method": "medusa"}}},
            "engine.spec.method: unknown 'medusa'",
        ),
        (
            {"engine": {"spec": {"k": 2}, "async_scheduling": True}},
            "engine.spec.method: ngram does not go with async_scheduling",
        ),
        ({"engine": {"offload": {"size": 3}}}, "engine.offload: unknown key 'size'"),
        (
            {"engine": {"offload": {"chunks": 3}, "enable_prefix_caching": False}},
            "engine.offload: without enable_prefix_caching nothing is found again",
        ),
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


@pytest.mark.parametrize("is_async", [False, True])
def test_an_aborted_request_gives_no_more_tokens_and_the_others_go_on(is_async: bool) -> None:
    scenario = {
        "engine": {
            "num_gpu_blocks": 33,
            "block_size": 16,
            "max_num_seqs": 2,
            "max_num_batched_tokens": 32,
            "max_model_len": 128,
            "async_scheduling": is_async,
        },
        "timing": {"c0": 5.0},
        "requests": [
            {"id": "a", "arrival_ms": 0, "prompt_ranges": [[1, 20]], "output_length": 9},
            {
                "id": "b", "arrival_ms": 0, "prompt_ranges": [[101, 9]], "output_length": 9,
                "abort": 11,
            },
            {
                "id": "c", "arrival_ms": 0, "prompt_ranges": [[201, 9]], "output_length": 2,
                "abort": 1000,  # it has ended by then
            },
            {"id": "d", "arrival_ms": 4000, "prompt_ranges": [[1, 20]], "output_length": 1},
        ],
    }  # fmt: skip
    log = run_scenario(scenario)
    rows = {row["id"]: row for row in log["requests"]}
    statuses = {name: row["status"] for name, row in rows.items()}
    assert statuses == {"a": "length", "b": "abort", "c": "length", "d": "length"}
    assert (rows["a"]["out"], rows["c"]["out"], rows["d"]["hit"]) == (9, 2, 16)
    # Steps end every 5 ms, and that at 15 is the first that the abort at 11 can come before: what
    # it meets under way is thrown away.
    assert (rows["b"]["out"], rows["b"]["last"]) == (3, 15_000_000)
    assert log["free_at_end"] == 32
    assert [step["abort"] for step in log["steps"] if "abort" in step] == [["b"]]
