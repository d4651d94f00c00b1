"""Discovery in etcd, what needs no server."""

import asyncio
from typing import Any

import pytest

from dynosim_runtime.discovery.etcd import EtcdDiscovery


class Stream:
    """A watch's stream, whose next part the test gives."""

    def __init__(self) -> None:
        self.part: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def readany(self) -> bytes:
        return await self.part


async def test_a_watch_that_is_cancelled_as_news_arrive_ends() -> None:
    stream: Any = Stream()
    task = asyncio.create_task(EtcdDiscovery("http://127.0.0.1:1", 5.0)._rings(stream))
    await asyncio.sleep(0)
    stream.part.set_result(b"news")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.parametrize(("lease_s", "expected"), [(0.5, 2), (2.0, 2), (4.2, 5), (30.0, 30)])
def test_leases_are_whole_seconds_that_etcd_grants(lease_s: float, expected: int) -> None:
    assert EtcdDiscovery("http://127.0.0.1:1", lease_s).lease_s == expected
