"""The list of a report's keys, for those who must know them without making one."""

from toy_runs import toy_run

from dynosim.config.report_keys import (
    BOOLEAN,
    INTEGER,
    NUMBER,
    TEXT,
    is_report_key,
    known_report_keys,
    report_keys,
)
from dynosim.metrics import PROCESS_KEYS, summarize

TYPES = {NUMBER: (int, float), INTEGER: (int,), TEXT: (str,), BOOLEAN: (bool,)}


def test_every_key_of_a_report_is_listed_once_and_no_other() -> None:
    run = toy_run(20)
    report = summarize(run.result, run.timing, sla=None, wall_time_ms=0.0)
    listed = [key.name for key in report_keys()]
    assert sorted(listed) == sorted(report)
    assert [key.name for key in report_keys() if not key.meaning.endswith(".")] == []


def test_every_value_is_of_the_kind_that_is_listed() -> None:
    run = toy_run(20)
    report = summarize(run.result, run.timing, sla=None, wall_time_ms=0.0)
    for key in report_keys():
        value = report[key.name]
        if value is None:
            assert not key.is_always_there, key.name
        else:
            assert type(value) in TYPES[key.kind], key.name


def test_numbers_have_units_and_words_none() -> None:
    for key in report_keys():
        assert bool(key.unit) == (key.kind in (NUMBER, INTEGER)), key.name


def test_only_numbers_of_what_was_simulated_are_sought() -> None:
    kinds = {key.name: key.kind for key in report_keys()}
    assert {kinds[name] for name in known_report_keys()} == {NUMBER, INTEGER}
    assert not set(known_report_keys()) & set(PROCESS_KEYS)
    assert len(known_report_keys()) == len(set(known_report_keys()))


def test_a_key_is_one_of_the_list() -> None:
    assert is_report_key("p99_itl_ms") and is_report_key("steady_p90_ttft_ms")
    assert not is_report_key("p98_itl_ms") and not is_report_key("steady_p75_ttft_ms")
    assert not is_report_key("saturation_reason") and not is_report_key("wall_time_ms")
