"""Calibrate, predict, measure: how near the twin comes to a real vLLM server on this machine.

    python benchmarks/closed_loop.py --engine-python PYTHON --model DIR [--out DIR]

starts one vLLM server (CPU backend, or GPU with --gpu), fits its step times with `dynosim
calibrate`, then offers synthetic load at several shares of the throughput that the twin says the
server can sustain, and prints `dynosim validate`'s table for each. `--url` measures a server that
runs already. Everything else on the machine should be quiet.
"""

import argparse
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import yaml

from dynosim.config import load_run
from dynosim.runner import run
from dynosim_runtime.loadgen.counters import parse_counters

READY_TIMEOUT_S = 300.0
MAX_MODEL_LEN = 4096
MAX_NUM_SEQS = 64
MAX_NUM_BATCHED_TOKENS = 2048
CPU_ENVIRONMENT = {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
}


def main() -> int:
    """Runs the loop; returns the exit code."""
    arguments = _arguments()
    out: Path = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    if arguments.url is not None:
        return _loop(arguments.url, arguments)
    with _server(arguments, out / "vllm.log") as url:
        return _loop(url, arguments)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of the model")
    parser.add_argument("--engine-python", type=Path, help="Python that has vLLM")
    parser.add_argument("--url", help="a server that runs already")
    parser.add_argument("--gpu", action="store_true", help="vLLM's own choices of a GPU")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, default=Path("results/closed_loop"))
    parser.add_argument("--timing", type=Path, help="fitted timing file, in place of calibrating")
    parser.add_argument("--requests", type=int, default=120)
    parser.add_argument("--isl", type=int, default=200)
    parser.add_argument("--osl", type=int, default=48)
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.6, 0.8])
    arguments = parser.parse_args()
    if arguments.url is None and arguments.engine_python is None:
        parser.error("give --engine-python or --url")
    return arguments


def _loop(url: str, arguments: argparse.Namespace) -> int:
    out: Path = arguments.out
    timing: Path = arguments.timing or out / "timing.json"
    if arguments.timing is None:
        command = ["calibrate", "--url", url, "--out", str(timing), "--model", arguments.model]
        if _dynosim(*command) != 0:
            return 1
    plan = out / "run.yaml"
    plan.write_text(yaml.safe_dump(_plan(url, timing, arguments), sort_keys=False))
    most_rps = _sustained_rps(plan)
    print(f"\nthe twin sustains {most_rps:.2f} requests/s")
    summary = {}
    for share in arguments.loads:
        rate = round(share * most_rps, 3)
        name = f"load-{round(100 * share)}"
        print(f"\n{100 * share:.0f} % of that: {rate} requests/s", flush=True)
        rate_option = f"workload.synthetic.rate_rps={rate}"
        code = _dynosim(
            "validate", str(plan), "--url", url, "--set", rate_option, "--out", str(out / name)
        )
        if code != 0:
            return code
        document = json.loads((out / name / "validation.json").read_text())
        summary[name] = {row["metric"]: row["difference"] for row in document["metrics"]}
    (out / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    return 0


def _plan(url: str, timing: Path, arguments: argparse.Namespace) -> dict[str, object]:
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
        counters = parse_counters(response.read().decode())
    if counters is None:
        raise SystemExit(f"{url}/metrics: not a vLLM server's")
    return {
        "name": "closed loop",
        "model": str(arguments.model.resolve()),
        "workload": {
            "synthetic": {
                "requests": arguments.requests,
                "isl": _lengths(arguments.isl, 16, 1500),
                "osl": _lengths(arguments.osl, 4, 400),
                "rate_rps": 1,
                "shared_prefix_ratio": 0.3,
                "prefix_groups": 8,
                "block_size": 64,
            }
        },
        "engine": {
            "block_size": int(counters.cache_config["block_size"]),
            "num_gpu_blocks": int(counters.cache_config["num_gpu_blocks"]),
            "max_model_len": MAX_MODEL_LEN,
            "max_num_seqs": MAX_NUM_SEQS,
            "max_num_batched_tokens": MAX_NUM_BATCHED_TOKENS,
            "async_scheduling": arguments.gpu,
        },
        "timing": {"kind": "fitted", "file": str(timing.resolve())},
        "router": {"mode": "round-robin"},
    }


def _lengths(mean: int, low: int, high: int) -> dict[str, object]:
    return {"dist": "lognormal", "mean": mean, "std": mean / 2, "min": low, "max": high}


def _sustained_rps(plan: Path) -> float:
    """Throughput of the twin when requests never lack."""
    crowd = ["workload.synthetic.rate_rps=null", "workload.synthetic.arrival=closed",
             f"workload.concurrency={MAX_NUM_SEQS}"]  # fmt: skip
    return float(run(load_run(plan, crowd)).report["request_throughput_rps"])


def _dynosim(*arguments: object) -> int:
    """Run the command, its output on ours."""
    command = [sys.executable, "-m", "dynosim", *(str(argument) for argument in arguments)]
    print("$ dynosim", *arguments, flush=True)
    return subprocess.run(command, check=False).returncode


@contextmanager
def _server(arguments: argparse.Namespace, log: Path) -> Iterator[str]:
    """A vLLM server while it is needed; its output goes to `log`."""
    port = _free_port()
    command = [
        str(arguments.engine_python), "-m", "vllm.entrypoints.openai.api_server",
        "--host", "127.0.0.1", "--port", str(port), "--model", str(arguments.model.resolve()),
        "--served-model-name", arguments.model.name, "--dtype", arguments.dtype,
        "--max-model-len", str(MAX_MODEL_LEN), "--max-num-seqs", str(MAX_NUM_SEQS),
        "--max-num-batched-tokens", str(MAX_NUM_BATCHED_TOKENS),
    ]  # fmt: skip
    environment = dict(os.environ)
    if not arguments.gpu:
        command.append("--enforce-eager")
        environment |= CPU_ENVIRONMENT
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            url = f"http://127.0.0.1:{port}"
            _wait_until_ready(url, process, log)
            yield url
        finally:
            process.terminate()
            try:
                process.wait(timeout=30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + READY_TIMEOUT_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"vLLM ended with {process.returncode}; see {log}")
        try:
            with urllib.request.urlopen(f"{url}/health", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise SystemExit(f"vLLM was not ready within {READY_TIMEOUT_S:.0f} s; see {log}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    raise SystemExit(main())
