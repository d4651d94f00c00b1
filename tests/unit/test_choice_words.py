"""Why a worker was chosen, in words."""

import pytest

from dynosim.metrics.choice_words import choice_words
from dynosim.router.cost import WorkerOption
from dynosim.router.witness import SeenChoice
from dynosim.workers.ids import DpRank, Slot, WorkerId


def choice(chosen: int, *rows: tuple[float, int]) -> SeenChoice:
    """Candidates of (cost, cached tokens), one of them chosen."""
    options = tuple(
        WorkerOption(WorkerId(place), DpRank(0), Slot(place), cost, cached / 16, cached, 100, 10, 1)
        for place, (cost, cached) in enumerate(rows)
    )
    return SeenChoice(7, 0.0, Slot(chosen), options, 0.0)


@pytest.mark.parametrize(
    ("seen", "words"),
    [
        (choice(1, (90.0, 0), (50.0, 6144)), "for 6,144 cached tokens"),
        (choice(1, (90.0, 64), (50.0, 6144)), "for 6,144 cached tokens (at most 64 elsewhere)"),
        (choice(0, (50.0, 64), (90.0, 64)), "as the least loaded (cost 50 blocks, 90 elsewhere)"),
        (choice(0, (50.0, 0), (70.0, 0), (90.0, 8)), "(cost 50 blocks, 70 to 90 elsewhere)"),
        (choice(0, (50.0, 64), (50.0, 64)), "drew it among equally cheap ones"),
        (choice(0, (60.0, 64), (50.0, 0)), "drew it at cost 60, the lowest was 50"),
    ],
)
def test_the_kv_mode_goes_by_costs(seen: SeenChoice, words: str) -> None:
    assert words in choice_words(seen, "kv")


def test_others_are_named() -> None:
    seen = choice(1, (90.0, 0), (50.0, 6144))
    assert choice_words(seen, "least-loaded") == "least-loaded chose it"
    assert choice_words(seen, "examples.thompson:Thompson") == "examples.thompson:Thompson chose it"


def test_a_single_candidate_is_no_choice() -> None:
    assert choice_words(choice(0, (50.0, 0)), "kv") == "it was the only candidate"
