"""What the twin says of a recorded workload, on the clock that the log was measured on."""

from dataclasses import dataclass, fields, replace

import numpy as np

from dynosim.cluster import ClusterSpec, PoolSpec, simulate
from dynosim.engine.spec import EngineSpec
from dynosim.experiment.run import collector_paused
from dynosim.fit.measurements import Clock
from dynosim.records import FloatArray, RunResult, StepLog, Trace
from dynosim.router.knobs import RouterSpec
from dynosim.router.spec import RoutingSpec
from dynosim.timing.model import StepTimeModel


@dataclass(frozen=True, slots=True)
class Engines:
    """Equal engines behind one balancer, as data parallelism makes them.

    The balancer gives a request to the engine with the fewest in flight. vLLM's counts a waiting
    one four times, on numbers up to 100 ms old. Engines step each for itself; those of a model with
    experts wait for each other in reality, and all take the longest one's step.
    """

    engine: EngineSpec
    number: int = 1

    def scheduling(self, *, is_async: bool) -> "Engines":
        """The same with the one scheduling loop or the other."""
        return replace(self, engine=replace(self.engine, async_scheduling=is_async))

    def cluster(self, times: StepTimeModel) -> ClusterSpec:
        """Workers of the twin that stand for them."""
        pool = PoolSpec(engine=self.engine, times=times, workers=self.number)
        settings = RouterSpec(self.engine.block_size, mode="least-loaded")
        return ClusterSpec(pools=(pool,), routing=RoutingSpec(settings))


@dataclass(frozen=True, slots=True)
class Predicted:
    """Times of all requests of one replay, as `Measurements` has them."""

    ttft_ms: FloatArray
    decode_ms: FloatArray
    result: RunResult

    @property
    def latency_ms(self) -> FloatArray:
        """Start of the clock to last token."""
        return self.ttft_ms + self.decode_ms


def replay(
    trace: Trace,
    engines: Engines,
    timing: StepTimeModel,
    clock: Clock,
    *,
    arrival_ms: FloatArray | None = None,
) -> Predicted:
    """Serve `trace` with simulated engines; `arrival_ms` replaces its arrivals."""
    if arrival_ms is not None:
        trace = replace(trace, arrival_ms=arrival_ms)
    with collector_paused():
        result = simulate(trace, engines.cluster(timing))
    return predicted_of(result, timing, clock)


def predicted_of(result: RunResult, timing: StepTimeModel, clock: Clock) -> Predicted:
    """The times of a finished run, on the clock that a log was measured on."""
    log = result.requests
    start_ms = log.arrival_ms
    if clock == "engine":
        start_ms = taken_by_engines_ms(result, timing, log.arrival_ms + timing.ingress_ms)
    return Predicted(log.first_token_ms - start_ms, log.finish_ms - log.first_token_ms, result)


def steps_of(steps: StepLog, worker_id: int) -> StepLog:
    """The rows of one engine."""
    chosen = steps.worker_id == worker_id
    if chosen.all():
        return steps
    return replace(
        steps, **{column.name: getattr(steps, column.name)[chosen] for column in fields(steps)}
    )


def taken_by_engines_ms(
    result: RunResult, timing: StepTimeModel, visible_ms: FloatArray
) -> FloatArray:
    """`taken_ms` of requests that became visible to the engine that served them."""
    taken = visible_ms.copy()
    engines = result.requests.worker_id
    for engine in range(len(result.workers)):
        here = engines == engine
        taken[here] = taken_ms(steps_of(result.steps, engine), timing, visible_ms[here])
    return taken


def taken_ms(steps: StepLog, timing: StepTimeModel, visible_ms: FloatArray) -> FloatArray:
    """When one engine's scheduler takes requests that become visible at `visible_ms`.

    At once while idle, else at the end of the step that runs: an engine looks at its queue between
    steps.
    """
    starts_ms, ends_ms = step_times(steps, timing)
    if not len(ends_ms):
        return visible_ms
    index = np.minimum(np.searchsorted(ends_ms, visible_ms), len(ends_ms) - 1)
    is_busy = (starts_ms[index] < visible_ms) & (ends_ms[index] >= visible_ms)
    return np.where(is_busy, ends_ms[index], visible_ms)


def step_times(steps: StepLog, timing: StepTimeModel) -> tuple[FloatArray, FloatArray]:
    """Starts and ends of every single step of one worker, rows of many steps taken apart."""
    counts = steps.num_steps
    first = np.cumsum(counts) - counts  # of each row, among single steps
    row = np.repeat(np.arange(len(counts)), counts)
    offset = np.arange(len(row)) - first[row]
    decodes = steps.num_decodes[row]
    contexts = steps.decode_context_tokens[row] + offset * decodes
    is_run = counts[row] > 1
    durations = np.where(is_run, 0.0, steps.duration_ms[row])
    durations[is_run] = timing.decode_step_ms_array(
        decodes[is_run].astype(np.int64), contexts[is_run].astype(np.int64)
    )
    passed = np.cumsum(durations)
    before_row = passed[first] - durations[first]
    ends_ms = steps.start_ms[row] + passed - before_row[row]
    return ends_ms - durations, ends_ms
