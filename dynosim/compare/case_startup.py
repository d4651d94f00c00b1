"""Published case of start-up: what a faster start saves, and where weights should come from."""

import numpy as np

from dynosim.cluster import ClusterSpec, PoolSpec, simulate
from dynosim.cluster.control import ControlPlane, ProcessGenerator
from dynosim.compare.case_kit import Outcome, alike, equal, large_engine, near
from dynosim.records import FloatArray, RunResult, Trace
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import FixedModel
from dynosim.workers.startup import ReadSpec, StartupSpec, WeightsSpec, constant
from dynosim.workers.startup_presets import WEIGHTS, WeightsPlace

STARTS_S = (60.0, 10.0, 5.0)
"""Published: cold about a minute, restored about 10 s, with weights kept on the GPU below 5 s."""

PROMPT, PREFILL_MS, LIMIT_MS = 1024, 100.0, 1000.0
BEFORE_RPS, AFTER_RPS, STEP_S, END_S = 5.0, 35.0, 30.0, 150.0
WORKERS = 4  # that the step needs, of 10 requests/s each
REPLICAS = (1, 4, 16, 64)
WEIGHTS_GB = 65.5  # Qwen3-32B in 16 bits


def start_up() -> list[Outcome]:
    """Misses on one step of traffic by how long a start takes; time to N workers by source."""
    misses = [_misses(start_s) for start_s in STARTS_S]
    storage = [_last_ready_s(number, "pvc") for number in REPLICAS]
    peers = [_last_ready_s(number, "p2p") for number in REPLICAS]
    doublings = REPLICAS[-1].bit_length() - 1
    one_s = WEIGHTS_GB / (WEIGHTS["p2p"].peer_gb_s or 1.0)
    return [
        Outcome(
            "requests over 1 s to their first token, starts of 60, 10 and 5 s",
            "fewer each time (published: the order)",
            f"{misses[0]:,} > {misses[1]:,} > {misses[2]:,}",
            misses[0] > misses[1] > misses[2] > 0,
        ),
        near("64 workers on shared storage, to 1", 64.0, storage[-1] / storage[0], 0.001),
        near("... 16 to 1", 16.0, storage[2] / storage[0], 0.001),
        equal("the first worker with peers, to storage", 1.0, peers[0] / storage[0]),
        near("64 workers with peers: the first, and a copy for each doubling",
             storage[0] + doublings * one_s, peers[-1], 0.001, " s"),
        Outcome(
            "64 workers, to 1, with peers (published: about flat)",
            "under 3",
            f"{peers[-1] / peers[0]:.2f}",
            peers[-1] / peers[0] < 3,
        ),
    ]  # fmt: skip


def _misses(start_s: float) -> int:
    """Requests whose first token comes too late if workers are launched when the step comes."""
    pool = PoolSpec(
        engine=large_engine(max_num_batched_tokens=PROMPT),
        times=FixedModel(prefill_ms=PREFILL_MS, decode_ms=1.0),
        workers=1,
        startup=constant(start_s * 1e3),
    )
    routing = RoutingSpec(RouterSpec(pool.block_size, mode="least-loaded"))
    result = simulate(_step(), ClusterSpec(pools=(pool,), routing=routing), processes=[_scale_up])
    return int((_ttft_ms(result) > LIMIT_MS).sum())


def _ttft_ms(result: RunResult) -> FloatArray:
    log = result.requests
    return log.first_token_ms - log.arrival_ms


def _scale_up(control: ControlPlane) -> ProcessGenerator:
    yield control.env.timeout(STEP_S * 1e3)
    for _ in range(WORKERS - 1):
        control.launch()


def _step() -> Trace:
    """Equal prompts that share nothing, at a rate that jumps."""
    before = np.arange(0.0, STEP_S, 1.0 / BEFORE_RPS)
    after = np.arange(STEP_S, END_S, 1.0 / AFTER_RPS)
    arrival_ms = np.concatenate([before, after]) * 1e3
    count = len(arrival_ms)
    return Trace(
        arrival_ms=arrival_ms,
        input_tokens=np.full(count, PROMPT, np.int64),
        output_tokens=np.ones(count, np.int64),
        hash_ids=np.zeros(0, np.int64),
        hash_offsets=np.zeros(count + 1, np.int64),
        trace_block_size=16,
    )


def _last_ready_s(number: int, place: WeightsPlace) -> float:
    """When the last of so many workers has its weights, all launched at once."""
    preset = WEIGHTS[place]
    weights = WeightsSpec(
        num_bytes=int(WEIGHTS_GB * 1e9),
        storage=ReadSpec(node_gb_s=preset.node_gb_s, total_gb_s=preset.total_gb_s),
        peer_gb_s=preset.peer_gb_s,
        receivers_per_source=preset.receivers_per_source,
    )
    pool = PoolSpec(
        engine=large_engine(),
        times=FixedModel(prefill_ms=1.0, decode_ms=1.0),
        workers=number,
        startup=StartupSpec(weights=weights),
        start_cold=True,
    )
    late = alike(2, inputs=16, outputs=1, gap_ms=1e7)  # the run goes on until all are there
    return float(simulate(late, ClusterSpec(pools=(pool,))).workers.ready_ms.max()) / 1e3
