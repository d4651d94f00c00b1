"""Drives an engine through a scenario the way vLLM's two engine loops drive theirs.

The engine is the twin's: it plans, times and delivers each step. What is done here is to call it
when vLLM would, also where a call does nothing. Times are integers: nanoseconds, or ticks when the
scenario has no timing.
"""

from collections import deque

from dynosim.conformance.copies import ScenarioCopies
from dynosim.conformance.drafts import DraftingModel, ScenarioDrafts
from dynosim.conformance.log import Json
from dynosim.conformance.scenario import (
    COEFFICIENTS,
    DRAFT_COEFFICIENT,
    BlockTree,
    check_request,
    check_timing,
    prompt_tokens_of,
    spec_of,
)
from dynosim.conformance.step_log import RequestNote, ScenarioLog, StepEntry
from dynosim.conformance.transfers import ScenarioTransfers
from dynosim.engine.cores import CORES
from dynosim.engine.engine import Engine
from dynosim.engine.plan import StepPlan
from dynosim.engine.sequence import FINISHED, Sequence
from dynosim.errors import ConfigError
from dynosim.timing.formulas import LinearModel

IDLE_CALLS_TO_GIVE_UP = 4


class ScenarioRun:
    """One scenario driven to its end."""

    def __init__(self, scenario: Json) -> None:
        self.scenario = scenario
        self.spec = spec_of(scenario["engine"])
        self.has_time = scenario.get("timing") is not None
        self.tree = BlockTree(self.spec.block_size)
        self.transfers = ScenarioTransfers(
            scenario["requests"], self.spec.block_size, self._to_clock
        )
        self.arrivals = self._arrivals()
        self.aborts = self._aborts()
        self.aborted: list[str] = []  # since the last step
        self.has_connector = self.spec.kv_role is not None or self.spec.host_cache is not None
        self.num_calls = 0  # of the scheduler
        self.log = ScenarioLog(scenario, self.spec, self.tree, has_time=self.has_time)
        self.core = CORES[self.spec.kind](
            self.spec,
            keep_rows=True,
            names_emitting=True,
            publish_events=self.spec.enable_prefix_caching,
        )
        self.depth = self.spec.pipeline_depth
        self.engine = Engine(
            self.core, self._times(), self.log, depth=self.depth, steps_singly=True
        )
        offload = scenario["engine"].get("offload")
        self.copies = ScenarioCopies(offload or {}, self._to_clock, has_time=self.has_time)
        if offload is not None:
            self.engine.copies = self.copies
        self.drafts = ScenarioDrafts(scenario["engine"].get("spec"), scenario["requests"])
        self.in_flight: deque[tuple[int, StepEntry]] = deque()  # by the number of its call
        self.now = 0
        self.is_stuck = False
        self.has_news = False
        self.sequences: dict[str, Sequence] = {}  # those that the engine was given

    def _times(self) -> LinearModel:
        """Integer nanoseconds throughout: the model computes exactly with integer coefficients."""
        timing = self.scenario.get("timing") or {}
        check_timing(timing, has_drafts=self.spec.speculation is not None)
        names = (*COEFFICIENTS, DRAFT_COEFFICIENT)
        c0, c1, c2, c3, c4 = (round(float(timing.get(name, 0)) * 1e6) for name in names)
        return DraftingModel(
            base_ms=c0,
            per_prefill_token_ms=c1,
            per_decode_ms=c2,
            per_context_token_ms=c3,
            per_draft_ms=c4,
        )

    def _arrivals(self) -> deque[tuple[int, Sequence, RequestNote]]:
        """Requests with their arrival, in order of hand-over; too long ones already refused."""
        key, scale = ("arrival_ms", 1e6) if self.has_time else ("arrival_step", 1)
        entries = []
        for index, request in enumerate(self.scenario["requests"]):
            entries.append((round(float(request.get(key, 0)) * scale), index, request))
        entries.sort(key=lambda entry: entry[:2])
        return deque(self._arrival(*entry) for entry in entries)

    def _to_clock(self, time: object) -> int:
        """A time of the scenario, in ns or ticks."""
        return round(float(str(time)) * (1e6 if self.has_time else 1))

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
        check_request(request, has_drafts=self.spec.speculation is not None)
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
        self.transfers.tell(sequence)
        return arrival, sequence, note

    def run(self) -> Json:
        """Drive the scenario to its end and return the log in the golden files' format."""
        if self.depth == 1:
            self._run_sync()
        else:
            self._run_async()
        self.log.collect_events(self.core, {})
        return self.log.result(self.core, end=self.now, is_stuck=self.is_stuck)

    # ---- vLLM's loops --------------------------------------------------------------------------

    def _run_sync(self) -> None:
        """Where KV is exchanged, vLLM does not stop calling before all transfers have ended."""
        idle_calls = 0
        while True:
            self._hand_over()
            if not (self._wants_call() if self.has_connector else self.core.has_work):
                if not self.arrivals:
                    return
                self._skip_to_arrival()
                continue
            step = self._schedule()
            self._deliver_oldest()
            idle_calls = 0 if step.counts else idle_calls + 1
            next_event = self._next_event()
            if next_event is None and idle_calls > (6 if self.has_connector else 0):
                self.is_stuck = self._has_unfinished
                self.now += self.has_connector and not self.has_time
                return
            if self.has_time and next_event is not None and idle_calls > self.has_connector:
                self.now = max(self.now, next_event)
            if not self.has_time:
                self.now += 1

    def _run_async(self) -> None:
        """At most two steps in flight; the next is planned before the last is known."""
        idle_calls = 0
        while True:
            self._hand_over()
            if not self._wants_call() and not self.in_flight:
                if not self.arrivals:
                    return
                self._skip_to_arrival()
                continue
            if self._wants_call():
                step = self._schedule()
                self.now += not self.has_time
                idle_calls = 0 if step.counts else idle_calls + 1
                is_executed = not step.plan.is_empty
                if len(self.in_flight) < self.depth and (is_executed or self._wants_call()):
                    continue
            if self.in_flight and self._deliver_oldest().counts:
                idle_calls = 0
            if idle_calls > IDLE_CALLS_TO_GIVE_UP and self._wants_call():
                next_event = self._next_event()
                if next_event is None:
                    self.is_stuck = self._has_unfinished
                    return
                if self.has_time:
                    self.now = max(self.now, next_event)
                idle_calls = 0

    def _schedule(self) -> StepEntry:
        """Have the next step planned; one that computes nothing takes its turn as well."""
        start = self.now
        if self.has_time and self.in_flight:
            start = max(start, self.in_flight[-1][1].end)
        was_loading = self.transfers.loading()
        self.copies.call = self.num_calls
        plan = self.engine.plan_step(self.now)
        self.drafts.decide(plan)
        self.has_news = False
        if plan.host is not None:
            start = self.copies.start  # it may have waited for copies
            self.transfers.note_loading([load.sequence for load in plan.loads])
        else:
            self._start_loads(plan, start)
        is_loading = self.transfers.loading()
        step = self.log.planned(
            plan, self.core, self.now, start, was_loading=was_loading, is_loading=is_loading
        )
        if self.aborted:
            step.record["abort"], self.aborted = self.aborted, []
        self.in_flight.append((self.num_calls, step))
        self.num_calls += 1
        return step

    def _start_loads(self, plan: StepPlan, start: int) -> None:
        """Loads from elsewhere begin with the step that they were planned with."""
        for load in plan.loads:
            self.transfers.start(
                load.sequence,
                is_load=True,
                call=self.num_calls,
                now=start,
                hit_tokens=load.hit_tokens,
            )

    def _deliver_oldest(self) -> StepEntry:
        """Wait for the oldest step in flight."""
        call, step = self.in_flight.popleft()
        if self.has_time:
            self.now = max(self.now, step.end)
        finished = [] if step.plan.is_empty else self.engine.complete(step.end)
        self.has_news |= bool(finished)
        self._end_transfers(call, step)
        for sequence in finished:
            if self.core.holds(sequence):
                step.note_transfer("hold", sequence.request_id)
                end = self._end_of(step)
                self.transfers.start(sequence, is_load=False, call=call + 1, now=end)
        self.log.finished(step, finished, self.core)
        max_steps = self.scenario.get("max_steps", 2_000_000)
        if len(self.log.steps) > max_steps:
            raise ConfigError(f"no end after {max_steps} steps: raise max_steps if that is meant")
        return step

    def _end_of(self, step: StepEntry) -> int:
        """When a step ends, by the scenario's clock."""
        return step.end if self.has_time else step.scheduled_at

    def _end_transfers(self, call: int, step: StepEntry) -> None:
        """Report to the scheduler which transfers have ended with a step."""
        for job in self.copies.take_ended(call, self._end_of(step)):
            step.record.setdefault("off", {}).setdefault("done", []).append(job.number)
            if job.is_load:
                step.note_transfer("recv", job.sequence.request_id)
            self.core.copied(job.number)
        for transfer in self.transfers.take_ended(call, self._end_of(step)):
            sequence = transfer.sequence
            request_id = sequence.request_id
            if not transfer.is_load:
                step.note_transfer("sent", request_id)
                self.core.sent(sequence)
                continue
            step.note_transfer("recv", request_id)
            was_dropped = sequence.state == FINISHED
            valid_tokens = self.transfers.valid_tokens(transfer)
            self.core.loaded(sequence, valid_tokens)
            is_gone = sequence.state == FINISHED
            if self.transfers.fails(transfer):
                step.note_transfer("fail", [request_id, -1 if is_gone else valid_tokens])
            if is_gone and not was_dropped:
                self.log.failed(step, sequence)
                self.has_news = True

    def _skip_to_arrival(self) -> None:
        self.now = max(self.now, self.arrivals[0][0])

    @property
    def _has_unfinished(self) -> bool:
        return self.core.num_running + self.core.num_waiting > 0

    def _next_event(self) -> int | None:
        """When the next arrival, abort or end of a transfer is due; None if there is none."""
        times = [queue[0][0] for queue in (self.arrivals, self.aborts) if queue]
        ends = (self.transfers.next_end(), self.copies.next_end())
        return min([*times, *[end for end in ends if end is not None]], default=None)

    def _wants_call(self) -> bool:
        """vLLM also calls its scheduler once after a request ended, to pass the news on."""
        core = self.core
        has_transfers = core.num_loading > 0 or core.num_held > 0 or core.is_copying
        return core.has_work or self.has_news or has_transfers

    def _hand_over(self) -> None:
        while self.arrivals and self.arrivals[0][0] <= self.now:
            _, sequence, note = self.arrivals.popleft()
            if note.request_id in self.log.notes:
                raise ConfigError(f"requests: id {note.request_id!r} appears twice")
            self.log.notes[note.request_id] = note
            if note.reason is None:
                self.sequences[note.request_id] = sequence
                self.engine.add(sequence, self.now)
        while self.aborts and self.aborts[0][0] <= self.now:
            self._abort(self.aborts.popleft()[2])

    def _abort(self, request_id: str) -> None:
        """Give a request up, if it has arrived and not ended."""
        note = self.log.notes.get(request_id)
        if note is None or note.reason is not None:
            return
        self.engine.abort(self.sequences[request_id])
        note.reason = "abort"
        self.aborted.append(request_id)
        self.has_news = True


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
