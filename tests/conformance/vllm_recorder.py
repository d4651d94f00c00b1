"""What vLLM's own scheduler does with a scenario.

No model runs: every step's tokens are made up here (the next number of the request's range), and a
step takes the time that the scenario's coefficients say. Around the scheduler are vLLM's two engine
loops, `EngineCore.step` and `step_with_batch_queue` with two batches. It runs where vLLM is
installed; of dynosim it takes the format of scenarios and logs, nothing that decides.
"""

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import vllm
from vllm.sampling_params import SamplingParams
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request
from vllm_engine import DEFAULTS, make_scheduler

from dynosim.conformance.log import steps_digest
from dynosim.conformance.scenario import prompt_tokens_of

Json = dict[str, Any]
NS_PER_MS = 1e6
COEFFICIENTS = ("c0", "c1", "c2", "c3")  # a step; a token of a prompt; a decode; a token of context
BATCHES = 2  # outstanding with asynchronous scheduling
FRUITLESS_CALLS = 4  # of an asynchronous loop that gets nowhere


class NoEndError(Exception):
    """A scenario went on and on: requests may preempt each other for ever."""


@dataclass(slots=True)
class Note:
    """What the log tells of a request."""

    row: Json
    order: int
    first_output: int
    times: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Step:
    """A call of `schedule` and what came of it."""

    output: Any
    line: Json  # as the log's digest has it
    yielding: set[str]  # requests that get a token by it
    start: int = 0
    end: int = 0

    @property
    def counts(self) -> bool:
        """Whether the log has it."""
        return bool(self.line["sched"] or self.line["pre"])


class Recording:
    """One scenario given to vLLM; `run` returns the log. Times are ns, or steps without timing."""

    def __init__(self, scenario: Json) -> None:
        self.scenario = scenario
        self.engine = {**DEFAULTS, **scenario["engine"]}
        timing = scenario.get("timing")
        self.has_time = timing is not None
        self.cost = [round(float((timing or {}).get(c, 0)) * NS_PER_MS) for c in COEFFICIENTS]
        self.scheduler, self.hasher = make_scheduler(self.engine)
        self.pool = self.scheduler.kv_cache_manager.block_pool
        self.blocks_of = self.scheduler.kv_cache_manager.coordinator.single_type_managers[
            0
        ].req_to_blocks
        self.now = 0
        self.is_stuck = False
        self.notes: dict[str, Note] = {}
        self.lines: list[Json] = []
        kinds = ("preemptions", "hit_tokens", "sched_tokens", "prefill_tokens", "decode_tokens")
        self.totals = dict.fromkeys(kinds, 0)
        key, scale = ("arrival_ms", NS_PER_MS) if self.has_time else ("arrival_step", 1)
        arrivals = [
            (round(float(request.get(key, 0)) * scale), order, request)
            for order, request in enumerate(scenario["requests"])
        ]
        self.arrivals = deque(sorted(arrivals, key=lambda arrival: arrival[:2]))

    def run(self) -> Json:
        """Give all requests, drive the loop to its end. Raises: NoEndError if it has none."""
        if self.engine["async_scheduling"]:
            self._loop_with_batch_queue()
        else:
            self._loop()
        published = self.scheduler.kv_event_publisher.blocks
        events = {"stored": published["BlockStored"], "removed": published["BlockRemoved"]}
        return {
            "name": self.scenario.get("name"),
            "vllm": vllm.__version__,
            "scheduler": "AsyncScheduler" if self.engine["async_scheduling"] else "Scheduler",
            "clock": "ns" if self.has_time else "step",
            "usable_blocks": self.engine["num_gpu_blocks"] - 1,  # one is a placeholder
            "stuck": self.is_stuck,
            "num_steps": len(self.lines),
            "end": self.now,
            "totals": events | self.totals,
            "free_at_end": self.pool.get_num_free_blocks(),
            "steps_sha256": steps_digest(self.lines),
            "requests": [
                self._row(note) for note in sorted(self.notes.values(), key=lambda n: n.order)
            ],
        }

    # ---- vLLM's loops --------------------------------------------------------------------------

    def _loop(self) -> None:
        """As `EngineCore.step`: schedule, execute, take the output in."""
        while True:
            self._hand_over()
            if self.scheduler.has_unfinished_requests():
                step = self._schedule(self.now)
                self._deliver(step)
                if not step.counts and not self.arrivals:
                    self.is_stuck = True
                    return
                self.now = step.end if self.has_time else self.now + 1
                if not step.counts and self.has_time:
                    self.now = max(self.now, self.arrivals[0][0])
            elif self.arrivals:
                self.now = max(self.now, self.arrivals[0][0])
            else:
                return

    def _loop_with_batch_queue(self) -> None:
        """As `EngineCore.step_with_batch_queue`: plan the next before the last one's output."""
        queue: deque[Step] = deque()
        device_free, fruitless = 0, 0
        while True:
            self._hand_over()
            if self.scheduler.has_requests():
                start = max(self.now, device_free) if self.has_time else self.now
                step = self._schedule(start)
                device_free = step.end
                queue.append(step)
                self.now += not self.has_time
                fruitless = 0 if step.counts else fruitless + 1
                has_more = bool(step.line["sched"]) or self.scheduler.has_requests()
                if has_more and len(queue) < BATCHES:
                    continue
            elif not queue:
                if not self.arrivals:
                    return
                self.now = max(self.now, self.arrivals[0][0])
                continue
            if queue:
                oldest = queue.popleft()
                self.now = max(self.now, oldest.end) if self.has_time else self.now
                self._deliver(oldest)
                fruitless = 0 if oldest.counts else fruitless
            if fruitless > FRUITLESS_CALLS and self.scheduler.has_unfinished_requests():
                if not self.arrivals:
                    self.is_stuck = True
                    return
                self.now = max(self.now, self.arrivals[0][0]) if self.has_time else self.now
                fruitless = 0

    def _hand_over(self) -> None:
        """Give the scheduler what has arrived, but for what vLLM's front end refuses."""
        while self.arrivals and self.arrivals[0][0] <= self.now:
            arrival, order, request = self.arrivals.popleft()
            prompt = prompt_tokens_of(request)
            row = {"id": request["id"], "arrival": arrival, "prompt": len(prompt), "hit": None}
            row |= {"preempted": 0, "status": None, "admit": None}
            first_output = request.get("output_start", 1_000_000_000 + 1_000_000 * order)
            self.notes[request["id"]] = Note(row, order, first_output)
            if not prompt or len(prompt) >= self.engine["max_model_len"]:
                row["status"] = "rejected"
                continue
            self.scheduler.add_request(
                Request(
                    request_id=request["id"],
                    prompt_token_ids=prompt,
                    sampling_params=SamplingParams(
                        max_tokens=request["output_length"], ignore_eos=True
                    ),
                    pooling_params=None,
                    priority=request.get("priority", 0),
                    arrival_time=arrival / 1e9 if self.has_time else float(arrival),
                    block_hasher=self.hasher,
                )
            )

    # ---- one step ------------------------------------------------------------------------------

    def _schedule(self, start: int) -> Step:
        scheduler = self.scheduler
        held = {r.request_id: len(self.blocks_of.get(r.request_id, ())) for r in scheduler.running}
        scheduler.preempted = []
        output = scheduler.schedule()
        line: Json = {"pre": scheduler.preempted, "free": self.pool.get_num_free_blocks()}
        line["sched"] = rows = [
            self._scheduled(scheduler.requests[name], num_tokens, held.get(name))
            for name, num_tokens in output.num_scheduled_tokens.items()
        ]
        for name in scheduler.preempted:
            self.notes[name].row["preempted"] += 1
        self.totals["preemptions"] += len(scheduler.preempted)
        prefill_tokens = sum(row[1] for row in rows if row[2] == "P")
        decodes = [row for row in rows if row[2] == "D"]
        self.totals["prefill_tokens"] += prefill_tokens
        self.totals["decode_tokens"] += len(decodes)
        self.totals["sched_tokens"] += sum(row[1] for row in rows)
        duration = 0
        if rows and self.has_time:
            context = sum(row[1] + row[3] for row in rows)
            terms = (1, prefill_tokens, len(decodes), context)
            duration = sum(cost * term for cost, term in zip(self.cost, terms, strict=True))
        yielding = {row[0] for row in rows if not scheduler.requests[row[0]].is_prefill_chunk}
        return Step(output, line, yielding, start, start + duration)

    def _scheduled(self, request: Request, num_tokens: int, num_held: int | None) -> list[Any]:
        """A row of the log; `num_held`: blocks it held before, None if this step admits it."""
        before = request.num_computed_tokens - num_tokens  # the scheduler has counted on already
        unseen = request.num_output_placeholders  # scheduled, their tokens not delivered yet
        if self.engine["async_scheduling"] and not request.is_prefill_chunk:
            unseen -= 1  # the one of this very step
        generated = request.num_output_tokens + unseen
        is_decode = generated > 0 and before + 1 == request.num_tokens + unseen
        hit = -1
        if num_held is None:
            hit = before
            num_held = hit // self.engine["block_size"]
            row = self.notes[request.request_id].row
            if row["hit"] is None:
                row["hit"], row["admit"] = hit, self.now
                self.totals["hit_tokens"] += hit
        new_blocks = len(self.blocks_of[request.request_id]) - num_held
        kind = "D" if is_decode else "P"
        return [request.request_id, num_tokens, kind, before, new_blocks, hit]

    def _deliver(self, step: Step) -> None:
        """Let the scheduler have a step's tokens; log the step."""
        names = list(step.output.num_scheduled_tokens)
        sampled = [[self._next_token(n)] if n in step.yielding else [] for n in names]
        outputs = self.scheduler.update_from_output(
            step.output,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: index for index, name in enumerate(names)},
                sampled_token_ids=sampled,
            ),
        )
        end = step.end if self.has_time else step.start
        step.line["fin"] = []
        for output in outputs[0].outputs if 0 in outputs else ():
            note = self.notes[output.request_id]
            note.times += [end] * len(output.new_token_ids)
            if output.finish_reason is not None:
                note.row["status"] = str(output.finish_reason)
                step.line["fin"].append(output.request_id)
        step.line["free_end"] = self.pool.get_num_free_blocks()
        if step.counts:
            times = {"t0": step.start, "t1": step.end} if self.has_time else {}
            self.lines.append(step.line | times)
        if len(self.lines) > self.scenario.get("max_steps", 2_000_000):
            raise NoEndError(f"{self.scenario.get('name')}: no end after max_steps")

    def _next_token(self, name: str) -> int:
        note, request = self.notes[name], self.scheduler.requests.get(name)
        return note.first_output + (0 if request is None else int(request.num_output_tokens))

    def _row(self, note: Note) -> Json:
        """A request's row of the log."""
        row, times = note.row, note.times
        status = row["status"] or ("stuck" if self.is_stuck else "?")
        row |= {"out": len(times), "status": status}
        row |= {"first": times[0] if times else None, "last": times[-1] if times else None}
        if self.has_time and times:
            gaps = [after - before for before, after in pairwise(times)]
            row |= {"ttft": times[0] - row["arrival"], "e2e": times[-1] - row["arrival"]}
            row["max_itl"] = max(gaps, default=0)
        return row
