"""Run and sweep files: their schema, and loading with errors that name file, line, key and remedy.

What only sweeps need is imported when first asked for, so that a run starts sooner.
"""

from typing import TYPE_CHECKING, Any

from dynosim.config.engine import EngineConfig
from dynosim.config.loading import dump_run, load_run, run_config_from_dict
from dynosim.config.schema import RunConfig, SlaConfig
from dynosim.config.workload import WorkloadConfig

if TYPE_CHECKING:
    from dynosim.config.sweep_loading import SweepConfig, load_sweep

__all__ = [
    "EngineConfig",
    "RunConfig",
    "SlaConfig",
    "SweepConfig",
    "WorkloadConfig",
    "dump_run",
    "load_run",
    "load_sweep",
    "run_config_from_dict",
]


def __getattr__(name: str) -> Any:
    if name in ("SweepConfig", "load_sweep"):
        from dynosim.config import sweep_loading

        return getattr(sweep_loading, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
