"""Which trials get a folder, in which order, and what each is the best of.

1. The best of all.
2. The best of every other family of layouts: mode and GPUs per worker, so that the second is
   another way to serve, not the winner with another detail.
3. The next best, until there are as many as `top` asks for.
4. Where they are not among these, the one that is fastest for users and the cheapest.

Aggregated and disaggregated layouts are ranked each by themselves, in folders of their own; of a
sweep that has both, the best of all is the first of its mode.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from dynosim.config.engine import EngineConfig
from dynosim.config.schema import RunConfig
from dynosim.config.sweep_loading import SweepConfig
from dynosim.sweep.answer import Answer, user_speed, worth
from dynosim.sweep.results import Row, frontier_rows
from dynosim.sweep.study import USER_SPEED

BEST, FASTEST, CHEAPEST, NEXT = "best", "fastest for users", "cheapest", "next best"


@dataclass(frozen=True, slots=True)
class Recommended:
    """A trial with a folder of its own, and what it is there for."""

    row: Row
    roles: tuple[str, ...]
    family: str
    folder: str = ""  # in the sweep's: `agg/top1`


@dataclass(slots=True)
class _Choice:
    """The roles of the chosen, by trial, in the order of their folders."""

    roles: dict[int, list[str]] = field(default_factory=dict)

    def add(self, row: Row, role: str) -> None:
        self.roles.setdefault(row.trial.index, []).append(role)

    def has(self, row: Row) -> bool:
        return row.trial.index in self.roles


def winners_of(sweep: SweepConfig, rows: Sequence[Row], answer: Answer | None) -> list[Recommended]:
    """The trials that are recommended, best first; `answer` is that of a search for capacities."""
    ranked = frontier_rows(sweep, rows) if answer is None else answer.ranked
    return ranked_winners(ranked, top=sweep.top)


def ranked_winners(ranked: Sequence[Row], *, top: int) -> list[Recommended]:
    """The winners among rows that are in order, best first; of each mode so many."""
    modes = dict.fromkeys(mode_of_row(row) for row in ranked)
    if len(modes) < 2:
        return _winners_of_mode(ranked, top=top)
    places = {row.trial.index: place for place, row in enumerate(ranked)}
    found = [
        _among_modes(winner, mode, is_first=places[winner.row.trial.index] == 0)
        for mode in modes
        for winner in _winners_of_mode([r for r in ranked if mode_of_row(r) == mode], top=top)
    ]
    return sorted(found, key=lambda winner: places[winner.row.trial.index])


def mode_of_row(row: Row) -> str:
    """The mode of its cluster."""
    return "agg" if row.trial.config is None else row.trial.config.cluster.mode


def _among_modes(winner: Recommended, mode: str, *, is_first: bool) -> Recommended:
    """The winner with roles that hold among those of its mode."""
    roles = [f"{role} of {mode}" if role in (BEST, FASTEST, CHEAPEST) else role
             for role in winner.roles]  # fmt: skip
    return replace(winner, roles=(*([BEST] if is_first else []), *roles))


def _winners_of_mode(ranked: Sequence[Row], *, top: int) -> list[Recommended]:
    if not ranked:
        return []
    choice = _Choice()
    choice.add(ranked[0], BEST)
    families = {_family(ranked[0])}
    for row in ranked:
        if len(choice.roles) < top and _family(row) not in families:
            families.add(_family(row))
            choice.add(row, f"best of {_family(row)}")
    for row in ranked:
        if len(choice.roles) < top and not choice.has(row):
            choice.add(row, NEXT)
    fast = [row for row in ranked if row.report.get(USER_SPEED) is not None]
    if fast:
        choice.add(max(fast, key=user_speed), FASTEST)
    choice.add(max(ranked, key=worth), CHEAPEST)
    by_index = {row.trial.index: row for row in ranked}
    return [
        Recommended(
            by_index[index],
            tuple(roles),
            _family(by_index[index]),
            f"{mode_of_row(by_index[index])}/top{place}",
        )
        for place, (index, roles) in enumerate(choice.roles.items(), 1)
    ]


def family_of(config: RunConfig) -> str:
    """Layouts of one family differ in details: how many workers, which router, which limits."""
    pools = [layout_of(pool.engine) for pool in config.pools()]
    return f"{config.cluster.mode} {'+'.join(pools)}"


def layout_of(engine: EngineConfig) -> str:
    """How a worker's GPUs are used, in the field's short form."""
    parts = [f"TP{engine.tensor_parallel}"]
    if engine.data_parallel > 1:
        parts.append(f"DP{engine.data_parallel}")
    if engine.expert_parallel:
        parts.append("EP")
    return " ".join(parts)


def _family(row: Row) -> str:
    return "" if row.trial.config is None else family_of(row.trial.config)
