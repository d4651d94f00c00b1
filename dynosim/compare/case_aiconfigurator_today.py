"""V11: the same engines by the tables of today, and the one line of that page that was measured."""

from dataclasses import dataclass
from functools import cache

from dynosim.cluster import RunOptions, simulate
from dynosim.compare.aiconfigurator_rows import (
    AGGREGATED,
    BUDGET,
    LOAD,
    PROMPT,
    Aggregated,
    Steady,
    equal_workers,
    in_order,
)
from dynosim.compare.case_kit import Outcome, alike, near
from dynosim.silicon.aiconfigurator import aiconfigurator_model
from dynosim.timing.graphs import vllm_graph_sizes
from dynosim.timing.model import StepTimeModel


@dataclass(frozen=True, slots=True, kw_only=True)
class _Served:
    """An engine as its step times depend on it."""

    version: str | None
    tensor_parallel: int
    max_num_batched_tokens: int = BUDGET
    data_parallel: int = 1
    expert_parallel: bool = False
    block_size: int = 16
    num_gpu_blocks: int | str = "auto"
    max_num_seqs: int = 256
    max_model_len: int | None = None
    gpu_memory_utilization: float | None = None
    quantization: str | None = None
    kv_cache_dtype: str | None = "auto"
    async_scheduling: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """Tables with nothing on the way to the client, and the host as ever."""

    trust_tables: bool
    step_overhead_ms: float | None = None
    backend: str | None = "vllm"
    backend_version: str | None = None
    ingress_ms: float | None = 0.0
    egress_ms: float | None = 0.0


@cache
def _silicon(row: Aggregated, version: str | None, *, trusted: bool) -> StepTimeModel:
    return aiconfigurator_model(
        _Asked(trust_tables=trusted),
        model="Qwen/Qwen3-32B-FP8",
        hardware="h200_sxm",
        engine=_Served(version=version, tensor_parallel=row.tensor_parallel),
        graph_sizes=vllm_graph_sizes(256),
    )


def tables_of_today() -> list[Outcome]:
    """Trusted as they are, then as the twin takes them, then beside what was measured."""
    rates = {}
    for trusted, version in ((True, None), (False, "0.12.0")):
        rates[trusted] = [
            Steady.of(
                equal_workers(row, _silicon(row, version, trusted=trusted), BUDGET),
                row.batch * row.workers,
            ).tok_s_gpu
            for row in AGGREGATED
        ]
    first, second, third = rates[True]
    outcomes = [
        near(f"{row.name}: trusted tables, tok/s/gpu, beside the library's own formula",
             row.today_tok_s_gpu, rate, 0.06)
        for row, rate in zip(AGGREGATED, rates[True], strict=True)
    ]  # fmt: skip
    outcomes.append(
        Outcome(
            "trusted tables: their products break the order",
            "agg2 > agg1 > agg3",
            f"{first:.1f}, {second:.1f}, {third:.1f} tok/s/gpu",
            second > first > third,
        )
    )
    claim = "as the twin takes them, vLLM 0.12.0 (published: 322.69, 293.94, 208.87)"
    outcomes.append(in_order(claim, AGGREGATED, rates[False]))
    return outcomes + _beside_the_measured()


_TTFT_MS, _TPOT_MS, _RPS = 209.0, 15.06, 6.9
"""Measured: TP2 x 4, 56 in flight, 800 requests."""


def _beside_the_measured() -> list[Outcome]:
    """The run behind the page's one measured line, by the step times as the twin takes them."""
    row = AGGREGATED[1]
    times = _silicon(row, "0.12.0", trusted=False)
    in_flight = row.batch * row.workers
    budgets = (PROMPT + row.batch - 1, BUDGET)
    alone, pairs = (Steady.of(equal_workers(row, times, one), in_flight).ttft_ms for one in budgets)
    log = simulate(
        alike(800, inputs=LOAD.isl, outputs=LOAD.osl),
        equal_workers(row, times, BUDGET),
        RunOptions(concurrency=in_flight),
    ).requests
    tpot_ms = float((log.finish_ms - log.first_token_ms).mean()) / (LOAD.osl - 1)
    return [
        near("measured ITL, TP2 x 4", _TPOT_MS, tpot_ms, 0.1, " ms"),
        near("measured requests/s, TP2 x 4", _RPS, 8e5 / float(log.finish_ms.max()), 0.1),
        Outcome(
            "measured TTFT, between steady states of one prompt a step and of pairs",
            f"{_TTFT_MS:g} ms",
            f"{alone:.0f} to {pairs:.0f} ms",
            alone <= _TTFT_MS <= pairs,
        ),
    ]
