"""Does the twin order configurations of a real vLLM as measurements do?

    python benchmarks/live_ranking.py --engine-python PYTHON --model DIR [--timing FILE] [--out DIR]

deploys configurations of vLLM's CPU backend one after the other, each with our frontend and router
in front, offers the same requests to all of them with a fixed number under way, and compares the
order of the results with that of predictions which all come from one fitted timing file: Kendall's
tau, and what the configuration chosen by the twin costs. Without --timing, one worker is calibrated
through its frontend.

The twin gives every worker a machine of its own. Here each has a CPU, and shares it with a part of
the HTTP servers and clients. What --out already holds is not measured again.
"""

import argparse
import json
import signal
import sys
from pathlib import Path
from typing import Any

import yaml
from live_accuracy import POINTS
from live_engine import (
    BLOCK_SIZE,
    MAX_MODEL_LEN,
    deployment,
    dynosim,
    no_idle_cpu,
    take_precedence,
)

from dynosim_runtime.measure.calibrate import calibrate_url

METRICS = {"output_throughput_tok_s": False, "mean_e2e_latency_ms": True}
"""Judged by, and whether less is better."""

CONCURRENCY = 16
CONFIGURATIONS: dict[str, dict[str, dict[str, Any]]] = {
    "1 worker": {},
    "1 worker, 4 sequences": {"engine": {"max_num_seqs": 4}},
    "1 worker, 96 tokens a step": {"engine": {"max_num_batched_tokens": 96}},
    "1 worker, no prefix cache": {"engine": {"enable_prefix_caching": False}},
    "2 workers, KV router": {"cluster": {"workers": 2}, "router": {"mode": "kv"}},
    "2 workers, round robin": {"cluster": {"workers": 2}},
    "2 workers, 2 sequences": {"cluster": {"workers": 2}, "engine": {"max_num_seqs": 2}},
    "2 workers, no prefix cache": {
        "cluster": {"workers": 2},
        "engine": {"enable_prefix_caching": False},
    },
}


def main() -> int:
    """Runs all of it; returns the exit code."""
    arguments = _arguments()
    take_precedence()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what runs must end with us
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if arguments.timing is None:
        arguments.timing = out / "timing.json"
        if not arguments.timing.exists():
            _calibrate(arguments)
    predicted, measured = [], []
    for name, changes in CONFIGURATIONS.items():
        folder = out / name.replace(" ", "-").replace(",", "")
        results = folder / "validation.json"
        if not results.exists():
            _validate(folder, _plan(arguments, name, changes), arguments)
        document = json.loads(results.read_text())
        predicted.append({"name": name, "report": document["predicted"]})
        measured.append({"name": name, "report": document["measured"]})
    files = out / "predicted.jsonl", out / "measured.jsonl"
    for file, rows in zip(files, (predicted, measured), strict=True):
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for metric, is_lower_better in METRICS.items():
        order = ("--lower-is-better",) if is_lower_better else ()
        dynosim("rank", *files, "--metric", metric, *order)
    return 0


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--engine-python", type=Path, required=True, help="Python that has vLLM")
    parser.add_argument("--timing", type=Path, help="fitted timing file")
    parser.add_argument("--requests", type=int, default=120)
    parser.add_argument("--out", type=Path, default=Path("results/live_ranking"))
    return parser.parse_args()


def _calibrate(arguments: argparse.Namespace) -> None:
    file = arguments.out / "calibrated.yaml"
    plan = _plan(arguments, "calibrated", {}) | {"timing": {"kind": "linear", "base_ms": 10.0}}
    file.write_text(yaml.safe_dump(plan, sort_keys=False))
    place = arguments.out / "calibrated"
    with no_idle_cpu(), deployment(file, place, arguments.engine_python) as url:
        model = str(arguments.model)
        calibrate_url(url, out=arguments.timing, model=model, as_json=False, plan=POINTS)


def _plan(
    arguments: argparse.Namespace, name: str, changes: dict[str, dict[str, Any]]
) -> dict[str, Any]:
    sections: dict[str, dict[str, Any]] = {
        "workload": {
            "synthetic": {
                "requests": arguments.requests,
                "isl": {"dist": "lognormal", "mean": 250, "std": 80, "min": 64, "max": 800},
                "osl": {"dist": "lognormal", "mean": 24, "std": 8, "min": 4, "max": 80},
                "arrival": "closed",
                "shared_prefix_ratio": 0.75,
                "prefix_groups": 40,  # one worker does not hold all of their blocks, two do
                "block_size": BLOCK_SIZE,
            },
            "concurrency": CONCURRENCY,
        },
        "engine": {
            "block_size": BLOCK_SIZE,
            "num_gpu_blocks": 260,
            "max_model_len": MAX_MODEL_LEN,
            "max_num_seqs": 16,
            "max_num_batched_tokens": 512,
            "async_scheduling": False,
        },
        "timing": {"kind": "fitted", "file": str(arguments.timing.resolve())},
        "cluster": {"workers": 1},
        "router": {"mode": "round-robin"},
    }
    for section, values in changes.items():
        sections[section] |= values
    return {"name": name, "model": str(arguments.model.resolve()), **sections}


def _validate(folder: Path, plan: dict[str, Any], arguments: argparse.Namespace) -> None:
    """One configuration, deployed, driven and stopped; leaves validation.json in the folder."""
    folder.mkdir(exist_ok=True)
    file = folder / "run.yaml"
    file.write_text(yaml.safe_dump(plan, sort_keys=False))
    with no_idle_cpu(), deployment(file, folder / "deployment", arguments.engine_python) as url:
        if dynosim("validate", file, "--url", url, "--out", folder, "--overwrite") != 0:
            raise SystemExit(1)


if __name__ == "__main__":
    raise SystemExit(main())
