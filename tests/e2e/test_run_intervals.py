"""`dynosim run` says how sure it is, where it was measured, and that it is saturated."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from recorded_runs import TRUE, rows, workload, write

from dynosim.cli import main
from dynosim.silicon.fitted_file import read_fit, write_fit
from dynosim.timing.fitted import Fit, MeasuredRange

RUN = """\
name: sure
workload: {synthetic: {requests: 40, isl: 200, osl: 20, rate_rps: 5}}
engine: {num_gpu_blocks: 2000, max_num_seqs: 8}
timing: {kind: fitted, file: timing.json}
"""
DRAWS = tuple(replace(TRUE, weights_ms=8.0 + 0.1 * number) for number in range(-8, 9))


def run_file(tmp_path: Path, fit: Fit | None = None) -> str:
    measured = MeasuredRange(prefill_tokens=150, num_decodes=100, mean_context=5000.0)
    write_fit(
        fit or Fit(parameters=TRUE, knee=2.5, draws=DRAWS, measured=measured),
        tmp_path / "timing.json",
    )
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return str(path)


def test_fitted_timing_with_draws_gives_intervals(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_file(tmp_path)
    assert main(["run", path, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    intervals = report["intervals"]
    assert (intervals["level"], intervals["replays"]) == (0.95, 16)
    low, high = intervals["metrics"]["mean_tpot_ms"]
    assert low < report["mean_tpot_ms"] < high
    assert report["timing_in_range_share"] < 1
    assert report["timing_in_range_share_prefill_tokens"] == report["timing_in_range_share"]
    assert report["timing_in_range_share_num_decodes"] == 1
    assert report["timing_in_range_share_prefix_tokens"] is None
    assert main(["run", path, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["intervals"] == intervals


def test_table_and_page_show_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["run", run_file(tmp_path), "--intervals", "4", "--out", str(out)]) == 0
    text = capsys.readouterr().out
    assert text.count("  95 %") >= 4
    assert "95 % of 4 replays with other constants of step times" in text
    assert "(by prompt tokens" in text
    assert "95 % of replays" in (out / "report.html").read_text()


@pytest.mark.parametrize("number", ["0", None])
def test_none_are_made_when_not_wanted_or_without_draws(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: str | None
) -> None:
    path = run_file(tmp_path, None if number else Fit(parameters=TRUE))
    assert main(["run", path, "--json", *(["--intervals", number] if number else [])]) == 0
    assert json.loads(capsys.readouterr().out)["intervals"] is None
    assert main(["run", path, "--intervals", "1"]) == 2
    assert "--intervals 1: one replay has no spread" in capsys.readouterr().err


def test_saturated_run_shows_what_is_sustained_instead_of_latencies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = run_file(tmp_path)
    load = ["--set", "workload.synthetic.rate_rps=200", "--set", "workload.synthetic.requests=300",
            "--set", "cluster.workers=2", "--intervals", "0"]  # fmt: skip
    assert main(["run", path, *load]) == 0
    text = capsys.readouterr().out
    rows = {line.split()[0]: line for line in text.splitlines() if line}
    assert "no steady value" in rows["TTFT"] and "no steady value" in rows["E2E"]
    assert "no steady value" not in rows["TPOT"]
    assert "sustained" in rows["SATURATED"] and "collapse after" in rows["SATURATED"]
    assert main(["run", path, *load, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["mean_ttft_ms"] > 0
    assert 0 < report["saturation_sustained_tok_s"] < 2 * report["output_throughput_tok_s"]
    assert 0 <= report["saturation_collapse_ms"] < 2000


def test_ctrl_c_among_the_replays_keeps_the_run(tmp_path: Path) -> None:
    path, out = run_file(tmp_path), tmp_path / "out"
    code = (
        "import os, signal\n"
        "import dynosim.experiment.intervals as intervals\n"
        "plain = intervals.prediction_intervals\n"
        "def interrupted(*a, **k):\n"
        "    k['progress'] = lambda done, of: os.kill(os.getpid(), signal.SIGINT)\n"
        "    return plain(*a, **k)\n"
        "intervals.prediction_intervals = interrupted\n"
        "from dynosim.cli import main\n"
        f"raise SystemExit(main(['run', {path!r}, '--out', {str(out)!r}]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=dict(os.environ)
    )
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert "interrupted: no intervals" in done.stderr
    assert json.loads((out / "report.json").read_text())["intervals"] is None


@pytest.mark.live
def test_calibration_writes_the_draws_that_a_run_reads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = write(tmp_path / "log.jsonl", rows(workload(60)))
    timing = tmp_path / "timing.json"
    assert main(["calibrate", "--measurements", str(log), "--out", str(timing)]) == 0
    fit = read_fit(timing)
    assert len(set(fit.draws)) == 32
    path = run_file(tmp_path, fit)
    capsys.readouterr()
    assert main(["run", path, "--json", "--intervals", "8"]) == 0
    report = json.loads(capsys.readouterr().out)
    low, high = report["intervals"]["metrics"]["mean_itl_ms"]
    assert low < report["mean_itl_ms"] < high < 1.2 * low
