"""Reads lists of experiments: set-up, workload by its specification, means and percentiles.

A JSON list of objects. Each has `id`, `model`, `hardware`, `tensor_parallel`, `workload`
(`system_prompts, users_per_prompt, system_tokens, question_tokens, output_tokens`,
`stages_rps_s`: pairs of rate and seconds; perhaps `order`, `template_tokens`, `client_timeout_ms`,
`warm_up_requests` or `warm_up_s`) and `measured_ms`
(`e2e_mean, ttft_p90, itl_mean, ...`). It may have arguments of the engine under vLLM's names,
`kv_blocks_of_16`, `engine_version`, `unfit` (why it should be left out) and `model_config` (for a
model that nobody knows by its name). An argument that is not known is refused: nothing is left out
in silence.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynosim.errors import TraceError
from dynosim.silicon.hardware import usual_name
from dynosim.verify.finding import read_document
from dynosim.verify.verdict import E2E, ITL, TPOT, TTFT

BLOCK_TOKENS = 16
_METRICS = {"e2e": E2E, "latency": E2E, "ttft": TTFT, "tpot": TPOT, "itl": ITL}
_MEASURED = re.compile(r"([a-z0-9]+)_(mean|median|p\d\d)")
_ENGINE_KEYS = {
    "tensor_parallel": "tensor_parallel",
    "tensor_parallel_size": "tensor_parallel",
    "data_parallel": "data_parallel",
    "data_parallel_size": "data_parallel",
    "expert_parallel": "expert_parallel",
    "enable_expert_parallel": "expert_parallel",
    "engine_version": "version",
    "vllm_version": "version",
    "version": "version",
    "max_num_batched_tokens": "max_num_batched_tokens",
    "max_num_seqs": "max_num_seqs",
    "max_model_len": "max_model_len",
    "gpu_memory_utilization": "gpu_memory_utilization",
    "block_size": "block_size",
    "quantization": "quantization",
    "kv_cache_dtype": "kv_cache_dtype",
    "enable_prefix_caching": "enable_prefix_caching",
    "enable_chunked_prefill": "enable_chunked_prefill",
    "async_scheduling": "async_scheduling",
}
"""Arguments of the engine by how others call them; values that are null are as good as left out."""
_OTHER_KEYS = (
    "id", "name", "model", "hardware", "workload", "measured_ms", "kv_blocks_of_16", "unfit",
    "model_config",
)  # fmt: skip
_POOL_KEYS = (
    "system_prompts", "users_per_prompt", "system_tokens", "question_tokens", "output_tokens",
    "order",
)  # fmt: skip
_LENGTHS = ("system_tokens", "question_tokens", "output_tokens")
_CLIENT_KEYS = ("client_timeout_ms", "warm_up_requests", "warm_up_s")
_WORKLOAD_KEYS = (*_POOL_KEYS, *_CLIENT_KEYS, "stages_rps_s", "template_tokens")


@dataclass(frozen=True, slots=True)
class Experiment:
    """One experiment. `run_data` is a run file without `timing`; `model` is a name or null."""

    name: str
    source: str  # file and experiment, for messages
    run_data: Mapping[str, Any]
    model_config: Mapping[str, Any] | None
    measured: Mapping[str, float]  # by the report's names
    blocks: int | None  # of the engine's own block size
    longest_request_tokens: int
    unfit: str


def read_experiments(path: Path) -> list[Experiment | TraceError]:
    """Every experiment of a list, or what is wrong with it. Raises: TraceError."""
    rows = read_document(path)
    found: list[Experiment | TraceError] = []
    for index, row in enumerate(rows):
        try:
            found.append(_experiment(f"{path}", index, row))
        except TraceError as error:
            found.append(error)
    names = [one.name for one in found if isinstance(one, Experiment)]
    twice = {name for name in names if names.count(name) > 1}
    return [
        TraceError("is there twice: give each experiment an id of its own", path=one.source)
        if isinstance(one, Experiment) and one.name in twice
        else one
        for one in found
    ]


def _experiment(path: str, index: int, row: Any) -> Experiment:
    name = str(row.get("id", row.get("name", index))) if isinstance(row, dict) else str(index)
    reader = _Reader(f"{path}:experiment {name}")
    if not isinstance(row, dict):
        raise reader.fail("", "expected an object with keys")
    reader.check_known(row, (*_OTHER_KEYS, *_ENGINE_KEYS), "")
    for key in ("model", "hardware"):
        if not isinstance(row.get(key), str):
            raise reader.fail(key, "missing; add a name")
    engine = {
        ours: row[theirs] for theirs, ours in _ENGINE_KEYS.items() if row.get(theirs) is not None
    }
    workload = row.get("workload")
    if not isinstance(workload, dict):
        raise reader.fail("workload", "missing; add what was offered")
    reader.check_known(workload, _WORKLOAD_KEYS, "workload.")
    config = row.get("model_config")
    if config is not None and not isinstance(config, dict):
        raise reader.fail("model_config", "expected the object of a Hugging Face config.json")
    block_size = engine.get("block_size", BLOCK_TOKENS)
    blocks = row.get("kv_blocks_of_16")
    if blocks is not None:
        blocks = reader.count("kv_blocks_of_16", blocks) * BLOCK_TOKENS // block_size
    template = workload.get("template_tokens") or 0
    return Experiment(
        name=name,
        source=reader.source,
        run_data={
            "name": name,
            "model": row["model"],
            "hardware": usual_name(row["hardware"]),
            "engine": engine,
            "workload": {
                "pool": {key: workload[key] for key in _POOL_KEYS if key in workload},
                "stages": reader.stages(workload.get("stages_rps_s")),
                "template_tokens": template,
                **{key: workload[key] for key in _CLIENT_KEYS if workload.get(key) is not None},
            },
        },
        model_config=config,
        measured=reader.measured(row.get("measured_ms")),
        blocks=blocks,
        longest_request_tokens=template
        + sum(reader.count(f"workload.{key}", workload.get(key)) for key in _LENGTHS),
        unfit=str(row.get("unfit") or ""),
    )


class _Reader:
    """Checks one experiment's fields."""

    def __init__(self, source: str) -> None:
        self.source = source

    def fail(self, key: str, message: str) -> TraceError:
        return TraceError(message, path=self.source, field=key)

    def check_known(self, row: Mapping[str, Any], known: tuple[str, ...], above: str) -> None:
        for key, value in row.items():
            if key not in known and value is not None:
                raise self.fail(
                    f"{above}{key}",
                    f"unknown, and may change what is measured (remove it, or use one of"
                    f" {', '.join(sorted(known))})",
                )

    def count(self, key: str, value: Any) -> int:
        if type(value) is not int or value < 1:
            raise self.fail(key, f"expected a whole number >= 1, got {value!r}")
        return value

    def stages(self, stages: Any) -> list[dict[str, float]]:
        key = "workload.stages_rps_s"
        if not isinstance(stages, list) or not stages:
            raise self.fail(key, "expected a list of pairs [requests a second, seconds]")
        found = []
        for index, stage in enumerate(stages):
            if not isinstance(stage, list) or len(stage) != 2:
                raise self.fail(f"{key}[{index}]", f"expected [rate, seconds], got {stage!r}")
            rate, duration = (self._positive(f"{key}[{index}]", one) for one in stage)
            found.append({"rate_rps": rate, "duration_s": duration})
        return found

    def measured(self, values: Any) -> dict[str, float]:
        if not isinstance(values, dict) or not values:
            raise self.fail("measured_ms", "expected keys such as e2e_mean and ttft_p90")
        found = {}
        for key, value in values.items():
            match = _MEASURED.fullmatch(key)
            if match is None or match[1] not in _METRICS:
                raise self.fail(
                    f"measured_ms.{key}",
                    f"unknown (one of {', '.join(_METRICS)}, with _mean, _median, _p90 or _p99)",
                )
            if value is not None:
                statistic = "median" if match[2] == "p50" else match[2]
                name = f"{statistic}_{_METRICS[match[1]]}"
                found[name] = self._positive(f"measured_ms.{key}", value)
        return found

    def _positive(self, key: str, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 < value < float("inf"):
            raise self.fail(key, f"expected a number above 0, got {value!r}")
        return float(value)
