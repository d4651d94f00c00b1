"""What an engine keeps beside weights and cache, by hand: each part where it is the largest."""

from typing import Any

import pytest
from timing_support import engine

from dynosim.silicon.engine_memory import activation_bytes, graph_bytes, runtime_bytes
from dynosim.silicon.hardware import hardware_sheet
from dynosim.timing.architecture import ModelEntry, model_shape

GIB, MIB = 1024**3, 1024**2
DENSE: dict[str, Any] = {
    "num_hidden_layers": 10,
    "hidden_size": 1024,
    "num_attention_heads": 8,
    "intermediate_size": 1000,
    "vocab_size": 1000,
    "max_position_embeddings": 1,
}
EXPERTS = DENSE | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 768}


def activations(config: dict[str, Any], **keys: Any) -> int:
    entry = ModelEntry("m", DENSE | config, None, "m", is_packaged=False)
    settings = {"max_num_batched_tokens": 64, "max_num_seqs": 8, "version": "0.15.1"} | keys
    return activation_bytes(entry, model_shape(entry), engine(**settings))


def beside(config: dict[str, Any], **keys: Any) -> int:
    """The largest moment, without hidden states and residual."""
    tokens: int = keys.get("max_num_batched_tokens", 64)
    return activations(config, **keys) - 2 * tokens * 1024 * 2


@pytest.mark.parametrize(("ranks", "rows"), [(1, 9216), (4, 2304)])
def test_one_more_copy_of_the_embedding(ranks: int, rows: int) -> None:
    found = beside({"vocab_size": 9216}, tensor_parallel=ranks, max_num_seqs=1)
    assert found == rows * 1024 * 2


def test_one_more_copy_of_a_rotary_table_that_is_larger() -> None:
    large = {"vocab_size": 9000, "max_position_embeddings": 200_000}
    assert beside(large, tensor_parallel=4) == 200_000 * 128 * 2
    seeing = {"vocab_size": 90_000, "vision_config": {}, "max_position_embeddings": 20_000}
    assert beside(seeing, max_num_seqs=1) == 20_000 * 128 * 2


def test_an_eager_engine_compiles_nothing() -> None:
    entry = ModelEntry("m", DENSE | {"vocab_size": 90_000}, None, "m", is_packaged=False)
    settings = engine(max_num_batched_tokens=64, max_num_seqs=1, version="0.15.1")
    found = activation_bytes(entry, model_shape(entry), settings, is_eager=True)
    assert found == 2 * 64 * 1024 * 2 + int(9.5 * 90_000 * 4)


@pytest.mark.parametrize(
    ("version", "copies", "buffer"), [("0.16.0", 9.5, 0), ("0.17.0", 3.5, 80 * MIB)]
)
def test_the_logits_of_all_requests(version: str, copies: float, buffer: int) -> None:
    wide = {"vocab_size": 50_000}
    found = beside(wide, version=version, max_num_seqs=2000, max_num_batched_tokens=3000)
    assert found == int(copies * 2000 * 50_000 * 4) + buffer


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_feed_forward_block(ranks: int) -> None:
    wide = {"intermediate_size": 20_000}
    found = beside(wide, tensor_parallel=ranks, max_num_batched_tokens=4096)
    assert found == 3 * 4096 * 20_000 // ranks * 2 + 2 * 4096 * 1024 * 2


def test_latents_are_expanded_for_attention() -> None:
    latent = {"kv_lora_rank": 512, "qk_nope_head_dim": 128, "v_head_dim": 128,
              "qk_rope_head_dim": 64, "max_position_embeddings": 40_000}  # fmt: skip
    assert beside(latent, tensor_parallel=2) == 65_536 * 4 * 256 * 2
    assert beside(latent, max_model_len=5000) == 40_000 * 8 * 256 * 2


@pytest.mark.parametrize(
    ("split", "tokens", "inner"),
    [
        ({}, 64, 768),
        ({"tensor_parallel": 2}, 64, 384),
        ({"data_parallel": 2}, 128, 384),
        ({"data_parallel": 2, "expert_parallel": True}, 128, 768),
    ],
)
def test_the_experts_workspace_stays(split: dict[str, Any], tokens: int, inner: int) -> None:
    """Beside whatever else is largest; ranks gather each other's tokens."""
    widths = max(inner, 1024) + max(2 * inner, 1024)
    exchange = 2 * 128 * 1024 if "data_parallel" in split else 0
    expected = (tokens * 2 * widths + exchange) * 2
    assert activations(EXPERTS, **split) - activations({}, **split) == expected


@pytest.mark.parametrize(
    ("hardware", "version", "keys", "gib"),
    [
        ("h100_sxm", "0.15.1", {}, 0.13),
        ("h100_sxm", "0.19.0", {}, 0.25),
        ("h100_sxm", "0.15.1", {"tensor_parallel": 2}, 0.13 + 0.45),
        ("h100_sxm", "0.19.0", {"tensor_parallel": 2}, 0.25 + 1.85),
        ("a100_sxm", "0.19.0", {"tensor_parallel": 2}, 0.25 + 0.45),
        ("rtx_pro_6000_server", "0.19.0", {"tensor_parallel": 2}, 0.25 + 0.45),
        ("h100_sxm", "0.19.0", {"data_parallel": 2}, 0.25),  # dense ranks do not talk
    ],
)
def test_memory_outside_of_pytorch(
    hardware: str, version: str, keys: dict[str, Any], gib: float
) -> None:
    shape = model_shape(ModelEntry("m", DENSE, None, "m", is_packaged=False))
    found = runtime_bytes(shape, engine(version=version, **keys), hardware_sheet(hardware))
    assert found == pytest.approx(gib * GIB, abs=2)


def test_ranks_with_experts_are_peers() -> None:
    shape = model_shape(ModelEntry("m", EXPERTS, None, "m", is_packaged=False))
    sheet = hardware_sheet("a100_sxm")
    one, two = (runtime_bytes(shape, engine(data_parallel=n), sheet) for n in (1, 2))
    assert two - one == int(0.45 * GIB)


@pytest.mark.parametrize(("version", "graphs"), [("0.19.0", 0), ("0.21.0", 7 + 5)])
def test_graphs_count_since_0_21(version: str, graphs: int) -> None:
    """For 16 requests: of 1, 2, 4, 8, 16, 24, 32 in parts, of 1, 2, 4, 8, 16 whole."""
    shape = model_shape(ModelEntry("m", DENSE, None, "m", is_packaged=False))
    assert graph_bytes(shape, engine(version=version, max_num_seqs=16)) == graphs * 10 * MIB // 4
