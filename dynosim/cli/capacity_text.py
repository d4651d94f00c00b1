"""The answer of a sweep that sought capacities, on a terminal of 80 columns."""

from collections.abc import Sequence
from pathlib import Path

from dynosim.cli.text_table import cut, print_table, print_wrapped, short
from dynosim.config.sweep_loading import SweepConfig
from dynosim.plots.trials import label
from dynosim.sweep.answer import Answer, user_speed
from dynosim.sweep.engine_script import script_name
from dynosim.sweep.results import CAPACITY, Row, named_values
from dynosim.sweep.winners import mode_of_row

SHOWN = 10
SHOWN_NOTHING = 3
_BY_RATE = ("req/s", "x")
_IN_FLIGHT = ("in flight", "/worker", "req/s")
_MEASURED = ("tok/s/GPU", "tok/s/user", "TTFT p95", "in SLA")


def print_answer(
    sweep: SweepConfig, answer: Answer, folder: Path, warnings: Sequence[str] = ()
) -> None:
    """What to deploy, what ties with it, what else there is, and how to go on."""
    print(_headline(sweep, answer))
    print(sla_line(sweep))
    keys = varied_keys(sweep)
    if answer.ranked:
        loads = _IN_FLIGHT if sweep.load.vary == "concurrency" else _BY_RATE
        titles = ("", "layout", "GPUs", *loads, *_MEASURED, cost_title(answer))
        print_table(titles, [_cells(sweep, answer, row, keys) for row in answer.ranked[:SHOWN]])
        if len(answer.ranked) > SHOWN:
            print(f"    and {len(answer.ranked) - SHOWN} more in trials.parquet")
    for line in (*_not_pursued_lines(answer), *_nothing_lines(sweep, answer, keys)):
        print(line)
    for line in _alternatives(answer, keys):
        print(line)
    _print_reasons(sweep, answer)
    print_warnings(warnings)
    for line in commands(answer, folder):
        print(line)


def _headline(sweep: SweepConfig, answer: Answer) -> str:
    tried = len(answer.ranked) + len(answer.nothing_carried) + len(answer.not_pursued)
    best = answer.best
    if best is None:
        low, high = sweep.load.ends
        return f"{sweep.name}: {tried} layouts, none carries any load from {low:g} to {high:g}"
    report = best.report
    held = f"the best carries {short(report['capacity_rps'])} req/s"
    if sweep.load.vary == "concurrency":
        return f"{sweep.name}: {tried} layouts; {held} at {report[CAPACITY]:,.0f} in flight"
    own = report["capacity_rps"] / report[CAPACITY]
    return f"{sweep.name}: {tried} layouts; the workload asks {short(own)} req/s, {held}"


def _print_reasons(sweep: SweepConfig, answer: Answer) -> None:
    """Why the best is the best, how sure that is, and what to run it at."""
    if answer.best is None:
        return
    from dynosim.sweep.answer_text import certainty_text, headroom_text, why_text

    print_wrapped(f"why: {why_text(sweep, answer)}")
    print_wrapped(f"capacity: {certainty_text(sweep, answer.best)}")
    print_wrapped(f"headroom: {headroom_text(sweep, answer.best, [])}")


def cost_title(answer: Answer) -> str:
    """What the cost of a million good output tokens is given in: GPU hours, or money if priced."""
    best = answer.best
    if best is None or best.report.get("cost_per_m_output_tokens") is None:
        return "GPU-h/M"
    return "money/M" if best.trial.config is None else f"{best.trial.config.cost.currency}/M"


def cost_of(row: Row) -> float | None:
    """What a million good output tokens cost, in what `cost_title` says."""
    found: float | None = row.report.get("cost_per_m_good_output_tokens")
    return row.report.get("gpu_hours_per_m_good_output_tokens") if found is None else found


def varied_keys(sweep: SweepConfig) -> list[str]:
    """The keys of the space that take more than one value."""
    return [dimension.key for dimension in sweep.dimensions if len(dimension.samples()) > 1]


def layout_name(row: Row, keys: Sequence[str]) -> str:
    """A short name by what is varied."""
    return label(named_values(row), keys)


def load_text(sweep: SweepConfig, load: float) -> str:
    """A load with its unit."""
    return f"{load:,.0f} in flight" if sweep.load.vary == "concurrency" else f"{load:.3g}x"


def print_warnings(warnings: Sequence[str]) -> None:
    """What makes the answer less sure than it looks."""
    for warning in warnings:
        print_wrapped(f"warning: {warning}")


def unmet_text(sweep: SweepConfig, answer: Answer) -> str:
    """Why no layout carries any load: which bound, by which requests, and the nearest miss."""
    row = max(answer.nothing_carried, key=_nearness, default=None)
    if row is None:
        return "no layout was tried"
    report = row.report
    share, why = report["capacity_attainment"], report["capacity_misses"]
    load = load_text(sweep, report["capacity_load_failed"])
    within = "" if share is None else f" with {100 * share:.1f} % of requests within it"
    return (
        f"no layout meets the SLA, even at {load}: the nearest is "
        f"{layout_name(row, varied_keys(sweep))}{within}; {why or report['capacity_reason']} "
        "(relax that bound of constraints.sla, or widen the space)"
    )


def _nearness(row: Row) -> float:
    share = row.report["capacity_attainment"]
    return -1.0 if share is None else float(share)


def sla_line(sweep: SweepConfig) -> str:
    """What is asked of requests."""
    sla = sweep.constraints.sla
    if sla is None:
        return "no SLA: carried is what does not pile up"
    bounds = (("TTFT", sla.ttft_ms), ("time per token", sla.itl_ms), ("all", sla.e2e_ms))
    kept = ", ".join(f"{name} <= {bound:,.0f} ms" for name, bound in bounds if bound is not None)
    if sla.statistic is not None:
        return f"SLA: {sla.statistic} of {kept}"
    return f"SLA: {100 * sla.share:g} % of requests with {kept}"


def _cells(sweep: SweepConfig, answer: Answer, row: Row, keys: Sequence[str]) -> list[str]:
    report = row.report
    place = answer.ranked.index(row)
    mark = "*" if place == 0 else "=" if place < answer.num_tied else ""
    attainment = report.get("capacity_attainment")
    ttft_ms = report.get("p95_ttft_ms")
    rps, load = report["capacity_rps"], report[CAPACITY]
    loads = [short(rps), short(load)]
    if sweep.load.vary == "concurrency":
        loads = [f"{load:,.0f}", short(load / report["num_workers"]), short(rps)]
    return [
        f"{place + 1}{mark or ' '}",
        layout_name(row, keys),
        str(report["num_gpus"]),
        *loads,
        short(report["output_tok_s_per_gpu"]),
        short(user_speed(row)),
        "-" if ttft_ms is None else f"{ttft_ms / 1000:.2f} s",
        "-" if attainment is None else f"{100 * attainment:.0f} %",
        short(cost_of(row)),
    ]


def _not_pursued_lines(answer: Answer) -> list[str]:
    num = len(answer.not_pursued)
    if not num:
        return []
    which = "1 layout" if num == 1 else f"{num} layouts"
    return [f" -  {which} not pursued: far from the best (--exhaustive seeks all)"]


def _nothing_lines(sweep: SweepConfig, answer: Answer, keys: Sequence[str]) -> list[str]:
    """Layouts that carry nothing, and why."""
    lines = []
    for row in answer.nothing_carried[:SHOWN_NOTHING]:
        name = layout_name(row, keys)
        load = row.report["capacity_load_failed"]
        why = row.report["capacity_misses"] or row.report["capacity_reason"]
        lines.append(cut(f" -  {name}: none, at {load_text(sweep, load)} {why}"))
    rest = len(answer.nothing_carried) - SHOWN_NOTHING
    return [*lines, f" -  and {rest} more that carry no load"] if rest > 0 else lines


def _alternatives(answer: Answer, keys: Sequence[str]) -> list[str]:
    """What is best in another way than the winner."""
    lines = []
    named = (
        ("fastest for users", answer.fastest),
        ("cheapest", answer.cheapest),
        ("carries most", answer.carries_most),
    )
    for what, row in named:
        if row is not None and row is not answer.best:
            name = layout_name(row, keys)
            rps, speed = short(row.report["capacity_rps"]), short(user_speed(row))
            gpus = row.report["num_gpus"]
            lines.append(cut(f"{what}: {name} ({gpus} GPUs, {rps} req/s, {speed} tok/s/user)"))
    return lines


def commands(answer: Answer, folder: Path) -> list[str]:
    """How to go on with the best layout."""
    if answer.best is None:
        return []
    config = answer.best.trial.config
    top = folder / mode_of_row(answer.best) / "top1"
    script = "engine.sh" if config is None else script_name(config)
    return [
        f"deploy  dynosim deploy {top} --mock",
        f"prove   dynosim validate {top} --url http://HOST:PORT",
        f"engine  {top}/{script} (vllm serve ..., bench.sh beside it)",
    ]
