"""KV blocks that fit, models and hardware by name, and the way from a timing section to a model."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from timing_support import engine, timing

from dynosim.build.timing import build_timing
from dynosim.errors import ConfigError, InfeasibleError
from dynosim.silicon import resolve_num_gpu_blocks
from dynosim.silicon.catalogue import known_models, model_entry
from dynosim.silicon.hardware import hardware_sheet, known_hardware
from dynosim.timing.architecture import model_shape
from dynosim.timing.roofline import RooflineModel
from dynosim.timing.step import StepShape

TINY: dict[str, Any] = {
    "num_hidden_layers": 32,
    "hidden_size": 4096,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "intermediate_size": 14336,
    "vocab_size": 128256,
}


@pytest.fixture
def tiny(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    return str(tmp_path)


def test_a_request_of_the_whole_context_must_fit() -> None:
    with pytest.raises(InfeasibleError, match=r"fewer than one request of max_model_len 40,960"):
        resolve_num_gpu_blocks(
            engine(max_model_len=40_960), model="Qwen/Qwen3-32B", hardware="h100_sxm"
        )


def test_a_request_that_nearly_fits_is_refused_with_the_margin() -> None:
    settings = engine(max_num_batched_tokens=2048, gpu_memory_utilization=0.9)
    found = resolve_num_gpu_blocks(settings, model="Qwen/Qwen3-32B", hardware="h100_sxm")
    between = (found.num_gpu_blocks + found.high) // 2 * 16
    settings.max_model_len = between
    with pytest.raises(InfeasibleError, match="It may just fit: within the estimate's margin"):
        resolve_num_gpu_blocks(settings, model="Qwen/Qwen3-32B", hardware="h100_sxm")


def test_recurrent_models_need_blocks_by_hand() -> None:
    with pytest.raises(ConfigError, match="recurrent layers"):
        resolve_num_gpu_blocks(engine(), model="Qwen/Qwen3.5-27B", hardware="h200_sxm")


def test_auto_does_not_import_the_library() -> None:
    code = (
        "import sys; from dynosim.config.engine import EngineConfig;"
        " from dynosim.silicon import resolve_num_gpu_blocks;"
        " resolve_num_gpu_blocks(EngineConfig(), model='Qwen/Qwen3-32B', hardware='h200_sxm');"
        " sys.exit('aiconfigurator_core' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_every_packaged_config_has_a_shape() -> None:
    for name in known_models():
        assert model_shape(model_entry(name)).layers > 0


def test_unknown_names_get_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean Qwen/Qwen3-32B"):
        model_entry("qwen/qwen3-32")


def test_unknown_hardware_gets_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean h200_sxm"):
        hardware_sheet("H200-SXN")
    assert {hardware_sheet(name).name for name in known_hardware()} == set(known_hardware())


def test_data_sheet_errors_name_file_and_key(tmp_path: Path) -> None:
    sheet = tmp_path / "gpu.yaml"
    sheet.write_text("memory_gibi: 3\n")
    with pytest.raises(ConfigError, match=r"gpu\.yaml: unknown key 'memory_gibi'.*memory_gib\?"):
        hardware_sheet(str(sheet))
    sheet.write_text("memory_gib: -1\n")
    with pytest.raises(ConfigError, match="memory_gib: expected a number above 0"):
        hardware_sheet(str(sheet))
    with pytest.raises(ConfigError, match="cannot read"):
        hardware_sheet(str(tmp_path / "gone.yaml"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "expected a JSON object"),
        ("{", "not readable JSON"),
        ('{"hidden_size": "x"}', "num_attention_heads: missing"),
        ('{"num_attention_heads": -4}', "num_attention_heads: expected a whole number"),
    ],
)
def test_bad_model_configs_are_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        model_shape(model_entry(str(path)))


def _build(kind: str, *, model: str | None = None, hardware: str | None = None, **keys: Any) -> Any:
    return build_timing(
        timing(kind, **keys), model=model, hardware=hardware, engine=engine(), num_gpu_blocks=100
    )


def test_build_makes_the_formulas() -> None:
    assert _build("fixed", prefill_ms=5, decode_ms=2).step_ms(StepShape(1, 1, 0, 1, 2)) == 7
    assert _build("polynomial").capacity_tokens == 1600
    linear = _build(
        "linear", base_ms=1, per_prefill_token_ms=2, per_decode_ms=3, per_context_token_ms=4
    )
    assert linear.step_ms(StepShape(1, 1, 0, 1, 1)) == 1 + 2 + 3 + 8


def test_build_refuses_with_the_missing_key() -> None:
    with pytest.raises(ConfigError, match="hardware: missing"):
        _build("roofline", model="m")
    with pytest.raises(ConfigError, match="did you mean roofline"):
        _build("rooflin")


def test_roofline_scales_as_it_should(tiny: str) -> None:
    def model(hardware: str, **changes: Any) -> RooflineModel:
        built = build_timing(
            timing("roofline", step_overhead_ms=0.0),
            model=tiny,
            hardware=hardware,
            engine=engine(**changes),
            num_gpu_blocks=0,
        )
        assert isinstance(built, RooflineModel) and built.source == "estimated"
        return built

    base = model("h100_sxm")
    decode, prefill = (0, 0, 0, 16, 16 * 2000), (1, 4096, 0, 0, 0)
    assert model("h200_sxm").step_ms(StepShape(*decode)) < base.step_ms(StepShape(*decode))
    assert model("h100_sxm", tensor_parallel=4).step_ms(StepShape(*prefill)) < base.step_ms(
        StepShape(*prefill)
    )
    assert model("h100_sxm", quantization="fp8").step_ms(StepShape(*decode)) < base.step_ms(
        StepShape(*decode)
    )
    assert base.step_ms(StepShape.of_prompts(1, 4096, 20_000)) > base.step_ms(StepShape(*prefill))
    pure_bandwidth_ms = 16.06e9 / 3.35e12 * 1e3
    assert base.step_ms(StepShape.of_decodes(1, 100)) > 1.2 * pure_bandwidth_ms


@pytest.mark.parametrize(
    ("tensor_parallel", "direct_ms", "errors"),
    [
        (1, (402, 18.3, 36.3), (0.024, -0.027, -0.051)),
        (2, (222, 10.7, 19.8), (0.041, -0.002, -0.021)),
        (4, (131, 6.97, 12.1), (0.073, -0.027, -0.046)),
        (8, (83.5, 5.01, 8.32), (0.057, -0.035, -0.099)),
    ],
)
def test_roofline_is_as_far_from_the_silicon_tables_as_we_know(
    tensor_parallel: int, direct_ms: tuple[float, ...], errors: tuple[float, ...]
) -> None:
    """Direct queries of aiconfigurator-core 0.12, vllm 0.24.0, Qwen3-32B on h200_sxm: not slowed by
    clocks that are sustained, nor by caches that are cold."""
    model = build_timing(
        timing("roofline"),
        model="Qwen/Qwen3-32B",
        hardware="h200_sxm",
        engine=engine(tensor_parallel=tensor_parallel),
        num_gpu_blocks=0,
    )
    steps = ((1, 4096, 0, 0, 0), (0, 0, 0, 1, 1024), (0, 0, 0, 64, 64 * 4096))
    found = [
        model.step_ms(StepShape(*step)) / ms - 1 for step, ms in zip(steps, direct_ms, strict=True)
    ]
    # The queries' answers were written down in three digits.
    assert found == pytest.approx(errors, abs=0.002)
