"""What each setting does to the capacity of layouts that differ in nothing else.

For a dimension and two of its values, every layout with the one is paired with the layout that has
the other and is else the same; the effect is the geometric mean of the ratios of their capacities.
Capacities are brackets, so a ratio is known within bounds; the mean of the bounds' logarithms
bounds the mean. An effect whose bounds contain "no change" is a tie.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any

from dynosim.sweep.results import CAPACITY, FAILED_LOAD, NOT_PURSUED, Row


@dataclass(frozen=True, slots=True)
class PairedEffect:
    """The change of the capacity from one value of a setting to another, others held.

    `ratio` lies between `low` and `high`; `smallest` and `largest` are those of single pairs.
    `num_without` pairs have no ratio: only one of the two layouts carries anything, in
    `num_only_to` of them the one with the new value.
    """

    key: str
    from_value: Any
    to_value: Any
    num_pairs: int
    ratio: float
    low: float
    high: float
    smallest: float
    largest: float
    num_without: int = 0
    num_only_to: int = 0

    @property
    def is_tie(self) -> bool:
        """Whether nothing tells it from no change."""
        return self.low <= 1.0 <= self.high


def paired_effects(
    rows: Sequence[Row], keys: Sequence[str], base: Mapping[str, Any]
) -> list[PairedEffect]:
    """For each key the effects of its other values against that of `base`, in order of appearance.

    Rows that cannot differ from another one (`same_as`) take no part, nor do those that were not
    pursued or carry every load that was tried, nor keys of which no two layouts differ in them
    alone.
    """
    tried = [row for row in rows if _is_known(row)]
    effects = []
    for key in keys:
        by_rest: dict[str, dict[str, Row]] = {}
        values: dict[str, Any] = {}
        for row in tried:
            if key not in row.trial.values:
                continue  # its cluster is of the mode that has no such key
            rest = {other: value for other, value in row.trial.values.items() if other != key}
            name = json.dumps(row.trial.values.get(key))
            values.setdefault(name, row.trial.values.get(key))
            by_rest.setdefault(json.dumps(rest, sort_keys=True), {})[name] = row
        start = json.dumps(base.get(key))
        for name, value in values.items():
            pairs = [
                (group[start], group[name])
                for group in by_rest.values()
                if name != start and start in group and name in group
            ]
            effect = _effect(key, base.get(key), value, pairs)
            effects += [] if effect is None else [effect]
    return effects


def _effect(
    key: str, from_value: Any, to_value: Any, pairs: Sequence[tuple[Row, Row]]
) -> PairedEffect | None:
    carried = [(_logs(a), _logs(b)) for a, b in pairs if _carries(a) and _carries(b)]
    only = [_carries(b) for a, b in pairs if _carries(a) != _carries(b)]
    if not carried:
        return None
    ratios = [b[0] - a[0] for a, b in carried]
    lows = [b[0] - a[1] for a, b in carried]
    highs = [b[1] - a[0] for a, b in carried]
    count = len(carried)
    return PairedEffect(
        key, from_value, to_value, count, exp(sum(ratios) / count), exp(sum(lows) / count),
        exp(sum(highs) / count), exp(min(ratios)), exp(max(ratios)), len(only), sum(only),
    )  # fmt: skip


def _carries(row: Row) -> bool:
    return row.report[CAPACITY] is not None


def _is_known(row: Row) -> bool:
    """Whether its capacity is a bracket, or nothing."""
    report = row.report
    is_own = CAPACITY in report and "same_as" not in report and NOT_PURSUED not in report
    return is_own and (report[CAPACITY] is None or report[FAILED_LOAD] is not None)


def _logs(row: Row) -> tuple[float, float]:
    """Of the ends of the capacity's bracket."""
    return log(row.report[CAPACITY]), log(row.report[FAILED_LOAD])
