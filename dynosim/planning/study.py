"""The comparison: who runs, in which order, and what each came to."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from dynosim.build.cluster import cluster_spec
from dynosim.config.schema import CONTROLLERS, RunConfig
from dynosim.errors import ConfigError
from dynosim.planner.engine_model import RequestMix
from dynosim.planning.bound import Bound
from dynosim.planning.capacity_of import PoolCapacities, Targets, ladder
from dynosim.planning.defaults import derived_section, limits_of
from dynosim.planning.fixed import FixedRuns, Sizes, layout
from dynosim.planning.plan_file import PlanFile
from dynosim.planning.played import OfferedLoad, Played, Replayer, Tell

STATIC_PEAK, STATIC_MEAN, PERFECT = "static-peak", "static-mean", "perfect"
CONTESTANTS = (*CONTROLLERS, STATIC_PEAK, STATIC_MEAN, PERFECT)
"""All that can be compared, in the order of tables."""
ONE_POOL = ("hpa", "keda", "concurrency")
"""Contestants that scale one pool."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One line of the comparison: a run for each seed, or why there is none.

    `goes_by` says in a line what it does and whether the file said so; `section` is what was
    derived for it, if it was; `config` runs it alone, where a file can.
    """

    name: str
    goes_by: str
    runs: tuple[Played, ...] = ()
    section: dict[str, Any] | None = None
    config: RunConfig | None = None
    why_not: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanAsked:
    """What is to be compared: who, on how many seeds, what share of requests is to be within the
    SLA, bins of time (None: about 120), and the largest cluster to try."""

    against: Sequence[str] = CONTESTANTS
    num_seeds: int = 1
    attainment: float = 0.95
    bin_s: float | None = None
    most_workers: int = 64


@dataclass(frozen=True, slots=True)
class PlanStudy:
    """All that was run and found."""

    asked: PlanAsked
    file: PlanFile
    loads: tuple[OfferedLoad, ...]
    fixed: FixedRuns
    peak: Sizes
    contestants: tuple[Contestant, ...]
    notes: tuple[str, ...] = field(default=())


def run_study(file: PlanFile, asked: PlanAsked, tell: Tell) -> PlanStudy:
    """Run all contestants. `tell` is told of each run.

    Raises: ConfigError, also where no number of workers keeps the SLA; TraceError,
    InfeasibleError.
    """
    return _Study(file, asked, tell).study()


class _Study:
    def __init__(self, file: PlanFile, asked: PlanAsked, tell: Tell) -> None:
        self._file = file
        self._asked = asked
        self._tell = tell
        self._is_split = file.base.cluster.is_disagg
        self._replayer = Replayer(file.base, asked.num_seeds, asked.bin_s)
        sla = file.base.sla
        assert sla is not None, "a plan file has one"
        self._targets = Targets(sla.ttft_ms, sla.itl_ms)
        self._capacities = self._capacities_at(0.0)
        rates = [point.rps for point in self._capacities.points()]
        rungs = ladder(rates, max(asked.most_workers, len(rates)))
        self._fixed = FixedRuns(self._replayer, file, rungs, asked.attainment, tell)

    def study(self) -> PlanStudy:
        """See `run_study`."""
        self._peak = self._peak_place()
        peak = self._fixed.rungs[self._peak]
        hits = [one.report["prefix_cache_reused_ratio"] or 0.0 for one in self._fixed.of(peak)]
        self._capacities = self._capacities_at(sum(hits) / len(hits))
        planner = self._file.under("planner").planner if self._file.states("planner") else None
        point = self._capacities.points()[-1]
        self._limits = limits_of(self._file.base, planner, max(peak), point)
        order = sorted(set(self._asked.against), key=CONTESTANTS.index)
        return PlanStudy(
            asked=self._asked,
            file=self._file,
            loads=tuple(self._replayer.loads),
            fixed=self._fixed,
            peak=peak,
            contestants=tuple(self._contestant(name) for name in order),
            notes=self._notes(),
        )

    def _capacities_at(self, hit_rate: float) -> PoolCapacities:
        load = self._replayer.loads[0]
        mix = RequestMix(isl=load.mean_isl, osl=load.mean_osl, hit_rate=hit_rate)
        cluster = cluster_spec(self._file.base, self._replayer.prepared)
        return PoolCapacities(cluster, self._targets, mix)

    def _peak_place(self) -> int:
        """The rung of the fewest workers that keep the SLA. Raises: ConfigError if none does."""
        is_doubtful = not all(reach.is_reachable for reach in self._capacities.reaches())
        place = self._fixed.fewest(from_above=is_doubtful)
        if place is not None:
            return place
        largest = self._fixed.rungs[-1]
        share = self._fixed.attainment(largest)
        text = (
            f"{self._file.document.name}: sla: up to {layout(largest)} no cluster keeps it for "
            f"{self._asked.attainment:.0%} of the requests; that one does for {share:.1%}"
        )
        if is_doubtful:
            raise ConfigError(
                f"{text}; by step times the nearest that a worker reaches is "
                f"{self._capacities.nearest()} (raise the bounds, or take other engines)"
            )
        raise ConfigError(f"{text} (raise the bounds, or --most-workers, or lower --attainment)")

    def _notes(self) -> tuple[str, ...]:
        if self._file.sla_source == "sla:":
            return ()
        return ("No sla: is stated: requests are judged by the planner's targets.",)

    def _contestant(self, name: str) -> Contestant:
        if self._is_split and name in ONE_POOL and not self._has_pool(name):
            return Contestant(name, "-", why_not="scales one pool, and this cluster has two")
        if name == STATIC_PEAK:
            return self._static(name, self._fixed.rungs[self._peak], "the fewest that keep the SLA")
        if name == STATIC_MEAN:
            rps = sum(load.mean_rps for load in self._replayer.loads) / len(self._replayer.loads)
            what = f"for the mean load, {rps:.3g} requests/s, by step times"
            return self._static(name, self._capacities.sizes_for(rps), what)
        return self._perfect() if name == PERFECT else self._controlled(name)

    def _has_pool(self, name: str) -> bool:
        """Whether the file says which of two pools a controller is to scale."""
        stated = self._file.document.data.get(name)
        return isinstance(stated, dict) and stated.get("pool") is not None

    def _static(self, name: str, sizes: Sizes, what: str) -> Contestant:
        runs = tuple(self._fixed.of(sizes))
        return Contestant(name, f"{layout(sizes)}, {what}", runs, config=self._file.fixed(sizes))

    def _controlled(self, name: str) -> Contestant:
        section, goes_by = None, "as the file says"
        if not self._file.states(name):
            section = derived_section(name, self._limits)
            goes_by = f"derived: {said(section)}"
        config = self._file.under(name, section)
        if config.cluster.is_disagg and self._has_pool(name):
            goes_by += "; the other pool stays as it is"
        runs = []
        for load in self._replayer.loads:
            played = self._replayer.play(config, load)
            self._tell(
                f"{name}, seed {load.seed}: {played.attainment:.2%} of requests within the SLA, "
                f"{played.report['gpu_hours']:.3g} GPU hours"
            )
            runs.append(played)
        return Contestant(name, goes_by, tuple(runs), section, config)

    def _perfect(self) -> Contestant:
        least = min(1, self._limits.least)
        most = tuple(2 * size for size in self._fixed.rungs[self._peak])
        runs = []
        for place, load in enumerate(self._replayer.loads):
            bound = Bound(
                self._replayer, self._file, load, self._asked.attainment, most, self._tell
            )
            enough = self._fixed.fewest_by_bin(load, place, self._peak, least)
            runs.append(bound.seek(enough, least))
        goes_by = f"knows the load: the fewest found in each {self._replayer.bin_ms / 1e3:g} s"
        return Contestant(PERFECT, goes_by, tuple(runs))


def said(section: dict[str, Any]) -> str:
    """A section in one line, as a file would have it."""
    words = []
    for key, value in section.items():
        if isinstance(value, list):
            words.append(f"{key}: [{', '.join(f'{{{said(one)}}}' for one in value)}]")
        else:
            words.append(f"{key}: {_plain(value)}")
    return ", ".join(words)


def _plain(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
