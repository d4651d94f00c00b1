"""Bursts: as many replicas as an overload takes, kept for the next one, and no more of either."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from planner_support import CountingFrontend, card, linear, observation, only, pool_state, report

from dynosim.planner.arrivals import RecentArrivals
from dynosim.planner.burst_scaling import engines_for
from dynosim.planner.capacity import best_point
from dynosim.planner.decision import PoolDecision
from dynosim.planner.engine_model import EngineModel, RequestMix
from dynosim.planner.forecast import ForecastSpec
from dynosim.planner.observation import PoolState, WorkerState
from dynosim.planner.planner import Planner
from dynosim.planner.planner_spec import PlannerSpec
from dynosim.planner.start_times import ASSUMED_START_MS, StartTimes
from dynosim.timing.step import StepShape
from dynosim.workers.lifecycle import Phase

# ---- what came -----------------------------------------------------------------------------------


def counted(
    came: Sequence[float], *, every_ms: float = 10_000.0, keep_ms: float = 3.6e6, late: int = 0
) -> RecentArrivals:
    """So many came until each scrape, `late` of them with a late first token."""
    arrivals = RecentArrivals(60_000.0, 2_000.0, keep_ms)
    for index, total in enumerate(came):
        arrivals.note(index * every_ms, total, total, total - min(late, total))
    return arrivals


def test_what_surely_comes_is_the_highest_rate_less_what_chance_may_add() -> None:
    """100 in 10 s may be 90; 200 in 20 s may be 186, so the longer window says more."""
    assert counted([0, 100]).sure_rps() == pytest.approx(9.0)
    assert counted([0, 100, 200]).sure_rps() == pytest.approx((200 - 200**0.5) / 20)
    assert counted([0, 0, 0, 400]).sure_rps() == pytest.approx(38.0)  # only now
    assert counted([]).sure_rps() == counted([50]).sure_rps() == 0.0


def test_a_burst_may_be_served_so_much_later_as_a_request_may_wait() -> None:
    arrivals = counted([0, 10, 130, 140, 150])  # 120 in 10 s, to be served in 12
    assert arrivals.burst_rps(40_000.0, 60_000.0) == pytest.approx(10.0)
    assert arrivals.burst_rps(40_000.0, 0.0) == pytest.approx(140 / 32)


def test_a_burst_is_forgotten_in_time() -> None:
    came = [0.0, 600.0, *(600.0 + 10 * index for index in range(1, 60))]
    arrivals = counted(came)
    now_ms = 600_000.0
    assert arrivals.burst_rps(now_ms, 600_000.0) == pytest.approx(50.0)
    assert arrivals.burst_rps(now_ms, 500_000.0) == pytest.approx(10 / 12 * 6 * 12 / 62, rel=0.2)


def test_counters_that_began_again_count_from_nothing() -> None:
    arrivals = counted([0, 100, 40])
    assert arrivals.burst_rps(20_000.0, 60_000.0) == pytest.approx(100 / 12)
    assert arrivals.sure_rps() == pytest.approx((140 - 140**0.5) / 20)


def test_late_first_tokens_are_a_share_of_those_of_the_window() -> None:
    arrivals = RecentArrivals(60_000.0, 2_000.0, 100_000.0)
    arrivals.note(0.0, 100, 100, 50)  # what was before the first scrape is nobody's fault
    assert arrivals.late_share() == 0.0
    arrivals.note(10_000.0, 200, 200, 130)
    assert arrivals.late_share() == pytest.approx(0.2)
    for index in range(2, 13):
        arrivals.note(index * 10_000.0, 200 + index, 200 + index, 130 + index)
    assert arrivals.late_share() == 0.0


def test_the_longest_quiet_time_between_two_bursts_is_known() -> None:
    def total(index: int) -> float:
        return 10.0 * index + 500.0 * sum(index > at for at in (10, 40, 100))

    assert counted([total(index) for index in range(30)]).longest_quiet_ms() == 0.0
    # from the last scrape at which the window of 60 s had the first burst
    assert counted([total(index) for index in range(60)]).longest_quiet_ms() == 300_000.0
    assert counted([total(index) for index in range(110)]).longest_quiet_ms() == 600_000.0
    short = counted([total(index) for index in range(110)], keep_ms=200_000.0)
    assert short.longest_quiet_ms() == 0.0


# ---- starts --------------------------------------------------------------------------------------


def pool(*workers: tuple[Phase, float]) -> PoolState:
    """Workers of phases since when."""
    states = [WorkerState(index, *worker) for index, worker in enumerate(workers)]
    return PoolState("agg", len(states), tuple(states))


def test_how_long_a_start_takes_is_learned() -> None:
    starts = StartTimes()
    starts.note(pool((Phase.READY, 0.0)))
    assert starts.start_ms(5_000.0) == ASSUMED_START_MS  # nobody was seen to start
    starts.note(pool((Phase.READY, 0.0), (Phase.STARTING, 10_000.0)))
    assert starts.start_ms(100_000.0) == 90_000.0  # it takes longer than that already
    assert starts.ready_in_ms(30_000.0) == [ASSUMED_START_MS - 20_000.0]
    starts.note(pool((Phase.READY, 0.0), (Phase.READY, 55_000.0)))
    assert starts.start_ms(60_000.0) == 45_000.0
    assert starts.ready_in_ms(60_000.0) == []


# ---- how many catch up ---------------------------------------------------------------------------


def test_who_waits_when_they_are_ready_is_served_in_as_long_again() -> None:
    """30/s come, one serves 10/s, a start takes 60 s: 1200 wait then, 20/s more for a minute."""
    facts = {"num_ready": 1, "ready_in_ms": [], "start_ms": 60_000.0}
    assert engines_for(30.0, 0.0, 10.0, **facts) == pytest.approx(5.0)  # type: ignore[arg-type]
    assert engines_for(30.0, 600.0, 10.0, **facts) == pytest.approx(6.0)  # type: ignore[arg-type]


def test_those_that_start_already_are_counted_on_from_when_they_are_ready() -> None:
    found = engines_for(
        30.0, 600.0, 10.0, num_ready=1, ready_in_ms=[30_000.0] * 2, start_ms=60_000.0
    )
    # 600 + 1800 come, 600 and twice 300 are served: 1200 are left
    assert found == pytest.approx(5.0)
    overdue = engines_for(
        30.0, 600.0, 10.0, num_ready=1, ready_in_ms=[-5_000.0] * 2, start_ms=60_000.0
    )
    assert overdue == pytest.approx(4.0)


@given(
    rps=st.floats(0, 100),
    waiting=st.floats(0, 1e4),
    num_ready=st.integers(0, 50),
    starting=st.lists(st.floats(-1e5, 1e5), max_size=5),
)
def test_more_to_do_never_takes_fewer_and_more_engines_never_more(
    rps: float, waiting: float, num_ready: int, starting: list[float]
) -> None:
    def found(**changes: float) -> float:
        facts = {"rps": rps, "waiting": waiting, "num_ready": num_ready, **changes}
        return engines_for(
            facts["rps"],
            facts["waiting"],
            4.0,
            num_ready=int(facts["num_ready"]),
            ready_in_ms=starting,
            start_ms=60_000.0,
        )

    assert found(rps=rps + 1) >= found() - 1e-9
    assert found(waiting=waiting + 10) >= found() - 1e-9
    assert found(num_ready=num_ready + 1) <= found() + 1e-9
    assert found() >= rps / 4.0 - 1e-9


# ---- the planner ---------------------------------------------------------------------------------

SPEC = PlannerSpec(
    mode="agg",
    optimization_target="sla",
    ttft_ms=1_000.0,
    itl_ms=1e9,
    throughput_adjustment_interval_ms=60_000.0,
    enable_load_scaling=True,
    load_predictor=ForecastSpec(method="constant"),
    max_utilization=1.0,
    max_gpu_budget=None,
)
"""An engine serves 22.22 requests of 100 and 20 tokens a second."""


@dataclass
class Story:
    """A service scraped every 5 s, whose workers start in `start_s`; engines queue as told."""

    planner: Planner
    ready: int = 2
    start_s: float = 30.0
    at_s: float = 0.0

    def __post_init__(self) -> None:
        self.frontend = CountingFrontend()
        self.workers = [WorkerState(index, Phase.READY, 0.0) for index in range(self.ready)]
        self.wanted = self.ready
        self.told: list[PoolDecision] = []

    @property
    def num_ready(self) -> int:
        return sum(worker.phase is Phase.READY for worker in self.workers)

    def go(self, until_s: float, rps: float, *, queued: int = 0, ttft_ms: float = 50.0) -> "Story":
        """Requests come at a rate; each engine has so many waiting, of 100 tokens each."""
        while self.at_s < until_s:
            self.at_s += 5.0
            at_ms = self.at_s * 1e3
            self.frontend.serve(int(5 * rps), isl=100, osl=20, ttft_ms=ttft_ms)
            self._grow(at_ms)
            reports = [
                report(
                    worker.worker_id, at_ms=at_ms, running=4 if rps else 0, kv=440,
                    waiting=queued, queued=100 * queued,
                )
                for worker in self.workers
                if worker.phase is Phase.READY
            ]  # fmt: skip
            state = PoolState("agg", self.wanted, tuple(self.workers))
            seen = observation(at_ms, [state], [self.frontend.scrape(at_ms)], reports)
            decided = only(self.planner.look(seen))
            self.told.append(decided)
            self._obey(decided.target, at_ms)
        return self

    def _grow(self, at_ms: float) -> None:
        self.workers = [
            WorkerState(worker.worker_id, Phase.READY, worker.since_ms + self.start_s * 1e3)
            if worker.phase is Phase.STARTING and at_ms - worker.since_ms >= self.start_s * 1e3
            else worker
            for worker in self.workers
        ]

    def _obey(self, target: int, at_ms: float) -> None:
        first = 1 + max((worker.worker_id for worker in self.workers), default=0)
        missing = target - len(self.workers)
        self.workers += [
            WorkerState(first + index, Phase.STARTING, at_ms) for index in range(missing)
        ]
        del self.workers[target:]
        self.wanted = target


def story(**changes: object) -> Story:
    """Half an hour in which two engines have been enough for 20 requests a second."""
    planner = Planner(replace(SPEC, **changes), [card()], {"agg": linear()})  # type: ignore[arg-type]
    return Story(planner).go(300, 20)


def test_an_overload_gets_as_many_as_it_takes_at_once() -> None:
    """100/s come: 4.5 engines; until more are there, in the 60 s that a start is taken to take, a
    backlog grows that takes as many again as are missing."""
    told = story().go(305, 100, queued=120).told[-1]
    assert told.verdict == "scale_up"
    rps, waiting = told.figures["arriving_rps"], told.figures["num_waiting"]
    assert (waiting, told.figures["start_ms"]) == (120, 60_000.0)
    assert rps == pytest.approx((500 - 500**0.5) / 5)
    usable = told.figures["engine_rps"] if "engine_rps" in told.figures else 22.2222
    left = waiting + 60 * rps - 60 * usable
    assert told.target == -(-(rps + left / 60) // usable)
    assert "catch up in as long again" in told.reasons[-2] and "more" in told.reasons[-1]


def test_dynamos_rule_asks_for_one_more_and_waits_for_it() -> None:
    burst = story(max_load_scaling_replicas=1, burst_memory_ms=0.0)
    before = burst.wanted
    burst.go(325, 100, queued=120)
    targets = [one.target for one in burst.told[-5:]]
    assert targets == [before + 1] * 5
    assert [one.verdict for one in burst.told[-4:]] == ["scaling_in_progress"] * 4


def test_no_more_than_that_many_at_a_time() -> None:
    burst = story(max_load_scaling_replicas=2)
    before = burst.wanted
    assert burst.go(305, 100, queued=120).wanted == before + 2
    assert burst.go(310, 100, queued=120).wanted == before + 4  # while they start


def test_while_they_start_no_more_are_asked_for_than_it_takes() -> None:
    burst = story().go(310, 100, queued=120)
    wanted = burst.wanted
    burst.go(325, 100, queued=120)
    assert burst.wanted == wanted
    assert burst.told[-1].verdict == "scaling_in_progress"


def test_workers_are_kept_for_what_came_within_a_start() -> None:
    """After a burst in which nobody was late: kept for the 30 s that a start was seen to take, and
    as long as the window in which bursts are looked for."""
    burst = story().go(360, 100, queued=120).go(420, 100)
    held = burst.wanted
    assert held >= 5
    burst.go(430, 10)
    assert burst.wanted >= 5  # 100/s within the last 30 s
    assert burst.told[-1].verdict in ("kept_for_bursts", "scale_down_capped_by_throughput")
    assert burst.go(600, 10).wanted == 1


def test_they_are_kept_longer_where_too_many_were_late() -> None:
    burst = story().go(360, 100, queued=120, ttft_ms=5_000.0).go(420, 100)
    burst.go(600, 10)
    assert burst.wanted >= 5
    assert burst.told[-1].verdict == "kept_for_bursts"
    assert burst.told[-1].figures["late_share"] > 0.05
    assert "were late" in burst.told[-1].reasons[-1]
    assert burst.go(900, 10).wanted == 1  # 300 s, and the window of 60 s


def test_what_was_kept_once_is_there_again_where_too_many_were_late() -> None:
    """Not by a vote: the engines have nothing to do."""
    burst = story().go(360, 100, queued=120, ttft_ms=5_000.0).go(420, 100)
    burst.workers, burst.wanted = burst.workers[:2], 2  # somebody took them away
    burst.go(430, 10)
    assert burst.wanted >= 5
    assert burst.told[-1].reasons or burst.told[-2].reasons[-1] == "as many as bursts took"


def test_nothing_is_kept_where_that_is_not_wanted() -> None:
    burst = story(burst_memory_ms=0.0).go(360, 100, queued=120, ttft_ms=5_000.0).go(420, 100)
    assert burst.go(545, 10).wanted <= 2
    assert "kept_for_bursts" not in {one.verdict for one in burst.told}


@pytest.mark.parametrize("name", ["max_load_scaling_replicas", "attainment_window_ms"])
def test_amounts_that_make_no_sense_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}: expected more than 0"):
        Planner(replace(SPEC, **{name: 0}), [card()], {"agg": linear()})  # type: ignore[arg-type]


def test_a_share_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="attainment: expected a number between 0 and 1, got 1"):
        Planner(replace(SPEC, attainment=1.0), [card()], {"agg": linear()})
    with pytest.raises(ValueError, match="burst_memory_ms: expected at least 0"):
        Planner(replace(SPEC, burst_memory_ms=-1.0), [card()], {"agg": linear()})


# ---- what an engine serves -----------------------------------------------------------------------


@dataclass(frozen=True)
class StepsWithPrompts:
    """10 ms a step, and 50 more if any prompt is in it, however little of it."""

    def step_ms(self, step: StepShape) -> float:
        """See `PassTimes`."""
        return 10.0 + (50.0 if step.prefill_tokens else 0.0)


def test_prompts_are_computed_in_as_few_steps_as_they_fit_in() -> None:
    """8 sequences of 20 tokens: two prompts in five steps, which take 10 + 0.4 * 50 ms; a part of
    prompts in each step makes it 60."""
    mix = RequestMix(100, 20)
    engine = EngineModel.of(card(), StepsWithPrompts())
    whole = best_point("agg", engine, mix, 1e9, 1e9)
    assert (whole.num_seqs, whole.itl_ms) == (8, pytest.approx(30.0))
    spread = best_point("agg", replace(engine, spreads_prompts=True), mix, 1e9, 1e9)
    assert spread.itl_ms == pytest.approx(60.0)
    assert whole.rps == pytest.approx(2 * spread.rps)


def test_prompts_longer_than_a_step_take_as_many_as_they_do() -> None:
    """1500 tokens at 992 a step beside 8 decodes: 1.512 steps of each prompt."""
    mix = RequestMix(1500, 20)
    engine = EngineModel.of(card(max_kv_tokens=100_000), StepsWithPrompts())
    point = best_point("agg", engine, mix, 1e9, 1e9)
    share = point.num_seqs * 1500 / 20
    assert point.itl_ms == pytest.approx(10 + 50 * share / (1000 - point.num_seqs), rel=1e-6)


def test_the_pool_state_of_tests_is_as_planners_see_it() -> None:
    state = pool_state("agg", 2, starting=1)
    starts = StartTimes()
    starts.note(state)
    assert starts.ready_in_ms(0.0) == [ASSUMED_START_MS]
