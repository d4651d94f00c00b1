"""The JSON Schemas: they take every file that dynosim takes, and refuse what is plainly wrong."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from shared_data import ROOT

from dynosim.config.keys import all_keys
from dynosim.config.schema import RunConfig
from dynosim.config.yaml_source import read_document
from dynosim.reference.entries import entries
from dynosim.reference.schemas import SCHEMAS, run_schema, schema_text, sweep_schema

RUN = """\
model: Qwen/Qwen3-32B
hardware: h200_sxm
workload: {trace: a.jsonl}
timing: {kind: aiconfigurator}
"""
SWEEP = RUN + "space: {cluster.workers: [1, 2]}\n"


@cache
def validator(name: str) -> Any:
    schema = json.loads(schema_text(name))
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def faults(name: str, data: Any) -> list[str]:
    return [error.message for error in validator(name).iter_errors(data)]


def changed(text: str, **sections: str) -> Any:
    data = yaml.safe_load(text)
    return data | {key: yaml.safe_load(value) for key, value in sections.items()}


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_is_one(name: str) -> None:
    assert validator(name).schema["$schema"].endswith("2020-12/schema")


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.yaml")), ids=lambda p: p.name)
def test_the_files_of_this_project_are_valid(path: Path) -> None:
    data = read_document(path).data
    kind = "sweep" if "space" in data else "run"
    assert faults(kind, data) == []
    head = path.read_text().splitlines()[0]
    schema = head.removeprefix("# yaml-language-server: $schema=")
    assert (path.parent / schema).resolve() == ROOT / "docs" / "schema" / f"{kind}.json"


@pytest.mark.parametrize("path", sorted((ROOT / "traces").glob("*.yaml")), ids=lambda p: p.name)
def test_the_made_up_traces_of_this_project_are_valid(path: Path) -> None:
    data = read_document(path).data
    assert faults("synthetic", data) == []
    if "agents" in data:
        assert faults("synthetic", {"workload": {"agents": data["agents"]}}) == []
        assert faults("synthetic", {"agents": data["agents"] | {"tasks": 0}}) != []
        assert faults("synthetic", {"agents": {}}) != []
        return
    assert faults("synthetic", data["synthetic"] | {"seed": 3}) == []
    assert faults("synthetic", {"workload": data["synthetic"]}) != []
    assert faults("synthetic", data | {"synthetic": data["synthetic"] | {"isl": {"dist": "?"}}})


@pytest.mark.parametrize(
    "sections",
    [
        {"timing": "{kind: fixed, prefill_ms: 3, decode_ms: 1}"},
        {"timing": "{kind: profile, file: a.json}"},
        {"engine": "{num_gpu_blocks: auto}"},
        {"engine": "{num_gpu_blocks: 200, max_model_len: null}"},
        {"workload": "{synthetic: {requests: 3, isl: 5, osl: {dist: normal, mean: 3, std: 1}}}"},
        {"router": "{policy_classes: [{name: a, quantum: 5}], events: {loss: 0.5}}"},
        {"live": "{engine_args: [--a, b], engine_env: {A: b}}"},
        {"sla": "null"},
        {"sla": "{ttft: 3, tpot_ms: 4}"},
        {"workload": "{synthetic: {requests: 3}}", "isl": "3", "osl": "4", "system": "h20"},
    ],
)
def test_a_run_file_may_say(sections: dict[str, str]) -> None:
    assert faults("run", changed(RUN, **sections)) == []


@pytest.mark.parametrize(
    ("sections", "word"),
    [
        ({"timing": "{kind: fixed, prefill_ms: 3}"}, "prefill_ms"),
        ({"timing": "{kind: rofline}"}, "rofline"),
        ({"timing": "{kind: roofline, backend: vllm}"}, "backend"),
        ({"engine": "{tensor_paralel: 2}"}, "tensor_paralel"),
        ({"engine": "{tensor_parallel: '2'}"}, "2"),
        ({"engine": "{num_gpu_blocks: some}"}, "some"),
        ({"engine": "{num_gpu_blocks: 1}"}, "1"),
        ({"workload": "{synthetic: {isl: {dist: zipf}}}"}, "zipf"),
        ({"router": "{policy_classes: [{quantum: 5}]}"}, "name"),
        ({"router": "{mode: kw}"}, "kw"),
        ({"space": "{cluster.workers: [1]}"}, "space"),
        ({"total_gpus": "8"}, "total_gpus"),
    ],
)
def test_a_run_file_may_not_say(sections: dict[str, str], word: str) -> None:
    found = faults("run", changed(RUN, **sections))
    assert len(found) == 1 and word in found[0]


def test_a_run_file_needs_what_it_runs() -> None:
    found = faults("run", {"model": "Qwen/Qwen3-32B"})
    assert [message.split("'")[1] for message in found] == ["workload", "timing"]


@pytest.mark.parametrize(
    "sections",
    [
        {"space": "{timing.kind: [roofline, aiconfigurator]}"},
        {"space": "{timing.file: [a.json]}", "timing": "{kind: profile}"},
        {"space": "{timing: [{kind: roofline}, {kind: fixed, prefill_ms: 3, decode_ms: 1}]}"},
        {"space": "{engine.watermark: {min: 0.1, max: 0.2, step: 0.1}}"},
        {"space": "{engine.num_gpu_blocks: [auto, 20], isl: [1, 2]}"},
        {"space": "{router.mode: {choices: [kv, random]}}"},
        {"space": "{workload.trace: [a.jsonl, b.jsonl]}", "workload": "{}"},
        {"objectives": "{p99_ttft_ms: min}", "total_gpus": "8", "ttft": "600"},
        {"constraints": "{sla: {ttft_ms: 5, statistic: p95}}", "search": "{method: grid}"},
        {"load": "{search: capacity, vary: concurrency, range: [1, 64]}"},
    ],
)
def test_a_sweep_file_may_say(sections: dict[str, str]) -> None:
    assert faults("sweep", changed(SWEEP, **sections)) == []


@pytest.mark.parametrize(
    ("sections", "word"),
    [
        ({"space": "{}"}, "non-empty"),
        ({"space": "{timing.kind: [rofline]}"}, "rofline"),
        ({"space": "{timing: [{kind: rofline}]}"}, "rofline"),
        ({"space": "{router.mode: {min: 1, max: 2}}"}, "min"),
        ({"space": "{engine.tensor_paralel: [1]}"}, "tensor_paralel"),
        ({"space": "{engine.tensor_parallel: [0]}"}, "0"),
        ({"space": "{router.mode: []}"}, "[]"),
        ({"objectives": "{wall_time_ms: min}"}, "wall_time_ms"),
        ({"objectives": "{p99_ttft_ms: least}"}, "least"),
        ({"constraints": "{sla: {attainment: 95}}"}, "95"),
        ({"load": "{search: capacity, very: rate}"}, "very"),
    ],
)
def test_a_sweep_file_may_not_say(sections: dict[str, str], word: str) -> None:
    found = faults("sweep", changed(SWEEP, **sections))
    assert len(found) == 1 and word in found[0]


def test_every_key_of_a_run_file_may_vary() -> None:
    """`space` has all that `--set` has."""
    in_space = set(sweep_schema()["properties"]["space"]["properties"])
    assert set(all_keys(RunConfig)) <= in_space
    listed = {entry.path for entry in entries(run_schema()) if not entry.is_in_list}
    assert listed == set(all_keys(RunConfig))


def test_defaults_are_valid_and_complete() -> None:
    """A run file with every default written out is one."""
    from dynosim.config import run_config_from_dict
    from dynosim.config.loading import resolved

    config = run_config_from_dict(yaml.safe_load(RUN))
    assert faults("run", resolved(config)) == []
    assert faults("run", config.model_dump(mode="json")) == []
