"""Runs a sweep that needs a load held: the fewest workers of each layout, then their capacity."""

from collections.abc import Sequence
from functools import partial

from dynosim.config.sweep_loading import SweepConfig
from dynosim.sweep.executor import Executor
from dynosim.sweep.ledger import Ledger
from dynosim.sweep.load_sweep import load_plan
from dynosim.sweep.need_search import Family, NeedSearch
from dynosim.sweep.need_sweep import (
    capacity_ledger,
    need_records,
    need_request,
    sized,
    sizing_table,
)
from dynosim.sweep.progress import Progress
from dynosim.sweep.work import LoadWork, Tried, interruptible


def finish_need(
    sweep: SweepConfig, families: Sequence[Family], ledger: Ledger, executor: Executor
) -> Tried:
    """Run what the ledger lacks. Raises: SweepInterruptedError, TraceError."""
    runnable = [family for family in families if family.trial.config is not None]
    plan = load_plan(sweep)
    needs = NeedSearch(
        runnable, plan.attainment, ledger, goes_by_attainment=plan.goes_by_attainment
    )
    num_resumed = sum(map(len, ledger.probes.values()))
    objective, goal = next(iter(sweep.objectives.items()))
    progress = Progress(
        total=len(runnable),
        done=needs.num_finished,
        objective=objective,
        is_max=goal == "max",
        unit="sizes",
    )

    def told(family: Family) -> None:
        if needs.is_finished(family.index):
            progress.advance(family.trial.values, {})

    with interruptible(ledger, lambda: f"{needs.num_probes} probes of {len(runnable)} layouts"):
        with progress:
            needs.finish(executor, partial(need_request, sweep), told)
    sizes = sized(sweep, families, needs)
    loads = LoadWork(sizes.sweep, capacity_ledger(ledger, sizes.sought), executor)
    with interruptible(ledger, lambda: loads.kept), loads:
        loads.finish(sizes.sought, num_to_come=0)
    return Tried(
        sizes.sweep,
        sizes.trials,
        need_records(families, sizes, needs, loads.search),
        num_resumed,
        loads.probes(sizes.trials),
        {"sizing.parquet": sizing_table(runnable, needs)},
    )
