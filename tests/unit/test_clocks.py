"""Measured and predicted times go by one clock, or are not compared."""

import re
from typing import Any

import pytest

from dynosim.errors import ConfigError
from dynosim_runtime.errors import LiveError
from dynosim_runtime.measure.clocks import check_clocks, reported_speedups

ENGINE = """# TYPE vllm:prefix_cache_queries counter
vllm:prefix_cache_queries_total 0
dynosim:mock_speedup 20
"""


class Serves:
    """A client of what has these pages."""

    url = "http://there"

    def __init__(self, *, workers: Any = None, metrics: str | None = None) -> None:
        self._workers, self._metrics = workers, metrics

    async def get_json(self, path: str) -> Any:
        assert path == "/workers"
        if self._workers is None:
            raise LiveError("no such page")
        return {"workers": self._workers}

    async def get_text(self, path: str) -> str:
        assert path == "/metrics"
        if self._metrics is None:
            raise LiveError("no such page")
        return self._metrics


async def said(server: Serves, speedup: float) -> str | None:
    try:
        await check_clocks(server, speedup)  # type: ignore[arg-type]
    except ConfigError as error:
        return str(error)
    return None


async def test_a_deployment_that_hurries_is_compared_at_its_own_speed_only() -> None:
    hurried = Serves(workers=[{"speedup": 4.0}, {"speedup": 4.0}])
    assert await said(hurried, 4.0) is None
    assert await said(hurried, 1.0) == (
        "--speedup 1: what serves at http://there computes 4 times faster than its step times say "
        "(use --speedup 4)"
    )
    real = Serves(workers=[{"speedup": 1.0}])
    assert "(use --speedup 1)" in str(await said(real, 4.0))


async def test_workers_without_a_clock_in_common_are_not_compared() -> None:
    mixed = Serves(workers=[{"speedup": 4.0}, {"speedup": 1.0}])
    for speedup in (1.0, 4.0):
        assert "1, 4 times" in str(await said(mixed, speedup))


async def test_an_engine_alone_tells_its_speed_on_its_metrics_page() -> None:
    assert await said(Serves(metrics=ENGINE), 20.0) is None
    assert re.search("use --speedup 20", str(await said(Serves(metrics=ENGINE), 1.0)))


@pytest.mark.parametrize("server", [Serves(), Serves(workers=[{}]), Serves(metrics="x 1")])
async def test_who_tells_no_speed_is_taken_by_the_users_word(server: Serves) -> None:
    assert await said(server, 1.0) is None
    assert await said(server, 4.0) is None


def test_what_workers_tell_of_their_speed_is_read_once_each() -> None:
    rows = [{"speedup": 4.0}, {"speedup": 4.0}, {"speedup": 1}, {}, {"speedup": "x"}, None]
    assert reported_speedups(rows) == (1, 4.0)
    assert reported_speedups([]) == ()
