"""What one engine serves within targets, worked out by hand with linear step times.

Steps take 10 ms, 0.1 ms for a prompt token and 0.5 ms for a sequence that decodes, unless said.
"""

from dataclasses import replace

import pytest
from planner_support import card, linear

from dynosim.planner.capacity import BEST_EFFORT, best_point, operating_points, reachable
from dynosim.planner.engine_model import EngineModel, RequestMix
from dynosim.planner.observation import PoolCard
from dynosim.timing.model import StepTimeModel

MIX = RequestMix(isl=100, osl=20)


def _engine(times: StepTimeModel | None = None, role: str = "agg", **limits: int) -> EngineModel:
    return EngineModel.of(card(role, **limits), times or linear())


def test_a_card_without_limits_gets_dynamos() -> None:
    bare = EngineModel.of(PoolCard("p", "agg", 1), linear())
    assert (bare.max_num_batched_tokens, bare.max_num_seqs, bare.max_kv_tokens) == (
        8192,
        512,
        2_000_000,
    )


@pytest.mark.parametrize(
    ("hit_rate", "computed"), [(0.0, 100), (0.25, 75), (0.255, 75), (0.95, 5), (1.0, 5)]
)
def test_cached_tokens_are_not_computed_and_hit_rates_end_at_95_percent(
    hit_rate: float, computed: int
) -> None:
    mix = replace(MIX, hit_rate=hit_rate)
    assert (mix.computed_isl, mix.cached_isl) == (computed, 100 - computed)


def test_prompts_are_computed_in_full_steps_and_a_rest() -> None:
    """2500 tokens in steps of 1000: 110 + 110 + 60 ms."""
    mix = replace(MIX, isl=2500)
    assert _engine().prompts_ms(2500, mix) == pytest.approx(280.0)


def test_what_is_cached_or_computed_before_weighs_on_later_steps() -> None:
    """0.01 ms a token in context: 1000 of 1500 new, then 500 behind 1000; 500 cached before."""
    engine = _engine(linear(context=0.01))
    mix = RequestMix(isl=2000, osl=1, hit_rate=0.25)
    first, second = 10 + 100 + 0.01 * 1500, 10 + 50 + 0.01 * 2000
    assert engine.prompts_ms(1500, mix) == pytest.approx(first + second)


def test_decodes_ride_along_and_take_room() -> None:
    """With 100 decodes a step has room for 900: 1800 tokens take two steps of 150 ms."""
    mix = replace(MIX, isl=1800)
    assert _engine().prompts_ms(1800, mix, 100) == pytest.approx(2 * (10 + 90 + 50))


def test_prefill_takes_the_largest_batch_in_time() -> None:
    """b prompts take 10 + 10 b ms: within 65 ms 5 of them, 5 in 60 ms."""
    point = best_point("prefill", _engine(), MIX, 65.0, 1.0)
    assert (point.num_seqs, point.ttft_ms, point.itl_ms) == (5, 60.0, None)
    assert point.rps == pytest.approx(5 / 0.060)


def test_prefill_batches_end_at_a_steps_tokens() -> None:
    assert best_point("prefill", _engine(), replace(MIX, isl=400), 1e9, 1.0).num_seqs == 2
    assert best_point("prefill", _engine(), replace(MIX, isl=4000), 1e9, 1.0).num_seqs == 1


def test_decode_takes_the_largest_batch_in_time() -> None:
    """A step of b takes 10 + b / 2 ms: within 13 ms 6, each 20 tokens."""
    point = best_point("decode", _engine(), MIX, 1.0, 13.0)
    assert (point.num_seqs, point.ttft_ms, point.itl_ms) == (6, None, 13.0)
    assert point.rps == pytest.approx(6 / (20 * 0.013))


def test_decode_batches_end_at_the_kv_there_is() -> None:
    """A sequence half through holds 110 tokens, so 550 tokens hold 5."""
    assert best_point("decode", _engine(max_kv_tokens=550), MIX, 1.0, 1e9).num_seqs == 5


def test_accepted_drafts_shorten_gaps() -> None:
    plain = best_point("decode", _engine(), MIX, 1.0, 1e9)
    faster = best_point("decode", _engine(), replace(MIX, accept_length=2.5), 1.0, 1e9)
    assert faster.itl_ms == pytest.approx(plain.itl_ms / 2.5 if plain.itl_ms else 0)
    assert faster.rps == pytest.approx(2.5 * plain.rps)


def test_an_aggregated_engine_computes_in_each_step_what_its_decodes_make_room_for() -> None:
    """8 sequences of 20 tokens: 0.4 prompts of 100 tokens a step, so 10 + 4 + 4 ms; the first token
    of a prompt waits for 140 tokens beside 8 decodes: 10 + 14 + 4 ms."""
    point = best_point("agg", _engine(), MIX, 1e9, 1e9)
    assert (point.num_seqs, point.itl_ms, point.ttft_ms) == (8, 18.0, 28.0)
    assert point.rps == pytest.approx(8 / (20 * 0.018))


def test_an_aggregated_engine_keeps_both_targets() -> None:
    """b: ITL 10 + b, TTFT 20 + b ms; 15 and 24 allow 5 and 4."""
    assert best_point("agg", _engine(), MIX, 1e9, 15.0).num_seqs == 5
    assert best_point("agg", _engine(), MIX, 24.0, 15.0).num_seqs == 4


def test_prompts_too_long_for_a_balance_go_one_by_one() -> None:
    """3000 tokens for each of 1: 330 ms in three steps of 1000, and no second token."""
    point = best_point("agg", _engine(), RequestMix(isl=3000, osl=1), 1e9, 1e9)
    assert (point.num_seqs, point.ttft_ms) == (1, pytest.approx(330.0))
    assert point.rps == pytest.approx(1 / 0.330)


def test_factors_stretch_the_latencies_they_are_of() -> None:
    slow = replace(_engine(), ttft_factor=2.0, itl_factor=1.5)
    point = best_point("agg", slow, MIX, 1e9, 1e9)
    assert (point.itl_ms, point.ttft_ms) == (27.0, 56.0)


def test_of_many_batches_the_best_is_found_without_trying_all() -> None:
    """A step of b takes 10 + b / 2 ms: 130 ms allow 240 of 2000."""
    engine = _engine(role="decode", max_num_seqs=2000, max_kv_tokens=10**9)
    points = operating_points("decode", engine, MIX, 1.0, 130.0)
    assert len(points) < 90
    assert 233 <= best_point("decode", engine, MIX, 1.0, 130.0).num_seqs <= 240


# ---- targets out of reach ------------------------------------------------------------------------


def test_targets_are_reachable_up_to_what_one_request_takes() -> None:
    assert reachable("prefill", _engine(), MIX, 20.0, 1.0).is_reachable
    found = reachable("prefill", _engine(), MIX, 19.9, 1.0)
    assert (found.is_reachable, found.ttft_ms, found.itl_ms) == (False, 20.0, None)
    assert found.sentence(19.9, 1.0) == (
        "one engine cannot meet TTFT 19.9 ms; the nearest that it reaches is TTFT 20 ms"
    )


def test_the_nearest_reachable_names_both_latencies_of_an_aggregated_engine() -> None:
    found = reachable("agg", _engine(), MIX, 500.0, 5.0)
    assert (found.ttft_ms, found.itl_ms) == (21.0, 11.0)
    assert "TTFT 21 ms and ITL 11 ms" in found.sentence(500.0, 5.0)


def test_out_of_reach_an_engine_is_planned_near_what_it_reaches() -> None:
    """The nearest is 10.5 ms; a quarter more allows 13.125 ms, so 6 at a time, not all 8."""
    point = best_point("decode", _engine(), MIX, 1.0, 5.0)
    assert not point.meets_targets
    assert (point.num_seqs, point.miss) == (6, 13.0 / 5.0)
    assert BEST_EFFORT == 1.25
