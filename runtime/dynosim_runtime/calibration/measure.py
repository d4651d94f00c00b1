"""Measures the steps of a live engine from outside, through its OpenAI server.

Prompts take part in no one else's prefix. A step that decodes n sequences shows as the gap between
two tokens while all n streams decode; a step that also computes a prompt as the gap of those
streams in which the newcomer's first token came; a prompt alone as its time to the first token,
which holds the way in and out too. The engine must be idle otherwise.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dynosim.records import FloatArray, IntArray
from dynosim_runtime.calibration.points import Kind, Point
from dynosim_runtime.errors import LiveError
from dynosim_runtime.loadgen.client import Answer, Clock, CompletionsClient
from dynosim_runtime.loadgen.counters import EngineCounters, read_counters
from dynosim_runtime.loadgen.prompts import PromptMaker

PREFIX_ALIGNMENT = 1024
"""Cached prefixes are multiples of it where the engine does not tell its block size."""

IDLE_PATIENCE_S = 5.0
SETTLE_STEPS = 2  # after the last first token, before gaps count
MIXED_CONTEXT = 32  # prompts of the sequences that newcomers join
STEPS_PER_NEWCOMER = 12  # while one is sent, computed and answered, the others decode so many
MAX_SPREAD = 1.0
_RETURN = "the engine's answers make no sense as measurements"


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasurementPlan:
    """Which points to measure, and how often."""

    prompt_lengths: Sequence[int] = (16, 32, 64, 128, 256, 512, 1024, 1536, 2000)
    cached: Sequence[tuple[int, int]] = ((1024, 64), (1024, 512), (2048, 64), (2048, 512))
    batch_sizes: Sequence[int] = (1, 2, 4, 8, 16, 32, 64)
    contexts: Sequence[int] = (32, 512, 1536)
    mixed_prompts: Sequence[int] = (16, 128, 512, 1024)
    mixed_batches: Sequence[int] = (1, 4, 16)
    repeats: int = 7
    steady_steps: int = 24
    max_context: int = 1 << 30  # prompt and answer together
    max_point_s: float = 20.0  # points whose prompts would take longer are left out


@dataclass(slots=True)
class Measurements:
    """The points, and what is worth knowing about how they came about."""

    points: list[Point] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    engine: dict[str, str] = field(default_factory=dict)  # what the engine says of its cache


Progress = Callable[[Point], None]


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
        self._clock = Clock()
        self._num_prompts = 0
        self._counters: EngineCounters | None = None
        self._prompt_token_ms = 0.0
        self._taken = Measurements()

    async def measure(self) -> Measurements:
        """All points of the plan that the engine has room and time for.

        Raises: LiveError if it does not serve, is not alone ours, or answers nonsense.
        """
        await self._client.probe(self._scratch(8))
        self._counters = await read_counters(self._client)
        if self._counters is not None:
            self._taken.engine = self._counters.cache_config
        await self._warm_up()
        await self._measure_prompts()
        await self._measure_cached_prompts()
        await self._measure_decodes()
        await self._measure_mixed()
        self._check_spread()
        return self._taken

    def _scratch(self, length: int) -> IntArray:
        self._num_prompts += 1
        return self._prompts.scratch(self._num_prompts, length)

    async def _ask(
        self,
        prompt: IntArray,
        output_tokens: int,
        on_first_token: Callable[[], None] | None = None,
    ) -> Answer:
        answer = await self._client.complete(
            prompt, output_tokens, self._clock, on_first_token=on_first_token
        )
        if answer.error is not None:
            raise LiveError(
                f"{self._client.url}: {_RETURN}: a request of {len(prompt)} + {output_tokens} "
                f"tokens: {answer.error}"
            )
        return answer

    async def _warm_up(self) -> None:
        """Let the engine allocate, compile and cache what it does on first use."""
        sizes = [size for size in (256, 1024) if size <= self._plan.max_context // 2]
        await asyncio.gather(*(self._ask(self._scratch(size), 16) for size in sizes * 2))

    async def _measure_prompts(self) -> None:
        lengths = [n for n in self._plan.prompt_lengths if n < self._plan.max_context]
        for length in lengths:
            samples = [await self._ttft_ms(self._scratch(length)) for _ in self._rounds()]
            await self._check_alone()
            self._add("prefill", samples, num_prefills=1, prefill_tokens=length, outside=True)
        first, last = self._taken.points[0], self._taken.points[-1]
        if last.measured_ms < first.measured_ms and last.prefill_tokens > 4 * first.prefill_tokens:
            raise LiveError(
                f"{self._client.url}: {_RETURN}: {last.prefill_tokens} prompt tokens take less "
                f"time than {first.prefill_tokens}; is it a real engine?"
            )
        self._prompt_token_ms = last.measured_ms / last.prefill_tokens

    async def _measure_cached_prompts(self) -> None:
        counters = self._counters
        if counters is not None and counters.cache_config.get("enable_prefix_caching") == "False":
            self._taken.notes.append("prefix caching is off: no cached prompts measured")
            return
        alignment = self._block_size()
        for prefix_length, length in self._plan.cached:
            prefix_length = prefix_length // alignment * alignment
            if prefix_length + length >= self._plan.max_context or prefix_length == 0:
                continue
            prefix = self._scratch(prefix_length)
            await self._ask(prefix, 1)
            before = await read_counters(self._client)
            samples = []
            for _ in self._rounds():
                samples.append(await self._ttft_ms(np.concatenate([prefix, self._scratch(length)])))
            if not await self._was_cached(before, prefix_length, length, len(samples)):
                self._taken.notes.append(
                    f"a prefix of {prefix_length} tokens was not found in the cache: left out"
                )
                return
            self._add("cached prefill", samples, num_prefills=1, prefill_tokens=length,
                      prefix_tokens=prefix_length, outside=True)  # fmt: skip

    async def _was_cached(
        self, before: EngineCounters | None, prefix: int, length: int, num_samples: int
    ) -> bool:
        """Whether the engine found the prefix; without counters its answer's time must do."""
        if before is None:
            return True
        after = await read_counters(self._client)
        rate = after.hit_rate_since(before) if after is not None else None
        expected = prefix / (prefix + length)
        return rate is not None and abs(rate - expected) < 0.02

    async def _measure_decodes(self) -> None:
        for context in self._plan.contexts:
            for batch in self._plan.batch_sizes:
                prompts_s = batch * context * self._prompt_token_ms / 1e3
                output_tokens = self._plan.steady_steps + batch + 4
                if context + output_tokens >= self._plan.max_context:
                    continue
                if prompts_s > self._plan.max_point_s:
                    self._taken.notes.append(
                        f"{batch} sequences of {context} tokens: left out, their prompts would "
                        f"take {prompts_s:.0f} s"
                    )
                    break
                await self._measure_decode(batch, context, output_tokens)

    async def _measure_decode(self, batch: int, context: int, output_tokens: int) -> None:
        gaps, contexts = [], []
        rounds = 1 if batch >= 8 else 2
        for _ in range(rounds):
            answers = await asyncio.gather(
                *(self._ask(self._scratch(context), output_tokens) for _ in range(batch))
            )
            round_gaps, position = steady_gaps(answers, SETTLE_STEPS)
            if len(round_gaps) < 4 * batch:
                self._taken.notes.append(
                    f"{batch} sequences of {context} tokens: left out, they hardly overlap"
                )
                return
            gaps.append(round_gaps)
            contexts.append(context + position)
        await self._check_alone()
        self._add("decode", np.concatenate(gaps), num_decodes=batch,
                  context_tokens=round(batch * float(np.mean(contexts))))  # fmt: skip

    async def _measure_mixed(self) -> None:
        for batch in self._plan.mixed_batches:
            for length in self._plan.mixed_prompts:
                if length < self._plan.max_context:
                    await self._measure_mixed_point(batch, length)

    async def _measure_mixed_point(self, batch: int, length: int) -> None:
        """Newcomers, one after the other, to a batch that decodes."""
        context = MIXED_CONTEXT
        output_tokens = batch + STEPS_PER_NEWCOMER * self._plan.repeats
        if context + output_tokens >= self._plan.max_context:
            return
        begun = asyncio.Semaphore(0)
        streams = [
            asyncio.create_task(
                self._ask(self._scratch(context), output_tokens, on_first_token=begun.release)
            )
            for _ in range(batch)
        ]
        try:
            first_ms = await self._newcomers(length, streams, begun)
            answers = await asyncio.gather(*streams)
        finally:
            for stream in streams:
                stream.cancel()
        samples, positions = newcomer_gaps(answers, first_ms)
        if len(samples) < 3:
            self._taken.notes.append(
                f"{length} prompt tokens beside {batch} sequences: left out, seen too rarely"
            )
            return
        await self._check_alone()
        self._add("mixed", samples, num_prefills=1, prefill_tokens=length, num_decodes=batch,
                  context_tokens=round(batch * (context + float(np.mean(positions)))))  # fmt: skip

    async def _newcomers(
        self, length: int, streams: "list[asyncio.Task[Answer]]", begun: asyncio.Semaphore
    ) -> list[float]:
        """When each newcomer's first token came; they come once all streams have begun."""
        waiting = asyncio.create_task(_acquire(begun, len(streams)))
        pending: list[asyncio.Task[Any]] = [waiting, *streams]
        await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        first_ms: list[float] = []
        while len(first_ms) < self._plan.repeats and not any(s.done() for s in streams):
            answer = await self._ask(self._scratch(length), 1)
            first_ms.append(answer.token_ms[0])
        return first_ms

    async def _ttft_ms(self, prompt: IntArray) -> float:
        answer = await self._ask(prompt, 1)
        return answer.token_ms[0] - answer.sent_ms

    def _rounds(self) -> range:
        return range(self._plan.repeats)

    def _block_size(self) -> int:
        counters = self._counters
        size = "" if counters is None else counters.cache_config.get("block_size", "")
        return int(size) if size.isdigit() and int(size) > 0 else PREFIX_ALIGNMENT

    async def _check_alone(self) -> None:
        """Raises: LiveError if the engine serves someone else too."""
        if self._counters is None:
            return
        deadline_ms = self._clock.now_ms() + IDLE_PATIENCE_S * 1e3
        while self._clock.now_ms() < deadline_ms:
            counters = await read_counters(self._client)
            if counters is None or counters.num_requests == 0:
                return
            await asyncio.sleep(0.1)
        raise LiveError(
            f"{self._client.url}: the engine serves other requests too; measure it while nobody "
            "else uses it"
        )

    def _add(
        self,
        kind: Kind,
        samples: Sequence[float] | FloatArray,
        *,
        outside: bool = False,
        num_prefills: int = 0,
        prefill_tokens: int = 0,
        prefix_tokens: int = 0,
        num_decodes: int = 0,
        context_tokens: int = 0,
    ) -> None:
        low, middle, high = np.percentile(np.asarray(samples), [25, 50, 75]).tolist()
        if middle <= 0:
            raise LiveError(f"{self._client.url}: {_RETURN}: tokens come all at once")
        point = Point(
            kind=kind,
            num_prefills=num_prefills,
            prefill_tokens=prefill_tokens,
            prefix_tokens=prefix_tokens,
            num_decodes=num_decodes,
            context_tokens=context_tokens,
            is_outside_included=outside,
            measured_ms=middle,
            spread=(high - low) / middle,
            num_samples=len(samples),
        )
        self._taken.points.append(point)
        if self._progress is not None:
            self._progress(point)

    def _check_spread(self) -> None:
        noisy = [point.label() for point in self._taken.points if point.spread > MAX_SPREAD]
        if len(noisy) > len(self._taken.points) / 2:
            raise LiveError(
                f"{self._client.url}: {_RETURN}: most of them vary by more than their median; is "
                "the machine busy with something else?"
            )
        if noisy:
            self._taken.notes.append(f"vary by more than their median: {'; '.join(noisy)}")


async def _acquire(semaphore: asyncio.Semaphore, times: int) -> None:
    for _ in range(times):
        await semaphore.acquire()


def steady_gaps(answers: Sequence[Answer], settle_steps: int) -> tuple[FloatArray, float]:
    """Gaps between tokens while all streams decode, and the mean token position in them.

    `settle_steps` gaps after the last stream has begun are left out, and the one in which the
    first ends.
    """
    begin_ms = max(answer.token_ms[0] for answer in answers)
    end_ms = min(answer.token_ms[-1] for answer in answers)
    gaps, positions = [], []
    for answer in answers:
        times = np.frombuffer(answer.token_ms, dtype=np.float64)
        first = int(np.searchsorted(times, begin_ms, side="right")) + settle_steps
        last = int(np.searchsorted(times, end_ms, side="left"))
        if last > first:
            gaps.append(np.diff(times[first:last]))
            positions.append((first + last) / 2)
    if not gaps:
        return np.zeros(0), 0.0
    return np.concatenate(gaps), float(np.mean(positions))


def newcomer_gaps(
    answers: Sequence[Answer], first_ms: Sequence[float]
) -> tuple[list[float], list[float]]:
    """Per newcomer: the median gap of the streams in which its first token came, and where.

    The first token and those of the streams leave the engine together, in any order: the gap is
    that which ends closest to it. Newcomers that came before all streams decode are left out.
    """
    begin_ms = max(answer.token_ms[0] for answer in answers)
    samples, positions = [], []
    for newcomer_ms in first_ms:
        gaps, places = [], []
        for answer in answers:
            times = np.frombuffer(answer.token_ms, dtype=np.float64)
            nearest = int(np.argmin(np.abs(times - newcomer_ms)))
            if nearest >= 1 and times[nearest - 1] >= begin_ms:
                gaps.append(float(times[nearest] - times[nearest - 1]))
                places.append(nearest)
        if len(gaps) == len(answers):
            samples.append(float(np.median(gaps)))
            positions.append(float(np.mean(places)))
    return samples, positions
