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
from vllm.v1.request import Request, RequestStatus
from vllm_copies import VllmCopies
from vllm_drafts import VllmDrafts
from vllm_engine import DEFAULTS, make_scheduler
from vllm_transfers import VllmTransfers

from dynosim.conformance.log import steps_digest
from dynosim.conformance.scenario import prompt_tokens_of

Json = dict[str, Any]
NS_PER_MS = 1e6
COEFFICIENTS = ("c0", "c1", "c2", "c3", "c4")
"""A step; a token of a prompt; a decode; a token of context; a draft of a decode."""

BATCHES = 2  # outstanding with asynchronous scheduling
FRUITLESS_CALLS = 4  # of an asynchronous loop that gets nowhere
FRUITLESS_CALLS_WITH_TRANSFERS = 6  # of a synchronous one


class NoEndError(Exception):
    """A scenario went on and on: requests may preempt each other for ever."""


@dataclass(slots=True)
class Note:
    """What the log tells of a request."""

    row: Json
    order: int
    first_output: int
    is_served: bool = False  # not refused
    cached: list[int] | None = None
    times: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Step:
    """A call of `schedule` and what came of it."""

    output: Any
    line: Json  # as the log's digest has it
    yielding: dict[str, int]  # requests that get tokens by it, unless they end before
    call: int = 0
    start: int = 0
    end: int = 0

    @property
    def counts(self) -> bool:
        """Whether the log has it."""
        line = self.line
        transfers = set(line.get("kv", ())) - {"rwait", "defer"}
        transfers |= set(line.get("off", ())) - {"wait", "host"}
        return bool(line["sched"] or line["pre"] or "abort" in line or transfers)


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
        aborts = [
            (self._to_clock(request["abort"]), order, request["id"])
            for order, request in enumerate(scenario["requests"])
            if "abort" in request
        ]
        self.aborts = deque(sorted(aborts))
        self.aborted: list[str] = []  # since the last step
        self.num_calls = 0
        self.drafts: VllmDrafts | None = None
        if self.engine["spec"] is not None:
            self.drafts = VllmDrafts(scenario)
        self.transfers: VllmTransfers | VllmCopies | None = None
        if self.engine["offload"] is not None:
            self.transfers = VllmCopies(
                self.scheduler, self.engine["offload"], self._to_clock, has_time=self.has_time
            )
            self.totals["ext_tokens"] = 0
        if self.engine["remote"] is not None:
            size = self.engine["block_size"]
            self.transfers = VllmTransfers(self.scheduler, size, self._to_clock)
            self.totals["ext_tokens"] = 0

    def _to_clock(self, time: Any) -> int:
        return round(float(time) * (NS_PER_MS if self.has_time else 1))

    def run(self) -> Json:
        """Give all requests, drive the loop to its end. Raises: NoEndError if it has none."""
        if self.engine["async_scheduling"]:
            self._loop_with_batch_queue()
        else:
            self._loop()
        published = self.scheduler.kv_event_publisher.blocks
        if self.transfers is not None:
            self.totals["ext_tokens"] = sum(self.transfers.loaded_tokens.values())
            self.totals |= self.transfers.totals
        if self.drafts is not None:
            for name in ("drafts", "accepted"):
                self.totals[name] = sum(row[name] for row in self.drafts.counts.values())
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
        fruitless = 0
        allowed = 0 if self.transfers is None else FRUITLESS_CALLS_WITH_TRANSFERS
        while True:
            self._hand_over()
            if self._has_requests():
                step = self._schedule(self.now)
                self._deliver(step)
                fruitless = 0 if step.counts else fruitless + 1
                next_event = self._next_event()
                if next_event is None and fruitless > allowed:
                    self.is_stuck = self.scheduler.has_unfinished_requests()
                    self.now += self.transfers is not None and not self.has_time
                    return
                self.now = step.end if self.has_time else self.now + 1
                waits = fruitless > (self.transfers is not None)
                if self.has_time and waits and next_event is not None:
                    self.now = max(self.now, next_event)
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
            if fruitless > FRUITLESS_CALLS and self._has_requests():
                next_event = self._next_event()
                if next_event is None:
                    self.is_stuck = self.scheduler.has_unfinished_requests()
                    return
                self.now = max(self.now, next_event) if self.has_time else self.now
                fruitless = 0

    def _has_requests(self) -> bool:
        """Whether a call is worth it; where KV is exchanged, until all transfers have ended."""
        if self.transfers is None:
            return bool(self.scheduler.has_unfinished_requests())
        return bool(self.scheduler.has_requests())

    def _next_event(self) -> int | None:
        """When the next arrival, abort or end of a transfer is due."""
        times = [queue[0][0] for queue in (self.arrivals, self.aborts) if queue]
        if self.transfers is not None:
            times += [one.end for one in self.transfers.under_way]
        return min(times, default=None)

    def _hand_over(self) -> None:
        """Give the scheduler what has arrived, but for what vLLM's front end refuses."""
        while self.arrivals and self.arrivals[0][0] <= self.now:
            arrival, order, request = self.arrivals.popleft()
            prompt = prompt_tokens_of(request)
            row = {"id": request["id"], "arrival": arrival, "prompt": len(prompt), "hit": None}
            row |= {"preempted": 0, "status": None, "admit": None}
            first_output = request.get("output_start", 1_000_000_000 + 1_000_000 * order)
            self.notes[request["id"]] = note = Note(row, order, first_output)
            if not prompt or len(prompt) >= self.engine["max_model_len"]:
                row["status"] = "rejected"
                continue
            note.is_served = True
            if isinstance(self.transfers, VllmTransfers):
                self.transfers.connector.expect(request["id"], request.get("remote") or {})
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
        while self.aborts and self.aborts[0][0] <= self.now:
            self._abort(self.aborts.popleft()[2])

    def _abort(self, name: str) -> None:
        """Give a request up, if it is still there."""
        request = self.scheduler.requests.get(name)
        if request is not None and not request.is_finished():
            self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
            self.notes[name].row["status"] = "abort"
            self.aborted.append(name)

    # ---- one step ------------------------------------------------------------------------------

    def _schedule(self, start: int) -> Step:
        scheduler = self.scheduler
        held = {r.request_id: len(self.blocks_of.get(r.request_id, ())) for r in scheduler.running}
        scheduler.preempted = []
        scheduler.back.clear()
        call = self.num_calls
        self.num_calls += 1
        output = scheduler.schedule()
        drafts = output.scheduled_spec_decode_tokens
        line: Json = {"pre": scheduler.preempted, "free": self.pool.get_num_free_blocks()}
        line["sched"] = rows = [
            self._scheduled(
                scheduler.requests[name],
                num_tokens,
                held.get(name),
                num_drafts=len(drafts.get(name, ())),
            )
            for name, num_tokens in output.num_scheduled_tokens.items()
        ]
        for name in scheduler.preempted:
            self.notes[name].row["preempted"] += 1
        self.totals["preemptions"] += len(scheduler.preempted)
        prefill_tokens = sum(row[1] for row in rows if row[2] == "P")
        decodes = [row for row in rows if row[2] == "D"]
        self.totals["prefill_tokens"] += prefill_tokens
        self.totals["decode_tokens"] += sum(row[1] for row in decodes)
        self.totals["sched_tokens"] += sum(row[1] for row in rows)
        duration = 0
        if rows and self.has_time:
            context = sum(row[1] + row[3] for row in rows)
            num_drafts = sum(len(drafts.get(row[0], ())) for row in decodes)
            terms = (1, prefill_tokens, len(decodes), context, num_drafts)
            duration = sum(cost * term for cost, term in zip(self.cost, terms, strict=True))
        yielding = {row[0]: 1 for row in rows if not scheduler.requests[row[0]].is_prefill_chunk}
        if self.aborted:
            line["abort"], self.aborted = self.aborted, []
        if self.drafts is not None:
            admitted = {row[0] for row in rows if row[0] not in held}
            for name, num_accepted in self.drafts.scheduled(line, output, admitted).items():
                yielding[name] += num_accepted
        if self.transfers is not None:
            start = self.transfers.scheduled(line, output, call, start)
        return Step(output, line, yielding, call, start, start + duration)

    def _scheduled(
        self, request: Request, num_tokens: int, num_held: int | None, *, num_drafts: int
    ) -> list[Any]:
        """A row of the log; `num_held`: blocks it held before, None if this step admits it."""
        before = request.num_computed_tokens - num_tokens  # the scheduler has counted on already
        unseen = request.num_output_placeholders  # scheduled, their tokens not delivered yet
        if self.engine["async_scheduling"] and not request.is_prefill_chunk:
            unseen -= 1 + num_drafts  # those of this very step
        generated = request.num_output_tokens + unseen
        is_decode = generated > 0 and before + 1 == request.num_tokens + unseen
        hit = -1
        if num_held is None:
            hit = before
            name = request.request_id
            num_held = self.scheduler.back.get(name, hit // self.engine["block_size"])
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
        sampled = [self._next_tokens(name, step.yielding.get(name, 0)) for name in names]
        end = step.end if self.has_time else step.start
        transfers = self.transfers
        ended = None if transfers is None else transfers.report(step.line, step.call, end)
        outputs = self.scheduler.update_from_output(
            step.output,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: index for index, name in enumerate(names)},
                sampled_token_ids=sampled,
                kv_connector_output=ended,
            ),
        )
        step.line["fin"] = []
        errors = []
        delivered: dict[str, int] = {}
        for output in outputs[0].outputs if 0 in outputs else ():
            note = self.notes[output.request_id]
            note.times += [end] * len(output.new_token_ids)
            delivered[output.request_id] = len(output.new_token_ids)
            stats = output.prefill_stats
            if stats is not None and note.cached is None:
                note.cached = [stats.num_local_cached_tokens, stats.num_external_cached_tokens]
            if output.finish_reason is not None:
                note.row["status"] = str(output.finish_reason)
                failed = note.row["status"] == "error"
                (errors if failed else step.line["fin"]).append(output.request_id)
        for row in step.line.get("spec", ()):
            row[3] = delivered.get(row[0], 0)
        if transfers is not None:
            step.line["fin"] += transfers.updated(step.line, step.call, end, errors)
        if self.drafts is not None and step.yielding and not self.engine["async_scheduling"]:
            self.drafts.offer(self.scheduler, list(step.yielding))
        step.line["free_end"] = self.pool.get_num_free_blocks()
        if step.counts:
            times = {"t0": step.start, "t1": step.end} if self.has_time else {}
            self.lines.append(step.line | times)
        if len(self.lines) > self.scenario.get("max_steps", 2_000_000):
            raise NoEndError(f"{self.scenario.get('name')}: no end after max_steps")

    def _next_tokens(self, name: str, num_tokens: int) -> list[int]:
        note, request = self.notes[name], self.scheduler.requests.get(name)
        first = note.first_output + (0 if request is None else int(request.num_output_tokens))
        return list(range(first, first + num_tokens))

    def _row(self, note: Note) -> Json:
        """A request's row of the log."""
        row, times = note.row, note.times
        status = row["status"] or ("stuck" if self.is_stuck else "?")
        row |= {"out": len(times), "status": status}
        row |= {"first": times[0] if times else None, "last": times[-1] if times else None}
        if self.transfers is not None and note.is_served:
            loaded = self.transfers.loaded_tokens.get(row["id"], 0)
            row |= {"ext": loaded, "cached": note.cached}
        if self.drafts is not None and note.is_served:
            row |= self.drafts.counts[row["id"]]
        if self.has_time and times:
            gaps = [after - before for before, after in pairwise(times)]
            row |= {"ttft": times[0] - row["arrival"], "e2e": times[-1] - row["arrival"]}
            row["max_itl"] = max(gaps, default=0)
        return row
