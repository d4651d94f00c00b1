"""The sizes of all layouts: the same whatever the order of answers, and after a break."""

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import pytest

from dynosim.errors import TraceError
from dynosim.sweep.executor import Answer, LocalExecutor, Request
from dynosim.sweep.ledger import Ledger, new_ledger, resumed_ledger
from dynosim.sweep.need_search import Family, NeedSearch
from dynosim.sweep.space import Trial
from dynosim.sweep.status import BAD_INPUT

FEWEST = {0: 5, 1: 1, 2: 99, 3: 16}


def families() -> list[Family]:
    return [Family(Trial(index, {"router.mode": index}, None), 1, 16) for index in FEWEST]


def answered(index: int, workers: int | None) -> Answer:
    workers = 4 if workers is None else workers
    is_held = workers >= FEWEST[index]
    verdict = {"is_carried": is_held, "attainment": 0.97 if is_held else 0.5}
    return {
        "status": "ok", "reason": "", "load": 1.0, "wall_ms": 1.0, "workers": workers,
        "verdict": verdict, "report": {"workers": workers},
    }  # fmt: skip


class Shuffled(LocalExecutor):
    """Answers in any order; after `until` answers it is interrupted."""

    def __init__(self, seed: int, until: int = 10**9, broken: Answer | None = None) -> None:
        super().__init__(1)
        self.random, self.until, self.broken = random.Random(seed), until, broken
        self.asked: list[tuple[int, int | None]] = []

    def run(  # type: ignore[override]
        self,
        function: str,
        requests: Iterable[tuple[int, Request]],
        follow: Callable[[int, Answer], Iterable[tuple[int, Request]]] | None = None,
    ) -> Iterator[tuple[int, Answer]]:
        assert follow is not None
        todo = list(requests)
        while todo:
            if len(self.asked) == self.until:
                raise KeyboardInterrupt
            index, request = todo.pop(self.random.randrange(len(todo)))
            self.asked.append((index, request["workers"]))
            answer = answered(index, request["workers"])
            if self.broken is not None and index == 1:
                answer = self.broken
            todo += follow(index, answer)
            yield index, answer


def searched(ledger: Ledger, executor: Shuffled) -> NeedSearch:
    search = NeedSearch(families(), 0.95, ledger)
    search.finish(executor, lambda family, workers: {"workers": workers}, lambda _: None)
    return search


def found(search: NeedSearch) -> dict[int, tuple[int | None, list[int]]]:
    return {i: (search.fewest(i), sorted(search.probes[i])) for i in FEWEST}


def test_answers_in_any_order_bring_the_same(tmp_path: Path) -> None:
    every = []
    for seed in range(5):
        ledger = new_ledger(tmp_path / str(seed), sweep_hash="abc", overwrite=False)
        every.append(found(searched(ledger, Shuffled(seed))))
    assert all(other == every[0] for other in every)
    assert [every[0][index][0] for index in FEWEST] == [5, 1, None, 16]


@pytest.mark.parametrize("until", [1, 3, 6, 9])
def test_after_a_break_nothing_is_tried_twice(tmp_path: Path, until: int) -> None:
    whole = searched(new_ledger(tmp_path / "a", sweep_hash="abc", overwrite=False), Shuffled(0))
    first = Shuffled(1, until)
    with pytest.raises(KeyboardInterrupt):
        searched(new_ledger(tmp_path / "b", sweep_hash="abc", overwrite=False), first)
    second = Shuffled(2)
    resumed = searched(resumed_ledger(tmp_path / "b", sweep_hash="abc"), second)
    assert found(resumed) == found(whole)
    assert len(first.asked) + len(second.asked) == whole.num_probes


def test_probes_of_a_search_for_the_capacity_are_left_alone(tmp_path: Path) -> None:
    ledger = new_ledger(tmp_path, sweep_hash="abc", overwrite=False)
    answer = {key: value for key, value in answered(0, 7).items() if key != "workers"}
    ledger.append_probe(families()[0].trial, {**answer, "load": 1.6})
    assert NeedSearch(families(), 0.95, ledger).num_probes == 0


def test_a_layout_that_cannot_be_run_ends_alone(tmp_path: Path) -> None:
    broken: Answer = {**answered(1, 4), "status": "infeasible", "reason": "too large"}
    ledger = new_ledger(tmp_path, sweep_hash="abc", overwrite=False)
    search = searched(ledger, Shuffled(0, broken=broken))
    assert search.failures == {1: broken} and search.fewest(0) == 5
    again = Shuffled(0)
    searched(resumed_ledger(tmp_path, sweep_hash="abc"), again)
    assert again.asked == []


def test_a_bad_trace_ends_it(tmp_path: Path) -> None:
    broken: Answer = {**answered(1, 4), "status": BAD_INPUT, "reason": "no such file"}
    ledger = new_ledger(tmp_path / "out", sweep_hash="abc", overwrite=False)
    with pytest.raises(TraceError, match="no such file"):
        searched(ledger, Shuffled(0, broken=broken))
