"""Accelerators by the names that people give them, and models that need no file."""

from dataclasses import replace

import pytest
from timing_support import engine

from dynosim.errors import ConfigError
from dynosim.silicon.capacity import resolve_num_gpu_blocks
from dynosim.silicon.catalogue import model_entry, model_fingerprint
from dynosim.silicon.hardware import form_note, hardware_sheet, known_hardware, usual_name
from dynosim.silicon.shapes import SAME_SHAPES, common_config, common_models, shape_source
from dynosim.timing.architecture import model_shape

CONTEXTS = {
    4096: ["Llama-2-7b-hf", "Llama-2-13b-hf", "Llama-2-70b-hf", "Yi-34B"],
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
        ("A100 40GB", "a100_sxm_40gb"),
        ("V100-16GB", "v100_sxm_16gb"),
        ("NVIDIA A100-SXM4-80GB", "a100_sxm"),
        ("NVIDIA A100-PCIE-40GB", "a100_pcie_40gb"),
        ("NVIDIA H100 80GB HBM3", "h100_sxm"),
        ("NVIDIA H20-3e", "h20_141gb"),
        ("NVIDIA GH200 480GB", "gh200"),
        ("NVIDIA GH200 144G HBM3e", "gh200_144gb"),
        ("Tesla V100-SXM2-32GB", "v100_sxm"),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "rtx_pro_6000_server"),
        ("my/gpu.yaml", "my/gpu.yaml"),
    ],
)
def test_spellings_mean_one_card(name: str, meant: str) -> None:
    assert usual_name(name) == meant


@pytest.mark.parametrize(
    ("name", "note"),
    [
        (
            "A100",
            "hardware: A100 is taken to be a100_sxm (80 GiB); there is also a100_pcie,"
            " a100_pcie_40gb, a100_sxm_40gb",
        ),
        (
            "nvidia v100",
            "hardware: nvidia v100 is taken to be v100_sxm (32 GiB); there is also v100_pcie,"
            " v100_pcie_16gb, v100_sxm_16gb",
        ),
        (
            "A100-40GB",
            "hardware: A100-40GB is taken to be a100_sxm_40gb (40 GiB); there is also"
            " a100_pcie_40gb",
        ),
        ("B200", None),  # there is one
        ("A6000", None),
        ("a100_sxm", None),
        ("NVIDIA A100-SXM4-80GB", None),
        ("my/gpu.yaml", None),
    ],
)
def test_a_name_of_several_cards_says_which_it_is_taken_for(name: str, note: str | None) -> None:
    assert form_note(name) == note


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
    bases = {name: model_shape(model_entry(same.base)) for name, same in SAME_SHAPES.items()}
    without_contexts = [
        {name: replace(shape, max_context=None, vocabulary=1) for name, shape in found.items()}
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
        "mistralai/Mixtral-8x22B-Instruct-v0.1": 140.6,
        "Qwen/Qwen3-30B-A3B-Instruct-2507": 30.5,
        "Qwen/Qwen3-4B-Thinking-2507": 4.0,
        "Qwen/Qwen3-0.6B-Base": 0.6,
    }.items():
        assert round(sizes[name] / 1e9, 1) == billions


TUNED_CONTEXTS = {
    4096: ["Llama-2-7b-chat-hf", "Llama-2-13b-chat-hf", "Llama-2-70b-chat-hf", "Yi-34B-Chat"],
    8192: ["Meta-Llama-3-8B-Instruct", "Meta-Llama-3-70B-Instruct"],
    32_768: [
        "Mistral-7B-Instruct-v0.3",
        "Mistral-Small-24B-Instruct-2501",
        *(f"Qwen2.5-{size}-Instruct" for size in "0.5B 1.5B 3B 7B 14B 32B 72B".split()),
        *(f"Qwen3-{size}-Base" for size in "0.6B 1.7B 4B 8B 14B 30B-A3B".split()),
    ],
    40_960: ["QwQ-32B"],
    65_536: ["Mixtral-8x22B-Instruct-v0.1"],
    131_072: [
        "Llama-3.2-1B-Instruct",
        "Llama-3.2-3B-Instruct",
        "Mistral-Nemo-Instruct-2407",
        *(f"DeepSeek-R1-Distill-{size}" for size in "Llama-8B Llama-70B Qwen-14B Qwen-32B".split()),
    ],
    200_000: ["Yi-34B-200K"],
    262_144: [
        "Qwen3-4B-Instruct-2507",
        "Qwen3-4B-Thinking-2507",
        "Qwen3-30B-A3B-Instruct-2507",
        "Qwen3-30B-A3B-Thinking-2507",
    ],
}
"""Contexts of tuned models, which often differ from their base's."""


def test_tuned_models_have_contexts_of_their_own() -> None:
    found = {name.split("/")[1]: model_shape(model_entry(name)).max_context for name in SAME_SHAPES}
    assert found == {name: length for length, names in TUNED_CONTEXTS.items() for name in names}


def test_every_shape_names_its_source() -> None:
    assert all(shape_source(name) for name in (*common_models(), *SAME_SHAPES))
    assert shape_source("Qwen/Qwen3-32B") is None  # the library's


def test_a_tuned_model_may_have_another_vocabulary() -> None:
    base, tuned = (model_entry(f"mistralai/Mixtral-8x22B-{kind}v0.1") for kind in ("", "Instruct-"))
    assert model_shape(tuned).vocabulary - model_shape(base).vocabulary == 768
    # What is kept for the one must not be taken for the other.
    assert model_fingerprint(base) != model_fingerprint(tuned)


def test_an_unknown_model_has_no_config() -> None:
    assert common_config("acme/Acme-9B") is None


def test_a_consumer_card_has_room_for_what_fits_it() -> None:
    capacity = resolve_num_gpu_blocks(
        engine(max_num_batched_tokens=2048), model="Qwen/Qwen3-4B", hardware="rtx_4090"
    )
    sheet = hardware_sheet("rtx_4090")
    assert 0 < capacity.num_gpu_blocks * 16 * 147_456 < sheet.memory_bytes
