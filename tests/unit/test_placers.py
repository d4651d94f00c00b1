"""Where requests go by load alone, as a naive reading of each mode has it; and prefill times.

A prefill step takes 10 ms and a decode step 5.
"""

from collections.abc import Callable
from random import Random

import pytest
from clusters import run_twin
from probing import Ask, trace_of

from dynosim.engine.spec import EngineSpec
from dynosim.records import RequestLog, Trace
from dynosim.router.knobs import RouterSpec
from dynosim.router.modes import LOAD_MODES
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import FixedModel, LinearModel
from dynosim.timing.prefill_estimate import StepTimeEstimator

SPEC = EngineSpec(num_gpu_blocks=101, max_model_len=80, block_size=4)
TIMING = FixedModel(prefill_ms=10.0, decode_ms=5.0)


def busy_trace(seed: int) -> Trace:
    """Sixty short requests that come faster than they go."""
    rng = Random(seed)
    asks, now_ms = [], 0.0
    for number in range(60):
        asks.append(Ask(now_ms, (number,), 0, output_tokens=rng.randint(1, 12)))
        now_ms += rng.choice([0.37, 1.7, 8.3, 40.0])
    return trace_of(asks, 4)


Choose = Callable[[list[int]], int]


def naive_choice(mode: str, seed: int, num_workers: int, num_gpus: int) -> Choose:
    """A mode as its documentation has it: the worker, given the requests in flight of each."""
    draw = Random(f"{seed}/router").random
    turn = iter(range(1000))

    def least(workers: range, load: list[int]) -> int:
        return min(workers, key=lambda worker: (load[worker], worker))

    def two(load: list[int]) -> int:
        first = int(draw() * num_workers)
        others = [worker for worker in range(num_workers) if worker != first]
        other = others[int(draw() * len(others))]
        return other if load[other] < load[first] else first

    def by_device(load: list[int]) -> int:
        gpus, cpus = range(num_gpus), range(num_gpus, num_workers)
        gpu_load = sum(load[worker] for worker in gpus) / (8.0 * len(gpus))
        cpu_load = sum(load[worker] for worker in cpus) / len(cpus)
        return least(gpus if gpu_load <= cpu_load else cpus, load)

    return {
        "round-robin": lambda load: next(turn) % num_workers,
        "random": lambda load: int(draw() * num_workers),
        "power-of-two": two,
        "least-loaded": lambda load: least(range(num_workers), load),
        "device-aware-weighted": by_device,
    }[mode]


def in_hand(log: RequestLog, index: int, num_workers: int) -> list[int]:
    """Requests of each worker when one arrives: those that came before it and have not ended."""
    now_ms = log.arrival_ms[index]
    load = [0] * num_workers
    for earlier in range(index):
        if log.finish_ms[earlier] > now_ms:
            load[log.worker_id[earlier]] += 1
    return load


@pytest.mark.parametrize("mode", LOAD_MODES)
@pytest.mark.parametrize("records_events", [False, True])  # the second makes it a router's task
@pytest.mark.parametrize("seed", [0, 1])
def test_a_mode_chooses_as_a_naive_one_would(seed: int, records_events: bool, mode: str) -> None:
    num_workers = 4
    routing = RoutingSpec(RouterSpec(4, mode=mode, seed=seed), records_events=records_events)
    log = run_twin(
        busy_trace(seed),
        engine=SPEC,
        timing=TIMING,
        num_workers=num_workers,
        routing=routing,
        cpu_workers=1,
        cpu_step_time_scale=3.0,
    ).requests
    choose = naive_choice(mode, seed, num_workers, num_workers - 1)
    wanted = [choose(in_hand(log, index, num_workers)) for index in range(60)]
    assert log.worker_id.tolist() == wanted
    assert len(set(wanted)) == num_workers


def test_without_a_routing_requests_go_round() -> None:
    log = run_twin(busy_trace(3), engine=SPEC, timing=TIMING, num_workers=3).requests
    assert log.worker_id.tolist() == [index % 3 for index in range(60)]


def test_a_prefill_takes_steps_of_its_own_full_ones_and_a_rest() -> None:
    """As if one by one: n tokens in steps of up to 8, each behind those that are there by then."""
    timing = LinearModel(
        base_ms=2.0, per_prefill_token_ms=0.5, per_decode_ms=9.0, per_context_token_ms=0.01
    )
    estimator = StepTimeEstimator(timing, 8)
    for new in range(30):
        for cached in (0, 5, 32):
            total_ms, there, left = 0.0, cached, new
            while left:
                step = min(left, 8)
                total_ms += 2.0 + 0.5 * step + 0.01 * (there + step)
                there, left = there + step, left - step
            assert estimator.predict_ms(new, cached) == pytest.approx(total_ms, abs=1e-12)
