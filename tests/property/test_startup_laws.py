"""Laws of starts, over random specs, launches and ends."""

import random
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from startup_support import GB, Act, came_up, launch, leave, running

from dynosim.cluster.starting import ALL_NODES, StartUps
from dynosim.workers.startup import CheckpointSpec, Duration, ReadSpec, StartupSpec, WeightsSpec

SEEDS = st.integers(0, 2**32 - 1)


def random_duration(rng: random.Random) -> Duration:
    mean_ms = rng.choice([0.0, 0.0, rng.uniform(1.0, 5000.0)])
    if rng.random() < 0.3:
        return Duration(mean_ms, mean_ms * rng.uniform(1.0, 3.8))
    return Duration.between(mean_ms * rng.random(), mean_ms)


def random_spec(rng: random.Random) -> StartupSpec:
    storage = ReadSpec(
        node_gb_s=rng.choice([0.5, 2.0]),
        total_gb_s=rng.choice([None, 0.5, 3.0]),
        first_byte_ms=rng.choice([0.0, 20.0]),
    )
    nodes = rng.choice([1, 1, 2, 3])
    weights = WeightsSpec(
        num_bytes=rng.choice([0, 7, GB, 10 * GB + 1]),
        storage=storage,
        peer_gb_s=rng.choice([None, 4.0]),
        receivers_per_source=rng.choice([None, 1, 2]),
    )
    checkpoint = CheckpointSpec(
        num_bytes=2 * GB,
        storage=storage,
        restore=random_duration(rng),
        write_gb_s=rng.choice([None, 1.0]),
        waits=rng.random() < 0.5,
    )
    return StartupSpec(
        schedule=random_duration(rng),
        boot=random_duration(rng),
        weights=weights,
        compile=random_duration(rng),
        compile_cached=random_duration(rng),
        compile_cache=rng.choice(["none", "shared", "warm"]),
        warm_up=random_duration(rng),
        probe=random_duration(rng),
        checkpoint=checkpoint if nodes == 1 and rng.random() < 0.4 else None,
        nodes=nodes,
    )


def random_acts(rng: random.Random, spec: StartupSpec) -> tuple[list[Act], set[int]]:
    """Launches, and ends of some; who ends."""
    acts: list[Act] = []
    gone: set[int] = set()
    for worker_id in range(rng.randint(1, 7)):
        at_ms = rng.choice([0.0, 0.0, rng.uniform(0.0, 20_000.0)])
        start = running if rng.random() < 0.15 else launch
        acts.append((at_ms, start(worker_id, spec)))
        if rng.random() < 0.35:
            acts.append((at_ms + rng.uniform(0.0, 30_000.0), leave(worker_id)))
            gone.add(worker_id)
    return acts, gone


def made(seed: int) -> tuple[StartupSpec, dict[int, float], StartUps, set[int]]:
    rng = random.Random(seed)
    spec = random_spec(rng)
    acts, gone = random_acts(rng, spec)
    up, starts = came_up(acts, seed=seed)
    return spec, up, starts, gone


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_bytes_are_neither_lost_nor_read_twice(seed: int) -> None:
    """Each node that has loaded has read its part, whatever it was interrupted by."""
    spec, up, starts, _ = made(seed)
    network, log = starts.network, starts.log()
    assert network.bytes_in_flight == 0
    assert network.bytes_sent == network.bytes_received + network.bytes_lost == log.num_bytes.sum()
    read: dict[tuple[int, int], int] = defaultdict(int)
    booted: set[tuple[int, int]] = set()
    for row, phase in enumerate(log.phase):
        node = int(log.worker_id[row]), int(log.node[row])
        if phase == "weights":
            read[node] += int(log.num_bytes[row])
            booted.add(node)
    for worker_id, node in booted:
        if worker_id in up:
            assert read[worker_id, node] == spec.part_bytes(node)


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_nobody_reads_faster_than_its_own_link_or_all_together_than_what_they_share(
    seed: int,
) -> None:
    spec, _, starts, _ = made(seed)
    log, weights = starts.log(), spec.weights
    assert weights is not None
    of_storage = np.array([phase in ("weights", "restore") for phase in log.phase], bool)
    of_storage &= (log.source < 0) & (log.num_bytes > 0)
    for row in np.flatnonzero((log.num_bytes > 0) & ~np.isnan(log.end_ms)).tolist():
        fastest = weights.storage.node_gb_s if log.source[row] < 0 else weights.peer_gb_s
        assert fastest is not None
        least_ms = log.num_bytes[row] / (fastest * 1e6)
        assert log.end_ms[row] - log.start_ms[row] >= least_ms - 1e-3
    total = weights.storage.total_gb_s
    if total is not None and of_storage.any():
        span_ms = np.nanmax(log.end_ms[of_storage]) - log.start_ms[of_storage].min()
        assert log.num_bytes[of_storage].sum() <= total * 1e6 * span_ms + 1e3


@settings(max_examples=150, deadline=None)
@given(SEEDS)
def test_all_come_up_but_those_that_leave_before(seed: int) -> None:
    """And each phase of a node begins when the one before has ended."""
    _, up, starts, gone = made(seed)
    log = starts.log()
    launched = set(log.worker_id.tolist())
    assert launched - set(up) <= gone
    for worker_id in launched:
        rows = np.flatnonzero(log.worker_id == worker_id)
        assert not np.isnan(log.end_ms[rows]).any()
        if worker_id in up:
            assert log.end_ms[rows].max() == pytest.approx(up[worker_id])
        for node in set(log.node[rows].tolist()) - {ALL_NODES}:
            own = rows[log.node[rows] == node]
            np.testing.assert_allclose(log.start_ms[own][1:], log.end_ms[own][:-1], atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(SEEDS)
def test_the_same_seed_gives_the_same_starts_to_the_bit(seed: int) -> None:
    first, second = made(seed), made(seed)
    assert first[1] == second[1]
    for name in first[2].log().__slots__:
        assert repr(getattr(first[2].log(), name)) == repr(getattr(second[2].log(), name))
