"""The live router of a plan: settings that need the engine, and what cannot be served."""

from pathlib import Path
from typing import Any

import pytest
from router_support import Doors

from dynosim.blocks.hashing import local_hashes, sequence_hashes
from dynosim.config import RunConfig
from dynosim.config.loading import run_config_from_dict
from dynosim.errors import ConfigError
from dynosim.router.decision import Decision
from dynosim.router.request import RoutingRequest
from dynosim.router.workers import WorkerCard
from dynosim.routerlog.replay import replay_log
from dynosim_runtime.config import check_live
from dynosim_runtime.serving.make_router import LiveRouting

BLOCK = 16


def plan(**sections: Any) -> RunConfig:
    return run_config_from_dict(
        {
            "workload": {"synthetic": {"requests": 1, "isl": 1, "osl": 1, "rate_rps": 1}},
            "timing": {"kind": "linear", "base_ms": 10.0, "per_prefill_token_ms": 1.0},
            "engine": {
                "num_gpu_blocks": 10,
                "block_size": BLOCK,
                "max_num_batched_tokens": 100,
                "max_num_seqs": 8,
                "max_model_len": 100,
            },
            **sections,
        }
    )


def ask(name: str, first_token: int, num_tokens: int, **more: Any) -> RoutingRequest:
    local = local_hashes(list(range(first_token, first_token + num_tokens)), BLOCK)
    return RoutingRequest(name, num_tokens, len(local), local, sequence_hashes(local), **more)


@pytest.mark.parametrize("is_logged", [True, False])
def test_prefill_load_decays_by_the_plans_step_times(tmp_path: Path, is_logged: bool) -> None:
    config = plan(
        router={"mode": "kv", "prefill_load_model": "timing"}, live={"router_log": is_logged}
    )
    routing = LiveRouting(config, tmp_path)
    router = Doors(routing.inputs)
    router.add_worker(WorkerCard(1, BLOCK))
    decision = router.submit(ask("a", 0, 90), 0.0)
    assert isinstance(decision, Decision)
    assert router.load.active_prefill_tokens(0.0) == [90]
    assert router.load.active_prefill_tokens(50.0) == [45]  # of 10 + 90 ms
    router.submit(ask("b", 500, 90), 60.0)
    routing.close()
    if is_logged:
        verdict = replay_log(tmp_path / "router")
        assert verdict.is_equal and verdict.num_decisions == 2


def test_prefill_load_decays_as_fast_as_simulated_engines_compute(tmp_path: Path) -> None:
    routing = LiveRouting(plan(router={"mode": "kv", "prefill_load_model": "timing"}), tmp_path)
    router = Doors(routing.inputs)
    router.add_worker(WorkerCard(1, BLOCK))
    routing.follow_speedups([])
    routing.follow_speedups([4.0, 8.0])
    router.submit(ask("a", 0, 90), 0.0)
    assert router.load.active_prefill_tokens(12.5) == [45]  # of (10 + 90) / 4 ms
    router.submit(ask("b", 500, 90), 15.0)
    routing.close()
    assert replay_log(tmp_path / "router").is_equal


def test_guesses_bounded_by_capacity_know_the_size_of_the_cache() -> None:
    config = plan(router={"mode": "kv", "use_kv_events": False, "approximate_cache_policy": "lru"})
    router = Doors(LiveRouting(config, None).inputs)
    router.add_worker(WorkerCard(1, BLOCK))
    for number in range(10):
        router.submit(ask(str(number), 1000 * number, 4 * BLOCK), float(number))
        router.free(str(number), float(number))
    again = router.submit(ask("again", 0, 4 * BLOCK), 10.0)
    latest = router.submit(ask("latest", 9000, 4 * BLOCK), 10.0)
    assert again is not None and again.overlap_blocks == 0
    assert latest is not None and latest.overlap_blocks > 0


def test_a_class_takes_the_requests_that_name_its_family() -> None:
    classes = [
        {"name": "batch", "policy_family": "batch", "prefill_busy_threshold": 0},
        {"name": "rest"},
    ]
    router = Doors(LiveRouting(plan(router={"mode": "kv", "policy_classes": classes}), None).inputs)
    router.add_worker(WorkerCard(1, BLOCK))
    assert router.submit(ask("a", 0, 90), 0.0) is not None
    assert router.submit(ask("b", 0, 90, policy_family="batch"), 0.0) is None
    assert router.submit(ask("c", 0, 90, policy_family="other"), 0.0) is not None


def test_several_frontends_can_be_simulated_but_not_served() -> None:
    with pytest.raises(ConfigError, match=r"router.frontends: 2, .* runs one frontend"):
        check_live(plan(router={"mode": "kv", "frontends": 2}))


def test_no_live_router_knows_of_a_store_that_all_workers_share() -> None:
    with pytest.raises(ConfigError, match=r"shared_cache_multiplier: live routers know of no"):
        check_live(plan(router={"mode": "kv", "shared_cache_multiplier": 0.5}))
    check_live(plan(router={"mode": "kv"}))
