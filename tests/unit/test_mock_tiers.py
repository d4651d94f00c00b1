"""A simulated engine behind a live frontend, with a host tier: what it tells, what it finds."""

import asyncio
import random
from typing import Any

import pytest
from mock_support import TIMING, VOCABULARY, FakeClock, TokenLog, call

from dynosim.blocks.hashing import local_hashes
from dynosim.config.cluster import TiersConfig
from dynosim.engine.lanes import LaneSpec
from dynosim.engine.spec import EngineSpec, HostCacheSpec
from dynosim.errors import ConfigError
from dynosim.indexer.make import make_indexer
from dynosim.indexer.wire import EngineEvent, to_block_event
from dynosim_runtime.mock.engine import MockEngine
from dynosim_runtime.mock.loop import EngineLoop
from dynosim_runtime.mock.stats import MockStats
from dynosim_runtime.mock.tiers import check_mock_tiers
from dynosim_runtime.mock.tokens import TokenSource

BLOCK = 4
LANES = LaneSpec(store_block_ms=1.5, load_block_ms=0.7)


def prompt_of(family: int, length: int) -> list[int]:
    """Families have their first three blocks in common."""
    return [*range(12), *(1000 * family + place for place in range(length - 12))]


@pytest.mark.parametrize("is_async", [False, True])
def test_what_it_finds_in_each_tier_is_what_its_events_say(is_async: bool) -> None:
    """Of prompts that do not end with a block: of those the last one has to be computed."""
    spec = EngineSpec(
        num_gpu_blocks=41,
        max_model_len=128,
        block_size=BLOCK,
        async_scheduling=is_async,
        host_cache=HostCacheSpec(num_chunks=100),
    )
    engine = MockEngine(spec, TIMING, TokenSource(3, VOCABULARY), MockStats(), None, LANES)
    index: Any = make_indexer("compressed")

    def publish(events: list[EngineEvent]) -> None:
        for event in events:
            index.apply(0, to_block_event(event, BLOCK))

    async def serve() -> list[tuple[int, int]]:
        clock, draw = FakeClock(), random.Random(5)
        loop = EngineLoop(engine, clock, publish)  # type: ignore[arg-type]
        running = asyncio.create_task(loop.run())
        hits: list[tuple[int, int]] = []
        for _ in range(60):
            prompt = prompt_of(draw.randrange(6), draw.choice([21, 37, 58]))
            said = index.find_tier_matches(local_hashes(prompt, BLOCK))
            log = TokenLog(clock)
            request = loop.submit(call(prompt, draw.choice([1, 9])), log)
            while not log.has_ended or engine.next_transfer_ms < float("inf"):
                await asyncio.sleep(0)
            sequence = request.sequence
            found = sequence.cached_tokens // BLOCK, sequence.external_tokens // BLOCK
            assert found == (said.device.depth_of(0), said.host.depth_of(0))
            assert request.cached_tokens == BLOCK * sum(found)
            hits.append(found)
        running.cancel()
        return hits

    hits = asyncio.run(serve())
    assert sum(device > 0 for device, _ in hits) > 10
    assert sum(host > 0 for _, host in hits) > 10
    assert engine.stats.external_hits == BLOCK * sum(host for _, host in hits)


@pytest.mark.parametrize(("pin_ttl_ms", "num_loaded"), [(None, 0), (1e6, 5)])
def test_a_host_tier_by_worth_keeps_what_a_client_has_pinned(
    pin_ttl_ms: float | None, num_loaded: int
) -> None:
    """After it two others fill the device (20 blocks) and the host (24)."""
    host = HostCacheSpec(num_chunks=24, policy="priority")
    spec = EngineSpec(num_gpu_blocks=21, max_model_len=128, block_size=BLOCK, host_cache=host)
    engine = MockEngine(spec, TIMING, TokenSource(3, VOCABULARY), MockStats(), None, LANES)
    pinned = call(range(21), 1, pin_ttl_ms=pin_ttl_ms)
    others = [call(range(first, first + 78), 1) for first in (100, 300)]

    async def serve() -> int:
        clock, external_tokens = FakeClock(), 0
        loop = EngineLoop(engine, clock, lambda events: None)  # type: ignore[arg-type]
        running = asyncio.create_task(loop.run())
        for one in [pinned, *others, pinned]:
            log = TokenLog(clock)
            request = loop.submit(one, log)
            while not log.has_ended or engine.next_transfer_ms < float("inf"):
                await asyncio.sleep(0)
            external_tokens = request.sequence.external_tokens
        running.cancel()
        return external_tokens

    assert asyncio.run(serve()) == BLOCK * num_loaded


@pytest.mark.parametrize(
    ("section", "key"),
    [
        ({"host": {"num_blocks": 9, "scope": "node"}}, "host.scope"),
        ({"disk": {"num_blocks": 9}}, "host"),
        ({"host": {"num_blocks": 9}, "disk": {"num_blocks": 9}}, "disk"),
        ({"host": {"num_blocks": 9}, "remote": {"num_blocks": 9}}, "remote"),
        ({"host": {"num_blocks": 9}, "peers_gb_s": 10}, "peers_gb_s"),
        ({"host": {"num_blocks": 9}, "onboard": "faster"}, "onboard"),
    ],
)
def test_tiers_that_it_does_not_have_are_refused(section: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^cluster\.tiers\.{key}: a simulated engine"):
        check_mock_tiers(TiersConfig.model_validate(section))


def test_a_host_tier_of_its_own_is_its_only_one() -> None:
    check_mock_tiers(None)
    check_mock_tiers(TiersConfig.model_validate({"host": {"num_blocks": 9}}))
