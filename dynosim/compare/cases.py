"""Published cases that the twin can express, run one by one: set-up, expected, got.

`python -m dynosim.compare.cases [FILE]` writes the report (default docs/validation.md) and returns
1 if a claim does not hold.
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import binomtest

from dynosim.cluster import ClusterSpec, PoolSpec, RunOptions, simulate
from dynosim.compare.case_agents import TASKS, WORKERS, agent_caches
from dynosim.compare.case_aiconfigurator import (
    calibrated_rows,
    disaggregated_rows,
    published_table,
)
from dynosim.compare.case_aiconfigurator_today import tables_of_today
from dynosim.compare.case_autoscalers import autoscaler_rules
from dynosim.compare.case_failures import failures
from dynosim.compare.case_handoffs import (
    gain_by_prompt_length,
    topology_of_zones,
    transport_ladder,
)
from dynosim.compare.case_kit import (
    Case,
    Outcome,
    alike,
    equal,
    large_engine,
    near,
    prompts,
    two_turns,
)
from dynosim.compare.case_routing import (
    COMMON_PROMPTS,
    COMMON_TOKENS,
    TURNS,
    gain_of_cache_routing,
)
from dynosim.compare.case_routing import WORKERS as ROUTED_WORKERS
from dynosim.compare.case_startup import start_up
from dynosim.compare.case_tiers import PREFIX, one_compute_three_loads
from dynosim.compare.case_updates import rolling_updates
from dynosim.engine.spec import EngineSpec
from dynosim.metrics import summarize
from dynosim.metrics.tables import request_table
from dynosim.records import RunResult, Trace
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.silicon.catalogue import model_entry
from dynosim.timing.architecture import model_shape
from dynosim.timing.formulas import FixedModel, LinearModel
from dynosim.timing.model import StepTimeModel
from dynosim.timing.weights import Gpus, gpu_weights

_BLOCK = 16


def _workers(number: int, times: StepTimeModel, engine: EngineSpec | None = None) -> ClusterSpec:
    pool = PoolSpec(engine=engine or large_engine(), times=times, workers=number)
    return ClusterSpec(pools=(pool,))


def prompt_stability() -> list[Outcome]:
    """A varying line at the start of a long prompt makes all of it new; at its end, nothing."""
    num_blocks = 52_000 // _BLOCK
    shared = list(range(1, num_blocks + 1))
    base_ms, per_token_ms = 168.0, 744.0 / 52_000
    chains = [
        shared,
        [*shared[:-1], 900_001],  # only the end differs
        list(range(500_000, 500_000 + num_blocks)),  # the first line differs: every block does
    ]
    result = simulate(
        prompts(chains, block_tokens=_BLOCK, outputs=1, gap_ms=5_000),
        _workers(
            1,
            LinearModel(
                base_ms=base_ms,
                per_prefill_token_ms=per_token_ms,
                per_decode_ms=0.0,
                per_context_token_ms=0.0,
            ),
        ),
    )
    log = result.requests
    ttft_ms = log.first_token_ms - log.arrival_ms
    return [
        near("TTFT with the header stable", 168, float(ttft_ms[1]), 0.02, " ms"),
        near("TTFT with a varying header", 912, float(ttft_ms[2]), 0.02, " ms"),
        equal("cached tokens with a varying header", 0, int(log.cached_tokens[2])),
        equal("cached tokens with a varying end", (num_blocks - 1) * 16, int(log.cached_tokens[1])),
    ]


def sweep_numbers() -> list[Outcome]:
    """The finite-run effect of the published comparison, and the identity of its table."""
    outcomes = []
    for count, expected in ((800, 6.9), (2240, 7.25)):
        report = _closed_loop(count)
        rate = float(report["request_throughput_rps"])
        outcomes.append(near(f"{count} requests in 56 slots", expected, rate, 0.02, " req/s"))
        itl_ms = float(report["mean_itl_ms"])
        outcomes.append(near(f"{count} requests: ITL", 15.06, itl_ms, 0.01, " ms"))
        parts_ms = float(report["mean_ttft_ms"]) + 499 * float(report["mean_tpot_ms"])
        latency_ms = float(report["mean_e2e_latency_ms"])
        outcomes.append(
            near(f"{count} requests: latency = TTFT + 499 TPOT", parts_ms, latency_ms, 1e-9, " ms")
        )
    return outcomes


def _closed_loop(count: int) -> dict[str, Any]:
    """Four engines of 14 seats, TTFT 209 ms and ITL 15.06 ms, in lock-step waves.

    Prompts of a wave are computed in one step; other requests do not decode meanwhile, because all
    of a wave end together.
    """
    timing = FixedModel(prefill_ms=209.0, decode_ms=15.06)
    result = simulate(
        alike(count, inputs=4000, outputs=500),
        _workers(4, timing, large_engine(max_num_seqs=14)),
        RunOptions(concurrency=56),
    )
    return summarize(result, timing, sla=None, wall_time_ms=0.0)


def random_placement() -> list[Outcome]:
    """Without cache awareness a second turn meets the first one's worker by chance."""
    sessions, workers, seeds = 200, 4, 5
    met = sum(_met_again("random", seed, sessions, workers) for seed in range(seeds))
    test = binomtest(met, sessions * seeds, 1 / workers)
    kv = _met_again("kv", 0, sessions, workers)
    return [
        Outcome(
            "random: second turns on the first one's worker",
            f"{1 / workers:.0%} (binomial test, p > 0.001)",
            f"{met / (sessions * seeds):.1%} of {sessions * seeds}, p = {test.pvalue:.2f}",
            float(test.pvalue) > 0.001,
        ),
        equal(
            "kv at low load: second turns on the first one's worker", "100%", f"{kv / sessions:.0%}"
        ),
    ]


def _met_again(mode: str, seed: int, sessions: int, workers: int) -> int:
    result = _routed(two_turns(sessions, gap_ms=150.0), mode, workers, seed=seed)
    worker = result.requests.worker_id
    return int((worker[sessions:] == worker[:sessions]).sum())


def _routed(
    trace: Trace, mode: str, workers: int, *, seed: int = 0, cpu_workers: int = 0
) -> RunResult:
    times = LinearModel(
        base_ms=5.0, per_prefill_token_ms=0.1, per_decode_ms=0.05, per_context_token_ms=0.0
    )
    gpus = PoolSpec(
        engine=large_engine(max_num_batched_tokens=8192),
        times=times,
        workers=workers - cpu_workers,
    )
    cpus = replace(gpus, name="cpu_workers", workers=cpu_workers, device="cpu")
    routing = RoutingSpec(RouterSpec(_BLOCK, mode=mode, seed=seed))
    return simulate(trace, ClusterSpec(pools=(gpus, cpus), routing=routing))


def device_aware_weights() -> list[Outcome]:
    """GPUs count eight times as much as CPUs; among one class it is least-loaded."""
    burst = alike(90, inputs=64, outputs=2000, gap_ms=0.01)
    worker = _routed(burst, "device-aware-weighted", 2, cpu_workers=1).requests.worker_id
    on_gpu, on_cpu = int((worker == 0).sum()), int((worker == 1).sum())
    one_class = alike(60, inputs=64, outputs=40, gap_ms=3.0)
    weighted = _routed(one_class, "device-aware-weighted", 3).requests.worker_id
    least = _routed(one_class, "least-loaded", 3).requests.worker_id
    return [
        near("requests in flight, GPU to CPU, of a burst", 8.0, on_gpu / on_cpu, 0.001),
        equal(
            "one class: same choices as least-loaded", True, bool(np.array_equal(weighted, least))
        ),
    ]


def request_record() -> list[Outcome]:
    """Records of the twin satisfy the identity that the published one does."""
    trace = prompts(
        [list(range(1, 13)), [*range(1, 13), 99]], block_tokens=_BLOCK, outputs=30, gap_ms=400
    )
    result = simulate(
        trace,
        _workers(1, FixedModel(prefill_ms=12.9, decode_ms=3.35)),
    )
    table = request_table(result, trace)
    gap = table["ttft_ms"] - table["prefill_wait_time_ms"] - table["prefill_time_ms"]
    log = result.requests
    per_token_ms = (log.finish_ms - log.first_token_ms) / (log.output_tokens - 1)
    return [
        Outcome(
            "ttft = prefill wait + prefill time",
            "to 1e-6 ms (published: 13.758 = 0.852 + 12.906)",
            f"largest difference {float(np.abs(gap.to_numpy()).max()):.1e} ms",
            bool(np.abs(gap.to_numpy()).max() <= 1e-6),
        ),
        equal("cached tokens after a shared prefix of 12 blocks", 192, int(log.cached_tokens[1])),
        near("ms per token of 29 decode steps", 3.35, float(per_token_ms[1]), 1e-6, " ms"),
    ]


def memory_fit() -> list[Outcome]:
    """About two bytes per parameter in 16 bits."""
    outcomes = []
    for name in ("Qwen/Qwen3-32B", "meta-llama/Meta-Llama-3.1-8B"):
        entry = model_entry(name)
        shape = model_shape(entry)
        weights = gpu_weights(entry, shape, Gpus(), None)
        share = sum(weights.values()) / shape.parameters
        outcomes.append(near(f"{name}: bytes per parameter", 2.0, share, 0.01))
    return outcomes


CASES: tuple[Case, ...] = (
    Case(
        "V2",
        "KV-aware routing doubles TTFT speed",
        f"sessions of {TURNS} turns in the mean, with {COMMON_PROMPTS} prompts of"
        f" {COMMON_TOKENS:,} tokens in common, on {ROUTED_WORKERS} workers with caches of 960,000"
        " tokens; later turns add 1,500 tokens and an answer of 150, after 3 s; clients in a closed"
        " loop of sessions; kv against round-robin (published: 2x TTFT, 1.6x throughput, without a"
        " workload)",
        gain_of_cache_routing,
    ),
    Case(
        "V3",
        "Prompt stability",
        "52,000 prompt tokens, TTFT = 168 ms + 14.3 us per uncached token (derived from the"
        " published 168 and 912 ms), one request at a time",
        prompt_stability,
    ),
    Case(
        "V5",
        "Agents' caches",
        f"{TASKS} generated tasks of a lead, sub-agents and a team of four, all with the same 32K"
        f" tokens of system prompt and tools, on {WORKERS} workers; sessions go to any worker and"
        " stay there, sub-agents are of their lead's session",
        agent_caches,
    ),
    Case(
        "V6",
        "One computes, three load",
        f"four sub-agents on four workers with {PREFIX:,} tokens in common and 16 of their own,"
        " one after another; KV of 131,072 bytes and 21.6 us of prefill a token (V1)",
        one_compute_three_loads,
    ),
    Case(
        "V1",
        "Ladder of links",
        "Llama-3.1-8B, ISL 8000, OSL 50, ten clients, 1P1D; 173 ms a prompt (published: about 98 s"
        " over TCP at 0.1 GB/s, 10 s at 1 GB/s, 1 s over EFA at 9.6 GB/s, +37 ms unloaded)",
        transport_ladder,
    ),
    Case(
        "V9",
        "What disaggregation gains grows with the prompt",
        "the same at ISL 1000 to 8000, over EFA layer by layer, against one aggregated worker",
        gain_by_prompt_length,
    ),
    Case(
        "V10",
        "Topology",
        "two zones of 30 prefill and 60 decode workers; 600 requests of 2,000 tokens",
        topology_of_zones,
    ),
    Case(
        "V11a",
        "AIConfigurator's table: identities of its formula",
        "its six rows (Qwen3-32B-FP8, 8 H200, vLLM 0.12.0, ISL 4000, OSL 500), from two step times"
        " each: one prompt a step; tok/s/gpu and TTFT give the steps, the rest follows",
        published_table,
    ),
    Case(
        "V11b",
        "AIConfigurator's table: the twin with its step times",
        "closed loops of 64, 56 and 40, one prompt a step; first with each row's own steps, then"
        " with those of the disaggregated rows alone: (13.8 ms + roofline / 0.77) / 1.08 a decode"
        " step, and a prompt of 251.77 / 1.1 ms on two GPUs, shared by more",
        calibrated_rows,
    ),
    Case(
        "V11c",
        "AIConfigurator's comparison: the finite-run effect",
        "ISL 4000, OSL 500; closed loop of 56 on four engines of 14 seats with TTFT 209 ms and ITL"
        " 15.06 ms",
        sweep_numbers,
    ),
    Case(
        "V11d",
        "AIConfigurator's table: the tables of today",
        "the aggregated rows with aiconfigurator-core 0.12, 8,192 tokens a step, no prefix caching:"
        " block-wise FP8 products as they are, then held against the roofline (the default); then"
        " the page's measured run of 800 requests",
        tables_of_today,
    ),
    Case(
        "V11e",
        "AIConfigurator's table: two pools",
        "2P TP2 + 1D TP4 with 76, 2 x (1P TP2 + 1D TP2) with 144, 2 x (1P TP2 + 2D TP1) with 72 in"
        " flight; 251.77 ms a prompt, 18.66, 24.31 and 24.86 ms a decode step, a link without cost",
        disaggregated_rows,
    ),
    Case("V12", "Random placement", "200 sessions of two turns, 4 workers", random_placement),
    Case(
        "V15",
        "Device-aware weighting",
        "one GPU and one CPU worker, weight 8; then three workers of one class",
        device_aware_weights,
    ),
    Case(
        "V17",
        "HPA and KEDA",
        "95th percentile of TTFT over 5 min, target 500m, 1 to 10 workers that start at once; up 2"
        " in 30 s; down 1 in 30 s after 60 s; KEDA: poll 15 s, cooldown 60 s, activation 0.1 s;"
        " a queue's target is 10",
        autoscaler_rules,
    ),
    Case(
        "V18",
        "Rolling updates",
        "workers that take 20 s to come up, all replaced while 4 requests/s of 512 and 400 tokens"
        " come; then pools of 4 prefill and 4 decode workers updated at once by 25 %/25 %, as one"
        " namespace (generations mix) and as managed ones (they do not); the hash is SHA-256 over"
        " what all workers are, but for their numbers",
        rolling_updates,
    ),
    Case(
        "V19",
        "Failures",
        "a worker of two dies under 10 requests/s; 20 prompts of 1,000 tokens on a worker that is"
        " busy above 2,500; the only worker dies and is followed by a standby after 5 s, or by a"
        " start of 60 s (a cancelled request that keeps its blocks is TensorRT-LLM's, whose engine"
        " is not simulated)",
        failures,
    ),
    Case(
        "V20",
        "Start-up",
        "5 then 35 requests/s at four workers' 40, of which three are launched when the rate jumps;"
        " then 1 to 64 workers that start at once and read 65.5 GB (Qwen3-32B) at 2 GB/s in all"
        " (presets pvc and p2p)",
        start_up,
    ),
    Case(
        "V21", "Per-request record", "two requests, 12 shared blocks of 16 tokens", request_record
    ),
    Case("V23", "Memory by parameters", "weights of two models in their own format", memory_fit),
)

NOT_RUN: tuple[tuple[str, str], ...] = (
    (
        "V16",
        "a search within 30 s: time on the clock, which is measured and not checked"
        " ([a screen](search.md#a-screen-before-the-simulator))",
    ),
    ("V23", "rules of manifests, schedulers and snapshots: outside the twin"),
)


def run_cases() -> Iterator[tuple[Case, list[Outcome]]]:
    """Every case with what came out."""
    for case in CASES:
        yield case, case.check()


def report_text(results: list[tuple[Case, list[Outcome]]]) -> str:
    """The report in Markdown."""
    claims = [outcome for _, outcomes in results for outcome in outcomes]
    held = sum(outcome.holds for outcome in claims)
    lines = [
        "# Validation cases",
        "",
        "Published cases of the Dynamo ecosystem with a full set-up, as far as the twin can express"
        " them. Written by `python -m dynosim.compare.cases`.",
        "",
        f"{held} of {len(claims)} claims hold.",
    ]
    for case, outcomes in results:
        lines += ["", f"## {case.name}. {case.title}", "", f"Set-up: {case.setup}.", ""]
        lines += ["| claim | expected | got | holds |", "|---|---|---|---|"]
        for one in outcomes:
            verdict = "yes" if one.holds else "**no**"
            lines.append(f"| {one.claim} | {one.expected} | {one.got} | {verdict} |")
    lines += ["", "## Not yet run", "", "| case | why |", "|---|---|"]
    lines += [f"| {name} | {why} |" for name, why in NOT_RUN]
    return "\n".join(lines) + "\n"


def main(arguments: list[str]) -> int:
    """Writes the report."""
    parser = argparse.ArgumentParser("python -m dynosim.compare.cases", description=main.__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path("docs/validation.md"))
    path: Path = parser.parse_args(arguments).file
    results = list(run_cases())
    path.write_text(report_text(results), encoding="utf-8")
    failed = [one.claim for _, outcomes in results for one in outcomes if not one.holds]
    print(f"{path}: {len(failed)} claims do not hold" + "".join(f"\n  {one}" for one in failed))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
