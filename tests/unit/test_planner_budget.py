"""What a GPU budget leaves of what is asked."""

import pytest

from dynosim.planner.budget import GUARD_HOLD, RECONCILE, Granted, Share, grant


def _pools(*pools: tuple[int, int, int]) -> list[Share]:
    """(wanted, asked, gpus) each, at least 1."""
    return [Share(wanted, asked, gpus, least=1) for wanted, asked, gpus in pools]


@pytest.mark.parametrize(
    ("pools", "limits", "expected"),
    [
        # within both bounds nothing is done
        (_pools((1, 3, 1), (1, 2, 2)), (8, None), Granted((3, 2))),
        (_pools((1, 3, 1)), (None, None), Granted((3,))),
        # one grows beyond: what is left
        (_pools((2, 6, 2)), (8, None), Granted((4,), GUARD_HOLD)),
        (_pools((2, 4, 2)), (8, None), Granted((4,))),
        # at full budget a lone growth is held
        (_pools((4, 6, 1), (2, 2, 2)), (8, None), Granted((4, 2), GUARD_HOLD)),
        # both grow: by the same part, the last takes what is left
        (_pools((1, 6, 1), (1, 6, 1)), (8, None), Granted((4, 4), GUARD_HOLD)),
        (_pools((1, 8, 1), (1, 4, 2)), (8, None), Granted((4, 2), GUARD_HOLD)),
        # but neither below what it has
        (_pools((5, 6, 1), (1, 9, 1)), (8, None), Granted((5, 3), GUARD_HOLD)),
        # an exchange: both move, as far as there is room
        (_pools((4, 2, 1), (4, 8, 1)), (8, None), Granted((2, 6), GUARD_HOLD)),
        # or none: the one GPU that is freed does not make a replica of four
        (_pools((4, 3, 1), (1, 2, 4)), (8, None), Granted((4, 1), GUARD_HOLD)),
        # somebody else went beyond: brought inside first
        (_pools((6, 6, 1), (6, 6, 1)), (8, None), Granted((4, 4), RECONCILE)),
        (_pools((12, 12, 1), (1, 1, 4)), (8, None), Granted((4, 1), RECONCILE)),
        # unless what is asked is inside
        (_pools((6, 3, 1), (6, 3, 1)), (8, None), Granted((3, 3))),
        # below: a shrinking is held back, and turned into no growth
        (_pools((6, 1, 1)), (None, 4), Granted((4,), GUARD_HOLD)),
        (_pools((4, 1, 1)), (None, 4), Granted((4,), GUARD_HOLD)),
        # with both bounds the lower gives way by a replica
        (_pools((6, 1, 1)), (8, 4), Granted((3,), GUARD_HOLD)),
        # from below: grown by the same part
        (_pools((1, 1, 1), (1, 1, 1)), (None, 6), Granted((3, 3), RECONCILE)),
        (_pools((1, 1, 2)), (None, 5), Granted((3,), RECONCILE)),
    ],
)
def test_a_budget_holds_back_and_turns_nothing(
    pools: list[Share], limits: tuple[int | None, int | None], expected: Granted
) -> None:
    assert grant(pools, *limits) == expected


def test_limits_of_a_pool_go_before_what_is_asked() -> None:
    assert grant([Share(2, 9, 1, least=1, most=4)], None, None).replicas == (4,)
    assert grant([Share(2, 0, 1, least=1, most=4)], None, None).replicas == (1,)


def test_a_budget_below_the_least_is_refused() -> None:
    with pytest.raises(ValueError, match="takes 6 GPUs, the budget is 5"):
        grant([Share(2, 2, 2, least=1), Share(1, 1, 4, least=1)], 5, None)
