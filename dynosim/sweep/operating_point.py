"""The run file that shows what a trial's row says: its layout, at the row's load."""

from dynosim.config.schema import RunConfig
from dynosim.config.sweep_loading import SweepConfig
from dynosim.sweep.answer import IS_HELD
from dynosim.sweep.probe import REPEAT
from dynosim.sweep.results import CAPACITY, Row


def config_at_capacity(sweep: SweepConfig, row: Row) -> RunConfig:
    """The layout under the largest load that it carries; as it is where no load was sought, or
    none is carried.

    A run of it is the probe again: `workload.repeat` is how often that put a short workload end
    to end.
    """
    assert row.trial.config is not None
    if row.report.get(IS_HELD):  # its row is of the load that is needed, which is its own
        return config_at(sweep, row, None)
    load = row.report.get(CAPACITY)
    if sweep.load.search == "fixed" or load is None:
        return row.trial.config
    return config_at(sweep, row, load)


def config_at(sweep: SweepConfig, row: Row, load: float | None) -> RunConfig:
    """The layout under a load of the sweep's kind; None: its own."""
    config = row.trial.config
    assert config is not None
    workload = config.workload
    repeat = workload.repeat * row.report.get(REPEAT, 1)
    changes: dict[str, float | int]
    if load is None:
        changes = {"repeat": repeat}
    elif sweep.load.vary == "concurrency":
        changes = {"concurrency": round(load), "repeat": repeat}
    else:
        changes = {"arrival_scale": workload.arrival_scale * load, "repeat": repeat}
    return config.model_copy(update={"workload": workload.model_copy(update=changes)})
