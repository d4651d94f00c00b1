"""From names and sections of a configuration to models: entries, makers, labels, notes."""

import json
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_configs import DENSE, EXPERTS
from timing_support import engine, silicon_table, timing

from dynosim.build.timing import build_timing
from dynosim.errors import ConfigError
from dynosim.silicon import catalogue
from dynosim.silicon.aiconfigurator import aiconfigurator_model
from dynosim.silicon.catalogue import (
    core_folder,
    core_version,
    known_models,
    model_entry,
    model_fingerprint,
)
from dynosim.silicon.fitted_file import write_fit
from dynosim.silicon.sharding import expert_sharding
from dynosim.timing.architecture import ModelEntry, model_shape
from dynosim.timing.fitted import Fit, FittedParameters
from dynosim.timing.step import StepShape


def config_in(folder: Path, config: dict[str, Any], **files: dict[str, Any]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in {"config": config, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(data))
    return folder


def test_the_installed_library_is_found() -> None:
    folder = core_folder()
    assert folder is not None and (folder / "model_configs").is_dir()
    assert core_version() == metadata.version("aiconfigurator-core") == "0.12.0"


def test_a_packaged_model_is_known_by_name_and_by_alias() -> None:
    entry = model_entry("meta-llama/Llama-3.1-8B-Instruct")
    assert (entry.name, entry.is_packaged) == ("meta-llama/Meta-Llama-3.1-8B", True)
    assert entry == model_entry("meta-llama/Meta-Llama-3.1-8B")
    assert entry.quantisation is None
    assert Path(entry.path).name == "meta-llama--Meta-Llama-3.1-8B_config.json"
    assert json.loads(Path(entry.path).read_text()) == entry.config
    quantised = model_entry("nvidia/Llama-3.1-70B-Instruct-FP8")
    assert quantised.quantisation is not None
    assert quantised.quantisation["quantization"]["quant_algo"] == "FP8"


@pytest.mark.parametrize(
    ("alias", "size_b"),
    [
        ("meta-llama/Llama-3.1-70B-Instruct", 70),
        ("meta-llama/Llama-3.3-70B-Instruct", 70),
        ("meta-llama/Llama-3.1-405B-Instruct", 405),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", 46),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-8B", 8),
    ],
)
def test_an_alias_has_the_size_in_its_name(alias: str, size_b: int) -> None:
    entry = model_entry(alias)
    assert entry.is_packaged
    assert int(model_shape(entry).parameters / 1e9) == size_b


def test_known_models_are_configs_and_no_quantisation_files() -> None:
    names = known_models()
    assert names == sorted(names)
    assert "nvidia/Llama-3.1-70B-Instruct-FP8" in names
    assert not [name for name in names if "quant" in name or name.count("/") != 1]


@pytest.mark.parametrize("is_folder", [True, False])
def test_a_model_of_the_users_own_is_read_from_its_files(tmp_path: Path, is_folder: bool) -> None:
    quantisation = {"quantization": {"quant_algo": "FP8"}}
    folder = config_in(tmp_path / "m", DENSE, hf_quant_config=quantisation)
    given = str(folder if is_folder else folder / "config.json")
    path = str(folder / "config.json")
    assert model_entry(given) == ModelEntry(given, DENSE, quantisation, path, False)
    (folder / "hf_quant_config.json").unlink()
    assert model_entry(given).quantisation is None


def test_equal_files_have_one_fingerprint(tmp_path: Path) -> None:
    one, other = (model_entry(str(config_in(tmp_path / name, DENSE))) for name in "ab")
    assert model_fingerprint(one) == model_fingerprint(other)
    changed = replace(other, config=DENSE | {"vocab_size": 1001})
    quantised = replace(other, quantisation={"quantization": {}})
    prints = {model_fingerprint(entry) for entry in (one, changed, quantised)}
    assert len(prints) == 3
    packaged = model_entry("Qwen/Qwen3-32B")
    assert model_fingerprint(packaged) == "Qwen/Qwen3-32B"
    assert model_fingerprint(replace(packaged, is_packaged=False)) != "Qwen/Qwen3-32B"


def test_without_the_library_our_own_shapes_and_files_remain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalogue, "core_folder", lambda: None)
    assert known_models() == []
    entry = model_entry("Qwen/Qwen2.5-7B-Instruct")
    assert (entry.name, entry.path, entry.is_packaged) == ("Qwen/Qwen2.5-7B",) * 2 + (False,)
    assert model_entry(str(config_in(tmp_path / "m", DENSE))).config == DENSE
    with pytest.raises(ConfigError, match="names are known once aiconfigurator-core is installed"):
        model_entry("???")


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("Qwen3-32B", "did you mean Qwen/Qwen3-32B"),  # without its maker
        ("qwen/qwen3-32b", "did you mean Qwen/Qwen3-32B"),
        ("meta-llama/Llama-3.1-8B-Instrct", "meta-llama/Llama-3.1-8B-Instruct"),
        ("Qwen/Qwen2.5-7C", "Qwen/Qwen2.5-7B"),
        ("????", "`dynosim support` lists the"),
    ],
)
def test_an_unknown_name_gets_the_nearest_of_all_names(name: str, hint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        model_entry(name)
    assert hint in str(caught.value)
    assert str(caught.value).endswith("path of a Hugging Face config.json or of its folder.")


def build(kind: str, **given: Any) -> Any:
    arguments = {"model": None, "hardware": None, "engine": engine(), "num_gpu_blocks": 100}
    arguments |= {key: given.pop(key) for key in list(given) if key in (*arguments, "resolve")}
    return build_timing(timing(kind, **given), **arguments)


def test_fixed_and_linear_sections_name_their_constants() -> None:
    fixed = build("fixed", prefill_ms=50, decode_ms=7)
    assert (fixed.prefill_ms, fixed.decode_ms) == (50, 7)
    linear = build(
        "linear", base_ms=1, per_prefill_token_ms=20, per_decode_ms=300, per_context_token_ms=4000
    )
    assert linear.step_ms(StepShape.of_prompts(1, 1)) == 1 + 20 + 4000
    assert linear.step_ms(StepShape.of_decodes(1, 1)) == 1 + 300 + 4000


@pytest.mark.parametrize(("blocks", "block_size"), [(100, 16), (7, 32)])
def test_the_polynomials_run_over_all_blocks(blocks: int, block_size: int) -> None:
    model = build("polynomial", num_gpu_blocks=blocks, engine=engine(block_size=block_size))
    assert model.capacity_tokens == blocks * block_size


@pytest.mark.parametrize("kind", ["profile", "fitted"])
def test_files_are_opened_where_the_configuration_says(tmp_path: Path, kind: str) -> None:
    profile = {
        "prefill_tokens": [1, 2], "prefill_ms": [3, 4],
        "decode_batch": [1, 2], "decode_context": [1, 2], "decode_ms": [[1, 2], [3, 4]],
    }  # fmt: skip
    (tmp_path / "profile.json").write_text(json.dumps(profile))
    write_fit(Fit(parameters=FittedParameters(overhead_ms=3)), tmp_path / "fitted.json")
    model = build(kind, file=f"{kind}.json", resolve=lambda name: tmp_path / name)
    assert model.step_ms(StepShape.of_prompts(1, 1)) == 3
    assert build(kind, file=str(tmp_path / f"{kind}.json")).source == model.source


@pytest.mark.parametrize("kind", ["roofline", "aiconfigurator"])
@pytest.mark.parametrize("missing", ["model", "hardware"])
def test_what_a_kind_needs_is_named(kind: str, missing: str) -> None:
    names = {"model": "Qwen/Qwen3-32B", "hardware": "h200_sxm", missing: None}
    settings = dict.fromkeys(("backend", "backend_version", "step_overhead_ms"))
    with pytest.raises(ConfigError) as caught:
        build(kind, **names, **settings)
    assert str(caught.value) == f"{missing}: missing; `timing: {{kind: {kind}}}` needs it"


@pytest.mark.parametrize(
    ("kind", "hint"), [("Fixed", "did you mean fixed?"), ("x", "known: fixed, linear, polynomial,")]
)
def test_an_unknown_kind_gets_the_nearest(kind: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=f"timing.kind: unknown '{kind}'; ") as caught:
        build(kind)
    assert hint in str(caught.value)


def test_the_roofline_refuses_ranks_that_do_not_divide() -> None:
    with pytest.raises(ConfigError, match="3 does not divide"):
        build("roofline", model="Qwen/Qwen3-32B", hardware="l4", engine=engine(tensor_parallel=3))


@pytest.mark.parametrize(
    ("config", "parallel", "expected"),
    [
        (DENSE, {}, [{}]),
        (DENSE, {"tensor_parallel": 4, "data_parallel": 2}, [{}]),
        (EXPERTS, {}, [{"moe_tp_size": 1, "moe_ep_size": 1}]),
        (
            EXPERTS,
            {"tensor_parallel": 4},
            [{"moe_tp_size": 4, "moe_ep_size": 1}, {"moe_tp_size": 1, "moe_ep_size": 4}],
        ),
        (
            EXPERTS,
            {"tensor_parallel": 4, "expert_parallel": True},
            [{"moe_tp_size": 1, "moe_ep_size": 4}],
        ),
        (
            EXPERTS,
            {"tensor_parallel": 2, "data_parallel": 4, "expert_parallel": True},
            [{"moe_tp_size": 1, "moe_ep_size": 8, "attention_dp_size": 4}],
        ),
        (
            EXPERTS,
            {"data_parallel": 2},
            [
                {"moe_tp_size": 2, "moe_ep_size": 1, "attention_dp_size": 2},
                {"moe_tp_size": 1, "moe_ep_size": 2, "attention_dp_size": 2},
            ],
        ),
    ],
)
def test_how_experts_may_be_spread(
    tmp_path: Path,
    config: dict[str, Any],
    parallel: dict[str, Any],
    expected: list[dict[str, int]],
) -> None:
    shape = model_shape(model_entry(str(config_in(tmp_path / "m", config))))
    assert expert_sharding(shape, engine(**parallel)) == expected


@pytest.fixture
def tabled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """A model of tables with this about their making, of the user's own model file or a name."""

    def make(model: str | None = None, *, meta: dict[str, Any] | None = None, **keys: Any) -> Any:
        table = silicon_table()
        table = replace(table, meta=table.meta | (meta or {}), **keys.pop("table", {}))
        monkeypatch.setattr("dynosim.silicon.extract.extract_table", lambda _: table)
        settings: dict[str, Any] = {"backend": None, "backend_version": None}
        settings |= {
            name: keys.pop(name, 0.0) for name in ("step_overhead_ms", "ingress_ms", "egress_ms")
        }
        return aiconfigurator_model(
            timing("aiconfigurator", **settings),
            model=model or str(config_in(tmp_path / "m", DENSE)),
            hardware="h200_sxm",
            engine=engine(**keys),
            cache_dir=tmp_path / str(len(list(tmp_path.iterdir()))),
        )

    return make


@pytest.mark.parametrize(
    ("prefill", "decode", "source"),
    [
        (0.9, 0.9, "measured"),
        (0.95, 0.899, "derived"),
        (0.899, 0.95, "derived"),
    ],
)
def test_tables_are_measured_if_nine_tenths_of_a_step_are(
    tabled: Any, prefill: float, decode: float, source: str
) -> None:
    meta = {"prefill_measured_share": prefill, "decode_measured_share": decode}
    assert tabled(meta=meta).source == source
    assert tabled(meta=meta, quantization="fp8").source == "derived"


def test_tables_say_how_good_they_are(tabled: Any) -> None:
    meta = {
        "prefill_measured_share": 0.93,
        "decode_measured_share": 0.96,
        "decode_error": {"mean": 0.0011, "p99": 0.022, "max": 0.033},
        "prefill_error": {"mean": 0.0044, "p99": 0.055, "max": 0.066},
    }
    model = tabled(meta=meta)
    assert model.notes[:2] == (
        "measured kernels make 93% of a 2048-token prefill and 96% of a 64-sequence decode step;"
        " norms, activations and embeddings are the tables' own estimates",
        "table against direct queries: decode mean 0.11%, p99 2.20%, max 3.30%;"
        " prefill mean 0.44%, p99 5.50%, max 6.60%",
    )
    assert model.notes[2].startswith("model read from ")
    assert len(model.notes) == 3


def test_tables_say_what_was_put_in_place_of_what(tabled: Any) -> None:
    def notes(*given: Any, **keys: Any) -> tuple[str, ...]:
        return tuple(tabled(*given, **keys).notes[2:])

    assert notes("Qwen/Qwen3-32B") == ()
    assert notes("Qwen/Qwen3-32B", quantization="fp8") == (
        "fp8 weights put in place of the checkpoint's own format",
    )
    (block,) = notes("Qwen/Qwen3-32B-FP8")
    assert block.startswith("the tables' block-wise FP8 matrix products on vllm are suspect")
    assert notes("Qwen/Qwen3-32B", quantization="fp8_block") == (
        block,
        "fp8_block weights put in place of the checkpoint's own format",
    )
    empty = dict.fromkeys(("measured_batches", "measured_contexts"), np.zeros(0))
    assert notes("Qwen/Qwen3-32B", table=empty) == (
        "extent of the attention measurements unknown: the table's own is used",
    )


def test_tables_say_of_what_they_are(tabled: Any) -> None:
    assert tabled("Qwen/Qwen3-32B", tensor_parallel=2, step_overhead_ms=0.5).description == (
        "aiconfigurator-core 0.12.0: Qwen/Qwen3-32B on h200_sxm, vllm 0.24.0, tensor_parallel 2,"
        " plus 0.5 ms per step"
    )
    plain = tabled("Qwen/Qwen3-32B")
    assert plain.description.endswith("tensor_parallel 1")
    slower = tabled("Qwen/Qwen3-32B", step_overhead_ms=2.0)
    for step in ((1, 100, 0, 0, 0), (0, 0, 0, 5, 1000), (2, 300, 64, 5, 1000)):
        assert slower.step_ms(StepShape(*step)) - plain.step_ms(StepShape(*step)) == pytest.approx(
            2.0
        )


@pytest.mark.parametrize(
    ("hardware", "message"),
    [
        ("rtx_4090", "no measurements on rtx_4090"),
        ("h200", "did you mean h200_sxm"),
        ("../data/h200_sxm", "hardware: unknown '../data/h200_sxm'"),
    ],
)
def test_hardware_without_tables_is_refused_before_anything_slow(
    hardware: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynosim.silicon.extract.extract_table", None)
    settings = dict.fromkeys(("backend", "backend_version", "step_overhead_ms"))
    with pytest.raises(ConfigError) as caught:
        build("aiconfigurator", model="Qwen/Qwen3-32B", hardware=hardware, **settings)
    assert message in str(caught.value)
