"""What engines report to controllers: simulated ones, and real ones as far as they tell."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import aiohttp
import msgspec
import pytest
from aiohttp import web
from mock_support import TIMING, TokenLog, call, mock_engine

from dynosim.engine.plan import StepPlan
from dynosim.engine.spec import EngineSpec
from dynosim.planner.observation import EngineReport, Pass, Scrape
from dynosim.timing.step import StepShape
from dynosim_runtime.adapters.metrics import EngineLoad
from dynosim_runtime.card import EngineKind, LiveCard, worker_id_of
from dynosim_runtime.errors import ApiError
from dynosim_runtime.mock.report import MockReport, StepMemory, report_query
from dynosim_runtime.mock.stats import MockStats
from dynosim_runtime.planner.reports import ReportGatherer, report_of_load
from dynosim_runtime.planner.scraping import mean_prompt_tokens, parse_samples
from dynosim_runtime.planner.workforce import Serving

SPEC = EngineSpec(
    num_gpu_blocks=41, block_size=16, max_num_seqs=2, max_num_batched_tokens=64, max_model_len=512
)


# ---- simulated engines ---------------------------------------------------------------------------


def test_a_mock_engine_tells_its_load_and_its_steps() -> None:
    engine = mock_engine(SPEC, stats=MockStats(2.0))
    for index in range(4):
        engine.submit(call(range(10 + index, 110 + index), 5), TokenLog(), float(index))
    engine.next_end_ms(2.0)  # the fourth comes later
    report = engine.report((0, 4), is_decode=False)
    assert (report.num_running, report.num_waiting, report.num_steps) == (1, 3, 0)
    assert report.queued_prefill_tokens == 300
    assert 0 < report.used_kv_share <= 1
    while engine.next_end_ms(10.0 * (report.num_steps + 1)) and report.num_steps < 3:
        engine.complete()
        report = engine.report((0, 4), is_decode=False)
    first = report.passes[0]
    assert (first.num_prefills, first.prefill_tokens, first.num_decodes) == (1, 64, 0)
    assert first.wall_ms == pytest.approx(TIMING.step_ms(StepShape(1, 64)) / 2), "in real time"
    assert report.decode_kv_tokens > 100, "the first has its prompt"


def _step(number: int) -> StepPlan:
    plan = StepPlan(number)
    plan.end_ms = float(number)
    return plan


def walls(memory: StepMemory, after: int, limit: int) -> list[float]:
    return [one.wall_ms for one in memory.since(after, limit)]


def test_steps_since_the_last_report_are_told_evenly_spread() -> None:
    memory = StepMemory(1.0)
    assert memory.since(0, 4) == ()
    for number in range(100):
        memory.note(_step(number))
    assert walls(memory, 0, 4) == [12.0, 37.0, 62.0, 87.0]
    assert walls(memory, 97, 4) == [97.0, 98.0, 99.0]
    assert walls(memory, 100, 4) == walls(memory, 90, 0) == []


def test_of_a_long_time_the_last_steps_are_known() -> None:
    memory = StepMemory(1.0)
    for number in range(5000):
        memory.note(_step(number))
    assert walls(memory, 0, 2) == [904.0 + 1024, 904.0 + 3 * 1024]


@pytest.mark.parametrize("query", [{"after": "-1"}, {"limit": "x"}, {"limit": "5000"}])
def test_a_question_that_makes_no_sense_is_refused(query: dict[str, str]) -> None:
    with pytest.raises(ApiError, match="after, limit"):
        report_query(query)


# ---- real engines --------------------------------------------------------------------------------


def worker(kind: EngineKind = "vllm", url: str = "http://nowhere", number: int = 3) -> Serving:
    card = LiveCard(
        worker_id=worker_id_of("w"), name="w", engine=kind, url=url, model="m", block_size=16,
        total_kv_blocks=100, max_model_len=64,
    )  # fmt: skip
    return Serving(number, "workers", card)


LOAD = EngineLoad(num_running=2, num_waiting=3, kv_usage=0.25)


def test_what_an_engine_does_not_tell_is_worked_out() -> None:
    report = report_of_load(worker(), LOAD, 70.0, 9.0)
    assert report == EngineReport(3, "workers", 9.0, 2, 3, 210, 400, 0, 0.25)


def test_who_waits_with_a_prompt_of_unknown_length_makes_no_report() -> None:
    assert report_of_load(worker(), LOAD, None, 9.0) is None
    idle = EngineLoad(num_running=0, num_waiting=0, kv_usage=0.0)
    assert report_of_load(worker(), idle, None, 9.0) is not None


@pytest.mark.parametrize("missing", ["num_running", "num_waiting", "kv_usage"])
def test_an_engine_that_does_not_tell_its_load_makes_no_report(missing: str) -> None:
    assert report_of_load(worker(), msgspec.structs.replace(LOAD, **{missing: None}), 7.0, 9.0) is (
        None
    )


def test_prompts_are_averaged_over_the_frontends_life() -> None:
    name = "dynamo_frontend_input_sequence_tokens"
    text = (
        f"# TYPE {name} histogram\n"
        f'{name}_bucket{{model="m",dynamo_namespace="d",le="+Inf"}} 4\n'
        f'{name}_sum{{model="m",dynamo_namespace="d"}} 280\n'
        f'{name}_count{{model="m",dynamo_namespace="d"}} 4\n'
        "# TYPE strange gauge\nstrange NaN\n"
    )
    values = parse_samples(text)
    labels = 'dynamo_namespace="d",model="m"'
    assert values == {
        f'{name}_bucket{{dynamo_namespace="d",le="+Inf",model="m"}}': 4.0,
        f"{name}_sum{{{labels}}}": 280.0,
        f"{name}_count{{{labels}}}": 4.0,
    }
    assert mean_prompt_tokens(Scrape(1.0, values)) == 70.0
    assert mean_prompt_tokens(Scrape(1.0, {})) is None and mean_prompt_tokens(None) is None


# ---- asking them ---------------------------------------------------------------------------------


@asynccontextmanager
async def served(path: str, answer: Callable[[web.Request], web.Response]) -> AsyncIterator[str]:
    async def handle(request: web.Request) -> web.Response:
        return answer(request)

    app = web.Application()
    app.add_routes([web.get(path, handle)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    assert site._server is not None
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[attr-defined]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        await runner.cleanup()


async def test_steps_are_asked_for_once_and_a_silent_worker_keeps_its_last_report() -> None:
    asked: list[str] = []

    def answer(request: web.Request) -> web.Response:
        asked.append(request.query_string)
        if len(asked) == 3:
            return web.Response(status=500)
        report = MockReport(
            num_running=1, num_waiting=2, queued_prefill_tokens=3, decode_kv_tokens=4,
            queued_decode_kv_tokens=5, used_kv_share=0.5, num_steps=10 * len(asked),
            passes=(Pass(1.5, 1, 2, 3, 4),),
        )  # fmt: skip
        return web.Response(body=msgspec.json.encode(report))

    times = iter([1.0, 2.0, 3.0])
    async with (
        served("/engine_report", answer) as url,
        aiohttp.ClientSession() as session,
    ):
        gatherer = ReportGatherer(session, lambda: next(times))
        for _ in range(3):
            await gatherer.gather([worker("mock", url)], None)
        assert asked == ["after=0&limit=4", "after=10&limit=4", "after=20&limit=4"]
        assert gatherer.latest == (
            EngineReport(3, "workers", 2.0, 1, 2, 3, 4, 5, 0.5, (Pass(1.5, 1, 2, 3, 4),)),
        )
        assert gatherer.num_requests == {3: 3}
        gatherer.keep_only([4])
        assert gatherer.latest == ()


async def test_vllms_metrics_are_read() -> None:
    text = (
        "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running 2\n"
        "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting 3\n"
        "# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc 0.25\n"
    )
    async with (
        served("/metrics", lambda request: web.Response(text=text)) as url,
        aiohttp.ClientSession() as session,
    ):
        gatherer = ReportGatherer(session, asyncio.get_running_loop().time)
        await gatherer.gather([worker(url=url)], 70.0)
        (report,) = gatherer.latest
        assert (report.num_running, report.queued_prefill_tokens, report.passes) == (2, 210, ())
