"""Recordings of every kind, made by the twin: what is predicted of them is known to be right."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np

from dynosim.config.loading import run_config_from_dict
from dynosim.experiment.run import RunOutcome, run
from dynosim.verify.curves import output_by_second

MODEL, GPU, VERSION = (
    "Qwen/Qwen3-8B",
    "RTX 3090",
    "0.19.0",
)  # no tables: the roofline is at once there
LIMITS = {"max_num_seqs": 32, "max_num_batched_tokens": 2048, "max_model_len": 4096}
BLOCKS = 1500
POOL = {
    "system_prompts": 3,
    "users_per_prompt": 2,
    "system_tokens": 64,
    "question_tokens": 300,
    "output_tokens": 40,
}
STAGES = [[2.0, 8.0], [4.0, 8.0]]


def served(workload: dict[str, Any], **engine: Any) -> RunOutcome:
    """What the twin makes of a workload on the GPU of all recordings here."""
    data = {
        "model": MODEL,
        "hardware": "rtx_3090",
        # As a server of that model chooses tokens for clients who state nothing.
        "workload": workload | {"sampling": "truncated"},
        "engine": {"version": VERSION, **LIMITS, **engine},
        "timing": {"kind": "roofline"},
        "router": {"mode": "least-loaded"},
    }
    return run(run_config_from_dict(data))


def log_setup(**changes: Any) -> dict[str, Any]:
    """The first line of a log."""
    setup = {
        "model": MODEL,
        "hardware": GPU,
        "vllm_version": VERSION,
        "num_gpu_blocks": BLOCKS,
        "engine_kwargs": {**LIMITS, "tensor_parallel_size": 1},
    }
    return {key: value for key, value in (setup | changes).items() if value is not None}


def write_log(path: Path, *, requests: int = 120, slower: float = 1.0, **setup: Any) -> Path:
    """A log on the clients' clock; every time is `slower` times what is predicted."""
    synthetic = {"requests": requests, "isl": 400, "osl": 40, "rate_rps": 3.0, "block_size": 16}
    outcome = served({"synthetic": synthetic}, num_gpu_blocks=BLOCKS)
    log = outcome.result.requests
    first = log.arrival_ms + slower * (log.first_token_ms - log.arrival_ms)
    last = log.arrival_ms + slower * (log.finish_ms - log.arrival_ms)
    rows: list[dict[str, Any]] = [{"setup": log_setup(**setup)}]
    rows += [
        {
            "arrival_ms": float(log.arrival_ms[row]),
            "input_tokens": int(log.input_tokens[row]),
            "output_tokens": int(log.output_tokens[row]),
            "first_token_ms": float(first[row]),
            "last_token_ms": float(last[row]),
        }
        for row in range(len(log.arrival_ms))
    ]
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def experiment(name: str = "1", **changes: Any) -> dict[str, Any]:
    """One experiment, measured exactly as it is predicted."""
    stages = [{"rate_rps": rate, "duration_s": seconds} for rate, seconds in STAGES]
    outcome = served({"pool": POOL, "stages": stages, "template_tokens": 7})
    report = outcome.report
    row = {
        "id": name,
        "model": MODEL,
        "hardware": GPU,
        "tensor_parallel": 1,
        **LIMITS,
        "engine_version": VERSION,
        "kv_blocks_of_16": outcome.capacity.num_gpu_blocks,
        "workload": {**POOL, "template_tokens": 7, "stages_rps_s": STAGES},
        "measured_ms": {
            "e2e_mean": report["mean_e2e_latency_ms"],
            "ttft_p90": report["p90_ttft_ms"],
            "ttft_mean": report["mean_ttft_ms"],
            "itl_mean": report["mean_itl_ms"],
        },
        "unfit": None,
        "model_config": None,
    }
    return row | changes


def write_experiments(path: Path, *rows: dict[str, Any]) -> Path:
    """A list of experiments."""
    path.write_text(json.dumps(list(rows or (experiment(),))))
    return path


def curve() -> dict[str, Any]:
    """A throughput curve as it is predicted, by one engine with vLLM's own limits."""
    synthetic = {"requests": 60, "isl": 300, "osl": 40, "rate_rps": 4.0, "block_size": 16}
    outcome = served(
        {"synthetic": synthetic},
        max_num_seqs=256,
        max_model_len=2048,
        enable_prefix_caching=False,
    )
    log = outcome.result.requests
    second = np.arange(0.0, np.ceil(log.finish_ms.max() / 1000.0) + 1)
    rates = np.concatenate([[0.0], output_by_second(log, second)])
    pairs = zip(second.tolist(), rates.tolist(), strict=True)
    return {
        "setup": {
            "model": MODEL,
            "hardware": GPU,
            "tensor_parallel": 1,
            "engines": 1,
            "what": "one engine",
            "engine": f"vLLM {VERSION}",
        },
        "measured": {
            "output_tok_s_by_second": [list(pair) for pair in pairs],
            "throughput_tok_s": outcome.report["output_throughput_tok_s"],
            "mean_ttft_ms": outcome.report["mean_ttft_ms"],
            "mean_tpot_ms": outcome.report["mean_tpot_ms"],
        },
        "requests": [
            {
                "arrival_ms": float(log.arrival_ms[row]),
                "input_tokens": int(log.input_tokens[row]),
                "output_tokens": int(log.output_tokens[row]),
                "hash_ids_16": [],
            }
            for row in range(len(log.arrival_ms))
        ],
    }


def write_curve(path: Path, **changes: Any) -> Path:
    """A curve in a file."""
    data = json.dumps(curve() | changes).encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path
