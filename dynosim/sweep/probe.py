"""Tries one layout at one load, in any process; answers with plain data."""

import time
import traceback
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

import numpy as np

from dynosim.build.engine import Prepared
from dynosim.config.schema import RunConfig
from dynosim.errors import DynosimError, InfeasibleError, TraceError
from dynosim.experiment.run import run
from dynosim.metrics import PROCESS_KEYS
from dynosim.metrics.carried import Bounds, SlaTarget, judge_load
from dynosim.metrics.hopeless import HopelessLoad
from dynosim.metrics.resampling import sessions_of
from dynosim.records import IntArray, Trace
from dynosim.sweep.bound import plan_bound_rps, scheduled_rps
from dynosim.sweep.status import BAD_INPUT, FAILED, INFEASIBLE, OK
from dynosim.sweep.trial import (
    cached_prepared,
    cached_trace,
    config_of,
    request_for,
)
from dynosim.workload.scaling import start_sessions_faster, tiled

PROBE = f"{__name__}:run_probe"
START_SHARE = 0.7
"""Of the bound; where a search begins."""
IN_FLIGHT_PER_WORKER = 8.0
"""Likewise, of a closed loop."""
REPEAT = "workload_repeat"
"""The key of a probe's report that tells how often the workload was put end to end."""


def probe_request(
    config: RunConfig,
    load: float | None,
    *,
    vary: str,
    target: SlaTarget,
    min_requests: int = 0,
    requests_per_slot: int = 0,
    ends: tuple[float, float] = (0.0, inf),
) -> dict[str, Any]:
    """What `run_probe` needs to know, as plain data.

    `load` is a multiple of the workload's own (`vary: rate`), or the requests in flight
    (`concurrency`); None: about as much as the layout should carry, within `ends`. A workload of
    fewer requests than `min_requests`, or in a closed loop than `requests_per_slot` for each in
    flight, is put end to end until it has them. A probe at the lowest load is never stopped early:
    it tells why no load is carried.
    """
    return {
        **request_for(config),
        "load": load,
        "vary": vary,
        "target": asdict(target),
        "min_requests": min_requests,
        "requests_per_slot": requests_per_slot,
        "ends": [ends[0], None if ends[1] == inf else ends[1]],
    }


def run_probe(request: dict[str, Any]) -> dict[str, Any]:
    """`status`, `reason`, `load`, `offered_rps`, `verdict` (as `LoadVerdict`), `report`,
    `is_stopped`, `wall_ms`.

    `offered_rps` is how many requests a second the schedule brings, or in a closed loop the
    cluster. A probe that was stopped early has no report, and of its verdict only that it was not
    carried, and what it had seen by then (`attainment_so_far`).
    """
    started = time.perf_counter()
    answer = {"status": OK, "reason": "", "load": request["load"], "verdict": None, "report": {}}
    try:
        answer |= _probe(request)
    except InfeasibleError as error:
        answer |= {"status": INFEASIBLE, "reason": str(error)}
    except TraceError as error:
        answer |= {"status": BAD_INPUT, "reason": str(error)}
    except DynosimError as error:
        answer |= {"status": INFEASIBLE, "reason": f"cannot be run: {error}"}
    except Exception as error:  # a crash of one probe must not end the others
        traceback.print_exc()
        answer |= {"status": FAILED, "reason": f"{type(error).__name__}: {error}"}
    return answer | {"wall_ms": (time.perf_counter() - started) * 1e3}


def _probe(request: dict[str, Any]) -> dict[str, Any]:
    target = SlaTarget(**{**request["target"], "bounds": Bounds(**request["target"]["bounds"])})
    offered = _in_flight(request) if request["vary"] == "concurrency" else _by_rate(request)
    watch = None
    if offered.rps is not None and target.statistic is None and offered.load > request["ends"][0]:
        watch = HopelessLoad(offered.trace, target)
    outcome = run(offered.config, trace=offered.trace, prepared=offered.prepared, watch=watch)
    if watch is not None and watch.stopped_ms is not None:
        return {
            "load": offered.load,
            "is_stopped": True,
            "offered_rps": offered.rps,
            "attainment_so_far": watch.attainment_so_far,
        }
    report = {key: value for key, value in outcome.report.items() if key not in PROCESS_KEYS}
    report[REPEAT] = offered.repeat
    verdict = judge_load(outcome.result.requests, target, _sessions_once(offered.trace))
    return {
        "load": offered.load,
        "is_stopped": False,
        "offered_rps": report["request_throughput_rps"] if offered.rps is None else offered.rps,
        "verdict": asdict(verdict),
        "report": report,
    }


@dataclass(frozen=True, slots=True)
class _Offered:
    """A load, and what serves it. `rps` is None in a closed loop: the cluster decides that."""

    load: float
    config: RunConfig
    trace: Trace
    prepared: Prepared
    repeat: int  # how often the workload comes, end to end
    rps: float | None


def _in_flight(request: dict[str, Any]) -> _Offered:
    """A closed loop; its trace needs no timestamps."""
    config = config_of(request)
    load = request["load"]
    if load is None:
        load = float(round(_within(request, IN_FLIGHT_PER_WORKER * answering_workers(config))))
    workload = config.workload.model_copy(update={"concurrency": int(load)})
    config = config.model_copy(update={"workload": workload})
    num_requests = max(request["min_requests"], request["requests_per_slot"] * int(load))
    own = cached_trace(config)
    trace = tiled_once(own, num_requests)
    repeat = len(trace) // len(own)
    return _Offered(load, config, trace, cached_prepared(config), repeat, None)


def answering_workers(config: RunConfig) -> int:
    """Workers in which requests are, most of their time: those that compute answers."""
    cluster = config.cluster
    return cluster.decode.workers if cluster.is_disagg else cluster.workers


def _by_rate(request: dict[str, Any]) -> _Offered:
    """Sessions that start so many times faster. Raises: TraceError where they have no rate."""
    config = config_of(request)
    prepared = cached_prepared(config)
    own = cached_trace(config)
    trace = tiled_once(own, request["min_requests"])
    own_rps = scheduled_rps(trace)
    check_has_rate(own_rps, config)
    load = request["load"]
    if load is None:
        bound_rps = plan_bound_rps(trace, config, prepared)
        load = _within(request, START_SHARE * bound_rps / own_rps)
    faster = start_sessions_faster(trace, load)
    repeat = len(trace) // len(own)
    return _Offered(load, config, faster, prepared, repeat, load * own_rps)


def check_has_rate(own_rps: float, config: RunConfig) -> None:
    """Refuse a trace without a rate. Raises: TraceError."""
    if own_rps == inf:
        raise TraceError(
            "all sessions start at once: there is no rate to vary (set load.vary: concurrency)",
            path=config.workload.trace or "",
        )


def _within(request: dict[str, Any], load: float) -> float:
    low, high = request["ends"]
    return float(min(max(load, low), inf if high is None else high))


def _sessions_once(trace: Trace) -> IntArray:
    """The sessions of a trace, kept with it."""
    kept = trace.of_prompts.get("sessions")
    if not isinstance(kept, np.ndarray):
        kept = sessions_of(trace)
        trace.of_prompts["sessions"] = kept
    return kept


def tiled_once(trace: Trace, min_requests: int) -> Trace:
    """The trace as often as it takes, kept with the trace itself."""
    num_tiles = -(-min_requests // len(trace))
    if num_tiles <= 1:
        return trace
    kept = trace.of_prompts.get(("tiles", num_tiles))
    if not isinstance(kept, Trace):
        kept = tiled(trace, num_tiles)
        trace.of_prompts["tiles", num_tiles] = kept
    return kept
