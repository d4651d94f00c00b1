"""Which generation serves a request."""

from collections import Counter

from dynosim.planner.generations import GenerationChoice


def choice(*ready: dict[str, int]) -> GenerationChoice:
    made = GenerationChoice(("prefill", "decode"))
    for generation, pools in enumerate(ready):
        for pool, count in pools.items():
            for _ in range(count):
                made.joined(generation, pool)
    return made


def test_by_ready_workers_of_the_scarcest_pool_and_evenly_spread() -> None:
    made = choice({"prefill": 3, "decode": 5}, {"prefill": 2, "decode": 1})
    chosen = [made.choose() for _ in range(8)]
    assert Counter(chosen) == {0: 6, 1: 2}
    assert Counter(chosen[:4]) == {0: 3, 1: 1}


def test_an_incomplete_generation_gets_nothing_even_with_a_share() -> None:
    made = choice({"prefill": 1, "decode": 1}, {"prefill": 3})
    made.set_shares({0: 0.1, 1: 0.9})
    assert {made.choose() for _ in range(5)} == {0}
    made.joined(1, "decode")
    assert Counter(made.choose() for _ in range(10)) == {0: 1, 1: 9}


def test_a_closed_generation_gets_nothing_while_another_is_complete() -> None:
    made = choice({"prefill": 2, "decode": 2}, {"prefill": 1, "decode": 1})
    made.close(0)
    assert {made.choose() for _ in range(3)} == {1}
    made.left(1, "decode")
    assert made.choose() == 0
    made.left(0, "prefill")
    made.left(0, "prefill")
    assert made.choose() is None


def test_a_share_of_nothing_leaves_the_rest_to_others() -> None:
    made = choice({"prefill": 1, "decode": 1}, {"prefill": 1, "decode": 1})
    made.set_shares({0: 1.0})
    assert {made.choose() for _ in range(4)} == {0}
