"""Calibrate a real vLLM deployment, predict a load on it, offer that load, compare."""

import json
from pathlib import Path
from typing import Any

from cluster import VLLM_PYTHON, Cluster, dynosim, write_plan

from dynosim.config import load_run
from dynosim.errors import DynosimError
from dynosim.experiment.run import run
from dynosim_runtime.measure.calibrate import calibrate_url
from dynosim_runtime.measure.steps import MeasurementPlan
from dynosim_runtime.validate.compare import METRICS

NUM_REQUESTS = 60
TRIES = 4
LOAD = 0.15  # of what the twin says that the engine sustains: arrivals decide throughput, even
# where another program makes the engine several times slower than when it was calibrated
POINTS = MeasurementPlan(
    prompt_lengths=(16, 32, 64, 128, 256, 384, 512, 1024),
    cached=((256, 64), (512, 256)),
    batch_sizes=(1, 2, 4, 8),
    contexts=(32, 256),
    mixed_prompts=(16, 128, 256, 512),
    mixed_batches=(1, 4),
    rounds=6,  # a point that another program disturbed in most of them counts for nothing
    max_point_s=4.0,
    budget_s=90.0,
)


def loop_plan(folder: Path, model: Path, timing: dict[str, Any], load: dict[str, Any]) -> Path:
    lengths = {"dist": "lognormal", "std": 30, "min": 16, "max": 400}
    return write_plan(
        folder,
        name="closed loop",
        model=model,
        workload={
            "synthetic": {
                "requests": NUM_REQUESTS,
                "isl": {**lengths, "mean": 120},
                "osl": {**lengths, "mean": 32},
                **load,
            }
        },
        engine={
            "block_size": 32,
            "num_gpu_blocks": 600,
            "max_num_seqs": 16,
            "max_num_batched_tokens": 512,
            "max_model_len": 2048,
            "async_scheduling": False,
        },
        timing=timing,
        router={"mode": "round-robin"},
    )


def sustained_rps(plan: Path) -> float:
    crowd = ["workload.synthetic.arrival=closed", "workload.concurrency=16"]
    return float(run(load_run(plan, crowd)).report["request_throughput_rps"])


class DisturbedError(Exception):
    """Figures of a live engine do not agree, as those of a disturbed one."""


def go_round(cluster: Cluster, model: Path, folder: Path) -> None:
    """Calibrate, predict, measure, compare, and learn from what was measured.

    Raises: DisturbedError.
    """
    folder.mkdir()
    timing = folder / "timing.json"
    try:
        code = calibrate_url(cluster.url, out=timing, model=str(model), as_json=False, plan=POINTS)
    except DynosimError as error:
        raise DisturbedError(str(error)) from None
    assert code == 0
    fitted = {"kind": "fitted", "file": str(timing)}
    rate_rps = LOAD * sustained_rps(loop_plan(folder, model, fitted, {}))
    plan, out = loop_plan(folder, model, fitted, {"rate_rps": rate_rps}), folder / "v"
    result = dynosim("validate", plan, "--url", cluster.url, "--model", model, "--out", out)
    print(result.stdout)
    assert result.returncode == 0, result.stderr
    document = json.loads((out / "validation.json").read_text())
    assert document["num_requests"] == NUM_REQUESTS
    assert document["num_unserved"] == 0
    rows = {row["key"]: row for row in document["metrics"]}
    assert set(rows) == {key for _, key, _ in METRICS}
    assert all(row["measured"] is not None for row in rows.values())
    compare(rows)
    learned = folder / "learned.json"
    result = dynosim("calibrate", "--measurements", out / "measurements.jsonl", "--out", learned)
    if result.returncode:
        raise DisturbedError(result.stderr)
    report = run(load_run(plan, [f"timing.file={learned}"])).report
    measured = rows["output_throughput_tok_s"]["measured"]
    if abs(report["output_throughput_tok_s"] / measured - 1) >= 0.10:
        raise DisturbedError(f"{report['output_throughput_tok_s']} tokens/s, measured {measured}")


def compare(rows: dict[str, Any]) -> None:
    """Only roughly: how close predictions come is told in virtual time, and of real engines by
    `docs/accuracy.md`. Raises: DisturbedError."""
    latencies = ("mean_ttft_ms", "mean_itl_ms", "mean_e2e_latency_ms")
    ratios = [rows[key]["predicted"] / rows[key]["measured"] for key in latencies]
    throughput_differs = abs(rows["output_throughput_tok_s"]["difference"])
    if throughput_differs >= 0.10 or not all(0.2 < ratio < 5 for ratio in ratios):
        raise DisturbedError(f"throughput differs by {throughput_differs}, latencies by {ratios}")


def test_what_is_predicted_is_measured(tmp_path: Path, tiny_model: Path) -> None:
    """Another program beside the engine makes it several times slower at any time, which no twin
    knows: then the loop is gone through again. What is wrong stays wrong."""
    unknown = {"kind": "linear", "base_ms": 10.0}
    plan = loop_plan(tmp_path, tiny_model, unknown, {"rate_rps": 1})
    engine = ("--real", "--engine", "vllm-cpu", "--engine-python", VLLM_PYTHON)
    with Cluster(plan, tmp_path / "out", *engine) as cluster:
        for number in range(TRIES):
            try:
                go_round(cluster, tiny_model, tmp_path / str(number))
                return
            except DisturbedError as error:
                print(error)
    raise AssertionError(f"never in {TRIES} rounds: see above")
