"""`dynosim run` and `why` of prefill and decode workers, and what is refused beforehand."""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from dynosim.cli import main

RUN_FILE = """\
name: pools
workload:
  synthetic: {requests: 200, isl: 600, osl: 40, rate_rps: 25, arrival: constant}
engine: {num_gpu_blocks: 3000, max_model_len: 4096}
timing: {kind: linear, base_ms: 8, per_prefill_token_ms: 0.05, per_decode_ms: 0.2}
cluster:
  mode: disagg
  prefill: {workers: 2, engine: {max_num_seqs: 4}}
  decode: {workers: 1}
  transfer: {bandwidth_gb_s: 5.0, kv_bytes_per_token: 100000}
router: {mode: kv}
"""


@pytest.fixture
def run_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(RUN_FILE)
    return path


def report_of(run_file: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, float]:
    assert main(["run", str(run_file), "--check", "--json", *more]) == 0
    report: dict[str, float] = json.loads(capsys.readouterr().out)
    return report


def test_a_report_tells_of_both_pools(run_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = report_of(run_file, capsys)
    assert (report["layout"], report["num_gpus"], report["num_workers"]) == ("2P1D", 3, 3)
    assert report["completed_requests"] == report["kv_transfers"] == 200
    assert report["kv_bytes_moved"] == 200 * 608 * 100_000  # 600 tokens lie in 19 blocks
    assert 12.0 <= report["mean_transfer_ms"] < 30.0  # 12 ms alone on the link
    assert report["mean_handoff_ms"] > report["mean_transfer_ms"] + 8
    assert 0 < report["prefill_busy_share"] < 1 and 0 < report["decode_busy_share"] < 1


def test_a_run_without_pools_has_none_of_it(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = RUN_FILE[: RUN_FILE.index("cluster:")] + "cluster: {workers: 2}\n"
    run_file.write_text(text)
    report = report_of(run_file, capsys)
    assert report["layout"] == "2x"
    for key in ("kv_transfers", "mean_handoff_ms", "prefill_busy_share", "decode_held_ratio"):
        assert report[key] is None


def test_the_tables_and_the_story_of_a_request(
    run_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    warm_up = ("--set", "workload.warm_up_requests=20")
    assert main(["run", str(run_file), "--out", str(out), "--windows", "2", *warm_up]) == 0
    assert "2P1D" in capsys.readouterr().out
    rows = pl.read_parquet(out / "requests.parquet")
    assert len(rows) == 180
    parts = rows["prefill_wait_time_ms"] + rows["prefill_time_ms"] + rows["handoff_ms"]
    assert (parts - rows["ttft_ms"]).abs().max() < 1e-6  # type: ignore[operator]
    assert set(rows["prefill_worker_id"]) == {0, 1} and set(rows["decode_worker_id"]) == {2}
    assert main(["why", str(out), rows["request_id"][50]]) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "KV of 0.0608 GB to worker 2 in" in told  # 19 blocks of 32 tokens
    assert "prefill of 600 tokens" in told and told.index("prefill of") < told.index("KV of")


def test_reports_are_equal_whatever_the_core(run_file: Path) -> None:
    """Byte by byte, but for the process's own keys; where nothing is compiled, both are pure."""
    texts = []
    for pure in ("0", "1"):
        command = [sys.executable, "-m", "dynosim", "run", str(run_file), "--json"]
        done = subprocess.run(
            command, capture_output=True, check=True, env={**os.environ, "DYNOSIM_PURE": pure}
        )
        report = json.loads(done.stdout)
        for key in ("wall_time_ms", "simulate_wall_ms", "core"):
            del report[key]
        texts.append(json.dumps(report))
    assert texts[0] == texts[1]


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("cluster.prefill.workers=0", "cluster.prefill.workers: a pool of 0 workers serves nobody"),
        ("cluster.transfer.bandwidth_gb_s=0", "a link of 0 GB/s moves nothing"),
        ("cluster.decode.engine.block_size=32", "cluster.decode.engine.block_size: 32, but the"),
        ("cluster.decode.engine.kv_cache_dtype=fp8", "cluster.decode.engine.kv_cache_dtype: fp8"),
        ("cluster.decode.engine.num_gpu_blocks=100", "cluster.decode: engine.num_gpu_blocks: 99"),
        ("cluster.decode.engine.max_model_len=512", "cluster.decode.engine.max_model_len: 512"),
        (
            "cluster.prefill.engine.max_model_len=600",
            "cluster.prefill.engine.max_model_len: 600",
        ),
        ("cluster.decode.model=other", "cluster.decode.model: unknown key"),
        ("cluster.decode.engine.data_parallel=2", "engine.data_parallel"),
        ("cluster.kv_transfer.domain=zone", "zone is no domain of the prefill and decode workers"),
        ("cluster.handoff.order=sideways", "cluster.handoff.order: expected prefill_first or"),
        ("cluster.transfer.presett=ib", "did you mean cluster.transfer.preset?"),
        ("cluster.decode.enginee.max_num_seqs=4", "did you mean cluster.decode.engine?"),
        ("cluster.transfer.exposed_share=0", "cluster.transfer.exposed_share: must be > 0"),
    ],
)
def test_what_cannot_be_is_told_in_one_message(
    run_file: Path, capsys: pytest.CaptureFixture[str], setting: str, says: str
) -> None:
    assert main(["run", str(run_file), "--set", setting]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and "Traceback" not in captured.err
    assert captured.out == ""


def test_places_without_any_decode_worker_are_refused(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = RUN_FILE.replace("workers: 2,", "workers: 2, topology: {zone: [a]},")
    text = text.replace("decode: {workers: 1}", "decode: {workers: 1, topology: {zone: [b]}}")
    text = text.replace("cluster:\n", "cluster:\n  kv_transfer: {domain: zone}\n")
    run_file.write_text(text)
    assert main(["run", str(run_file)]) == 2
    assert "no decode worker is in a zone of a prefill worker (a)" in capsys.readouterr().err


def test_preferences_need_a_router_that_weighs(
    run_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = RUN_FILE.replace("{mode: kv}", "{mode: round-robin}")
    text = text.replace("  mode: disagg\n", "  mode: disagg\n  topology: {zone: [a, b]}\n  "
                        "kv_transfer: {domain: zone, enforcement: preferred, "
                        "preferred_weight: 0.5}\n")  # fmt: skip
    run_file.write_text(text)
    assert main(["run", str(run_file)]) == 2
    assert "chosen by round-robin, which weighs nothing" in capsys.readouterr().err
