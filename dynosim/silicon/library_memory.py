"""What an engine keeps in a GPU's memory, by aiconfigurator's memory model.

Its answers are kept on disk, because importing the library takes a second. It is asked for 100 % of
the memory, so that one answer serves every memory fraction and tells weights from a cache that
would be negative.
"""

import json
from pathlib import Path
from typing import Any

from dynosim.silicon.aiconfigurator import quantisation_options
from dynosim.silicon.cache import cache_folder, cache_key, load_or_build
from dynosim.silicon.catalogue import core_folder, core_version, model_fingerprint
from dynosim.silicon.sharding import expert_sharding
from dynosim.timing.architecture import ModelEntry, ModelShape
from dynosim.timing.protocols import TimedEngine

_ESTIMATE_FORMAT = 1
"""Rises when the meaning of a kept answer changes; part of its cache key."""

_ESTIMATE_KEYS = (
    "gpu_bytes",
    "kv_bytes_per_token",
    "weights_bytes",
    "activations_bytes",
    "runtime_overhead_bytes",
    "comm_overhead_bytes",
)


def library_memory(
    engine: TimedEngine,
    entry: ModelEntry,
    shape: ModelShape,
    hardware: str,
    cache_dir: Path | str | None,
) -> dict[str, int] | None:
    """Bytes on one GPU, the cache's included; None where the library knows model or hardware not.

    `kv_cache_bytes` is below 0 where the rest does not fit.
    """
    folder = core_folder()
    if folder is None or not (folder / "systems" / f"{hardware}.yaml").is_file():
        return None
    answer = _kept_answer(entry, _question(engine, shape, hardware), cache_dir)
    if answer["gpu_bytes"] == 0:
        return None
    budget = int(answer["gpu_bytes"] * engine.gpu_memory_utilization)
    used = answer["weights_bytes"] + overhead_bytes(answer)
    return answer | {"kv_cache_bytes": budget - used}


def overhead_bytes(memory: dict[str, int]) -> int:
    """What is neither weights nor cache."""
    names = ("activations_bytes", "runtime_overhead_bytes", "comm_overhead_bytes")
    return sum(memory[name] for name in names)


def _question(engine: TimedEngine, shape: ModelShape, hardware: str) -> dict[str, Any]:
    """Keyword arguments of the library's estimate, all but the model."""
    return {
        "system": hardware,
        "backend": "vllm",
        "backend_version": "current",
        "max_num_tokens": engine.max_num_batched_tokens,
        "max_batch_size": engine.max_num_seqs,
        "tp_size": engine.tensor_parallel,
        **quantisation_options(shape, engine),
        **expert_sharding(shape, engine)[0],
    }


def _kept_answer(
    entry: ModelEntry, question: dict[str, Any], cache_dir: Path | str | None
) -> dict[str, int]:
    identity = {
        **question,
        "model": model_fingerprint(entry),
        "core": core_version(),
        "format": _ESTIMATE_FORMAT,
    }
    return load_or_build(
        cache_folder(cache_dir) / f"memory-{cache_key(identity)}.json",
        load=_load_answer,
        build=lambda: _ask(entry, question),
        save=_save_answer,
    )


def _load_answer(path: Path) -> dict[str, int]:
    data = json.loads(path.read_bytes())
    if not isinstance(data, dict):
        raise ValueError("not an object")
    return {key: int(data[key]) for key in _ESTIMATE_KEYS}


def _save_answer(value: dict[str, int], path: Path) -> None:
    path.write_text(json.dumps(value))


def _ask(entry: ModelEntry, question: dict[str, Any]) -> dict[str, int]:
    """The library's memory model; all zero where it has none for this engine.

    A GPU capacity far beyond any real one is passed, because the library gives no breakdown when
    nothing is left for the cache.
    """
    from dynosim.silicon.extract import model_folder, quiet

    nothing = dict.fromkeys(_ESTIMATE_KEYS, 0)
    try:
        with quiet(), model_folder(entry) as folder:
            from aiconfigurator_core.sdk import estimate_kv_cache
            from aiconfigurator_core.sdk.perf_database import get_database

            database = get_database(
                question["system"], question["backend"], question["backend_version"]
            )
            if database is None:
                return nothing
            capacity = int(database.system_spec["gpu"]["mem_capacity"])
            answer = estimate_kv_cache(
                folder,
                memory_fraction_kind="of_total",
                memory_fraction_value=1.0,
                gpu_memory_capacity_bytes_override=2**46,
                **question,
            )
    except (ValueError, KeyError, TypeError, AttributeError, AssertionError, RuntimeError):
        # Not covered (each release says so with another exception): our own estimate takes over.
        return nothing
    if answer.get("source") != "native" or not answer["memory_breakdown"]:
        return nothing
    parts = answer["memory_breakdown"]
    return {
        "gpu_bytes": capacity,
        "kv_bytes_per_token": int(answer["kv_size_per_token_bytes"]),
        **{key: int(parts[key]) for key in _ESTIMATE_KEYS[2:]},
    }
