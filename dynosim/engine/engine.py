"""An engine: a core that takes time.

The one place that plans a step, lets it take its time and delivers it. It serves the twin, where
whole runs of uniform decode steps are one event; the mock worker, in real time; and conformance.

`depth` is how many steps may be in flight: one with synchronous scheduling; two with asynchronous
scheduling, vLLM's default on GPUs, where a step is planned while the one before runs. An arrival in
the course of step k then enters step k + 2 at the earliest, and a finished request's seat is
refilled one step later.

A *run* is a number of uniform steps under way at once. At depth one it ends with its last step. At
depth two the step in flight when it begins decodes just the same sequences, and the run ends as
soon as its last step has been planned, when its last but one has been delivered: the pipeline is
then in the same state as before. That offset of one step is `_lag` everywhere below.
"""

from collections.abc import Iterable, Iterator, Sized
from typing import NamedTuple, Protocol

from dynosim.blocks.kv_event import KvEvent
from dynosim.engine.cores import Core
from dynosim.engine.instant import instant_end, instant_start
from dynosim.engine.lanes import CopyLanes
from dynosim.engine.pace import NEVER, Pace
from dynosim.engine.plan import CopyJob, KvLoad, StepPlan, Write
from dynosim.engine.recorder import Recorder
from dynosim.engine.sequence import DECODING, FINISHED, Sequence
from dynosim.timing.model import StepTimeModel

NOBODY: list[Sequence] = []  # never changed
StampedEvent = tuple[float, KvEvent]


class TransferEnd:
    """What an engine hears of a transfer that has ended."""

    __slots__ = ("copy_number", "num_valid_tokens", "sequence")

    def __init__(self, sequence: Sequence, num_valid_tokens: int, copy_number: int = -1) -> None:
        self.sequence = sequence
        self.num_valid_tokens = num_valid_tokens  # of one that loaded; -1 of one that was sent
        self.copy_number = copy_number  # of a load from a tier; -1: it came from elsewhere


class Repace:
    """Steps are to take other times, from the next that is planned; None: their usual ones."""

    __slots__ = ("times",)

    def __init__(self, times: StepTimeModel | None) -> None:
        self.times = times


class Copies(Protocol):
    """Carries the copies to and from a host tier in its own way; see `CopyLanes`."""

    def begin(self, plan: StepPlan, start_ms: float) -> float:
        """A step would begin then; returns when it may, its loads having been given on."""
        ...


class Unfinished(NamedTuple):
    """What an engine leaves that stops."""

    requests: list[tuple[Sequence, int]]  # each with the tokens delivered by then
    steps: list[StepPlan]  # planned, to start later
    dropped: list[Sequence]  # once for each token that a step under way made for nobody


class RunSoFar(NamedTuple):
    """What of a run under way has been delivered, step by step as it would have been singly.

    `first` is the step in flight when it began, if that has been delivered; then `num_steps` more,
    from `start_ms` on. `num_ahead` steps have been planned since the run began.
    """

    first: StepPlan | None
    start_ms: float
    num_steps: int
    num_decodes: int
    context_tokens: int  # of all of them, in the first of `num_steps`
    num_ahead: int


class Engine:
    """Drives one core. It never looks at a clock: its owner calls `complete` at `next_ms`.

    `next_ms` is when the step or run under way ends; infinity while idle. `run_steps` is the length
    of the run under way, 0 outside of runs. `last_delivery_ms` is when tokens were delivered last.
    `unpublished` are the KV events to take, if there are any. `steps_singly`: there are no runs.
    `stamps_events`: KV events are kept with the times at which the engine publishes them.

    `started_loads` are the loads to take, each with the time at which it begins: when the step that
    it was planned with starts. `failed` are the requests to take that ended because a load failed.
    """

    __slots__ = (
        "_depth",
        "_given_up",
        "_has_missed",
        "_in_flight",
        "_is_cut",
        "_lag",
        "_news",
        "_pace",
        "_queued_ms",
        "_recorder",
        "_retention",
        "_run_context",
        "_run_start_ms",
        "_settled_ms",
        "_stamped",
        "_steps_singly",
        "_times",
        "_told",
        "_usual_pace",
        "copies",
        "core",
        "failed",
        "lanes",
        "last_delivery_ms",
        "next_ms",
        "num_events",
        "run_steps",
        "started_loads",
        "unpublished",
    )

    def __init__(
        self,
        core: Core,
        times: StepTimeModel,
        recorder: Recorder,
        *,
        depth: int = 1,
        steps_singly: bool = False,
        stamps_events: bool = False,
    ) -> None:
        self.core = core
        self.next_ms = NEVER
        self.num_events = 0
        self.last_delivery_ms = -NEVER
        self.run_steps = 0
        self._times = times
        self._recorder = recorder
        self._depth = depth
        self._lag = depth - 1
        self._steps_singly = steps_singly
        self._usual_pace = (times, steps_singly)
        self._retention = core.retention
        self._stamped: list[StampedEvent] | None = [] if stamps_events else None
        self._told: list[StampedEvent] = []  # by tiers amid the run under way, by when they will be
        self.unpublished: Sized = core.events if self._stamped is None else self._stamped
        self._pace = Pace()
        self._in_flight: list[StepPlan] = []  # at most `depth` of them
        self._run_start_ms = 0.0
        self._run_context = 0
        self._has_missed = False  # whether ever a sequence has missed a step
        self._is_cut = False  # the run ends earlier than it would have, for an arrival
        self._settled_ms = -NEVER  # end of the steps that `settle` did last
        self._queued_ms: list[float] = []  # when requests came during the current run
        self._given_up: list[Sequence] = []  # to be dropped when a step ends
        self._news: list[TransferEnd | Repace] = []  # to be passed on when a step ends
        self.copies: Copies | None = None
        self.lanes: CopyLanes | None = None
        self.started_loads: list[tuple[Sequence, float]] = []
        self.failed: list[Sequence] = []

    # ---- requests ------------------------------------------------------------------------------

    def add(self, sequence: Sequence, now_ms: float) -> bool:
        """Take a request; returns whether `next_ms` has moved.

        What arrives at a step's end has part in the next step. So if what `settle` left of a run
        would begin at this very instant, the run is given up and the engine is idle.
        """
        matters = self.core.add(sequence)
        if self.run_steps == 0:
            return False
        if not sequence.is_prefetch:
            self._queued_ms.append(now_ms)
        if not matters or self._is_cut:
            return False
        instant_ms = instant_start(now_ms)
        if self._settled_ms >= instant_ms:
            self.run_steps = 0
            self.next_ms = NEVER
            self._pace.undo_start()
            return False
        if self.run_steps == 1:
            return False
        self._is_cut = True
        steps = self._steps_until(instant_ms)
        if steps == self.run_steps:
            return False
        self.run_steps = steps
        self.next_ms = max(self._set_run_end(), now_ms)
        return True

    def abort(self, sequence: Sequence) -> None:
        """Drop a request, outside of runs; a step that it is part of goes on without it."""
        self.core.abort(sequence)

    def give_up(self, sequence: Sequence, now_ms: float) -> bool:
        """Drop a request when the step under way ends; returns whether `next_ms` has moved.

        That is when an engine hears of it; an idle one does at once. A step that has been planned
        by then computes its token for nobody. If that was its last one, its blocks may be held all
        the same, until `sent`. Call it before anything else happens at `now_ms`.
        """
        if self.next_ms == NEVER:
            self.note_time(now_ms)
            self._drop(sequence)
            return False
        self._given_up.append(sequence)
        return self._cut(now_ms)

    def _cut(self, now_ms: float) -> bool:
        """Let the run end with the step under way; returns whether `next_ms` has moved."""
        if self.run_steps <= 1 or self._is_cut:
            return False
        self._is_cut = True
        steps = max(1, self._steps_until(instant_start(now_ms)))
        if steps >= self.run_steps:
            return False
        self.run_steps = steps
        self.next_ms = max(self._set_run_end(), now_ms)
        return True

    def _drop(self, sequence: Sequence) -> None:
        """Drop a request now, between two steps."""
        num_tokens = self.core.abort(sequence)
        under_way: StepPlan | None = None
        for plan in self._in_flight:
            if sequence in plan.emitting:
                under_way = plan
        self._recorder.dropped(sequence, num_tokens, under_way)

    def _drop_given_up(self, finished: list[Sequence]) -> list[Sequence]:
        """Drop who was given up; returns those of the finished who were not."""
        given_up, self._given_up = self._given_up, []
        for sequence in given_up:
            self._drop(sequence)
        return [sequence for sequence in finished if sequence not in given_up]

    @property
    def is_done(self) -> bool:
        """Whether it has no request, no step under way for one that was given up, and no blocks
        that are being loaded or sent."""
        core = self.core
        is_idle = not core.has_work and not self._in_flight
        return is_idle and core.num_loading == 0 and core.num_held == 0

    # ---- transfers -----------------------------------------------------------------------------

    def loaded(self, sequence: Sequence, now_ms: float, num_valid_tokens: int) -> bool:
        """A load has ended, see `EngineCore.loaded`; returns whether `next_ms` has moved.

        The engine hears of it when the step under way ends, or the next one if the load began with
        that; an idle one does at once. Call it before anything else happens at `now_ms`.
        """
        return self._hear(TransferEnd(sequence, num_valid_tokens), now_ms)

    def copied(self, job: CopyJob, now_ms: float) -> bool:
        """A load from a tier has ended; as `loaded`."""
        sequence = job.sequence
        return self._hear(TransferEnd(sequence, sequence.reserved_tokens, job.number), now_ms)

    def sent(self, sequence: Sequence, now_ms: float) -> bool:
        """The blocks held for a request have been sent; as `loaded`."""
        return self._hear(TransferEnd(sequence, -1), now_ms)

    def repace(self, times: StepTimeModel | None, now_ms: float) -> bool:
        """Let steps take other times until told again; returns whether `next_ms` has moved.

        Those are single steps: what a report reckons of a run's steps rests on the usual times
        (None). It holds from the next step that is planned. Call it before anything else happens at
        `now_ms`.
        """
        return self._hear(Repace(times), now_ms)

    def _hear(self, news: TransferEnd | Repace, now_ms: float) -> bool:
        if self.next_ms == NEVER:
            self.note_time(now_ms)
            self._pass_on(news)
            if self._stamped is not None:  # what was loaded ahead may be hit from now on
                self._stamp(now_ms)
            return False
        self._news.append(news)
        return self._cut(now_ms)

    def _pass_on(self, news: TransferEnd | Repace) -> None:
        """Tell the core, between two steps."""
        if isinstance(news, Repace):
            self._times, self._steps_singly = self._usual_pace
            if news.times is not None:
                self._times, self._steps_singly = news.times, True
            return
        core, sequence = self.core, news.sequence
        if news.copy_number >= 0:
            core.copied(news.copy_number)
            return
        if news.num_valid_tokens < 0:
            core.sent(sequence)
            return
        was_dropped = sequence.state == FINISHED
        core.loaded(sequence, news.num_valid_tokens)
        if sequence.state == FINISHED and not was_dropped:
            self.failed.append(sequence)

    def _pass_on_all(self) -> None:
        """Tell the core all that was heard, since no step is under way that could end."""
        news, self._news = self._news, []
        for one in news:
            self._pass_on(one)

    def _pass_on_news(self, step: int) -> None:
        """Tell the core what was heard before this step ended, but of loads that began later."""
        news, self._news = self._news, []
        for one in news:
            if (
                isinstance(one, TransferEnd)
                and one.num_valid_tokens >= 0
                and one.sequence.load_step > step
            ):
                self._news.append(one)
            else:
                self._pass_on(one)

    # ---- steps ---------------------------------------------------------------------------------

    def note_time(self, now_ms: float) -> None:
        """Tell a cache that retains blocks for a time what it is, between two steps."""
        if self._retention is not None:
            self._retention.at(now_ms)
            self.core.tell_tiers(now_ms)

    def start(self, now_ms: float) -> None:
        """Plan as many steps as may be in flight, or a run at once, if there is work.

        Call it outside of runs only.
        """
        core, in_flight, lag = self.core, self._in_flight, self._lag
        self.note_time(now_ms)
        lanes = self.lanes
        if lanes is not None and lanes.next_store_ms <= now_ms:
            self.hear_stored(now_ms)
        while len(in_flight) < self._depth and core.has_work:
            count = core.decodes.count
            if (
                count
                and len(in_flight) == lag
                and (not in_flight or in_flight[0].decodes_all(count))
                and not self._needs_single_step()
            ):
                if core.num_waiting:
                    self._note_loads(core.begin_loads(), now_ms)
                steps = core.uniform_steps()
                if steps > lag:
                    self._begin_run(steps, now_ms)
                    self._end_before_lapse()
                    self._is_cut = False
                    if lanes is not None:
                        self._heed_copies(lanes)
                    self.next_ms = self._set_run_end()
                    return
            plan = self.plan_step(now_ms)
            is_launched = bool(in_flight) and in_flight[-1] is plan
            if not is_launched and (in_flight or not plan.preempted):
                break  # the head of the queue waits for something that is not here
        if self._news and not in_flight:
            self._pass_on_all()
            self.start(now_ms)
            return
        if lanes is not None and not core.has_work and core.has_offers:
            start_ms = max(now_ms, in_flight[-1].end_ms) if in_flight else now_ms
            lanes.begin_stores(core.offer_rest(), start_ms)
        self.next_ms = in_flight[0].end_ms if in_flight else NEVER

    def _heed_copies(self, lanes: CopyLanes) -> None:
        """A run begins: what ended requests leave is stored from the end of its first step on, and
        the run ends with the step in which a store does, where somebody is told of it at once.

        A router need not be: what is being stored is on the device as well, and counts as that.
        """
        core = self.core
        if core.has_offers:
            lanes.begin_stores(core.offer_rest(), self._delivered_ms(1))
        is_told = self._stamped is not None or lanes.stores_are_heard
        if is_told and lanes.next_store_ms < NEVER:
            steps = max(1, self._steps_until(instant_start(lanes.next_store_ms)))
            if steps < self.run_steps:
                self.run_steps = steps

    def hear_stored(self, now_ms: float) -> None:
        """Tell the core which stores to a tier have ended; without it, it hears with a step."""
        assert self.lanes is not None
        if self._retention is not None:
            self.core.tell_tiers(now_ms)
        num_before = len(self.core.events)
        for number in self.lanes.take_stored(now_ms):
            self.core.copied(number)
        self._set_apart(num_before, now_ms)

    def written(self, writes: Iterable[Write], now_ms: float) -> None:
        """Chunks have arrived in a tier beyond the nearest."""
        core = self.core
        num_before = len(core.events)
        core.tell_tiers(now_ms)
        for write in writes:
            core.written(write)
        self._set_apart(num_before, now_ms)

    def _set_apart(self, num_before: int, now_ms: float) -> None:
        """Events after so many are a tier's: amid a run, of the step that is under way now."""
        core, lag = self.core, self._lag
        if self._stamped is None or self.run_steps == 0 or len(core.events) == num_before:
            return
        events = core.take_events()
        first_ms = self._delivered_ms(1 - lag)
        steps = max(1, self._steps_until(instant_start(now_ms)))
        told_ms = self._delivered_ms(steps - lag)
        self._told += [(first_ms, event) for event in events[:num_before]]
        self._told += [(told_ms, event) for event in events[num_before:]]

    def plan_step(self, now_ms: float) -> StepPlan:
        """Have the next step planned, and put it in flight unless it computes nothing."""
        in_flight, pace = self._in_flight, self._pace
        plan = self.core.plan_step()
        if plan.preempted or plan.deferred:
            self._has_missed = True
            self._recorder.missed(plan, in_flight[-1].end_ms if in_flight else now_ms)
        if plan.loads and plan.host is None:
            self._note_loads(plan.loads, now_ms)
        start_ms = max(now_ms, pace.end_ms) if in_flight else now_ms
        work = plan.host
        if work is not None:
            if self.lanes is not None:
                start_ms = self.lanes.begin(work, start_ms)
            elif self.copies is not None:
                start_ms = self.copies.begin(plan, start_ms)
        end_ms = start_ms
        if plan.num_prefills or plan.num_decodes:
            pace.start_at(start_ms)
            plan.start_ms = pace.start_ms
            plan.end_ms = end_ms = pace.end_after(self._times.step_ms(plan))
            if plan.admitted:
                self._recorder.admitted(plan.admitted, plan.start_ms)
            in_flight.append(plan)
        if work is not None and work.stores and self.lanes is not None:
            self.lanes.begin_stores(work, end_ms)
        return plan

    def _note_loads(self, loads: tuple[KvLoad, ...], now_ms: float) -> None:
        """Loads begin when the step that they were planned with does."""
        for load in loads:
            start_ms = max(now_ms, self._in_flight[-1].end_ms) if self._in_flight else now_ms
            if load.job is None:
                self.started_loads.append((load.sequence, start_ms))
            elif self.lanes is not None:
                self.lanes.begin_load(load.job, start_ms)

    def complete(self, now_ms: float) -> list[Sequence]:
        """End the oldest step or the run; returns the requests that ended with it."""
        self.num_events += 1
        self.next_ms = NEVER
        self.last_delivery_ms = now_ms
        if self.run_steps:
            step = self.core.decodes.step + self.run_steps - 1 - self._lag  # the last delivered
            self._deliver_run(now_ms)
            self.note_time(now_ms)
            self._queued_ms.clear()
            finished = NOBODY if self._lag else self.core.finish_due()
        else:
            plan = self._in_flight.pop(0)
            step = plan.step
            num_waiting = self._num_waiting(now_ms) if self._queued_ms else self.core.num_waiting
            self._recorder.delivered(plan, num_waiting)
            self.note_time(now_ms)
            finished = self.core.finish_step(plan)
        if self._given_up:
            finished = self._drop_given_up(finished)
        if self._news:
            self._pass_on_news(step)
        lanes = self.lanes
        if lanes is not None and lanes.next_store_ms <= now_ms:
            self.hear_stored(now_ms)
        if self._stamped is not None:
            if self._told:
                self._publish_told(NEVER)
            self._stamp(now_ms)
        if finished:
            self._recorder.ended(finished, now_ms)
        return finished

    # ---- runs ----------------------------------------------------------------------------------

    def settle(self, now_ms: float) -> bool:
        """Do the steps of the current run that have ended by `now_ms`, if they evict anything.

        The run goes on and ends when it would have. Returns whether anything was done. At depth two
        the events of a step are published when the step before has been delivered.
        """
        if self.run_steps <= 1:
            return False
        if not self._told:
            return self._settle(now_ms)
        has_settled = self._settle(now_ms)
        return self._publish_told(instant_end(now_ms)) or has_settled

    def _settle(self, now_ms: float) -> bool:
        steps = self.run_steps
        elapsed_ms = instant_end(now_ms) - self._run_start_ms
        if (self._lag and elapsed_ms < 0) or not self.core.may_publish(steps):
            return False
        num_done = self._lag + self._steps_ended(elapsed_ms, steps - 1)
        if num_done in (0, steps) or not self.core.may_publish(num_done):
            return False
        next_ms, planned_end = self.next_ms, self._pace.planned_end()
        self.run_steps = num_done
        self._settled_ms = self.last_delivery_ms = split_ms = self._set_run_end()
        self._deliver_run(split_ms)
        self._begin_run(steps - num_done, split_ms)
        if not self._lag:
            self._pace.restore_end(planned_end)
        self.next_ms = next_ms
        return True

    def _needs_single_step(self) -> bool:
        """Whether the next step cannot be part of a run."""
        if self._steps_singly or self._news:
            return True
        return self._has_missed and self._recorder.wants_single_steps()

    def _begin_run(self, steps: int, now_ms: float) -> None:
        self.run_steps = steps
        self._run_context = self.core.decodes.context_tokens
        self._run_start_ms = self._in_flight[0].end_ms if self._lag else now_ms
        self._pace.start_at(self._run_start_ms)

    def _end_before_lapse(self) -> None:
        """End the run that has just begun with the last step planned before a claim's time is over.

        The next one may have to evict something else. As for what arrives: see `add`.
        """
        if self._retention is None:
            return
        lapse_ms = self._retention.next_lapse_ms
        if lapse_ms < NEVER:
            steps = max(1, self._steps_until(instant_start(lapse_ms)))
            self.run_steps = min(self.run_steps, steps)

    def _set_run_end(self) -> float:
        """When the run ends. At depth one its last step does, and the pace is set to that."""
        if self._lag:
            return self._delivered_ms(self.run_steps - 1)
        return self._pace.end_after(self._run_ms(self.run_steps))

    def _deliver_run(self, now_ms: float) -> None:
        """Do a run's steps and note them."""
        core = self.core
        steps, self.run_steps = self.run_steps, 0
        if not self._lag:
            self._advance(steps)
            self._note_run(self._run_start_ms, now_ms, steps)
            return
        first = self._in_flight.pop(0)
        core.overlap(first)
        self._advance(1)  # what is delivered has another step planned behind it
        self._recorder.delivered(first, self._num_waiting(first.end_ms))
        if steps > 1:
            self._advance(steps - 1, done=1)
            self._note_run(first.end_ms, now_ms, steps - 1)
        last = core.last_of_run(first)
        last.start_ms = self._delivered_ms(steps - 1)
        last.end_ms = self._pace.end_after(self._run_ms(steps))
        self._in_flight.append(last)

    def _note_run(self, start_ms: float, end_ms: float, steps: int) -> None:
        waiting = self._num_waiting(end_ms) if self._queued_ms else self.core.num_waiting
        self._recorder.delivered_run(start_ms, end_ms, steps, self._run_context, waiting)

    def _advance(self, num_steps: int, *, done: int = 0) -> None:
        """Let the core do uniform steps of the current run, `done` of which it has done.

        If events are stamped, it stops wherever there may be some.
        """
        core = self.core
        if self._stamped is None:
            core.advance(num_steps)
            return
        end = done + num_steps
        while done < end:
            part = core.quiet_steps(end - done)
            core.advance(part)
            done += part
            self._stamp(self._delivered_ms(done - self._lag))

    # ---- times within a run --------------------------------------------------------------------

    def _run_ms(self, num_steps: int) -> float:
        """How long the run's first steps take."""
        return self._times.decode_run_ms(self.core.decodes.count, self._run_context, num_steps)

    def _delivered_ms(self, num_steps: int) -> float:
        """When the run's first steps have been executed."""
        return self._run_start_ms + (self._run_ms(num_steps) + self._pace.carry_ms)

    def _steps_until(self, instant_ms: float) -> int:
        """How many of the run's steps must be planned before an arrival can have part in one."""
        elapsed_ms = instant_ms - self._run_start_ms
        lag = self._lag
        if lag and elapsed_ms <= 0:
            return lag
        count, context = self.core.decodes.count, self._run_context
        max_steps = self.run_steps - lag
        return lag + self._times.decode_steps_until(count, context, max_steps, elapsed_ms)

    def _steps_ended(self, elapsed_ms: float, max_steps: int) -> int:
        """Steps of the run, up to `max_steps`, that take no longer than `elapsed_ms`."""
        count, context = self.core.decodes.count, self._run_context
        steps = self._times.decode_steps_until(count, context, max_steps, elapsed_ms)
        if self._run_ms(steps) > elapsed_ms:
            steps -= 1
        return steps

    def _steps_delivered(self, now_ms: float) -> int:
        """Steps delivered by `now_ms` since the run began, the one in flight then included."""
        elapsed_ms = instant_end(now_ms) - self._run_start_ms
        if self._lag and elapsed_ms < 0:
            return 0
        return self._lag + self._steps_ended(elapsed_ms, self.run_steps - self._lag)

    # ---- looking in ----------------------------------------------------------------------------

    def progress(self, now_ms: float) -> Iterator[tuple[int, int]]:
        """(request, tokens delivered by `now_ms`) of every request that decodes."""
        delivered = self._steps_delivered(now_ms) if self.run_steps else 0
        for sequence, num_scheduled in self.core.decoding():
            yield sequence.index, num_scheduled + delivered - self._undelivered(sequence)

    def run_so_far(self, now_ms: float) -> RunSoFar | None:
        """How far the run under way is; None outside of runs."""
        if self.run_steps == 0:
            return None
        delivered = self._steps_delivered(now_ms)
        first = self._in_flight[0] if self._lag and delivered else None
        return RunSoFar(
            first,
            self._run_start_ms,
            delivered if first is None else delivered - 1,
            self.core.decodes.count,
            self._run_context,
            delivered + 1,
        )

    def take_stamped(self) -> list[StampedEvent]:
        """The KV events since the last call, with the times at which they were published."""
        assert self._stamped is not None
        taken = self._stamped.copy()
        self._stamped.clear()
        return taken

    def stop(self, now_ms: float) -> Unfinished:
        """Stop for good, at the end of a run or of the worker's life; returns what is left.

        Of a step that does not end by `now_ms` no event is published.
        """
        steps = self._steps_delivered(now_ms) if self.run_steps > 0 else 0
        if steps > 0:
            self.run_steps = steps
            self.last_delivery_ms = self._delivered_ms(steps - self._lag)
            self._deliver_run(self.last_delivery_ms)
        else:
            self.core.take_events()
        if self.lanes is not None:  # stores that ended with steps that were delivered or settled
            self.hear_stored(self.last_delivery_ms)
        unfinished = self.core.unfinished()
        left = Unfinished(
            [(sequence, got - self._undelivered(sequence)) for sequence, got in unfinished],
            [plan for plan in self._in_flight if plan.start_ms > instant_end(now_ms)],
            self._dropped_under_way(),
        )
        self.run_steps = 0
        self.next_ms = NEVER
        self._in_flight.clear()
        if self.lanes is not None:
            self.lanes.stop()
            self.core.drop_copies()
        return left

    def _dropped_under_way(self) -> list[Sequence]:
        """Who was dropped while a step that has not ended computed a token for it."""
        plans = self._in_flight if self._lag else []
        return [one for plan in plans for one in plan.emitting if one.state == FINISHED]

    def _undelivered(self, sequence: Sequence) -> int:
        """Tokens scheduled for a request whose step is still under way."""
        if self._lag:
            return sequence.in_flight
        if not self._in_flight or sequence.state != DECODING:
            return 0
        return int(sequence not in self._in_flight[0].deferred)

    def _num_waiting(self, end_ms: float) -> int:
        """Requests queued at the end of a step or run; some may have come since."""
        instant_ms = instant_start(end_ms)
        return self.core.num_waiting - sum([came_ms >= instant_ms for came_ms in self._queued_ms])

    def _stamp(self, now_ms: float) -> None:
        """Note that all new KV events are published at `now_ms`."""
        assert self._stamped is not None
        if self._told:
            self._publish_told(instant_end(now_ms))
        self._stamped += [(now_ms, event) for event in self.core.take_events()]

    def _publish_told(self, until_ms: float) -> bool:
        """Publish what tiers have told amid a run, as far as its steps have ended by then."""
        assert self._stamped is not None
        due = [one for one in self._told if one[0] <= until_ms]
        if due:
            self._told = [one for one in self._told if one[0] > until_ms]
            self._stamped += due
        return bool(due)
