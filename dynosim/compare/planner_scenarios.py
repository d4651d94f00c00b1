"""Named scenarios from what users of planners report, each with a rule that a run passes or not.

The rule is the same for all who scale: the planner, an HPA, KEDA. Times are in seconds.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import cos, pi

from dynosim.cluster.scenario import Crash, Replacement, WorkerTarget
from dynosim.compare.case_kit import Outcome
from dynosim.compare.pass_rules import (
    all_served,
    at_most,
    busy_drained,
    changes_at_most,
    gpu_hours_at_most,
    gpus_at_most,
    in_time,
    never_above,
    none_moved,
    noticed_another,
    ready_by,
    sees_edit,
    turns_at_most,
    waits_at_most,
)
from dynosim.compare.scaled_run import ScaledRun
from dynosim.compare.scaled_service import (
    ControllerKind,
    ScaledService,
    Stretch,
    arrivals,
    one_pool,
    two_pools,
)
from dynosim.planner.forecast import ForecastSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class ScalingScenario:
    """One of them. `reported`: what went wrong for somebody; `setup`: what is done here.

    `judge`: what is asked of a run, which passes if all of it holds. `remark`: what the page adds.
    """

    name: str
    reported: str
    setup: str
    service: Callable[[], ScaledService]
    judge: Callable[[ScaledRun], list[Outcome]]
    remark: str = ""


@dataclass(frozen=True, slots=True)
class ScenarioVerdict:
    """A scenario under one controller, claim by claim."""

    scenario: ScalingScenario
    kind: ControllerKind
    outcomes: tuple[Outcome, ...]

    @property
    def passes(self) -> bool:
        """Whether all that is asked holds."""
        return all(one.holds for one in self.outcomes)


def try_all(
    scenarios: Sequence[ScalingScenario], kinds: Sequence[ControllerKind]
) -> Iterator[ScenarioVerdict]:
    """Each scenario under each controller."""
    for scenario in scenarios:
        for kind in kinds:
            run = scenario.service().run(kind)
            yield ScenarioVerdict(scenario, kind, tuple(scenario.judge(run)))


def _silence() -> ScaledService:
    load = arrivals([Stretch(300, 4), Stretch(1200, 0), Stretch(1800, 4)])
    return ScaledService(load=load, cluster=one_pool(3))


def _after_silence(run: ScaledRun) -> list[Outcome]:
    return [at_most(run, 1, 900), all_served(run), in_time(run, 1500, 1800)]


def _zero() -> ScaledService:
    load = arrivals([Stretch(300, 4), Stretch(1500, 0), Stretch(2100, 2)])
    return ScaledService(load=load, cluster=one_pool(3), min_workers=0)


def _after_zero(run: ScaledRun) -> list[Outcome]:
    return [
        at_most(run, 0, 1200),
        waits_at_most(run, 1500, 90),
        all_served(run),
        in_time(run, 1800, 2100),
    ]


def _between() -> ScaledService:
    return ScaledService(load=arrivals([Stretch(2400, 1.35)]), cluster=one_pool(2))


def _steady(run: ScaledRun) -> list[Outcome]:
    return [turns_at_most(run, 1, 0, 2400), in_time(run, 0, 2400)]


def _queue() -> ScaledService:
    load = arrivals([
        Stretch(300, 1, isl=4000, osl=20),
        Stretch(1500, 5, isl=4000, osl=20),
        Stretch(2700, 1, isl=4000, osl=20),
    ])  # fmt: skip
    return ScaledService(load=load, cluster=two_pools(1, 4), pools=("prefill",))


def _prompts_in_time(run: ScaledRun) -> list[Outcome]:
    return [
        ready_by(run, 3, 540, "prefill"),
        in_time(run, 600, 1500),
        at_most(run, 2, 2400, "prefill"),
    ]


def _bursts() -> ScaledService:
    minutes = range(30)
    load = [
        stretch
        for minute in minutes
        for stretch in (Stretch(60 * minute + 50, 0.3), Stretch(60 * minute + 60, 5))
    ]
    return ScaledService(load=arrivals(load), cluster=one_pool(1))


def _in_bursts(run: ScaledRun) -> list[Outcome]:
    return [in_time(run, 600, 1800)]


def _cold() -> ScaledService:
    load = arrivals([Stretch(600, 2), Stretch(1800, 4.5), Stretch(2700, 2)])
    return ScaledService(load=load, cluster=one_pool(2), learns=True, slow_start_s=25)


def _not_too_many(run: ScaledRun) -> list[Outcome]:
    return [never_above(run, 6, 600, 1800), in_time(run, 1200, 1800), at_most(run, 3, 2640)]


def _drain() -> ScaledService:
    load = arrivals([Stretch(600, 0.35, osl=1500), Stretch(1800, 0.08, osl=1500)])
    return ScaledService(load=load, cluster=one_pool(4))


def _nobody_cut_off(run: ScaledRun) -> list[Outcome]:
    return [busy_drained(run, 0), all_served(run), none_moved(run)]


def _two() -> ScaledService:
    edits = tuple((300.0 + 60 * i, 7) for i in range(20))
    load = arrivals([Stretch(1500, 2.2)])
    return ScaledService(load=load, cluster=one_pool(2), is_guarded=True, hand=edits)


def _no_fight(run: ScaledRun) -> list[Outcome]:
    return [noticed_another(run, 300, 60), turns_at_most(run, 8, 300, 1500), all_served(run)]


def _edit() -> ScaledService:
    load = arrivals([Stretch(1500, 4)])
    return ScaledService(load=load, cluster=one_pool(3), hand=((606.0, 1),))


def _edit_seen(run: ScaledRun) -> list[Outcome]:
    return [sees_edit(run, 606, 1), ready_by(run, 3, 840), in_time(run, 900, 1200)]


def _outage() -> ScaledService:
    load = arrivals([Stretch(640, 2), Stretch(1620, 5)])
    return ScaledService(load=load, cluster=one_pool(2), outage=(600, 720))


def _closed_then_open(run: ScaledRun) -> list[Outcome]:
    return [changes_at_most(run, 0, 660, 720), in_time(run, 1020, 1620), all_served(run)]


def _flash() -> ScaledService:
    load = arrivals([Stretch(600, 1.5), Stretch(1200, 7.5), Stretch(2400, 1.5)])
    return ScaledService(load=load, cluster=one_pool(2, start_s=45))


def _crowd_served(run: ScaledRun) -> list[Outcome]:
    return [in_time(run, 840, 1200), at_most(run, 2, 1920), all_served(run)]


_DAY_S = 720
_PEAK_WORKERS = 5


def _week() -> ScaledService:
    load = []
    for minute in range(8 * _DAY_S // 60):
        day, hour = divmod(minute, _DAY_S // 60)
        share = 0.35 if day == 6 else 1.0
        rps = share * (0.5 + 2.5 * (1 - cos(2 * pi * hour / (_DAY_S // 60))))
        load.append(Stretch(60 * (minute + 1), rps))
    season = ForecastSpec(method="seasonal", season_points=_DAY_S // 60)
    return ScaledService(load=arrivals(load), cluster=one_pool(2), predictor=season)


def _days_followed(run: ScaledRun) -> list[Outcome]:
    third, sixth, seventh, end = (day * _DAY_S for day in (3, 5, 6, 8))
    peak_hours = _PEAK_WORKERS * (sixth - third) / 3600
    return [
        in_time(run, third, seventh),
        gpu_hours_at_most(
            run, 0.9, peak_hours, f"{_PEAK_WORKERS} workers all the time", third, sixth
        ),
        gpu_hours_at_most(
            run, 0.75, run.gpu_hours(sixth, seventh), "the day before",
            seventh, seventh + _DAY_S,
        ),
        in_time(run, seventh + _DAY_S, end),
    ]  # fmt: skip


def _budget() -> ScaledService:
    load = arrivals([
        Stretch(900, 6, isl=4000, osl=20),
        Stretch(1800, 1.6, isl=300, osl=400),
    ])  # fmt: skip
    pools = ("prefill", "decode")
    return ScaledService(load=load, cluster=two_pools(3, 3), pools=pools, gpu_budget=6)


def _within_budget(run: ScaledRun) -> list[Outcome]:
    return [gpus_at_most(run, 6), in_time(run, 480, 900), in_time(run, 1320, 1800)]


def _pending() -> ScaledService:
    load = arrivals([Stretch(300, 1.2), Stretch(420, 4), Stretch(2100, 1.2)])
    return ScaledService(load=load, cluster=one_pool(1, start_s=3600))


def _not_stuck(run: ScaledRun) -> list[Outcome]:
    return [at_most(run, 2, 1800), all_served(run)]


def _crash() -> ScaledService:
    loss = Crash(
        at_ms=600_000.0, target=WorkerTarget("workers", 1), replacement=Replacement(kind="none")
    )
    load = arrivals([Stretch(1500, 4)])
    return ScaledService(load=load, cluster=one_pool(3), events=(loss,))


def _replaced(run: ScaledRun) -> list[Outcome]:
    return [ready_by(run, 3, 720), in_time(run, 900, 1500), all_served(run)]


SCENARIOS: tuple[ScalingScenario, ...] = (
    ScalingScenario(
        name="silence",
        reported="figures of an idle service are not numbers and are skipped: nothing shrinks",
        setup="4 requests/s on 3 workers, 15 minutes of nobody, 4 requests/s again",
        service=_silence,
        judge=_after_silence,
    ),
    ScalingScenario(
        name="zero",
        reported="the same where no worker has to stay: to none, and back when somebody comes",
        setup="the same with a minimum of 0, 20 minutes of nobody, then 2 requests/s",
        service=_zero,
        judge=_after_zero,
    ),
    ScalingScenario(
        name="between",
        reported="a load between one worker and two has replicas go 2, 1, 2, 1",
        setup="1.35 requests/s for 40 minutes: three quarters of what one worker can do",
        service=_between,
        judge=_steady,
    ),
    ScalingScenario(
        name="queue",
        reported="a prefill pool is scaled by utilisation, which says no more once it is full",
        setup="prompts of 4,000 tokens, 1, 5 and 1 a second; prefill workers alone are scaled",
        service=_queue,
        judge=_prompts_in_time,
    ),
    ScalingScenario(
        name="bursts",
        reported="means hide bursts: capacity for the mean, queueing and tails are not looked at",
        setup="10 s of 5 requests/s in each minute of 0.3: one worker is enough in the mean",
        service=_bursts,
        judge=_in_bursts,
        remark="Bursts are shorter than a start: what they take has to be there before. Once too"
        " many were late the planner keeps\nas many as the worst burst takes (4); with"
        " `burst_memory_ms: 0` it goes by means and fails. The others pass by\nstaying near their"
        " maximum.",
    ),
    ScalingScenario(
        name="cold-samples",
        reported="slow first steps of new workers are taken for their speed, which has far too many"
        " launched, or leaves nothing to decide by",
        setup="2, 4.5, then 2 requests/s; step times are learned, and a worker's are eight times as"
        " long in its first 25 s",
        service=_cold,
        judge=_not_too_many,
    ),
    ScalingScenario(
        name="drain",
        reported="scale-down kills workers amid answers, and clients get errors",
        setup="answers of a minute, 0.35 and then 0.08 a second, on 4 workers",
        service=_drain,
        judge=_nobody_cut_off,
    ),
    ScalingScenario(
        name="two-controllers",
        reported="two autoscalers on one service undo each other's work, unnoticed",
        setup="somebody else sets 7 workers every minute, 2.2 requests/s take 2; who scales is"
        " `Guarded`",
        service=_two,
        judge=_no_fight,
    ),
    ScalingScenario(
        name="edit-by-hand",
        reported="replicas changed by hand are not seen: decisions start from old numbers",
        setup="4 requests/s on 3 workers, which somebody makes 1",
        service=_edit,
        judge=_edit_seen,
    ),
    ScalingScenario(
        name="metrics-outage",
        reported="without metrics old ones, or none, are taken for the load",
        setup="no metrics for two minutes, and in the midst of them 2 requests/s become 5",
        service=_outage,
        judge=_closed_then_open,
    ),
    ScalingScenario(
        name="flash-crowd",
        reported="a crowd comes faster than workers start",
        setup="1.5, for ten minutes 7.5, then 1.5 requests/s; a start takes 45 s",
        service=_flash,
        judge=_crowd_served,
    ),
    ScalingScenario(
        name="week",
        reported="a forecast that knows the day's shape fails on the day that is not like others",
        setup="eight days of 12 minutes from 0.5 to 5.5 requests/s, the seventh with 35 % of that;"
        " seasonal forecasts",
        service=_week,
        judge=_days_followed,
    ),
    ScalingScenario(
        name="budget",
        reported="moving GPUs between prefill and decode overshoots the budget, then hangs",
        setup="6 GPUs for both pools; long prompts, then long answers",
        service=_budget,
        judge=_within_budget,
        remark="A worker that is told to go holds its GPU until its answers are finished: with the"
        " planner a seventh is in\nuse for 90 s. A cluster that has no seventh lets the new worker"
        " wait for it.",
    ),
    ScalingScenario(
        name="pending",
        reported="while new workers cannot start nothing is decided, not even to do without them",
        setup="two minutes of 4 requests/s among 1.2; a start takes an hour",
        service=_pending,
        judge=_not_stuck,
    ),
    ScalingScenario(
        name="crash",
        reported="a worker that is lost has its pool wait for reports that never come",
        setup="4 requests/s on 3 workers, one of which dies",
        service=_crash,
        judge=_replaced,
    ),
)
