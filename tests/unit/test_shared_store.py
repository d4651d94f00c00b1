"""Routers see what the store of all workers holds of a prompt when it comes."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from probing import Ask, trace_of
from test_cluster_tiers import BLOCK, HOST, STORE, cluster

from dynosim.build.routing import router_spec
from dynosim.cluster import RunOptions, simulate
from dynosim.cluster.shared_store import SharedStore
from dynosim.cluster.tier_stores import TierStores
from dynosim.config import RunConfig
from dynosim.config.router import RouterConfig
from dynosim.engine.host_cache import Accesses, HostCache, Span
from dynosim.errors import ConfigError
from dynosim.experiment.run import run
from dynosim.memory.tiers import TierSpec
from dynosim.records import RunResult
from dynosim.router.knobs import CostSpec, RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.routerlog.replay import replay_log
from dynosim.workload.extents import prefix_extents


def put(store: HostCache, content: int, num_chunks: int) -> list[Span]:
    return store.offer([Span(content, 0, num_chunks)], Accesses())


def test_ranges_are_those_that_have_arrived_joined_where_they_meet() -> None:
    """Prompts of 4 blocks, of which one, three and four are alike: extents of 1, 2 and 1 block."""
    asks = [
        Ask(0.0, (1, 2, 3, 4), 0, last_tokens=1),
        Ask(1.0, (1, 2, 3, 9, 8), 0, last_tokens=1),
        Ask(2.0, (1, 7, 7), 0, last_tokens=1),
    ]
    extents = prefix_extents(trace_of(asks, BLOCK), BLOCK)
    path = extents.path[extents.path_offsets[1] : extents.path_offsets[2]].tolist()
    assert extents.extent_blocks[path].tolist() == [1, 2, 1]
    stores = TierStores()
    shared = SharedStore(stores, extents)
    assert shared.ranges_of(1) == ()
    store = stores.of_all = HostCache(100, "lru")
    first, middle, last = path
    new = put(store, first, 1)
    assert shared.ranges_of(1) == ()  # on its way
    store.stored(new)
    assert shared.ranges_of(1) == ((0, 1),) and shared.ranges_of(2) == ((0, 1),)
    store.stored(put(store, last, 1))
    assert shared.ranges_of(1) == ((0, 1), (3, 4))
    store.stored(put(store, middle, 1))
    assert shared.ranges_of(1) == ((0, 2), (3, 4))
    store.stored(put(store, middle, 2))
    assert shared.ranges_of(1) == ((0, 4),)
    assert shared.ranges_of(0) == ((0, 3),)


def routed(multiplier: float, *tiers: TierSpec) -> RunResult:
    """A prompt on its worker; another one there; then the first prompt again, with a new end."""
    asks = [
        Ask(0.0, (1, 2, 3, 4, 5), 0, last_tokens=1),
        Ask(100.0, (1, 2, 3, 4, 11, 12), 0, last_tokens=1),
        Ask(101.0, (1, 2, 3, 4, 6), 0, last_tokens=1),
    ]
    cost = CostSpec(shared_cache_multiplier=multiplier)
    spec = replace(
        cluster(*tiers, workers=2), routing=RoutingSpec(RouterSpec(BLOCK, mode="kv", cost=cost))
    )
    return simulate(trace_of(asks, BLOCK), spec, RunOptions())


@pytest.mark.parametrize("tiers", [(STORE,), (HOST, STORE)])
def test_who_would_wait_is_sent_where_the_store_spares_the_prefill(
    tiers: tuple[TierSpec, ...],
) -> None:
    """The worker with the prefix would come to 0.25 + 1.25 blocks of prefill and 5 to hold, the
    other one to 4.25, of which the store saves half of 4, and 4 to hold: 6.5 to 8.25 or 6.25."""
    unseen, seen = routed(0.0, *tiers), routed(0.5, *tiers)
    first, second, third = unseen.requests.worker_id.tolist()
    assert first == second == third
    assert seen.requests.worker_id.tolist() == [first, first, 1 - first]
    assert seen.requests.onboards is not None
    assert seen.requests.onboards.num_tokens.tolist() == [0, 0, 4 * BLOCK]
    assert seen.routing is not None and seen.routing.overlap_blocks[2] == 0  # of its own


def test_without_a_store_in_use_choices_are_the_same() -> None:
    without, with_it = routed(0.0, HOST), routed(1.0, HOST)
    np.testing.assert_array_equal(without.requests.worker_id, with_it.requests.worker_id)


CONFIG: dict[str, Any] = {
    "workload": {
        "synthetic": {
            "sessions": 40, "isl": 256, "osl": 8, "turn_isl": 64, "rate_rps": 40,
            "turns": {"dist": "geometric", "mean": 4}, "shared_prefix_ratio": 0.5,
            "prefix_groups": 4, "think_time_ms": 200, "block_size": 64,
        }
    },
    "engine": {"num_gpu_blocks": 80},
    "timing": {"kind": "polynomial"},
    "router": {"mode": "kv", "shared_cache_multiplier": 0.5},
    "cluster": {
        "workers": 3,
        "tiers": {
            "kv_bytes_per_token": 1000,
            "remote": {"num_blocks": 1000, "read_gb_s": 1, "write_gb_s": 1},
        },
    },
}  # fmt: skip


def test_a_log_of_inputs_has_what_the_store_held_and_replays(tmp_path: Path) -> None:
    log = tmp_path / "router.jsonl"
    outcome = run(RunConfig.model_validate(CONFIG), router_log=log)
    assert '"shared_ranges":[[0,' in log.read_text()
    verdict = replay_log(log)
    assert verdict.line is None
    assert verdict.num_decisions == len(outcome.trace)
    unheard = tmp_path / "unheard.jsonl"
    unheard.write_text(log.read_text().replace('"shared_ranges"', '"no_ranges"'))
    with pytest.raises(ConfigError):
        replay_log(unheard)


def test_a_multiplier_without_a_store_is_refused() -> None:
    tiers = {"host": {"num_blocks": 9, "preset": "pcie5"}, "kv_bytes_per_token": 1000}
    data = CONFIG | {"cluster": {"workers": 3, "tiers": tiers}}
    with pytest.raises(ConfigError, match=r"shared_cache_multiplier: there is no store"):
        run(RunConfig.model_validate(data))


def test_who_goes_by_load_alone_does_not_look_at_the_store() -> None:
    router = RouterConfig(mode="kv", load_aware=True, shared_cache_multiplier=0.5)
    assert router_spec(router, block_size=16, seed=0).cost.shared_cache_multiplier == 0
