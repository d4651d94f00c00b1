"""Runs one trial in any process; answers with plain data.

The loaded trace is kept between calls, and what engines and step times a configuration means: the
trials of a sweep mostly share them.
"""

import json
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from dynosim.build.engine import Prepared, prepare
from dynosim.build.workload import load_trace
from dynosim.config.loading import run_config, written_out
from dynosim.config.schema import RunConfig
from dynosim.config.yaml_source import Document
from dynosim.errors import DynosimError, InfeasibleError, TraceError
from dynosim.experiment.run import run
from dynosim.metrics import PROCESS_KEYS
from dynosim.records import Trace
from dynosim.sweep.status import BAD_INPUT, FAILED, INFEASIBLE, OK

T = TypeVar("T")

TRIAL = f"{__name__}:run_trial"

MAX_TRACES = 2
MAX_PREPARED = 16
_traces: dict[str, Trace] = {}
_prepared: dict[str, Prepared] = {}


def request_for(config: RunConfig) -> dict[str, Any]:
    """What `run_trial` needs to know, as plain data."""
    return {
        "config": written_out(config),
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
        outcome = run(config, trace=cached_trace(config), prepared=cached_prepared(config))
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
    name = [workload, needs_arrival, config.seed, str(config.base_dir)]
    return _kept(_traces, MAX_TRACES, name, lambda: load_trace(config))


def cached_prepared(config: RunConfig) -> Prepared:
    """What `prepare` gives, once for configurations that share it. Raises: what that raises."""
    sections = {"engine", "timing", "model", "hardware"}
    shared = [pool.model_dump(mode="json", include=sections) for pool in config.pools()]
    handoff = config.cluster.handoff.model_dump(mode="json") if config.cluster.is_disagg else None
    section = config.cluster.tiers
    tiers = None if section is None else section.model_dump(mode="json")
    name = [shared, handoff, tiers, str(config.base_dir)]
    return _kept(_prepared, MAX_PREPARED, name, lambda: prepare(config))


def _kept(store: dict[str, T], limit: int, of: list[Any], make: Callable[[], T]) -> T:
    """What is kept under a name; made if it is not, in place of the oldest if there are many."""
    name = json.dumps(of, sort_keys=True)
    if name not in store:
        while len(store) >= limit:
            del store[next(iter(store))]
        store[name] = make()
    return store[name]
