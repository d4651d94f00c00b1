"""The answer of a sweep that sought capacities: what to deploy, what ties with it, and why.

Layouts are compared at the largest load that each carries:

1. by good output tokens per GPU (of requests within the SLA), that is by what such a token costs,
   in GPU hours or, with prices, in money;
2. those whose difference lies within the brackets of their capacities, or has either sign in 95 %
   of draws of other sessions (the same for both), are a tie: of them the one first that gives its
   users most tokens a second, then that of more and smaller workers, whose failure takes less with
   it, then the lower trial.

Where a load is needed, layouts are compared at that load: fewest GPUs first, then as above.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dynosim.sweep.results import CAPACITY, FAILED_LOAD, NOT_PURSUED, Row
from dynosim.sweep.study import USER_SPEED

CONFIDENCE = 0.95
IS_HELD = "need_is_held"
"""Whether a layout holds the load that the sweep needs; there where it needs one."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Rows of layouts, best first; `num_tied` of them are equally good as far as can be told."""

    ranked: list[Row]
    num_tied: int
    nothing_carried: list[Row]  # layouts that carry no load of the range, or not what is needed
    not_pursued: list[Row] = field(default_factory=list)  # far from the best: sought no further

    @property
    def best(self) -> Row | None:
        """What to deploy; None if no layout carries anything."""
        return self.ranked[0] if self.ranked else None

    @property
    def fastest(self) -> Row | None:
        """The one whose users get most tokens a second at its capacity."""
        return max(self.ranked, key=user_speed, default=None)

    @property
    def cheapest(self) -> Row | None:
        """The one whose good output tokens cost least, ties aside."""
        return max(self.ranked, key=worth, default=None)

    @property
    def carries_most(self) -> Row | None:
        """The one with the largest capacity, whatever it costs."""
        return max(self.ranked, key=lambda row: row.report[CAPACITY], default=None)

    @property
    def nearest(self) -> Row | None:
        """Of layouts that do not hold what is needed, the one that carries most."""
        carried = [row for row in self.nothing_carried if row.report[CAPACITY] is not None]
        return max(carried, key=lambda row: row.report[CAPACITY], default=None)


def answer_of(rows: Sequence[Row]) -> Answer:
    """The answer that the rows give. One that cannot differ from an earlier one is left out."""
    tried = [row for row in rows if CAPACITY in row.report and "same_as" not in row.report]
    carried, nothing = _parted(tried, _is_carried)
    ranked = sorted((row for row in carried if NOT_PURSUED not in row.report), key=_rank)
    num_tied = 0
    if ranked:
        leader = ranked[0]
        tied, others = _parted(ranked, lambda row: _is_tied(leader, row))
        ranked = [*sorted(tied, key=_among_equals), *others]
        num_tied = len(tied)
    return Answer(ranked, num_tied, nothing, [row for row in carried if NOT_PURSUED in row.report])


def _is_carried(row: Row) -> bool:
    return bool(row.report.get(IS_HELD, row.report[CAPACITY] is not None))


def _parted(rows: Sequence[Row], is_first: Callable[[Row], bool]) -> tuple[list[Row], list[Row]]:
    """Those of which something holds, and the others."""
    parts: tuple[list[Row], list[Row]] = ([], [])
    for row in rows:
        parts[not is_first(row)].append(row)
    return parts


def _rank(row: Row) -> tuple[float, float, int]:
    """Where a load is needed fewer GPUs come first, whatever they are used for besides."""
    gpus = float(row.report["num_gpus"]) if IS_HELD in row.report else 0.0
    return gpus, -worth(row), row.trial.index


def good_tok_s_per_gpu(row: Row) -> float:
    """Output tokens a second and GPU of requests within the SLA; of all, where there is none."""
    good, gpus = row.report.get("goodput_output_throughput_tok_s"), row.report.get("num_gpus")
    if good is not None and gpus:
        return float(good) / float(gpus)
    return float(row.report.get("output_tok_s_per_gpu") or 0.0)


def worth(row: Row) -> float:
    """Those tokens for what the GPU costs: with a price, per unit of the currency an hour."""
    hours, cost = row.report.get("gpu_hours_per_m_tokens"), row.report.get("cost_per_m_tokens")
    price = 1.0 if not hours or cost is None else float(cost) / float(hours)
    return good_tok_s_per_gpu(row) / price


def user_speed(row: Row) -> float:
    """Output tokens a second that the median user sees."""
    return float(row.report.get(USER_SPEED) or 0.0)


def error_of(row: Row) -> float:
    """How much larger the capacity may be than what was found, as a share of it."""
    low, high = row.report[CAPACITY], row.report[FAILED_LOAD]
    return 0.0 if high is None else float(high / low - 1.0)


def _is_tied(leader: Row, row: Row) -> bool:
    if _rank(leader)[0] != _rank(row)[0]:
        return False
    best, own = worth(leader), worth(row)
    is_within = best - own <= best * max(error_of(leader), error_of(row))
    return is_within or _is_chance(leader, row)


def _is_chance(leader: Row, row: Row) -> bool:
    """Whether other sessions might have turned the order round.

    At another capacity a layout makes more tokens, or fewer, in proportion.
    """
    if row is leader or not leader.draws or len(leader.draws) != len(row.draws):
        return False
    pairs = zip(_drawn(leader), _drawn(row), strict=True)
    differences = sorted(best - own for best, own in pairs)
    return differences[int(len(differences) * (1.0 - CONFIDENCE) / 2)] <= 0.0


def _drawn(row: Row) -> list[float]:
    made = worth(row) / float(row.report[CAPACITY])
    return [made * load for load in row.draws]


def _among_equals(row: Row) -> tuple[float, float, int]:
    return -user_speed(row), -float(row.report.get("num_workers") or 0), row.trial.index


def need_dict(answer: Answer, need: Mapping[str, float]) -> dict[str, Any]:
    """What a sweep that needs a load found, for summary.json; `need` is what it asks for."""
    best, nearest = answer.best, answer.nearest
    return {
        **need,
        "is_held": best is not None,
        "fewest_gpus": None if best is None else best.report["num_gpus"],
        "headroom": None if best is None else best.report["need_headroom"],
        "nearest": None if nearest is None or best is not None else nearest.trial.index,
        "nearest_rps": None
        if nearest is None or best is not None
        else nearest.report["capacity_rps"],
    }


def answer_dict(answer: Answer) -> dict[str, Any]:
    """The answer as numbers of trials, for summary.json."""
    best, fastest, most = answer.best, answer.fastest, answer.carries_most
    cheapest = answer.cheapest
    return {
        "best": None if best is None else best.trial.index,
        "tied": [row.trial.index for row in answer.ranked[1 : answer.num_tied]],
        "cheapest": None if cheapest is None else cheapest.trial.index,
        "fastest_for_users": None if fastest is None else fastest.trial.index,
        "carries_most": None if most is None else most.trial.index,
        "ranked": [row.trial.index for row in answer.ranked],
        "carry_nothing": [row.trial.index for row in answer.nothing_carried],
        "not_pursued": [row.trial.index for row in answer.not_pursued],
    }
