"""`dynosim run --metrics-every`: the frontend's metrics over virtual time."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from dynosim.cli import main
from dynosim.metrics import PROCESS_KEYS
from dynosim.metrics.frontend_series import series_of
from dynosim.planner.series import ScrapeStore

RUN = """\
workload: {synthetic: {requests: 300, isl: 600, osl: 40, rate_rps: 10}}
engine: {num_gpu_blocks: 400, block_size: 16, max_num_seqs: 16, max_num_batched_tokens: 2048}
timing: {kind: fixed, prefill_ms: 100, decode_ms: 20}
cluster: {workers: 2}
router: {mode: least-loaded}
live: {metrics_namespace: fleet}
"""
TTFT = "dynamo_frontend_time_to_first_token_seconds"


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN)
    return path


def run(run_file: Path, out: str, *more: str) -> Path:
    folder = run_file.parent / out
    assert main(["run", str(run_file), "--out", str(folder), *more]) == 0
    return folder


def report_of(folder: Path) -> dict[str, object]:
    report: dict[str, object] = json.loads((folder / "report.json").read_text())
    return {key: value for key, value in report.items() if key not in PROCESS_KEYS}


def test_the_p95_of_ttft_over_time(run_file: Path) -> None:
    """As Prometheus would tell it from buckets; true to the bucket of the requests themselves."""
    out = run(run_file, "out", "--metrics-every", "5")
    table = pl.read_parquet(out / "metrics.parquet")
    assert table["labels"].str.contains('dynamo_namespace="fleet"').all()
    store = ScrapeStore(keep_ms=1e9)
    store.add_all(series_of(table).scrapes())
    requests = pl.read_parquet(out / "requests.parquet")
    first_s = requests["first_token_ms"] / 1e3
    bounds = table.filter(pl.col("name") == f"{TTFT}_bucket")["labels"].str.extract('le="([^"]+)"')
    edges = np.unique(bounds.cast(pl.Float64))
    for to_s in (10, 20, 30):
        told = store.histogram_quantile(0.95, TTFT, 10_001, to_s * 1e3)
        seen = requests.filter((first_s > to_s - 10) & (first_s <= to_s))["ttft_ms"] / 1e3
        true = np.quantile(seen, 0.95, method="inverted_cdf")
        place = np.searchsorted(edges, true)
        assert told is not None and edges[place - 1] <= told <= edges[place]


def test_looking_changes_nothing(run_file: Path) -> None:
    plain = run(run_file, "plain")
    seen = run(run_file, "seen", "--metrics-every", "0.7")
    assert report_of(plain) == report_of(seen)
    for name in ("requests.parquet", "timeline.parquet"):
        assert pl.read_parquet(plain / name).equals(pl.read_parquet(seen / name)), name


def test_the_same_in_single_steps(run_file: Path) -> None:
    bulk = run(run_file, "bulk", "--metrics-every", "0.7")
    singly = run(run_file, "singly", "--metrics-every", "0.7", "--exact-stepping")
    assert (bulk / "metrics.om").read_bytes() == (singly / "metrics.om").read_bytes()


def test_after_a_warm_up_times_are_the_results(run_file: Path) -> None:
    out = run(run_file, "out", "--metrics-every", "5", "--set", "workload.warm_up_s=7")
    times_ms = pl.read_parquet(out / "metrics.parquet")["time_ms"].unique().sort()
    assert times_ms[:3].to_list() == [3000.0, 8000.0, 13000.0]


def test_a_later_run_without_them_leaves_none(run_file: Path) -> None:
    out = run(run_file, "out", "--metrics-every", "5")
    assert (out / "metrics.om").exists()
    run(run_file, "out", "--overwrite")
    assert not (out / "metrics.om").exists() and not (out / "metrics.parquet").exists()


def test_what_cannot_be_is_refused(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", str(run_file), "--metrics-every", "5"]) == 2
    assert "--metrics-every: needs --out" in capsys.readouterr().err
    folder = str(run_file.parent / "out")
    assert main(["run", str(run_file), "--out", folder, "--metrics-every", "0"]) == 2
    assert "--metrics-every 0: expected seconds above 0" in capsys.readouterr().err
    assert main(["run", str(run_file), "--set", "live.metrics_namespace=''"]) == 2
    assert "live.metrics_namespace" in capsys.readouterr().err
