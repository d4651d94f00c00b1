"""dynosim as it is used from Python, in a notebook say."""

import re
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

import dynosim
from dynosim.errors import ConfigError

pytestmark = pytest.mark.usefixtures("inline_workers", "no_pictures")

RUN_FILE = """\
name: small
workload: {synthetic: {sessions: 150, isl: 300, osl: 20, rate_rps: 20}}
engine: {num_gpu_blocks: 500, max_model_len: 512}
timing: {kind: polynomial}
cluster: {workers: 2}
"""
SWEEP_FILE = (
    RUN_FILE
    + """\
space: {engine.max_num_seqs: [4, 8]}
constraints: {sla: {ttft_ms: 2000}}
load: {search: capacity, range: [0.2, 2], tolerance: 0.3, min_requests: 0}
"""
)


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN_FILE)
    return path


@pytest.fixture
def sweep_file(tmp_path: Path) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(SWEEP_FILE)
    return path


def test_dir_lists_what_loads_later() -> None:
    code = "import dynosim, sys; print(*dir(dynosim)); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    listed, loaded = map(str.split, done.stdout.splitlines())
    assert set(dynosim.__all__) <= set(listed)
    assert {"run", "sweep", "capacity", "load_run", "load_sweep"} <= set(listed)
    assert not {"numpy", "polars", "pydantic", "dynosim.sweep"} & set(loaded)
    assert all(hasattr(dynosim, name) for name in dynosim.__all__)


def test_a_runs_tables_need_no_arguments(run_file: Path) -> None:
    outcome = dynosim.run(dynosim.load_run(run_file))
    requests = outcome.requests
    assert requests.equals(dynosim.request_table(outcome.result, outcome.trace))
    assert requests["ttft_ms"].mean() == pytest.approx(outcome.report["mean_ttft_ms"])
    assert outcome.timeline.equals(dynosim.timeline_table(outcome.result))


def test_outcomes_are_told_in_a_line_and_on_a_card(run_file: Path, sweep_file: Path) -> None:
    ran = dynosim.run(dynosim.load_run(run_file))
    assert re.match(r"<RunOutcome small: requests 150 of 150, GPUs 2, tok/s/GPU [\d.]+", repr(ran))
    swept = dynosim.sweep(sweep_file)
    assert re.match(r"<SweepOutcome small: trials 2 ok, best max_num_seqs=\d", repr(swept))
    for outcome in (ran, swept):
        assert "\n" not in repr(outcome) and len(repr(outcome)) < 200
        assert outcome._repr_html_().startswith("<table><caption>small</caption>")
    renamed = dynosim.run(dynosim.load_run(run_file, ["name=<b>"]))
    assert "&lt;b&gt;" in renamed._repr_html_() and "<b>" not in renamed._repr_html_()


@pytest.mark.usefixtures("worker_processes")
def test_a_sweep_leaves_no_files(
    sweep_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "scratch"))
    (tmp_path / "scratch").mkdir()
    monkeypatch.setattr("tempfile.tempdir", None)
    before = sorted(tmp_path.rglob("*"))
    outcome = dynosim.sweep(sweep_file, ["seed=1"], jobs=2)
    assert sorted(tmp_path.rglob("*")) == before
    assert outcome.trials.height == 2 and outcome.probes.height >= 4
    assert outcome.answer.best.trial.index == outcome.summary["answer"]["best"]


def test_a_sweep_into_a_folder_is_the_one_of_the_command(sweep_file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    outcome = dynosim.sweep(dynosim.load_sweep(sweep_file), out=out)
    assert pl.read_parquet(out / "trials.parquet").equals(outcome.trials)
    assert pl.read_parquet(out / "probes.parquet").equals(outcome.probes)
    with pytest.raises(ConfigError, match="holds a sweep already"):
        dynosim.sweep(sweep_file, out=out)
    assert dynosim.sweep(sweep_file, out=out, resume=True).num_resumed == outcome.probes.height


def test_what_makes_no_sense_is_refused(sweep_file: Path, run_file: Path) -> None:
    with pytest.raises(ConfigError, match="need out"):
        dynosim.sweep(sweep_file, resume=True)
    with pytest.raises(ConfigError, match="give them to load_sweep"):
        dynosim.sweep(dynosim.load_sweep(sweep_file), ["seed=1"])
    with pytest.raises(ConfigError, match="no bound is given"):
        dynosim.capacity(run_file)
    with pytest.raises(ConfigError, match=r"load.tolerance"):
        dynosim.capacity(run_file, ttft_ms=500, load={"tolerance": 7})
    fixed = dynosim.sweep(sweep_file, ["load={search: fixed}"])
    assert fixed.answer is None and fixed.probes is None
    with pytest.raises(ConfigError, match="no probes"):
        fixed.to_pandas("probes")


def test_capacity_is_that_of_a_sweep_of_one_layout(run_file: Path, sweep_file: Path) -> None:
    load = {"range": [0.2, 2], "tolerance": 0.3, "min_requests": 0}
    config = dynosim.load_run(run_file, ["engine.max_num_seqs=4"])
    found = dynosim.capacity(config, ttft_ms=2000, load=load)
    (row,) = dynosim.sweep(sweep_file, ["space={engine.max_num_seqs: [4]}"]).trials.iter_rows(
        named=True
    )
    assert (found.load, found.failed_load) == (row["capacity_load"], row["capacity_load_failed"])
    assert found.rps == row["capacity_rps"] and found.probes["load"].is_sorted()
    assert repr(found).startswith("<CapacityOutcome small: carries ")
    by_file = dynosim.load_run(run_file, ["engine.max_num_seqs=4", "sla={ttft_ms: 2000}"])
    assert dynosim.capacity(by_file, load=load).load == found.load
    nothing = dynosim.capacity(config, ttft_ms=0.001, load=load)
    assert nothing.load is None and "no load of the range" in repr(nothing)


def test_pandas_gets_the_same_values(run_file: Path, sweep_file: Path) -> None:
    pytest.importorskip("pandas")
    outcome = dynosim.run(dynosim.load_run(run_file))
    frame = outcome.to_pandas()
    assert type(frame).__module__.startswith("pandas")
    assert frame["ttft_ms"].tolist() == outcome.requests["ttft_ms"].to_list()
    assert list(outcome.to_pandas("timeline").columns) == outcome.timeline.columns
    swept = dynosim.sweep(sweep_file)
    assert len(swept.to_pandas()) == 2
    assert len(swept.to_pandas("probes")) == swept.probes.height


def test_without_pandas_the_remedy_is_named(
    run_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = dynosim.run(dynosim.load_run(run_file))
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ConfigError, match="pip install pandas pyarrow"):
        outcome.to_pandas()
