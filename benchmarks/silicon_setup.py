"""How the engines of the silicon sample were started and loaded, as far as that is published.

Two families of rows. Those with 1,024 or 8,192 tokens are of InferenceMAX (now InferenceX): its
scripts state the server's flags per model and GPU (benchmarks/70b_fp8_h100_slurm.sh,
gptoss_fp4_h200.sh, single_node/minimaxm2.5_fp8_h200.sh, kimik2.5_int4_h200.sh and their like), and
its client: ten requests per unit of concurrency, lengths evenly between 0.8 and 1 of the nominal,
temperature 0. The others were measured by AIConfigurator's authors with Dynamo's vLLM image and
exact lengths; the requests say nothing of sampling.
"""

from dataclasses import dataclass
from typing import Any

from silicon_rows import SampleRow

REQUESTS_PER_CONCURRENCY = 10
_SHORTEST = 0.8  # of the nominal length

_SERVED_AS = {
    "meta-llama/Llama-3.1-70B": "nvidia/Llama-3.1-70B-Instruct-FP8",
    "nvidia/Llama-3.1-8B-Instruct-FP8": "meta-llama/Meta-Llama-3.1-8B",
}
"""Checkpoints by a name whose shape is known."""


@dataclass(frozen=True, slots=True)
class Setup:
    """One row's run."""

    model: str
    engine: dict[str, Any]
    is_inferencemax: bool
    weights: str | None  # format in place of the checkpoint's own


def setup_of(row: SampleRow) -> Setup:
    """The engine's keys of one row."""
    is_inferencemax = not row.source.startswith("source_file=/")
    model = _SERVED_AS.get(row.model, row.model)
    weights = "fp8" if row.precision == "fp8" and _is_plain(model) else None
    engine: dict[str, Any] = {
        "version": row.version,
        "tensor_parallel": row.tensor_parallel,
        "enable_prefix_caching": False,  # every prompt is another
        "max_num_batched_tokens": 8192,
        "max_model_len": row.isl + row.osl + 200,
    }
    if row.expert_parallel > 1:
        engine["expert_parallel"] = True
    if row.ranks > 1:
        engine["data_parallel"] = row.ranks
    if weights is not None:
        engine["quantization"] = weights
    if is_inferencemax:
        engine |= _inferencemax_flags(row)
    engine["max_num_seqs"] = max(engine.get("max_num_seqs", 256), row.concurrency)
    if engine["max_num_seqs"] > engine["max_num_batched_tokens"]:
        engine["max_num_batched_tokens"] = engine["max_num_seqs"]
    return Setup(model, engine, is_inferencemax, weights)


def _is_plain(model: str) -> bool:
    """Whether the name's own checkpoint has 16 bit."""
    return model in ("Qwen/Qwen3-32B", "meta-llama/Meta-Llama-3.1-8B")


def _inferencemax_flags(row: SampleRow) -> dict[str, Any]:
    stated = {"gpu_memory_utilization": 0.9, "max_num_seqs": row.concurrency}
    if "Llama" in row.model:
        return {**stated, "kv_cache_dtype": "fp8", "async_scheduling": True}
    if "gpt-oss" in row.model:
        return {**stated, "async_scheduling": True}
    if "Kimi" in row.model:
        return {**stated, "gpu_memory_utilization": 0.95}
    share = 0.9 if row.system == "h100_sxm" else 0.95  # MiniMax
    return {"gpu_memory_utilization": share}


def run_data(row: SampleRow, has_sampling: bool = False) -> dict[str, Any]:
    """The run file of one row. `has_sampling`: whether the schema has `workload.sampling`."""
    setup = setup_of(row)
    workload: dict[str, Any] = {
        "synthetic": {
            "requests": REQUESTS_PER_CONCURRENCY * row.concurrency,
            "isl": _length(row.isl, setup),
            "osl": _length(row.osl, setup),
            "arrival": "closed",
        },
        "concurrency": row.concurrency,
    }
    if has_sampling:
        workload["sampling"] = "greedy" if setup.is_inferencemax else "model"
    return {
        "model": setup.model,
        "hardware": row.system,
        "workload": workload,
        "engine": setup.engine,
        "timing": {"kind": "aiconfigurator"},
    }


def _length(nominal: int, setup: Setup) -> Any:
    """A length in tokens; of InferenceMAX all but evenly distributed between its bounds."""
    if not setup.is_inferencemax:
        return nominal
    low = int(nominal * _SHORTEST)
    middle, width = (low + nominal) / 2, float(nominal - low)
    return {"dist": "normal", "mean": middle, "std": width, "min": low, "max": nominal}


def mean_lengths(row: SampleRow) -> tuple[int, int]:
    """Mean prompt and answer, in tokens."""
    if not setup_of(row).is_inferencemax:
        return row.isl, row.osl
    return round(row.isl * (1 + _SHORTEST) / 2), round(row.osl * (1 + _SHORTEST) / 2)
