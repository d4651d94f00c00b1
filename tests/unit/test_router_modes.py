"""Modes that look at load alone."""

from collections import Counter
from itertools import permutations
from random import Random

import pytest
from router_support import Points, card

from dynosim.errors import ConfigError
from dynosim.router.modes import (
    LOAD_MODES,
    MODES,
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
    assert [mode.choose(0b0110, [0] * 4) for _ in range(3)] == [1, 2, 1]
    assert mode.choose(0b0010, [0] * 4) == 1  # itself again, where nobody else may


def test_random_spreads_evenly() -> None:
    mode = RandomChoice(Random(1))
    chosen = Counter(mode.choose(0b1011, [0] * 4) for _ in range(3000))
    assert set(chosen) == {0, 1, 3}
    assert all(900 < count < 1100 for count in chosen.values())


def test_random_takes_each_by_an_equal_share() -> None:
    mode = RandomChoice(Points(0.0, 0.33, 0.34, 0.66, 0.67, 0.999))
    assert [mode.choose(0b10110, [9] * 5) for _ in range(6)] == [1, 1, 2, 2, 4, 4]


@pytest.mark.parametrize("load", [[0, 1, 2, 3], [3, 2, 1, 0], [1, 1, 1, 1], [2, 0, 2, 0]])
def test_power_of_two_takes_the_less_loaded_of_any_two_and_at_a_tie_the_first(
    load: list[int],
) -> None:
    for first, second in permutations(range(3), 2):
        place = second - (second > first)  # among the others
        mode = PowerOfTwo(Points((first + 0.5) / 3, (place + 0.5) / 2))
        slots = (0, 1, 3)
        one, other = slots[first], slots[second]
        wanted = other if load[other] < load[one] else one
        assert mode.choose(0b1011, load) == wanted


def test_power_of_two_with_one_slot_takes_it() -> None:
    mode = PowerOfTwo(Points(0.9))
    assert mode.choose(0b100, [0, 0, 5]) == 2


def test_least_loaded_takes_the_lowest_of_equals() -> None:
    assert LeastLoaded().choose(ALL, [2, 1, 1, 3]) == 1
    assert LeastLoaded().choose(0b1001, [2, 1, 1, 3]) == 0
    assert LeastLoaded().choose(0b0111, [2, 1, 1, 0]) == 1  # the last may not
    assert LeastLoaded().choose(0b1110, [0, 2, 1, 1]) == 2  # nor may the first here


def test_one_gpu_with_eight_requests_equals_one_cpu_with_one() -> None:
    mode = DeviceAwareWeighted(table(1, 1))
    assert mode.choose(0b11, [8, 1]) == 0  # a tie goes to the GPU
    assert mode.choose(0b11, [9, 1]) == 1
    assert mode.choose(0b11, [7, 1]) == 0


def test_group_loads_are_means_over_members() -> None:
    mode = DeviceAwareWeighted(table(2, 1), cuda_to_cpu_ratio=4.0)
    assert mode.choose(0b111, [4, 4, 1]) == 0  # 8 / (2 * 4) = 1 = 1 / 1
    assert mode.choose(0b111, [5, 4, 1]) == 2
    assert mode.choose(0b011, [5, 4, 1]) == 1
    assert mode.choose(0b101, [4, 0, 1]) == 0  # of the one GPU that may: 4 / 4 = 1
    assert mode.choose(0b101, [5, 0, 1]) == 2


def test_equal_weights_make_devices_alike_and_none_is_refused() -> None:
    assert make_load_mode("device-aware-weighted", Random(1), table(1, 1), 1.0).choose(
        0b11, [2, 1]
    ) == 1  # fmt: skip
    for ratio in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=f"cuda_to_cpu_ratio: must be > 0, got {ratio}"):
            DeviceAwareWeighted(table(1, 1), ratio)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("round-robin", RoundRobin),
        ("random", RandomChoice),
        ("power-of-two", PowerOfTwo),
        ("least-loaded", LeastLoaded),
        ("device-aware-weighted", DeviceAwareWeighted),
    ],
)
def test_each_mode_has_its_name(name: str, kind: type) -> None:
    assert isinstance(make_load_mode(name, Random(1), table(1, 0)), kind)
    assert name in LOAD_MODES and set(MODES) == {*LOAD_MODES, "kv", "direct"}


@pytest.mark.parametrize("num_cpus", [0, 5])
def test_with_one_kind_of_device_it_is_least_loaded(num_cpus: int) -> None:
    weighted, plain = DeviceAwareWeighted(table(5 - num_cpus, num_cpus)), LeastLoaded()
    rng = Random(3)
    for _ in range(300):
        load = [rng.randint(0, 4) for _ in range(5)]
        eligible = rng.randint(1, 31)
        wanted = min((slot for slot in range(5) if eligible >> slot & 1), key=load.__getitem__)
        assert weighted.choose(eligible, load) == plain.choose(eligible, load) == wanted


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
