"""The table of a sweep's trials on its page: every trial once, its numbers as they are shown."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dynosim.plots import trials as trial_table
from dynosim.plots.page import Cell, DataColumn, DataTable, number, rounded

if TYPE_CHECKING:
    import polars as pl

LAYOUT = "layout"
"""The key of the column with the trial's name."""

_FIXED_COLUMNS = {
    "num_gpus": "GPUs",
    "output_tok_s_per_gpu": "out tok/s/GPU",
    "mean_output_token_throughput_per_user": "out tok/s/user",
    "mean_ttft_ms": "TTFT mean (ms)",
    "p99_ttft_ms": "TTFT p99 (ms)",
    "mean_itl_ms": "ITL mean (ms)",
    "p99_itl_ms": "ITL p99 (ms)",
    "prefix_cache_reused_ratio": "reuse",
    "sla_attainment": "in SLA",
    "goodput_rps": "goodput/s",
}
_CAPACITY_COLUMNS = {
    "num_gpus": "GPUs",
    "capacity_rps": "req/s",
    "capacity_load": "load",
    "capacity_load_low": "95 % of draws",
    "output_tok_s_per_gpu": "out tok/s/GPU",
    "median_output_token_throughput_per_user": "out tok/s/user",
    "p95_ttft_ms": "TTFT p95 (ms)",
    "p95_tpot_ms": "TPOT p95 (ms)",
    "p95_e2e_latency_ms": "E2E p95 (ms)",
    "capacity_attainment": "in SLA",
    "prefix_cache_reused_ratio": "reuse",
    "gpu_hours_per_m_good_output_tokens": "GPU-h/M good",
    "cost_per_m_good_output_tokens": "cost/M good",
}
_HINTS = {
    "capacity_rps": "requests a second at the largest load that the layout carries",
    "capacity_load": "that load, as a multiple of the workload's own or as requests in flight",
    "capacity_load_low": "where that load lies if other sessions of the kind come",
    "gpu_hours_per_m_good_output_tokens": "GPU hours per million output tokens of requests within "
    "the SLA",
    "sla_attainment": "share of the requests within the SLA",
    "capacity_attainment": "share of the requests within the SLA, at that load",
    "prefix_cache_reused_ratio": "share of the prompt tokens that the prefix cache had",
}


def trials_data_table(
    rows: Sequence[Mapping[str, Any]],
    trials: "pl.DataFrame",
    *,
    hidden: Sequence[str] = (),
    places: Mapping[int, str] | None = None,
) -> DataTable:
    """Rows in the order given. `hidden` are further numbers that pictures place a row by; `places`
    says by trial which rank it has, where the sweep ranks them."""
    keys = trial_table.varied_keys(trials)
    is_capacity = "capacity_load" in trials.columns
    numbers = {
        name: title
        for name, title in (_CAPACITY_COLUMNS if is_capacity else _FIXED_COLUMNS).items()
        if name in trials.columns and trials[name].null_count() < len(trials)
    }
    more = [key for key in dict.fromkeys(hidden) if key in trials.columns and key not in numbers]
    columns = [
        DataColumn("trial_id", "trial", is_setting=True),
        *([DataColumn("place", "place", is_text=True)] if places is not None else []),
        DataColumn(LAYOUT, "layout", is_text=True),
        *_setting_columns(trials, keys),
        *(DataColumn(key, title, hint=_HINTS.get(key, key)) for key, title in numbers.items()),
        DataColumn("remarks", "remarks", is_text=True),
        *(DataColumn(key, key, is_hidden=True) for key in more),
    ]
    cells = [
        [
            row["trial_id"],
            *([places.get(row["trial_id"], "")] if places is not None else []),
            trial_table.label(row, keys),
            *(_setting(row[key]) for key in keys),
            *(_number(row, key) for key in numbers),
            _remarks(row),
            *(rounded(row[key], 6) for key in more),
        ]
        for row in rows
    ]
    return DataTable("trials", columns, cells)


def not_run_table(rows: Sequence[Mapping[str, Any]], trials: "pl.DataFrame") -> DataTable:
    """Trials that did not run, with their reasons."""
    keys = trial_table.varied_keys(trials)
    columns = [
        DataColumn("trial_id", "trial", is_setting=True),
        DataColumn(LAYOUT, "layout", is_text=True),
        *_setting_columns(trials, keys),
        DataColumn("reason", "reason", is_text=True),
    ]
    cells: list[list[Cell]] = [
        [
            row["trial_id"],
            trial_table.label(row, keys),
            *(_setting(row[key]) for key in keys),
            row["reason"] or "",
        ]
        for row in rows
    ]
    return DataTable("not-run", columns, cells)


def _setting_columns(trials: "pl.DataFrame", keys: Sequence[str]) -> list[DataColumn]:
    names = trial_table.short_names(keys)
    return [
        DataColumn(key, names[key], is_text=_is_text(trials, key), is_setting=True, hint=key)
        for key in keys
    ]


def _is_text(trials: "pl.DataFrame", key: str) -> bool:
    return not trials[key].dtype.is_numeric()


def _setting(value: Any) -> Cell:
    """A value of the space as a run file writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    return value if isinstance(value, (int, float, str)) else None


def _number(row: Mapping[str, Any], key: str) -> Cell:
    """The number and, where it was found, its interval."""
    if key in ("capacity_rps", "capacity_load"):
        exact = rounded(row[key], 6)  # commands take it; a bracket tells three digits
        return None if exact is None else (exact, number(row[key]))
    if key == "capacity_load_low":
        return _draws(row)
    value = rounded(row[key])
    ends = trial_table.interval(row, key)
    if value is None or ends is None:
        return value
    return value, f"{number(row[key], 4)} ({number(ends[0], 4)} to {number(ends[1], 4)})"


def _draws(row: Mapping[str, Any]) -> Cell:
    """Where the capacity lies in 95 % of draws of other sessions."""
    ends = trial_table.interval(row, "capacity_load")
    return None if ends is None else (ends[0], f"{number(ends[0])} to {number(ends[1])}")


def _remarks(row: Mapping[str, Any]) -> str:
    remarks = ["on the frontier"] if row["is_pareto"] else []
    if row.get("saturated"):
        remarks.append("saturated")
    if "capacity_load" in row:
        remarks += _capacity_remarks(row)
    elif trial_table.violates_sla(row):
        remarks.append("misses SLA")
    share = row.get("is_pareto_share")
    if share is not None and share < 1:
        remarks.append(f"there in {100 * share:.0f} % of replays")
    return ", ".join(remarks)


def _capacity_remarks(row: Mapping[str, Any]) -> list[str]:
    if row.get("same_as") is not None:
        return [f"serves as trial {row['same_as']:g} does"]
    if row.get("capacity_not_pursued") is not None:
        return [f"not pursued: {row['capacity_not_pursued']}"]
    if row.get("need_is_held") is False:
        return [f"does not hold what is needed: {row.get('need_limit') or 'untried'}"]
    if row["capacity_load"] is None and row.get("status") == "ok":
        why = row.get("capacity_misses") or row.get("capacity_reason") or "no load was tried"
        return [f"carries nothing: {why}"]
    if row["capacity_load"] is not None and row.get("capacity_load_failed") is None:
        return ["carries at least that"]
    return []
