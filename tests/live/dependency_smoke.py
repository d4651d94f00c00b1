"""Uses every base dependency once, as users do: `python dependency_smoke.py FOLDER`.

Run by `test_dependency_bounds.py` with the Python of an environment that has nothing else.
"""

import json
import subprocess
import sys
from pathlib import Path

RUN_FILE = """\
name: small
model: Qwen/Qwen3-32B
hardware: h200_sxm
workload: {synthetic: {sessions: 60, isl: 300, osl: 20, rate_rps: 2}}
engine: {tensor_parallel: 2, max_model_len: 4096}
timing: {kind: aiconfigurator}
router: {mode: kv}
"""
SWEEP_KEYS = """\
space: {engine.max_num_seqs: [16, 64]}
constraints: {sla: {ttft_ms: 2000}}
load: {search: capacity, range: [0.5, 2], tolerance: 0.5, min_requests: 0}
"""
POINTS = """\
import sys
import polars as pl
from dynosim.compare.ranking import rank
import dynosim
folder = sys.argv[1]
values = {"a": 1, "b": 2, "c": 3}
assert rank(values, values, metric="x", lower_is_better=True).tau == 1
trials = pl.read_parquet(folder + "/sweep/trials.parquet")
assert trials.height == 2 and trials["capacity_load"].null_count() == 0
outcome = dynosim.run(dynosim.load_run(folder + "/run.yaml"))
assert outcome.requests.height == len(outcome.to_pandas()) == 60
"""


def dynosim(*arguments: object) -> str:
    """What the command prints; a failure, or a warning that something goes away, ends all."""
    command = [sys.executable, "-W", "error::DeprecationWarning:dynosim", "-m", "dynosim"]
    done = subprocess.run([*command, *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"dynosim {arguments}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


def main(folder: Path) -> None:
    """Run everything once."""
    run_file, sweep_file, trace = (folder / name for name in ("run.yaml", "s.yaml", "t.jsonl.gz"))
    run_file.write_text(RUN_FILE)
    sweep_file.write_text(RUN_FILE + SWEEP_KEYS)
    assert "Simulate:" in dynosim("--help") and "complete" in dynosim("--show-completion", "bash")
    dynosim("trace", "synth", trace, "--requests", 50, "--isl", "200", "--osl", 9, "--rate-rps", 4)
    dynosim("trace", "inspect", trace, "--plot", folder / "trace.png")
    report = json.loads(dynosim("run", run_file, "--kv-events", "--out", folder / "run", "--json"))
    assert report["completed_requests"] == 60
    dynosim("run", run_file, "--set", f"workload={{trace: {trace}}}", "--intervals", 2)
    dynosim("sweep", sweep_file, "--jobs", 2, "--out", folder / "sweep")
    for page in (folder / "run" / "report.html", folder / "sweep" / "report.html"):
        assert "plotly" in page.read_text().lower()
    assert (folder / "sweep" / "pareto.png").stat().st_size > 1000
    subprocess.run([sys.executable, "-c", POINTS, str(folder)], check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
