"""Accelerators by the names that people give them, and models that need no file."""

import pytest
from timing_support import engine

from dynosim.silicon.capacity import resolve_num_gpu_blocks
from dynosim.silicon.catalogue import model_entry
from dynosim.silicon.hardware import hardware_sheet, known_hardware, usual_name
from dynosim.silicon.shapes import SAME_SHAPES, common_config, common_models
from dynosim.timing.architecture import model_shape

PARAMETERS = {
    "meta-llama/Llama-2-7b-hf": 6.74e9,
    "meta-llama/Llama-2-13b-hf": 13.0e9,
    "meta-llama/Llama-2-70b-hf": 69.0e9,
    "meta-llama/Meta-Llama-3-8B": 8.03e9,
    "meta-llama/Meta-Llama-3-70B": 70.6e9,
    "meta-llama/Llama-3.2-1B": 1.24e9,
    "meta-llama/Llama-3.2-3B": 3.21e9,
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": 1.10e9,
    "mistralai/Mistral-7B-v0.3": 7.25e9,
    "mistralai/Mistral-Nemo-Base-2407": 12.2e9,
    "mistralai/Mistral-Small-24B-Base-2501": 23.6e9,
    "Qwen/Qwen2.5-0.5B": 0.494e9,
    "Qwen/Qwen2.5-1.5B": 1.54e9,
    "Qwen/Qwen2.5-3B": 3.09e9,
    "Qwen/Qwen2.5-7B": 7.62e9,
    "Qwen/Qwen2.5-14B": 14.8e9,
    "Qwen/Qwen2.5-32B": 32.8e9,
    "Qwen/Qwen2.5-72B": 72.7e9,
    "Qwen/Qwen3-4B": 4.02e9,
    "Qwen/Qwen3-14B": 14.8e9,
}
"""Published sizes."""


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("RTX 4090", "rtx_4090"),
        ("NVIDIA GeForce RTX 3090", "rtx_3090"),
        ("rtx-a6000", "rtx_a6000"),
        ("A6000", "rtx_a6000"),
        ("H100", "h100_sxm"),
        ("rtxpro6000", "rtx_pro_6000_server"),
        ("L20", "l20"),
        ("h20O", "h20O"),
        ("my/gpu.yaml", "my/gpu.yaml"),
    ],
)
def test_spellings_mean_one_card(name: str, meant: str) -> None:
    assert usual_name(name) == meant


def test_every_card_is_its_own_usual_name() -> None:
    assert [usual_name(name) for name in known_hardware()] == known_hardware()


@pytest.mark.parametrize("name", common_models())
def test_shapes_have_the_published_size(name: str) -> None:
    assert model_shape(model_entry(name)).parameters == pytest.approx(PARAMETERS[name], rel=0.01)


def test_tuned_models_have_shapes() -> None:
    for tuned in SAME_SHAPES:
        assert model_shape(model_entry(tuned)).layers > 0
    assert common_config("acme/Acme-9B") is None


def test_a_consumer_card_has_room_for_what_fits_it() -> None:
    capacity = resolve_num_gpu_blocks(
        engine(max_num_batched_tokens=2048), model="Qwen/Qwen3-4B", hardware="rtx_4090"
    )
    sheet = hardware_sheet("rtx_4090")
    assert 0 < capacity.num_gpu_blocks * 16 * 147_456 < sheet.memory_bytes
