"""A controller in real time: when it is shown what, and how its decisions are carried out."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from live_scaling_support import MadeUpWorkforce, Scripted, scaled_plan, scaled_sections
from virtual_time import in_virtual_time

from dynosim.build.live_control import live_controller, pool_gpus, pool_name, pool_sizes
from dynosim.config import RunConfig
from dynosim.config.controllers import ScalingConfig
from dynosim.config.loading import resolved, run_config_from_dict
from dynosim.errors import ConfigError
from dynosim.planner.controller import Controller
from dynosim_runtime.errors import LiveError
from dynosim_runtime.planner import driver as driver_module
from dynosim_runtime.planner.driver import ScalingDriver, StopWatch
from dynosim_runtime.planner.session import check_scaled


class Frontend:
    """Counts how often it was scraped; silent in between `silent_s`."""

    def __init__(self, silent_s: tuple[float, float] = (0.0, 0.0)) -> None:
        self.num_scrapes = 0
        self._silent_s = silent_s

    async def scrape(self, session: object, url: str) -> dict[str, float]:
        now_s = asyncio.get_running_loop().time()
        if self._silent_s[0] <= now_s < self._silent_s[1]:
            await asyncio.sleep(5)
            raise LiveError("timed out")
        self.num_scrapes += 1
        return {"scrapes_total": float(self.num_scrapes)}


async def run(
    monkeypatch: pytest.MonkeyPatch,
    controller: Controller,
    for_s: float,
    frontend: Frontend | None = None,
    workforce: Callable[[StopWatch], MadeUpWorkforce] = MadeUpWorkforce,
    carries_out: bool = True,
    **scaling: Any,
) -> tuple[MadeUpWorkforce, list[str]]:
    monkeypatch.setattr(driver_module, "scrape", (frontend or Frontend()).scrape)
    watch, said = StopWatch(), list[str]()
    force = workforce(watch)
    driver = ScalingDriver(
        controller,
        force,
        url="http://nowhere",
        scaling=ScalingConfig(**scaling),
        watch=watch,
        carries_out=carries_out,
        say=said.append,
    )
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(for_s):
            await driver.run()
    return force, said


def ages_s(controller: Scripted) -> list[list[float]]:
    """By look: how old the scrapes are that came with it."""
    return [
        [(look.seen.now_ms - one.at_ms) / 1e3 for one in look.seen.scrapes]
        for look in controller.looks
    ]


@in_virtual_time
async def test_it_looks_when_it_wants_and_gets_each_scrape_once() -> None:
    with pytest.MonkeyPatch.context() as patch:
        controller = Scripted(1)
        await run(patch, controller, 3.5, scrape_interval_ms=450)
    assert [look.seen.now_ms for look in controller.looks] == pytest.approx([1000, 2000, 3000])
    assert ages_s(controller)[0] == pytest.approx([1.0, 0.55, 0.1])
    assert ages_s(controller)[2] == pytest.approx([0.75, 0.3])
    numbers = [
        one.values["scrapes_total"] for look in controller.looks for one in look.seen.scrapes
    ]
    assert numbers == list(range(1, 8))


@in_virtual_time
async def test_metrics_come_late_and_not_at_all_as_the_plan_says() -> None:
    with pytest.MonkeyPatch.context() as patch:
        controller = Scripted(1)
        outage = {"from_ms": 1100.0, "to_ms": 2100.0}
        await run(
            patch, controller, 4.5, scrape_interval_ms=450, metric_lag_ms=200, outages=(outage,)
        )
    at_s = [[one.at_ms / 1e3 for one in look.seen.scrapes] for look in controller.looks]
    expected = [[0.0, 0.45], [0.9], [2.25, 2.7], [3.15, 3.6]]
    assert at_s == [pytest.approx(times) for times in expected]


@in_virtual_time
async def test_a_frontend_that_does_not_answer_holds_up_no_look() -> None:
    with pytest.MonkeyPatch.context() as patch:
        controller = Scripted(1)
        frontend = Frontend(silent_s=(0.9, 6.1))
        await run(patch, controller, 9.5, frontend, scrape_interval_ms=500)
    assert [look.seen.now_ms for look in controller.looks][:7] == pytest.approx(
        [1000.0 * number for number in range(1, 8)]
    )
    counts = [len(look.seen.scrapes) for look in controller.looks]
    assert counts[0] == 2 and counts[1:6] == [0] * 5 and counts[-1] > 0


@in_virtual_time
async def test_decisions_are_carried_out_and_who_is_youngest_goes_first() -> None:
    with pytest.MonkeyPatch.context() as patch:
        force, said = await run(patch, Scripted(3, 3, 1), 3.5)
    assert [what for _, what in force.done] == ["launched", "launched", "drained 2", "drained 1"]
    assert [at_ms for at_ms, _ in force.done] == pytest.approx([1000, 1000, 3000, 3000])
    assert said == [
        "workers: 1 to 3 workers, scripted", "workers: 3 to 1 workers, scripted",
    ]  # fmt: skip


@in_virtual_time
async def test_a_decision_comes_about_later_unless_revoked_and_said_again_stays_due() -> None:
    with pytest.MonkeyPatch.context() as patch:
        force, _ = await run(patch, Scripted(2, 2, 2, 3, 2), 6.5, actuation_delay_ms=1500)
    # 2 is due 1.5 s after it was said first; 3, said at 4 s, is revoked at 5 s
    assert force.done == [(pytest.approx(2500), "launched")]
    assert force.wanted == {"workers": 2}


@in_virtual_time
@pytest.mark.parametrize("by_driver", [True, False])
async def test_advice_is_not_carried_out(by_driver: bool) -> None:
    with pytest.MonkeyPatch.context() as patch:
        controller = Scripted(3, is_advisory=not by_driver)
        force, said = await run(patch, controller, 2.5, carries_out=not by_driver)
    assert len(controller.looks) == 2
    assert force.done == [] and said == [] and force.wanted == {"workers": 1}


@in_virtual_time
async def test_who_cannot_be_launched_is_not_waited_for_and_that_is_said_once() -> None:
    with pytest.MonkeyPatch.context() as patch:
        controller = Scripted(5)
        force, said = await run(
            patch, controller, 3.5, workforce=lambda watch: MadeUpWorkforce(watch, most=3)
        )
    assert [what for _, what in force.done] == ["launched", "launched"]
    assert [look.seen.pool("workers").wanted for look in controller.looks] == [1, 3, 3]
    assert [text for text in said if "GPU" in text] == ["workers: no more workers: no GPU is left"]


@in_virtual_time
async def test_without_metrics_a_planner_holds() -> None:
    plan = scaled_plan({
        "optimization_target": "sla", "throughput_adjustment_interval_ms": 2000,
        "max_metric_age_ms": 3000,
    })  # fmt: skip
    controller = live_controller(plan)
    with pytest.MonkeyPatch.context() as patch:
        monitored = Monitored(controller)
        force, _ = await run(
            patch, monitored, 9, Frontend(silent_s=(2.2, 99)), scrape_interval_ms=500
        )
    assert "metrics_stale" not in monitored.verdicts[:2]
    assert monitored.verdicts[-1] == "metrics_stale"
    assert force.done == []


class Monitored:
    """A controller, and the verdicts on its only pool."""

    def __init__(self, controller: Controller) -> None:
        self._controller = controller
        self.verdicts: list[str] = []

    @property
    def name(self) -> str:
        return self._controller.name

    @property
    def next_ms(self) -> float:
        return self._controller.next_ms

    def look(self, seen: Any) -> Any:
        decision = self._controller.look(seen)
        if decision is not None:
            self.verdicts.append(decision.pools[0].verdict)
        return decision


# ---- plans ---------------------------------------------------------------------------------------


def test_pools_are_called_as_in_the_twin() -> None:
    plan = scaled_plan()
    assert pool_sizes(plan) == {"workers": 1} and pool_gpus(plan) == {"workers": 1}
    assert [pool_name(role) for role in ("agg", "prefill")] == ["workers", "prefill"]
    assert live_controller(plan).next_ms == 500.0


def test_step_times_of_hurried_engines_are_shorter() -> None:
    sla = {"optimization_target": "sla", "load_adjustment_interval_ms": 500}
    (slow,), (fast,) = (
        live_controller(scaled_plan(sla), speedup)._pools  # type: ignore[attr-defined]
        for speedup in (1.0, 10.0)
    )
    assert fast.engine().decode_ms(4, 100) == pytest.approx(slow.engine().decode_ms(4, 100) / 10)


def test_learned_step_times_are_not_known_at_first() -> None:
    sla = {"optimization_target": "sla", "step_times": "learned"}
    (pool,) = live_controller(scaled_plan(sla))._pools  # type: ignore[attr-defined]
    assert pool.engine() is None


NO_PLANNER: dict[str, Any] = {"target": 1.0, "max_replicas": 2}


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"planner": {"min_endpoint": 0}}, "planner.min_endpoint: 0, but requests do not wait"),
        ({"cluster": {"workers": 2, "cpu_workers": 1}}, "cluster.cpu_workers: 1, but a controller"),
        ({"hpa": {**NO_PLANNER, "min_replicas": 0}}, "hpa.min_replicas: 0"),
        (
            {"planner": None, "concurrency": {"max_replicas": 2}},
            "concurrency.min_replicas: 0",
        ),
    ],
)
def test_what_cannot_be_scaled_live_is_refused(sections: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_scaled(plan_of(**sections))


def test_an_hpa_scales_live_too_and_without_either_nobody_does() -> None:
    assert live_controller(plan_of(hpa=NO_PLANNER)).name == "hpa"
    with pytest.raises(ConfigError, match="nobody who decides"):
        live_controller(plan_of(planner=None, scaling=None))


def plan_of(**sections: Any) -> RunConfig:
    """A plan with these sections, without a planner beside an HPA."""
    without = {"planner": None} if "hpa" in sections else {}
    return run_config_from_dict(scaled_sections(**{**without, **sections}))


def test_a_plan_written_out_has_the_same_controller() -> None:
    """Targets that are the bounds of `sla`, and a budget without limit, are not lost."""
    planner = {"optimization_target": "sla", "itl_ms": 33.0, "max_gpu_budget": None}
    plan = plan_of(planner=planner, sla={"ttft_ms": 777.0, "itl_ms": 20.0})
    again = run_config_from_dict(resolved(plan))
    assert again.planner is not None
    for config in (plan, again):
        spec = live_controller(config)._spec  # type: ignore[attr-defined]
        assert (spec.ttft_ms, spec.itl_ms, spec.max_gpu_budget) == (777.0, 33.0, None)
