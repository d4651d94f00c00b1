"""Driving a server with a trace, on a clock that jumps: when requests go out, to the instant."""

import asyncio
import heapq
from array import array
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from virtual_time import in_virtual_time, loop_clock, now_s

from dynosim.records import IntArray, Trace
from dynosim_runtime.measure.client import LoadClock, TimedAnswer
from dynosim_runtime.measure.load import (
    NEVER_SENT,
    WARM_UP_OUTPUT_TOKENS,
    LoadRun,
    drive,
    warm_up,
)
from dynosim_runtime.measure.prompts import UNKNOWN_VOCABULARY, PromptMaker

PROMPTS = PromptMaker(UNKNOWN_VOCABULARY)


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dynosim_runtime.measure.client.time", loop_clock)


class Server:
    """Stands where a `CompletionsClient` does: request i takes `takes_s[i]` and gives one token."""

    def __init__(self, *takes_s: float) -> None:
        self.takes_s = takes_s
        self.sent_s: dict[str, float] = {}
        self.calls: list[tuple[int, int, str | None, int]] = []
        self.num_running = 0
        self.most_running = 0
        self.probed: list[int] = []

    async def probe(self, prompt: IntArray) -> None:
        self.probed.append(len(prompt))

    async def complete(
        self,
        prompt: IntArray,
        output_tokens: int,
        clock: LoadClock,
        *,
        request_id: str | None = None,
        priority: int = 0,
        wishes: object = None,
        expected_output_tokens: int | None = None,
        pin_ttl_ms: object = None,
    ) -> TimedAnswer:
        self.calls.append((len(prompt), output_tokens, request_id, priority))
        name = str(request_id)
        self.sent_s[name] = now_s()
        answer = TimedAnswer(sent_ms=clock.now_ms(), http_status=200)
        self.num_running += 1
        self.most_running = max(self.most_running, self.num_running)
        try:
            await asyncio.sleep(self.takes_s[int(name)] if name.isdigit() else 1.0)
        finally:
            self.num_running -= 1
        answer.token_ms = array("d", [clock.now_ms()])
        return answer


def trace_of(
    num_requests: int,
    *,
    arrival_ms: list[float] | None = None,
    previous_turn: list[int] | None = None,
    delay_ms: list[float] | None = None,
    **more: Any,
) -> Trace:
    count = np.ones(num_requests, dtype=np.int64)
    return Trace(
        arrival_ms=np.array(arrival_ms or [0.0] * num_requests),
        input_tokens=more.pop("input_tokens", 16 * count),
        output_tokens=more.pop("output_tokens", count),
        hash_ids=np.zeros(0, dtype=np.int64),
        hash_offsets=np.zeros(num_requests + 1, dtype=np.int64),
        trace_block_size=16,
        previous_turn=None if previous_turn is None else np.array(previous_turn),
        delay_ms=None if delay_ms is None else np.array(delay_ms),
        **more,
    )


async def driven(server: Server, trace: Trace, **how: Any) -> LoadRun:
    return await drive(trace, server, PROMPTS, **how)  # type: ignore[arg-type]


def arrivals(run: LoadRun) -> list[float]:
    return [record.arrival_ms for record in run.records]


@in_virtual_time
async def test_an_open_loop_sends_each_request_when_it_is_due_whatever_the_server_does() -> None:
    server = Server(10.0, 0.5, 0.25)
    progress: list[tuple[int, int]] = []
    trace = trace_of(3, arrival_ms=[0.0, 250.0, 4000.0])
    run = await driven(server, trace, progress=lambda *done: progress.append(done))
    assert server.sent_s == {"0": 0.0, "1": 0.25, "2": 4.0}
    assert arrivals(run) == [0, 250, 4000]
    assert run.lateness_ms.tolist() == [0, 0, 0]
    assert [record.finish_ms for record in run.records] == [10_000, 750, 4250]
    assert [times.tolist() for times in run.token_ms] == [[10_000], [750], [4250]]
    assert {record.status for record in run.records} == {"completed"}
    assert progress == [(1, 3), (2, 3), (3, 3)]
    assert (now_s(), run.was_interrupted) == (10.0, False)


@in_virtual_time
async def test_at_a_speed_of_four_all_of_it_takes_a_quarter() -> None:
    server = Server(1.0, 1.0)
    run = await driven(server, trace_of(2, arrival_ms=[0.0, 8000.0]), speed=4.0)
    assert server.sent_s == {"0": 0.0, "1": 2.0}
    assert arrivals(run) == [0, 8000]
    assert [record.finish_ms for record in run.records] == [4000, 12_000]
    assert run.lateness_ms.tolist() == [0, 0]


@in_virtual_time
async def test_what_is_sent_late_counts_from_when_it_was_due() -> None:
    class Slow(PromptMaker):
        """Making a prompt takes a second: the clock goes on meanwhile."""

        def prompt(self, trace: Trace, index: int) -> IntArray:
            asyncio.get_running_loop()._jumping.now_s += 1.0  # type: ignore[attr-defined]
            return super().prompt(trace, index)

    trace = trace_of(2, arrival_ms=[0.0, 500.0])
    run = await drive(trace, Server(2.0, 2.0), Slow(UNKNOWN_VOCABULARY))  # type: ignore[arg-type]
    assert run.lateness_ms.tolist() == [1000, 1500]
    assert arrivals(run) == [0, 500]
    assert [record.dispatch_ms for record in run.records] == [1000, 2000]
    assert [record.ttft_ms for record in run.records] == [3000, 3500]


@in_virtual_time
async def test_turns_wait_for_the_one_before_and_the_time_to_think() -> None:
    server = Server(2.0, 1.0, 4.0, 1.0)
    trace = trace_of(
        4,
        arrival_ms=[0.0, 1000.0, 0.0, 0.0],
        previous_turn=[-1, -1, 0, 2],
        delay_ms=[0.0, 0.0, 500.0, 250.0],
    )
    run = await driven(server, trace)
    assert arrivals(run) == [0, 1000, 2000 + 500, 2500 + 4000 + 250]
    assert server.sent_s == {"0": 0.0, "1": 1.0, "2": 2.5, "3": 6.75}
    assert run.lateness_ms.tolist() == [0] * 4


def naive_closed_loop(
    takes_s: list[float], sessions: list[list[int]], delays_s: dict[int, float], width: int
) -> dict[int, float]:
    """When each request is due, by a loop over ends: the earliest first."""
    waiting = list(sessions)
    due_s: dict[int, float] = {}
    under_way: list[tuple[float, int, list[int]]] = []

    def begin(request: int, at_s: float, rest: list[int]) -> None:
        due_s[request] = at_s
        heapq.heappush(under_way, (at_s + takes_s[request], request, rest))

    for session in waiting[:width]:
        begin(session[0], 0.0, session[1:])
    waiting = waiting[width:]
    while under_way:
        end_s, _, rest = heapq.heappop(under_way)
        if rest:
            begin(rest[0], end_s + delays_s[rest[0]], rest[1:])
        elif waiting:
            session = waiting.pop(0)
            begin(session[0], end_s, session[1:])
    return due_s


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 3), min_size=1, max_size=5),
    width=st.integers(1, 4),
    data=st.data(),
)
def test_a_closed_loop_keeps_so_many_sessions_in_progress(
    lengths: list[int], width: int, data: st.DataObject
) -> None:
    num_requests = sum(lengths)
    # Distinct sums of powers of two: no two ends coincide, so that the order is no matter of luck.
    numbers = list(range(num_requests))
    takes_s = [1.0 + 2.0 ** -(number + 2) for number in data.draw(st.permutations(numbers))]
    delays = data.draw(st.lists(st.sampled_from([0.0, 3.0]), min_size=num_requests,
                                max_size=num_requests))  # fmt: skip
    sessions, previous_turn = [], []
    for length in lengths:
        first = len(previous_turn)
        sessions.append(list(range(first, first + length)))
        previous_turn += [-1, *range(first, first + length - 1)]
    delays_s = dict(zip(numbers, delays, strict=True))

    @in_virtual_time
    async def check() -> None:
        server = Server(*takes_s)
        trace = trace_of(
            num_requests,
            arrival_ms=[1e9] * num_requests,  # no matter in a closed loop
            previous_turn=previous_turn,
            delay_ms=[delay * 1e3 for delay in delays],
        )
        run = await driven(server, trace, concurrency=width)
        expected = naive_closed_loop(takes_s, sessions, delays_s, width)
        assert dict(enumerate(arrivals(run))) == pytest.approx(
            {number: at_s * 1e3 for number, at_s in expected.items()}
        )
        assert {record.status for record in run.records} == {"completed"}
        assert server.most_running <= width

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynosim_runtime.measure.client.time", loop_clock)
        check()


@in_virtual_time
async def test_a_request_that_fails_lets_the_loop_go_on() -> None:
    class Refusing(Server):
        async def complete(self, *args: Any, **kwargs: Any) -> TimedAnswer:
            answer = await super().complete(*args, **kwargs)
            if kwargs["request_id"] == "0":
                answer.error, answer.http_status, answer.token_ms = "no", 400, array("d")
            return answer

    run = await driven(Refusing(1.0, 1.0, 1.0), trace_of(3), concurrency=1)
    assert arrivals(run) == [0, 1000, 2000]
    assert [record.status for record in run.records] == ["rejected", "completed", "completed"]
    assert run.records[0].error == "no"


@in_virtual_time
async def test_interrupted_it_keeps_what_was_finished_and_cancels_the_rest() -> None:
    server = Server(1.0, 100.0, 1.0)
    driving = asyncio.create_task(driven(server, trace_of(3, arrival_ms=[0.0, 10.0, 9e9])))
    await asyncio.sleep(5.0)
    driving.cancel()
    run = await driving
    assert run.was_interrupted
    assert server.num_running == 0
    assert [record.status for record in run.records] == ["completed", "cancelled", "unfinished"]
    assert [record.error for record in run.records] == [
        None, "cancelled when the load was interrupted", NEVER_SENT,
    ]  # fmt: skip
    assert arrivals(run)[:2] == [0, 10] and np.isnan(run.records[2].arrival_ms)
    assert run.lateness_ms[0] == 0 and np.isnan(run.lateness_ms[1:]).all()


@in_virtual_time
async def test_a_mistake_of_ours_is_not_taken_for_the_servers() -> None:
    class Broken(Server):
        async def complete(self, *args: Any, **kwargs: Any) -> TimedAnswer:
            await asyncio.sleep(1.0)
            raise ValueError("a defect")

    with pytest.raises(ValueError, match="a defect"):
        await driven(Broken(), trace_of(2, arrival_ms=[0.0, 9e9]))
    assert now_s() == 1.0


@in_virtual_time
async def test_requests_carry_what_the_trace_says_of_them() -> None:
    server = Server()
    trace = trace_of(
        3,
        input_tokens=np.array([5, 6, 7]),
        output_tokens=np.array([1, 2, 3]),
        priority=np.array([0, -2, 4]),
        request_ids=("x", "y", "z"),
        session_ids=("", "s", "s"),
    )
    run = await driven(server, trace)
    assert server.calls == [(5, 1, "x", 0), (6, 2, "y", -2), (7, 3, "z", 4)]
    assert [record.request_id for record in run.records] == ["x", "y", "z"]
    assert [record.session_id for record in run.records] == ["", "s", "s"]
    assert [record.input_tokens for record in run.records] == [5, 6, 7]


@in_virtual_time
async def test_the_warm_up_asks_for_what_the_trace_does_and_no_long_answers() -> None:
    server = Server()
    lengths = np.array([10, 20, 30, 40, 50])
    trace = trace_of(5, input_tokens=lengths, output_tokens=np.array([1, 2, 3, 90, 500]))
    await warm_up(server, PROMPTS, trace, 3)  # type: ignore[arg-type]
    assert server.probed == [8]
    assert WARM_UP_OUTPUT_TOKENS == 32
    assert [call[:2] for call in server.calls] == [(10, 1), (30, 3), (50, 32)]
    assert now_s() == 1.0  # side by side
    await warm_up(server, PROMPTS, trace, 0)  # type: ignore[arg-type]
    assert (len(server.calls), server.probed) == (3, [8, 8])


@in_virtual_time
async def test_the_warm_up_of_a_closed_loop_is_no_crowd() -> None:
    server = Server()
    await warm_up(server, PROMPTS, trace_of(5), 3, concurrency=2)  # type: ignore[arg-type]
    assert (len(server.calls), now_s()) == (3, 2.0)
