"""Accelerators by the names that people give them, and models that need no file."""

from dataclasses import replace

import pytest
from timing_support import engine

from dynosim.errors import ConfigError
from dynosim.silicon.capacity import resolve_num_gpu_blocks
from dynosim.silicon.catalogue import model_entry
from dynosim.silicon.hardware import hardware_sheet, known_hardware, usual_name
from dynosim.silicon.shapes import SAME_SHAPES, common_config, common_models
from dynosim.timing.architecture import model_shape

CONTEXTS = {
    4096: ["Llama-2-7b-hf", "Llama-2-13b-hf", "Llama-2-70b-hf"],
    2048: ["TinyLlama-1.1B-Chat-v1.0"],
    8192: ["Meta-Llama-3-8B", "Meta-Llama-3-70B"],
    32_768: ["Mistral-7B-v0.3", "Mistral-Small-24B-Base-2501", "Qwen2.5-0.5B", "Qwen2.5-3B"],
    40_960: ["Qwen3-4B", "Qwen3-14B"],
    131_072: [
        "Llama-3.2-1B",
        "Llama-3.2-3B",
        "Mistral-Nemo-Base-2407",
        *(f"Qwen2.5-{size}" for size in ("1.5B", "7B", "14B", "32B", "72B")),
    ],
}
"""Published context lengths."""


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("RTX 4090", "rtx_4090"),
        ("NVIDIA GeForce RTX 3090", "rtx_3090"),
        ("rtx-a6000", "rtx_a6000"),
        ("A6000", "rtx_a6000"),
        ("A100", "a100_sxm"),
        ("a800", "a800_sxm"),
        ("H100", "h100_sxm"),
        ("NVIDIA H200", "h200_sxm"),
        ("H800", "h800_sxm"),
        ("B200", "b200_sxm"),
        ("B300", "b300_sxm"),
        ("Tesla V100", "v100_sxm"),
        ("Tesla T4", "t4"),
        ("RTX PRO 6000", "rtx_pro_6000_server"),
        ("RTX 6000 Ada", "rtx_6000_ada"),
        ("rtxpro6000", "rtx_pro_6000_server"),
        ("L20", "l20"),
        ("h20O", "h20O"),
        ("gb200_sxm", "gb200"),
        ("NVIDIA GB200", "gb200"),
        ("my/gpu.yaml", "my/gpu.yaml"),
    ],
)
def test_spellings_mean_one_card(name: str, meant: str) -> None:
    assert usual_name(name) == meant


SKU_NAMES = (
    "gb200_sxm b200_sxm h200_sxm h100_sxm h100_pcie a100_sxm a100_pcie a30 l40s l40 l4 "
    "v100_sxm v100_pcie t4 mi200 mi300"
).split()
"""Those that Dynamo's deployment requests take."""


def test_the_names_of_dynamo_have_a_sheet_or_say_what_to_write() -> None:
    sheets = {name: hardware_sheet(name).name for name in SKU_NAMES if name != "mi200"}
    others = {name: sheet for name, sheet in sheets.items() if name != sheet}
    assert others == {"gb200_sxm": "gb200", "mi300": "mi300x"}
    with pytest.raises(ConfigError, match=r"a series of cards.* mi210 has .*memory_gib, .* path"):
        hardware_sheet("mi200")


def test_every_card_is_its_own_usual_name() -> None:
    assert [usual_name(name) for name in known_hardware()] == known_hardware()


def test_contexts_are_the_published_ones() -> None:
    found = {
        name.split("/")[1]: model_shape(model_entry(name)).max_context for name in common_models()
    }
    assert found == {name: length for length, names in CONTEXTS.items() for name in names}


def test_tuned_models_have_the_shapes_of_their_base() -> None:
    shapes = {name: model_shape(model_entry(name)) for name in SAME_SHAPES}
    bases = {name: model_shape(model_entry(base)) for name, base in SAME_SHAPES.items()}
    without_contexts = [
        {name: replace(shape, max_context=None) for name, shape in found.items()}
        for found in (shapes, bases)
    ]
    assert without_contexts[0] == without_contexts[1]
    sizes = {name: shape.parameters for name, shape in shapes.items()}
    for name, billions in {
        "meta-llama/Llama-2-70b-chat-hf": 69.0,
        "mistralai/Mistral-Nemo-Instruct-2407": 12.2,
        "deepseek-ai/DeepSeek-R1-Distill-Llama-70B": 70.6,
        "deepseek-ai/DeepSeek-R1-Distill-Qwen-14B": 14.8,
        "Qwen/QwQ-32B": 32.8,
        "Qwen/Qwen2.5-7B-Instruct": 7.6,
        "Qwen/Qwen3-30B-A3B-Instruct-2507": 30.5,
        "Qwen/Qwen3-4B-Thinking-2507": 4.0,
        "Qwen/Qwen3-0.6B-Base": 0.6,
    }.items():
        assert round(sizes[name] / 1e9, 1) == billions


def test_an_unknown_model_has_no_config() -> None:
    assert common_config("acme/Acme-9B") is None


def test_a_consumer_card_has_room_for_what_fits_it() -> None:
    capacity = resolve_num_gpu_blocks(
        engine(max_num_batched_tokens=2048), model="Qwen/Qwen3-4B", hardware="rtx_4090"
    )
    sheet = hardware_sheet("rtx_4090")
    assert 0 < capacity.num_gpu_blocks * 16 * 147_456 < sheet.memory_bytes
