"""The published cases hold, and the report says so."""

import pytest

from dynosim.validate.case_kit import Case
from dynosim.validate.cases import CASES, report_text


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_every_claim_of_a_case_holds(case: Case) -> None:
    outcomes = case.check()
    assert outcomes
    assert [one.claim for one in outcomes if not one.holds] == []
    text = report_text([(case, outcomes)])
    assert f"{len(outcomes)} of {len(outcomes)} claims hold" in text
    assert "## Not yet run" in text
