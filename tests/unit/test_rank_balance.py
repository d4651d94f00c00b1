"""vLLM's own balancing of data-parallel ranks: scores, numbers that are old, ties."""

import pytest

from dynosim.engine.rank_balance import BalancingRule, RankBalancer, rule_of

OLD = BalancingRule(counts_in_flight=False, rotates=False)
NEW = BalancingRule(counts_in_flight=True, rotates=True)


def tell(balancer: RankBalancer, now_ms: float, *loads: tuple[int, int], usage: float = 0) -> None:
    """Every rank reports (waiting, running)."""
    for rank, (waiting, running) in enumerate(loads):
        balancer.report(rank, waiting=waiting, running=running, kv_usage=usage, now_ms=now_ms)


@pytest.mark.parametrize(
    ("version", "rule"),
    [
        ("0.10.2", OLD),
        ("0.19.0", OLD),
        ("0.26.0", BalancingRule(counts_in_flight=False, rotates=True)),
        ("0.27.1", NEW),
        (None, NEW),
    ],
)
def test_the_rule_is_the_versions(version: str | None, rule: BalancingRule) -> None:
    assert rule_of(version) == rule


def test_what_was_sent_counts_as_waiting_until_the_next_numbers() -> None:
    balancer = RankBalancer(3, OLD)
    assert [balancer.choose(0.0) for _ in range(7)] == [0, 1, 2, 0, 1, 2, 0]


def test_a_waiting_request_counts_as_four_running_ones() -> None:
    balancer = RankBalancer(2, OLD)
    tell(balancer, 1.0, (1, 0), (0, 3))
    assert balancer.choose(2.0) == 1  # 4 and 3
    assert balancer.choose(2.0) == 0  # 4 and 7
    assert balancer.choose(2.0) == 1  # 8 and 7


def test_numbers_are_published_a_tenth_of_a_second_after_the_last_at_the_earliest() -> None:
    balancer = RankBalancer(2, OLD)
    tell(balancer, 0.0, (0, 5), (0, 1))
    assert balancer.choose(1.0) == 1
    tell(balancer, 10.0, (0, 0), (0, 9))
    assert balancer.choose(99.0) == 0  # still 5 and 1 + 4
    assert balancer.choose(99.0) == 1  # 9 and 5
    assert balancer.choose(101.0) == 0  # 0 and 9
    tell(balancer, 150.0, (0, 1), (0, 1))
    tell(balancer, 250.0, (0, 9), (0, 1))  # at 200 ms the numbers before were published
    assert [balancer.choose(260.0) for _ in range(2)] == [0, 1]


def test_numbers_that_stay_are_published_every_five_seconds() -> None:
    balancer = RankBalancer(2, OLD)
    tell(balancer, 0.0, (0, 0), (0, 3))
    assert [balancer.choose(1.0) for _ in range(2)] == [0, 1]  # 0 and 3, 4 and 3
    assert balancer.choose(4000.0) == 0  # 4 and 7
    assert balancer.choose(5001.0) == 0  # 0 and 3 again
    assert balancer.choose(16_000.0) == 0


def test_equals_are_served_in_turn_where_the_start_rotates() -> None:
    rotating = RankBalancer(2, BalancingRule(counts_in_flight=False, rotates=True))
    chosen = []
    for turn in range(4):
        now_ms = 6000.0 * turn  # what was sent is forgotten in between
        chosen.append(rotating.choose(now_ms + 10.0))
    assert chosen == [0, 1, 0, 1]
    fixed = RankBalancer(2, OLD)
    assert [fixed.choose(6000.0 * turn + 10.0) for turn in range(4)] == [0, 0, 0, 0]


def test_what_is_in_flight_outlives_the_numbers() -> None:
    balancer = RankBalancer(2, NEW)
    assert [balancer.choose(0.0) for _ in range(2)] == [0, 1]
    balancer.ended(1, 1)
    assert [balancer.choose(9000.0) for _ in range(2)] == [1, 1]
    assert balancer.choose(9000.0) == 0


def test_a_queue_counts_more_the_fuller_the_cache_is() -> None:
    for usage, chosen in ((0.5, 0), (0.9, 1)):
        balancer = RankBalancer(2, NEW)
        tell(balancer, 1.0, (2, 2), (0, 6), usage=usage)
        # 4 and 6; at 90 % of the blocks 4 + 2 x 6 x 0.4 and 6
        assert balancer.choose(2.0) == chosen
