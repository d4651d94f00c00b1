"""The data-parallel ranks of a worker: every one an engine with its own scheduler and cache."""

from dataclasses import dataclass

from dynosim.engine.rank_balance import BalancingRule


@dataclass(frozen=True, slots=True, kw_only=True)
class RankSpec:
    """How many there are, whether they wait for each other, and who chooses among them.

    In lock step they begin and end all steps together; up to `padded_up_to` tokens in the largest,
    all compute as many. `rule`: how a worker's front end spreads requests over its ranks; None:
    whoever places requests chooses among all ranks of all workers.
    """

    number: int = 1
    in_lock_step: bool = False
    padded_up_to: int = 0
    rule: BalancingRule | None = None


ONE_RANK = RankSpec()
