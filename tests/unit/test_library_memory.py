"""What the library says of a GPU's memory is asked once, and kept by all that it depends on."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from model_configs import DENSE, EXPERTS
from timing_support import engine

from dynosim.silicon import library_memory, resolve_num_gpu_blocks
from dynosim.silicon.catalogue import core_folder


@pytest.fixture
def model(tmp_path: Path) -> Callable[[dict[str, Any]], str]:
    """Writes a config and gives its path."""

    def write(config: dict[str, Any]) -> str:
        folder = tmp_path / "model"
        folder.mkdir(exist_ok=True)
        (folder / "config.json").write_text(json.dumps(config))
        return str(folder)

    return write


@pytest.fixture
def estimates(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What the library's memory model is asked; it answers with round numbers."""
    core_folder()  # found while the true package is in its place
    questions: list[dict[str, Any]] = []

    def estimate(folder: str, **question: Any) -> dict[str, Any]:
        questions.append(question)
        parts = {
            "weights_bytes": 100.0,
            "activations_bytes": 20,
            "runtime_overhead_bytes": 3,
            "comm_overhead_bytes": 4,
            "cache_bytes": 5,
        }
        return {"source": "native", "kv_size_per_token_bytes": 7.0, "memory_breakdown": parts}

    sdk, database = ModuleType("sdk"), ModuleType("database")
    sdk.estimate_kv_cache = estimate  # type: ignore[attr-defined]
    spec = {"gpu": {"mem_capacity": 10_000.0}}
    database.get_database = lambda *_: SimpleNamespace(system_spec=spec)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "aiconfigurator_core", ModuleType("core"))
    monkeypatch.setitem(sys.modules, "aiconfigurator_core.sdk", sdk)
    monkeypatch.setitem(sys.modules, "aiconfigurator_core.sdk.perf_database", database)
    return questions


def memory_file(cache: Path, name: str, *, hardware: str = "h200_sxm", **changes: Any) -> Path:
    """The file that a deployment's memory is kept in."""
    resolve_num_gpu_blocks(
        engine(**({"block_size": 2} | changes)), model=name, hardware=hardware, cache_dir=cache
    )
    (path,) = cache.glob("memory-*.json")
    path.rename(cache / "seen")
    return path


@pytest.mark.parametrize(
    "changes",
    [
        {"hardware": "l40s"},
        {"tensor_parallel": 2},
        {"quantization": "fp8"},
        {"kv_cache_dtype": "fp8"},
        {"max_num_batched_tokens": 8193},
        {"max_num_seqs": 255},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_memory_is_kept_by_everything_that_it_depends_on(
    tmp_path: Path, model: Any, estimates: list[dict[str, Any]], changes: dict[str, Any]
) -> None:
    name = model(EXPERTS)
    assert memory_file(tmp_path, name) != memory_file(tmp_path, name, **changes)


@pytest.mark.parametrize(
    "changes", [{"gpu_memory_utilization": 0.5}, {"block_size": 1}, {"max_model_len": 9}], ids=str
)
def test_memory_is_kept_by_nothing_else(
    tmp_path: Path, model: Any, estimates: list[dict[str, Any]], changes: dict[str, Any]
) -> None:
    name = model(EXPERTS)
    assert memory_file(tmp_path, name) == memory_file(tmp_path, name, **changes)


def test_memory_is_kept_by_the_model_the_library_and_the_format(
    tmp_path: Path, model: Any, estimates: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [memory_file(tmp_path, model(DENSE)), memory_file(tmp_path, model(EXPERTS))]
    with monkeypatch.context() as patch:
        patch.setattr(library_memory, "core_version", lambda: "0.13")
        files.append(memory_file(tmp_path, model(DENSE)))
    with monkeypatch.context() as patch:
        patch.setattr(library_memory, "_ESTIMATE_FORMAT", 2)
        files.append(memory_file(tmp_path, model(DENSE)))
    assert len(set(files)) == 4


def test_the_library_is_asked_for_all_of_the_memory(
    tmp_path: Path, model: Any, estimates: list[dict[str, Any]]
) -> None:
    memory_file(tmp_path, model(EXPERTS), tensor_parallel=2, max_num_seqs=99)
    assert estimates == [
        {
            "system": "h200_sxm",
            "backend": "vllm",
            "backend_version": "current",
            "max_num_tokens": 8192,
            "max_batch_size": 99,
            "tp_size": 2,
            "kvcache_quant_mode": "bfloat16",
            "moe_tp_size": 2,
            "moe_ep_size": 1,
            "memory_fraction_kind": "of_total",
            "memory_fraction_value": 1.0,
            "gpu_memory_capacity_bytes_override": 2**46,
        }
    ]


def test_the_answer_makes_the_cache_for_every_memory_fraction(
    tmp_path: Path, model: Any, estimates: list[dict[str, Any]]
) -> None:
    name = model(DENSE)
    for fraction, cache_b in ((0.9, 9000 - 127), (0.55555, 5555 - 127)):
        capacity = resolve_num_gpu_blocks(
            engine(gpu_memory_utilization=fraction),
            model=name,
            hardware="h200_sxm",
            cache_dir=tmp_path,
        )
        assert capacity.source == "derived"
        assert capacity.breakdown == {
            "gpu_bytes": 10_000,
            "kv_bytes_per_token": 7,
            "weights_bytes": 100,
            "activations_bytes": 20,
            "runtime_overhead_bytes": 3,
            "comm_overhead_bytes": 4,
            "kv_cache_bytes": cache_b,
        }
        assert capacity.num_gpu_blocks == cache_b // (7 * 16)
    assert len(estimates) == 1


def test_what_the_library_does_not_cover_we_estimate_ourselves(
    tmp_path: Path, model: Any, estimates: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise KeyError("no such engine")

    monkeypatch.setattr(sys.modules["aiconfigurator_core.sdk"], "estimate_kv_cache", refuse)
    capacity = resolve_num_gpu_blocks(
        engine(), model=model(DENSE), hardware="h200_sxm", cache_dir=tmp_path
    )
    assert capacity.source == "estimated"
    assert capacity.breakdown["gpu_bytes"] == int(140.4 * 1024**3)
    (kept,) = tmp_path.glob("memory-*.json")
    assert set(json.loads(kept.read_text()).values()) == {0}  # is not asked again
