"""How near the twin comes to a real vLLM server on this machine.

    python benchmarks/live_accuracy.py --engine-python PYTHON --model DIR [--rounds 20] [--out DIR]

starts one vLLM server (CPU backend, or GPU with --gpu) and another that has so little KV memory
that sequences are preempted; only one of them works at a time. Step times are learned twice: from
steps (`dynosim calibrate --url`), and from request logs alone (`dynosim calibrate --measurements`),
those of one workload that is called *recorded*. Then both predict workloads of other kinds: other
rates, longer prompts, shared prefixes, little memory.

The speed of a machine drifts within minutes. So workloads take turns, in many short rounds with
other requests in each, and what is compared are statistics over the requests of all rounds; the
spread of single rounds tells how much the machine drifts. Everything else on it should be quiet.
What --out already holds is not measured again: --rounds 5, then --rounds 10 goes on with the sixth.
"""

import argparse
import json
import signal
import sys
import urllib.request
from contextlib import ExitStack, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml
from live_engine import BLOCK_SIZE, Engine, dynosim, no_idle_cpu, server, take_precedence

from dynosim.config import load_run
from dynosim.experiment.run import run
from dynosim.metrics.tables import request_table
from dynosim_runtime.measure.calibrate import calibrate_url
from dynosim_runtime.measure.steps import MeasurementPlan
from dynosim_runtime.validate.command import validate

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

CROWD = 16
"""Under way when it is asked what a server sustains."""

GAP_MS = 60_000.0
"""Between the runs of a log that was put together from several."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Synthetic requests, at a share of what the twin sustains of them or so many at a time."""

    name: str
    share: float = 0.0
    isl: int = 120
    osl: int = 40
    shared_prefix_ratio: float = 0.3
    is_tight: bool = False  # on the server with little memory
    concurrency: int | None = None  # so many under way, in place of a rate

    def section(self, num_requests: int, rate_rps: float | None) -> dict[str, object]:
        """The `workload` of a plan; closed without a rate."""
        synthetic = {
            "requests": num_requests,
            "isl": _lengths(self.isl, 16, 1000),
            "osl": _lengths(self.osl, 4, 160),
            "shared_prefix_ratio": self.shared_prefix_ratio,
            "prefix_groups": 6,
            "block_size": BLOCK_SIZE,
        }
        if rate_rps is not None:
            return {"synthetic": synthetic | {"rate_rps": rate_rps}}
        return {
            "synthetic": synthetic | {"arrival": "closed"},
            "concurrency": self.concurrency or CROWD,
        }


RECORDED = Workload(name="recorded", share=0.5)
WORKLOADS = (
    RECORDED,
    Workload(name="lower rate", share=0.3),
    Workload(name="higher rate", share=0.7),
    Workload(name="longer prompts", share=0.5, isl=240, osl=25),
    Workload(name="shared prefixes", share=0.5, isl=240, shared_prefix_ratio=0.8),
    Workload(name="tight memory", isl=100, osl=80, is_tight=True, concurrency=10),
)
TIGHT_BLOCKS, TIGHT_LENGTH = 42, 1280  # a request must fit


def main() -> int:
    """Runs all of it; returns the exit code."""
    arguments = _arguments()
    take_precedence()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # the servers must end with us
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    ample = Engine(
        python=arguments.engine_python,
        model=arguments.model,
        dtype=arguments.dtype,
        is_gpu=arguments.gpu,
    )
    tight = replace(ample, num_gpu_blocks=TIGHT_BLOCKS, max_model_len=TIGHT_LENGTH)
    bench = Bench({False: ample, True: tight}, out, arguments.requests, arguments.rounds)
    with ExitStack() as running:
        if not ample.is_gpu:
            running.enter_context(no_idle_cpu())
        urls = {
            is_tight: running.enter_context(server(engine, out / f"vllm.{name}.log"))
            for name, is_tight, engine in (("ample", False, ample), ("tight", True, tight))
        }
        if not bench.steps.exists():
            model = str(ample.model)
            calibrate_url(urls[False], out=bench.steps, model=model, as_json=False, plan=POINTS)
        for index in range(arguments.rounds):
            for workload in WORKLOADS:
                bench.measure(workload, index, urls[workload.is_tight])
    log = bench.joined_log()
    options = ("--fit-fraction", 1.0, *(() if ample.is_gpu else ("--hardware", "cpu")))
    if (
        dynosim("calibrate", "--measurements", log, "--out", bench.log, "--overwrite", *options)
        != 0
    ):
        return 1
    rows = [
        bench.judge(workload, name, timing)
        for workload in WORKLOADS
        for name, timing in (("steps", bench.steps), ("log", bench.log))
    ]
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
    parser.add_argument("--requests", type=int, default=16, help="per workload and round")
    parser.add_argument("--rounds", type=int, default=20)
    return parser.parse_args()


@dataclass(frozen=True, slots=True)
class Bench:
    """Two engines that differ in memory, and the folder of what was measured on them."""

    engines: dict[bool, Engine]  # by: is it the one with little memory
    out: Path
    num_requests: int
    num_rounds: int

    @property
    def steps(self) -> Path:
        """Step times measured as such."""
        return self.out / "timing.steps.json"

    @property
    def log(self) -> Path:
        """Step times fitted to request logs."""
        return self.out / "timing.log.json"

    def folder(self, workload: Workload, index: int) -> Path:
        """Where the results of one round are."""
        return self.out / f"{workload.name.replace(' ', '-')}.{index}"

    def measure(self, workload: Workload, index: int, url: str) -> None:
        """Offers a round's requests to the server, unless that has been done."""
        folder = self.folder(workload, index)
        if (folder / "validation.json").exists():
            return
        folder.mkdir(exist_ok=True)
        plan = folder.with_name(f"{folder.name}.yaml")  # a validation wants the folder for itself
        rate_rps = None
        if workload.concurrency is None:
            self._write_plan(plan, workload, index, None)
            sustained_rps = run(load_run(plan)).report["request_throughput_rps"]
            rate_rps = round(workload.share * float(sustained_rps), 3)
        self._write_plan(plan, workload, index, rate_rps)
        before = preemptions(url)
        with (self.out / "validate.log").open("a") as said, redirect_stdout(said):
            code = validate(
                plan, [], url=url, trace=None, out=folder, mock=False, real=False, model=None,
                engine=None, engine_python=None, speedup=1.0, warmup=1, aiperf=None, as_json=False,
            )  # fmt: skip
        if code != 0:
            raise SystemExit(f"{folder}: not all requests were served")
        (folder / "preemptions.json").write_text(json.dumps(preemptions(url) - before))
        print(f"{workload.name}, round {index + 1}", flush=True)

    def _write_plan(
        self, plan: Path, workload: Workload, index: int, rate_rps: float | None
    ) -> None:
        engine = self.engines[workload.is_tight]
        sections = {
            "name": workload.name,
            "seed": index,
            "model": str(engine.model.resolve()),
            "workload": workload.section(self.num_requests, rate_rps),
            "engine": engine.section(),
            "timing": {"kind": "fitted", "file": str(self.steps.resolve())},
            "router": {"mode": "round-robin"},
        }
        plan.write_text(yaml.safe_dump(sections, sort_keys=False))

    def joined_log(self) -> Path:
        """The logs of all rounds of the recorded workload as one, with pauses between."""
        joined = self.out / "recorded.jsonl"
        lines: list[str] = []
        start_ms, first_free_id = 0.0, 0
        for index in range(self.num_rounds):
            source = self.folder(RECORDED, index) / "measurements.jsonl"
            setup, *rows = map(json.loads, source.read_text().splitlines())
            lines += [] if lines else [json.dumps(setup)]
            lines += [json.dumps(_moved(row, start_ms, first_free_id)) for row in rows]
            start_ms += max(row["last_token_ms"] for row in rows) + GAP_MS
            first_free_id += 1 + max((i for row in rows for i in _ids(row)), default=0)
        joined.write_text("\n".join(lines) + "\n")
        return joined

    def judge(self, workload: Workload, name: str, timing: Path) -> dict[str, Any]:
        """Statistics of all rounds, measured and predicted."""
        folders = [self.folder(workload, index) for index in range(self.num_rounds)]
        measured = [pl.read_parquet(folder / "requests.parquet") for folder in folders]
        runs = [
            run(
                load_run(
                    folder.with_name(f"{folder.name}.yaml"), [f"timing.file={timing.resolve()}"]
                )
            )
            for folder in folders
        ]
        predicted = [request_table(one.result, one.trace) for one in runs]
        single = [
            statistics([p])["mean e2e"] / statistics([m])["mean e2e"] - 1
            for m, p in zip(measured, predicted, strict=True)
        ]
        return {
            "workload": workload.name,
            "timing": name,
            "measured": statistics(measured),
            "predicted": statistics(predicted),
            "rounds_mean_e2e_error": single,
            "preemptions": sum(
                json.loads((folder / "preemptions.json").read_text()) for folder in folders
            ),
            "predicted_preemptions": sum(one.report["preemptions"] for one in runs),
        }


def _ids(row: dict[str, Any]) -> list[int]:
    ids: list[int] = row[f"hash_ids_{BLOCK_SIZE}"]
    return ids


def _moved(row: dict[str, Any], by_ms: float, first_id: int) -> dict[str, Any]:
    """A line of a log, later; its prompt has nothing in common with those of other rounds."""
    times = ("arrival_ms", "first_token_ms", "last_token_ms")
    ids = [first_id + one for one in _ids(row)]
    return row | {name: row[name] + by_ms for name in times} | {f"hash_ids_{BLOCK_SIZE}": ids}


def preemptions(url: str) -> int:
    """How many the server has had."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=10) as page:
        lines = page.read().decode().splitlines()
    counts = [line for line in lines if line.startswith("vllm:num_preemptions_total")]
    return int(sum(float(line.split()[-1]) for line in counts))


def statistics(tables: list[pl.DataFrame]) -> dict[str, float]:
    """Over the requests of all rounds; throughput over their durations."""
    rows = pl.concat([one.select(*_COLUMNS).cast(pl.Float64) for one in tables])
    spans = [one.select("arrival_ms", "finish_ms").cast(pl.Float64).to_numpy() for one in tables]
    duration_ms = sum(float(np.nanmax(span) - np.nanmin(span)) for span in spans)
    ttft = (rows["first_token_ms"] - rows["arrival_ms"]).to_numpy()
    e2e = (rows["finish_ms"] - rows["arrival_ms"]).to_numpy()
    gaps = np.maximum(rows["output_tokens"].to_numpy() - 1, 1)
    p99 = partial(np.percentile, q=99)
    return {
        "out tok/s": 1000 * float(rows["output_tokens"].sum()) / duration_ms,
        "mean TTFT": float(ttft.mean()),
        "mean TPOT": float(((e2e - ttft) / gaps)[gaps > 1].mean()),
        "mean e2e": float(e2e.mean()),
        "p99 TTFT": float(p99(ttft)),
        "p99 e2e": float(p99(e2e)),
    }


_COLUMNS = ("arrival_ms", "first_token_ms", "finish_ms", "output_tokens")


def table(rows: list[dict[str, Any]]) -> str:
    """Errors of all predictions, in Markdown."""
    names = list(rows[0]["measured"])
    heads = ["workload", "timing from", *names, "spread of rounds", "preemptions"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        errors = [f"{100 * (row['predicted'][n] / row['measured'][n] - 1):+.1f} %" for n in names]
        spread = np.std(row["rounds_mean_e2e_error"])
        counts = f"{row['preemptions']}, predicted {row['predicted_preemptions']}"
        cells = [row["workload"], row["timing"], *errors, f"{100 * spread:.0f} %", counts]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _lengths(mean: int, low: int, high: int) -> dict[str, object]:
    return {"dist": "lognormal", "mean": mean, "std": mean / 2, "min": low, "max": high}


if __name__ == "__main__":
    raise SystemExit(main())
