"""Measures the steps of a live engine from outside, through its OpenAI server.

Prompts take part in no one else's prefix. A step that decodes n sequences shows as the gap between
two tokens while all n streams decode; a step that also computes a prompt as the gap of those
streams in which the newcomer's first token came; a prompt alone as its time to the first token,
which holds the way in and out too. The engine must be idle otherwise.

All points are measured round after round, not one to the end before the next: what disturbs the
machine for a while then spoils a few samples of many points, which medians bear, instead of all
samples of a few.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynosim.fit.point_gaps import newcomer_gaps, roundest, steady_gaps
from dynosim.fit.points import Point, Series, Shape
from dynosim.records import IntArray
from dynosim_runtime.errors import LiveError
from dynosim_runtime.measure.client import CompletionsClient, LoadClock, TimedAnswer
from dynosim_runtime.measure.counters import EngineCounters, read_counters
from dynosim_runtime.measure.prompts import PromptMaker

PREFIX_ALIGNMENT = 1024
"""Cached prefixes are multiples of it where the engine does not tell its block size."""

IDLE_PATIENCE_S = 5.0
SETTLE_STEPS = 2  # after the last first token, before gaps count
MIXED_CONTEXT = 32  # prompts of the sequences that newcomers join
STEPS_PER_NEWCOMER = 12  # while one is sent, computed and answered, the others decode so many
MIN_ROUNDS = 2
MIN_SAMPLES = 3
MAX_SPREAD = 1.0
ONE_STEP_SHARE = 0.75  # a step that takes less of a prompt's time has not computed all of it
BUDGET_PRECISION = 16  # 1 / this: how narrowly the token budget is searched for
_NONSENSE = "the engine's answers make no sense as measurements"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementPlan:
    """Which points to measure, and how often."""

    prompt_lengths: Sequence[int] = (16, 32, 64, 128, 256, 512, 1024, 1536, 2000)
    cached: Sequence[tuple[int, int]] = ((1024, 64), (1024, 512), (2048, 64), (2048, 512))
    batch_sizes: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
    contexts: Sequence[int] = (32, 512, 1536)
    mixed_prompts: Sequence[int] = (16, 128, 512, 1024)
    mixed_batches: Sequence[int] = (1, 4, 16)
    rounds: int = 4
    prompts_per_round: int = 2
    newcomers_per_round: int = 3
    steady_steps: int = 16
    max_context: int = 1 << 30  # prompt and answer together
    max_point_s: float = 10.0  # points whose prompts would take longer are left out
    budget_s: float = 420.0  # no further round is begun that would end later


@dataclass(slots=True)
class StepMeasurements:
    """The points, and what is worth knowing about how they came about."""

    points: list[Point] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    engine: dict[str, str] = field(default_factory=dict)  # what the engine says of its cache
    num_rounds: int = 0


Progress = Callable[[str], None]


class Measurer:
    """Takes the measurements of one plan."""

    def __init__(
        self,
        client: CompletionsClient,
        prompts: PromptMaker,
        plan: MeasurementPlan,
        progress: Progress | None = None,
    ) -> None:
        self._client = client
        self._prompts = prompts
        self._plan = plan
        self._progress = progress
        self._clock = LoadClock()
        self._num_prompts = 0
        self._counters: EngineCounters | None = None
        self._prompt_token_ms = 0.0
        self._series: dict[Shape, Series] = {}
        self._budget_tokens: int | None = None  # of a step; None: no prompt of the plan exceeds it
        self._largest_batch: int | None = None  # that decodes side by side; None: not met
        self._left_out: dict[str, None] = {}  # notes, in order, each once

    async def measure(self) -> StepMeasurements:
        """All points of the plan that the engine has room and time for.

        Raises: LiveError if it does not serve, serves others too, or answers nonsense.
        """
        await self._client.probe(self._scratch(8))
        self._counters = await read_counters(self._client)
        await self._warm_up()
        self._budget_tokens = await self._find_budget()
        prefixes = await self._cache_prefixes()
        started_s = time.monotonic()
        num_rounds = 0
        while num_rounds < self._plan.rounds:
            await self._measure_round(prefixes)
            num_rounds += 1
            taken_s = time.monotonic() - started_s
            if self._progress is not None:
                self._progress(f"round {num_rounds} of {self._plan.rounds}, {taken_s:.0f} s")
            is_late = taken_s * (num_rounds + 1) / num_rounds > self._plan.budget_s
            if num_rounds >= MIN_ROUNDS and is_late:
                break
        return self._result(num_rounds)

    async def _measure_round(self, prefixes: list[IntArray]) -> None:
        await self._measure_prompts()
        await self._measure_cached_prompts(prefixes)
        await self._check_alone()
        await self._measure_decodes()
        await self._check_alone()
        await self._measure_mixed()
        await self._check_alone()

    def _result(self, num_rounds: int) -> StepMeasurements:
        points = []
        for shape, series in self._series.items():
            if len(series.samples_ms) < MIN_SAMPLES:
                self._leave_out(f"{shape.label()}: seen too rarely")
            else:
                points.append(series.point(shape))
        points = self._with_gaps(points)
        self._check_sense(points)
        noisy = [point.label() for point in points if point.spread > MAX_SPREAD]
        if len(noisy) > len(points) / 2:
            raise LiveError(
                f"{self._client.url}: {_NONSENSE}: most of them vary by more than their median; "
                "is the machine busy with something else?"
            )
        notes = [f"left out: {note}" for note in self._left_out]
        if noisy:
            notes.append(f"vary by more than their median: {'; '.join(noisy)}")
        engine = {} if self._counters is None else dict(self._counters.cache_config)
        if self._budget_tokens is not None:
            engine["max_num_batched_tokens"] = str(self._budget_tokens)
        return StepMeasurements(points, notes, engine, num_rounds)

    def _with_gaps(self, points: Sequence[Point]) -> list[Point]:
        """Those that took any time. What lies between may deliver a few tokens together.

        Raises: LiveError if tokens come all at once.
        """
        gaps = [point for point in points if point.num_decodes]
        if sum(point.measured_ms > 0 for point in gaps) < len(gaps) / 2:
            raise LiveError(f"{self._client.url}: {_NONSENSE}: tokens come all at once")
        for point in points:
            if point.measured_ms <= 0:
                self._leave_out(f"{point.label()}: its tokens come together with others")
        return [point for point in points if point.measured_ms > 0]

    def _check_sense(self, points: Sequence[Point]) -> None:
        """Raises: LiveError if long prompts take less than short ones."""
        prompts = [point for point in points if point.kind == "prefill"]
        first, last = prompts[0], prompts[-1]
        if last.prefill_tokens > 4 * first.prefill_tokens and last.measured_ms < first.measured_ms:
            raise LiveError(
                f"{self._client.url}: {_NONSENSE}: {last.prefill_tokens} prompt tokens take less "
                f"time than {first.prefill_tokens}; is it a real engine?"
            )

    def _scratch(self, length: int) -> IntArray:
        self._num_prompts += 1
        return self._prompts.scratch(self._num_prompts, length)

    def _leave_out(self, what: str) -> None:
        self._left_out[what] = None

    def _note(self, shape: Shape, samples_ms: Sequence[float], context_tokens: float = 0) -> None:
        series = self._series.setdefault(shape, Series())
        series.samples_ms.extend(samples_ms)
        series.context_tokens.append(context_tokens)

    async def _ask(
        self,
        prompt: IntArray,
        output_tokens: int,
        on_first_token: Callable[[], None] | None = None,
    ) -> TimedAnswer:
        answer = await self._client.complete(
            prompt, output_tokens, self._clock, on_first_token=on_first_token
        )
        if answer.error is not None:
            raise LiveError(
                f"{self._client.url}: {_NONSENSE}: a request of {len(prompt)} + {output_tokens} "
                f"tokens: {answer.error}"
            )
        return answer

    async def _ttft_ms(self, prompt: IntArray) -> float:
        answer = await self._ask(prompt, 1)
        return answer.token_ms[0] - answer.sent_ms

    async def _warm_up(self) -> None:
        """Let the engine allocate, compile and cache what it does on first use."""
        sizes = [size for size in (256, 1024) if size <= self._plan.max_context // 2]
        await asyncio.gather(*(self._ask(self._scratch(size), 16) for size in sizes * 2))
        # How long prompts take in the rough, to leave out what would take too long.
        length = max(n for n in self._plan.prompt_lengths if n < self._plan.max_context)
        self._prompt_token_ms = await self._ttft_ms(self._scratch(length)) / length

    async def _find_budget(self) -> int | None:
        """How many tokens the engine computes in a step; None if all of the plan's prompts fit.

        A longer prompt is computed in pieces: next to a sequence that decodes, the step that brings
        its first token then takes only a part of the time that the prompt takes alone.
        """
        fits, too_long = 0, None
        for length in [*sorted(self._plan.mixed_prompts), max(self._plan.prompt_lengths)]:
            if length + MIXED_CONTEXT >= self._plan.max_context:
                break
            if not await self._is_one_step(length):
                too_long = length
                break
            fits = length
        # Where not even the shortest holds up the others, prompts are computed elsewhere, or the
        # machine is busy with something else: nothing is told.
        if too_long is None or not fits:
            return None
        while too_long - fits > max(1, too_long // BUDGET_PRECISION):
            middle = (fits + too_long) // 2
            if await self._is_one_step(middle):
                fits = middle
            else:
                too_long = middle
        return roundest(fits + 1, too_long)

    async def _is_one_step(self, length: int) -> bool:
        alone_ms = np.median([await self._ttft_ms(self._scratch(length)) for _ in range(3)])
        shape = Shape("mixed", prefill_tokens=length, num_decodes=1, prompt_tokens=MIXED_CONTEXT)
        samples_ms, _ = await self._newcomer_steps(shape)
        return not samples_ms or float(np.median(samples_ms)) > ONE_STEP_SHARE * float(alone_ms)

    def _lengths(self, planned: Sequence[int], num_decodes: int = 0) -> list[int]:
        """Those prompt lengths that one step computes beside some decodes, and the longest."""
        budget = self._budget_tokens
        if budget is None:
            return list(planned)
        room = budget - num_decodes
        return [*(length for length in planned if length < room), room] if room > 0 else []

    async def _measure_prompts(self) -> None:
        for length in self._lengths(self._plan.prompt_lengths):
            if length < self._plan.max_context:
                shape = Shape("prefill", prefill_tokens=length)
                for _ in range(self._plan.prompts_per_round):
                    self._note(shape, [await self._ttft_ms(self._scratch(length))])

    async def _cache_prefixes(self) -> list[IntArray]:
        """The prefixes of the plan that the engine keeps; empty if it does not cache any."""
        counters = self._counters
        if counters is not None and counters.cache_config.get("enable_prefix_caching") == "False":
            self._leave_out("prompts with a cached prefix: prefix caching is off")
            return []
        alignment = self._block_size()
        room = self._plan.max_context - max((n for _, n in self._plan.cached), default=0)
        lengths = sorted({n // alignment * alignment for n, _ in self._plan.cached})
        prefixes = [self._scratch(n) for n in lengths if 0 < n < room]
        for prefix in prefixes:
            await self._ask(prefix, 1)
            if not await self._is_cached(prefix):
                self._leave_out("prompts with a cached prefix: the engine does not find it")
                return []
        return prefixes

    async def _is_cached(self, prefix: IntArray) -> bool:
        """Whether the engine finds the prefix: by its counters, else by its time."""
        before = await read_counters(self._client)
        prompt = np.concatenate([prefix, self._scratch(16)])
        ttft_ms = await self._ttft_ms(prompt)
        after = await read_counters(self._client)
        if before is None or after is None:
            return ttft_ms < len(prompt) * self._prompt_token_ms / 2
        rate = after.hit_rate_since(before)
        return rate is not None and abs(rate - len(prefix) / len(prompt)) < 1e-6

    async def _measure_cached_prompts(self, prefixes: list[IntArray]) -> None:
        alignment = self._block_size()
        by_length = {len(prefix): prefix for prefix in prefixes}
        for wanted, length in self._plan.cached:
            prefix = by_length.get(wanted // alignment * alignment)
            if prefix is None or length > (self._budget_tokens or length):
                continue
            await self._ask(prefix, 1)  # other points' prompts may have pushed it out
            shape = Shape("cached prefill", prefill_tokens=length, prefix_tokens=len(prefix))
            for _ in range(self._plan.prompts_per_round):
                prompt = np.concatenate([prefix, self._scratch(length)])
                self._note(shape, [await self._ttft_ms(prompt)])

    async def _measure_decodes(self) -> None:
        for context in self._plan.contexts:
            for batch in self._plan.batch_sizes:
                if batch > (self._largest_batch or batch):
                    continue
                shape = Shape("decode", num_decodes=batch, prompt_tokens=context)
                output_tokens = self._plan.steady_steps + batch + SETTLE_STEPS + 2
                prompts_s = batch * context * self._prompt_token_ms / 1e3
                if context + output_tokens >= self._plan.max_context:
                    self._leave_out(f"{shape.label()}: longer than the server allows")
                elif prompts_s > self._plan.max_point_s:
                    self._leave_out(f"{shape.label()}: their prompts would take {prompts_s:.0f} s")
                else:
                    await self._measure_decode(shape, output_tokens)

    async def _measure_decode(self, shape: Shape, output_tokens: int) -> None:
        batch, context = shape.num_decodes, shape.prompt_tokens
        prompts = [self._scratch(context) for _ in range(batch)]
        answers = await asyncio.gather(*(self._ask(prompt, output_tokens) for prompt in prompts))
        gaps_ms, position = steady_gaps([a.token_ms for a in answers], SETTLE_STEPS)
        if len(gaps_ms):
            self._note(shape, gaps_ms.tolist(), batch * (context + position))
        elif context == min(self._plan.contexts):
            self._leave_out(f"batches of {batch} and more: the engine does not decode so many")
            self._largest_batch = max((b for b in self._plan.batch_sizes if b < batch), default=1)

    async def _measure_mixed(self) -> None:
        for batch in self._plan.mixed_batches:
            # In a full batch a newcomer would have to wait.
            if batch >= (self._largest_batch or batch + 1):
                continue
            for length in self._lengths(self._plan.mixed_prompts, batch):
                if max(length, MIXED_CONTEXT + self._stream_tokens(batch)) < self._plan.max_context:
                    shape = Shape(
                        "mixed",
                        prefill_tokens=length,
                        num_decodes=batch,
                        prompt_tokens=MIXED_CONTEXT,
                    )
                    samples_ms, position = await self._newcomer_steps(shape)
                    if samples_ms:
                        self._note(shape, samples_ms, batch * (MIXED_CONTEXT + position))

    def _stream_tokens(self, batch: int) -> int:
        """Tokens of each sequence that newcomers join: enough to outlast them."""
        return batch + STEPS_PER_NEWCOMER * self._plan.newcomers_per_round

    async def _newcomer_steps(self, shape: Shape) -> tuple[list[float], float]:
        """Newcomers, one after the other, to a batch that decodes: times of the steps that bring
        their first tokens, and how many tokens the others had then, in the mean."""
        output_tokens = self._stream_tokens(shape.num_decodes)
        begun = asyncio.Semaphore(0)
        streams = [
            asyncio.create_task(
                self._ask(self._scratch(shape.prompt_tokens), output_tokens, begun.release)
            )
            for _ in range(shape.num_decodes)
        ]
        try:
            first_ms = await self._newcomers(shape.prefill_tokens, streams, begun)
            answers = await asyncio.gather(*streams)
        finally:
            for stream in streams:
                stream.cancel()
        samples_ms, positions = newcomer_gaps([a.token_ms for a in answers], first_ms)
        return samples_ms, float(np.mean(positions)) if positions else 0.0

    async def _newcomers(
        self, length: int, streams: "list[asyncio.Task[TimedAnswer]]", begun: asyncio.Semaphore
    ) -> list[float]:
        """When each newcomer's first token came; they come once all streams have begun."""
        waiting = asyncio.create_task(_acquire(begun, len(streams)))
        pending: list[asyncio.Task[Any]] = [waiting, *streams]
        await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        first_ms: list[float] = []
        while len(first_ms) < self._plan.newcomers_per_round:
            if any(stream.done() for stream in streams):
                break
            answer = await self._ask(self._scratch(length), 1)
            first_ms.append(answer.token_ms[0])
        return first_ms

    def _block_size(self) -> int:
        counters = self._counters
        size = "" if counters is None else counters.cache_config.get("block_size", "")
        return int(size) if size.isdigit() and int(size) > 0 else PREFIX_ALIGNMENT

    async def _check_alone(self) -> None:
        """Raises: LiveError if the engine serves someone else too."""
        if self._counters is None:
            return
        deadline_s = time.monotonic() + IDLE_PATIENCE_S
        while time.monotonic() < deadline_s:
            counters = await read_counters(self._client)
            if counters is None or counters.num_requests == 0:
                return
            await asyncio.sleep(0.1)
        raise LiveError(
            f"{self._client.url}: the engine serves other requests too; measure it while nobody "
            "else uses it"
        )


async def _acquire(semaphore: asyncio.Semaphore, times: int) -> None:
    for _ in range(times):
        await semaphore.acquire()
