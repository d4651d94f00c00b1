"""Runs one trial in any process; answers with plain data.

The loaded trace is kept between calls: the trials of a sweep mostly share one.
"""

import json
import time
import traceback
from pathlib import Path
from typing import Any

from dynosim.build.workload import load_trace
from dynosim.config.loading import run_config
from dynosim.config.schema import RunConfig
from dynosim.config.yaml_source import Document
from dynosim.errors import DynosimError, InfeasibleError, TraceError
from dynosim.experiment.run import run
from dynosim.metrics import PROCESS_KEYS
from dynosim.records import Trace
from dynosim.sweep.status import BAD_INPUT, FAILED, INFEASIBLE, OK

MAX_TRACES = 2
_traces: dict[str, Trace] = {}


def request_for(config: RunConfig) -> dict[str, Any]:
    """What `run_trial` needs to know, as plain data."""
    return {
        "config": config.model_dump(mode="json", exclude_none=True),
        "folder": str(config.base_dir),
    }


def config_of(request: dict[str, Any]) -> RunConfig:
    """The configuration that `request_for` has put into a request."""
    return run_config(Document(request["config"], "trial", Path(request["folder"])))


def run_trial(request: dict[str, Any]) -> dict[str, Any]:
    """`status`, `reason`, `report` (without `PROCESS_KEYS`) and `wall_ms` of one trial."""
    started = time.perf_counter()
    status, reason, report = OK, "", {}
    try:
        config = config_of(request)
        outcome = run(config, trace=cached_trace(config))
        report = {k: v for k, v in outcome.report.items() if k not in PROCESS_KEYS}
    except InfeasibleError as error:
        status, reason = INFEASIBLE, str(error)
    except TraceError as error:
        status, reason = BAD_INPUT, str(error)
    except DynosimError as error:
        status, reason = INFEASIBLE, f"cannot be run: {error}"
    except Exception as error:  # a crash of one trial must not end the others
        status, reason = FAILED, f"{type(error).__name__}: {error}"
        traceback.print_exc()
    wall_ms = (time.perf_counter() - started) * 1e3
    return {"status": status, "reason": reason, "report": report, "wall_ms": wall_ms}


def cached_trace(config: RunConfig) -> Trace:
    """The workload, loaded once for configurations that share it. Raises: TraceError."""
    workload = config.workload.model_dump(mode="json", exclude={"concurrency"})
    needs_arrival = config.workload.concurrency is None
    name = json.dumps([workload, needs_arrival, config.seed, str(config.base_dir)], sort_keys=True)
    if name not in _traces:
        while len(_traces) >= MAX_TRACES:
            del _traces[next(iter(_traces))]
        _traces[name] = load_trace(config)
    return _traces[name]
