"""Conditions on changes: a small grammar, and what it refuses."""

import pytest

from dynosim.compare.condition import parse_condition
from dynosim.compare.run_diff import Change
from dynosim.errors import ConfigError

CHANGES = {
    "capacity": Change("capacity", 10.0, 9.6),
    "preemptions": Change("preemptions", 0.0, 3.0),
    "mean_ttft_ms": Change("mean_ttft_ms", 100.0, None),
}


@pytest.mark.parametrize(
    ("text", "is_true"),
    [
        ("capacity < -3 %", True),
        ("capacity<-3%", True),
        ("capacity < -4.01 %", False),
        ("capacity < -0.39", True),
        ("capacity > -0.5", True),
        ("capacity >= 0", False),
        ("  preemptions <= 3  ", True),
        ("preemptions > +2.5", True),
    ],
)
def test_a_condition_is_about_the_change_from_a_to_b(text: str, is_true: bool) -> None:
    assert parse_condition(text).holds(CHANGES) is is_true


@pytest.mark.parametrize(
    "text", ["", "capacity", "capacity < ", "capacity = 3", "capacity < 3 ms", "3 < capacity",
             "capacity < -3 % or more", "capacity << 3", "capacity < nan"],
)  # fmt: skip
def test_anything_else_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ConfigError, match="capacity < -3 %"):
        parse_condition(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("capacty < 0", "did you mean capacity?"),
        ("xyz < 0", "such as capacity"),
        ("preemptions > 1 %", "is 0 in A"),
        ("mean_ttft_ms > 1", "no value in B"),
    ],
)
def test_a_key_without_a_change_is_refused(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        parse_condition(text).holds(CHANGES)
