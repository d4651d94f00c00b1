"""AIConfigurator's own estimate of one row: its closed form of continuous batching.

`run_agg` of the installed library at its default version of the tables, with the quantisation, the
cache's format and the parallelism of our run. It is told how many prompt tokens a step takes with
decodes; both readings that its sources offer are asked for: the server's budget of 8,192 tokens,
and one whole prompt (`_mix_step_gen_tokens` of its vLLM backend: one prompt in progress a step).
"""

import logging
from dataclasses import dataclass
from typing import Any

from silicon_rows import SampleRow
from silicon_setup import Setup

BUDGET_TOKENS = 8192


@dataclass(frozen=True, slots=True)
class LibraryEstimate:
    """Mean TTFT and TPOT in ms."""

    ttft_ms: float
    tpot_ms: float


class Library:
    """The library, asked; keeps what is slow to make."""

    def __init__(self) -> None:
        self._models: dict[tuple[Any, ...], Any] = {}

    def estimate(
        self, row: SampleRow, setup: Setup, lengths: tuple[int, int], ctx_tokens: int
    ) -> LibraryEstimate | None:
        """Of a row with prompts and answers of `lengths`; None where it has no answer."""
        previous = logging.root.manager.disable
        logging.disable(logging.CRITICAL)
        try:
            return self._asked(row, setup, lengths, ctx_tokens)
        except Exception:  # the library raises its own, ValueError, KeyError, AssertionError
            return None
        finally:
            logging.disable(previous)

    def _asked(
        self, row: SampleRow, setup: Setup, lengths: tuple[int, int], ctx_tokens: int
    ) -> LibraryEstimate:
        from aiconfigurator_core.sdk.backends.factory import get_backend
        from aiconfigurator_core.sdk.config import RuntimeConfig
        from aiconfigurator_core.sdk.perf_database import get_database

        database = get_database(row.system, "vllm", "current")
        runtime = RuntimeConfig(
            batch_size=max(1, row.concurrency // row.ranks), isl=lengths[0], osl=lengths[1]
        )
        backend = get_backend("vllm")
        summary = backend.run_agg(self._model(row, setup), database, runtime, ctx_tokens=ctx_tokens)
        answer = summary.get_result_dict()
        return LibraryEstimate(float(answer["ttft"]), float(answer["tpot"]))

    def _model(self, row: SampleRow, setup: Setup) -> Any:
        key = (*row.deployment, row.ranks, setup.model, setup.engine.get("kv_cache_dtype"))
        if key not in self._models:
            self._models[key] = _compiled(row, setup)
        return self._models[key]


def _compiled(row: SampleRow, setup: Setup) -> Any:
    from aiconfigurator_core.sdk.config_builders import build_model_config
    from aiconfigurator_core.sdk.models import get_model

    from dynosim.silicon.catalogue import model_entry
    from dynosim.timing.architecture import model_shape

    entry = model_entry(setup.model)
    has_experts = model_shape(entry).experts > 0
    config = build_model_config(
        tp_size=row.tensor_parallel,
        pp_size=1,
        attention_dp_size=row.ranks,
        moe_tp_size=row.expert_tensor_parallel if has_experts else 1,
        moe_ep_size=row.expert_parallel if has_experts else 1,
        gemm_quant_mode=setup.weights,
        kvcache_quant_mode="fp8" if setup.engine.get("kv_cache_dtype") == "fp8" else "bfloat16",
    )
    return get_model(entry.name, config, "vllm")
