"""The answer of a sweep that sought capacities, on a terminal of 80 columns."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynosim.config.sweep_loading import SweepConfig
from dynosim.plots.trials import label
from dynosim.sweep.answer import CAPACITY, Answer, user_speed
from dynosim.sweep.results import Row

WIDTH = 80
SHOWN = 10
SHOWN_NOTHING = 3
_TITLES = (
    "", "layout", "GPUs", "req/s", "x", "tok/s/GPU", "tok/s/user", "TTFT p95", "in SLA", "GPU-h/M",
)  # fmt: skip


def print_answer(sweep: SweepConfig, answer: Answer, folder: Path) -> None:
    """What to deploy, what ties with it, what else there is, and how to go on."""
    print(_headline(sweep, answer))
    if sla := _sla_line(sweep):
        print(sla)
    keys = [dimension.key for dimension in sweep.dimensions if len(dimension.samples()) > 1]
    if answer.ranked:
        _print_table([_cells(answer, row, keys) for row in answer.ranked[:SHOWN]])
        if len(answer.ranked) > SHOWN:
            print(f"    and {len(answer.ranked) - SHOWN} more in trials.parquet")
    for line in _nothing_lines(answer, keys):
        print(line)
    for line in (*_alternatives(answer, keys), *_commands(answer, folder)):
        print(line)


def _headline(sweep: SweepConfig, answer: Answer) -> str:
    tried = len(answer.ranked) + len(answer.nothing_carried)
    best = answer.best
    if best is None:
        low, high = sweep.load.ends
        return f"{sweep.name}: {tried} layouts, none carries any load from {low:g} to {high:g}"
    report = best.report
    held = f"the best carries {_short(report['capacity_rps'])} req/s"
    if sweep.load.vary == "concurrency":
        return f"{sweep.name}: {tried} layouts; {held} at {report[CAPACITY]:,.0f} in flight"
    own = report["capacity_rps"] / report[CAPACITY]
    return f"{sweep.name}: {tried} layouts; the workload asks {_short(own)} req/s, {held}"


def _sla_line(sweep: SweepConfig) -> str:
    sla = sweep.constraints.sla
    if sla is None:
        return "no SLA: carried is what does not pile up"
    bounds = (("TTFT", sla.ttft_ms), ("time per token", sla.itl_ms), ("all", sla.e2e_ms))
    kept = ", ".join(f"{name} <= {bound:,.0f} ms" for name, bound in bounds if bound is not None)
    if sla.statistic is not None:
        return f"SLA: {sla.statistic} of {kept}"
    return f"SLA: {100 * sla.share:g} % of requests with {kept}"


def _cells(answer: Answer, row: Row, keys: Sequence[str]) -> list[str]:
    report = row.report
    place = answer.ranked.index(row)
    mark = "*" if place == 0 else "=" if place < answer.num_tied else ""
    attainment = report.get("capacity_attainment")
    ttft_ms = report.get("p95_ttft_ms")
    return [
        f"{place + 1}{mark or ' '}",
        label({"trial_id": row.trial.index, **row.trial.values}, keys),
        str(report["num_gpus"]),
        _short(report["capacity_rps"]),
        _short(report[CAPACITY]),
        _short(report["output_tok_s_per_gpu"]),
        _short(user_speed(row)),
        "-" if ttft_ms is None else f"{ttft_ms / 1000:.2f} s",
        "-" if attainment is None else f"{100 * attainment:.0f} %",
        _short(report.get("gpu_hours_per_m_good_output_tokens")),
    ]


def _print_table(rows: list[list[str]]) -> None:
    """Columns as wide as they must be; those at the right that do not fit are left out."""
    widths = [
        max(len(title), *(len(row[place]) for row in rows)) for place, title in enumerate(_TITLES)
    ]
    shown = len(widths)
    while sum(widths[:shown]) + shown - 1 > WIDTH:
        shown -= 1
    for cells in (list(_TITLES), *rows):
        words = [
            cell.ljust(width) if place == 1 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        print(" ".join(words[:shown]).rstrip())


def _nothing_lines(answer: Answer, keys: Sequence[str]) -> list[str]:
    """Layouts that carry nothing, and why."""
    lines = []
    for row in answer.nothing_carried[:SHOWN_NOTHING]:
        name = label({"trial_id": row.trial.index, **row.trial.values}, keys)
        load = row.report["capacity_load_failed"]
        lines.append(_cut(f" -  {name}: none, at {load:g}x {row.report['capacity_reason']}"))
    rest = len(answer.nothing_carried) - SHOWN_NOTHING
    return [*lines, f" -  and {rest} others carry no load"] if rest > 0 else lines


def _alternatives(answer: Answer, keys: Sequence[str]) -> list[str]:
    """What is best in another way than the winner."""
    lines = []
    named = (("fastest for users", answer.fastest), ("carries most", answer.carries_most))
    for what, row in named:
        if row is not None and row is not answer.best:
            name = label({"trial_id": row.trial.index, **row.trial.values}, keys)
            rps, speed = _short(row.report["capacity_rps"]), _short(user_speed(row))
            gpus = row.report["num_gpus"]
            lines.append(_cut(f"{what}: {name} ({gpus} GPUs, {rps} req/s, {speed} tok/s/user)"))
    return lines


def _commands(answer: Answer, folder: Path) -> list[str]:
    if answer.best is None:
        return []
    top = folder / "agg" / "top1"
    return [
        f"deploy  dynosim deploy {top} --mock",
        f"prove   dynosim validate {top} --url http://HOST:PORT",
        f"engine  {top}/engine.sh (vllm serve ..., bench.sh beside it)",
    ]


def _short(value: Any) -> str:
    """Three digits, which is more than a bracket of 3 % tells."""
    if value is None:
        return "-"
    number = float(value)
    return f"{number:,.0f}" if abs(number) >= 100 else f"{number:.3g}"


def _cut(line: str) -> str:
    return line if len(line) <= WIDTH else line[: WIDTH - 3] + "..."
