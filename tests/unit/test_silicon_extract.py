"""Tables made from a library whose kernels follow simple laws: every number by hand."""

import json
import logging
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import polars as pl
import pytest
from model_configs import DENSE
from timing_support import engine, silicon_table, timing

from dynosim.errors import ConfigError
from dynosim.silicon import measured_range
from dynosim.silicon.aiconfigurator import aiconfigurator_model
from dynosim.silicon.catalogue import core_folder
from dynosim.silicon.extract import SiliconQuery, extract_table, model_folder, quiet
from dynosim.silicon.extraction import grid
from dynosim.silicon.measured_range import measured_decode_range, measured_prefill_range
from dynosim.silicon.table_versions import TableChoice
from dynosim.timing.architecture import ModelEntry

COUNTS = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 16, 24, 32, 48, 64, 128, 256)
ENTRY = ModelEntry("mine", DENSE, {"quantization": {"quant_algo": "FP8"}}, "x/config.json", False)


class Library:
    """An engine of three kinds of kernels; each answer is (name, ms, energy, source)."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor  # of totals, but at the two points that are verified

    def context_ms(self, count: int, new: int, prefix: int) -> list[Any]:
        return [
            ("gemm", 0.5 * count * new, 0, "silicon"),
            ("attention", count * (3.0 * new + 2.0 * prefix), 0, "mixed"),
            ("logits", 7.0 * count, 0, "silicon"),
            ("norm", 0.25 * count * new, 0, "empirical"),
        ]

    def generation_ms(self, batch: int, context: int) -> list[Any]:
        return [
            ("gemm", 0.5 * batch, 0, "silicon"),
            ("attention", batch * (1.0 + 0.125 * context), 0, "silicon"),
            ("logits", 9.0 * batch, 0, "empirical"),
        ]

    def evaluate_context_ops(
        self, indices: list[int], *, batch_size: int, s: int, prefix: int
    ) -> list[Any]:
        operations = self.context_ms(batch_size, s, prefix)
        return [operations[index] for index in indices]

    def evaluate_generation_ops(self, indices: list[int], *, batch_size: int, s: int) -> list[Any]:
        operations = self.generation_ms(batch_size, s - 1)  # s counts the token being made
        return [operations[index] for index in indices]

    def predict_prefill_latency(self, count: int, length: int, prefix: int) -> float:
        operations = self.context_ms(count, length - prefix, prefix)
        total = sum(one[1] for one in operations) - 7.0 * (count - 1)
        return float(total * (1.0 if length == 1000 else self.factor))

    def predict_decode_latency(self, batch: int, context: int, _: int) -> float:
        total = sum(one[1] for one in self.generation_ms(batch, context))
        return float(total * (1.0 if (batch, context) == (64, 2048) else self.factor))


def query(**changes: Any) -> SiliconQuery:
    values: dict[str, Any] = {
        "model": ENTRY,
        "system": "my_gpu",
        "backend": "vllm",
        "choice": TableChoice("0.7", {}),
        "sheet": None,
        "tensor_parallel": 2,
        "kv_heads_per_rank": 4,
        "is_latent_attention": False,
        "options": {"kvcache_quant_mode": "bfloat16"},
        "max_tokens": 12,
        "max_context": 32,
        "max_batch": 6,
    }
    return SiliconQuery(**(values | changes))


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the library was told to compile; "library" answers, and may be replaced."""
    core_folder()  # found while the true package is in its place
    seen: dict[str, Any] = {"library": Library()}

    class EngineHandle:
        @staticmethod
        def compile(folder: str, *names: str, **options: Any) -> Any:
            seen["files"] = {
                path.name: json.loads(path.read_text()) for path in Path(folder).iterdir()
            }
            seen["names"], seen["options"] = names, options
            return seen["library"]

    sdk = ModuleType("sdk")
    sdk.EngineHandle = EngineHandle  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "aiconfigurator_core", ModuleType("core"))
    monkeypatch.setitem(sys.modules, "aiconfigurator_core.sdk", sdk)
    for name in ("config_builders", "engine", "models"):  # what tells shapes; it does not here
        monkeypatch.setitem(sys.modules, f"aiconfigurator_core.sdk.{name}", None)
    return seen


def test_the_engine_that_is_compiled_is_the_one_asked_for(compiled: dict[str, Any]) -> None:
    extract_table(query(options={"kvcache_quant_mode": "fp8", "moe_tp_size": 2}))
    assert compiled["names"] == ("my_gpu", "vllm")
    systems = compiled["options"].pop("systems_path")
    assert not Path(systems).exists()  # it lives while the library reads it
    assert compiled["options"] == {
        "tp_size": 2,
        "backend_version": "0.7",
        "kvcache_quant_mode": "fp8",
        "moe_tp_size": 2,
    }
    assert compiled["files"] == {"config.json": DENSE, "hf_quant_config.json": ENTRY.quantisation}


def test_axes_are_powers_of_two_and_their_quarters(compiled: dict[str, Any]) -> None:
    table = extract_table(query())
    assert tuple(table.counts.tolist()) == COUNTS
    assert table.new_tokens.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12]
    assert table.prefix_tokens.tolist() == [0, 16, 20, 24, 28, 32]
    assert table.batches.tolist() == [1, 2, 3, 4, 5, 6]
    assert table.contexts.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32]
    assert grid(16, 40).tolist() == [16, 20, 24, 28, 32, 40]


def test_products_of_every_token_count_are_asked_for(compiled: dict[str, Any]) -> None:
    table = extract_table(query())
    assert table.linear_ms.tolist() == [0.0, *(0.75 * n + 7.0 for n in range(1, 13))]
    # A decode step has no norm here and another head: what it costs more than products alone.
    expected = [0.0, *((0.5 + 9.0) * b - (0.75 * b + 7.0) for b in range(1, 7))]
    assert table.head_ms.tolist() == pytest.approx(expected, rel=1e-12)


def test_attention_is_asked_for_at_every_node(compiled: dict[str, Any]) -> None:
    table = extract_table(query())
    prefill = [
        [[k * (3 * n + 2 * p) for p in table.prefix_tokens] for n in table.new_tokens]
        for k in COUNTS
    ]
    decode = [[b * (1 + 0.125 * c) for c in table.contexts] for b in table.batches]
    assert table.prefill_ms.tolist() == prefill
    assert table.decode_ms.tolist() == decode
    assert table.prefill_ms.dtype == table.decode_ms.dtype == np.float32


def test_shares_of_measured_kernels_are_of_the_time(compiled: dict[str, Any]) -> None:
    meta = extract_table(query()).meta
    prefill_ms = {"gemm": 0.5 * 2048, "attention": 3.0 * 2048, "logits": 7.0, "norm": 0.25 * 2048}
    measured_ms = sum(prefill_ms.values()) - prefill_ms["norm"]
    assert meta["prefill_measured_share"] == pytest.approx(measured_ms / sum(prefill_ms.values()))
    decode_ms = {"gemm": 32.0, "attention": 64 * (1 + 0.125 * 2048), "logits": 9.0 * 64}
    measured_ms = sum(decode_ms.values()) - decode_ms["logits"]
    assert meta["decode_measured_share"] == pytest.approx(measured_ms / sum(decode_ms.values()))
    assert meta["max_context"] == 32


def test_errors_are_those_of_the_table_against_direct_queries(compiled: dict[str, Any]) -> None:
    sizes = {"max_tokens": 1024, "max_context": 512, "max_batch": 512}
    exact = extract_table(query(**sizes)).meta
    compiled["library"] = Library(factor=1.25)
    off = extract_table(query(**sizes)).meta
    for kind in ("decode_error", "prefill_error"):
        assert set(exact[kind]) == {"mean", "p99", "max"}
        # Kernels that are linear everywhere, in tables of 32 bits.
        assert max(exact[kind].values()) < 1e-6
        # A table of four fifths is off by one.
        assert list(off[kind].values()) == pytest.approx([0.2, 0.2, 0.2], rel=1e-5)


def test_errors_are_told_by_mean_percentile_and_largest(compiled: dict[str, Any]) -> None:
    class Uneven(Library):
        """Every tenth answer is a quarter too long, and one of them more."""

        asked = 0

        def predict_decode_latency(self, batch: int, context: int, steps: int) -> float:
            total = super().predict_decode_latency(batch, context, steps)
            if (batch, context) == (64, 2048):
                return total
            self.asked += 1
            if self.asked % 10:
                return total
            return total * (1.6 if self.asked == 100 else 1.25)

    compiled["library"] = Uneven()
    sizes = {"max_tokens": 1024, "max_context": 512, "max_batch": 512}
    found = extract_table(query(**sizes)).meta["decode_error"]
    # Of 200 answers 19 are off by a fifth, and one by three eighths.
    assert found["mean"] == pytest.approx((19 * 0.2 + 0.375) / 200, rel=1e-4)
    assert found["p99"] == pytest.approx(0.2, rel=1e-4)
    assert found["max"] == pytest.approx(0.375, rel=1e-4)


@pytest.mark.parametrize("kind", ["predict_prefill_latency", "predict_decode_latency"])
def test_a_library_whose_parts_do_not_make_its_totals_is_refused(
    compiled: dict[str, Any], kind: str
) -> None:
    class Changed(Library):
        pass

    true = getattr(Library, kind)
    setattr(Changed, kind, lambda self, *step: true(self, *step) * 1.002)
    compiled["library"] = Changed()
    with pytest.raises(ConfigError, match=r"no measurements of mine on my_gpu .*operations sum to"):
        extract_table(query())
    setattr(Changed, kind, lambda self, *step: true(self, *step) * 1.0005)  # rounding inside
    extract_table(query())


def test_what_the_library_cannot_do_is_told_with_its_reason(compiled: dict[str, Any]) -> None:
    class Broken(Library):
        def evaluate_context_ops(self, *_: Any, **__: Any) -> Any:
            raise KeyError("no data\n  for   this")

    compiled["library"] = Broken()
    with pytest.raises(ConfigError) as caught:
        extract_table(query(tensor_parallel=4))
    text = str(caught.value)
    assert "no measurements of mine on my_gpu with vllm, tensor_parallel 4" in text
    assert "{'kvcache_quant_mode': 'bfloat16'}" in text and "kind: roofline" in text


def test_the_library_is_quiet_while_it_is_asked_and_not_after() -> None:
    assert logging.root.manager.disable == logging.NOTSET
    with quiet():
        assert logging.root.manager.disable == logging.CRITICAL
    assert logging.root.manager.disable == logging.NOTSET


def test_a_models_folder_has_its_files_for_as_long_as_needed() -> None:
    plain = ModelEntry("plain", DENSE, None, "x", False)
    with model_folder(plain) as folder:
        assert [path.name for path in Path(folder).iterdir()] == ["config.json"]
    assert not Path(folder).exists()


def tables(folder: Path, family: str, name: str, rows: list[dict[str, int]], version: str) -> None:
    path = folder / "systems" / "data" / "my_gpu" / family / "vllm" / version / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame(rows).write_parquet(path)


def row(batch: int, new: int, step: int, heads: int) -> dict[str, int]:
    return {"batch_size": batch, "isl": new, "step": step, "num_key_value_heads": heads}


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(measured_range, "core_folder", lambda: tmp_path)
    return tmp_path


def extent(found: Any) -> dict[float, float]:
    assert [len(one) for one in found] == [len(found[0])] * 2
    return dict(zip(found[0].tolist(), found[1].tolist(), strict=True))


def test_the_longest_context_measured_is_told_by_batch(measured: Path) -> None:
    rows = [row(1, 1, 4095, 4), row(1, 1, 99, 4), row(8, 1, 511, 4), row(2, 1, 9999, 8)]
    tables(measured, "attention", "generation_attention_perf", rows, "0.1")
    found = measured_decode_range("my_gpu", "vllm", kv_heads=4, is_latent=False)
    assert extent(found) == {1.0: 4096.0, 8.0: 512.0}  # both lengths add up; other heads left out
    assert found[0].tolist() == [1.0, 8.0]


def test_new_tokens_measured_are_told_by_number_of_prompts(measured: Path) -> None:
    rows = [row(1, 4096, 0, 4), row(1, 100, 9000, 4), row(4, 512, 0, 4), row(2, 7, 0, 2)]
    tables(measured, "attention", "context_attention_perf", rows, "0.1")
    found = measured_prefill_range("my_gpu", "vllm", kv_heads=4, is_latent=False)
    assert extent(found) == {1.0: 4096.0, 4.0: 512.0}


def test_heads_that_were_not_measured_take_all_that_were(measured: Path) -> None:
    rows = [row(1, 1, 10, 2), row(1, 1, 20, 8)]
    tables(measured, "attention", "generation_attention_perf", rows, "0.1")
    found = measured_decode_range("my_gpu", "vllm", kv_heads=4, is_latent=False)
    assert extent(found) == {1.0: 21.0}


def test_versions_of_tables_are_taken_together(measured: Path) -> None:
    name = "generation_attention_perf"
    tables(measured, "attention", name, [row(1, 1, 10, 4), row(2, 1, 90, 4)], "0.1")
    tables(measured, "attention", name, [row(1, 1, 30, 4), row(2, 1, 50, 4)], "0.2")
    found = measured_decode_range("my_gpu", "vllm", kv_heads=4, is_latent=False)
    assert extent(found) == {1.0: 31.0, 2.0: 91.0}


@pytest.mark.parametrize(
    ("measure", "name"),
    [
        (measured_decode_range, "mla_generation_module_perf"),
        (measured_prefill_range, "mla_context_module_perf"),
    ],
)
def test_latent_attention_has_tables_of_its_own(measured: Path, measure: Any, name: str) -> None:
    tables(measured, "mla", name, [{"batch_size": 4, "isl": 6, "step": 0}], "0.1")
    assert extent(measure("my_gpu", "vllm", kv_heads=4, is_latent=True)) == {4.0: 6.0}
    assert extent(measure("my_gpu", "vllm", kv_heads=4, is_latent=False)) == {}


def test_what_was_not_measured_is_not_known(measured: Path) -> None:
    rows = [{"batch_size": 4, "isl": 6}]
    tables(measured, "attention", "context_attention_perf", rows, "0.1")
    for system, backend in (("my_gpu", "vllm"), ("my_gpu", "trtllm"), ("other", "vllm")):
        found = measured_prefill_range(system, backend, kv_heads=4, is_latent=False)
        assert extent(found) == {}


def test_a_table_knows_the_extent_of_its_measurements(
    measured: Path, compiled: dict[str, Any]
) -> None:
    tables(measured, "attention", "generation_attention_perf", [row(2, 1, 63, 4)], "0.1")
    tables(measured, "attention", "context_attention_perf", [row(3, 40, 0, 4)], "0.1")
    table = extract_table(query())
    assert extent((table.measured_batches, table.measured_contexts)) == {2.0: 64.0}
    assert extent((table.measured_counts, table.measured_new_tokens)) == {3.0: 40.0}


@pytest.mark.parametrize("covered", ["first", "second", "none"])
def test_experts_are_spread_in_another_way_where_the_first_was_not_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, covered: str
) -> None:
    def answer(query: SiliconQuery) -> Any:
        wanted = {"first": 1, "second": 2, "none": 0}[covered]
        if query.options["moe_ep_size"] != wanted:
            raise ConfigError(f"not with {query.options}")
        return silicon_table()

    monkeypatch.setattr("dynosim.silicon.extract.extract_table", answer)

    def built() -> Any:
        return aiconfigurator_model(
            timing("aiconfigurator", backend=None, backend_version=None, step_overhead_ms=None),
            model="Qwen/Qwen3-30B-A3B",
            hardware="h200_sxm",
            engine=engine(tensor_parallel=2),
            cache_dir=tmp_path,
        )

    note = "no measurements of experts split over all GPUs: each GPU holds whole experts"
    if covered == "none":
        with pytest.raises(ConfigError, match="'moe_ep_size': 2"):
            built()
    else:
        model = built()
        assert (model.source, note in model.notes) == {
            "first": ("measured", False),
            "second": ("derived", True),
        }[covered]
