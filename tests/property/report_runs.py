"""Random small runs of all kinds, for tests of what is told about them."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from naive_run import Run, plain_run
from naive_serving import Served, serve_again
from strategies import random_trace

from dynosim.build.engine import Prepared, prepare
from dynosim.cluster.control import Process
from dynosim.config import RunConfig
from dynosim.experiment.run import RunOutcome, run
from dynosim.records import NO_REQUEST, Trace
from dynosim.timing.fitted import Fit, FittedModel, FittedParameters, MeasuredRange

FORMULAS: tuple[dict[str, Any], ...] = (
    {"kind": "fixed", "prefill_ms": 20.0, "decode_ms": 7.5},
    {"kind": "polynomial"},
    {"kind": "linear", "base_ms": 5.0, "per_prefill_token_ms": 0.05, "per_decode_ms": 0.1,
     "per_context_token_ms": 0.0005},
)  # fmt: skip
PRESSURE: dict[str, Any] = {
    "policy": "priority",
    "max_num_seqs": 16,
    "max_num_batched_tokens": 256,
    "long_prefill_token_threshold": 0,
}


@dataclass(frozen=True)
class Told:
    """A run with its report, and the same served again step by step."""

    outcome: RunOutcome
    served: Served
    run: Run


def outcome_of(seed: int) -> RunOutcome:
    """The run of a seed; every law of conservation has been checked on it."""
    config, trace, prepared = _drawn(seed)
    return run(config, trace=trace, prepared=prepared, check=True)


def told_run(seed: int, *, is_exact: bool = False, processes: Sequence[Process] = ()) -> Told:
    """The run of a seed, in bulk or in single steps, and the same served again."""
    config, trace, prepared = _drawn(seed)
    outcome = run(
        config,
        trace=trace,
        prepared=prepared,
        check=True,
        exact_stepping=is_exact,
        processes=processes,
    )
    cluster = config.cluster
    served = serve_again(
        outcome.result,
        trace,
        engine=prepared.engine,
        timing=prepared.timing,
        cpu_workers=cluster.cpu_workers,
        cpu_step_time_scale=cluster.cpu_step_time_scale,
        max_sim_time_ms=cluster.max_sim_time_ms,
    )
    return Told(outcome, served, plain_run(outcome.result, trace, served))


def _drawn(seed: int) -> tuple[RunConfig, Trace, Prepared]:
    """A configuration, a workload, and an engine with its step times."""
    rng = random.Random(seed)
    if rng.random() < 0.3:
        trace, pressure = pressing_trace(rng), PRESSURE
    else:
        trace, pressure = with_sessions(rng, random_trace(rng)), {}
    config = random_config(rng, trace, **pressure)
    if trace.delay_ms is not None and may_refuse(config, trace):
        # A turn that a refusal brings about at once comes after all others of that moment.
        trace = replace(trace, delay_ms=trace.delay_ms + 1.0)
    prepared = prepare(config)
    if rng.random() < 0.3:
        prepared = replace(prepared, timing=random_fit(rng))
    return config, trace, prepared


def pressing_trace(rng: random.Random) -> Trace:
    """Short prompts with longer answers: where memory is short, many lose it.

    The later, the more urgent: with priorities, those who run first are the first to lose.
    """
    count = rng.randint(8, 20)
    arrival = np.sort([rng.uniform(0, 200) for _ in range(count)])
    return Trace(
        arrival_ms=arrival - arrival[0],
        input_tokens=np.array([rng.randint(2, 24) for _ in range(count)]),
        output_tokens=np.array([rng.choice([1, 5, rng.randint(8, 60)]) for _ in range(count)]),
        hash_ids=np.zeros(0, np.int64),
        hash_offsets=np.zeros(count + 1, np.int64),
        trace_block_size=16,
        priority=np.arange(count)[::-1] // 3,
    )


def with_sessions(rng: random.Random, trace: Trace) -> Trace:
    """Sometimes with names, sometimes with turns that wait for the one before."""
    count = len(trace)
    if rng.random() < 0.4:
        trace = replace(trace, request_ids=tuple(f"r{index}" for index in range(count)))
    if rng.random() < 0.7:
        return trace
    previous = np.full(count, NO_REQUEST)
    for index in range(1, count):
        free = sorted(set(range(index)) - set(previous.tolist()))
        if rng.random() < 0.6:
            previous[index] = rng.choice(free)
    sessions = list(range(count))
    for index in range(count):
        if previous[index] != NO_REQUEST:
            sessions[index] = sessions[int(previous[index])]
    return replace(
        trace,
        previous_turn=previous,
        delay_ms=np.array([rng.choice([0.0, rng.uniform(1, 200)]) for _ in range(count)]),
        session_ids=tuple(f"s{session}" for session in sessions),
        skipped_lines=rng.choice([0, 3]),
        assumed_lengths=rng.choice([0, 2]),
    )


def random_config(rng: random.Random, trace: Trace, **engine_keys: Any) -> RunConfig:
    """Any engine, cluster, router and SLA; one in four refuses or clips some requests."""
    block_size = rng.choice([2, 4, 8, 16, 24])
    longest = int((trace.input_tokens + trace.output_tokens).max())
    if rng.random() < 0.25:
        longest = max(2, longest * 2 // 3)
    needed = -(-longest // block_size)
    seats = rng.choice([2, 4, 8, 16])
    engine: dict[str, Any] = {
        "block_size": block_size,
        "tensor_parallel": rng.choice([1, 2, 3]),
        "num_gpu_blocks": needed + 1 + rng.choice([0, 0, 2, needed, 20 * needed]),
        "max_model_len": longest,
        "max_num_seqs": seats,
        "max_num_batched_tokens": max(seats, rng.choice([0, 16, 64, 256])),
        "enable_prefix_caching": rng.random() < 0.8,
        "long_prefill_token_threshold": rng.choice([0, 0, 0, min(8, longest)]),
        "policy": rng.choice(["fcfs", "priority"]),
        "async_scheduling": rng.random() < 0.5,
        **engine_keys,
    }
    workers = rng.choice([1, 2, 3])
    if engine_keys:
        workers, engine["num_gpu_blocks"] = 1, needed + 1
    cluster: dict[str, Any] = {
        "workers": workers,
        "cpu_workers": rng.choice([0, 0, 0, min(1, workers - 1)]),
        "cpu_step_time_scale": 2.5,
        "max_sim_time_ms": rng.choice([None, None, rng.uniform(1, 3000)]),
    }
    return RunConfig.model_validate(
        {
            "workload": {
                "synthetic": {"requests": 1, "isl": 1, "osl": 1, "rate_rps": 1},
                "concurrency": rng.choice([None, None, None, 1, 3, 8]),
            },
            "engine": engine,
            "timing": rng.choice(FORMULAS),
            "cluster": cluster,
            "router": random_router(rng),
            "sla": random_sla(rng),
            "seed": rng.randint(0, 9),
        }
    )


def may_refuse(config: RunConfig, trace: Trace) -> bool:
    """Whether a request may end the moment it comes."""
    longest = config.engine.max_model_len
    is_too_long = longest is not None and bool((trace.input_tokens >= longest).any())
    return is_too_long or bool(config.router.policy_classes)


def random_sla(rng: random.Random) -> dict[str, float] | None:
    if rng.random() < 0.3:
        return None
    bounds = {"ttft_ms": [30.0, 300.0], "itl_ms": [6.0, 12.0], "e2e_ms": [200.0, 2000.0]}
    return {name: rng.choice(values) for name, values in bounds.items() if rng.random() < 0.5}


def random_router(rng: random.Random) -> dict[str, Any]:
    """Load modes and kv, with and without a queue, limits, late events and several frontends.

    Who waits in a router leaves it first come, first served, so that the order of what is handed
    over at one moment follows from the requests.
    """
    modes = ["round-robin", "random", "power-of-two", "least-loaded", "device-aware-weighted"]
    router: dict[str, Any] = {"mode": rng.choice(["kv", "kv", "kv", rng.choice(modes)])}
    kind = rng.choice(["plain", "queue", "limits", "frontends"])
    if kind == "queue":
        router["queue_threshold"] = rng.choice([0.0, 0.2, 1.0])
    elif kind == "limits":
        router["policy_classes"] = [
            {"name": "all", "prefill_busy_threshold": 8, "request_queue_limit_per_worker": 2}
        ]
        router["active_prefill_tokens_threshold"] = rng.choice([None, 200])
    elif kind == "frontends":
        router["frontends"] = 2
    if router["mode"] == "kv":
        router["index"] = rng.choice(["extents", "compressed"])
        router["temperature"] = rng.choice([0.0, 0.3])
        events = rng.choice([{}, {}, {"delay_ms": 7.3}, {"loss": 0.2, "jitter_ms": 9.0}])
        router["events"] = events
    return router


def random_fit(rng: random.Random) -> FittedModel:
    """A fitted model with ranges, some of its steps outside, and time spent outside engines."""
    parameters = FittedParameters(
        overhead_ms=2.0,
        weights_ms=3.0,
        per_token_ms=0.04,
        per_decode_ms=0.02,
        per_context_token_ms=5e-4,
        per_pair_ms=1e-6,
        ingress_ms=rng.choice([0.0, 1.75]),
        egress_ms=rng.choice([0.0, 3.25]),
    )
    limits = {"prefill_tokens": 40, "prefix_tokens": 50.0, "num_decodes": 3, "mean_context": 120.0}
    known = {name: limit for name, limit in limits.items() if rng.random() < 0.7}
    return FittedModel(Fit(parameters=parameters, measured=MeasuredRange(**known)))
