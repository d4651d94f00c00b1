"""Tries a layout with so many workers at the load that a sweep needs, in any process."""

from math import ceil, isfinite
from typing import Any

from dynosim.config.schema import RunConfig
from dynosim.errors import DynosimError
from dynosim.records import Trace
from dynosim.sweep.bound import rate_bound_rps, scheduled_rps
from dynosim.sweep.probe import IN_FLIGHT_PER_WORKER, START_SHARE, run_probe
from dynosim.sweep.trial import cached_prepared, cached_trace, config_of

NEED_PROBE = f"{__name__}:run_need_probe"


def run_need_probe(request: dict[str, Any]) -> dict[str, Any]:
    """What `run_probe` answers, and the number of `workers`.

    The request is one for `run_probe`, and says how many `workers` to try; None: about as many as
    the load should need. There are at least and at most those of `between`.
    """
    workers = request["workers"]
    if workers is None:
        workers = _about(request)
    cluster = {**request["config"].get("cluster", {}), "workers": workers}
    tried = {**request, "config": {**request["config"], "cluster": cluster}}
    return {**run_probe(tried), "workers": workers}


def _about(request: dict[str, Any]) -> int:
    """Where the search begins. What cannot be run is left to the probe to tell."""
    low, high = request["between"]
    try:
        needed = _bound(request)
    except DynosimError:
        return int(low)
    return int(min(max(ceil(needed), low), high)) if isfinite(needed) else int(high)


def _bound(request: dict[str, Any]) -> float:
    config = config_of(request)
    if request["vary"] == "concurrency":
        return float(request["load"]) / IN_FLIGHT_PER_WORKER
    trace = cached_trace(config)
    return float(scheduled_rps(trace) / (START_SHARE * _worker_rps(config, trace)))


def _worker_rps(config: RunConfig, trace: Trace) -> float:
    return rate_bound_rps(trace, cached_prepared(config), 1)
