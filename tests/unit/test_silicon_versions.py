"""The library's own tables: of which version they are, what the guard says, who is asked as who."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from timing_support import engine, silicon_table, timing

from dynosim.experiment.intervals import DEFAULT_REPLAYS, default_replays
from dynosim.silicon import engine_tables
from dynosim.silicon.aiconfigurator import aiconfigurator_model
from dynosim.silicon.catalogue import model_entry
from dynosim.silicon.extract import SiliconQuery, extract_table
from dynosim.silicon.hardware import hardware_sheet
from dynosim.silicon.same_kernels import equivalent_architecture, library_config
from dynosim.silicon.support import support
from dynosim.silicon.table_versions import choose
from dynosim.timing.silicon_model import SiliconModel
from dynosim.timing.silicon_table import SiliconTable
from dynosim.timing.step import StepShape


def table_of(model: str, system: str, version: str, **changes: Any) -> SiliconTable:
    """A small table of a model over two GPUs."""
    values: dict[str, Any] = {
        "model": model_entry(model),
        "system": system,
        "backend": "vllm",
        "choice": choose(system, "vllm", version),
        "tensor_parallel": 2,
        "kv_heads_per_rank": 4,
        "is_latent_attention": False,
        "options": {"kvcache_quant_mode": "bfloat16"},
        "max_tokens": 2048,
        "max_context": 64,
        "max_batch": 64,
        "sheet": hardware_sheet(system),
    }
    return extract_table(SiliconQuery(**(values | changes)))


def test_all_reduces_are_those_of_the_version_in_use() -> None:
    """Over PCIe a sum of 2,048 rows of 5,120 numbers took 1.39 ms with vLLM 0.19.0, and 0.59 ms
    with 0.24.0; a step of Qwen3-32B has 129 of them. The products are of 0.24.0 in both."""
    older = table_of("Qwen/Qwen3-32B", "rtx_pro_6000_server", "0.19.0")
    newer = table_of("Qwen/Qwen3-32B", "rtx_pro_6000_server", "0.24.0")
    assert older.meta["sources"] == {
        "all-reduce": "0.19.0",
        "attention": "0.24.0",
        "gemm": "0.24.0",
    }
    assert set(newer.meta["sources"].values()) == {"0.24.0"}
    assert older.collective_ms[2048] / 129 == pytest.approx(1.39, abs=0.01)
    assert newer.collective_ms[2048] / 129 == pytest.approx(0.59, abs=0.01)
    first, second = (table.linear_ms - table.collective_ms for table in (older, newer))
    assert np.allclose(first, second, rtol=1e-9)
    assert not [one for one in newer.meta["guard"] if one["family"] == "gemm"]


SCOUT_FP8 = {
    "options": {
        "kvcache_quant_mode": "bfloat16",
        "gemm_quant_mode": "fp8",
        "moe_quant_mode": "fp8",
        "moe_tp_size": 2,
        "moe_ep_size": 1,
    },
    "max_tokens": 64,
}


@pytest.mark.live
def test_a_table_that_cannot_be_is_not_used_without_being_asked_for() -> None:
    """FP8 experts on H100 take five times what their bytes need; the BF16 ones do not."""
    name, system = "meta-llama/Llama-4-Scout-17B-16E-Instruct", "h100_sxm"
    guarded = table_of(name, system, "0.24.0", **SCOUT_FP8)
    trusted = table_of(name, system, "0.24.0", trust_tables=True, **SCOUT_FP8)
    step = StepShape.of_decodes(32, 32 * 64)
    assert SiliconModel(trusted).step_ms(step) > 60
    assert 15 < SiliconModel(guarded).step_ms(step) < 29
    for table in (guarded, trusted):
        experts = [one for one in table.meta["guard"] if one["family"] == "experts"]
        assert experts and all(one["refused"] == one["entries"] for one in experts)
        assert all(3 < one["over_roofline"] < 6 for one in experts)
    assert guarded.meta["decode_measured_share"] < 0.5 < trusted.meta["decode_measured_share"]


@pytest.mark.live
def test_a_model_of_known_layers_is_asked_for_by_a_known_name() -> None:
    entry = model_entry("mistralai/Mistral-Nemo-Base-2407")
    assert equivalent_architecture(entry) == "LlamaForCausalLM"
    assert library_config(entry)["head_dim"] == 128
    assert equivalent_architecture(model_entry("Qwen/Qwen3-32B")) is None
    small = {"max_tokens": 64, "max_batch": 8}
    assert table_of("mistralai/Mistral-Nemo-Base-2407", "h100_sxm", "0.24.0", **small)


@pytest.mark.parametrize(
    "model",
    [
        "Qwen/Qwen3-14B",
        "meta-llama/Llama-2-70b-hf",
        "mistralai/Mixtral-8x7B-v0.1",
        "mistralai/Mistral-Nemo-Base-2407",
    ],
)
def test_support_says_measured_where_tables_exist(model: str) -> None:
    (row,) = support(model, "h100_sxm", "vllm")
    assert (row.source, row.kind, row.engine_version) == ("measured", "aiconfigurator", "0.24.0")
    (row,) = support(model, "rtx_4090", "vllm")
    assert (row.source, row.kind) == ("estimated", "roofline")


@pytest.fixture
def small_tables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables of few tokens, for speed."""
    monkeypatch.setattr(engine_tables, "_MAX_TABLE_TOKENS", 256)
    monkeypatch.setattr(engine_tables, "_power_of_two_from", lambda *_: 128)


def model_of(folder: Path, **changes: Any) -> SiliconModel:
    settings = {"backend": None, "backend_version": None, "step_overhead_ms": None}
    link = changes.pop("link_gb_per_s", None)
    return aiconfigurator_model(
        timing("aiconfigurator", **settings),
        model="Qwen/Qwen3-32B",
        hardware="h100_sxm",
        engine=engine(tensor_parallel=2, **changes),
        link_gb_per_s=link,
        cache_dir=folder,
    )


@pytest.mark.live
@pytest.mark.usefixtures("small_tables")
def test_between_two_versions_there_are_step_times_of_both(tmp_path: Path) -> None:
    model = model_of(tmp_path, version="0.21.0")
    assert "vllm 0.21.0 (attention 0.24.0, all-reduce 0.19.0, gemm 0.24.0)" in model.description
    assert model.source == "derived"
    assert model.notes[0].startswith("vllm 0.21.0 was not measured throughout: ")
    (other,) = model.alternatives
    assert "all-reduce 0.24.0" in other.description
    assert default_replays(model) == DEFAULT_REPLAYS
    newest = model_of(tmp_path)
    assert newest.alternatives == () and default_replays(newest) == 0
    assert newest.source == "measured" and "vllm 0.24.0, tensor" in newest.description
    step = StepShape.of_prompts(1, 128)
    assert other.step_ms(step) == pytest.approx(newest.step_ms(step))


@pytest.mark.usefixtures("small_tables")
def test_a_stated_link_is_told_and_needs_no_other_table(tmp_path: Path) -> None:
    usual = model_of(tmp_path)
    slow = model_of(tmp_path, link_gb_per_s=8.0)
    assert len(list(tmp_path.glob("silicon-*.npz"))) == 1
    step = StepShape.of_prompts(1, 128)
    assert slow.step_ms(step) > usual.step_ms(step)
    (note,) = [note for note in slow.notes if "stated link" in note]
    assert "8 GB/s" in note
    assert not [note for note in usual.notes if "stated link" in note]


def test_intervals_take_the_versions_in_turn() -> None:
    from dynosim.experiment import intervals

    other = SiliconModel(silicon_table(1))
    model = SiliconModel(silicon_table(), alternatives=(other,))
    drawn = intervals._drawn_timings(model, 5, np.random.default_rng(0))
    assert drawn == [model, other, model, other, model]
