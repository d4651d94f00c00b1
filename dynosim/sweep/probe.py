"""Tries one layout at one load, in any process; answers with plain data."""

import time
import traceback
from dataclasses import asdict
from typing import Any

import numpy as np

from dynosim.config.schema import RunConfig
from dynosim.errors import DynosimError, InfeasibleError, TraceError
from dynosim.experiment.run import run
from dynosim.metrics import PROCESS_KEYS
from dynosim.metrics.carried import Bounds, SlaTarget, judge_load
from dynosim.metrics.hopeless import HopelessLoad
from dynosim.metrics.resampling import sessions_of
from dynosim.records import IntArray, Trace
from dynosim.sweep.bound import rate_bound_rps, scheduled_rps
from dynosim.sweep.status import BAD_INPUT, FAILED, INFEASIBLE, OK
from dynosim.sweep.trial import cached_prepared, cached_trace, config_of, request_for
from dynosim.workload.scaling import start_sessions_faster, tiled

PROBE = f"{__name__}:run_probe"
START_SHARE = 0.7
"""Of the bound; where a search begins."""
REPEAT = "workload_repeat"
"""The key of a probe's report that tells how often the workload was put end to end."""


def probe_request(
    config: RunConfig,
    load: float | None,
    *,
    vary: str,
    target: SlaTarget,
    min_requests: int = 0,
) -> dict[str, Any]:
    """What `run_probe` needs to know, as plain data.

    `load` is a multiple of the workload's own (`vary: rate`), or the requests in flight
    (`concurrency`); None: about as much as the layout should carry. A workload of fewer requests
    than `min_requests` is put end to end until it has them.
    """
    return {
        **request_for(config),
        "load": load,
        "vary": vary,
        "target": asdict(target),
        "min_requests": min_requests,
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
    config = config_of(request)
    prepared = cached_prepared(config)
    own_trace = cached_trace(config)
    trace = _tiled_once(own_trace, request["min_requests"])
    target = SlaTarget(**{**request["target"], "bounds": Bounds(**request["target"]["bounds"])})
    load = request["load"]
    if request["vary"] == "concurrency":
        load = 8.0 * config.cluster.workers if load is None else load
        workload = config.workload.model_copy(update={"concurrency": int(load)})
        config = config.model_copy(update={"workload": workload})
        watch = None
        offered_rps = None
    else:
        own_rps = scheduled_rps(trace)
        if load is None:
            load = START_SHARE * rate_bound_rps(trace, prepared, config.cluster.workers) / own_rps
        offered_rps = load * own_rps
        trace = start_sessions_faster(trace, load)
        watch = HopelessLoad(trace, target) if target.statistic is None else None
    outcome = run(config, trace=trace, prepared=prepared, watch=watch)
    if watch is not None and watch.stopped_ms is not None:
        return {
            "load": load,
            "is_stopped": True,
            "offered_rps": offered_rps,
            "attainment_so_far": watch.attainment_so_far,
        }
    report = {key: value for key, value in outcome.report.items() if key not in PROCESS_KEYS}
    report[REPEAT] = len(trace) // len(own_trace)
    verdict = judge_load(outcome.result.requests, target, _sessions_once(trace))
    if offered_rps is None:
        offered_rps = report["request_throughput_rps"]
    return {
        "load": load,
        "is_stopped": False,
        "offered_rps": offered_rps,
        "verdict": asdict(verdict),
        "report": report,
    }


def _sessions_once(trace: Trace) -> IntArray:
    """The sessions of a trace, kept with it."""
    kept = trace.of_prompts.get("sessions")
    if not isinstance(kept, np.ndarray):
        kept = sessions_of(trace)
        trace.of_prompts["sessions"] = kept
    return kept


def _tiled_once(trace: Trace, min_requests: int) -> Trace:
    """The trace as often as it takes, kept with the trace itself."""
    num_tiles = -(-min_requests // len(trace))
    if num_tiles <= 1:
        return trace
    kept = trace.of_prompts.get(("tiles", num_tiles))
    if not isinstance(kept, Trace):
        kept = tiled(trace, num_tiles)
        trace.of_prompts["tiles", num_tiles] = kept
    return kept
