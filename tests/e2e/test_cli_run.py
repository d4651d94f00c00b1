"""`dynosim run` as its users call it."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import Terminal

from dynosim.cli import main
from dynosim.cli.run import EVENT_FILES, TRACE_FILE
from dynosim.config.report_keys import known_report_keys
from dynosim.metrics import PROCESS_KEYS

RUN_FILES = {
    "report.json",
    "report.html",
    "config.yaml",
    "requests.parquet",
    "timeline.parquet",
}
RUN_FILE = """\
name: small
workload:
  synthetic: {requests: 40, isl: 300, osl: 20, rate_rps: 20}
engine: {num_gpu_blocks: 500, max_num_seqs: 16}
timing: {kind: polynomial}
cluster: {workers: 2}
sla: {ttft_ms: 500}
"""
GOOD_LINE = '{"timestamp": 0, "input_length": 600, "output_length": 3, "hash_ids": [1, 2]}\n'


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN_FILE)
    return path


def json_of(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, object]:
    assert main(["run", *arguments, "--json"]) == 0
    document: dict[str, object] = json.loads(capsys.readouterr().out)
    return document


def test_json_is_one_document_with_every_known_key(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = json_of(capsys, str(run_file), "--check")
    assert report["completed_requests"] == 40
    assert report["name"] == "small"
    assert [key for key in known_report_keys() if key not in report] == []


def test_table_shows_what_matters(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(run_file)]) == 0
    text = capsys.readouterr().out
    for word in ("TTFT", "ITL", "TPOT", "E2E", "p95", "per GPU", "cache reuse", "step times"):
        assert word in text


def test_exact_stepping_gives_the_same_report(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fast = json_of(capsys, str(run_file))
    exact = json_of(capsys, str(run_file), "--exact-stepping")
    for key in ("mean_ttft_ms", "p99_itl_ms", "duration_ms"):
        assert fast[key] == pytest.approx(exact[key], abs=1e-6)


def test_out_holds_all_files_and_its_config_runs_again(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "results" / "one"
    assert main(["run", str(run_file), "--out", str(out), "--set", "seed=3"]) == 0
    names = {path.name for path in out.iterdir()}
    wanted = {"report.json", "requests.parquet", "timeline.parquet", "report.html", "config.yaml"}
    assert names == wanted
    assert [path.name for path in out.parent.iterdir()] == ["one"]
    capsys.readouterr()
    first = json.loads((out / "report.json").read_text())
    again = json_of(capsys, str(out / "config.yaml"))
    others = (*PROCESS_KEYS, "config")
    assert {k: v for k, v in again.items() if k not in others} == {
        k: v for k, v in first.items() if k not in others
    }


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("engine.tensor_paralel=2", "did you mean engine.tensor_parallel?"),
        ("workload.concurrency=0", "must be >= 1"),
        ("workload.speedup=.nan", "finite"),
        ("model=Qwen/Qwen3-32", "model"),
        ("hardware=h200", "h200_sxm"),
        ("engine.num_gpu_blocks=4", "longer"),
        ("cluster.mode=disagg", "add `transfer: {preset: ib}` or another link"),
    ],
)
def test_bad_input_is_one_message_and_nothing_is_written(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, words: str
) -> None:
    arguments = ["run", str(run_file), "--set", override, "--out", str(tmp_path / "out"), "--json"]
    if override.startswith(("model", "hardware")):
        other = "hardware=h200_sxm" if override.startswith("model") else "model=Qwen/Qwen3-32B"
        arguments += ["--set", "engine.num_gpu_blocks=auto", "--set", other]
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert words in captured.err
    assert "Traceback" not in captured.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no requests"),
        (GOOD_LINE * 3 + "not json\n", ":4"),
        (GOOD_LINE + GOOD_LINE.replace("600", "-600"), ":2"),
        (GOOD_LINE.replace("600", "NaN"), ":1"),
        (GOOD_LINE.replace(": 0,", ": 9,") + GOOD_LINE, ":2"),
        (GOOD_LINE.replace('"output_length": 3, ', ""), "output_length"),
    ],
)
def test_bad_trace_is_told_with_its_line(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    trace = tmp_path / "bad.jsonl"
    trace.write_text(text)
    overrides = ["--set", "workload.synthetic=null", "--set", f"workload.trace={trace}",
                 "--set", "workload.format=mooncake"]  # fmt: skip
    assert main(["run", str(run_file), *overrides]) == 2
    message = capsys.readouterr().err
    assert str(trace) in message
    assert words in message


def test_skip_bad_lines_counts_them(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trace = tmp_path / "bad.jsonl"
    trace.write_text(GOOD_LINE * 3 + "not json\n")
    overrides = ["--set", "workload.synthetic=null", "--set", f"workload.trace={trace}",
                 "--set", "workload.format=mooncake", "--skip-bad-lines"]  # fmt: skip
    report = json_of(capsys, str(run_file), *overrides)
    assert (report["completed_requests"], report["skipped_lines"]) == (3, 1)


def test_out_that_cannot_be_a_folder_is_refused_first(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", str(run_file), "--out", str(run_file)]) == 2
    assert "is a file" in capsys.readouterr().err


def test_a_run_overwrites_another_only_if_told_to(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["run", str(run_file), "--kv-events", "--perfetto", "--out", str(out)]) == 0
    assert {path.name for path in out.iterdir()} == {*RUN_FILES, *EVENT_FILES, TRACE_FILE}
    (out / "notes.txt").write_text("mine")
    report = (out / "report.json").read_bytes()
    capsys.readouterr()
    again = ["run", str(run_file), "--set", "seed=5", "--out", str(out)]
    assert main(again) == 2
    message = capsys.readouterr().err
    assert f"{out}: holds a run already" in message and "--overwrite" in message
    assert (out / "report.json").read_bytes() == report
    assert main([*again, "--overwrite"]) == 0
    assert json.loads((out / "report.json").read_text())["seed"] == 5
    # nothing of the first run is left beside the second
    assert {path.name for path in out.iterdir()} == {*RUN_FILES, "notes.txt"}


def test_usage_errors_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run"]) == 2
    assert main(["no-such-command"]) == 2
    assert main(["trace", "no-such-command"]) == 2
    capsys.readouterr()
    for command in ("run", "sweep", "why", "diff", "conformance", "support", "trace"):
        assert main([command, "--help"]) == 0
        text = capsys.readouterr().out
        assert "Example" in text or command == "trace"


def test_support_lists_a_combination(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--model", "Qwen/Qwen3-32B", "--hardware", "h200_sxm", "--engine", "vllm"]
    assert main(["support", *arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["support"]
    assert [row["source"] for row in rows] == ["measured"]
    assert main(["support", "--hardware", "h200"]) == 2


def test_help_loads_nothing_heavy() -> None:
    heavy = "numpy pydantic yaml polars rich matplotlib plotly simpy msgspec".split()
    code = (
        "import sys; from dynosim.cli import main; main(['--help']);"
        f"print([m for m in {heavy} if m in sys.modules], file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"


def test_module_and_hash_seed_give_the_same_report(run_file: Path) -> None:
    reports = []
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-m", "dynosim", "run", str(run_file), "--json"],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        report = json.loads(done.stdout)
        reports.append({k: v for k, v in report.items() if k not in PROCESS_KEYS})
    assert reports[0] == reports[1]


def test_report_is_the_same_in_another_process_with_another_hash_seed(run_file: Path) -> None:
    reports = []
    for hash_seed in ("1", "2"):
        command = [sys.executable, "-m", "dynosim", "run", str(run_file), "--json"]
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        done = subprocess.run(command, env=environment, check=True, capture_output=True)
        report = json.loads(done.stdout)
        reports.append({k: v for k, v in report.items() if k not in PROCESS_KEYS})
    assert reports[0] == reports[1]


def test_a_long_run_shows_its_requests_and_its_replays_on_a_terminal_only(
    run_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dynosim.experiment.progress.QUIET_S", 0.0)
    asked = ["run", str(run_file), "--intervals", "3"]
    assert main(asked) == 0
    assert capsys.readouterr().err == ""
    terminal = Terminal(monkeypatch)
    assert main(asked) == 0
    shown = terminal.getvalue()
    assert "40/40 requests" in shown and "making the report" in shown
    assert "3/3 replays for the intervals" in shown
    assert terminal.lines() == []


def test_ctrl_c_amid_a_run_leaves_nothing(run_file: Path, tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from dynosim.cli import main\n"
        "from dynosim.experiment.progress import ProgressBar\n"
        "def interrupt(*_):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "ProgressBar.__call__ = interrupt\n"
        "sys.stderr.isatty = lambda: True\n"
        "raise SystemExit(main(sys.argv[1:]))\n"
    )
    command = [sys.executable, "-c", code, "run", str(run_file), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGINT, done.stderr
    assert "Traceback" not in done.stderr and done.stdout == ""
    assert not any((tmp_path / "out").glob("*"))
