"""AIConfigurator's published table of Qwen3-32B-FP8 on eight H200, and runs of the twin beside it.

Every row is an estimate of vLLM 0.12.0 with prompts of 4,000 and answers of 500 tokens.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dynosim.cluster import ClusterSpec, PoolSpec, RunOptions, simulate
from dynosim.compare.case_kit import Outcome, alike, large_engine
from dynosim.compare.mean_field import EqualLoad, steps_of
from dynosim.timing.formulas import LinearModel
from dynosim.timing.model import StepTimeModel

LOAD = EqualLoad(isl=4000, osl=500)
GPUS = 8
PROMPT = LOAD.isl  # tokens that the table lets a step compute: one prompt
BUDGET = 8192  # tokens that vLLM lets it compute


@dataclass(frozen=True, slots=True, kw_only=True)
class Aggregated:
    """A published row of equal workers."""

    name: str
    tensor_parallel: int
    batch: int  # in flight at each worker
    tok_s_gpu: float
    tok_s_user: float
    ttft_ms: float
    today_tok_s_gpu: float  # by aiconfigurator-core 0.12 with its own tables, one prompt a step
    latency_ms: float

    @property
    def workers(self) -> int:
        return GPUS // self.tensor_parallel

    @property
    def steps_ms(self) -> tuple[float, float]:
        """The mixed and the plain step that the row was made of."""
        return steps_of(
            LOAD,
            batch=self.batch,
            step_tokens=PROMPT,
            ttft_ms=self.ttft_ms,
            tokens_per_s=self.tok_s_gpu * self.tensor_parallel,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Disaggregated:
    """A published row of two pools, all replicas together."""

    name: str
    prefill_workers: int  # of two GPUs, one prompt at a time
    decode_workers: int
    decode_tensor_parallel: int
    batch: int  # in flight at each decode worker
    tok_s_gpu: float
    tok_s_user: float
    latency_ms: float

    @property
    def in_flight(self) -> int:
        return self.decode_workers * self.batch


AGGREGATED = (
    Aggregated(
        name="agg1", tensor_parallel=4, batch=32, tok_s_gpu=322.69, tok_s_user=41.78,
        ttft_ms=546.92, latency_ms=12490.03, today_tok_s_gpu=245.09,
    ),
    Aggregated(
        name="agg2", tensor_parallel=2, batch=14, tok_s_gpu=293.94, tok_s_user=44.43,
        ttft_ms=593.10, latency_ms=11823.67, today_tok_s_gpu=270.25,
    ),
    Aggregated(
        name="agg3", tensor_parallel=8, batch=40, tok_s_gpu=208.87, tok_s_user=42.90,
        ttft_ms=460.58, latency_ms=12093.52, today_tok_s_gpu=162.76,
    ),
)  # fmt: skip
DISAGGREGATED = (
    Disaggregated(
        name="disagg1", prefill_workers=2, decode_workers=1, decode_tensor_parallel=4, batch=76,
        tok_s_gpu=446.85, tok_s_user=53.58, latency_ms=9766.51,
    ),
    Disaggregated(
        name="disagg2", prefill_workers=2, decode_workers=2, decode_tensor_parallel=2, batch=72,
        tok_s_gpu=446.85, tok_s_user=41.14, latency_ms=12581.87,
    ),
    Disaggregated(
        name="disagg3", prefill_workers=2, decode_workers=4, decode_tensor_parallel=1, batch=18,
        tok_s_gpu=333.73, tok_s_user=40.22, latency_ms=12860.32,
    ),
)  # fmt: skip
PREFILL_MS = 453.18 / 1.8
"""A prompt at a prefill worker of two GPUs, by the published TTFT."""


@dataclass(frozen=True, slots=True)
class Steady:
    """What a closed loop does between its start and its end."""

    tok_s_gpu: float
    ttft_ms: float
    tpot_ms: float
    latency_ms: float

    @classmethod
    def of(cls, cluster: ClusterSpec, in_flight: int, rounds: int = 12) -> "Steady":
        """Of the middle half of so many requests per slot."""
        total = in_flight * rounds
        trace = alike(total, inputs=LOAD.isl, outputs=LOAD.osl)
        log = simulate(trace, cluster, RunOptions(concurrency=in_flight)).requests
        ends = np.argsort(log.finish_ms, kind="stable")
        first, last = total // 4, 3 * total // 4
        chosen = ends[first:last]
        lasted_ms = float(log.finish_ms[ends[last]] - log.finish_ms[ends[first]])
        decode_ms = log.finish_ms[chosen] - log.first_token_ms[chosen]
        return cls(
            tok_s_gpu=1e3 * len(chosen) * LOAD.osl / lasted_ms / GPUS,
            ttft_ms=float((log.first_token_ms[chosen] - log.arrival_ms[chosen]).mean()),
            tpot_ms=float(decode_ms.mean()) / (LOAD.osl - 1),
            latency_ms=float((log.finish_ms[chosen] - log.arrival_ms[chosen]).mean()),
        )


def equal_workers(row: Aggregated, times: StepTimeModel, budget: int) -> ClusterSpec:
    engine = large_engine(max_num_batched_tokens=budget)
    tensor_parallel = row.tensor_parallel
    pool = PoolSpec(
        engine=engine, times=times, workers=row.workers, gpus_per_worker=tensor_parallel
    )
    return ClusterSpec(pools=(pool,))


def linear(mixed_ms: float, decode_ms: float) -> LinearModel:
    """Steps that take so long with a prompt of the load and without."""
    return LinearModel(
        base_ms=decode_ms,
        per_prefill_token_ms=(mixed_ms - decode_ms) / LOAD.isl,
        per_decode_ms=0.0,
        per_context_token_ms=0.0,
    )


def in_order(claim: str, rows: Iterable[Aggregated], rates: Sequence[float]) -> Outcome:
    """Whether rows come as published, the best first."""
    got = ", ".join(f"{rate:.1f}" for rate in rates)
    return Outcome(
        claim,
        " > ".join(row.name for row in rows),
        f"{got} tok/s/gpu",
        all(one > other for one, other in pairwise(rates)),
    )
