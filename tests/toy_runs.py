"""A toy cluster that steps one by one and keeps every token's time: the truth for report tests.

It knows nothing of dynosim's engine: whole prompts in one step, first come first served, no limit
on memory, preemption at random. Its step log is compressed as the contract in records.py says.
"""

import random
from dataclasses import dataclass, field

import numpy as np

from dynosim.records import FloatArray, IntArray, RequestLog, RunResult, StepLog, Trace, WorkerLog

BLOCK = 16
STEP_COLUMNS = tuple(StepLog.__slots__)


@dataclass(frozen=True)
class ToyTiming:
    """base + a * prompt tokens + b * sequences + c * context; a negative c makes steps shorten."""

    base_ms: float = 5.0
    per_prefill_token_ms: float = 0.05
    per_decode_ms: float = 0.1
    per_context_token_ms: float = 0.0005
    source: str = "measured"
    description: str = "toy line"
    notes: tuple[str, ...] = ()
    in_range_below_tokens: int = 1 << 40

    def step_ms(self, prefill_tokens: int, num_decodes: int, context_tokens: int) -> float:
        return (
            self.base_ms
            + self.per_prefill_token_ms * prefill_tokens
            + self.per_decode_ms * num_decodes
            + self.per_context_token_ms * context_tokens
        )

    def decode_step_ms_array(
        self, num_decodes: IntArray, decode_context_tokens: IntArray
    ) -> FloatArray:
        context_ms = self.per_context_token_ms * decode_context_tokens
        return self.base_ms + self.per_decode_ms * num_decodes + context_ms

    def smooth_decode_steps(
        self, num_decodes: IntArray, decode_context_tokens: IntArray, num_steps: IntArray
    ) -> IntArray:
        return num_steps

    def steps_in_range(self, steps: StepLog) -> IntArray:
        inside = steps.decode_context_tokens < self.in_range_below_tokens
        return np.where(inside, steps.num_steps, 0)


@dataclass
class ToyRequest:
    arrival_ms: float
    input_tokens: int
    output_tokens: int
    cached_tokens: int
    worker: int
    scheduled_ms: float = float("nan")
    token_ms: list[float] = field(default_factory=list)
    preemptions: int = 0
    stalled: bool = False  # preempted since its last token


@dataclass
class ToyWorker:
    index: int
    timing: ToyTiming
    max_seqs: int
    rng: random.Random
    preempt_chance: float
    rows: list[list[float]] = field(default_factory=list)
    stalled_gaps: list[float] = field(default_factory=list)
    waiting: list[ToyRequest] = field(default_factory=list)
    running: list[ToyRequest] = field(default_factory=list)
    now_ms: float = 0.0

    def serve(self, requests: list[ToyRequest]) -> None:
        todo = list(requests)
        while todo or self.waiting or self.running:
            if not self.waiting and not self.running:
                self.now_ms = max(self.now_ms, todo[0].arrival_ms)
            while todo and todo[0].arrival_ms <= self.now_ms:
                self.waiting.append(todo.pop(0))
            self.step()

    def step(self) -> None:
        if len(self.running) > 1 and self.rng.random() < self.preempt_chance:
            victim = self.running.pop()
            victim.preemptions += 1
            victim.stalled = True
            self.waiting.insert(0, victim)
        decodes = list(self.running)
        admitted = None
        if self.waiting and len(self.running) < self.max_seqs:
            admitted = self.waiting.pop(0)
        cached = 0 if admitted is None or admitted.stalled else admitted.cached_tokens
        whole = 0 if admitted is None else admitted.input_tokens + len(admitted.token_ms)
        context = sum(r.input_tokens + len(r.token_ms) for r in decodes)
        duration = self.timing.step_ms(whole - cached, len(decodes), context)
        self.log(admitted is not None, whole - cached, cached, decodes, context, duration)
        if admitted is not None:
            if not admitted.token_ms:
                admitted.scheduled_ms = self.now_ms
            self.running.append(admitted)
        self.now_ms += duration
        for request in self.running:
            self.emit(request)
        self.running = [r for r in self.running if len(r.token_ms) < r.output_tokens]

    def emit(self, request: ToyRequest) -> None:
        if request.stalled and request.token_ms:
            self.stalled_gaps.append(self.now_ms - request.token_ms[-1])
        request.stalled = False
        request.token_ms.append(self.now_ms)

    def log(
        self,
        prefill: bool,
        new: int,
        cached: int,
        decodes: list[ToyRequest],
        context: int,
        duration: float,
    ) -> None:
        seats = len(decodes) + prefill
        blocks = (context + new + cached) // BLOCK
        last = self.rows[-1] if self.rows else None
        if (
            last
            and not prefill
            and not last[4]
            and last[7] == len(decodes)
            and last[8] + last[3] * last[7] == context
            and abs(last[1] + last[2] - self.now_ms) < 1e-9
            and last[10] == len(self.waiting)
        ):
            last[2] += duration
            last[3] += 1
            last[11] = blocks
            return
        head = [self.index, self.now_ms, duration, 1, int(prefill), new, cached]
        self.rows.append([*head, len(decodes), context, seats, len(self.waiting), blocks])


@dataclass(frozen=True)
class ToyRun:
    result: RunResult
    trace: Trace
    timing: ToyTiming
    gaps_ms: FloatArray  # every gap between consecutive tokens, from the tokens' times


def toy_run(
    num_requests: int = 60,
    *,
    seed: int = 0,
    workers: int = 2,
    rate_rps: float = 20.0,
    max_seqs: int = 16,
    preempt_chance: float = 0.0,
    mean_output: int = 30,
    mean_input: int = 300,
    timing: ToyTiming | None = None,
    arrivals_ms: list[float] | None = None,
) -> ToyRun:
    """Poisson arrivals (or the given ones), round robin."""
    rng = random.Random(seed)
    timing = timing or ToyTiming()
    requests, now_ms = [], 0.0
    for index in range(num_requests):
        arrival = now_ms if arrivals_ms is None else arrivals_ms[index]
        prompt = 1 + int(rng.expovariate(1 / mean_input))
        output = 1 + int(rng.expovariate(1 / mean_output))
        cached = (int(prompt * rng.random()) // BLOCK * BLOCK) if rng.random() < 0.5 else 0
        requests.append(ToyRequest(arrival, prompt, output, cached, index % workers))
        now_ms += rng.expovariate(rate_rps) * 1000
    servers = [ToyWorker(w, timing, max_seqs, rng, preempt_chance) for w in range(workers)]
    for server in servers:
        server.serve([r for r in requests if r.worker == server.index])
    return _collect(requests, servers, timing)


def _collect(requests: list[ToyRequest], servers: list[ToyWorker], timing: ToyTiming) -> ToyRun:
    rows = sorted((row for s in servers for row in s.rows), key=lambda row: row[1])
    table = np.array(rows, dtype=np.float64).reshape(len(rows), len(STEP_COLUMNS))
    columns = {
        name: table[:, i] if name.endswith("_ms") else table[:, i].astype(np.int64)
        for i, name in enumerate(STEP_COLUMNS)
    }
    log = _request_log(requests)
    trace = Trace(
        arrival_ms=log.arrival_ms,
        input_tokens=log.input_tokens,
        output_tokens=np.array([r.output_tokens for r in requests], dtype=np.int64),
        hash_ids=np.zeros(0, dtype=np.int64),
        hash_offsets=np.zeros(len(requests) + 1, dtype=np.int64),
        trace_block_size=512,
        source="toy",
    )
    result = RunResult(
        requests=log,
        steps=StepLog(**columns),
        stalled_gaps_ms=np.array([g for s in servers for g in s.stalled_gaps]),
        workers=WorkerLog.equal(
            len(servers),
            gpus=2,
            usable_blocks=max(1, int(columns["used_blocks"].max(initial=0)) * 5 // 4 + 1),
        ),
        block_size=BLOCK,
        end_ms=max((s.now_ms for s in servers), default=0.0),
        num_preemptions=int(log.preemptions.sum()),
        num_scheduling_events=len(rows),
        simulate_wall_ms=1.5,
    )
    gaps = [np.diff(r.token_ms) for r in requests]
    return ToyRun(result, trace, timing, np.concatenate(gaps) if gaps else np.zeros(0))


def _request_log(requests: list[ToyRequest]) -> RequestLog:
    def column(values: list[float]) -> FloatArray:
        return np.array(values, dtype=np.float64)

    def whole(values: list[int]) -> IntArray:
        return np.array(values, dtype=np.int64)

    nan = float("nan")
    return RequestLog(
        arrival_ms=column([r.arrival_ms for r in requests]),
        dispatch_ms=column([r.arrival_ms for r in requests]),
        scheduled_ms=column([r.scheduled_ms for r in requests]),
        first_token_ms=column([r.token_ms[0] for r in requests]),
        second_token_ms=column([r.token_ms[1] if len(r.token_ms) > 1 else nan for r in requests]),
        finish_ms=column([r.token_ms[-1] for r in requests]),
        input_tokens=whole([r.input_tokens for r in requests]),
        output_tokens=whole([len(r.token_ms) for r in requests]),
        cached_tokens=whole([r.cached_tokens for r in requests]),
        worker_id=whole([r.worker for r in requests]),
        preemptions=whole([r.preemptions for r in requests]),
        migrations=whole([0 for _ in requests]),
        status=whole([0] * len(requests)),
    )
