"""Drives our engine core through a scenario the way vLLM's two engine loops drive theirs.

Times are integers: nanoseconds, or ticks when the scenario has no timing. All decisions are the
scheduler's.
"""

from collections import deque
from dataclasses import dataclass, field
from itertools import pairwise

from dynosim.conformance.log import Json, compact_steps, steps_digest
from dynosim.conformance.scenario import (
    COEFFICIENTS,
    BlockTree,
    check_request,
    check_timing,
    prompt_tokens_of,
    spec_of,
)
from dynosim.engine.plan import StepPlan
from dynosim.engine.sequence import Sequence
from dynosim.engine.vllm import VllmScheduler
from dynosim.errors import ConfigError
from dynosim.timing.formulas import LinearModel

MODELLED_VLLM = "0.32.0"
PIPELINE_DEPTH = 2  # batches outstanding with asynchronous scheduling
IDLE_CALLS_TO_GIVE_UP = 4

_TOTALS = (
    "stored",
    "removed",
    "preemptions",
    "hit_tokens",
    "sched_tokens",
    "prefill_tokens",
    "decode_tokens",
)


@dataclass(slots=True)
class RequestNote:
    """What the log says of one request."""

    request_id: str
    arrival: int
    num_prompt: int
    order: int
    hit: int | None = None
    admitted: int | None = None
    preempted: int = 0
    reason: str | None = None
    token_times: list[int] = field(default_factory=list)


@dataclass(slots=True)
class Batch:
    """A planned step on its way through the (imagined) GPU."""

    plan: StepPlan
    record: Json
    scheduled_at: int
    start: int
    end: int

    @property
    def counts(self) -> bool:
        """Whether the log shows it."""
        return bool(self.record["sched"] or self.record["pre"] or "abort" in self.record)


class ScenarioRun:
    """One scenario driven to its end; `result` is the log."""

    def __init__(self, scenario: Json) -> None:
        self.scenario = scenario
        self.spec = spec_of(scenario["engine"])
        timing = scenario.get("timing")
        self.has_time = timing is not None
        check_timing(timing or {})
        # Integer nanoseconds throughout: the model computes exactly with integer coefficients.
        c0, c1, c2, c3 = (round(float((timing or {}).get(k, 0)) * 1e6) for k in COEFFICIENTS)
        self.timing = LinearModel(
            base_ms=c0, per_prefill_token_ms=c1, per_decode_ms=c2, per_context_token_ms=c3
        )
        self.tree = BlockTree(self.spec.block_size)
        self.arrivals = self._arrivals()
        self.aborts = self._aborts()
        self.aborted: list[str] = []  # since the last step
        self.scheduler = VllmScheduler(
            self.spec,
            [1] * len(self.tree.labels),
            keep_rows=True,
            publish_events=self.spec.enable_prefix_caching,
        )
        self.now = 0
        self.stuck = False
        self.has_news = False
        self.steps: list[Json] = []
        self.notes: dict[str, RequestNote] = {}
        self.sequences: dict[str, Sequence] = {}  # those that a scheduler was given
        self.totals = dict.fromkeys(_TOTALS, 0)

    def _arrivals(self) -> deque[tuple[int, Sequence, RequestNote]]:
        """Requests with their arrival, in order of hand-over; too long ones already refused."""
        key, scale = ("arrival_ms", 1e6) if self.has_time else ("arrival_step", 1)
        entries = []
        for index, request in enumerate(self.scenario["requests"]):
            entries.append((round(float(request.get(key, 0)) * scale), index, request))
        entries.sort(key=lambda entry: entry[:2])
        return deque(self._arrival(*entry) for entry in entries)

    def _aborts(self) -> deque[tuple[int, int, str]]:
        """When requests are given up, with their place in the scenario and their id; in order."""
        scale = 1e6 if self.has_time else 1
        entries = [
            (round(float(request["abort"]) * scale), index, str(request["id"]))
            for index, request in enumerate(self.scenario["requests"])
            if "abort" in request
        ]
        return deque(sorted(entries))

    def _arrival(
        self, arrival: int, index: int, request: Json
    ) -> tuple[int, Sequence, RequestNote]:
        check_request(request)
        tokens = prompt_tokens_of(request)
        note = RequestNote(request["id"], arrival, len(tokens), index)
        path: list[int] = []
        output = min(request["output_length"], self.spec.max_model_len - len(tokens))
        if not tokens or len(tokens) >= self.spec.max_model_len:
            note.reason = "rejected"
        elif self.spec.enable_prefix_caching:
            start = request.get("output_start", 1_000_000_000 + 1_000_000 * index)
            path = self.tree.path_of(note.request_id, tokens + list(range(start, start + output)))
        arrival_ms = arrival / 1e6 if self.has_time else float(arrival)
        sequence = Sequence(
            index,
            len(tokens),
            output,
            path,
            len(path),
            arrival_ms,
            request.get("priority", 0),
            note.request_id,
        )
        return arrival, sequence, note

    def run(self) -> Json:
        """Drive the scenario to its end and return the log in the golden files' format."""
        if self.spec.async_scheduling:
            self._run_async()
        else:
            self._run_sync()
        self._collect_events({})
        return self._result()

    # ---- vLLM's loops --------------------------------------------------------------------------

    def _run_sync(self) -> None:
        while True:
            self._hand_over()
            if not self.scheduler.has_work:
                if not self.arrivals:
                    return
                self._skip_to_arrival()
                continue
            batch = self._schedule(self.now)
            self._deliver(batch)
            if not batch.counts:
                if not self._has_events:
                    self.stuck = True
                    return
                if self.has_time:
                    self._skip_to_event()
            self.now = max(self.now, batch.end) if self.has_time else self.now + 1
            self._check_length()

    def _run_async(self) -> None:
        """At most two batches outstanding; the next is planned before the last is known."""
        outstanding: deque[Batch] = deque()
        device_free_at = 0
        idle_calls = 0
        while True:
            self._hand_over()
            if not self._wants_call() and not outstanding:
                if not self.arrivals:
                    return
                self._skip_to_arrival()
                continue
            if self._wants_call():
                batch = self._schedule(max(self.now, device_free_at) if self.has_time else self.now)
                device_free_at = batch.end
                outstanding.append(batch)
                self.now += not self.has_time
                idle_calls = 0 if batch.counts else idle_calls + 1
                is_executed = bool(batch.record["sched"])
                if len(outstanding) < PIPELINE_DEPTH and (is_executed or self._wants_call()):
                    continue
            idle_calls = self._deliver_oldest(outstanding, idle_calls)
            if idle_calls > IDLE_CALLS_TO_GIVE_UP and self.scheduler.has_work:
                if not self._has_events:
                    self.stuck = True
                    return
                if self.has_time:
                    self._skip_to_event()
                idle_calls = 0

    def _deliver_oldest(self, outstanding: deque[Batch], idle_calls: int) -> int:
        """Wait for the oldest batch; returns the calls in a row that did nothing."""
        if not outstanding:
            return idle_calls
        batch = outstanding.popleft()
        if self.has_time:
            self.now = max(self.now, batch.end)
        self._deliver(batch)
        self._check_length()
        return 0 if batch.counts else idle_calls

    def _skip_to_arrival(self) -> None:
        self.now = max(self.now, self.arrivals[0][0])

    @property
    def _has_events(self) -> bool:
        """Whether an arrival or an abort is still to come."""
        return bool(self.arrivals or self.aborts)

    def _skip_to_event(self) -> None:
        heads_ns = [queue[0][0] for queue in (self.arrivals, self.aborts) if queue]
        self.now = max(self.now, min(heads_ns))

    def _wants_call(self) -> bool:
        """vLLM also calls its scheduler once after a request ended, to pass the news on."""
        return self.scheduler.has_work or self.has_news

    def _check_length(self) -> None:
        max_steps = self.scenario.get("max_steps", 2_000_000)
        if len(self.steps) > max_steps:
            raise ConfigError(f"no end after {max_steps} steps: raise max_steps if that is meant")

    def _hand_over(self) -> None:
        while self.arrivals and self.arrivals[0][0] <= self.now:
            _, sequence, note = self.arrivals.popleft()
            if note.request_id in self.notes:
                raise ConfigError(f"requests: id {note.request_id!r} appears twice")
            self.notes[note.request_id] = note
            if note.reason is None:
                self.sequences[note.request_id] = sequence
                self.scheduler.add(sequence)
        while self.aborts and self.aborts[0][0] <= self.now:
            self._abort(self.aborts.popleft()[2])

    def _abort(self, request_id: str) -> None:
        """Give a request up, if it has arrived and not ended."""
        note = self.notes.get(request_id)
        if note is None or note.reason is not None:
            return
        self.scheduler.abort(self.sequences[request_id])
        note.reason = "abort"
        self.aborted.append(request_id)
        self.has_news = True

    def _schedule(self, start: int) -> Batch:
        plan = self.scheduler.plan_step()
        self.has_news = False
        rows = [
            [
                row.sequence.request_id,
                row.num_tokens,
                "D" if row.is_decode else "P",
                row.num_computed_before,
                row.num_new_blocks,
                row.hit_tokens,
            ]
            for row in plan.rows
        ]
        for row in plan.rows:
            self._note_row(row.sequence.request_id, row.num_tokens, row.is_decode, row.hit_tokens)
        for sequence in plan.preempted:
            self.notes[sequence.request_id].preempted += 1
        self.totals["preemptions"] += len(plan.preempted)
        duration = 0
        if self.has_time and rows:
            duration = int(self.timing.step_ms(plan))
        record = {
            "sched": rows,
            "pre": [sequence.request_id for sequence in plan.preempted],
            "free": self.scheduler.pool.free_blocks,
            "run": len(self.scheduler.running),
            "wait": self.scheduler.num_waiting,
        }
        if self.aborted:
            record["abort"], self.aborted = self.aborted, []
        return Batch(plan, record, self.now, start, start + duration)

    def _note_row(self, request_id: str, num_tokens: int, is_decode: bool, hit: int) -> None:
        note = self.notes[request_id]
        if hit >= 0 and note.hit is None:
            note.hit = hit
            note.admitted = self.now
            self.totals["hit_tokens"] += hit
        self.totals["decode_tokens" if is_decode else "prefill_tokens"] += num_tokens
        self.totals["sched_tokens"] += num_tokens

    def _deliver(self, batch: Batch) -> None:
        is_async = self.spec.async_scheduling
        for sequence in batch.plan.emitting if is_async else self._emitting(batch.plan):
            note = self.notes[sequence.request_id]
            if note.reason is None:  # else given up while the step was under way
                note.token_times.append(batch.end)
        finished = self.scheduler.finish_step(batch.plan)
        for sequence in finished:
            self.notes[sequence.request_id].reason = "length"
            self.has_news = True
        batch.record["fin"] = [sequence.request_id for sequence in finished]
        batch.record["free_end"] = self.scheduler.pool.free_blocks
        if batch.counts:
            self._collect_events(batch.record)
            self._write(batch)

    @staticmethod
    def _emitting(plan: StepPlan) -> list[Sequence]:
        """Who yields a token: rows that end at the request's last known token."""
        prefilled = set(plan.prefilled)
        decoding = [row.sequence for row in plan.rows if row.is_decode]
        return [s for s in decoding if s not in prefilled] + plan.prefilled

    def _collect_events(self, record: Json) -> None:
        stored: list[str] = []
        removed: list[str] = []
        events = self.scheduler.pool.events
        if events is not None:
            for event in events:
                labels = stored if event.is_stored else removed
                labels.extend([self.tree.labels[event.content]] * event.num_blocks)
            events.clear()
        self.totals["stored"] += len(stored)
        self.totals["removed"] += len(removed)
        record["st"], record["rm"] = len(stored), len(removed)
        if (self.scenario.get("options") or {}).get("labels", True):
            record["st_l"], record["rm_l"] = stored, removed

    def _write(self, batch: Batch) -> None:
        if not self.has_time:
            head: Json = {"step": batch.scheduled_at}
        else:
            head = {"step": len(self.steps)}
            if batch.scheduled_at != batch.start:
                head["ts"] = batch.scheduled_at
            head |= {"t0": batch.start, "t1": batch.end}
        self.steps.append(head | batch.record)

    # ---- the log -------------------------------------------------------------------------------

    def _result(self) -> Json:
        result: Json = {
            "name": self.scenario.get("name"),
            "vllm": MODELLED_VLLM,
            "scheduler": "AsyncScheduler" if self.spec.async_scheduling else "Scheduler",
            "clock": "ns" if self.has_time else "step",
            "usable_blocks": self.spec.usable_blocks,
            "stuck": self.stuck,
            "num_steps": len(self.steps),
            "end": self.now,
            "totals": self.totals,
            "free_at_end": self.scheduler.pool.free_blocks,
            "steps_sha256": steps_digest(self.steps),
            "requests": [
                self._request_row(note)
                for note in sorted(self.notes.values(), key=lambda note: note.order)
            ],
        }
        step_log = (self.scenario.get("options") or {}).get("step_log", "full")
        if step_log == "full":
            result["steps"] = self.steps
        elif step_log == "compact":
            result["steps_rle"] = compact_steps(self.steps)
        return result

    def _request_row(self, note: RequestNote) -> Json:
        times = note.token_times
        row: Json = {
            "id": note.request_id,
            "arrival": note.arrival,
            "prompt": note.num_prompt,
            "out": len(times),
            "hit": note.hit,
            "preempted": note.preempted,
            "status": note.reason or ("stuck" if self.stuck else "?"),
            "admit": note.admitted,
            "first": times[0] if times else None,
            "last": times[-1] if note.reason == "length" or times else None,
        }
        if self.has_time and times:
            row["ttft"] = times[0] - note.arrival
            row["e2e"] = times[-1] - note.arrival
            row["max_itl"] = max((b - a for a, b in pairwise(times)), default=0)
        return row


def run_scenario(scenario: Json) -> Json:
    """The log of one scenario, in the golden files' format.

    Raises: ConfigError for a scenario that is not well formed.
    """
    try:
        return ScenarioRun(scenario).run()
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{scenario.get('name', 'scenario')}: not well formed: {error!r}"
        ) from error
