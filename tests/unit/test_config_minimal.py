"""A run file of what differs from the defaults says the same as the whole one."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.config import load_run, run_config_from_dict
from dynosim.config.file_keys import file_keys
from dynosim.config.loading import check_run, resolved
from dynosim.config.minimal import minimal
from dynosim.config.schema import RunConfig

LENGTHS = [
    700,
    12.5,
    {"dist": "fixed", "mean": 80, "max": 90},
    {"dist": "lognormal", "mean": 900.0, "std": 300.0, "min": 1},
    {"dist": "empirical", "trace": "lengths.jsonl", "format": "jsonl"},
]
VALUES: dict[str, list[Any]] = {
    "name": ["a", "b/c", "größer: #1"],
    "seed": [0, 1, 1 << 40],
    "model": ["Qwen/Qwen3-32B", "./models/tiny", None],
    "hardware": ["h200_sxm", "sheet.yaml"],
    "workload.limit": [1, 7],
    "workload.repeat": [1, 3],
    "workload.speedup": [1.0, 0.1, 1e-9],
    "workload.arrival_scale": [1, 1 / 3],
    "workload.concurrency": [None, 8],
    "workload.skip_bad_lines": [True, False],
    "engine.tensor_parallel": [1, 8],
    "engine.num_gpu_blocks": ["auto", 2, 9000],
    "engine.max_num_seqs": [1, 256, 1024],
    "engine.max_model_len": [None, 4096],
    "engine.enable_prefix_caching": [True, False],
    "engine.enable_chunked_prefill": [True, False],
    "engine.policy": ["fcfs", "priority"],
    "engine.watermark": [0.0, 0.01],
    "engine.kv_cache_dtype": ["auto", "fp8"],
    "engine.quantization": [None, "fp8"],
    "cluster.workers": [1, 4],
    "cluster.cpu_workers": [0, 1],
    "cluster.max_sim_time_ms": [None, 1e6],
    "router.mode": ["round-robin", "kv", "least-loaded"],
    "router.temperature": [0.0, 0.5],
    "router.queue_threshold": [None, 2.0],
    "router.events.delay_ms": [0.0, 3.5],
    "router.policy_classes": [[], [{"name": "fast", "quantum": 9}]],
    "sla": [None, {}, {"ttft_ms": 300}],
    "live.port": [8000, 0],
    "live.engine_args": [[], ["--enforce-eager", "--seed 1"]],
    "live.engine_env": [{}, {"A": "1"}],
}
TIMINGS = [
    {"kind": "polynomial"},
    {"kind": "fixed", "prefill_ms": 3, "decode_ms": 0.5},
    {"kind": "linear", "base_ms": 2},
    {"kind": "fitted", "file": "timing.json"},
    {"kind": "aiconfigurator", "backend": "sglang"},
    {"kind": "roofline", "step_overhead_ms": 1.5},
]


def draw_data(rng: random.Random) -> dict[str, Any]:
    """Some keys of a run file at some value, defaults among them."""
    synthetic: dict[str, Any] = {"requests": 9, "isl": rng.choice(LENGTHS), "rate_rps": 2}
    synthetic |= {"osl": rng.choice(LENGTHS)}
    if rng.random() < 0.5:
        synthetic |= {"turns": rng.choice(LENGTHS[:4]), "prefix_groups": rng.choice([1, 4])}
    workload = {"trace": "a.jsonl"} if rng.random() < 0.4 else {"synthetic": synthetic}
    data: dict[str, Any] = {"workload": workload, "timing": rng.choice(TIMINGS)}
    for key in rng.sample(list(VALUES), rng.randint(0, len(VALUES))):
        section = data
        *above, last = key.split(".")
        for name in above:
            section = section.setdefault(name, {})
        section[last] = rng.choice(VALUES[key])
    return data


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 1 << 32))
def test_it_loads_back_to_the_same_configuration(seed: int) -> None:
    config = check_run(draw_data(random.Random(seed)), Path())
    if not isinstance(config, RunConfig):
        return
    text = yaml.safe_dump(minimal(config), sort_keys=False, allow_unicode=True)
    again = check_run(yaml.safe_load(text), Path())
    assert isinstance(again, RunConfig), again
    assert again.model_dump() == config.model_dump()
    assert minimal(again) == minimal(config)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32))
def test_without_any_of_its_keys_it_says_something_else(seed: int) -> None:
    """So that none of them is at its default."""
    config = check_run(draw_data(random.Random(seed)), Path())
    if not isinstance(config, RunConfig):
        return
    data = minimal(config)
    for key in [key for key in data if key not in ("workload", "timing")]:
        less = check_run({name: value for name, value in data.items() if name != key}, Path())
        if isinstance(less, RunConfig):
            assert less.model_dump() != config.model_dump(), key


def test_most_of_the_draws_are_configurations() -> None:
    found = [check_run(draw_data(random.Random(seed)), Path()) for seed in range(200)]
    assert sum(isinstance(one, RunConfig) for one in found) > 60


def test_only_what_differs_is_said_and_numbers_stay_numbers() -> None:
    config = run_config_from_dict(
        {
            "workload": {"synthetic": {"requests": 4, "isl": 300, "osl": 20, "rate_rps": 2},
                         "speedup": 1.0},
            "engine": {"num_gpu_blocks": 100, "block_size": 16},
            "timing": {"kind": "polynomial"},
            "router": {"mode": "round-robin"},
        }
    )  # fmt: skip
    assert minimal(config) == {
        "workload": {"synthetic": {"requests": 4, "isl": 300, "osl": 20, "rate_rps": 2}},
        "engine": {"num_gpu_blocks": 100},
        "timing": {"kind": "polynomial"},
    }


def test_every_key_that_names_a_file_is_known(tmp_path: Path) -> None:
    """Of all keys whose value is a file's name in some run file here."""
    data = {
        "model": "./tiny", "hardware": "sheet.yaml",
        "timing": {"kind": "fitted", "file": "timing.json"},
        "workload": {"trace": "a.jsonl"},
    }  # fmt: skip
    assert set(file_keys(data).values()) == {"./tiny", "sheet.yaml", "timing.json", "a.jsonl"}
    empirical = {"dist": "empirical", "trace": "l.jsonl"}
    data["workload"] = {"synthetic": {"requests": 1, "isl": empirical, "osl": 3, "rate_rps": 1}}
    assert file_keys(data)["workload", "synthetic", "isl", "trace"] == "l.jsonl"
    assert ("workload", "trace") not in file_keys(data)
    assert file_keys({"model": "Qwen/Qwen3-32B", "hardware": None}) == {}


def test_a_whole_run_file_still_names_files_absolutely(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    path = tmp_path / "run.yaml"
    path.write_text(
        "workload: {trace: a.jsonl}\ntiming: {kind: polynomial}\nengine: {num_gpu_blocks: 9}\n"
    )
    data = resolved(load_run(path))
    assert data["workload"]["trace"] == str(tmp_path / "a.jsonl")
    assert data["engine"]["block_size"] == 16


@pytest.mark.parametrize("repeat", [0, -1, 1.5])
def test_a_workload_is_repeated_whole_times(repeat: float) -> None:
    data = {
        "workload": {"trace": "a", "repeat": repeat},
        "timing": {"kind": "polynomial"},
        "engine": {"num_gpu_blocks": 9},
    }
    assert not isinstance(check_run(data, Path()), RunConfig)
