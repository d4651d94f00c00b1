"""The answer of a sweep that needs a load held, on a terminal of 80 columns."""

from collections.abc import Sequence
from pathlib import Path

from dynosim.cli.capacity_text import (
    SHOWN,
    SHOWN_NOTHING,
    commands,
    cost_of,
    cost_title,
    layout_name,
    print_warnings,
    sla_line,
)
from dynosim.cli.text_table import counted, cut, print_table, short
from dynosim.config.load_rules import DECODE_WORKERS, SOUGHT_KEYS
from dynosim.config.sweep_loading import SweepConfig
from dynosim.sweep.answer import Answer, user_speed
from dynosim.sweep.results import CAPACITY, Row

_UNITS = {"rps": "req/s", "sessions_per_s": "sessions/s", "concurrency": "in flight"}
_MEASURED = ("head-room", "tok/s/GPU", "tok/s/user", "TTFT p95", "in SLA")


def print_need(
    sweep: SweepConfig, answer: Answer, folder: Path, warnings: Sequence[str] = ()
) -> None:
    """How many GPUs it takes, what they have left, what limits, and how to go on."""
    keys = [d.key for d in sweep.dimensions if len(d.samples()) > 1 or d.key in SOUGHT_KEYS]
    print(_headline(sweep, answer, keys))
    print(sla_line(sweep))
    if answer.ranked:
        titles = ("", "layout", "GPUs", "carries", *_MEASURED, cost_title(answer))
        print_table(titles, [_cells(sweep, answer, row, keys) for row in answer.ranked[:SHOWN]])
        if len(answer.ranked) > SHOWN:
            print(f"    and {len(answer.ranked) - SHOWN} more in trials.parquet")
    for line in (*_unheld_lines(sweep, answer, keys), *_limit_lines(answer, keys)):
        print(cut(line))
    print_warnings(warnings)
    for line in commands(answer, folder):
        print(line)


def need_text(sweep: SweepConfig) -> str:
    """What is needed, as in "20 req/s"."""
    assert sweep.load.need is not None
    ((key, value),) = sweep.load.need.given.items()
    return f"{value:,g} {_UNITS[key]}"


def _headline(sweep: SweepConfig, answer: Answer, keys: Sequence[str]) -> str:
    tried = len(answer.ranked) + len(answer.nothing_carried)
    need, best, nearest = need_text(sweep), answer.best, answer.nearest
    budget = sweep.constraints.gpu_budget
    within = "" if budget is None else f" on {counted(budget, 'GPU')}"
    if best is not None:
        gpus = counted(best.report["num_gpus"], "GPU")
        return f"{sweep.name}: {counted(tried, 'layout')}; {need} takes {gpus}"
    most = "" if nearest is None else f", the most is {_carries(sweep, nearest)}"
    return f"{sweep.name}: {counted(tried, 'layout')}, none holds {need}{within}{most}"


def _carries(sweep: SweepConfig, row: Row) -> str:
    """The capacity of a layout in the unit of the need."""
    load, need = row.report[CAPACITY], sweep.load.need
    if load is None or need is None:
        return "-"
    ((key, value),) = need.given.items()
    return f"{short(load if key == 'concurrency' else load * value)} {_UNITS[key]}"


def _cells(sweep: SweepConfig, answer: Answer, row: Row, keys: Sequence[str]) -> list[str]:
    report = row.report
    place = answer.ranked.index(row)
    mark = "*" if place == 0 else "=" if place < answer.num_tied else " "
    attainment, ttft_ms = report["need_attainment"], report.get("p95_ttft_ms")
    headroom = report["need_headroom"]
    return [
        f"{place + 1}{mark}",
        layout_name(row, keys),
        str(report["num_gpus"]),
        _carries(sweep, row).split()[0],
        "-" if headroom is None else f"{100 * (headroom - 1):.0f} %",
        short(report["output_tok_s_per_gpu"]),
        short(user_speed(row)),
        "-" if ttft_ms is None else f"{ttft_ms / 1000:.2f} s",
        "-" if attainment is None else f"{100 * attainment:.0f} %",
        short(cost_of(row)),
    ]


def _unheld_lines(sweep: SweepConfig, answer: Answer, keys: Sequence[str]) -> list[str]:
    """Layouts that do not hold it with any number of workers, most of them first."""
    rows = sorted(answer.nothing_carried, key=lambda row: -(row.report[CAPACITY] or 0.0))
    lines = []
    for row in rows[:SHOWN_NOTHING]:
        name, limit = layout_name(row, keys), row.report["need_limit"]
        carried = row.report[CAPACITY]
        most = "does not hold it" if carried is None else f"{_carries(sweep, row)} at most"
        lines.append(f" -  {name}: {most}: {limit}")
    rest = len(rows) - SHOWN_NOTHING
    return [*lines, f" -  and {rest} more that do not hold it"] if rest > 0 else lines


def _limit_lines(answer: Answer, keys: Sequence[str]) -> list[str]:
    """Why the best layout needs as many workers as it does."""
    best = answer.best
    if best is None or best.report["need_workers_too_few"] is None:
        return []
    what = "decode worker" if DECODE_WORKERS in best.trial.values else "worker"
    few = counted(best.report["need_workers_too_few"], what)
    return [f"limits  with {few}: {best.report['need_limit']}"]
