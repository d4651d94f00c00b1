"""Laws of rotating router logs: every file replays on its own, and rotation changes nothing."""

import random
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from router_streams import Pace, Stream, random_event, random_index, random_settings
from router_support import BLOCK, Doors, card, request

from dynosim.blocks.tier import Tier
from dynosim.indexer.compressed import CompressedRadixIndex
from dynosim.indexer.tiers import TieredIndex
from dynosim.router.knobs import RouterSpec
from dynosim.router.kv_router import KvRouter
from dynosim.router.log.checkpoint import checkpoint, difference
from dynosim.router.log.replay import replay_entry
from dynosim.routerlog import rotating as rotating_log
from dynosim.routerlog.replay import log_files, replay_log
from dynosim.routerlog.rotating import RotatingLog

SEEDS = st.integers(0, 2**32 - 1)


@pytest.fixture(autouse=True)
def one_rank_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotating_log, "PART_S", -1.0)


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_every_file_replays_and_rotation_changes_no_decision(seed: int) -> None:
    rng = random.Random(seed)
    made, index = random_settings(rng), random_index(rng)
    estimator = Pace() if rng.random() < 0.3 else None
    with TemporaryDirectory() as folder:
        log = RotatingLog(Path(folder), max_bytes=rng.choice([2_000, 20_000]), max_files=1000)
        router = Doors(log.open(made, index, estimator=estimator))
        unlogged = KvRouter(made, index.make(), estimator=estimator)
        stream = Stream(rng, takes_events=index.kind != "approximate")
        for _ in range(rng.randint(50, 400)):
            answers = stream.step([router, unlogged])
            assert answers[0] == answers[1]
            if rng.random() < 0.5:
                log.maintain()
        assert difference(router.router, unlogged) is None
        log.close()
        assert log.failure is None
        verdict = replay_log(Path(folder))
        assert verdict.is_equal, verdict
        assert not verdict.notes
        for path in log_files(Path(folder)):
            assert replay_log(path).is_equal


@settings(max_examples=15, deadline=None)
@given(SEEDS)
def test_policies_with_and_without_state_replay(seed: int) -> None:
    rng = random.Random(seed)
    made, index = random_settings(rng), random_index(rng)
    policy = rng.choice(["router_streams:Evenly", "router_streams:EvenlyWithState",
                         "examples.thompson:ThompsonSampling"])  # fmt: skip
    with TemporaryDirectory() as folder:
        log = RotatingLog(Path(folder), max_bytes=10_000, max_files=1000)
        router = Doors(log.open(made, index, policy=policy))
        stream = Stream(rng, takes_events=index.kind != "approximate")
        for _ in range(200):
            stream.step([router])
            log.maintain()
        log.close()
        assert log.failure is None
        assert replay_log(Path(folder)).is_equal


@settings(max_examples=30, deadline=None)
@given(SEEDS)
def test_a_tiered_index_goes_on_from_a_checkpoint(seed: int) -> None:
    rng = random.Random(seed)
    made = RouterSpec(BLOCK, mode="kv")
    routers = [KvRouter(made, TieredIndex(CompressedRadixIndex())) for _ in range(2)]
    held: dict[int, dict[int, tuple[int, ...]]] = {0: {}, 1: {}}

    def tell(told: list[KvRouter], count: int) -> None:
        for _ in range(count):
            worker_id = rng.randint(0, 1)
            event = random_event(rng, held[worker_id], rng.choice(list(Tier)), salts=[0])
            for router in told:
                router.apply_events(worker_id, 0, [event])

    for worker_id in held:
        routers[0].add_worker(card(worker_id))
    tell(routers[:1], 40)
    for entry in checkpoint(routers[0], 1.0):
        replay_entry(routers[1], msgspec.json.decode(msgspec.json.encode(entry)))
    assert difference(*routers) is None
    tell(routers, 40)
    assert difference(*routers) is None
    for _ in range(20):
        made_request = request("r", [rng.randint(0, 2) for _ in range(6)])
        one, other = (router.choice.options(made_request, 0b11, 2.0) for router in routers)
        assert one == other
