"""Requests that leave a worker go where a flow says, and are over only behind the last station."""

import numpy as np
import pytest
from clusters import equal_workers

from dynosim.cluster.cluster import Cluster
from dynosim.cluster.journal import Journal
from dynosim.cluster.launcher import Launcher
from dynosim.cluster.requests import Requests
from dynosim.cluster.routing import make_placer
from dynosim.engine.pace import NEVER
from dynosim.engine.sequence import Sequence
from dynosim.engine.spec import EngineSpec
from dynosim.records import Trace
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import FixedModel
from dynosim.workload.extents import prefix_extents
from dynosim.workload.load import LoadDriver

SPEC = EngineSpec(num_gpu_blocks=101, max_model_len=64)
STEP_MS, LINK_MS = 10.0, 7.0


class Link:
    """Carries one request after the other, each in the same time; notes who left it when."""

    def __init__(self) -> None:
        self.next_ms = NEVER
        self.left: list[tuple[int, float]] = []
        self._waiting: list[Sequence] = []

    def add(self, sequence: Sequence, now_ms: float) -> bool:
        self._waiting.append(sequence)
        return False

    def start(self, now_ms: float) -> None:
        if self._waiting:
            self.next_ms = now_ms + LINK_MS

    def complete(self, now_ms: float) -> list[Sequence]:
        self.next_ms = NEVER
        carried = self._waiting.pop(0)
        self.left.append((carried.index, now_ms))
        return [carried]


class OverTheLink:
    """From any worker over the link, and then nowhere."""

    def __init__(self, link_id: int) -> None:
        self._link_id = link_id

    def next(self, sequence: Sequence, left: int, now_ms: float) -> int | None:
        return None if left == self._link_id else self._link_id


def trace_of(count: int) -> Trace:
    return Trace(
        arrival_ms=np.zeros(count),
        input_tokens=np.full(count, 20),
        output_tokens=np.full(count, 3),
        hash_ids=np.zeros(0, np.int64),
        hash_offsets=np.zeros(count + 1, np.int64),
        trace_block_size=16,
    )


def run(count: int, *, concurrency: int | None, exact: bool) -> tuple[Journal, Link, Cluster]:
    trace = trace_of(count)
    spec = equal_workers(SPEC, FixedModel(STEP_MS, STEP_MS), num_workers=2)
    routing = RoutingSpec(RouterSpec(SPEC.block_size, mode="round-robin"))
    extents = prefix_extents(trace, SPEC.block_size, single_blocks=False)
    journal, link = Journal(trace), Link()
    cluster = Cluster(
        Requests(trace, extents, spec),
        launcher=Launcher(extents, journal, routing, steps_singly=exact),
        placer=make_placer(routing, trace, extents, spec.cards()),
        load=LoadDriver(trace, concurrency),
        journal=journal,
        flow=OverTheLink(0),
    )
    assert cluster.add_station(link) == 0
    for pool in spec.pools * 2:
        cluster.make_ready(cluster.launch(pool, 0.0), 0.0)
    cluster.run_until(NEVER)
    return journal, link, cluster


@pytest.mark.parametrize("exact", [False, True])
def test_what_leaves_workers_at_once_crosses_a_link_one_by_one(exact: bool) -> None:
    journal, link, cluster = run(4, concurrency=None, exact=exact)
    assert journal.finish_ms.tolist() == [3 * STEP_MS] * 4
    assert [at_ms for _, at_ms in link.left] == [3 * STEP_MS + LINK_MS * n for n in (1, 2, 3, 4)]
    assert sorted(index for index, _ in link.left) == [0, 1, 2, 3]
    assert cluster.num_ended == 4 and cluster.next_ms() == NEVER


@pytest.mark.parametrize("exact", [False, True])
def test_a_request_ends_behind_the_last_station(exact: bool) -> None:
    journal, link, cluster = run(3, concurrency=1, exact=exact)
    assert journal.arrival_ms.tolist() == [n * (3 * STEP_MS + LINK_MS) for n in range(3)]
    assert [index for index, _ in link.left] == [0, 1, 2]
    assert cluster.num_ended == 3
