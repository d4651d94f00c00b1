"""All loads of one layout: the search for its capacity, then what its curve lacks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import exp, log
from typing import Any

from dynosim.sweep.capacity import CapacitySearch, LoadCapacity, LoadOutcome, LoadRange

CONFIDENCE = 0.95
NEAR = 0.05
"""A curve needs no load within so much of one that was tried."""
OWN_LOAD = 1.0
BEYOND = 1.3
"""The workload's own load tells something only if it is no further beyond the capacity."""
LOCATED_WITHIN = 2.0
"""So far apart may the loads be between which a capacity is first located."""
SMALLEST_SHARE = 0.0005
USER_SPEED = "median_output_token_throughput_per_user"


@dataclass(frozen=True, slots=True)
class Probe:
    """A layout at one load. Stopped early it has neither verdict nor report."""

    load: float
    is_carried: bool
    attainment: float | None
    verdict: Mapping[str, Any] | None
    report: Mapping[str, Any]
    offered_rps: float | None = None  # requests a second, by the schedule
    attainment_so_far: float | None = None  # where it was stopped

    @property
    def is_whole(self) -> bool:
        """Whether it ran to its end."""
        return self.verdict is not None

    def told(self, key: str) -> Any:
        """A field of its `LoadVerdict`; None where it was stopped early."""
        return None if self.verdict is None else self.verdict.get(key)

    @classmethod
    def of(cls, answer: Mapping[str, Any]) -> "Probe":
        """From what `run_probe` answers."""
        verdict = answer["verdict"]
        return cls(
            answer["load"],
            verdict is not None and verdict["is_carried"],
            None if verdict is None else verdict["attainment"],
            verdict,
            answer["report"],
            answer.get("offered_rps"),
            answer.get("attainment_so_far"),
        )


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """Which loads a layout is tried at. `curve` are multiples of its capacity, `ladder` loads."""

    range: LoadRange
    attainment: float
    curve: tuple[float, ...] = ()
    ladder: tuple[float, ...] = ()  # tried whatever the capacity
    is_sought: bool = True  # the capacity; else the ladder is all
    tries_own_load: bool = False  # the workload's own, whatever the capacity
    own_load: float = OWN_LOAD
    goes_by_attainment: bool = True  # not by a statistic, of which attainment tells nothing


@dataclass(slots=True)
class LayoutStudy:
    """Ask `next_loads`, tell each probe, until there are no more. Asking changes nothing.

    The first load is None, which lets the probe find out where to begin.
    """

    plan: LoadPlan
    probes: dict[float, Probe] = field(default_factory=dict)  # by load, as they were told
    located: LoadCapacity | None = None  # between which loads the capacity lies, when first known
    located_speed: float = 0.0  # the most that a user got by then
    _search: CapacitySearch | None = None

    def told(self, probe: Probe) -> None:
        """A probe has ended."""
        if self._search is None:
            self._search = CapacitySearch(self.plan.range, self.plan.attainment, probe.load)
        self.probes[probe.load] = probe
        outcome = LoadOutcome(probe.is_carried, probe.attainment, probe.attainment_so_far)
        if not self.plan.goes_by_attainment:
            outcome = LoadOutcome(probe.is_carried)
        self._search.told(probe.load, outcome)
        if self.located is None:
            self._locate(probe)

    def _locate(self, probe: Probe) -> None:
        """Note what a probe of the search tells, as long as it has no bracket."""
        assert self._search is not None
        known = self._search.capacity
        self.located_speed = max(self.located_speed, probe.report.get(USER_SPEED) or 0.0)
        low, high = known.low, known.high
        is_near = low is not None and high is not None and high <= LOCATED_WITHIN * low
        if is_near or self._search.next_load() is None:
            self.located = known

    @property
    def is_located(self) -> bool:
        """Whether the capacity lies between two loads that were tried, or beyond all."""
        return self.located is not None or not self.plan.is_sought

    @property
    def capacity(self) -> LoadCapacity:
        """As far as it is known."""
        return LoadCapacity(None, None) if self._search is None else self._search.capacity

    @property
    def at_capacity(self) -> Probe | None:
        """The probe at the capacity; None if no load is carried."""
        low = self.capacity.low
        return None if low is None else self.probes[low]

    @property
    def interval(self) -> tuple[float, float] | None:
        """Where the capacity lies in 95 % of draws of other sessions; None if that is unknown."""
        found = sorted(self.draws)
        if not found:
            return None
        cut = int(len(found) * (1.0 - CONFIDENCE) / 2)
        return found[cut], found[-1 - cut]

    @property
    def draws(self) -> list[float]:
        """The capacity in each draw of other sessions, the same draws in all layouts; empty where
        it is unknown.

        It is where the line between the log odds of neighbouring loads crosses the target. Of a
        load that was stopped early no more is known than the attainment by then, in every draw the
        same; beyond the first of those it is not sought.
        """
        is_known = self.plan.goes_by_attainment and self.capacity.low is not None
        tried = [self.probes[load] for load in sorted(self.probes)] if is_known else []
        columns = [(probe.load, draws) for probe in tried if (draws := _drawn(probe))]
        num_draws = max((len(draws) for _, draws in columns), default=0)
        cut_short = next((probe for probe in tried if not probe.is_whole), None)
        if cut_short is not None:
            columns = [column for column in columns if column[0] < cut_short.load]
            columns.append((cut_short.load, (cut_short.attainment_so_far or 0.0,) * num_draws))
        if num_draws == 0 or len(columns) < 2:
            return []
        loads = [load for load, _ in columns]
        shares = zip(*(draws for _, draws in columns), strict=True)
        return [_crossing(loads, drawn, self.plan.attainment) for drawn in shares]

    def next_loads(self) -> list[float | None]:
        """Loads to try next, independent of each other."""
        if not self.plan.is_sought:
            return [*self._untried(self.plan.ladder)]
        if self._search is None:
            return [None]
        load = self._search.next_load()
        return [load] if load is not None else [*self._missing()]

    def _missing(self) -> list[float]:
        """Loads of the curve, and the workload's own, that no probe is near to; the ladder's."""
        low = self.capacity.low
        wanted = []
        if low is not None:
            is_near = self.plan.own_load <= BEYOND * low
            wanted += [self.plan.own_load] if self.plan.tries_own_load and is_near else []
            wanted += [self.plan.range.within(low * multiple) for multiple in self.plan.curve]
        missing: list[float] = []
        for load in wanted:
            tried = [
                *(p.load for p in self.probes.values() if p.is_whole or load == p.load),
                *missing,
            ]
            if not any(abs(load - other) <= NEAR * other for other in tried):
                missing.append(load)
        return missing + self._untried([rung for rung in self.plan.ladder if rung not in missing])

    def _untried(self, loads: Sequence[float]) -> list[float]:
        return [load for load in loads if load not in self.probes]


def _drawn(probe: Probe) -> tuple[float, ...]:
    """The attainment of a probe in each draw; empty where it has none."""
    return () if probe.verdict is None else tuple(probe.verdict["draws"])


def _crossing(loads: Sequence[float], shares: Sequence[float], target: float) -> float:
    """The load at which attainment falls below the target; an end of the loads if it is not there.

    Shares of 0 and 1 count as half a request in a thousand.
    """
    odds = [_log_odds(share) for share in shares]
    wanted = _log_odds(target)
    if odds[0] < wanted:
        return loads[0]
    for place in range(1, len(loads)):
        if odds[place] < wanted:
            part = (odds[place - 1] - wanted) / (odds[place - 1] - odds[place])
            return loads[place - 1] * exp(part * log(loads[place] / loads[place - 1]))
    return loads[-1]


def _log_odds(share: float) -> float:
    kept = min(max(share, SMALLEST_SHARE), 1.0 - SMALLEST_SHARE)
    return log(kept / (1.0 - kept))
