"""What dynosim takes, its published schemas take: an editor marks nothing that runs."""

import json
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from dynosim.config.aliases import RUN_ALIASES, SWEEP_ALIASES
from dynosim.config.keys import all_keys
from dynosim.config.loading import run_config_from_dict
from dynosim.config.schema import RunConfig
from dynosim.config.sweep_loading import sweep_config
from dynosim.config.sweep_schema import SweepKeys
from dynosim.config.yaml_source import Document
from dynosim.errors import ConfigError
from dynosim.reference.schemas import schema_text

BASES = [
    yaml.safe_load(text)
    for text in (
        "{workload: {trace: a.jsonl}, timing: {kind: polynomial}, engine: {num_gpu_blocks: 9}}",
        "{workload: {synthetic: {requests: 3, isl: 5, osl: 2, rate_rps: 1}}, model: m, "
        "hardware: h20, timing: {kind: aiconfigurator}}",
        "{workload: {trace: a.jsonl, concurrency: 2}, engine: {num_gpu_blocks: 9}, "
        "timing: {kind: linear, base_ms: 1}, router: {mode: kv}}",
    )
]
VALUES: list[Any] = [
    0, 1, 2, -1, 512, 0.5, 1.5, -0.5, True, False, None, "", "auto", "kv", "fcfs", "a.b:C", "p95",
    "capacity", "jsonl", "vllm", "roofline", "grid", "h20", [], [1], [0.5, 2.0], ["x"], {},
    {"a": "b"},
    {"dist": "normal", "mean": 4, "std": 1}, {"kind": "roofline"}, {"ttft_ms": 5}, {"rps": 3},
    [{"name": "x"}], {"h20": 2.5}, {"output_tok_s_per_gpu": "max"},
]  # fmt: skip


@cache
def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(json.loads(schema_text(name)))


@cache
def keys(kind: str) -> list[str]:
    found = [*dict.fromkeys(all_keys(RunConfig)), *RUN_ALIASES]
    return found if kind == "run" else [*found, *all_keys(SweepKeys), *SWEEP_ALIASES]


def with_values(base: dict[str, Any], changes: list[tuple[str, Any]]) -> dict[str, Any]:
    data: dict[str, Any] = deepcopy(base)
    for key, value in changes:
        section = data
        *path, last = key.split(".")
        for name in path:
            below = section.get(name)
            section[name] = below if isinstance(below, dict) else {}
            section = section[name]
        section[last] = deepcopy(value)
    return data


def changes(kind: str) -> st.SearchStrategy[list[tuple[str, Any]]]:
    change = st.tuples(st.sampled_from(keys(kind)), st.sampled_from(VALUES))
    return st.lists(change, min_size=1, max_size=2)


@settings(max_examples=300, deadline=None)
@given(base=st.sampled_from(BASES), changed=changes("run"))
def test_a_run_file_that_is_taken_is_valid(
    base: dict[str, Any], changed: list[tuple[str, Any]]
) -> None:
    data = with_values(base, changed)
    try:
        run_config_from_dict(data)
    except ConfigError:
        return
    assert [error.message for error in validator("run").iter_errors(data)] == []


@settings(max_examples=150, deadline=None)
@given(
    base=st.sampled_from(BASES),
    changed=changes("sweep"),
    swept=st.sampled_from(keys("run")),
    values=st.lists(st.sampled_from(VALUES), min_size=1, max_size=2),
    is_long=st.booleans(),
)
def test_a_sweep_file_that_is_taken_is_valid(
    base: dict[str, Any],
    changed: list[tuple[str, Any]],
    swept: str,
    values: list[Any],
    is_long: bool,
) -> None:
    space = {swept: {"choices": values} if is_long else values}
    data = with_values(base | {"space": space}, changed)
    try:
        sweep_config(Document(deepcopy(data), "sweep", Path.cwd()))
    except ConfigError:
        return
    assert [error.message for error in validator("sweep").iter_errors(data)] == []
