"""Every token's time by serving a run's requests again, one step and one worker at a time.

A second driver of the scheduler, in plain loops: it takes from a finished run only who was sent
where and when, decides every step on its own, adds step times one by one and writes down who got a
token at the end of which step. Nothing here knows runs of uniform steps, carried rounding or an
event queue. The scheduler itself is held to vLLM's by the conformance tests.
"""

import math
from dataclasses import dataclass, field

from dynosim.engine.sequence import Sequence
from dynosim.engine.spec import EngineSpec
from dynosim.engine.vllm import VllmScheduler
from dynosim.records import RunResult, Trace
from dynosim.timing.model import StepTimeModel
from dynosim.timing.scaled import ScaledModel
from dynosim.workload.extents import prefix_extents

SAME_MS = 1e-6  # sums of step times in another order differ by less, steps take far more
NEVER = float("inf")


@dataclass
class Step:
    """One engine step, as it happened."""

    worker: int
    start_ms: float
    end_ms: float
    num_prefills: int  # prompts (or answers after a preemption) that got a chunk
    prefill_tokens: int
    prefix_tokens: int
    context_tokens: int  # of all that decode
    got_token: list[int]  # requests, by index
    admitted: list[tuple[int, int]]  # request, cached tokens; those that got a seat
    by_prefill: set[int]  # of `got_token`: by computing the last of all that was known
    resumed: int  # of those: one token only, which runs as a decode does
    running: int = 0  # at the step's end, before anybody leaves
    waiting: int = 0
    used_blocks: int = 0


@dataclass
class Served:
    """What one worker did: its steps, and every token's time by request."""

    steps: list[Step] = field(default_factory=list)
    scheduled_ms: dict[int, float] = field(default_factory=dict)
    cached_tokens: dict[int, int] = field(default_factory=dict)
    token_ms: dict[int, list[float]] = field(default_factory=dict)
    preemptions: dict[int, int] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)


def serve_again(
    result: RunResult,
    trace: Trace,
    *,
    engine: EngineSpec,
    timing: StepTimeModel,
    cpu_workers: int = 0,
    cpu_step_time_scale: float = 8.0,
    max_sim_time_ms: float | None = None,
) -> Served:
    """All workers of a run, on the clients' clock. Tokens are told when they reach the client."""
    until_ms = NEVER if max_sim_time_ms is None else max_sim_time_ms - timing.egress_ms
    together = Served()
    for worker in range(len(result.workers)):
        is_cpu = worker >= len(result.workers) - cpu_workers
        model = ScaledModel(timing, cpu_step_time_scale) if is_cpu else timing
        one = _Worker(worker, engine, trace, model, until_ms)
        one.serve(_sent_to(worker, result))
        together.steps += one.served.steps
        for name in ("scheduled_ms", "cached_tokens", "token_ms", "preemptions"):
            getattr(together, name).update(getattr(one.served, name))
        together.finished |= one.served.finished
    return together


def _sent_to(worker: int, result: RunResult) -> list[tuple[float, int]]:
    """When which request was handed to a worker, in order.

    At equal times whoever waited in the router goes first, first come, first served; among others
    the trace's order decides.
    """
    log = result.requests
    sent = []
    for index in range(len(log.status)):
        if log.worker_id[index] == worker:
            arrival_ms, dispatch_ms = float(log.arrival_ms[index]), float(log.dispatch_ms[index])
            came_ms = arrival_ms if arrival_ms < dispatch_ms - SAME_MS else NEVER
            sent.append((dispatch_ms, came_ms, index))
    return [(dispatch_ms, index) for dispatch_ms, _, index in sorted(sent)]


class _Worker:
    """One engine that nobody hurries: a step is planned, lasts, and delivers."""

    def __init__(
        self, worker: int, engine: EngineSpec, trace: Trace, timing: StepTimeModel, until_ms: float
    ) -> None:
        cap = engine.long_prefill_token_threshold
        self.extents = prefix_extents(trace, engine.block_size, single_blocks=cap > 0)
        self.scheduler = VllmScheduler(engine, self.extents.extent_blocks.tolist(), keep_rows=True)
        self.worker = worker
        self.engine = engine
        self.trace = trace
        self.timing = timing
        self.until_ms = until_ms
        self.depth = 2 if engine.async_scheduling else 1
        self.served = Served()
        self.sequences: dict[int, Sequence] = {}
        self.arrived_ms: set[float] = set()

    def serve(self, sent: list[tuple[float, int]]) -> None:
        """Serve what is sent, until all is done or the time is over."""
        todo = list(sent)
        now_ms = device_free_ms = 0.0
        under_way: list[tuple[Step, object]] = []
        while True:
            self._take(todo, now_ms + SAME_MS)
            self._plan(under_way, now_ms, device_free_ms)
            if under_way:
                device_free_ms = under_way[-1][0].end_ms
                step, plan = under_way.pop(0)
                if step.end_ms > self.until_ms + SAME_MS:
                    break
                now_ms = step.end_ms
                self._take(todo, now_ms - SAME_MS)
                self._deliver(step, plan)
            elif todo and todo[0][0] <= self.until_ms + SAME_MS:
                now_ms = todo[0][0]
            else:
                break
        for index, sequence in self.sequences.items():
            self.served.preemptions[index] = sequence.preemptions

    def _take(self, todo: list[tuple[float, int]], until_ms: float) -> None:
        while todo and todo[0][0] <= until_ms:
            at_ms, index = todo.pop(0)
            while at_ms in self.arrived_ms:  # one after another
                at_ms = math.nextafter(at_ms, math.inf)
            self.arrived_ms.add(at_ms)
            self.sequences[index] = self._sequence(index, at_ms)
            self.scheduler.add(self.sequences[index])

    def _sequence(self, index: int, at_ms: float) -> Sequence:
        trace, extents = self.trace, self.extents
        prompt = int(trace.input_tokens[index])
        longest = self.engine.max_model_len - prompt
        path: list[int] = []
        if self.engine.enable_prefix_caching and len(extents.path):
            first, last = extents.path_offsets[index], extents.path_offsets[index + 1]
            path = [int(extent) for extent in extents.path[first:last]]
        return Sequence(
            index,
            prompt,
            min(int(trace.output_tokens[index]), longest),
            path,
            int(extents.path_blocks[index]) if path else 0,
            at_ms,
            0 if trace.priority is None else int(trace.priority[index]),
            "" if trace.request_ids is None else trace.request_ids[index],
        )

    def _plan(
        self, under_way: list[tuple[Step, object]], now_ms: float, device_free_ms: float
    ) -> None:
        """Plan steps until the engine has as many under way as it may."""
        while len(under_way) < self.depth and self.scheduler.has_work:
            plan = self.scheduler.plan_step()
            if plan.is_empty:
                if plan.preempted and not under_way:
                    continue
                return
            start_ms = max(now_ms, under_way[-1][0].end_ms if under_way else device_free_ms)
            end_ms = start_ms + self.timing.step_ms(plan)
            done = set(plan.prefilled)
            step = Step(
                self.worker,
                start_ms,
                end_ms,
                plan.num_prefills,
                plan.prefill_tokens,
                plan.prefix_tokens,
                plan.decode_context_tokens,
                [row.sequence.index for row in plan.rows if row.is_decode or row.sequence in done],
                [(row.sequence.index, row.hit_tokens) for row in plan.rows if row.hit_tokens >= 0],
                {sequence.index for sequence in done},
                plan.num_resumed_decodes,
            )
            under_way.append((step, plan))
            if start_ms <= self.until_ms + SAME_MS:
                self._note_admitted(step)

    def _note_admitted(self, step: Step) -> None:
        for index, cached in step.admitted:
            if index not in self.served.scheduled_ms:
                self.served.scheduled_ms[index] = step.start_ms
                self.served.cached_tokens[index] = cached

    def _deliver(self, step: Step, plan: object) -> None:
        scheduler, served = self.scheduler, self.served
        step.running = len(scheduler.running)
        step.waiting = scheduler.num_waiting
        step.used_blocks = self.engine.usable_blocks - scheduler.pool.free_blocks
        served.steps.append(step)
        for index in step.got_token:
            arrived_ms = step.end_ms + self.timing.egress_ms
            served.token_ms.setdefault(index, []).append(arrived_ms)
        for sequence in scheduler.finish_step(plan):  # type: ignore[arg-type]
            served.finished.add(sequence.index)
