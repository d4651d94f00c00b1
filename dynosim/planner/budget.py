"""Replicas that a GPU budget allows, of what was asked for.

The budget may hold back what was asked, but neither turn its direction nor go beyond it, while what
is there lies inside the budget. Where a pool is to shrink and another to grow, both do or none.
What lies outside (somebody changed replicas by hand) is brought inside first, whatever was asked.
"""

from collections.abc import Sequence
from math import ceil, floor

import msgspec

GUARD_HOLD = "gpu_budget_guard_hold"
RECONCILE = "gpu_budget_reconcile"


def clip(replicas: int, least: int, most: int | None) -> int:
    """The nearest number from `least` to `most` (None: without end)."""
    return max(least, replicas if most is None else min(replicas, most))


class Share(msgspec.Struct, frozen=True):
    """What a pool has (`wanted`: was last told to have) and asks for, in replicas.

    `least` and `most` are its limits (None: none), whatever is asked.
    """

    wanted: int
    asked: int
    gpus: int
    least: int
    most: int | None = None

    def clip(self, replicas: int) -> int:
        """The nearest number within its limits."""
        return clip(replicas, self.least, self.most)


class Granted(msgspec.Struct, frozen=True):
    """Replicas by pool, in the order asked, and a word on what the budget did; None: nothing."""

    replicas: tuple[int, ...]
    verdict: str | None = None


def grant(shares: Sequence[Share], max_gpus: int | None, min_gpus: int | None) -> Granted:
    """Replicas within every pool's limits and the budget.

    With both bounds the lower one gives way by the GPUs of one replica, since replicas come whole.
    Raises: ValueError if the least of all pools is more than `max_gpus`.
    """
    least = sum(share.least * share.gpus for share in shares)
    if max_gpus is not None and least > max_gpus:
        raise ValueError(f"the minimum of all pools takes {least} GPUs, the budget is {max_gpus}")
    floor_gpus = _floor(shares, max_gpus, min_gpus)
    shares = [
        Share(one.clip(one.wanted), one.clip(one.asked), one.gpus, one.least, one.most)
        for one in shares
    ]
    asked = [share.asked for share in shares]
    now = [share.wanted for share in shares]
    if _is_over(shares, asked, max_gpus):
        if _is_over(shares, now, max_gpus):
            return Granted(tuple(_shrink(shares, max_gpus or 0)), RECONCILE)
        return _held_back(shares, asked, _grow_within(shares, max_gpus or 0))
    if _gpus(shares, asked) < floor_gpus:
        if _gpus(shares, now) < floor_gpus:
            return Granted(tuple(_grow(shares, floor_gpus, max_gpus)), RECONCILE)
        return _held_back(shares, asked, _shrink_within(shares, floor_gpus, max_gpus))
    return Granted(tuple(asked))


def _gpus(shares: Sequence[Share], replicas: Sequence[int]) -> int:
    return sum(share.gpus * number for share, number in zip(shares, replicas, strict=True))


def _is_over(shares: Sequence[Share], replicas: Sequence[int], max_gpus: int | None) -> bool:
    return max_gpus is not None and _gpus(shares, replicas) > max_gpus


def _floor(shares: Sequence[Share], max_gpus: int | None, min_gpus: int | None) -> int:
    """The fewest GPUs: not more than pools at their most take."""
    if min_gpus is None:
        return 0
    slack = max((share.gpus for share in shares), default=0) if max_gpus is not None else 0
    tops = [share.most for share in shares]
    reach = [top * share.gpus for top, share in zip(tops, shares, strict=True) if top is not None]
    return min(min_gpus - slack, sum(reach)) if len(reach) == len(tops) else min_gpus - slack


def _held_back(shares: Sequence[Share], asked: list[int], given: list[int]) -> Granted:
    """What remains of `asked`; of an exchange both sides or none."""
    ups = [i for i, share in enumerate(shares) if share.asked > share.wanted]
    downs = [i for i, share in enumerate(shares) if share.asked < share.wanted]
    moved = {i for i, share in enumerate(shares) if given[i] != share.wanted}
    if ups and downs and not (moved & set(ups) and moved & set(downs)):
        given = [share.wanted for share in shares]
    return Granted(tuple(given), None if given == asked else GUARD_HOLD)


def _grow_within(shares: Sequence[Share], max_gpus: int) -> list[int]:
    """Those who shrink do; those who grow share what is left, each by what it asks for."""
    given = [min(share.wanted, share.asked) for share in shares]
    scale = max_gpus / _gpus(shares, [share.asked for share in shares])
    growing = [i for i, share in enumerate(shares) if share.asked > share.wanted]
    for last, i in enumerate(growing, start=1):
        left = (max_gpus - _gpus(shares, given)) // shares[i].gpus + given[i]
        part = shares[i].asked if last == len(growing) else floor(shares[i].asked * scale)
        given[i] = max(given[i], min(left, part))
    return given


def _shrink_within(shares: Sequence[Share], min_gpus: int, max_gpus: int | None) -> list[int]:
    """Those who grow do; those who shrink keep what the lower bound needs, the first the most."""
    given = [share.asked for share in shares]
    for i, share in enumerate(shares):
        missing = min_gpus - _gpus(shares, given)
        if share.asked < share.wanted and missing > 0:
            kept = min(share.wanted, share.asked + ceil(missing / share.gpus))
            while kept > share.asked and _is_over(
                shares, [*given[:i], kept, *given[i + 1 :]], max_gpus
            ):
                kept -= 1
            given[i] = kept
    return given


def _shrink(shares: Sequence[Share], max_gpus: int) -> list[int]:
    """All by the same part, but not below their least; the last takes what is left."""
    scale = max_gpus / _gpus(shares, [share.asked for share in shares])
    given = [share.least for share in shares]
    for last, i in enumerate(range(len(shares)), start=1):
        share = shares[i]
        left = (max_gpus - _gpus(shares, given)) // share.gpus + given[i]
        part = share.asked if last == len(shares) else floor(share.asked * scale)
        given[i] = max(share.least, min(left, part, share.asked))
    return given


def _grow(shares: Sequence[Share], min_gpus: int, max_gpus: int | None) -> list[int]:
    """All by the same part, within their limits and the upper bound, until the lower one is met."""
    given = [share.asked for share in shares]
    scale = min_gpus / max(1, _gpus(shares, given))
    for i, share in enumerate(shares):
        part = max(1, ceil(share.asked * scale))
        while given[i] < share.clip(part) and not _is_over(
            shares, [*given[:i], given[i] + 1, *given[i + 1 :]], max_gpus
        ):
            given[i] += 1
    for i, share in enumerate(shares):  # where one had no room, others take its part
        while (
            _gpus(shares, given) < min_gpus
            and given[i] < share.clip(given[i] + 1)
            and not _is_over(shares, [*given[:i], given[i] + 1, *given[i + 1 :]], max_gpus)
        ):
            given[i] += 1
    return given
