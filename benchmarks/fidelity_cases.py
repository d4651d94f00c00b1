#!/usr/bin/env python3
"""Scores the fidelity harness on made-up deployments whose truth is known and of another form.

    python benchmarks/fidelity_cases.py [NAME ...] [--out DIR] [--json]

Each case is a log in the format of recorded runs, made by an engine of `hidden_truth`, and judged
as `fidelity.py` judges a recording. Beside the errors stands the floor: what a prediction errs by
that knows the truth but neither its noise nor when requests reached the scheduler.
"""

import argparse
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from hidden_truth import Habits, HiddenTruth, log_rows, write_log

from dynosim.build.timing import build_timing, sections_by_trust
from dynosim.compare.fidelity import judge_file
from dynosim.fit.deployment import Deployment, deployment_of
from dynosim.fit.log_file import read_measurements
from dynosim.fit.replay import replay
from dynosim.fit.scores import METRICS, THROUGHPUT, scores, worst
from dynosim.records import Trace
from dynosim.timing.formulas import LinearModel
from dynosim.timing.graphs import vllm_graph_sizes
from dynosim.timing.model import StepTimeModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests: how many, how fast, how long; lengths are lognormal around the medians."""

    requests: int = 300
    rate_rps: float = 5.0
    inputs: int = 600
    outputs: int = 250
    spread: float = 0.7  # of the logarithm of lengths
    longest_input: int = 12_000
    burst: int = 1  # requests that arrive together
    prefixes: int = 0  # distinct shared beginnings; 0: none
    prefix_tokens: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One deployment, its truth and its load."""

    name: str
    model: str
    hardware: str
    load: Load
    habits: Habits = field(default_factory=Habits)
    kernels: str = "aiconfigurator"  # or "roofline", or "cpu": a small model on one thread
    other: Load | None = None  # another workload of the deployment, to fit on
    other_blocks: int | None = None  # the capacity there
    engine: dict[str, Any] = field(default_factory=dict)  # engine_kwargs beyond the usual
    version: str = "0.19.0"
    num_gpu_blocks: int | None = None  # of the truth; None: as predicted
    tells_blocks: bool = True  # given to the harness
    model_name: str | None = None  # as the log tells it, if not `model`
    is_async: bool = True
    clock: str = "engine"
    told_hardware: bool = True
    seed: int = 0


def trace_of(load: Load, seed: int) -> Trace:
    """Arrivals are Poisson, or Poisson bursts."""
    rng = np.random.default_rng(seed)
    count = load.requests
    gaps = rng.exponential(1000 * load.burst / load.rate_rps, -(-count // load.burst))
    arrivals = np.repeat(np.cumsum(gaps), load.burst)[:count]
    inputs = np.exp(np.log(load.inputs) + load.spread * rng.standard_normal(count))
    inputs = np.clip(inputs, 16, load.longest_input).astype(np.int64) + load.prefix_tokens
    outputs = np.exp(np.log(load.outputs) + 0.6 * load.spread * rng.standard_normal(count))
    outputs = np.clip(outputs, 2, 4096).astype(np.int64)
    ids: list[int] = []
    offsets = [0]
    fresh = 1_000_000
    groups = rng.integers(0, max(load.prefixes, 1), count).tolist()
    shared = load.prefix_tokens // 16
    for tokens, group in zip(inputs.tolist(), groups, strict=True):
        blocks = -(-tokens // 16) - shared
        ids += range(1 + group * 10_000, 1 + group * 10_000 + shared)
        ids += range(fresh, fresh + blocks)
        fresh += blocks
        offsets.append(len(ids))
    return Trace(
        arrival_ms=arrivals - arrivals[0],
        input_tokens=inputs,
        output_tokens=outputs,
        hash_ids=np.array(ids),
        hash_offsets=np.array(offsets),
        trace_block_size=16,
    )


def setup_of(case: Case) -> dict[str, Any]:
    """As recorders write it: vLLM's names, null for what is left to vLLM."""
    name = case.model_name or case.model
    kwargs = {
        "model": name,
        "tensor_parallel_size": 1,
        "data_parallel_size": 1,
        "enable_expert_parallel": False,
        "max_num_seqs": 128,
        "max_num_batched_tokens": 2048,
        "max_model_len": None,
        "dtype": "bfloat16",
        "kv_cache_dtype": "auto",
        "seed": 42,
    }
    setup = {"model": name, "vllm_version": case.version, "engine_kwargs": kwargs | case.engine}
    if case.num_gpu_blocks and case.tells_blocks:
        setup["num_gpu_blocks"] = case.num_gpu_blocks
    return setup


def kernels_of(case: Case, deployment: Deployment) -> StepTimeModel:
    """Step times that the habits of a case bend."""
    if case.kernels == "cpu":
        return LinearModel(
            base_ms=13.0, per_prefill_token_ms=0.6, per_decode_ms=0.65, per_context_token_ms=4e-4
        )
    bare = sections_by_trust(step_overhead_ms=0.0, ingress_ms=0.0, egress_ms=0.0)
    section = next(one for one in bare if one.kind == case.kernels)
    return build_timing(
        section,
        model=case.model,
        hardware=case.hardware,
        engine=deployment.engine,
        num_gpu_blocks=2,
        graph_sizes=(),  # a habit
    )


def room_for_all(trace: Any) -> int:
    """KV blocks of a true engine that never lacks any."""
    return int((-(-(trace.input_tokens + trace.output_tokens) // 16)).sum()) + 2


def make(case: Case, folder: Path) -> tuple[Path, Any, Any]:
    """The log of a case, its truth without noise, and its engine."""
    setup = setup_of(case)
    true_setup = setup | {"engine_kwargs": setup["engine_kwargs"] | {"model": case.model}}
    deployment = deployment_of(
        true_setup, hardware=case.hardware, num_gpu_blocks=case.num_gpu_blocks
    )
    kernels = kernels_of(case, deployment)
    habits = case.habits
    if deployment.graph_sizes:
        sizes = vllm_graph_sizes(deployment.engine.max_num_seqs)
        habits = replace(habits, graph_sizes=sizes)
    trace = trace_of(case.load, case.seed)
    tokens = trace.input_tokens + trace.output_tokens
    endless = int((-(-tokens // deployment.engine.block_size)).sum()) + 2
    blocks = deployment.given_blocks or deployment.blind_blocks(int(tokens.max())) or endless
    spec = deployment.engines(trace, blocks, is_async=case.is_async)
    truth = HiddenTruth(kernels, habits, seed=case.seed)
    rows = log_rows(trace, spec, truth, clock=case.clock, seed=case.seed)
    path = write_log(folder / f"{case.name}.jsonl.gz", setup, rows)
    quiet = HiddenTruth(kernels, replace(habits, pauses=0.0), seed=case.seed + 1)
    return path, quiet, spec


def judge(case: Case, folder: Path) -> dict[str, Any]:
    """Errors of every level, and the floor."""
    path, truth, spec = make(case, folder)
    measured = read_measurements(path)
    floor = replay(measured.trace(), spec, truth, measured.clock)
    blocks = spec.engine.num_gpu_blocks if case.tells_blocks else None
    started = time.perf_counter()
    other = None
    if case.other is not None:
        light = replace(case, name=f"{case.name}-other", load=case.other, seed=case.seed + 1)
        other = make(replace(light, num_gpu_blocks=case.other_blocks), folder)[0]
    fidelity = judge_file(
        path,
        hardware=case.hardware if case.told_hardware else None,
        num_gpu_blocks=blocks,
        other=other,
    )
    seconds = time.perf_counter() - started
    count = fidelity.fit_count
    document: dict[str, Any] = {"case": case.name, "seconds": seconds}
    document["preemptions"] = floor.result.num_preemptions
    document["waiting"] = float((floor.result.steps.num_waiting > 0).mean())
    document["floor"] = _worst(scores(measured, floor))
    document["floor unseen"] = _worst(scores(measured, floor, slice(count, None)))
    for level in fidelity.levels:
        if level.column == "blind" and case.tells_blocks and case.num_gpu_blocks:
            continue
        key = level.name.removesuffix(f" the first {count} requests").removesuffix(" on")
        if "-other" in key:
            key = "elsewhere"
        document[key] = _worst(level.table)
        document[f"{key} unseen"] = _worst(level.rest)
        document[f"{key} detail"] = {s.name: s.error for s in level.table}
    document["parameters"] = fidelity.to_dict()["fitted_parameters"]
    document["notes"] = fidelity.notes
    return document


def _worst(table: Any) -> dict[str, float]:
    found = {metric: worst(table, metric) for metric in METRICS}
    found[THROUGHPUT] = next(s.error for s in table if s.metric == THROUGHPUT)
    return found


LLAMA8, LLAMA70, QWEN32 = "meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-70B", "Qwen/Qwen3-32B"
A3B = "Qwen/Qwen3-30B-A3B"
RTX = "rtx_pro_6000_server"
SHAREGPT = Load(requests=300, rate_rps=10, inputs=750, outputs=640, spread=0.6)
LARGE = {"max_num_seqs": 256, "max_num_batched_tokens": 8192}
MIXTRAL = "mistralai/Mixtral-8x7B-v0.1"
GEFORCE: dict[str, Any] = {
    "model": "Qwen/Qwen3-8B",
    "hardware": "rtx_4090",
    "kernels": "roofline",
    "num_gpu_blocks": 1700,
    "engine": {"max_model_len": 8192},
    "habits": Habits(products=1.15, attention=1.3),
}
TP2, TP4, TP8 = ({"tensor_parallel_size": n} for n in (2, 4, 8))

CPU: dict[str, Any] = {"requests": 110, "inputs": 120, "outputs": 60, "longest_input": 1200}
ON_CPU: dict[str, Any] = {
    "model": "models/tiny",
    "hardware": "cpu",
    "told_hardware": False,
    "kernels": "cpu",
    "clock": "clients",
    "engine": {
        "max_num_seqs": 16,
        "max_num_batched_tokens": 512,
        "block_size": 32,
        "max_model_len": 1536,
    },
    "habits": Habits(
        host_ms=2.0, host_per_decode_ms=0.05, noise=0.08, pauses=0.002, bend=0.1, bend_at=6
    ),
}

CASES = [
    Case(name="llama8b-h100-moderate", model=LLAMA8, hardware="h100_sxm",
         load=Load(rate_rps=12, outputs=300), engine=LARGE,
         habits=Habits(host_ms=1.2, host_per_decode_ms=0.012)),
    Case(name="llama8b-h100-saturated", model=LLAMA8, hardware="h100_sxm",
         load=SHAREGPT, engine={"max_num_seqs": 32},
         habits=Habits(host_ms=2.5, products=1.1, attention=0.85)),
    Case(name="llama8b-rtxpro-sharegpt", model=LLAMA8, hardware=RTX, load=SHAREGPT,
         habits=Habits(host_ms=3.0, wave=24, overlap=0.3)),
    Case(name="llama70b-h100-tp4", model=LLAMA70, hardware="h100_sxm", engine=TP4,
         load=Load(rate_rps=4, outputs=400), habits=Habits(host_ms=2, wave=16)),
    Case(name="llama70b-h200-tp8-saturated", model=LLAMA70, hardware="h200_sxm", engine=TP8,
         load=SHAREGPT, habits=Habits(host_ms=1.0, products=1.2, host_per_decode_ms=0.03)),
    Case(name="qwen32b-h200-light", model=QWEN32, hardware="h200_sxm", engine=TP2,
         load=Load(requests=120, rate_rps=0.5, inputs=1500, outputs=400)),
    Case(name="qwen32b-a100-tp4", model=QWEN32, hardware="a100_sxm", engine=TP4,
         load=Load(rate_rps=3, outputs=300), habits=Habits(host_ms=3, products=0.9)),
    Case(name="qwen32b-rtxpro-tp2-sharegpt", model=QWEN32, hardware=RTX, engine=TP2, load=SHAREGPT,
         habits=Habits(host_ms=2.5, overlap=-0.2, attention=1.2)),
    Case(name="qwen32b-fp8-h100", model="Qwen/Qwen3-32B-FP8-Static-PerTensor", hardware="h100_sxm",
         engine={"kv_cache_dtype": "fp8"}, load=Load(rate_rps=3, outputs=300)),
    Case(name="a3b-h100-moderate", model=A3B, hardware="h100_sxm",
         load=Load(rate_rps=6, outputs=300), habits=Habits(host_ms=3, bend=0.25)),
    Case(name="a3b-rtxpro-sharegpt", model=A3B, hardware=RTX, load=SHAREGPT,
         habits=Habits(host_ms=3, bend=0.2, bend_at=16, host_per_decode_ms=0.03)),
    Case(name="a3b-h200-ep2-bursts", model=A3B, hardware="h200_sxm",
         engine=TP2 | {"enable_expert_parallel": True, "max_num_seqs": 256},
         load=Load(rate_rps=10, outputs=200, burst=20), habits=Habits(bend=-0.2, products=1.2)),
    Case(name="mixtral-h100-tp2", model=MIXTRAL, hardware="h100_sxm", engine=TP2,
         load=Load(rate_rps=8, outputs=300), habits=Habits(bend=0.3, bend_at=8)),
    Case(name="deepseek-h200-tp8", model="deepseek-ai/DeepSeek-V3", hardware="h200_sxm", engine=TP8,
         load=Load(rate_rps=4, outputs=300), habits=Habits(host_ms=4)),
    Case(name="qwen0.6b-h100-host-bound", model="Qwen/Qwen3-0.6B", hardware="h100_sxm",
         load=Load(rate_rps=25, outputs=300),
         habits=Habits(host_ms=4.5, host_per_decode_ms=0.03, hides_host=True)),
    Case(name="qwen8b-b200-host-hidden", model="Qwen/Qwen3-8B", hardware="b200_sxm",
         engine=LARGE, load=Load(rate_rps=30, outputs=300, requests=1000),
         habits=Habits(host_ms=4, host_per_decode_ms=0.02, hides_host=True)),
    Case(name="llama8b-l40s-bursts", model=LLAMA8, hardware="l40s",
         load=Load(rate_rps=3, burst=15, outputs=200), habits=Habits(host_ms=2.5, noise=0.04)),
    Case(name="llama8b-a100-prefixes", model=LLAMA8, hardware="a100_sxm",
         load=Load(rate_rps=10, inputs=200, prefix_tokens=2048, prefixes=4, outputs=200)),
    Case(name="llama8b-h100-long-2048", model=LLAMA8, hardware="h100_sxm",
         load=Load(rate_rps=1.5, inputs=8000, outputs=150, longest_input=60_000, requests=200)),
    Case(name="llama8b-h100-long-8192", model=LLAMA8, hardware="h100_sxm",
         engine={"max_num_batched_tokens": 8192},
         load=Load(rate_rps=2.5, inputs=8000, outputs=150, longest_input=60_000, requests=200)),
    Case(name="llama8b-h100-tight", model=LLAMA8, hardware="h100_sxm", num_gpu_blocks=2000,
         load=Load(rate_rps=8, outputs=400), engine={"max_model_len": 16384}),
    Case(name="qwen8b-4090-blind", tells_blocks=False,
         load=Load(rate_rps=2.0, outputs=300, longest_input=4000), **GEFORCE),
    Case(name="qwen8b-4090-tight",
         load=Load(rate_rps=1.6, outputs=300, longest_input=4000), **GEFORCE),
    Case(name="unknown-a6000", model="Qwen/Qwen3-8B", model_name="acme/Acme-9B",
         hardware="rtx_a6000", kernels="roofline", load=Load(rate_rps=2, outputs=300),
         habits=Habits(products=1.2)),
    Case(name="llama8b-h100-short-outputs", model=LLAMA8, hardware="h100_sxm",
         load=Load(rate_rps=20, inputs=900, outputs=12)),
    Case(name="llama8b-h200-few", model=LLAMA8, hardware="h200_sxm", engine={"max_num_seqs": 32},
         load=Load(requests=100, rate_rps=8, outputs=300)),
    Case(name="llama8b-h100-eager-sync", model=LLAMA8, hardware="h100_sxm", version="0.10.2",
         engine={"enforce_eager": True}, is_async=False,
         load=Load(rate_rps=6, outputs=250), habits=Habits(host_ms=9, host_per_decode_ms=0.04)),
    Case(name="llama8b-rtxpro-dp2", model=LLAMA8, hardware=RTX, engine={"data_parallel_size": 2},
         load=replace(SHAREGPT, rate_rps=16), habits=Habits(host_ms=3.0, wave=24)),
    Case(name="a3b-h100-dp2-moderate", model=A3B, hardware="h100_sxm",
         engine={"data_parallel_size": 2}, load=Load(rate_rps=16, outputs=300),
         habits=Habits(host_ms=3, bend=0.25)),
    Case(name="llama8b-rtxpro-nohw", model=LLAMA8, hardware=RTX, load=SHAREGPT, told_hardware=False,
         habits=Habits(host_ms=3.0, wave=24, overlap=0.3)),
    Case(name="a3b-nohw", model=A3B, hardware="h100_sxm", told_hardware=False,
         load=Load(rate_rps=6, outputs=300), habits=Habits(host_ms=3, bend=0.25)),
    Case(name="cpu-moderate", load=Load(**CPU, rate_rps=2.0), **ON_CPU),
    Case(name="cpu-heavy-from-light", load=Load(**CPU, rate_rps=3.0),
         other=Load(**CPU, rate_rps=1.0), **ON_CPU),
    Case(name="cpu-long-from-moderate", other=Load(**CPU, rate_rps=2.0),
         load=Load(**(CPU | {"inputs": 350}), rate_rps=1.6), **ON_CPU),
    Case(name="cpu-tight-from-moderate", other=Load(**CPU, rate_rps=2.0), num_gpu_blocks=64,
         load=Load(**CPU, rate_rps=2.4), **ON_CPU),
]  # fmt: skip


def line(document: dict[str, Any]) -> str:
    """One row of a table: worst errors in percent of TTFT, TPOT, latency; throughput."""
    cells = []
    for key in ("floor", "floor unseen", "a priori", "fitted", "fitted unseen", "elsewhere"):
        errors = document.get(key)
        cells.append(
            "/".join(f"{100 * errors[name]:.1f}" for name in (*METRICS, THROUGHPUT))
            if errors
            else "-"
        )
    tail = f"waiting {document['waiting']:.0%}, preempted {document['preemptions']}"
    return f"{document['case']:30}" + "".join(f"{cell:>24}" for cell in cells) + f"  {tail}"


def main(arguments: list[str] | None = None) -> int:
    """Prints a row per case."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", help="cases; all if none is given")
    parser.add_argument("--out", type=Path, help="keep logs and results here")
    parser.add_argument("--json", action="store_true", help="JSON lines on stdout")
    args = parser.parse_args(arguments)
    chosen = [case for case in CASES if not args.names or case.name in args.names]
    with tempfile.TemporaryDirectory() as folder:
        out = args.out or Path(folder)
        out.mkdir(parents=True, exist_ok=True)
        for case in chosen:
            document = judge(case, out)
            (out / f"{case.name}.result.json").write_text(json.dumps(document, indent=1))
            print(json.dumps(document) if args.json else line(document), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
