"""What a handoff moves, in how many pieces, what is hidden and how long the rest takes."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.errors import ConfigError
from dynosim.memory.kv_transfer import (
    LAYERWISE_EXPOSED_SHARE,
    HandoffCost,
    KvGeometry,
    SideLayout,
    moved_tokens,
)
from dynosim.memory.links import LINKS, LinkSpec
from dynosim.memory.network import FairNetwork
from dynosim.timing.architecture import ModelShape

LLAMA_8B = KvGeometry(layers=32, kv_heads=8, head_dim=128)
DEEPSEEK = KvGeometry(layers=61, kv_heads=128, head_dim=128, latent_width=576, regions_per_layer=1)
PROMPT = 8000
LINK = LinkSpec(
    name="x",
    line_gb_s=None,
    achieved_gb_s=1.0,
    latency_us=10.0,
    per_descriptor_us=2.0,
    handshake_ms=500.0,
    per_gpu=True,
)


def side(tensor_parallel: int = 1, block_size: int = 16) -> SideLayout:
    return SideLayout(tensor_parallel=tensor_parallel, block_size=block_size)


def cost(**changes: Any) -> HandoffCost:
    plain = HandoffCost(link=LINK, geometry=LLAMA_8B, prefill=side(), decode=side())
    return replace(plain, **changes)


def efa(exposed_share: float) -> HandoffCost:
    return cost(link=LINKS["efa"], exposed_share=exposed_share)


# ---- the published ladder: Llama-3.1-8B, 8,000 tokens, one link ----------------------------------


def test_a_prompt_of_8000_tokens_takes_109_ms_over_efa_if_nothing_is_hidden() -> None:
    assert LLAMA_8B.bytes_per_token == 131_072
    assert efa(1.0).wire_bytes(PROMPT) == 1_048_576_000
    assert efa(1.0).unloaded_ms(PROMPT, 173.0) == pytest.approx(109.2, abs=0.1)


def test_layer_by_layer_behind_173_ms_of_prefill_ttft_grows_by_37_ms() -> None:
    cost_ms = efa(LAYERWISE_EXPOSED_SHARE).unloaded_ms(PROMPT, 173.0)
    assert cost_ms == pytest.approx(37.0, abs=10.0)
    assert cost_ms == pytest.approx(37.157, abs=0.001)  # 1.048576 GB x 0.34 / 9.6, and 20 us


@pytest.mark.parametrize(("gb_s", "last_s"), [(0.1, 104.8576), (1.0, 10.48576), (9.6, 1.0922667)])
def test_ten_at_once_on_one_link(gb_s: float, last_s: float) -> None:
    network = FairNetwork()
    link = network.add_resource(gb_s)
    for _ in range(10):
        network.begin((link,), LLAMA_8B.bytes_per_token * PROMPT, 0.0, 0.0)
    assert network.next_ms == pytest.approx(last_s * 1e3, rel=1e-6)
    assert len(network.complete(network.next_ms)) == 10


# ---- bytes ---------------------------------------------------------------------------------------


def test_heads_are_split_over_ranks_and_copied_where_they_are_too_few() -> None:
    for tensor_parallel, copies in ((1, 1), (2, 1), (8, 1), (16, 2), (32, 4)):
        assert LLAMA_8B.worker_bytes_per_token(tensor_parallel) == 131_072 * copies
    assert LLAMA_8B.rank_bytes_per_token(4) == 131_072 // 4


def test_every_rank_has_a_latent_cache_of_its_own() -> None:
    assert DEEPSEEK.bytes_per_token == 61 * 576 * 2
    assert DEEPSEEK.worker_bytes_per_token(8) == 8 * 61 * 576 * 2


def test_half_a_byte_an_element_is_half_the_bytes() -> None:
    assert replace(LLAMA_8B, element_bytes=0.5).bytes_per_token == 131_072 // 4


@pytest.mark.parametrize("latent_width", [0, 576])
@pytest.mark.parametrize("tensor_parallel", [1, 2, 8, 16])
def test_a_rank_keeps_what_the_models_shape_says(latent_width: int, tensor_parallel: int) -> None:
    shape = ModelShape(
        layers=28, hidden=2048, heads=16, kv_heads=4, head_dim=96, latent_width=latent_width,
        rope_width=64 if latent_width else 0, query_rank=0, value_head_dim=96, vocabulary=1000,
        is_tied=False, dense_layers=28, intermediate=4096, experts=0, experts_per_token=0,
        expert_intermediate=0, shared_intermediate=0, max_context=None, quantisation=None,
        obstacle=None, has_windows=False,
    )  # fmt: skip
    geometry = KvGeometry.of_model(shape, 1.0)
    expected = shape.kv_bytes_per_token(tensor_parallel, 1.0)
    assert geometry.rank_bytes_per_token(tensor_parallel) == expected
    assert geometry.regions_per_layer == (1 if latent_width else 2)
    assert KvGeometry.of_model(shape, 1.0, regions_per_layer=3).regions_per_layer == 3


def test_the_decode_sides_copies_go_over_the_wire_not_the_prefill_sides() -> None:
    few = cost(prefill=side(1), decode=side(16))
    many = cost(prefill=side(16), decode=side(1))
    assert few.wire_bytes(10) == 2 * many.wire_bytes(10) == 2 * 10 * 131_072
    latent = cost(geometry=DEEPSEEK, prefill=side(8), decode=side(4))
    assert latent.wire_bytes(10) == 4 * 10 * 61 * 576 * 2


# ---- pieces --------------------------------------------------------------------------------------


def test_a_rank_reads_one_piece_of_each_region_and_block() -> None:
    assert cost().descriptors(PROMPT) == 64 * 500
    assert cost().descriptors(1) == cost().descriptors(16) == 64
    assert cost().descriptors(17) == 128
    assert cost().descriptors(0) == 0
    packed = replace(LLAMA_8B, regions_per_layer=1)
    assert cost(geometry=packed).descriptors(17) == 64


def test_pieces_are_as_small_as_the_smaller_blocks() -> None:
    assert cost(prefill=side(block_size=64)).descriptors(64) == 64 * 4
    assert cost(decode=side(block_size=64)).descriptors(64) == 64 * 4
    assert cost(prefill=side(block_size=64), decode=side(block_size=64)).descriptors(64) == 64


@pytest.mark.parametrize(
    ("prefill", "decode", "sources"),
    [(1, 1, 1), (1, 4, 1), (4, 4, 1), (4, 1, 4), (8, 2, 4), (16, 1, 8), (16, 16, 1), (16, 4, 2)],
)
def test_a_rank_reads_from_as_many_ranks_as_have_its_heads(
    prefill: int, decode: int, sources: int
) -> None:
    asked = cost(prefill=side(prefill), decode=side(decode))
    assert asked.sources == sources
    assert asked.descriptors(16) == 64 * sources
    latent = cost(geometry=DEEPSEEK, prefill=side(prefill), decode=side(decode))
    assert latent.sources == 1 and latent.descriptors(16) == 61


# ---- set-up --------------------------------------------------------------------------------------


def test_setup_is_latency_and_a_share_for_each_piece() -> None:
    handoff = cost().handoff(32, 0.0, is_first=False)
    assert handoff.setup_ms == pytest.approx((10.0 + 128 * 2.0) / 1e3)


def test_the_first_handoff_of_a_pair_shakes_hands() -> None:
    first = cost().handoff(32, 0.0, is_first=True)
    later = cost().handoff(32, 0.0, is_first=False)
    assert first.setup_ms - later.setup_ms == pytest.approx(500.0)
    assert cost().unloaded_ms(32, is_first=True) - cost().unloaded_ms(32) == pytest.approx(500.0)


def test_only_pieces_that_still_have_to_flow_are_posted_after_the_prefill() -> None:
    quarter = cost(exposed_share=0.25).handoff(32, 1e6, is_first=False)
    assert quarter.setup_ms == pytest.approx((10.0 + 32 * 2.0) / 1e3)


def test_a_handoff_of_nothing_takes_nothing() -> None:
    nothing = cost().handoff(0, 5.0, is_first=True)
    assert (nothing.wire_bytes, nothing.exposed_bytes, nothing.setup_ms) == (0, 0, 0.0)
    assert cost().unloaded_ms(0, is_first=True) == 0.0


# ---- what is hidden ------------------------------------------------------------------------------


def test_a_blocking_handoff_hides_nothing() -> None:
    handoff = cost().handoff(100, 1e9, is_first=False)
    assert handoff.exposed_bytes == handoff.wire_bytes and handoff.hidden_bytes == 0


def test_of_a_layerwise_handoff_the_stated_share_shows() -> None:
    handoff = cost(exposed_share=0.25).handoff(100, 1e9, is_first=False)
    assert (handoff.wire_bytes, handoff.exposed_bytes) == (13_107_200, 3_276_800)
    assert handoff.hidden_bytes == 9_830_400


def test_a_slow_link_hides_only_what_it_carries_meanwhile() -> None:
    """13.1 MB, of which 9.8 could be hidden, at 1 GB/s behind 5 ms."""
    handoff = cost(exposed_share=0.25).handoff(100, 5.0, is_first=False)
    assert handoff.hidden_bytes == 5_000_000
    assert cost(exposed_share=0.25).handoff(100, 0.0, is_first=False).hidden_bytes == 0


def test_rounding_of_a_time_hides_no_byte_less() -> None:
    """The same 5 ms as the difference of two sums that were made in another order."""
    handoff = cost(exposed_share=0.25).handoff(100, 5.0 - 1e-12, is_first=False)
    assert handoff.hidden_bytes == 5_000_000


@given(
    st.integers(0, 10_000),
    st.floats(0, 1000),
    st.floats(0.001, 1),
    st.sampled_from([1, 2, 8]),
    st.sampled_from([1, 2, 8]),
)
def test_laws_of_hiding(
    tokens: int, compute_ms: float, share: float, prefill: int, decode: int
) -> None:
    asked = cost(exposed_share=share, prefill=side(prefill), decode=side(decode))
    handoff = asked.handoff(tokens, compute_ms, is_first=False)
    wire, exposed = handoff.wire_bytes, handoff.exposed_bytes
    assert 0 <= exposed <= wire == exposed + handoff.hidden_bytes
    least = max(share * wire, wire - asked.gb_s * 1e6 * compute_ms)
    assert least - 1e-6 * wire <= exposed <= least + 1 + 1e-6 * wire
    longer = asked.handoff(tokens, compute_ms + 1, is_first=False)
    assert longer.exposed_bytes <= exposed


# ---- rates ---------------------------------------------------------------------------------------


def test_the_side_with_fewer_gpus_is_the_narrow_one() -> None:
    assert cost(prefill=side(4), decode=side(2)).gb_s == 2.0
    assert cost(prefill=side(2), decode=side(8)).gb_s == 2.0
    assert cost(link=LINKS["efa"], prefill=side(4), decode=side(8)).gb_s == 9.6


def test_unloaded_is_setup_and_the_bytes_at_that_rate() -> None:
    asked = cost(prefill=side(4), decode=side(2))
    assert asked.unloaded_ms(16) == pytest.approx((10 + 128 * 2) / 1e3 + 16 * 131_072 / 2e6)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.0001, float("nan")])
def test_what_is_no_share_is_refused(share: float) -> None:
    with pytest.raises(ConfigError, match=r"^cluster\.transfer\.exposed_share: .*\(state one"):
        cost(exposed_share=share)


# ---- tokens --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "held", "moved"),
    [
        (100, 0, 112),  # 7 blocks, the last one in part
        (96, 0, 96),
        (100, 15, 112),  # a block in part is no block
        (100, 16, 96),
        (100, 96, 16),
        (100, 112, 0),
        (96, 96, 0),
        (96, 960, 0),
    ],
)
def test_what_the_destination_misses_is_whole_blocks(prompt: int, held: int, moved: int) -> None:
    assert moved_tokens("destination_missing", prompt, held, 16) == moved
    assert moved_tokens("full_prompt", prompt, held, 16) == prompt
