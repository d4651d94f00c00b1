"""Laws of speculative prefills: nothing is lost, bulk equals single, and hits only come to it."""

from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from dynosim.config.schema import RunConfig
from dynosim.experiment.run import RunOutcome, run

DISAGG = {
    "mode": "disagg",
    "prefill": {"workers": 2},
    "decode": {"workers": 1},
    "transfer": {"preset": "ib", "kv_bytes_per_token": 1000},
}


def outcome(
    seed: int, *, is_ahead: bool, exact: bool = False, blocks: int = 100_000, **changes: Any
) -> RunOutcome:
    agents = {
        "tasks": 3, "rate_rps": 4.0, "block_size": 16, "system_tokens": 512, "lead_turns": 4,
        "tool_output_tokens": {"dist": "lognormal", "mean": 120, "std": 90}, "team_size": 2,
        "teammate_turns": 2, "user_tokens": 60, "brief_tokens": 80, "answer_tokens": 40,
        "compact_at_tokens": None, "tool_pause_ms": 300, "history_policy": "drop_thinking",
        "speculative_prefill": is_ahead,
    }  # fmt: skip
    config = {
        "seed": seed,
        "workload": {"agents": agents},
        "engine": {"num_gpu_blocks": blocks, "block_size": 16, "max_num_batched_tokens": 256},
        "timing": {"kind": "polynomial"},
        **changes,
    }
    return run(RunConfig.of(config), check=True, exact_stepping=exact)


CLUSTERS = st.sampled_from([{"workers": 1}, {"workers": 3}, DISAGG])
MODES = st.sampled_from(["kv", "round-robin", "least-loaded"])


@given(st.integers(0, 2**31), CLUSTERS, MODES, st.integers(260, 600))
@settings(max_examples=8, deadline=None)
def test_in_bulk_all_goes_as_step_by_step_and_nothing_is_lost(
    seed: int, cluster: dict[str, Any], mode: str, blocks: int
) -> None:
    changes = {"cluster": cluster, "router": {"mode": mode}}
    bulk, single = (
        outcome(seed, is_ahead=True, exact=exact, blocks=blocks, **changes)
        for exact in (False, True)
    )
    one, other = bulk.result.requests, single.result.requests
    for name in ("worker_id", "cached_tokens", "status", "output_tokens"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)
    np.testing.assert_allclose(one.finish_ms, other.finish_ms, rtol=1e-9, atol=1e-6)
    report = bulk.report
    for key in ("speculative_prefills", "speculative_prefill_tokens", "speculative_hit_tokens"):
        assert report[key] == single.report[key]
    assert 0 <= report["speculative_hit_tokens"] <= report["speculative_prefill_tokens"]
    without = outcome(seed, is_ahead=False, blocks=blocks, **changes)
    assert report["num_requests"] == without.report["num_requests"]
    assert report["completed_requests"] == without.report["completed_requests"]


@given(st.integers(0, 2**31))
@settings(max_examples=8, deadline=None)
def test_in_a_large_cache_they_add_what_next_turns_find_of_them(seed: int) -> None:
    plain, ahead = (outcome(seed, is_ahead=one).result.requests for one in (False, True))
    gained = ahead.cached_tokens - plain.cached_tokens
    assert (gained >= 0).all()
    assert gained.sum() > 0
    assert gained.sum() == outcome(seed, is_ahead=True).report["speculative_hit_tokens"]
