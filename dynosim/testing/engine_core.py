"""What every engine core must do: lose nothing, and go in bulk as step by step."""

import random
from collections import Counter, deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as List
from heapq import heappop, heappush

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dynosim.blocks.kv_event import KvEvent
from dynosim.engine.core import EngineCore
from dynosim.engine.engine import Engine
from dynosim.engine.instant import instant_end
from dynosim.engine.pace import NEVER
from dynosim.engine.plan import StepPlan
from dynosim.engine.recorder import Recorder
from dynosim.engine.sequence import FINISHED, Sequence
from dynosim.engine.spec import EngineSpec
from dynosim.testing import law
from dynosim.timing.formulas import LinearModel

SEEDS = st.integers(0, 2**32 - 1)
BLOCK = 4
MAX_LEN = 60
NUM_EXTENTS = 1000
TIMES = LinearModel(
    base_ms=5.0, per_prefill_token_ms=0.3, per_decode_ms=0.1, per_context_token_ms=0.005
)
SAME_MS = 1e-6
Blocks = list[tuple[bool, int, int]]  # stored or evicted, content, place in its extent

MakeCore = Callable[[EngineSpec, list[int], bool], EngineCore]


class EngineCoreContract:
    """The tests of an `EngineCore`.

    The heir supplies `make_core`, a fixture of class scope: a function of an `EngineSpec`, the
    sizes of the extents that requests' paths name, and whether KV events are published, which makes
    an idle core. A core that has no use for a knob of the spec may leave it alone.

    Everything is called by a `dynosim.engine.engine.Engine`, one call at a time: `add` and `abort`
    at any moment, `plan_step` while `has_work`, `finish_step` for every plan that computes
    something, in order, at most two plans after it was made. `loaded` is called once for each load
    that a plan started, `sent` once for each request that the core `holds`. In bulk it asks
    `uniform_steps`, does `advance` by no more than that, and then `finish_due`. A core must not
    look at a clock, draw at random, or change a sequence that has ended.
    """

    @law(100)
    @given(seed=SEEDS)
    def test_aborts_at_any_time_lose_no_block_and_no_other_request(
        self, make_core: MakeCore, seed: int
    ) -> None:
        run = RandomRun(make_core, random.Random(seed))
        run.play()
        assert set(run.finished) == set(run.requests) - run.aborted - run.failed
        assert len(run.finished) == len(set(run.finished))
        core = run.core
        assert (core.used_blocks, core.num_running, core.num_waiting) == (0, 0, 0)
        assert (core.num_loading, core.num_held, core.deferred_blocks) == (0, 0, 0)
        assert (core.decodes.count, core.decodes.context_tokens) == (0, 0)
        assert core.unfinished() == [] and list(core.decoding()) == []

    @law(60)
    @given(seed=SEEDS)
    def test_a_request_gets_its_tokens_one_by_one_and_ends_with_the_last(
        self, make_core: MakeCore, seed: int
    ) -> None:
        run = RandomRun(make_core, random.Random(seed), aborts=False)
        got: dict[Sequence, int] = {}
        withdrawn = int(run.spec.gives_kv)  # what is under way for a request that is preempted
        for _ in run.steps():
            for sequence, num_tokens in run.core.unfinished():
                assert got.get(sequence, 0) - withdrawn <= num_tokens <= sequence.output_tokens
                assert num_tokens - got.get(sequence, 0) <= 1
                got[sequence] = num_tokens
        served = set(run.requests) - run.failed
        assert all(got[sequence] >= sequence.output_tokens - 1 for sequence in served)

    @law(60)
    @given(seed=SEEDS)
    def test_what_it_says_of_itself_adds_up(self, make_core: MakeCore, seed: int) -> None:
        run = RandomRun(make_core, random.Random(seed))
        for _ in run.steps():
            core, spec = run.core, run.spec
            unfinished = [sequence for sequence, _ in core.unfinished()]
            assert len(unfinished) == len(set(unfinished)) == core.num_running + core.num_waiting
            gone = run.aborted | run.failed | set(run.finished)
            assert set(unfinished) == set(run.requests) - gone
            assert core.has_work == bool(set(unfinished) - set(run.loads))
            assert core.num_loading == len(run.loads)
            assert core.num_held == len([s for s in run.finished if core.holds(s)])
            assert 0 <= core.used_blocks <= spec.usable_blocks
            assert core.num_running <= spec.max_num_seqs
            decoding = list(core.decoding())
            assert len(decoding) == core.decodes.count
            context = sum(sequence.prompt_tokens + got for sequence, got in decoding)
            assert context == core.decodes.context_tokens
            assert core.uniform_steps() >= 0

    @law(60)
    @given(seed=SEEDS)
    def test_a_step_is_within_its_budget_and_admits_whom_add_said_it_could(
        self, make_core: MakeCore, seed: int
    ) -> None:
        run = RandomRun(make_core, random.Random(seed))
        for plan in run.steps():
            if plan is None:
                continue
            assert plan.prefill_tokens + plan.num_decodes <= run.spec.max_num_batched_tokens
            assert (plan.num_prefills > 0) == (plan.prefill_tokens > 0)
            assert plan.is_empty == (plan.num_prefills + plan.num_decodes == 0)
            assert not run.hopeless & set(plan.admitted)
            run.hopeless.clear()

    @law(60)
    @given(seed=SEEDS)
    def test_a_cache_publishes_what_comes_and_goes_and_never_holds_more_than_it_has(
        self, make_core: MakeCore, seed: int
    ) -> None:
        run = RandomRun(make_core, random.Random(seed), publishes=True)
        copies: Counter[tuple[int, int]] = Counter()  # a block may be computed twice at once
        for _ in run.steps():
            for event in run.core.take_events():
                for block in range(event.first_block, event.first_block + event.num_blocks):
                    key = event.content, 0 if event.content < 0 else block
                    copies[key] += 1 if event.is_stored else -1
                    assert copies[key] >= 0
            assert copies.total() <= run.spec.usable_blocks
        assert run.core.take_events() == []

    @law(60)
    @given(seed=SEEDS)
    def test_in_bulk_all_is_as_step_by_step(self, make_core: MakeCore, seed: int) -> None:
        draw = random.Random(seed)
        spec = random_spec(draw)
        arrivals = random_arrivals(draw, spec)
        looks_ms = sorted(draw.uniform(0, 400) for _ in range(5))
        bulk, single = (
            _serve(make_core, spec, arrivals, looks_ms, seed, steps_singly=steps_singly)
            for steps_singly in (False, True)
        )
        assert [name for name, _ in bulk.ends] == [name for name, _ in single.ends]
        for ours, theirs in (
            (bulk.admissions, single.admissions),
            (bulk.ends, single.ends),
            (bulk.loads, single.loads),
            (bulk.others, single.others),
        ):
            assert_same_times(sorted(ours), sorted(theirs))
        assert bulk.progress == single.progress
        assert_same_times(_by_instant(bulk.events), _by_instant(single.events))
        assert bulk.num_preemptions == single.num_preemptions

    @law(40)
    @given(seed=SEEDS)
    def test_quiet_steps_are_some_and_no_more_than_asked_for(
        self, make_core: MakeCore, seed: int
    ) -> None:
        run = RandomRun(make_core, random.Random(seed), publishes=True)
        for _ in run.steps():
            if run.core.uniform_steps() > 0:
                assert 1 <= run.core.quiet_steps(7) <= 7
                assert run.core.quiet_steps(1) == 1


def random_spec(draw: random.Random) -> EngineSpec:
    """A small engine, often short of blocks, seats or budget."""
    return EngineSpec(
        num_gpu_blocks=1 + draw.choice([15, 16, 20, 60]),
        max_model_len=MAX_LEN,
        block_size=BLOCK,
        max_num_seqs=draw.choice([1, 3, 8]),
        max_num_batched_tokens=draw.choice([8, 16, 64]),
        enable_prefix_caching=draw.random() < 0.8,
        long_prefill_token_threshold=draw.choice([0, 0, 4]),
        policy=draw.choice(["fcfs", "priority"]),
        watermark=draw.choice([0.0, 0.1]),
        async_scheduling=draw.random() < 0.5,
        kv_role=draw.choice([None, "kv_both", "kv_producer", "kv_consumer"]),
        kv_load_failure_policy=draw.choice(["fail", "recompute"]),
    )


def random_sequence(
    draw: random.Random,
    index: int,
    spec: EngineSpec,
    came_ms: float,
    *,
    shares_answers: bool = True,
) -> Sequence:
    """A request that fits, whose beginning is often others' too, with or without its answer."""
    prompt = draw.randint(1, MAX_LEN - 1)
    output = draw.randint(1, MAX_LEN - prompt)
    path: list[int] = []
    if spec.enable_prefix_caching:
        blocks = (prompt + (draw.choice([0, output]) if shares_answers else 0)) // BLOCK
        shared = draw.randint(0, blocks)
        tail = range(20 + 16 * index, 20 + 16 * index + blocks - shared)
        path = [*range(shared), *tail]
    priority = draw.randint(0, 2)
    made = Sequence(index, prompt, output, path, len(path), came_ms, priority, str(index))
    if spec.kv_role is not None:
        made.remote_tokens = draw.choice([0, prompt, draw.randint(0, prompt)])
        made.is_sent = draw.random() < 0.4
    return made


def valid_tokens(draw: random.Random, sequence: Sequence) -> int:
    """What of a request is valid when its load ends; mostly all that it was to get."""
    promised = sequence.cached_tokens + sequence.external_tokens
    return promised if draw.random() < 0.7 else draw.randint(sequence.cached_tokens, promised)


def random_arrivals(draw: random.Random, spec: EngineSpec) -> list[Callable[[], Sequence]]:
    """Requests by the order in which they come; made anew for every core.

    Where nobody shares an answer, a core need not watch what is generated.
    """
    shares_answers = draw.random() < 0.5
    times_ms = sorted(draw.uniform(0, draw.choice([1, 300])) for _ in range(draw.randint(1, 15)))
    seeds = [draw.random() for _ in times_ms]

    def maker(index: int, came_ms: float) -> Callable[[], Sequence]:
        draws = seeds[index]
        return lambda: random_sequence(
            random.Random(draws), index, spec, came_ms, shares_answers=shares_answers
        )

    return [maker(index, came_ms) for index, came_ms in enumerate(times_ms)]


def assert_same_times(ours: List[tuple[object, float]], theirs: List[tuple[object, float]]) -> None:
    """The same things happened, at the same times but for rounding."""
    assert [what for what, _ in ours] == [what for what, _ in theirs]
    times_ms = [at_ms for _, at_ms in theirs]
    assert [at_ms for _, at_ms in ours] == pytest.approx(times_ms, abs=SAME_MS)


def _by_instant(events: list[tuple[float, KvEvent]]) -> list[tuple[Blocks, float]]:
    """Block by block what was published at each time, where no order counts."""
    found: list[tuple[Blocks, float]] = []
    for at_ms, event in events:
        if not found or at_ms > found[-1][1] + SAME_MS:
            found.append(([], at_ms))
        for block in range(event.first_block, event.first_block + event.num_blocks):
            found[-1][0].append((event.is_stored, event.content, block))
    return [(sorted(blocks), at_ms) for blocks, at_ms in found]


class RandomRun:
    """A core under random arrivals, steps and aborts."""

    def __init__(
        self,
        make_core: MakeCore,
        draw: random.Random,
        *,
        aborts: bool = True,
        publishes: bool = False,
    ) -> None:
        self.draw = draw
        self.spec = random_spec(draw)
        has_events = self.spec.enable_prefix_caching and (publishes or draw.random() < 0.7)
        self.core = make_core(self.spec, [1] * NUM_EXTENTS, has_events)
        self.requests: list[Sequence] = []
        self.aborted: set[Sequence] = set()
        self.finished: list[Sequence] = []
        self.failed: set[Sequence] = set()
        self.loads: list[Sequence] = []  # under way
        self.hopeless: set[Sequence] = set()  # that the next step cannot admit
        self._in_flight: deque[StepPlan] = deque()
        self._aborts = aborts

    def play(self) -> None:
        """All of it."""
        for _ in self.steps():
            pass

    def steps(self) -> Iterator[StepPlan | None]:
        """The plans, one by one, None for whatever else happens; at the end all is served."""
        draw = self.draw
        actions = [self._add, self._plan, self._plan, self._plan, *[self._finish] * 3]
        actions += [self._end_load, self._end_sending]
        if self._aborts:
            actions.append(self._abort)
        for _ in range(draw.randint(1, 250)):
            yield draw.choice(actions)()
        for _ in range(20_000):
            core = self.core
            if not (core.has_work or self._in_flight or core.num_loading or core.num_held):
                return
            yield self._plan()
            self._finish()
            self._end_load()
            self._end_sending()
            yield None
        raise AssertionError("there is always work left")

    def _end_load(self) -> None:
        if not self.loads:
            return
        sequence = self.loads.pop(self.draw.randrange(len(self.loads)))
        self.core.loaded(sequence, valid_tokens(self.draw, sequence))
        if sequence.state == FINISHED and sequence not in self.aborted:
            self.failed.add(sequence)
        self.hopeless.clear()

    def _end_sending(self) -> None:
        held = [sequence for sequence in self.finished if self.core.holds(sequence)]
        if held:
            self.core.sent(self.draw.choice(held))
            self.hopeless.clear()

    def _add(self) -> None:
        index = len(self.requests)
        sequence = random_sequence(self.draw, index, self.spec, float(index))
        self.requests.append(sequence)
        if not self.core.add(sequence):
            self.hopeless.add(sequence)

    def _plan(self) -> StepPlan | None:
        if len(self._in_flight) >= self.spec.pipeline_depth or not self.core.has_work:
            return None
        plan = self.core.plan_step()
        self.loads += [load.sequence for load in plan.loads]
        if not plan.is_empty:
            self._in_flight.append(plan)
        return plan

    def _finish(self) -> None:
        if self._in_flight:
            self.finished += self.core.finish_step(self._in_flight.popleft())
            self.hopeless.clear()

    def _abort(self) -> None:
        if self.requests:
            sequence = self.draw.choice(self.requests)
            if sequence not in self.finished and sequence not in self.failed:
                self.aborted.add(sequence)
            self.core.abort(sequence)
            self.hopeless.clear()


class _Notes(Recorder):
    """A `Recorder` that keeps admissions and ends, and what was seen from outside."""

    def __init__(self) -> None:
        self.admissions: list[tuple[int, float]] = []
        self.ends: list[tuple[int, float]] = []
        self.loads: list[tuple[int, float]] = []
        self.others: list[tuple[tuple[str, int], float]] = []  # failed
        self.progress: list[dict[int, int]] = []
        self.events: list[tuple[float, KvEvent]] = []
        self.num_preemptions = 0

    def admitted(self, sequences: List[Sequence], start_ms: float) -> None:
        """See `Recorder`."""
        self.admissions += [(sequence.index, start_ms) for sequence in sequences]

    def missed(self, plan: StepPlan, last_token_ms: float) -> None:
        """Nothing to note."""

    def delivered(self, plan: StepPlan, num_waiting: int) -> None:
        """Nothing to note."""

    def delivered_run(
        self, start_ms: float, end_ms: float, num_steps: int, first_context: int, num_waiting: int
    ) -> None:
        """Nothing to note."""

    def ended(self, sequences: List[Sequence], end_ms: float) -> None:
        """See `Recorder`."""
        self.ends += [(sequence.index, end_ms) for sequence in sequences]

    def dropped(self, sequence: Sequence, num_tokens: int, under_way: StepPlan | None) -> None:
        """It is gone; when is told by who is admitted in its place."""

    def wants_single_steps(self) -> bool:
        """Nobody's missed step is told apart."""
        return False


class _Outside:
    """What happens to an engine from outside: transfers end, clients give up, somebody looks in.

    How long a transfer takes and who gives up depends on the request only, not on the run.
    """

    def __init__(self, engine: Engine, notes: _Notes, looks_ms: list[float], seed: int) -> None:
        self._engine = engine
        self._notes = notes
        self._seed = seed
        self._due: list[tuple[float, int, str, Sequence | None]] = []
        self._given_up: set[Sequence] = set()  # and not known to be held
        for look_ms in looks_ms:
            self._add(look_ms, "look", None)

    @property
    def next_ms(self) -> float:
        return self._due[0][0] if self._due else NEVER

    def arrived(self, sequence: Sequence) -> None:
        """A request has come; its client may give up."""
        draw = random.Random(f"{self._seed}/{sequence.index}/client")
        if draw.random() < 0.2:
            self._add(sequence.arrival_ms + draw.uniform(0, 150), "give up", sequence)

    def look(self, finished: List[Sequence], now_ms: float) -> None:
        """See what the engine has started, and who has failed."""
        engine, notes = self._engine, self._notes
        for sequence, start_ms in engine.started_loads:
            notes.loads.append((sequence.index, start_ms))
            self._add(start_ms + self._delay_ms(sequence), "load", sequence)
        engine.started_loads.clear()
        notes.others += [(("failed", sequence.index), now_ms) for sequence in engine.failed]
        engine.failed.clear()
        for sequence in (*finished, *self._given_up):
            if engine.core.holds(sequence):
                self._given_up.discard(sequence)
                self._add(now_ms + self._delay_ms(sequence), "sending", sequence)

    def happen(self, now_ms: float) -> None:
        """What is due next."""
        _, _, what, sequence = heappop(self._due)
        if sequence is None:
            self._notes.progress.append(dict(self._engine.progress(now_ms)))
        elif what == "load":
            draw = random.Random(f"{self._seed}/{sequence.index}/load")
            self._engine.loaded(sequence, now_ms, valid_tokens(draw, sequence))
        elif what == "sending":
            self._engine.sent(sequence, now_ms)
        elif sequence.state != FINISHED:
            self._given_up.add(sequence)
            self._engine.give_up(sequence, now_ms)

    def _add(self, due_ms: float, what: str, sequence: Sequence | None) -> None:
        index = -1 if sequence is None else sequence.index
        heappush(self._due, (due_ms, index, what, sequence))

    def _delay_ms(self, sequence: Sequence) -> float:
        draw = random.Random(f"{self._seed}/{sequence.index}/delay")
        return draw.choice([0.0, draw.uniform(0, 20), draw.uniform(0, 200)])


def _serve(
    make_core: MakeCore,
    spec: EngineSpec,
    arrivals: list[Callable[[], Sequence]],
    looks_ms: list[float],
    seed: int,
    *,
    steps_singly: bool,
) -> _Notes:
    """Serve all requests, while things happen from outside.

    At the end of a step these come first, then the step's end, then arrivals.
    """
    notes = _Notes()
    core = make_core(spec, [1] * NUM_EXTENTS, spec.enable_prefix_caching)
    engine = Engine(
        core,
        TIMES,
        notes,
        depth=spec.pipeline_depth,
        steps_singly=steps_singly,
        stamps_events=True,
    )
    outside = _Outside(engine, notes, looks_ms, seed)
    coming = deque(make() for make in arrivals)
    while coming or outside.next_ms < NEVER or engine.next_ms < NEVER:
        finished: List[Sequence] = ()
        came_ms = coming[0].arrival_ms if coming else NEVER
        now_ms = min(engine.next_ms, came_ms)
        if outside.next_ms <= instant_end(now_ms):
            now_ms = outside.next_ms
            outside.happen(now_ms)
        elif now_ms == engine.next_ms:
            finished = engine.complete(now_ms)
            notes.events += engine.take_stamped()
            engine.start(now_ms)
        else:
            outside.arrived(coming[0])
            engine.add(coming.popleft(), now_ms)
        if engine.next_ms == NEVER:
            engine.start(now_ms)
        outside.look(finished, now_ms)
    assert engine.is_done
    notes.num_preemptions = core.num_preemptions
    return notes
