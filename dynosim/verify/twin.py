"""The configuration that a recording means, served by the twin: once, and by draws.

It is a run file's own path (`dynosim run`), with a run file's own defaults, so that what is
verified is what everyone uses.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dynosim.build.engine import Prepared, prepare
from dynosim.build.timing import build_timing
from dynosim.config.loading import run_config_from_dict
from dynosim.config.schema import RunConfig
from dynosim.errors import ConfigError, InfeasibleError
from dynosim.experiment.run import RunOutcome, run
from dynosim.fit.measurements import Clock
from dynosim.records import Trace
from dynosim.silicon import Capacity, capacity_of_running
from dynosim.silicon.catalogue import model_entry
from dynosim.timing.architecture import context_length
from dynosim.verify.believed import Draw, believed_draws, drawn_timing
from dynosim.verify.verdict import JudgedFigure

Statistics = Callable[[RunOutcome], Mapping[str, float]]
"""The figures that a recording has, of a run."""

_TAIL_PERCENT = 2.5


@dataclass(frozen=True, slots=True)
class Twin:
    """A configuration ready to run."""

    config: RunConfig
    prepared: Prepared
    graph_sizes: tuple[int, ...] | None  # None: the engine's default
    notes: tuple[str, ...]


def blind_twin(
    data: dict[str, Any],
    clock: Clock,
    *,
    source: str,
    longest_tokens: int,
    graph_sizes: tuple[int, ...] | None = None,
) -> Twin:
    """The twin of a run file without its `timing`: tables, else the roofline, which is noted.

    `source` names the recording in messages; `longest_tokens` is its longest request, prompt and
    answer, which the engine had room for; `graph_sizes` are the batches that it has CUDA graphs
    of, where they are not the default.
    Raises: ConfigError if model or hardware is unknown to both; InfeasibleError.
    """
    path = {"ingress_ms": 0.0, "egress_ms": 0.0} if clock == "engine" else {}  # it begins behind
    problem: ConfigError | None = None
    for kind in ("aiconfigurator", "roofline"):
        timing = {"kind": kind, **path}
        config = run_config_from_dict({**data, "timing": timing}, source)
        config, capacity, notes = _with_room(config, longest_tokens)
        try:
            prepared = replace(_ready(config, graph_sizes), capacity=capacity)
        except InfeasibleError:
            raise
        except ConfigError as error:
            problem = problem or error
            continue
        if problem is not None:
            notes = (f"roofline instead of tables: {problem}", *notes)
        return Twin(config, prepared, graph_sizes, notes)
    assert problem is not None
    raise problem


def _ready(config: RunConfig, graph_sizes: tuple[int, ...] | None) -> Prepared:
    """What `prepare` makes, with step times of other CUDA graphs: no run file says them."""
    prepared = prepare(config)
    if graph_sizes is None:
        return prepared
    timing = build_timing(
        config.timing,
        model=config.model_source,
        hardware=config.hardware_source,
        engine=config.engine,
        num_gpu_blocks=prepared.engine.usable_blocks,
        graph_sizes=graph_sizes,
    )
    return replace(prepared, timing=timing)


def _with_room(
    config: RunConfig, longest_tokens: int
) -> tuple[RunConfig, Capacity, tuple[str, ...]]:
    """With its KV blocks as a number: an engine that ran had room for what it served.

    Its context, where it is not stated, is the model's, or what the cache holds if that is less.
    Raises: ConfigError.
    """
    model, hardware = config.model_source, config.hardware_source
    capacity = capacity_of_running(
        config.engine, model=model, hardware=hardware, longest_tokens=longest_tokens
    )
    notes: tuple[str, ...] = () if capacity.warning is None else (capacity.warning,)
    changes: dict[str, Any] = {"num_gpu_blocks": capacity.num_gpu_blocks}
    room = capacity.usable_blocks * config.engine.block_size
    length = None if model is None else context_length(model_entry(model).config)
    if config.engine.max_model_len is None and (length is None or length > room):
        changes["max_model_len"] = room
        notes += (
            f"max_model_len is not recorded: what the cache holds ({room:,} tokens) is taken",
        )
    engine = config.engine.model_copy(update=changes)
    return config.model_copy(update={"engine": engine}), capacity, notes


def serve(
    twin: Twin,
    statistics: Statistics,
    measured: Mapping[str, float],
    *,
    trace: Trace | None,
    replays: int,
    seed: int,
    moved: Callable[[Trace, np.random.Generator], Trace] | None = None,
) -> tuple[RunOutcome, tuple[JudgedFigure, ...], tuple[str, ...]]:
    """The run, its figures beside the measured ones, and what its intervals vary.

    A recorded `trace` is served with `moved` arrivals in every draw; without one the
    configuration's workload is drawn anew.
    """
    outcome = run(twin.config, trace=trace, prepared=twin.prepared)
    predicted = statistics(outcome)
    varied, draws = believed_draws(twin.config, twin.prepared, count=replays, seed=seed)
    samples = list(_samples(twin, draws, statistics, trace, moved, seed))
    figures = tuple(
        JudgedFigure(name, value, predicted[name], *_bounds([one[name] for one in samples]))
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
        prepared = twin.prepared if is_same else _ready(draw.config, twin.graph_sizes)
        served = moved(trace, rng) if trace is not None and moved is not None else trace
        timed = replace(prepared, timing=drawn_timing(prepared.timing, draw))
        yield statistics(run(draw.config, trace=served, prepared=timed))


def _bounds(values: list[float]) -> tuple[float | None, float | None]:
    """Where 95 % of the replays lie; nothing of less than two."""
    known = [value for value in values if np.isfinite(value)]
    if len(known) < 2:
        return None, None
    low, high = np.percentile(known, [_TAIL_PERCENT, 100 - _TAIL_PERCENT])
    return float(low), float(high)
