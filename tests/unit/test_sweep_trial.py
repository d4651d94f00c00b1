"""One trial: how it ends, what it tells, and what the next one need not load again."""

from pathlib import Path
from typing import Any

import pytest

from dynosim.build.engine import Prepared
from dynosim.config.loading import run_config_from_dict
from dynosim.config.schema import RunConfig
from dynosim.experiment.run import run
from dynosim.metrics import PROCESS_KEYS
from dynosim.sweep import trial as module
from dynosim.sweep.trial import (
    MAX_PREPARED,
    MAX_TRACES,
    cached_prepared,
    cached_trace,
    config_of,
    request_for,
    run_trial,
)

LINE = '{"timestamp": 0, "input_length": 9, "output_length": 3, "hash_ids": [1]}\n'


@pytest.fixture(autouse=True)
def nothing_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_traces", {})


def config_for(**sections: Any) -> RunConfig:
    plain: dict[str, Any] = {
        "workload": {"synthetic": {"requests": 5, "isl": 100, "osl": 10, "rate_rps": 5}},
        "engine": {"num_gpu_blocks": 100},
        "timing": {"kind": "polynomial"},
    }
    return run_config_from_dict({**plain, **sections})


def test_a_request_carries_the_whole_configuration_and_its_folder(tmp_path: Path) -> None:
    config = config_for(seed=5, name="x", cluster={"workers": 2}, sla={"ttft_ms": 9})
    request = request_for(config)
    again = config_of(request)
    assert again.model_dump() == config.model_dump()
    assert request["folder"] == str(config.base_dir)
    assert config_of({**request, "folder": str(tmp_path)}).base_dir == tmp_path


def test_a_trial_tells_what_a_run_reports_without_times_of_this_machine() -> None:
    config = config_for(seed=3)
    answer = run_trial(request_for(config))
    report = run(config).report
    assert (answer["status"], answer["reason"]) == ("ok", "")
    assert answer["report"] == {k: v for k, v in report.items() if k not in PROCESS_KEYS}
    assert set(report) - set(answer["report"]) == set(PROCESS_KEYS) & set(report) != set()
    assert answer["wall_ms"] > 0


@pytest.mark.parametrize(
    ("sections", "status", "reason"),
    [
        ({"workload": {"trace": "gone.jsonl"}}, "bad_input", "gone.jsonl"),
        ({"engine": {"num_gpu_blocks": 3}}, "infeasible", "max_model_len"),
        ({"router": {"mode": "kv", "policy": "gone:Policy"}}, "infeasible",
         "cannot be run: router.policy: cannot import 'gone'"),
    ],
)  # fmt: skip
def test_how_a_trial_ends_and_why(sections: dict[str, Any], status: str, reason: str) -> None:
    answer = run_trial(request_for(config_for(**sections)))
    assert (answer["status"], answer["report"]) == (status, {})
    assert reason in answer["reason"]


def test_a_crash_is_named_and_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(config: RunConfig, **options: Any) -> Any:
        raise KeyError("boom")

    monkeypatch.setattr(module, "run", crash)
    answer = run_trial(request_for(config_for()))
    assert (answer["status"], answer["reason"]) == ("failed", "KeyError: 'boom'")
    assert "Traceback" in capsys.readouterr().err


def trace_config(folder: Path, name: str = "t.jsonl", **sections: Any) -> RunConfig:
    path = folder / name
    if not path.exists():
        path.write_text(LINE)
    return config_for(workload={"trace": str(path)}, **sections)


def test_trials_that_share_their_workload_load_it_once(tmp_path: Path) -> None:
    first = cached_trace(trace_config(tmp_path))
    assert cached_trace(trace_config(tmp_path, cluster={"workers": 3})) is first
    assert cached_trace(trace_config(tmp_path, seed=1)) is not first
    other = trace_config(tmp_path, "other.jsonl")
    assert cached_trace(other) is not first
    assert cached_trace(other) is cached_trace(trace_config(tmp_path, "other.jsonl"))


def test_the_level_of_concurrency_does_not_matter_to_a_trace_but_whether_there_is_one(
    tmp_path: Path,
) -> None:
    def at(concurrency: int | None) -> Any:
        workload = {"trace": str(tmp_path / "t.jsonl"), "concurrency": concurrency}
        return cached_trace(config_for(workload=workload))

    (tmp_path / "t.jsonl").write_text(LINE)
    assert at(2) is at(7)
    assert at(None) is not at(2)


def test_a_relative_name_is_another_file_in_another_folder(tmp_path: Path) -> None:
    found = []
    for folder, line in (("a", LINE), ("b", LINE * 2)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "t.jsonl").write_text(line)
        request = request_for(config_for(workload={"trace": "t.jsonl"}))
        found.append(len(cached_trace(config_of({**request, "folder": str(tmp_path / folder)}))))
    assert found == [1, 2]


def test_only_the_last_few_are_kept(tmp_path: Path) -> None:
    configs = [trace_config(tmp_path, f"{number}.jsonl") for number in range(MAX_TRACES + 1)]
    traces = [cached_trace(config) for config in configs]
    assert MAX_TRACES == len(module._traces) == 2
    for config, trace in list(zip(configs, traces, strict=True))[1:]:
        assert cached_trace(config) is trace
    assert cached_trace(configs[0]) is not traces[0]


def test_trials_that_share_engine_and_step_times_prepare_them_once(tmp_path: Path) -> None:
    first = cached_prepared(trace_config(tmp_path))
    other = trace_config(tmp_path, "other.jsonl", cluster={"workers": 3}, seed=4)
    assert cached_prepared(other) is first
    assert cached_prepared(trace_config(tmp_path, engine={"num_gpu_blocks": 99})) is not first
    slower = {"kind": "fixed", "prefill_ms": 9.0, "decode_ms": 8.0}
    assert cached_prepared(trace_config(tmp_path, timing=slower)).timing is not first.timing


def test_tiers_are_of_what_is_prepared(tmp_path: Path) -> None:
    def tiered(host_blocks: int, read_gb_s: float) -> Prepared:
        host = {"num_blocks": host_blocks, "read_gb_s": read_gb_s}
        cluster = {"tiers": {"host": host, "kv_bytes_per_token": 1024}}
        return cached_prepared(trace_config(tmp_path, cluster=cluster))

    assert cached_prepared(trace_config(tmp_path)).tiers is None
    found = [tiered(blocks, rate).tiers for blocks, rate in ((70, 1.0), (80, 1.0), (80, 2.0))]
    assert [(spec.tiers[0].num_blocks, spec.tiers[0].read_gb_s) for spec in found if spec] == [
        (70, 1.0), (80, 1.0), (80, 2.0),
    ]  # fmt: skip
    assert tiered(80, 2.0) is tiered(80, 2.0)


def test_only_the_last_few_engines_are_kept(tmp_path: Path) -> None:
    for blocks in range(50, 60 + MAX_PREPARED):
        cached_prepared(trace_config(tmp_path, engine={"num_gpu_blocks": blocks}))
    assert len(module._prepared) == MAX_PREPARED


def test_a_worker_is_told_of_no_limit_where_there_is_one_by_default() -> None:
    data = {
        "workload": {"synthetic": {"requests": 9, "isl": 10, "osl": 2, "rate_rps": 5}},
        "engine": {"num_gpu_blocks": 100},
        "timing": {"kind": "fixed", "prefill_ms": 10, "decode_ms": 5},
        "planner": {"max_gpu_budget": None},
    }
    config = run_config_from_dict(data)
    assert run_config_from_dict(request_for(config)["config"]) == config
