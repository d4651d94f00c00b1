"""bench.sh: AIPerf at shares of what a winner carries, with the sweep's workload.

A synthetic workload of single requests is told to AIPerf in its own words. Any other is written as
rows for it by `dynosim trace schedule`, from the run file beside the script.

Rules of the field: at least 40 requests for each that is in flight, at least 40 to warm up with,
and a client inside the network of what it measures. Each load has prompts of its own (a seed, or a
file of rows, from which AIPerf makes them), and so has the warm-up: its own would begin with the
first of those it measures, and leave them in the prefix cache.
"""

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

from dynosim.build.workload import load_trace, recorded_format
from dynosim.config.lengths import DistributionConfig
from dynosim.config.schema import RunConfig
from dynosim.config.workload import SyntheticConfig
from dynosim.experiment.schedule import row_block_tokens
from dynosim.timing.sampler import REQUEST_FIELDS
from dynosim.workload.readers import DEFAULT_BLOCK_TOKENS

SHARES = (0.5, 0.8, 1.0)
REQUESTS_PER_SLOT = 40
WARM_UP_REQUESTS = 40

_HEAD = """\
#!/usr/bin/env bash
# {title}
#   ./bench.sh [URL]   (or URL=...; default http://127.0.0.1:{port})
# Run it inside the network of the deployment; through a port forward it would measure that, too.
# AIPERF and DYNOSIM are the commands, MODEL the name that is served, TOKENIZER a folder or name,
# OUT a folder for results. Tried with AIPerf 0.13, which offline finds cached tokenizers only.
set -euo pipefail
url=${{1:-${{URL:-http://127.0.0.1:{port}}}}}
model=${{MODEL:-{model}}}
tokenizer=${{TOKENIZER:-$model}}
[ ! -d "$tokenizer" ] || tokenizer=$(realpath "$tokenizer")
out=$(realpath -m "${{OUT:-$(dirname "${{BASH_SOURCE[0]}}")/bench}}")
cd "$(dirname "${{BASH_SOURCE[0]}}")"
read -r -a aiperf <<< "${{AIPERF:-aiperf}}"
read -r -a dynosim <<< "${{DYNOSIM:-dynosim}}"

send() {{  # the load's name, its seed, and what AIPerf is told of it
  local name=$1 seed=$2
  shift 2
  "${{aiperf[@]}}" profile -m "$model" --tokenizer "$tokenizer" \\
    --endpoint-type completions --url "$url" --streaming --use-server-token-count \\
    --extra-inputs ignore_eos:true {sampling} --random-seed "$seed" \\
    --ui-type simple --artifact-dir "$out/$name" "$@"
}}
"""
_ROWS = """
send_rows() {{  # the load's name, its seed, keys of the run file, and what else AIPerf is told
  local name=$1 seed=$2 changes=$3
  shift 3
  mkdir -p "$out/$name"
  # shellcheck disable=SC2086  # several words
  "${{dynosim[@]}}" trace schedule config.yaml "$out/$name/rows.jsonl" --overwrite $changes
  send "$name" "$seed" --input-file "$out/$name/rows.jsonl" --custom-dataset-type mooncake_trace \\
    --isl-block-size {block_size} "$@"
}}
"""


@dataclass(frozen=True, slots=True)
class BenchLoad:
    """A share of the load that a winner carries."""

    share: float
    in_flight: int  # requests, about
    rate_rps: float | None  # None: the load is what is in flight
    num_requests: int

    @property
    def name(self) -> str:
        """Of its folder of results."""
        return f"load-{self.share:g}"


def bench_loads(config: RunConfig, report: Mapping[str, Any]) -> list[BenchLoad]:
    """The loads to measure at; `config` and `report` are of the load that is carried."""
    concurrency = config.workload.concurrency
    rate_rps = float(report.get("request_throughput_rps") or 0.0)
    in_flight = rate_rps * float(report.get("mean_e2e_latency_ms") or 0.0) / 1e3  # Little's law
    loads = []
    for share in SHARES:
        slots = max(1, ceil(share * in_flight))
        rate: float | None = share * _offered_rps(config, report, rate_rps)
        if concurrency is not None:
            slots, rate = max(1, round(share * concurrency)), None
        least = max(REQUESTS_PER_SLOT * slots, int(report.get("num_requests") or 0))
        loads.append(BenchLoad(share, slots, rate, least))
    return loads


def bench_script(config: RunConfig, report: Mapping[str, Any], *, title: str, model: str) -> str:
    """The script beside a run file that brings the load which is carried."""
    loads = bench_loads(config, report)
    synthetic, is_open = config.workload.synthetic, config.workload.concurrency is None
    words = None if synthetic is None else synthetic_flags(synthetic, is_open=is_open)
    shares = ", ".join(f"{load.share:g}" for load in loads)
    asked = REQUEST_FIELDS[config.sampling]
    text = _HEAD.format(
        title=f"AIPerf at {shares} of what {title} carries.",
        port=config.live.port or 8000,
        model=shlex.quote(model),
        sampling=" ".join(f"{key}:{value:g}" for key, value in asked.items()),
    )
    if words is None:
        text += _ROWS.format(block_size=_block_size(config))
    text += _warm_up(loads[0], report)
    for seed, load in enumerate(loads, 1):
        text += f"\n# {_said(load)}\n"
        if words is not None:
            text += _sent(load, seed, words)
        else:
            text += _rows_sent(config, load, seed, report)
    return text + f'\necho "compare: dynosim validate . --aiperf $out/{loads[-1].name}" >&2\n'


def synthetic_flags(synthetic: SyntheticConfig, *, is_open: bool) -> list[str] | None:
    """The workload in AIPerf's words; None where it has none for it. Open loops have arrivals."""
    is_single = synthetic.turns is None and synthetic.max_context_tokens is None
    is_single &= not synthetic.priorities
    has_prefix = bool(synthetic.shared_prefix_ratio or synthetic.shared_prefix_tokens)
    prompts, answers = _length("isl", synthetic.isl), _length("osl", synthetic.osl)
    if not is_single or has_prefix or prompts is None or answers is None:
        return None
    flags = [*prompts, *answers]
    if is_open and synthetic.arrival != "closed":
        flags += ["--arrival-pattern", synthetic.arrival]
        if synthetic.arrival == "gamma":
            flags += ["--arrival-smoothness", f"{synthetic.burstiness:g}"]
    return flags


def _length(name: str, lengths: DistributionConfig) -> list[str] | None:
    is_cut = lengths.min is not None or lengths.max is not None
    if lengths.dist not in ("fixed", "normal") or is_cut or lengths.mean is None:
        return None
    std = lengths.std or 0.0
    return [f"--{name}", f"{lengths.mean:g}", f"--{name}-stddev", f"{std:g}"]


def _said(load: BenchLoad) -> str:
    what = f"{load.rate_rps:.4g} requests/s" if load.rate_rps is not None else "closed loop"
    return f"{load.share:g}: {what}, {load.in_flight} in flight, {load.num_requests} requests"


def _warm_up(load: BenchLoad, report: Mapping[str, Any]) -> str:
    """With single prompts as long as the workload's on average, which no load sends."""
    completed = int(report.get("completed_requests") or 0) or 1
    flags = [f"--concurrency {load.in_flight}"]
    flags += [f"--{name} {WARM_UP_REQUESTS}" for name in ("num-requests", "num-dataset-entries")]
    for name, key in (("isl", "total_input_tokens"), ("osl", "total_output_tokens")):
        flags.append(f"--{name} {max(1, round(int(report.get(key) or 0) / completed))}")
    return f"\nsend warm-up 0 {' '.join(flags)}\n"


def _sent(load: BenchLoad, seed: int, words: list[str]) -> str:
    by = ["--concurrency", str(load.in_flight)]
    if load.rate_rps is not None:
        by = ["--request-rate", f"{load.rate_rps:.6g}"]
    count = str(load.num_requests)
    flags = [*by, "--num-requests", count, "--num-dataset-entries", count, *words]
    return f"send {load.name} {seed} {shlex.join(flags)}\n"


def _rows_sent(config: RunConfig, load: BenchLoad, seed: int, report: Mapping[str, Any]) -> str:
    workload = config.workload
    own = int(report.get("num_requests") or 0)
    repeat = workload.repeat * max(1, ceil(load.num_requests / own)) if own else workload.repeat
    changes = [f"workload.repeat={repeat}"]
    if load.rate_rps is None:
        flags = f"--concurrency {load.in_flight} --num-requests {load.num_requests}"
    else:
        changes.append(f"workload.arrival_scale={workload.arrival_scale * load.share!r}")
        flags = "--fixed-schedule"
    options = " ".join(f"--set {change}" for change in changes)
    return f"send_rows {load.name} {seed} {shlex.quote(options)} {flags}\n"


def _offered_rps(config: RunConfig, report: Mapping[str, Any], measured_rps: float) -> float:
    """Requests a second that the schedule brings."""
    if report.get("capacity_rps") is not None:
        return float(report["capacity_rps"])
    synthetic, workload = config.workload.synthetic, config.workload
    if synthetic is None or synthetic.rate_rps is None:
        return measured_rps
    return synthetic.rate_rps * workload.speedup * workload.arrival_scale


def _block_size(config: RunConfig) -> int:
    """Prompt tokens behind one hash id of the rows that are sent."""
    workload = config.workload
    if workload.synthetic is not None:
        return row_block_tokens(workload.synthetic.block_size)
    if workload.trace is not None and recorded_format(workload, config.resolve) is None:
        return row_block_tokens(workload.trace_block_size or DEFAULT_BLOCK_TOKENS)
    return row_block_tokens(load_trace(config).trace_block_size)
