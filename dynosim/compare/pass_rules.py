"""What is asked of a run under an autoscaler, claim by claim; each is told in a sentence."""

from collections.abc import Sequence
from itertools import pairwise
from math import isnan

from dynosim.compare.case_kit import Outcome
from dynosim.compare.scaled_run import ScaledRun
from dynosim.planner.conflict import ANOTHER_CONTROLLER

TTFT_S = 2.0
"""A request is in time if its first token has come by then, and its answer in full some time."""

IN_TIME = 0.9
"""The share of them that has to be."""


def in_time(run: ScaledRun, from_s: float, to_s: float, share: float = IN_TIME) -> Outcome:
    """Those who came in a time were served, most of them in time."""
    got = run.share_in_time(from_s, to_s, TTFT_S)
    claim = f"in time of those who came in {_minutes(from_s, to_s)}"
    return Outcome(claim, f"at least {share:.0%}", f"{got:.1%}", got >= share)


def all_served(run: ScaledRun) -> Outcome:
    """Nobody was refused, cut off or left waiting."""
    missed = int((~run.is_completed).sum())
    return Outcome("requests that got no answer in full", "0", str(missed), missed == 0)


def none_moved(run: ScaledRun) -> Outcome:
    """No request had to begin again on another worker."""
    moved = int((run.migrations > 0).sum())
    return Outcome("requests that lost their worker", "0", str(moved), moved == 0)


def at_most(run: ScaledRun, most: int, at_s: float, pool: str | None = None) -> Outcome:
    """So few workers are left by a moment."""
    got = run.num_workers(at_s, pool)
    claim = f"{_who(pool)} at minute {at_s / 60:g}"
    return Outcome(claim, f"at most {most}", str(got), got <= most)


def never_above(run: ScaledRun, most: int, from_s: float, to_s: float) -> Outcome:
    """There were never more workers."""
    got = run.most_workers(from_s, to_s)
    claim = f"the most workers in {_minutes(from_s, to_s)}"
    return Outcome(claim, f"at most {most}", str(got), got <= most)


def ready_by(run: ScaledRun, least: int, at_s: float, pool: str | None = None) -> Outcome:
    """So many workers serve by a moment."""
    got = run.num_ready(at_s, pool)
    claim = f"{_who(pool)} that serve at minute {at_s / 60:g}"
    return Outcome(claim, f"at least {least}", str(got), got >= least)


def waits_at_most(run: ScaledRun, from_s: float, most_s: float) -> Outcome:
    """The first who comes after a time is not left waiting."""
    later = run.ttft_s[run.arrival_s >= from_s]
    got = float(later[0]) if len(later) else float("nan")
    claim = f"first token of the first request after minute {from_s / 60:g}"
    told = "never" if isnan(got) else f"{got:.0f} s"
    return Outcome(claim, f"within {most_s:g} s", told, got <= most_s)


def turns_at_most(run: ScaledRun, most: int, from_s: float, to_s: float) -> Outcome:
    """Workers do not come and go and come again."""
    counts = [run.num_workers(from_s), *(count for _, count in run.changes(from_s, to_s))]
    steps = [after > before for before, after in pairwise(counts)]
    got = sum(step != other for step, other in pairwise(steps))
    claim = f"turns from more to fewer or back in {_minutes(from_s, to_s)}"
    return Outcome(claim, f"at most {most}", str(got), got <= most)


def changes_at_most(run: ScaledRun, most: int, from_s: float, to_s: float) -> Outcome:
    """The number of workers is left alone, more or less."""
    got = len(run.changes(from_s, to_s))
    claim = f"changes of the number of workers in {_minutes(from_s, to_s)}"
    return Outcome(claim, f"at most {most}", str(got), got <= most)


def busy_drained(run: ScaledRun, from_s: float) -> Outcome:
    """Somebody was sent away who still had something to do: else nothing is shown."""
    got = sum(from_s <= one.leaving_s < one.ended_s for one in run.workers)
    claim = "workers that were sent away amid answers"
    return Outcome(claim, "at least 1", str(got), got > 0)


def noticed_another(run: ScaledRun, from_s: float, within_s: float) -> Outcome:
    """It says that somebody else scales the pool."""
    heard = (
        at_s for at_s, one in run.decided(from_s, run.end_s) if one.verdict == ANOTHER_CONTROLLER
    )
    first_s = next(heard, float("inf"))
    got = "never" if first_s == float("inf") else f"after {first_s - from_s:g} s"
    return Outcome(
        "says that another controls the pool", f"within {within_s:g} s", got,
        first_s - from_s <= within_s,
    )  # fmt: skip


def sees_edit(run: ScaledRun, at_s: float, workers: int, within_s: float = 60.0) -> Outcome:
    """The first decision after somebody changed the number starts from what there is."""
    seen = [one.current for _, one in run.decided(at_s + 1e-6, at_s + within_s)]
    got = str(seen[0]) if seen else "no decision"
    claim = f"workers that the next decision after minute {at_s / 60:g} starts from"
    return Outcome(claim, str(workers), got, bool(seen) and seen[0] == workers)


def gpus_at_most(run: ScaledRun, most: int) -> Outcome:
    """No more are asked for than there may be, at any moment."""
    got = run.most_gpus()
    claim = "the most GPUs of workers that start or serve"
    return Outcome(claim, f"at most {most}", str(got), got <= most)


def gpu_hours_at_most(
    run: ScaledRun, share: float, of_hours: float, what: str, from_s: float, to_s: float
) -> Outcome:
    """Capacity follows the load: it costs no more than a share of something."""
    got = run.gpu_hours(from_s, to_s) / of_hours if of_hours else float("inf")
    claim = f"GPU hours of {_minutes(from_s, to_s)}, of {what}"
    return Outcome(claim, f"at most {share:.0%}", f"{got:.0%}", got <= share)


def sentence(outcomes: Sequence[Outcome]) -> str:
    """Why a run passed or failed: what does not hold, or all that does."""
    failed = [one for one in outcomes if not one.holds]
    return "; ".join(f"{one.claim}: {one.got} ({one.expected})" for one in failed or outcomes)


def _minutes(from_s: float, to_s: float) -> str:
    return f"minutes {from_s / 60:g} to {to_s / 60:g}"


def _who(pool: str | None) -> str:
    return "workers" if pool is None else f"{pool} workers"
