"""A controller's own metrics."""

import aiohttp
from planner_support import pool_state, report

from dynosim.planner.decision import PoolDecision, ScalingDecision
from dynosim.planner.look import Look
from dynosim.planner.observation import Observation
from dynosim_runtime.planner.gauges import ControllerGauges, GaugesPage
from dynosim_runtime.planner.scraping import parse_samples


def look(at_ms: float, ready: int, target: int, verdict: str, **figures: float) -> Look:
    seen = Observation(
        at_ms, (pool_state("workers", ready, draining=1),), (), (report(0, "workers", kv=77),)
    )
    decided = PoolDecision("workers", ready, target, verdict, (), figures)
    return Look(seen, ScalingDecision(at_ms, "planner", (decided,)))


async def test_the_page_tells_of_the_last_decision_and_of_gpu_hours() -> None:
    gauges = ControllerGauges({"workers": 2})
    page = GaugesPage(gauges)
    await page.start()
    try:
        gauges.note(look(0.0, 1, 3, "scale_up", demand_rps=2.5))
        gauges.note(look(1.8e6, 3, 3, "no_change"))
        assert page.url is not None
        async with aiohttp.ClientSession() as session, session.get(page.url) as answer:
            values = parse_samples(await answer.text())
    finally:
        await page.close()
    of_pool = '{pool="workers"}'
    assert values[f"dynamo_planner_wanted_replicas{of_pool}"] == 3
    assert values['dynamo_planner_replicas{phase="ready",pool="workers"}'] == 3
    assert values['dynamo_planner_replicas{phase="draining",pool="workers"}'] == 1
    assert values["dynamo_planner_gpu_hours"] == 2 * 2 * 0.5, "half an hour with two of two GPUs"
    assert values[f"dynamo_planner_demand_rps{of_pool}"] == 2.5
    for verdict in ("scale_up", "no_change"):
        name = f'dynamo_planner_decisions_total{{pool="workers",verdict="{verdict}"}}'
        assert values[name] == 1
    assert values['dynamo_planner_engine_decode_kv_tokens{pool="workers",worker="0"}'] == 77
