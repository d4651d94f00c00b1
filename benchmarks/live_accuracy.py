"""How near the twin comes to a real vLLM server on this machine.

    python benchmarks/live_accuracy.py --engine-python PYTHON --model DIR [--out DIR]

starts one vLLM server (CPU backend, or GPU with --gpu) and learns its step times twice: from its
steps (`dynosim calibrate --url`), and from the log of one recorded run (`dynosim calibrate
--measurements`). Then it offers load at several shares of the throughput that the twin says the
server sustains, and workloads of another kind than the recorded one: longer prompts, shared
prefixes, and so little KV memory that sequences are preempted. Every measured run is held against
the predictions of both. Everything else on the machine should be quiet. What --out already holds
is not measured again.
"""

import argparse
import json
import signal
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from live_engine import BLOCK_SIZE, Engine, dynosim, server, take_precedence

from dynosim.config import load_run
from dynosim.runner import run
from dynosim_runtime.calibration.command import calibrate_url
from dynosim_runtime.calibration.measure import MeasurementPlan

POINTS = MeasurementPlan(
    prompt_lengths=(16, 32, 64, 128, 256, 512, 1024),
    cached=((512, 64), (512, 256)),
    batch_sizes=(1, 2, 4, 8, 16),
    contexts=(32, 384),
    mixed_prompts=(16, 128, 512),
    mixed_batches=(1, 4, 12),
    rounds=3,
    max_point_s=5.0,
    budget_s=150.0,
)
"""What the workloads below need of step times, in less time than all of it takes."""

COLUMNS = {
    "out tok/s": "output_throughput_tok_s",
    "TTFT": "mean_ttft_ms",
    "ITL": "mean_itl_ms",
    "e2e": "mean_e2e_latency_ms",
    "p99 TTFT": "p99_ttft_ms",
    "p99 e2e": "p99_e2e_latency_ms",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Synthetic requests at a share of what the twin sustains of them."""

    name: str
    share: float
    isl: int = 120
    osl: int = 40
    shared_prefix_ratio: float = 0.3

    def section(self, num_requests: int, rate_rps: float) -> dict[str, object]:
        """The `workload` of a plan."""
        return {
            "synthetic": {
                "requests": num_requests,
                "isl": _lengths(self.isl, 16, 1000),
                "osl": _lengths(self.osl, 4, 160),
                "rate_rps": rate_rps,
                "shared_prefix_ratio": self.shared_prefix_ratio,
                "prefix_groups": 6,
                "block_size": BLOCK_SIZE,
            }
        }


LOADS = tuple(Workload(name=f"load {round(100 * s)} %", share=s) for s in (0.3, 0.5, 0.7))
RECORDED = Workload(name="recorded", share=0.6)
OTHERS = (
    Workload(name="longer prompts", share=0.5, isl=240, osl=25),
    Workload(name="shared prefixes", share=0.5, isl=240, shared_prefix_ratio=0.8),
)
TIGHT = Workload(name="tight memory", share=0.8, isl=100, osl=80)
TIGHT_BLOCKS, TIGHT_LENGTH = 42, 1280  # a request must fit


def main() -> int:
    """Runs all of it; returns the exit code."""
    arguments = _arguments()
    take_precedence()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the server must end with us
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    engine = Engine(
        python=arguments.engine_python,
        model=arguments.model,
        dtype=arguments.dtype,
        is_gpu=arguments.gpu,
    )
    steps, log = out / "timing.steps.json", out / "timing.log.json"
    rows: list[dict[str, Any]] = []
    with server(engine, out / "vllm.log") as url:
        if not steps.exists():
            calibrate_url(url, out=steps, model=str(engine.model), as_json=False, plan=POINTS)
        bench = Bench(engine, out, arguments.requests, {"steps": steps})
        for workload in (*LOADS, RECORDED):
            rows += bench.measure(workload, url)
        recorded = bench.folder(RECORDED) / "measurements.jsonl"
        options = ("--fit-fraction", 1.0, "--out", log)
        if dynosim("calibrate", "--measurements", recorded, *options) != 0:
            return 1
        bench = replace(bench, timings={"steps": steps, "log": log})
        for workload in OTHERS:
            rows += bench.measure(workload, url)
    tight = replace(engine, num_gpu_blocks=TIGHT_BLOCKS, max_model_len=TIGHT_LENGTH)
    with server(tight, out / "vllm.tight.log") as url:
        rows += replace(bench, engine=tight).measure(TIGHT, url)
    print("\n" + table(rows))
    (out / "summary.json").write_text(json.dumps(rows, indent=2) + "\n")
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--engine-python", type=Path, required=True, help="Python that has vLLM")
    parser.add_argument("--gpu", action="store_true", help="vLLM's own choices of a GPU")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--out", type=Path, default=Path("results/live_accuracy"))
    parser.add_argument("--requests", type=int, default=100, help="per workload")
    return parser.parse_args()


@dataclass(frozen=True, slots=True)
class Bench:
    """One engine and the timing files whose predictions are judged."""

    engine: Engine
    out: Path
    num_requests: int
    timings: dict[str, Path]  # by name; the first one tells what the engine sustains

    def folder(self, workload: Workload) -> Path:
        """Where a workload's results are."""
        return self.out / workload.name.replace(" ", "-").replace("%", "percent")

    def measure(self, workload: Workload, url: str) -> list[dict[str, Any]]:
        """Offers a workload to the server; one row for each timing file's prediction."""
        folder = self.folder(workload)
        folder.mkdir(exist_ok=True)
        plan = folder / "run.yaml"
        self._write_plan(plan, workload, 1.0)
        rate_rps = round(workload.share * self._sustained_rps(plan), 3)
        self._write_plan(plan, workload, rate_rps)
        results = folder / "validation.json"
        if not results.exists() and dynosim("validate", plan, "--url", url, "--out", folder) != 0:
            raise SystemExit(1)
        measured = json.loads(results.read_text())["measured"]
        return [
            {
                "workload": workload.name,
                "rate_rps": rate_rps,
                "timing": name,
                "measured": {key: measured[key] for key in COLUMNS.values()},
                **self._prediction(plan, path),
            }
            for name, path in self.timings.items()
        ]

    def _prediction(self, plan: Path, timing: Path) -> dict[str, Any]:
        report = run(load_run(plan, [f"timing.file={timing.resolve()}"])).report
        return {
            "predicted": {key: report[key] for key in COLUMNS.values()},
            "predicted_preemptions": report["preemptions"],
        }

    def _write_plan(self, plan: Path, workload: Workload, rate_rps: float) -> None:
        first = next(iter(self.timings.values()))
        sections = {
            "name": workload.name,
            "model": str(self.engine.model.resolve()),
            "workload": workload.section(self.num_requests, rate_rps),
            "engine": self.engine.section(),
            "timing": {"kind": "fitted", "file": str(first.resolve())},
            "router": {"mode": "round-robin"},
        }
        plan.write_text(yaml.safe_dump(sections, sort_keys=False))

    def _sustained_rps(self, plan: Path) -> float:
        """Throughput of the twin when requests never lack."""
        crowd = ["workload.synthetic.rate_rps=null", "workload.synthetic.arrival=closed",
                 f"workload.concurrency={self.engine.max_num_seqs}"]  # fmt: skip
        return float(run(load_run(plan, crowd)).report["request_throughput_rps"])


def table(rows: list[dict[str, Any]]) -> str:
    """Errors of all predictions, in Markdown."""
    lines = [
        f"| workload | requests/s | timing from | {' | '.join(COLUMNS)} | preemptions |",
        "|---" * (len(COLUMNS) + 4) + "|",
    ]
    for row in rows:
        errors = [
            f"{100 * (row['predicted'][key] / row['measured'][key] - 1):+.1f} %"
            for key in COLUMNS.values()
        ]
        lines.append(
            f"| {row['workload']} | {row['rate_rps']:.2f} | {row['timing']} | "
            f"{' | '.join(errors)} | {row['predicted_preemptions']} |"
        )
    return "\n".join(lines)


def _lengths(mean: int, low: int, high: int) -> dict[str, object]:
    return {"dist": "lognormal", "mean": mean, "std": mean / 2, "min": low, "max": high}


if __name__ == "__main__":
    raise SystemExit(main())
