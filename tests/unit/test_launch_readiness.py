"""When a worker counts as serving: by a card of its own, not its predecessor's."""

import asyncio
from pathlib import Path

import pytest
from waiting import PATIENCE_S

from dynosim_runtime.discovery.file import FileDiscovery
from dynosim_runtime.launch import readiness
from dynosim_runtime.launch.readiness import Readiness
from dynosim_runtime.launch.specs import ProcessSpec
from dynosim_runtime.testing.discovery import card_of

WORKER = ProcessSpec(name="a", role="worker", command=())


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "PROBE_INTERVAL_S", 0.002)


async def test_a_worker_serves_once_its_own_card_is_there(tmp_path: Path) -> None:
    place = FileDiscovery(tmp_path, 60.0, 0.005)
    seen = Readiness(f"file:{tmp_path}", 0.02)
    watching = asyncio.create_task(seen.watch_cards())

    async def until_known(is_known: bool) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while await seen.is_answering(WORKER) is not is_known:
                await asyncio.sleep(0.002)

    await until_known(False)
    waiting = asyncio.create_task(seen.wait_for(WORKER))
    registration = await place.register(card_of("a", url="http://h:81", pid=1))
    assert await asyncio.wait_for(waiting, PATIENCE_S) == 81
    # Started again: the card that is there is the predecessor's.
    waiting = asyncio.create_task(seen.wait_for(WORKER))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    await registration.update(card_of("a", url="http://h:82", pid=2, is_draining=True))
    await asyncio.sleep(0.05)
    assert not waiting.done()  # another card, but of one that leaves
    await registration.update(card_of("a", url="http://h:83", pid=2))
    assert await asyncio.wait_for(waiting, PATIENCE_S) == 83
    # The same card again counts when it has been away.
    waiting = asyncio.create_task(seen.wait_for(WORKER))
    await asyncio.sleep(0.01)
    await registration.close()
    await until_known(False)
    await asyncio.sleep(0.01)  # longer than a probe's pause: it has seen that, too
    registration = await place.register(card_of("a", url="http://h:83", pid=2))
    assert await asyncio.wait_for(waiting, PATIENCE_S) == 83
    await registration.close()
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)
    await seen.close()
