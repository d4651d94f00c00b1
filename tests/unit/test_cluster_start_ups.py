"""Workers that start, by hand: when each comes up, and what it read from whom. Times in ms."""

from random import Random
from statistics import mean, quantiles

import numpy as np
import pytest
from startup_support import GB, came_up, from_storage, launch, leave, many, running

from dynosim.cluster.starting import ALL_NODES, NOWHERE, StartUps
from dynosim.errors import ConfigError, InvariantError
from dynosim.workers.startup import (
    CheckpointSpec,
    CompileCache,
    Duration,
    ReadSpec,
    StartupSpec,
    WeightsSpec,
    constant,
)


def test_phases_follow_each_other() -> None:
    spec = StartupSpec(
        schedule=Duration(1.0),
        node=Duration(2.0),
        image=Duration(4.0),
        boot=Duration(8.0),
        weights=WeightsSpec(num_bytes=GB, storage=ReadSpec(node_gb_s=100.0, first_byte_ms=6.0)),
        compile=Duration(32.0),
        warm_up=Duration(64.0),
        probe=Duration(128.0),
    )
    up, starts = came_up([(5.0, launch(0, spec))])
    log = starts.log()
    assert up == {0: 5.0 + 255.0}
    assert log.phase == (
        "schedule", "node", "image", "boot", "weights", "compile", "warm_up", "probe"
    )  # fmt: skip
    np.testing.assert_allclose(log.end_ms - log.start_ms, [1, 2, 4, 8, 16, 32, 64, 128])
    assert log.is_complete.all() and log.num_bytes.tolist() == [0] * 4 + [GB] + [0] * 3
    assert log.node.tolist() == [0] * 5 + [ALL_NODES] * 3


def test_a_start_that_takes_no_time_is_over_at_once() -> None:
    up, starts = came_up([(3.0, launch(7, constant(0.0)))])
    assert up == {7: 3.0} and len(starts.log()) == 0


@pytest.mark.parametrize(
    ("number", "total_gb_s", "expected_ms"),
    [
        (1, 2.0, 10_000.0),  # 10 GB at the client's 1 GB/s
        (2, 2.0, 10_000.0),
        (4, 2.0, 20_000.0),
        (16, 2.0, 80_000.0),  # as N: the storage's 2 GB/s for 160 GB
        (16, None, 10_000.0),
    ],
)
def test_storage_is_shared_by_those_who_read(
    number: int, total_gb_s: float | None, expected_ms: float
) -> None:
    spec = from_storage(10.0, node_gb_s=1.0, total_gb_s=total_gb_s)
    up, _ = came_up(many(number, spec))
    assert up == pytest.approx(dict.fromkeys(range(number), expected_ms))


def test_who_comes_later_slows_down_who_reads() -> None:
    """The first has 2 of 4 GB when the second comes; they share until it has all, at 6 s."""
    spec = from_storage(4.0, node_gb_s=1.0, total_gb_s=1.0)
    up, _ = came_up([(0.0, launch(0, spec)), (2000.0, launch(1, spec))])
    assert up == pytest.approx({0: 6000.0, 1: 8000.0})


def test_pools_with_the_same_storage_share_it() -> None:
    spec = from_storage(4.0, node_gb_s=1.0, total_gb_s=1.0)
    other = from_storage(4.0, node_gb_s=1.0, total_gb_s=1.5)
    same = [(0.0, launch(0, spec, "prefill")), (0.0, launch(1, spec, "decode"))]
    assert came_up(same)[0] == pytest.approx({0: 8000.0, 1: 8000.0})
    apart = [(0.0, launch(0, spec, "prefill")), (0.0, launch(1, other, "decode"))]
    assert came_up(apart)[0] == pytest.approx({0: 4000.0, 1: 4000.0})


@pytest.mark.parametrize("when_ms", [1000.0, 4000.0])
def test_a_starter_that_leaves_reads_no_further(when_ms: float) -> None:
    spec = from_storage(4.0, node_gb_s=1.0, total_gb_s=1.0)
    up, starts = came_up([*many(2, spec), (when_ms, leave(0))])
    read = when_ms / 2000  # GB, of each by then
    log = starts.log()
    assert up == pytest.approx({1: when_ms + (4.0 - read) * 1000})
    assert log.num_bytes.tolist() == pytest.approx([read * GB, 4 * GB])
    assert (log.is_complete.tolist(), log.end_ms[0]) == ([False, True], when_ms)


def test_a_starter_that_leaves_before_it_reads_never_comes_up() -> None:
    spec = from_storage(4.0, node_gb_s=1.0, boot_ms=100.0)
    up, starts = came_up([(0.0, launch(0, spec)), (50.0, leave(0))])
    assert (up, starts.network.bytes_sent) == ({}, 0)
    assert starts.log().end_ms.tolist() == [50.0] and not starts.log().is_complete.any()


# ---- peers ---------------------------------------------------------------------------------------


def test_the_first_reads_from_storage_and_the_others_from_it() -> None:
    """10 s from storage, then three at once share the source's 5 GB/s: 30 GB in 6 s."""
    spec = from_storage(10.0, node_gb_s=1.0, total_gb_s=1.0, peer_gb_s=5.0)
    up, starts = came_up(many(4, spec))
    log = starts.log()
    assert up == pytest.approx({0: 10_000.0, 1: 16_000.0, 2: 16_000.0, 3: 16_000.0})
    reads = [row for row, phase in enumerate(log.phase) if phase == "weights"]
    assert log.source[reads].tolist() == [NOWHERE, 0, 0, 0]
    assert log.phase.count("wait_source") == 3


def test_one_receiver_at_a_time_makes_those_who_have_it_double() -> None:
    """10 s, then 2 s for each doubling: 1, 2, 4, 8."""
    spec = from_storage(
        10.0, node_gb_s=1.0, total_gb_s=1.0, peer_gb_s=5.0, receivers_per_source=1
    )  # fmt: skip
    up, _ = came_up(many(8, spec))
    assert list(up.values()) == pytest.approx([10_000.0, 12_000.0, *[14e3] * 2, *[16e3] * 4])


def test_a_worker_of_the_runs_start_is_a_source() -> None:
    spec = from_storage(10.0, node_gb_s=1.0, peer_gb_s=5.0)
    up, starts = came_up([(0.0, running(0, spec)), (0.0, launch(1, spec))])
    assert up == pytest.approx({1: 2000.0}) and starts.log().source.tolist() == [0]


def test_another_pools_worker_is_no_source() -> None:
    spec = from_storage(10.0, node_gb_s=1.0, peer_gb_s=5.0)
    up, _ = came_up([(0.0, running(0, spec, "prefill")), (0.0, launch(1, spec, "decode"))])
    assert up == pytest.approx({1: 10_000.0})


def test_who_loses_its_source_reads_the_rest_elsewhere() -> None:
    """5 of 10 GB by 1 s; the rest from storage at 1 GB/s."""
    spec = from_storage(10.0, node_gb_s=1.0, peer_gb_s=5.0)
    up, starts = came_up([(0.0, running(0, spec)), (0.0, launch(1, spec)), (1000.0, leave(0))])
    log = starts.log()
    assert up == pytest.approx({1: 6000.0})
    assert log.num_bytes.tolist() == [5 * GB, 5 * GB]
    assert log.source.tolist() == [0, NOWHERE] and log.is_complete.tolist() == [False, True]


def test_the_next_reads_from_storage_if_the_first_leaves() -> None:
    spec = from_storage(10.0, node_gb_s=1.0, peer_gb_s=5.0)
    up, _ = came_up([*many(3, spec), (4000.0, leave(0))])
    assert up == pytest.approx({1: 14_000.0, 2: 16_000.0})


def test_a_source_is_free_again_when_its_receiver_leaves() -> None:
    spec = from_storage(10.0, node_gb_s=1.0, peer_gb_s=5.0, receivers_per_source=1)
    acts = [(0.0, running(0, spec)), (0.0, launch(1, spec)), (0.0, launch(2, spec))]
    up, _ = came_up([*acts, (500.0, leave(1))])
    assert up == pytest.approx({2: 2500.0})


# ---- several nodes -------------------------------------------------------------------------------


def test_a_worker_of_several_nodes_goes_on_when_all_have_their_part() -> None:
    """10 GB on two nodes; each reads 5, and what follows begins with the slower one's end."""
    spec = StartupSpec(
        schedule=Duration.between(0.0, 2000.0),
        weights=WeightsSpec(num_bytes=10 * GB, storage=ReadSpec(node_gb_s=1.0)),
        compile=Duration(1000.0),
        nodes=2,
    )
    up, starts = came_up([(0.0, launch(0, spec))])
    log = starts.log()
    schedules = [float(log.end_ms[row]) for row in range(len(log)) if log.phase[row] == "schedule"]
    assert len(set(schedules)) == 2
    assert up[0] == pytest.approx(max(schedules) + 5000.0 + 1000.0)
    assert [int(log.node[row]) for row in range(len(log)) if log.phase[row] == "compile"] == [-1]


def test_nodes_that_share_a_remainder_read_all_of_it() -> None:
    spec = StartupSpec(nodes=3, weights=WeightsSpec(num_bytes=11, storage=ReadSpec(node_gb_s=1.0)))
    assert [spec.part_bytes(node) for node in range(3)] == [4, 4, 3]


def test_a_node_reads_from_the_one_that_has_the_same_part() -> None:
    spec = from_storage(10.0, node_gb_s=1.0, peer_gb_s=5.0, receivers_per_source=1, nodes=2)
    up, _ = came_up([(0.0, running(0, spec)), (0.0, launch(1, spec))])
    assert up == pytest.approx({1: 1000.0})


# ---- caches and checkpoints ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cache", "expected"),
    [("none", (100.0, 150.0)), ("shared", (100.0, 150.0, 210.0)), ("warm", (10.0, 60.0))],
)
def test_compiled_code_is_found_by_those_who_may(
    cache: CompileCache, expected: tuple[float, ...]
) -> None:
    """The second begins while the first compiles, the third after."""
    spec = StartupSpec(compile=Duration(100.0), compile_cached=Duration(10.0), compile_cache=cache)
    acts = [(0.0, launch(0, spec)), (50.0, launch(1, spec)), (200.0, launch(2, spec))]
    times = list(came_up(acts[: len(expected)])[0].values())
    assert times == pytest.approx(expected)


def test_workers_of_the_runs_start_have_compiled() -> None:
    spec = StartupSpec(
        compile=Duration(100.0), compile_cached=Duration(10.0), compile_cache="shared"
    )
    assert came_up([(0.0, running(0, spec)), (0.0, launch(1, spec))])[0] == {1: 10.0}


def restored(*, write_gb_s: float | None = None, waits: bool = False) -> StartupSpec:
    """Cold: 10 s; a restore: 2 s of reading and 1 s; a probe of 0.5 s both ways."""
    return StartupSpec(
        boot=Duration(4000.0),
        compile=Duration(6000.0),
        probe=Duration(500.0),
        checkpoint=CheckpointSpec(
            num_bytes=4 * GB,
            storage=ReadSpec(node_gb_s=2.0),
            restore=Duration(1000.0),
            write_gb_s=write_gb_s,
            waits=waits,
        ),
    )


def test_a_checkpoint_spares_all_but_its_own_reading() -> None:
    up, starts = came_up([(0.0, launch(0, restored()))])
    assert up == {0: 3500.0} and starts.log().phase == ("restore", "probe")


@pytest.mark.parametrize(("waits", "second_ms"), [(False, 11_500.0), (True, 17_500.0)])
def test_the_first_makes_the_checkpoint(waits: bool, second_ms: float) -> None:
    """It is made from 10 to 14 s; the second comes at 1 s, the third after it was made."""
    spec = restored(write_gb_s=1.0, waits=waits)
    acts = [(0.0, launch(0, spec)), (1000.0, launch(1, spec)), (20_000.0, launch(2, spec))]
    assert came_up(acts)[0] == pytest.approx({0: 14_500.0, 1: second_ms, 2: 23_500.0})


def test_another_one_makes_the_checkpoint_if_its_maker_leaves() -> None:
    spec = restored(write_gb_s=1.0, waits=True)
    up, _ = came_up([*many(3, spec), (12_000.0, leave(0))])
    assert up == pytest.approx({1: 26_500.0, 2: 29_500.0})


# ---- what is drawn -------------------------------------------------------------------------------


def test_a_lognormal_time_has_its_mean_and_p95() -> None:
    time, random = Duration(10_000.0, 18_000.0), Random(0)
    drawn = [time.draw_ms(random) for _ in range(20_000)]
    assert mean(drawn) == pytest.approx(10_000.0, rel=0.01)
    assert quantiles(drawn, n=20)[-1] == pytest.approx(18_000.0, rel=0.02)
    assert Duration(5.0, 5.0).draw_ms(random) == pytest.approx(5.0)


def test_an_even_time_keeps_to_its_range() -> None:
    time, random = Duration.between(2.0, 10.0), Random(0)
    drawn = [time.draw_ms(random) for _ in range(2000)]
    assert 2.0 <= min(drawn) < 2.1 and 9.9 < max(drawn) <= 10.0


def test_draws_are_a_workers_own() -> None:
    """Another worker beside it, or another phase that is drawn too, moves nothing."""
    spec = StartupSpec(boot=Duration(10.0, 15.0))
    more = StartupSpec(boot=Duration(10.0, 15.0), probe=Duration.between(0.0, 10.0))
    alone, _ = came_up([(0.0, launch(3, spec))])
    beside, _ = came_up([(0.0, launch(2, spec)), (0.0, launch(3, spec))])
    assert beside[3] == alone[3] != beside[2]
    log = came_up([(0.0, launch(3, more))])[1].log()
    assert log.end_ms[0] == alone[3]
    assert came_up([(0.0, launch(3, spec))], seed=1)[0] != alone


# ---- what cannot be ------------------------------------------------------------------------------


def _weights(num_bytes: int = 1, **more: float) -> WeightsSpec:
    return WeightsSpec(num_bytes=num_bytes, storage=ReadSpec(node_gb_s=1.0), **more)  # type: ignore[arg-type]


def _checkpoint(num_bytes: int = 1, write_gb_s: float | None = None) -> CheckpointSpec:
    storage = ReadSpec(node_gb_s=1.0)
    return CheckpointSpec(num_bytes=num_bytes, storage=storage, write_gb_s=write_gb_s)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Duration(-1.0),
        lambda: Duration(float("nan")),
        lambda: Duration(float("inf")),
        lambda: Duration.between(3.0, 2.0),
        lambda: Duration.between(-1.0, 2.0),
        lambda: Duration(10.0, 9.0),
        lambda: Duration(10.0, 39.0),
        lambda: Duration(10.0, 12.0, 1.0),
        lambda: ReadSpec(node_gb_s=0.0),
        lambda: ReadSpec(node_gb_s=1.0, total_gb_s=-2.0),
        lambda: ReadSpec(node_gb_s=1.0, first_byte_ms=-2.0),
        lambda: _weights(-1),
        lambda: _weights(peer_gb_s=0.0),
        lambda: _weights(receivers_per_source=0),
        lambda: _checkpoint(-1),
        lambda: _checkpoint(write_gb_s=0.0),
        lambda: StartupSpec(nodes=0),
        lambda: StartupSpec(nodes=2, checkpoint=_checkpoint()),
    ],
)
def test_what_cannot_be_is_refused(make: "type[object]") -> None:
    with pytest.raises(ConfigError):
        make()


def test_a_worker_starts_once() -> None:
    starts = StartUps(0)
    starts.launch(0, "workers", constant(1.0), 0.0)
    with pytest.raises(InvariantError):
        starts.launch(0, "workers", constant(1.0), 1.0)
    starts.leave(5, 2.0)  # one that nobody knows
