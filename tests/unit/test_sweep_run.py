"""What a sweep runs, what it need not run again, and which sweeps are the same."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dynosim.config import load_sweep
from dynosim.config.sweep_loading import SweepConfig
from dynosim.errors import DynosimError, TraceError
from dynosim.sweep.executor import Answer, LocalExecutor, Request
from dynosim.sweep.frontier_intervals import FUNCTION
from dynosim.sweep.results import Row
from dynosim.sweep.run import (
    SweepInterruptedError,
    SweepOutcome,
    check_inputs,
    hash_of,
    run_sweep,
    sweep_text,
)
from dynosim.sweep.space import trials_of
from dynosim.sweep.trial import TRIAL

FILE = """\
name: small
workload: {trace: t.jsonl}
engine: {num_gpu_blocks: 100}
timing: {kind: polynomial}
load: {search: fixed}
space: {cluster.workers: [1, 2, 3, 4]}
constraints: {gpu_budget: 3}
"""
LINE = '{"timestamp": 0, "input_length": 9, "output_length": 3, "hash_ids": [1]}\n'


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "t.jsonl").write_text(LINE)
    (tmp_path / "u.jsonl").write_text(LINE)
    (tmp_path / "sweep.yaml").write_text(FILE)
    return tmp_path / "sweep.yaml"


class Told(LocalExecutor):
    """Answers as it is told to: by the number of workers, a status, or an exception."""

    asked: dict[str, list[int]]

    def __init__(self, answers: dict[int, Any]) -> None:
        super().__init__(1)
        self.answers = answers

    def run(  # type: ignore[override]
        self, function: str, requests: Iterable[tuple[int, Request]]
    ) -> Iterator[tuple[int, Answer]]:
        for index, request in requests:
            Told.asked.setdefault(function, []).append(index)
            told = self.answers.get(index, "ok")
            if isinstance(told, BaseException):
                raise told
            workers = request["config"]["cluster"]["workers"]
            report = {
                "completed_requests": 1,
                "num_gpus": workers,
                "output_tok_s_per_gpu": float(workers),
                "median_output_token_throughput_per_user": 1.0,
            }
            is_ok = told == "ok"
            yield (
                index,
                {
                    "status": told,
                    "reason": "" if is_ok else "why",
                    "report": report if is_ok else {},
                    "wall_ms": 1.0,
                },
            )


def swept(path: Path, answers: dict[int, Any] | None = None, **options: Any) -> SweepOutcome:
    Told.asked = {}
    return run_sweep(
        load_sweep(path),
        path.parent / "out",
        Told(answers or {}),
        **options,
    )


def test_every_trial_that_can_run_is_run_once_and_none_of_the_others(path: Path) -> None:
    outcome = swept(path, {1: "failed"})
    assert Told.asked == {TRIAL: [0, 1, 2]}  # 4 GPUs are too many
    assert [row.status for row in outcome.rows] == ["ok", "failed", "ok", "infeasible"]
    assert (outcome.num_failed, outcome.num_resumed) == (1, 0)
    assert outcome.folder == path.parent / "out"
    assert outcome.summary["counts"] == {"ok": 2, "failed": 1, "infeasible": 1}


def test_a_resumed_sweep_runs_what_failed_and_what_is_missing(path: Path) -> None:
    with pytest.raises(SweepInterruptedError, match="interrupted: 1 of 3 trials are kept in"):
        swept(path, {0: "failed", 2: KeyboardInterrupt()})
    with pytest.raises(SweepInterruptedError, match="interrupted: 2 of 3 trials are kept in"):
        swept(path, {0: "infeasible", 2: KeyboardInterrupt()}, resume=True)
    assert Told.asked == {TRIAL: [0, 2]}
    outcome = swept(path, resume=True)
    assert Told.asked == {TRIAL: [2]} and outcome.num_resumed == 2
    assert [row.status for row in outcome.rows] == ["infeasible", "ok", "ok", "infeasible"]
    assert outcome.rows[0].reason == "why"


def test_intervals_are_made_for_the_frontier_when_all_trials_have_ended(path: Path) -> None:
    with pytest.raises(SweepInterruptedError) as caught:
        swept(path, intervals=2, answers={2: KeyboardInterrupt()})
    assert "interrupted: 2 of 3 trials" in str(caught.value)
    assert caught.value.exit_code == 130
    Told.asked = {}
    outcome = swept(path, resume=True, answers={2: "ok"}, intervals=0)
    assert set(Told.asked) == {TRIAL}
    assert [row.trial.index for row in outcome.rows if row.is_pareto] == [2]
    with pytest.raises(SweepInterruptedError, match="all trials, and the intervals of 0 of 1,"):
        swept(path, {2: KeyboardInterrupt()}, resume=True, intervals=2)
    assert Told.asked == {FUNCTION: [2]}


def test_bad_input_of_one_trial_ends_the_sweep(path: Path) -> None:
    with pytest.raises(TraceError, match="why"):
        swept(path, {0: "bad_input"})


# ---- which sweeps are the same -------------------------------------------------------------------


def hashed(path: Path, *overrides: str) -> str:
    return hash_of(trials_of(load_sweep(path, overrides)))


def test_a_sweep_is_known_by_its_configurations_and_its_files(path: Path) -> None:
    known = hashed(path)
    assert hashed(path) == known and len(known) == 16
    assert hashed(path, "top=9", "objectives={mean_ttft_ms: min}") == known  # of results only
    others = [
        hashed(path, "seed=1"),
        hashed(path, "space.cluster.workers=[1, 2, 3]"),
        hashed(path, "space.cluster.workers=[4, 3, 2, 1]"),
        hashed(path, "engine.num_gpu_blocks=101"),
        hashed(path, "workload.trace=u.jsonl"),
        hashed(path, "constraints.gpu_budget=2"),
    ]
    (path.parent / "t.jsonl").write_text(LINE * 2)
    others.append(hashed(path))
    assert len({known, *others}) == len(others) + 1


def test_step_times_in_a_file_count_as_its_content(path: Path) -> None:
    timing = "timing={kind: fitted, file: timing.json}"
    missing = hashed(path, timing)
    found = []
    for content in ("a", "b", "a"):
        (path.parent / "timing.json").write_text(content)
        found.append(hashed(path, timing))
    assert found[0] == found[2] and len({missing, *found}) == 3


def test_a_file_longer_than_a_chunk_is_read_to_its_end(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = hashed(path)
    monkeypatch.setattr("dynosim.files.digest.CHUNK_BYTES", 7)
    assert hashed(path) == whole
    content = (path.parent / "t.jsonl").read_text()
    (path.parent / "t.jsonl").write_text(content + " ")
    assert hashed(path) != whole


def test_what_no_trial_could_use_is_refused_before_any_runs(path: Path) -> None:
    for override, message in (
        ("workload.trace=gone.jsonl", "gone.jsonl"),
        ("model=Nobody/Nothing-7B", "Nobody/Nothing-7B"),
    ):
        sweep = load_sweep(path, [override])
        with pytest.raises(DynosimError, match=message):
            check_inputs(trials_of(sweep))
    check_inputs(trials_of(load_sweep(path)))


def test_the_sweep_file_is_told_with_its_overrides(path: Path, tmp_path: Path) -> None:
    sweep = load_sweep(path, ["top=3", "name=née"])
    (tmp_path / "again.yaml").write_text(sweep_text(sweep))
    again: SweepConfig = load_sweep(tmp_path / "again.yaml")
    assert (again.top, again.name, again.source_data) == (3, "née", sweep.source_data)
    assert "née" in sweep_text(sweep) and next(iter(again.source_data)) == "name"


def test_crashed_trials_are_counted(path: Path) -> None:
    sweep = load_sweep(path)
    trial = trials_of(sweep)[0]
    rows = [Row(trial, status, "", {}, None) for status in ("ok", "failed", "failed", "infeasible")]
    assert SweepOutcome(sweep, rows, {}, path, 0).num_failed == 2
