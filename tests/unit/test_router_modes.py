"""Modes that look at load alone."""

from collections import Counter
from random import Random

import pytest
from router_support import card

from dynosim.errors import ConfigError
from dynosim.router.modes import (
    DeviceAwareWeighted,
    LeastLoaded,
    PowerOfTwo,
    RandomChoice,
    RoundRobin,
    make_load_mode,
)
from dynosim.router.workers import WorkerTable

ALL = 0b1111


def table(num_gpus: int, num_cpus: int) -> WorkerTable:
    made = WorkerTable(16)
    for worker_id in range(num_gpus + num_cpus):
        made.add(card(worker_id, device="gpu" if worker_id < num_gpus else "cpu"))
    return made


def test_round_robin_takes_each_eligible_slot_in_turn() -> None:
    mode = RoundRobin()
    assert [mode.choose(ALL, [0] * 4) for _ in range(6)] == [0, 1, 2, 3, 0, 1]
    assert [mode.choose(0b1001, [0] * 4) for _ in range(3)] == [3, 0, 3]


def test_random_spreads_evenly() -> None:
    mode = RandomChoice(Random(1))
    chosen = Counter(mode.choose(0b1011, [0] * 4) for _ in range(3000))
    assert set(chosen) == {0, 1, 3}
    assert all(900 < count < 1100 for count in chosen.values())


def test_power_of_two_takes_the_less_loaded_of_two_and_never_the_worst() -> None:
    mode = PowerOfTwo(Random(1))
    chosen = Counter(mode.choose(ALL, [0, 1, 2, 3]) for _ in range(6000))
    # Slot i wins against those that are more loaded: 3, 2, 1 and 0 of the 6 pairs.
    assert [round(chosen[slot] / 1000) for slot in range(4)] == [3, 2, 1, 0]


def test_least_loaded_takes_the_lowest_of_equals() -> None:
    assert LeastLoaded().choose(ALL, [2, 1, 1, 3]) == 1
    assert LeastLoaded().choose(0b1001, [2, 1, 1, 3]) == 0


def test_one_gpu_with_eight_requests_equals_one_cpu_with_one() -> None:
    mode = DeviceAwareWeighted(table(1, 1))
    assert mode.choose(0b11, [8, 1]) == 0  # a tie goes to the GPU
    assert mode.choose(0b11, [9, 1]) == 1
    assert mode.choose(0b11, [7, 1]) == 0


def test_group_loads_are_means_over_members() -> None:
    mode = DeviceAwareWeighted(table(2, 1), cuda_to_cpu_ratio=4.0)
    assert mode.choose(0b111, [4, 4, 1]) == 0  # 8 / (2 * 4) = 1 = 1 / 1
    assert mode.choose(0b111, [5, 4, 1]) == 2


@pytest.mark.parametrize("num_cpus", [0, 5])
def test_with_one_kind_of_device_it_is_least_loaded(num_cpus: int) -> None:
    made = table(5 - num_cpus, num_cpus)
    rng = Random(3)
    for _ in range(300):
        load = [rng.randint(0, 4) for _ in range(5)]
        eligible = rng.randint(1, 31)
        ours = DeviceAwareWeighted(made).choose(eligible, load)
        assert ours == LeastLoaded().choose(eligible, load)


def test_in_the_long_run_a_gpu_gets_eight_times_what_a_cpu_gets() -> None:
    """Requests that never end share themselves out by the weights."""
    mode = DeviceAwareWeighted(table(1, 1))
    load = [0, 0]
    for _ in range(9000):
        load[mode.choose(0b11, load)] += 1
    assert load[0] / load[1] == pytest.approx(8.0, rel=0.01)


def test_an_unknown_mode_names_the_known_ones() -> None:
    with pytest.raises(ConfigError, match="least-loaded"):
        make_load_mode("fastest", Random(1), table(1, 0))
