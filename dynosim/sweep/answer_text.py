"""The answer of a sweep in sentences, for its page."""

from collections.abc import Sequence
from typing import Any

from dynosim.config.sweep_loading import SweepConfig
from dynosim.plots.page import Headline, number
from dynosim.plots.style import share_text
from dynosim.plots.trials import label
from dynosim.sweep.answer import IS_HELD, Answer, user_speed
from dynosim.sweep.engine_script import script_name
from dynosim.sweep.results import CAPACITY, FAILED_LOAD, Row, named_values

RESERVE = 0.8
"""The share of the capacity to run at, which leaves something for bursts."""
_SHOWN_TIES = 4
_NEEDS = {
    "rps": "requests/s",
    "sessions_per_s": "sessions/s",
    "concurrency": "requests in flight",
}
_SECONDS_FROM_MS = 1000.0


def answer_headline(
    sweep: SweepConfig, answer: Answer, *, probes: Sequence[dict[str, Any]], run_file: str
) -> Headline:
    """The winner, why, ties, fastest, cheapest, headroom, and the commands that go on.

    `probes` are rows of all loads that were tried; `run_file` is the winner's, in the sweep's
    folder.
    """
    best = answer.best
    if best is None:
        return Headline(
            _nothing(sweep, answer), [("SLA", sla_text(sweep)), *_misses(sweep, answer)]
        )
    own = [probe for probe in probes if probe["trial_id"] == best.trial.index]
    name, report = layout_name(sweep, best), best.report
    is_need = IS_HELD in report
    there = "" if is_need else f" at {_load(sweep, report[CAPACITY])}"
    facts = [
        ("SLA", sla_text(sweep)),
        ("At what is needed" if is_need else "At capacity", f"{_numbers(best)}{there}"),
        ("Why", why_text(sweep, answer)),
        ("Ties", _ties(sweep, answer)),
        ("Fastest", _alternative(sweep, answer, answer.fastest)),
        ("Cheapest", _alternative(sweep, answer, answer.cheapest)),
        ("Carries most", _alternative(sweep, answer, answer.carries_most)),
        ("Headroom", headroom_text(sweep, best, own)),
        ("How sure", certainty_text(sweep, best)),
        *_misses(sweep, answer),
    ]
    folder = run_file.rsplit("/", 1)[0]
    commands = [
        ("deploy", f"dynosim deploy {folder} --mock"),
        ("prove", f"dynosim validate {folder} --url http://HOST:PORT"),
        ("run", f"dynosim run {run_file}"),
        ("engine", f"{folder}/{script_of(best)}"),
        ("bench", f"{folder}/bench.sh"),
    ]
    carried = f"{number(report['capacity_rps'])} requests/s"
    text = f"Deploy {name} on {_gpus(best)}: it carries {carried}"
    if sweep.load.need is not None:
        (what, needed), *_ = sweep.load.need.given.items()
        text = (
            f"Deploy {name} on {_gpus(best)}, the fewest that hold {number(needed)} "
            f"{_NEEDS[what]}: it carries up to {carried}"
        )
    return Headline(text, facts, commands)


def script_of(row: Row) -> str:
    """The script in a winner's folder that starts its engines."""
    config = row.trial.config
    return "engine.sh" if config is None else script_name(config)


def layout_name(sweep: SweepConfig, row: Row) -> str:
    """Its shape and what else was varied."""
    keys = [dimension.key for dimension in sweep.dimensions if len(dimension.samples()) > 1]
    return label(named_values(row), keys)


def load_key(sweep: SweepConfig) -> str:
    """The key of run files that a load sets."""
    is_closed = sweep.load.vary == "concurrency"
    return "workload.concurrency" if is_closed else "workload.arrival_scale"


def load_unit(sweep: SweepConfig, row: Row) -> float:
    """What a load of 1 is in values of `load_key`: rates are multiples of the row's own."""
    config = row.trial.config
    if sweep.load.vary == "concurrency" or config is None:
        return 1.0
    return float(config.workload.arrival_scale)


def sla_text(sweep: SweepConfig) -> str:
    """What is asked of a load, in words."""
    sla = sweep.constraints.sla
    if sla is None:
        return "none; a load is carried if requests do not pile up"
    bounds = (("TTFT", sla.ttft_ms), ("time per token", sla.itl_ms), ("end to end", sla.e2e_ms))
    kept = ", ".join(f"{name} <= {bound:,.0f} ms" for name, bound in bounds if bound is not None)
    if sla.statistic is not None:
        return f"{sla.statistic} of {kept}"
    return f"{100 * sla.share:g} % of requests with {kept}"


def _load(sweep: SweepConfig, load: float) -> str:
    if sweep.load.vary == "concurrency":
        return f"{load:,.0f} requests in flight"
    return f"{number(load)} times the workload's load"


def _gpus(row: Row) -> str:
    count = int(row.report["num_gpus"])
    return "1 GPU" if count == 1 else f"{count} GPUs"


def _numbers(row: Row) -> str:
    report = row.report
    parts = [
        f"{number(report['output_tok_s_per_gpu'])} output tok/s/GPU",
        f"{number(user_speed(row))} tok/s/user",
    ]
    if report.get("p95_ttft_ms") is not None:
        parts.append(f"TTFT p95 {number(report['p95_ttft_ms'] / _SECONDS_FROM_MS)} s")
    if report.get("capacity_attainment") is not None:
        parts.append(f"{share_text(report['capacity_attainment'])} within the SLA")
    return ", ".join(parts)


def _gpu_hours(row: Row) -> str:
    hours = row.report.get("gpu_hours_per_m_good_output_tokens")
    cost = row.report.get("cost_per_m_good_output_tokens")
    config = row.trial.config
    price = "" if cost is None or config is None else f", {number(cost)} {config.cost.currency},"
    return f"{number(hours)} GPU hours{price} per million good output tokens"


def why_text(sweep: SweepConfig, answer: Answer) -> str:
    """Why the winner is the best, and what it fails at."""
    best = answer.ranked[0]
    if answer.num_tied > 1:
        text = (
            f"{answer.num_tied} layouts cost the same within the brackets of their capacities "
            f"({_gpu_hours(best)}); of them this one comes first by speed for users, then by more "
            "and smaller workers"
        )
    else:
        text = f"fewest {'GPUs' if IS_HELD in best.report else 'GPU hours'}: {_gpu_hours(best)}"
    behind = answer.ranked[answer.num_tied : answer.num_tied + 1]
    if behind:
        text += f"; next {layout_name(sweep, behind[0])} with {_gpu_hours(behind[0])}"
    reason = best.report.get("capacity_misses") or best.report.get("capacity_reason")
    failed = best.report.get(FAILED_LOAD)
    if reason and failed is not None:
        text += f". At {_load(sweep, failed)}: {reason}"
    return text


def _ties(sweep: SweepConfig, answer: Answer) -> str:
    tied = answer.ranked[1 : answer.num_tied]
    if not tied:
        return "none"
    named = [
        f"{layout_name(sweep, row)} ({_gpus(row)}, {number(row.report['capacity_rps'])} "
        f"requests/s, {number(user_speed(row))} tok/s/user)"
        for row in tied[:_SHOWN_TIES]
    ]
    more = len(tied) - len(named)
    return "; ".join(named) + (f"; and {more} more" if more else "")


def _alternative(sweep: SweepConfig, answer: Answer, row: Row | None) -> str:
    if row is None or row is answer.best:
        return "the same"
    return (
        f"{layout_name(sweep, row)} on {_gpus(row)}: {number(row.report['capacity_rps'])} "
        f"requests/s, {number(user_speed(row))} tok/s/user, {_gpu_hours(row)}"
    )


def headroom_text(sweep: SweepConfig, best: Row, probes: Sequence[dict[str, Any]]) -> str:
    """What the winner has left, and at what to run it. `probes` are its own loads, as rows."""
    report = best.report
    safe = RESERVE * report[CAPACITY]
    text = f"run it at {RESERVE:g} of that, {number(RESERVE * report['capacity_rps'])} requests/s"
    near = min(probes, key=lambda probe: abs(probe["load"] - safe), default=None)
    if near is not None and abs(near["load"] - safe) <= 0.1 * safe and near.get("p95_ttft_ms"):
        seconds = near["p95_ttft_ms"] / _SECONDS_FROM_MS
        text += f" (about there TTFT p95 is {number(seconds)} s)"
    text += ", and bursts find a reserve"
    carried, share = report.get("own_load_carried"), report.get("own_load_attainment")
    if report.get("need_headroom") is not None:
        return f"{number(report['need_headroom'])} times what is needed; {text}"
    if sweep.load.vary == "concurrency":
        return text
    own_rps = report["capacity_rps"] / report[CAPACITY]
    verdict = "carried" if report[CAPACITY] >= 1.0 or carried else "not carried"
    within = "" if share is None else f", {share_text(share)} within the SLA"
    return f"the workload's own {number(own_rps)} requests/s: {verdict}{within}; {text}"


def certainty_text(sweep: SweepConfig, best: Row) -> str:
    """How well the winner's capacity is known."""
    report = best.report
    failed = report.get(FAILED_LOAD)
    if failed is None:
        return f"at least {_load(sweep, report[CAPACITY])}: no load that was tried fails"
    text = f"between {number(report[CAPACITY])} and {number(failed)} by search"
    low, high = report.get("capacity_load_low"), report.get("capacity_load_high")
    if low is not None and high is not None:
        text += f"; with other sessions of the kind {number(low)} to {number(high)} (95 %)"
    return text


def _misses(sweep: SweepConfig, answer: Answer) -> list[tuple[str, str]]:
    """Layouts that carry nothing, and why the first of them does not."""
    nothing = answer.nothing_carried
    if not nothing:
        return []
    nearest = max(nothing, key=lambda row: row.report.get("capacity_attainment") or 0.0)
    load = nearest.report.get(FAILED_LOAD)
    told = nearest.report
    reason = told.get("capacity_misses") or told.get("capacity_reason") or "no load was tried"
    at = "" if load is None else f" at {_load(sweep, load)}"
    name = layout_name(sweep, nearest)
    count = "1 layout" if len(nothing) == 1 else f"{len(nothing)} layouts"
    return [("Carry nothing", f"{count}; the best of them {name}{at}: {reason}")]


def _nothing(sweep: SweepConfig, answer: Answer) -> str:
    low, high = sweep.load.ends
    return (
        f"None of {len(answer.nothing_carried)} layouts carries any load from {low:g} to {high:g}"
    )
