"""What plots of a sweep need to know about its table of trials.

Columns: `trial_id`, `status` (ok, infeasible, failed), `reason`, the space's keys, the report's
keys, `is_pareto`, and `meets_sla` where the sweep has an SLA. Trials whose intervals were made have
their ends in `{key}_low` and `{key}_high`.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dynosim.plots.chart import Fill, Label
from dynosim.plots.style import share_text

if TYPE_CHECKING:
    import polars as pl

Trial = Mapping[str, Any]

AXIS_TITLES = {
    "output_tok_s_per_gpu": "output tokens/s per GPU",
    "total_tok_s_per_gpu": "total tokens/s per GPU",
    "steady_output_tok_s_per_gpu": "output tokens/s per GPU, warm-up and tail cut off",
    "mean_output_token_throughput_per_user": "output tokens/s per user (mean)",
    "median_output_token_throughput_per_user": "output tokens/s per user (median)",
    "output_throughput_tok_s": "output tokens/s",
}

ERROR_BARS = "95 % of replays"

TENSOR_PARALLEL, WORKERS, ROUTER = "engine.tensor_parallel", "cluster.workers", "router.mode"
MODE, DISAGGREGATED = "cluster.mode", "disagg"
POOL_WORKERS = ("cluster.prefill.workers", "cluster.decode.workers")
POOL_TENSOR_PARALLEL = (
    "cluster.prefill.engine.tensor_parallel",
    "cluster.decode.engine.tensor_parallel",
)
LAYOUT = "layout"
"""A report's name of its cluster: `2P1D`, or `4x`."""
BATCHED_TOKENS = "engine.max_num_batched_tokens"
_SHORT_ROUTERS = {"round-robin": "rr", "random": "rnd", "least-loaded": "ll", "kv": "kv"}
_WHOLE_RUN_KEYS = ("model", "hardware", "seed")


def axis_title(objective: str) -> str:
    """The objective in words."""
    return AXIS_TITLES.get(objective, objective.replace("_", " "))


def space_keys(trials: "pl.DataFrame") -> list[str]:
    """The columns that hold what the sweep varied."""
    return [name for name in trials.columns if "." in name or name in _WHOLE_RUN_KEYS]


def varied_keys(trials: "pl.DataFrame") -> list[str]:
    """The space's keys that take more than one value."""
    return [key for key in space_keys(trials) if trials[key].n_unique() > 1]


def finished(trials: "pl.DataFrame", objectives: tuple[str, str]) -> "pl.DataFrame":
    """Trials that ran and have both objectives."""
    import polars as pl

    known = [pl.col(name).cast(pl.Float64).is_finite().fill_null(False) for name in objectives]
    return trials.filter(pl.col("status") == "ok", *known)


def frontier(trials: "pl.DataFrame", objectives: tuple[str, str]) -> "pl.DataFrame":
    """Finished trials on the Pareto frontier, along the horizontal axis (the second objective)."""
    import polars as pl

    return finished(trials, objectives).filter(pl.col("is_pareto")).sort(objectives[1])


def is_disaggregated(trial: Trial) -> bool:
    """Whether it has a pool for each phase: by what varied, else by what its report says."""
    mode = trial.get(MODE)
    if mode is not None:
        return bool(mode == DISAGGREGATED)
    is_split = any(trial.get(key) is not None for key in (*POOL_WORKERS, *POOL_TENSOR_PARALLEL))
    return is_split or str(trial.get(LAYOUT) or "").endswith("D")


def pool_tensor_parallel(trial: Trial) -> tuple[int, int]:
    """That of both pools of a disaggregated cluster; 0: the sweep does not vary it."""
    shared = trial.get(TENSOR_PARALLEL)
    sizes = [trial.get(key) for key in POOL_TENSOR_PARALLEL]
    prefill, decode = (int((shared if size is None else size) or 0) for size in sizes)
    return prefill, decode


def label(trial: Trial, keys: Sequence[str]) -> str:
    """A short name of a trial's shape, such as "4xTP2 rr 8192" or "2P1D TP2+TP4"."""
    is_split = is_disaggregated(trial)
    words = [_split_shape(trial) if is_split else _shape(trial, keys)]
    has_other_mode = MODE in trial
    told = {TENSOR_PARALLEL, WORKERS, ROUTER, BATCHED_TOKENS, MODE}
    told |= {*POOL_WORKERS, *POOL_TENSOR_PARALLEL} if is_split else set()
    if ROUTER in keys and trial.get(ROUTER) is not None:
        words.append(_SHORT_ROUTERS.get(str(trial[ROUTER]), str(trial[ROUTER])))
    if BATCHED_TOKENS in keys and trial.get(BATCHED_TOKENS) is not None:
        words.append(str(trial[BATCHED_TOKENS]))
    others = short_names([key for key in keys if key not in told])
    words += [
        f"{name}={trial.get(key)}"
        for key, name in others.items()
        if trial.get(key) is not None or not has_other_mode
    ]
    return " ".join(filter(None, words)) or f"trial {trial['trial_id']}"


def _shape(trial: Trial, keys: Sequence[str]) -> str:
    workers, size = trial.get(WORKERS), trial.get(TENSOR_PARALLEL)
    if workers is not None:
        return f"{workers}x" + ("" if size is None else f"TP{size}")
    if size is not None:
        return f"TP{size}"
    return str(trial[MODE]) if MODE in keys else ""


def _split_shape(trial: Trial) -> str:
    """Its workers and their tensor parallelism, of prefill first; only what is known."""
    workers = [trial.get(key) for key in POOL_WORKERS]
    if all(number is not None for number in workers):
        shape = f"{workers[0]}P{workers[1]}D"
    else:
        known = zip(workers, "PD", strict=True)
        named = "".join(f"{number}{role}" for number, role in known if number is not None)
        shape = str(trial.get(LAYOUT) or named or DISAGGREGATED)
    prefill, decode = pool_tensor_parallel(trial)
    if prefill and decode:
        return f"{shape} TP{prefill}+TP{decode}"
    sizes = [f"{role} TP{size}" for role, size in (("P", prefill), ("D", decode)) if size]
    return " ".join([shape, *sizes])


def sla_frontier(trials: "pl.DataFrame", objectives: tuple[str, str]) -> "pl.DataFrame":
    """Likewise among the trials that meet the SLA; empty where that is the same frontier."""
    import polars as pl

    name = "is_sla_pareto" if "is_sla_pareto" in trials.columns else "is_pareto"
    rows = finished(trials, objectives)
    if rows[name].equals(rows["is_pareto"]):
        return rows.clear()
    return rows.filter(pl.col(name)).sort(objectives[1])


def frontier_labels(trials: "pl.DataFrame", objectives: tuple[str, str]) -> list[Label]:
    """Labels of the frontiers' points, without those that would cover another one."""
    rows = frontier(trials, objectives).to_dicts() + sla_frontier(trials, objectives).to_dicts()
    keys = varied_keys(trials)
    shown = finished(trials, objectives)
    spans = [_span(shown[name].to_list()) for name in objectives]
    labels: list[Label] = []
    taken: list[tuple[float, float]] = []
    for row in rows:
        y, x = (float(row[name]) for name in objectives)
        at = ((x - spans[1][0]) / spans[1][1], (y - spans[0][0]) / spans[0][1])
        is_left = at[0] > 0.85
        if any(abs(at[0] - u) < 0.13 and abs(at[1] - v) < 0.045 for u, v in taken):
            continue
        taken.append(at)
        labels.append(Label(label(row, keys), x, y, is_left))
    return labels


def _span(values: list[float]) -> tuple[float, float]:
    """Least value, and distance to the greatest (1 when all are equal)."""
    return min(values), (max(values) - min(values)) or 1.0


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """Every dotted key by its last word, or in full where that is ambiguous; that of a pool behind
    P or D."""
    last = [_last_word(key) for key in keys]
    return {
        key: word if last.count(word) == 1 else key for key, word in zip(keys, last, strict=True)
    }


def _last_word(key: str) -> str:
    pools = {"cluster.prefill.": "P ", "cluster.decode.": "D "}
    role = next((name for prefix, name in pools.items() if key.startswith(prefix)), "")
    return role + key.rpartition(".")[2]


def interval(trial: Trial, key: str) -> tuple[float, float] | None:
    """Where 95 % of the trial's replays lie; None if that was not found out."""
    low, high = trial.get(f"{key}_low"), trial.get(f"{key}_high")
    return None if low is None or high is None else (low, high)


@dataclass(frozen=True, slots=True)
class ErrorBar:
    """A line from end to end of an interval. The trial itself need not lie on it."""

    x: tuple[float, float]
    y: tuple[float, float]


def error_bars(trials: "pl.DataFrame", objectives: tuple[str, str]) -> list[ErrorBar]:
    """The intervals of both objectives, each at the other's predicted value."""
    bars = []
    for row in finished(trials, objectives).to_dicts():
        y, x = (float(row[name]) for name in objectives)
        y_ends, x_ends = (interval(row, name) for name in objectives)
        bars += [ErrorBar((x, x), y_ends)] if y_ends is not None else []
        bars += [ErrorBar(x_ends, (y, y))] if x_ends is not None else []
    return bars


def violates_sla(trial: Trial) -> bool:
    """Whether the trial is known to break the sweep's SLA."""
    return trial.get("meets_sla") is False


def timing_sources(trials: "pl.DataFrame") -> list[str]:
    """The sources of step times among the trials that ran, in alphabetical order."""
    if "timing_source" not in trials.columns:
        return []
    return sorted(trials["timing_source"].drop_nulls().unique().to_list())


def common_source(trials: "pl.DataFrame") -> str | None:
    """The one source of all trials, "mixed" for several, None for none."""
    sources = timing_sources(trials)
    return sources[0] if len(sources) == 1 else ("mixed" if sources else None)


def timing_note(trials: "pl.DataFrame") -> str:
    """One line about the step times behind a sweep."""
    note = f"Step times {' and '.join(timing_sources(trials)) or 'of unknown source'}"
    if "timing_description" in trials.columns:
        shared = _shared_words(trials["timing_description"].drop_nulls().unique().to_list())
        note += f": {shared}" if shared else ""
    lowest = lowest_in_range(trials)
    if common_source(trials) == "estimated":
        note += " · nothing was measured"
    elif lowest is not None:
        least = "" if lowest == 1 else "at least "
        note += f" · {least}{share_text(lowest)} of steps inside the measured range"
    return note


def _shared_words(descriptions: Sequence[str]) -> str:
    """What descriptions of step times share: layouts differ, tables and versions do not."""
    lists = [re.split(r", (?![^(]*\))", text) for text in sorted(descriptions)]
    if not lists:
        return ""
    return ", ".join(part for part in lists[0] if all(part in other for other in lists[1:]))


def lowest_in_range(trials: "pl.DataFrame") -> float | None:
    """The smallest share of steps inside the measured range among the trials that have one."""
    if "timing_in_range_share" not in trials.columns:
        return None
    lowest = trials["timing_in_range_share"].drop_nulls().min()
    return lowest if isinstance(lowest, (int, float)) else None


def fill_of(row: Trial) -> Fill:
    """How the mark of a trial or of one of its loads is filled: by what its step times rest on.

    Full where they were measured in all of its steps, hollow where nothing was, else half.
    """
    source, share = row.get("timing_source"), row.get("timing_in_range_share")
    if source is None or source == "estimated":
        return "hollow"
    return "full" if source == "measured" and (share is None or share >= 1.0) else "half"


FILLS_CAPTION = (
    "Filled marks rest on measured step times, pale ones on derived times or on steps partly "
    "outside the measured range, hollow ones on estimates."
)
