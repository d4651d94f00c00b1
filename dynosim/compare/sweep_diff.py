"""Two sweeps side by side: layouts matched by what the sweeps varied, and their winners."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from dynosim.compare.result_folder import SweepFolder
from dynosim.compare.run_diff import Change, KeyChange, changed_keys, number_changes
from dynosim.errors import ConfigError
from dynosim.plots.trials import label

CAPACITY = "capacity_rps"
_LOAD, _FAILED_LOAD = "capacity_load", "capacity_load_failed"
_OK = "ok"
Values = dict[str, Any]


@dataclass(frozen=True, slots=True)
class LayoutDiff:
    """A layout that both sweeps have. Of a capacity, `low` and `high` of a change are its bounds
    by the brackets: what is smaller than they tell is no difference.
    """

    name: str
    values: Values
    changes: tuple[Change, ...]  # the capacity, or the objectives
    status: tuple[str, str]  # how its trial ended in each

    @property
    def can_be_told(self) -> bool:
        """Whether anything about it has changed beyond what its brackets leave open."""
        told = [change.can_be_told for change in self.changes]
        differs = [bool(change.change) for change in self.changes]
        return self.status[0] != self.status[1] or any(
            differs[place] if one is None else one for place, one in enumerate(told)
        )


@dataclass(frozen=True, slots=True)
class Winner:
    """The best layout of a sweep; `report` is that of its trial."""

    name: str
    values: Values
    tied: tuple[Values, ...]  # as good as it, as far as can be told; with itself
    report: Mapping[str, Any]
    elsewhere: Mapping[str, Any] | None  # the report of the same layout in the other sweep


@dataclass(frozen=True, slots=True)
class SweepDiff:
    """All that differs between two sweeps."""

    keys: tuple[KeyChange, ...]
    seeks_capacity: bool
    layouts: tuple[LayoutDiff, ...]  # largest change first
    only_a: tuple[str, ...]  # names
    only_b: tuple[str, ...]
    winners: tuple[Winner | None, Winner | None]

    @property
    def same_winner(self) -> bool:
        """Whether both recommend the same layout, or neither any."""
        a, b = self.winners
        return (a and a.values) == (b and b.values)

    @property
    def is_tied(self) -> bool:
        """Whether each sweep's winner is as good as the other's, in the other's eyes."""
        a, b = self.winners
        return a is not None and b is not None and b.values in a.tied and a.values in b.tied

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "configuration": [asdict(change) for change in self.keys],
            "winner_a": None if self.winners[0] is None else self.winners[0].values,
            "winner_b": None if self.winners[1] is None else self.winners[1].values,
            "same_winner": self.same_winner,
            "winners_are_tied": self.is_tied,
            "layouts": [
                {
                    "name": layout.name,
                    "values": layout.values,
                    "status_a": layout.status[0],
                    "status_b": layout.status[1],
                    "can_be_told": layout.can_be_told,
                    "changes": [change.to_dict() for change in layout.changes],
                }
                for layout in self.layouts
            ],
            "only_in_a": list(self.only_a),
            "only_in_b": list(self.only_b),
        }


def diff_sweeps(a: SweepFolder, b: SweepFolder) -> SweepDiff:
    """What differs between two sweeps. Raises: ConfigError if only one sought capacities."""
    seeks = ["answer" in one.summary for one in (a, b)]
    if seeks[0] != seeks[1]:
        sought, fixed = (a, b) if seeks[0] else (b, a)
        raise ConfigError(
            f"{sought.path} sought capacities, {fixed.path} ran one load: they do not compare (run "
            "one of them anew with the load.search of the other)"
        )
    a, b = _with_keys_of(a, b), _with_keys_of(b, a)
    rows_a, rows_b = _rows(a), _rows(b)
    shared = [key for key in rows_a if key in rows_b]
    names = [CAPACITY] if seeks[0] else _objectives(a, b)
    layouts = [_layout(rows_a[key], rows_b[key], names, a, b) for key in shared]
    layouts.sort(key=lambda layout: (not layout.can_be_told, -_size(layout)))
    return SweepDiff(
        keys=changed_keys(a.config, b.config),
        seeks_capacity=seeks[0],
        layouts=tuple(layouts),
        only_a=tuple(_name(rows_a[key], a) for key in rows_a if key not in rows_b),
        only_b=tuple(_name(rows_b[key], b) for key in rows_b if key not in rows_a),
        winners=(_winner(a, rows_a, rows_b), _winner(b, rows_b, rows_a)),
    )


def _with_keys_of(sweep: SweepFolder, other: SweepFolder) -> SweepFolder:
    """The sweep as if it varied the other's keys, too: each by what its file sets, if it does."""
    import polars as pl

    more = [key for key in other.space if key not in sweep.space]
    columns = [pl.lit(sweep.config.get(key)).alias(key) for key in more]
    return replace(
        sweep, trials=sweep.trials.with_columns(columns), space=tuple(sorted((*sweep.space, *more)))
    )


def _rows(sweep: SweepFolder) -> dict[str, dict[str, Any]]:
    """Its trials by their values; those that could not differ from another are left out."""
    rows = [row for row in sweep.trials.iter_rows(named=True) if row.get("same_as") is None]
    return {_key(_values(row, sweep)): row for row in rows}


def _key(values: Values) -> str:
    return json.dumps(values, sort_keys=True)


def _values(row: Mapping[str, Any], sweep: SweepFolder) -> Values:
    return {key: row[key] for key in sweep.space}


def _name(row: Mapping[str, Any], sweep: SweepFolder) -> str:
    varied = [key for key in sweep.space if sweep.trials[key].n_unique() > 1]
    return label({"trial_id": row["trial_id"], **_values(row, sweep)}, varied)


def _objectives(a: SweepFolder, b: SweepFolder) -> list[str]:
    named = dict.fromkeys((*a.summary.get("objectives", {}), *b.summary.get("objectives", {})))
    return [name for name in named if name in a.trials.columns and name in b.trials.columns]


def _layout(
    row_a: Mapping[str, Any],
    row_b: Mapping[str, Any],
    names: list[str],
    a: SweepFolder,
    b: SweepFolder,
) -> LayoutDiff:
    changes = []
    for name in names:
        values = row_a.get(name), row_b.get(name)
        low, high = _by_brackets(row_a, row_b) if name == CAPACITY else (None, None)
        changes.append(Change(name, *values, low, high))
    status = (_status(row_a), _status(row_b))
    return LayoutDiff(_name(row_a, a), _values(row_a, a), tuple(changes), status)


def _status(row: Mapping[str, Any]) -> str:
    """How a trial ended; one that carries no load is told apart."""
    if row["status"] == _OK and _LOAD in row and row[_LOAD] is None:
        return "carries no load"
    return str(row["status"])


def _by_brackets(
    row_a: Mapping[str, Any], row_b: Mapping[str, Any]
) -> tuple[float | None, float | None]:
    """Least and largest change of a capacity that the brackets of both leave possible."""
    low_a, high_a = _bracket(row_a)
    low_b, high_b = _bracket(row_b)
    if None in (low_a, high_a, low_b, high_b):
        return None, None
    return low_b - high_a, high_b - low_a  # type: ignore[operator]


def _bracket(row: Mapping[str, Any]) -> tuple[float | None, float | None]:
    """Requests a second that a layout carries, and that it does not carry any more."""
    rps, load, failed = (row.get(name) for name in (CAPACITY, _LOAD, _FAILED_LOAD))
    if rps is None or not load:
        return None, None
    return float(rps), None if failed is None else float(rps) * float(failed) / float(load)


def _size(layout: LayoutDiff) -> float:
    """How much a layout has changed, in percent."""
    return max((abs(change.percent or 0.0) for change in layout.changes), default=0.0)


def _winner(
    sweep: SweepFolder,
    rows: Mapping[str, Mapping[str, Any]],
    others: Mapping[str, Mapping[str, Any]],
) -> Winner | None:
    """What a sweep recommends first; `others` are the trials of the other one."""
    top = sweep.summary.get("top") or []
    if not top:
        return None
    by_trial = {row["trial_id"]: row for row in rows.values()}
    row = by_trial.get(top[0]["trial_id"])
    if row is None:
        return None
    tied = (sweep.summary.get("answer") or {}).get("tied", [])
    values = _values(row, sweep)
    equals = [_values(by_trial[index], sweep) for index in tied if index in by_trial]
    elsewhere = others.get(_key(values))
    return Winner(_name(row, sweep), values, (values, *equals), row, elsewhere)


def watched_changes(diff: SweepDiff) -> dict[str, Change]:
    """What conditions can be about: A's best layout in both sweeps, by key of the report.

    `capacity` is the requests a second that it carries, `best_capacity` those that each sweep's own
    best carries; nothing carried is 0.
    """
    best_a, best_b = diff.winners
    found: dict[str, Change] = {}
    if diff.seeks_capacity:
        rates = [0.0 if best is None else float(best.report[CAPACITY]) for best in (best_a, best_b)]
        found["best_capacity"] = Change("best_capacity", *rates)
    if best_a is None or best_a.elsewhere is None:
        return found
    reports = (best_a.report, best_a.elsewhere)
    if diff.seeks_capacity:
        rates = [float(report.get(CAPACITY) or 0.0) for report in reports]
        found = {"capacity": Change("capacity", *rates), **found}
    return found | number_changes(*reports)
