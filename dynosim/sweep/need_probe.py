"""Tries a layout with so many workers at the load that a sweep needs, in any process."""

from math import ceil, inf, isfinite
from typing import Any

from dynosim.config.overrides import put
from dynosim.errors import DynosimError
from dynosim.sweep.bound import pool_bound_rps, rate_bound_rps, scheduled_rps
from dynosim.sweep.probe import IN_FLIGHT_PER_WORKER, START_SHARE, run_probe
from dynosim.sweep.trial import cached_prepared, cached_trace, config_of

NEED_PROBE = f"{__name__}:run_need_probe"


def run_need_probe(request: dict[str, Any]) -> dict[str, Any]:
    """What `run_probe` answers, and the number of `workers`.

    The request is one for `run_probe`, and says how many `workers` to try, and which `key` has
    them; None: about as many as the load should need. There are at least and at most those of
    `between`.
    """
    workers = request["workers"]
    if workers is None:
        workers = _about(request)
    tried = {**request, "config": put(request["config"], tuple(request["key"].split(".")), workers)}
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
    needed_rps = scheduled_rps(trace) / START_SHARE
    if not config.cluster.is_disagg:
        return float(needed_rps / rate_bound_rps(trace, cached_prepared(config), 1))
    prepared, cluster = cached_prepared(config), config.cluster
    assert prepared.prefill is not None
    prompts_rps = pool_bound_rps(trace, prepared.prefill, cluster.prefill.workers, role="prefill")
    if prompts_rps < START_SHARE * needed_rps:
        return inf  # whatever computes the answers, prompts come too slowly
    return float(needed_rps / pool_bound_rps(trace, prepared, 1, role="decode"))
