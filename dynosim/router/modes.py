"""Modes that look at nothing but the number of requests in flight.

`choose(eligible, num_requests)` returns a slot of the non-empty set `eligible`;
`num_requests[slot]` counts what was placed there and has not ended.
"""

from random import Random
from typing import Protocol

from mypy_extensions import mypyc_attr

from dynosim.errors import ConfigError
from dynosim.indexer.answers import members
from dynosim.router.slots import nth_slot
from dynosim.router.workers import WorkerTable
from dynosim.workers.ids import Slot

LOAD_MODES = ("round-robin", "random", "power-of-two", "least-loaded", "device-aware-weighted")
BLIND_MODES = ("round-robin", "random")  # do not even look at loads
MODES = (*LOAD_MODES, "kv", "direct")


class LoadMode(Protocol):
    """Chooses by load alone."""

    def choose(self, eligible: int, num_requests: list[int]) -> Slot:
        """A slot of `eligible`."""
        ...


@mypyc_attr(allow_interpreted_subclasses=True)
class RoundRobin:
    """Each eligible slot in turn, in slot order."""

    def __init__(self) -> None:
        self.next_slot = 0

    def choose(self, eligible: int, num_requests: list[int]) -> Slot:
        """The first eligible slot behind the one chosen last."""
        later = eligible >> self.next_slot
        if not later:
            self.next_slot, later = 0, eligible
        slot = Slot(self.next_slot + (later & -later).bit_length() - 1)
        self.next_slot = slot + 1
        return slot


@mypyc_attr(allow_interpreted_subclasses=True)
class RandomChoice:
    """Every eligible slot with equal chance."""

    def __init__(self, generator: Random) -> None:
        self._generator = generator

    def choose(self, eligible: int, num_requests: list[int]) -> Slot:
        """Any eligible slot."""
        return nth_slot(eligible, int(self._generator.random() * eligible.bit_count()))


@mypyc_attr(allow_interpreted_subclasses=True)
class PowerOfTwo:
    """Of two eligible slots drawn at random the one with fewer requests; ties: the first drawn."""

    def __init__(self, generator: Random) -> None:
        self._generator = generator

    def choose(self, eligible: int, num_requests: list[int]) -> Slot:
        """The less loaded of two."""
        count = eligible.bit_count()
        first = int(self._generator.random() * count)
        one = nth_slot(eligible, first)
        if count == 1:
            return one
        second = int(self._generator.random() * (count - 1))
        second += second >= first  # any but the first
        other = nth_slot(eligible, second)
        return other if num_requests[other] < num_requests[one] else one


@mypyc_attr(allow_interpreted_subclasses=True)
class LeastLoaded:
    """The eligible slot with the fewest requests; ties go to the lowest slot."""

    def choose(self, eligible: int, num_requests: list[int]) -> Slot:
        """The least loaded slot."""
        if eligible + 1 == 1 << len(num_requests):
            return Slot(num_requests.index(min(num_requests)))
        return min(members(eligible), key=num_requests.__getitem__)


@mypyc_attr(allow_interpreted_subclasses=True)
class DeviceAwareWeighted:
    """Splits load between GPU and CPU workers by what they can take, then the least loaded.

    A group's load is its requests / (members x weight), weight 1 for CPU and `cuda_to_cpu_ratio`
    for the others; the lower one gets the request, at a tie the GPUs.
    """

    def __init__(self, table: WorkerTable, cuda_to_cpu_ratio: float = 8.0) -> None:
        if not cuda_to_cpu_ratio > 0:
            raise ConfigError(f"router.cuda_to_cpu_ratio: must be > 0, got {cuda_to_cpu_ratio}")
        self._table = table
        self._ratio = cuda_to_cpu_ratio
        self._least_loaded = LeastLoaded()

    def choose(self, eligible: int, num_requests: list[int]) -> Slot:
        """The least loaded slot of the less loaded group."""
        cpus = eligible & self._table.cpu_mask
        gpus = eligible ^ cpus
        if cpus and gpus:
            cpu_load = _mean_load(cpus, num_requests)
            gpu_load = _mean_load(gpus, num_requests) / self._ratio
            eligible = gpus if gpu_load <= cpu_load else cpus
        return self._least_loaded.choose(eligible, num_requests)


AnyLoadMode = RoundRobin | RandomChoice | PowerOfTwo | LeastLoaded | DeviceAwareWeighted | LoadMode
"""Ours are named beside the protocol, so that a compiler calls them directly."""


def make_load_mode(
    mode: str, generator: Random, table: WorkerTable, cuda_to_cpu_ratio: float = 8.0
) -> AnyLoadMode:
    """The load-only mode of that name. Raises: ConfigError for any other."""
    if mode == "round-robin":
        return RoundRobin()
    if mode == "random":
        return RandomChoice(generator)
    if mode == "power-of-two":
        return PowerOfTwo(generator)
    if mode == "least-loaded":
        return LeastLoaded()
    if mode == "device-aware-weighted":
        return DeviceAwareWeighted(table, cuda_to_cpu_ratio)
    raise ConfigError(f"router.mode: unknown mode {mode!r}; known: {', '.join(MODES)}")


def _mean_load(slots: int, num_requests: list[int]) -> float:
    return sum(num_requests[slot] for slot in members(slots)) / slots.bit_count()
