"""What is kept on disk is found again by all that it depends on, and by nothing else."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from timing_support import engine, silicon_table, timing

from dynosim.silicon import engine_tables
from dynosim.silicon.aiconfigurator import aiconfigurator_model
from dynosim.silicon.cache import cache_folder, cache_key, load_or_build
from dynosim.silicon.extract import SiliconQuery

DENSE = {
    "num_hidden_layers": 2,
    "hidden_size": 512,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "intermediate_size": 1024,
    "vocab_size": 1000,
}
EXPERTS = DENSE | {"num_experts": 8, "num_experts_per_tok": 2}


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
def asked(monkeypatch: pytest.MonkeyPatch) -> list[SiliconQuery]:
    """What the library is asked for a table; it answers with a made-up one."""
    queries: list[SiliconQuery] = []

    def answer(query: SiliconQuery) -> Any:
        queries.append(query)
        return silicon_table()

    monkeypatch.setattr("dynosim.silicon.extract.extract_table", answer)
    return queries


def table_file(cache: Path, name: str, **changes: Any) -> Path:
    """The file that a deployment's table is kept in."""
    settings = {
        "backend": None,
        "backend_version": None,
        "step_overhead_ms": None,
        "trust_tables": False,
    }
    keys = {key: changes.pop(key) for key in settings if key in changes}
    hardware = changes.pop("hardware", "h200_sxm")
    aiconfigurator_model(
        timing("aiconfigurator", **(settings | keys)),
        model=name,
        hardware=hardware,
        engine=engine(**changes),
        cache_dir=cache,
    )
    # Experts of other versions are looked at, too: the first table is that of the version in use.
    path, *others = sorted(cache.glob("silicon-*.npz"), key=lambda one: one.stat().st_mtime_ns)
    for one in (path, *others):
        one.rename(cache / "seen")
    return path


TABLE_INPUTS: list[dict[str, Any]] = [
    {"hardware": "h100_sxm"},
    {"backend": "sglang"},
    {"backend_version": "0.14.0"},
    {"version": "0.14.0"},
    {"trust_tables": True},
    {"tensor_parallel": 2},
    {"tensor_parallel": 4},
    {"quantization": "fp8"},
    {"kv_cache_dtype": "fp8"},
    {"max_num_batched_tokens": 16_385},  # the next size of the table
    {"max_model_len": 131_073},
    {"max_num_seqs": 1025},
]


@pytest.mark.parametrize("changes", TABLE_INPUTS, ids=lambda changes: next(iter(changes)))
def test_a_table_is_kept_by_everything_that_it_depends_on(
    tmp_path: Path, model: Any, asked: list[SiliconQuery], changes: dict[str, Any]
) -> None:
    name = model(EXPERTS)
    assert table_file(tmp_path, name) != table_file(tmp_path, name, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"backend": "vllm"},  # what is taken without one
        {"backend_version": "0.24.0"},  # the newest, which is taken without one
        {"version": "0.24.0"},
        {"version": "0.25.1"},  # of which nothing was measured: the same tables
        {"kv_cache_dtype": None},
        {"kv_cache_dtype": "auto"},
        {"max_num_batched_tokens": 2048},  # smaller tables than the smallest are not made
        {"max_num_batched_tokens": 16_384},
        {"max_model_len": 131_072},
        {"max_num_seqs": 1024},
        {"step_overhead_ms": 3.0},  # added to what the table says
        {"block_size": 32},
        {"gpu_memory_utilization": 0.5},
        {"num_gpu_blocks": 900},
    ],
    ids=str,
)
def test_a_table_is_kept_by_nothing_else(
    tmp_path: Path, model: Any, asked: list[SiliconQuery], changes: dict[str, Any]
) -> None:
    name = model(EXPERTS)
    assert table_file(tmp_path, name) == table_file(tmp_path, name, **changes)


def test_a_table_is_kept_by_the_model_the_library_and_the_format(
    tmp_path: Path, model: Any, asked: list[SiliconQuery], monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [table_file(tmp_path, model(DENSE)), table_file(tmp_path, model(EXPERTS))]
    files.append(table_file(tmp_path, model(EXPERTS | {"vocab_size": 1001})))
    files.append(table_file(tmp_path, "Qwen/Qwen3-32B"))
    files.append(table_file(tmp_path, "Qwen/Qwen3-32B-FP8"))
    with monkeypatch.context() as patch:
        patch.setattr(engine_tables, "core_version", lambda: "0.13")
        files.append(table_file(tmp_path, model(DENSE)))
    with monkeypatch.context() as patch:
        patch.setattr(engine_tables, "TABLE_FORMAT", engine_tables.TABLE_FORMAT + 1)
        files.append(table_file(tmp_path, model(DENSE)))
    assert len(set(files)) == len(files)
    assert table_file(tmp_path, model(DENSE)) == files[0]


def test_a_kept_table_is_not_asked_for_again(
    tmp_path: Path, model: Any, asked: list[SiliconQuery]
) -> None:
    for _ in range(2):
        aiconfigurator_model(
            timing("aiconfigurator", backend=None, backend_version=None, step_overhead_ms=None),
            model=model(DENSE),
            hardware="h200_sxm",
            engine=engine(),
            cache_dir=tmp_path,
        )
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("config", "changes", "expected"),
    [
        (DENSE, {}, {"tensor_parallel": 1, "kv_heads_per_rank": 8, "backend": "vllm"}),
        (DENSE, {}, {"wanted": "0.24.0", "system": "h200_sxm"}),
        (DENSE, {"version": "0.14.0"}, {"wanted": "0.14.0"}),
        (DENSE, {"version": "0.14.0", "backend_version": "0.12.0"}, {"wanted": "0.12.0"}),
        (DENSE, {"version": "0.14.0", "backend": "sglang"}, {"wanted": "0.5.14"}),
        (DENSE, {}, {"options": {"kvcache_quant_mode": "bfloat16"}, "is_latent_attention": False}),
        (DENSE, {"tensor_parallel": 4}, {"tensor_parallel": 4, "kv_heads_per_rank": 2}),
        (DENSE, {"tensor_parallel": 16}, {"kv_heads_per_rank": 1}),
        (DENSE, {"backend": "sglang"}, {"backend": "sglang"}),
        (DENSE, {"kv_cache_dtype": "fp8_e5m2"}, {"options": {"kvcache_quant_mode": "fp8"}}),
        (
            DENSE,
            {"quantization": "fp8"},
            {"options": {"kvcache_quant_mode": "bfloat16", "gemm_quant_mode": "fp8"}},
        ),
        (
            EXPERTS,
            {"quantization": "fp8", "tensor_parallel": 2},
            {
                "options": {
                    "kvcache_quant_mode": "bfloat16",
                    "gemm_quant_mode": "fp8",
                    "moe_quant_mode": "fp8",
                    "moe_tp_size": 2,
                    "moe_ep_size": 1,
                }
            },
        ),
        (DENSE | {"kv_lora_rank": 64}, {}, {"is_latent_attention": True}),
        (DENSE, {}, {"max_tokens": 16_384, "max_context": 131_072, "max_batch": 1024}),
        (DENSE, {"max_num_batched_tokens": 16_385}, {"max_tokens": 32_768}),
        (DENSE, {"max_num_batched_tokens": 10**6}, {"max_tokens": 65_536}),
        (DENSE, {"max_model_len": 131_073}, {"max_context": 262_144}),
        (DENSE, {"max_num_seqs": 1025}, {"max_batch": 2048}),
        (DENSE, {"max_num_seqs": 99_999}, {"max_batch": 4096}),
    ],
)
def test_the_library_is_asked_for_the_engine_that_is_meant(
    tmp_path: Path,
    model: Any,
    asked: list[SiliconQuery],
    config: dict[str, Any],
    changes: dict[str, Any],
    expected: dict[str, Any],
) -> None:
    table_file(tmp_path, model(config), **changes)
    (query,) = asked
    asked_for = {"wanted": query.choice.wanted}
    found = {name: asked_for.get(name) or getattr(query, name) for name in expected}
    assert found == expected
    assert query.model.config == config


def test_a_key_tells_apart_values_types_and_names_but_not_order() -> None:
    keys = [
        cache_key(parts)
        for parts in ({"a": 1}, {"a": 2}, {"b": 1}, {"a": "1"}, {"a": None}, {"a": [1]}, {})
    ]
    assert len(set(keys)) == len(keys)
    assert cache_key({"a": 1, "b": {"c": 2, "d": 3}}) == cache_key({"b": {"d": 3, "c": 2}, "a": 1})
    assert {len(key) for key in keys} == {24}


def test_the_cache_lies_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DYNOSIM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "dynosim"
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert cache_folder() == Path("/x/dynosim")
    monkeypatch.setenv("DYNOSIM_CACHE", "/mine")
    assert cache_folder() == Path("/mine")
    assert cache_folder("/given") == Path("/given")


@pytest.mark.parametrize("error", [OSError, ValueError, KeyError, EOFError])
def test_what_cannot_be_read_is_made_again_and_kept(tmp_path: Path, error: type[Exception]) -> None:
    path = tmp_path / "kept.txt"
    path.write_text("of another format")

    def load(_: Path) -> str:
        raise error("x")

    def save(value: str, path: Path) -> None:
        path.write_text(value)

    assert load_or_build(path, load=load, build=lambda: "new", save=save) == "new"
    assert path.read_text() == "new"
    kept = load_or_build(path, load=Path.read_text, build=lambda: "never", save=save)
    assert kept == "new"


def test_what_cannot_be_saved_whole_leaves_nothing_behind(tmp_path: Path) -> None:
    def save(value: str, path: Path) -> None:
        path.write_text(value[:3])
        raise OSError("disk full")

    path = tmp_path / "sub" / "kept.txt"
    kept = load_or_build(path, load=Path.read_text, build=lambda: "whole", save=save)
    assert kept == "whole"
    assert list(path.parent.iterdir()) == []
