"""dynosim: a discrete-event twin of LLM serving clusters.

The public names below load what they need on first use, so that `import dynosim` costs nothing.
"""

from importlib import import_module
from typing import Any

import dynosim.compiled  # noqa: F401 (decides, before anything else is loaded, what the core is)

__version__ = "0.1.0"

_HOMES = {
    "EngineSpec": "dynosim.engine.spec",
    "RunResult": "dynosim.records",
    "Trace": "dynosim.records",
    "capacity": "dynosim.sweep.api",
    "check_conservation": "dynosim.metrics",
    "load_run": "dynosim.config",
    "load_sweep": "dynosim.config",
    "pareto_front": "dynosim.sweep.pareto",
    "read_trace": "dynosim.workload.readers",
    "request_table": "dynosim.metrics",
    "run": "dynosim.experiment.run",
    "run_sweep": "dynosim.sweep.run",
    "simulate": "dynosim.cluster",
    "summarize": "dynosim.metrics",
    "timeline_table": "dynosim.metrics",
}

__all__ = ["__version__", *sorted([*_HOMES, "sweep"])]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    if name == "sweep":
        return import_module("dynosim.sweep")  # it can be called
    raise AttributeError(f"module 'dynosim' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *globals()})
