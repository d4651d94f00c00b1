"""Which layout is the answer, what ties with it, and what is best otherwise."""

from dataclasses import replace
from typing import Any

from dynosim.sweep.answer import answer_dict, answer_of, need_dict, worth
from dynosim.sweep.results import Row
from dynosim.sweep.space import Trial


def row(
    index: int,
    good_tok_s: float,
    *,
    gpus: int = 8,
    load: float | None = 1.0,
    speed: float = 50.0,
    workers: int = 1,
    **report: Any,
) -> Row:
    failed = 0.02 if load is None else load * 1.03
    told = {
        "capacity_load": load,
        "capacity_load_failed": failed,
        "goodput_output_throughput_tok_s": good_tok_s,
        "median_output_token_throughput_per_user": speed,
        "num_gpus": gpus,
        "num_workers": workers,
        **report,
    }
    return Row(Trial(index, {}, None), "ok", "", told, load is not None)


def test_good_tokens_per_gpu_decide() -> None:
    answer = answer_of([row(0, 800.0), row(1, 900.0, gpus=16), row(2, 1200.0), row(3, 100.0)])
    assert [found.trial.index for found in answer.ranked] == [2, 0, 1, 3]
    assert answer.num_tied == 1


def test_within_the_brackets_it_is_a_tie_and_users_decide() -> None:
    answer = answer_of([row(0, 1000.0, speed=80.0), row(1, 975.0, speed=107.0), row(2, 960.0)])
    assert [found.trial.index for found in answer.ranked] == [1, 0, 2]
    assert answer.num_tied == 2
    assert answer_dict(answer) | {"ranked": None} == {
        "best": 1, "tied": [0], "fastest_for_users": 1, "carries_most": 1, "ranked": None,
        "cheapest": 0,
        "carry_nothing": [],
        "not_pursued": [],
    }  # fmt: skip


def test_what_other_sessions_might_turn_round_is_a_tie() -> None:
    """Of 100 draws the second layout wins in three; in the same draws both carry less, or more."""
    common = [0.8 + 0.004 * place for place in range(100)]
    first = replace(row(0, 1000.0, speed=50.0), draws=common)
    for num_won, num_tied in ((3, 2), (2, 1)):
        better = [1.2 if place < num_won else 1.0 for place in range(100)]
        draws = [load * factor for load, factor in zip(common, better, strict=True)]
        second = replace(row(1, 900.0, speed=90.0), draws=draws)
        answer = answer_of([first, second])
        assert answer.num_tied == num_tied
        assert answer.ranked[0].trial.index == (1 if num_tied == 2 else 0)


def test_with_prices_money_decides() -> None:
    """The second makes fewer tokens on GPUs that cost a third."""
    priced = {"gpu_hours_per_m_tokens": 2.0}
    first = row(0, 1000.0, **priced, cost_per_m_tokens=6.0)
    second = row(1, 500.0, **priced, cost_per_m_tokens=2.0)
    answer = answer_of([first, second])
    assert [found.trial.index for found in answer.ranked] == [1, 0]
    assert answer.cheapest is second
    assert worth(second) == 62.5


def test_users_alike_more_and_smaller_workers_come_first() -> None:
    answer = answer_of([row(0, 1000.0), row(1, 1000.0, workers=4), row(2, 1000.0, workers=4)])
    assert [found.trial.index for found in answer.ranked] == [1, 2, 0]


def test_a_tiny_difference_changes_no_verdict() -> None:
    for nudge in (1.0, 1.0 + 1e-9, 1.0 - 1e-9):
        answer = answer_of([row(0, 1000.0 * nudge, speed=60.0), row(1, 1000.0, speed=50.0)])
        assert [found.trial.index for found in answer.ranked] == [0, 1]


def test_layouts_that_carry_nothing_or_cannot_differ_are_not_ranked() -> None:
    answer = answer_of([row(0, 9.0, load=None), row(1, 5.0), row(2, 5.0, same_as=1)])
    assert [found.trial.index for found in answer.ranked] == [1]
    assert [found.trial.index for found in answer.nothing_carried] == [0]
    assert answer_of([row(0, 9.0, load=None)]).best is None


def test_alternatives_are_the_fastest_and_the_one_that_carries_most() -> None:
    rows = [row(0, 1000.0), row(1, 500.0, speed=90.0), row(2, 700.0, load=3.0, gpus=16)]
    answer = answer_of(rows)
    assert answer.best is rows[0] and answer.fastest is rows[1] and answer.carries_most is rows[2]


def needed(index: int, gpus: int, *, held: bool = True, **report: Any) -> Row:
    told = {"need_is_held": held, "need_headroom": 1.1, "capacity_rps": 22.0, **report}
    return row(index, 500.0, gpus=gpus, **told)


def test_where_a_load_is_needed_the_fewest_gpus_win_whatever_they_carry_besides() -> None:
    rows = [needed(0, 16, load=3.0), needed(1, 8, speed=40.0), needed(2, 8, speed=60.0)]
    answer = answer_of([*rows, needed(3, 4, held=False, load=0.6), needed(4, 4, held=False)])
    assert [found.trial.index for found in answer.ranked] == [2, 1, 0] and answer.num_tied == 2
    assert [found.trial.index for found in answer.nothing_carried] == [3, 4]
    assert need_dict(answer, {"rps": 20.0}) == {
        "rps": 20.0, "is_held": True, "fewest_gpus": 8, "headroom": 1.1, "nearest": None,
        "nearest_rps": None,
    }  # fmt: skip


def test_where_nothing_holds_it_the_nearest_carries_most() -> None:
    rows = [needed(0, 16, held=False, load=0.6), needed(1, 8, held=False, load=None)]
    answer = answer_of(rows)
    assert answer.best is None and answer.nearest is rows[0]
    found = need_dict(answer, {"rps": 20.0})
    assert (found["nearest"], found["nearest_rps"], found["fewest_gpus"]) == (0, 22.0, None)
