"""The load generator, and the commands on top of it, against a server whose behaviour is known."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from stub_server import StubServer
from virtual_engine import VirtualEngine, own_page, serve_commands
from waiting import PATIENCE_S, until

from dynosim.engine.spec import EngineSpec
from dynosim.records import Trace
from dynosim.silicon.fitted_file import read_fit
from dynosim.timing.formulas import LinearModel
from dynosim_runtime.errors import LiveError
from dynosim_runtime.measure.calibrate import calibrate_url
from dynosim_runtime.measure.client import CompletionsClient, LoadClock
from dynosim_runtime.measure.counters import parse_counters
from dynosim_runtime.measure.load import LoadRun, drive, warm_up
from dynosim_runtime.measure.prompts import UNKNOWN_VOCABULARY, PromptMaker
from dynosim_runtime.measure.steps import MeasurementPlan, Measurer
from dynosim_runtime.validate.command import validate

PLAN = """
name: stub
workload:
  synthetic: {requests: 12, isl: 40, osl: 6, rate_rps: 200}
engine: {block_size: 16, num_gpu_blocks: 1000, max_model_len: 4096}
timing: {kind: linear, base_ms: 1}
"""

METRICS = """
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{{engine="0"}} {running}
# TYPE vllm:num_requests_waiting gauge
vllm:num_requests_waiting{{engine="0"}} 0.0
# TYPE vllm:prefix_cache_queries counter
vllm:prefix_cache_queries_total{{engine="0"}} 1000.0
# TYPE vllm:prefix_cache_hits counter
vllm:prefix_cache_hits_total{{engine="0"}} 250.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{{block_size="16",enable_prefix_caching="{caching}"}} 1.0
"""


def trace_of(
    num_requests: int,
    *,
    gap_ms: float = 1.0,
    output_tokens: int = 4,
    previous_turn: list[int] | None = None,
    delay_ms: float = 0.0,
) -> Trace:
    count = np.ones(num_requests, dtype=np.int64)
    return Trace(
        arrival_ms=np.arange(num_requests) * gap_ms,
        input_tokens=16 * count,
        output_tokens=output_tokens * count,
        hash_ids=np.zeros(0, dtype=np.int64),
        hash_offsets=np.zeros(num_requests + 1, dtype=np.int64),
        trace_block_size=16,
        previous_turn=None if previous_turn is None else np.array(previous_turn),
        delay_ms=np.full(num_requests, delay_ms),
    )


async def load(stub: StubServer, trace: Trace, **how: Any) -> LoadRun:
    prompts = PromptMaker(UNKNOWN_VOCABULARY)
    async with stub.serving() as url, CompletionsClient(url, timeout_s=PATIENCE_S) as client:
        await warm_up(client, prompts, trace, 2)
        stub.bodies.clear()
        return await drive(trace, client, prompts, **how)


def fail_request(number: int, failure: str) -> Callable[[dict[str, Any]], str | None]:
    """A stub's `fails`: the prompt of that request of a trace without ids."""
    prompt = PromptMaker(UNKNOWN_VOCABULARY).prompt(trace_of(number + 1), number).tolist()
    return lambda body: failure if body["prompt"] == prompt else None


async def test_every_request_is_sent_once_and_completes() -> None:
    stub = StubServer()
    run = await load(stub, trace_of(50))
    assert {record.status for record in run.records} == {"completed"}
    assert [len(times) for times in run.token_ms] == [4] * 50
    assert len({tuple(body["prompt"]) for body in stub.bodies}) == 50
    assert {body["max_tokens"] for body in stub.bodies} == {4}
    assert all(body["ignore_eos"] and body["stream"] for body in stub.bodies)


async def test_open_loop_sends_nothing_before_it_is_due() -> None:
    trace = trace_of(20, gap_ms=5.0)
    run = await load(StubServer(), trace)
    assert [record.arrival_ms for record in run.records] == trace.arrival_ms.tolist()
    assert (run.lateness_ms >= 0).all()
    for record in run.records:
        assert record.dispatch_ms is not None and record.ttft_ms is not None
        assert record.ttft_ms >= record.dispatch_ms - record.arrival_ms


async def test_closed_loop_keeps_the_concurrency() -> None:
    stub = StubServer()
    most = 0

    def step_ms(*_: int) -> float:
        nonlocal most
        most = max(most, stub.num_running)
        return 10.0  # long enough for three to come

    stub.step_ms = step_ms
    run = await load(stub, trace_of(20, gap_ms=1e6), concurrency=3)
    assert {record.status for record in run.records} == {"completed"}
    assert most == 3


async def test_a_turn_waits_for_the_one_before_and_its_delay() -> None:
    run = await load(
        StubServer(), trace_of(3, previous_turn=[-1, 0, 1], delay_ms=20.0), concurrency=1
    )
    assert [record.status for record in run.records] == ["completed"] * 3
    for earlier, later in zip(run.records[:-1], run.records[1:], strict=True):
        assert earlier.finish_ms is not None
        assert later.arrival_ms >= earlier.finish_ms + 20.0


async def test_speed_offers_faster_and_scales_times_back() -> None:
    stub = StubServer(nvext={"timing": {"prefill_time_ms": 0.001}, "worker_id": {}})
    run = await load(stub, trace_of(10, gap_ms=500.0), speed=100.0)
    arrivals = [record.arrival_ms for record in run.records]
    assert arrivals == [500.0 * index for index in range(10)]
    assert run.records[0].prefill_time_ms == pytest.approx(0.1)


async def test_what_fails_becomes_a_record_with_its_reason() -> None:
    for failure, status, reason in (
        ("refuse", "rejected", "HTTP 400: prompt too long"),
        ("break", "failed", "HTTP 500: engine dead"),
        ("error mid-stream", "failed", "engine died"),
    ):
        run = await load(StubServer(fails=fail_request(3, failure)), trace_of(8))
        assert [record.status == "completed" for record in run.records].count(False) == 1
        assert run.records[3].status == status
        assert reason in (run.records[3].error or "")


async def test_a_hanging_answer_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    async def names(client: CompletionsClient) -> list[str]:
        return ["stub"]

    monkeypatch.setattr(CompletionsClient, "model_names", names)  # not to be timed out itself
    prompt = PromptMaker(UNKNOWN_VOCABULARY).prompt(trace_of(1), 0)
    stub = StubServer(fails=lambda body: "hang")
    async with stub.serving() as url, CompletionsClient(url, timeout_s=0.3) as client:
        answer = await client.complete(prompt, 4, LoadClock())
    assert answer.error == "timeout: no complete answer within 0.3 s"


async def test_fewer_tokens_than_asked_for_are_an_error() -> None:
    trace = trace_of(2)
    stub = StubServer(fails=lambda body: None)
    prompts = PromptMaker(UNKNOWN_VOCABULARY)
    async with stub.serving() as url, CompletionsClient(url) as client:
        stub.short_by = 1
        run = await drive(trace, client, prompts)
    assert {record.status for record in run.records} == {"failed"}
    assert "3 tokens instead of 4" in (run.records[0].error or "")


async def test_servers_without_token_ids_or_extensions_are_measured_too() -> None:
    stub = StubServer(refuses_extras=True)
    run = await load(stub, trace_of(4))
    assert {record.status for record in run.records} == {"completed"}
    assert [len(times) for times in run.token_ms] == [4] * 4
    assert all("nvext" not in body for body in stub.bodies)


async def test_extension_fills_workers_and_times() -> None:
    stub = StubServer(
        nvext={
            "worker_id": {"prefill_worker_id": 9, "decode_worker_id": 9},
            "timing": {"prefill_time_ms": 0.01, "kv_hit_rate": 0.5},
        },
        cached_tokens=8,
    )
    record = (await load(stub, trace_of(1))).records[0]
    assert (record.decode_worker_id, record.cached_tokens, record.kv_hit_rate) == (9, 8, 0.5)
    assert record.ttft_ms == pytest.approx(
        (record.prefill_wait_time_ms or 0) + (record.prefill_time_ms or 0)
    )


async def test_cancelled_it_keeps_what_was_finished_and_cancels_the_rest() -> None:
    stub = StubServer(fails=fail_request(2, "hang"))
    trace = trace_of(4)
    trace.arrival_ms[3] = 1e9
    prompts = PromptMaker(UNKNOWN_VOCABULARY)
    async with stub.serving() as url, CompletionsClient(url) as client:
        ended: list[int] = []
        progress = lambda num_ended, _: ended.append(num_ended)  # noqa: E731
        task = asyncio.create_task(drive(trace, client, prompts, progress=progress))
        await until(lambda: len(ended) == 2 and len(stub.bodies) == 3)
        task.cancel()
        run = await task
        await until(lambda: not stub.num_running)
    assert run.was_interrupted
    assert [record.status for record in run.records] == [
        "completed", "completed", "cancelled", "unfinished",
    ]  # fmt: skip
    assert stub.num_cancelled == 1


@pytest.mark.parametrize("turns_of_the_loop", range(7))
async def test_an_interruption_is_not_lost_beside_the_end_of_a_request(
    turns_of_the_loop: int,
) -> None:
    trace = trace_of(2)
    trace.arrival_ms[1] = 1e9
    loop = asyncio.get_running_loop()

    def cancel_after(turns: int) -> None:
        if turns:
            loop.call_soon(cancel_after, turns - 1)
        else:
            task.cancel()

    async with StubServer().serving() as url, CompletionsClient(url) as client:
        task = asyncio.create_task(
            drive(
                trace,
                client,
                PromptMaker(UNKNOWN_VOCABULARY),
                progress=lambda *_: cancel_after(turns_of_the_loop),
            )
        )
        await asyncio.wait({task}, timeout=PATIENCE_S)  # it does not cancel the task
        assert task.done()
    run = task.result()
    assert run.was_interrupted
    assert [record.status for record in run.records] == ["completed", "unfinished"]


async def test_no_server_is_one_message() -> None:
    with pytest.raises(LiveError, match="is the server running"):
        async with CompletionsClient("http://127.0.0.1:9"):
            pass


def plan_file(tmp_path: Path) -> Path:
    path = tmp_path / "run.yaml"
    path.write_text(PLAN)
    return path


async def run_validate(tmp_path: Path, stub: StubServer, **options: Any) -> int:
    given: dict[str, Any] = {
        "url": None, "trace": None, "out": tmp_path / "out", "mock": False, "real": False,
        "model": None, "engine": None, "engine_python": None, "speedup": 1.0, "warmup": 2,
        "aiperf": None, "as_json": True,
    }  # fmt: skip
    async with stub.serving() as url:
        given |= {"url": url, **options}
        return await asyncio.to_thread(validate, plan_file(tmp_path), [], **given)


async def test_validate_writes_table_records_and_plot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await run_validate(tmp_path, StubServer()) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "out" / "validation.json").read_text())
    assert document["metrics"][0]["metric"] == "TTFT mean"
    assert all(metric["measured"] is not None for metric in document["metrics"][:-1])
    assert document["requests"]["ttft_ms"]["num_requests"] == 12
    measured = pl.read_parquet(tmp_path / "out" / "requests.parquet")
    predicted = pl.read_parquet(tmp_path / "out" / "predicted.parquet")
    assert measured.schema == predicted.schema
    assert measured["request_id"].equals(predicted["request_id"])
    assert (tmp_path / "out" / "distributions.png").stat().st_size > 10_000
    assert len((tmp_path / "out" / "requests.jsonl").read_text().splitlines()) == 12


async def test_validate_tells_of_failed_requests_and_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = StubServer(fails=lambda body: "break" if body["max_tokens"] == 6 else None)
    assert await run_validate(tmp_path, broken, warmup=0, as_json=False) == 1
    output = capsys.readouterr().out
    assert "12 requests were not served" in output
    assert "HTTP 500: engine dead" in output


def calibration_plan() -> MeasurementPlan:
    return MeasurementPlan(
        prompt_lengths=(16, 64, 256),
        cached=((256, 16),),
        batch_sizes=(1, 2, 4),
        contexts=(32,),
        mixed_prompts=(16, 64),
        mixed_batches=(1, 2),
        rounds=3,
        prompts_per_round=1,
        newcomers_per_round=2,
        steady_steps=8,
        max_context=4096,
    )


def test_calibrate_writes_a_timing_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "timing.json"
    plan = MeasurementPlan(
        prompt_lengths=(16, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024),
        cached=(),
        batch_sizes=(1, 2),
        contexts=(32, 300),
        mixed_prompts=(16, 64),
        mixed_batches=(1,),
        rounds=2,
        prompts_per_round=2,
        steady_steps=8,
        max_context=2048,
    )
    timing = LinearModel(
        base_ms=5.0, per_prefill_token_ms=0.1, per_decode_ms=1.0, per_context_token_ms=0.001
    )
    spec = EngineSpec(num_gpu_blocks=1000, max_model_len=2048)
    serve_commands(monkeypatch, VirtualEngine(spec, timing, page=own_page))
    assert calibrate_url("http://any", out=out, model=None, as_json=True, plan=plan) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads(out.with_suffix(".points.json").read_text())
    kinds = [point["kind"] for point in document["points"]]
    assert [kinds.count(kind) for kind in ("prefill", "decode", "mixed")] == [12, 4, 2]
    assert read_fit(out).source == "virtual at http://virtual"
    assert read_fit(out).errors["step_ms"] == document["held_out_error"] < 0.01


@pytest.mark.parametrize(
    ("stub", "message"),
    [
        (StubServer(short_by=1), "tokens instead of"),
        (StubServer(fails=lambda body: "break"), "engine dead"),
        (StubServer(metrics=METRICS.format(running=3, caching="True")), "nobody else uses it"),
    ],
)
async def test_calibration_refuses_what_makes_no_sense(
    stub: StubServer, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("dynosim_runtime.measure.steps.IDLE_PATIENCE_S", 0.2)
    async with stub.serving() as url, CompletionsClient(url) as client:
        measurer = Measurer(client, PromptMaker(UNKNOWN_VOCABULARY), calibration_plan())
        with pytest.raises(LiveError, match=message):
            await measurer.measure()


def test_counters_of_an_engine() -> None:
    counters = parse_counters(METRICS.format(running=2, caching="False"))
    assert counters is not None
    assert (counters.num_requests, counters.cache_config["block_size"]) == (2, "16")
    assert counters.hit_rate_since(counters) is None
    assert parse_counters("# TYPE other gauge\nother 1\n") is None
    assert parse_counters("<html>") is None


@pytest.mark.live
async def test_ctrl_c_keeps_what_was_finished(tmp_path: Path) -> None:
    stub = StubServer(fails=lambda body: "hang" if len(body["prompt"]) == 41 else None)
    plan = tmp_path / "run.yaml"
    plan.write_text(PLAN.replace("isl: 40", "isl: {dist: normal, mean: 41, std: 2, min: 38}"))
    async with stub.serving() as url:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "dynosim", "validate", str(plan), "--url", url,
            "--out", str(tmp_path / "out"), "--warmup", "0",
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=dict(os.environ),
        )  # fmt: skip

        def is_stuck() -> bool:
            hanging = sum(len(body["prompt"]) == 41 for body in stub.bodies)
            assert process.returncode is None
            return len(stub.bodies) >= 13 and stub.num_running == hanging

        await until(is_stuck)
        await asyncio.sleep(0.3)  # for the last of them to be read; those before it suffice
        process.send_signal(signal.SIGINT)
        output, errors = await process.communicate()
    assert process.returncode == 130, errors.decode()
    assert b"interrupted" in output
    table = pl.read_parquet(tmp_path / "out" / "requests.parquet")
    statuses = set(table["status"].to_list())
    assert statuses == {"completed", "cancelled"}
