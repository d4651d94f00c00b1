"""The configuration that a recording means, served by the twin: once, and by draws.

It is a run file's own path (`dynosim run`), with a run file's own defaults, so that what is
verified is what everyone uses.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dynosim.build.engine import Prepared, prepare
from dynosim.config.loading import run_config_from_dict
from dynosim.config.schema import RunConfig
from dynosim.errors import ConfigError, InfeasibleError
from dynosim.experiment.run import RunOutcome, run
from dynosim.fit.measurements import Clock
from dynosim.records import Trace
from dynosim.timing.scaled import ScaledModel
from dynosim.verify.believed import Draw, believed_draws
from dynosim.verify.verdict import Figure

Statistics = Callable[[RunOutcome], Mapping[str, float]]
"""The figures that a recording has, of a run."""

_TAIL_PERCENT = 2.5


@dataclass(frozen=True, slots=True)
class Twin:
    """A configuration ready to run."""

    config: RunConfig
    prepared: Prepared
    notes: tuple[str, ...]


def blind_twin(data: dict[str, Any], clock: Clock, *, source: str) -> Twin:
    """The twin of a run file without its `timing`: tables, else the roofline, which is noted.

    `source` names the recording in messages.

    Raises: ConfigError if model or hardware is unknown to both; InfeasibleError.
    """
    problem: ConfigError | None = None
    for kind in ("aiconfigurator", "roofline"):
        timing = {"kind": kind, **_outside(clock)}
        config = run_config_from_dict({**data, "timing": timing}, source)
        try:
            config, prepared, notes = _prepared(config)
        except InfeasibleError:
            raise
        except ConfigError as error:
            problem = problem or error
            continue
        if problem is not None:
            notes = (f"roofline instead of tables: {problem}", *notes)
        return Twin(config, prepared, (*notes, *prepared.timing.notes))
    assert problem is not None
    raise problem


def _prepared(config: RunConfig) -> tuple[RunConfig, Prepared, tuple[str, ...]]:
    """Ready to run. An engine that did run had a context that its cache holds, stated or not."""
    prepared = prepare(config)
    spec = prepared.engine
    if config.engine.max_model_len is not None or spec.max_model_len <= spec.capacity_tokens:
        return config, prepared, ()
    note = (
        f"max_model_len is not recorded: what the cache holds ({spec.capacity_tokens:,} tokens),"
        f" which is less than the model's {spec.max_model_len:,}"
    )
    engine = config.engine.model_copy(update={"max_model_len": spec.capacity_tokens})
    config = config.model_copy(update={"engine": engine})
    return config, prepare(config), (note,)


def _outside(clock: Clock) -> dict[str, float]:
    """An engine's clock starts where its scheduler takes a request, past the client's way."""
    from dynosim.config.timing import AiconfiguratorTiming

    has_path = "ingress_ms" in AiconfiguratorTiming.model_fields
    return {"ingress_ms": 0.0, "egress_ms": 0.0} if clock == "engine" and has_path else {}


def serve(
    twin: Twin,
    statistics: Statistics,
    measured: Mapping[str, float],
    *,
    trace: Trace | None,
    replays: int,
    seed: int,
    moved: Callable[[Trace, np.random.Generator], Trace] | None = None,
) -> tuple[RunOutcome, tuple[Figure, ...], tuple[str, ...]]:
    """The run, its figures beside the measured ones, and what its intervals vary.

    A recorded `trace` is served with `moved` arrivals in every draw; without one the
    configuration's workload is drawn anew.
    """
    outcome = run(twin.config, trace=trace, prepared=twin.prepared)
    predicted = statistics(outcome)
    varied, draws = believed_draws(twin.config, twin.prepared, count=replays, seed=seed)
    samples = list(_samples(twin, draws, statistics, trace, moved, seed))
    figures = tuple(
        Figure(name, value, predicted[name], *_bounds([one[name] for one in samples]))
        for name, value in measured.items()
        if name in predicted
    )
    return outcome, figures, varied if replays else ()


def _samples(
    twin: Twin,
    draws: Iterable[Draw],
    statistics: Statistics,
    trace: Trace | None,
    moved: Callable[[Trace, np.random.Generator], Trace] | None,
    seed: int,
) -> Iterable[Mapping[str, float]]:
    rng = np.random.default_rng(seed)
    for draw in draws:
        is_same = draw.config.model_copy(update={"seed": twin.config.seed}) == twin.config
        prepared = twin.prepared if is_same else prepare(draw.config)
        timing = ScaledModel(prepared.timing, draw.step_time_factor)
        served = moved(trace, rng) if trace is not None and moved is not None else trace
        timed = replace(prepared, timing=timing)
        yield statistics(run(draw.config, trace=served, prepared=timed))


def _bounds(values: list[float]) -> tuple[float | None, float | None]:
    """Where 95 % of the replays lie; nothing of less than two."""
    known = [value for value in values if np.isfinite(value)]
    if len(known) < 2:
        return None, None
    low, high = np.percentile(known, [_TAIL_PERCENT, 100 - _TAIL_PERCENT])
    return float(low), float(high)
