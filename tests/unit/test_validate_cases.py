"""The published cases hold, and the report says so."""

from itertools import pairwise
from pathlib import Path

import pytest

from dynosim.compare import cases
from dynosim.compare.case_kit import (
    Case,
    Outcome,
    alike,
    equal,
    large_engine,
    near,
    prompts,
    two_turns,
)
from dynosim.compare.cases import CASES, main, report_text


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_claim_of_a_case_holds(case: Case) -> None:
    outcomes = case.check()
    assert outcomes
    assert [one.claim for one in outcomes if not one.holds] == []
    text = report_text([(case, outcomes)])
    assert f"{len(outcomes)} of {len(outcomes)} claims hold" in text
    assert "## Not yet run" in text


@pytest.mark.parametrize(
    ("got", "holds"), [(75.0, True), (74.9, False), (125.0, True), (125.1, False), (100.0, True)]
)
def test_a_claim_holds_within_its_tolerance_to_both_sides(got: float, holds: bool) -> None:
    outcome = near("a claim", 100.0, got, 0.25, " ms")
    assert outcome == Outcome("a claim", "100 ms ± 25 %", f"{got:.7g} ms", holds)


def test_a_claim_of_equality_knows_types_of_numbers_and_texts() -> None:
    assert equal("a", 3, 3) == Outcome("a", "3", "3", True)
    assert not equal("a", "3", 3).holds
    assert not equal("a", 3, 4).holds


def test_small_workloads_are_what_they_say() -> None:
    chained = prompts([[1, 2], [1, 3, 4]], block_tokens=16, outputs=7, gap_ms=50)
    assert chained.arrival_ms.tolist() == [0.0, 50.0]
    assert chained.input_tokens.tolist() == [32, 48]
    assert chained.output_tokens.tolist() == [7, 7]
    assert chained.hash_ids.tolist() == [1, 2, 1, 3, 4]
    assert chained.hash_offsets.tolist() == [0, 2, 5]
    assert chained.trace_block_size == 16
    equals = alike(3, inputs=9, outputs=2, gap_ms=4)
    assert equals.arrival_ms.tolist() == [0.0, 4.0, 8.0]
    assert (equals.input_tokens.tolist(), equals.output_tokens.tolist()) == ([9] * 3, [2] * 3)
    assert (equals.hash_ids.tolist(), equals.hash_offsets.tolist()) == ([], [0] * 4)


def test_second_turns_repeat_the_first_and_add_to_it() -> None:
    turns = two_turns(2, gap_ms=10)
    assert turns.input_tokens.tolist() == [4 * 64, 4 * 64, 6 * 64, 6 * 64]
    rows = [turns.hash_ids[begin:end].tolist() for begin, end in pairwise(turns.hash_offsets)]
    assert rows == [[0, 1, 2, 3], [1000, 1001, 1002, 1003], list(range(6)), list(range(1000, 1006))]
    assert turns.arrival_ms.tolist()[:2] == [0.0, 10.0]
    assert turns.previous_turn is not None and turns.previous_turn.tolist() == [-1, -1, 0, 1]
    assert turns.delay_ms is not None and turns.delay_ms.tolist() == [500.0] * 4


def test_a_large_engine_binds_nowhere() -> None:
    spec = large_engine(max_num_seqs=9)
    assert (spec.max_num_seqs, spec.max_num_batched_tokens) == (9, 131_072)
    assert spec.usable_blocks * spec.block_size == 960_000


FAILING = Case("V0", "Nothing", "no set-up", lambda: [near("a", 1.0, 2.0, 0.1), equal("b", 1, 1)])


def test_a_claim_that_does_not_hold_is_counted_and_shown() -> None:
    text = report_text([(FAILING, FAILING.check())])
    assert "1 of 2 claims hold" in text
    assert "| a | 1 ± 10 % | 2 | **no** |" in text
    assert "| b | 1 | 1 | yes |" in text
    assert "## V0. Nothing" in text and "Set-up: no set-up." in text


@pytest.mark.parametrize(("checked", "code"), [((FAILING,), 1), ((), 0)])
def test_the_report_is_written_and_failures_are_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    checked: tuple[Case, ...],
    code: int,
) -> None:
    monkeypatch.setattr(cases, "CASES", checked)
    path = tmp_path / "validation.md"
    assert main([str(path)]) == code
    assert path.read_text() == report_text([(case, case.check()) for case in checked])
    told = "1 claims do not hold\n  a\n" if code else "0 claims do not hold\n"
    assert capsys.readouterr().out == f"{path}: {told}"
