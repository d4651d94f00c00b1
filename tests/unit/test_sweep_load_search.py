"""All layouts at all their loads: the same whatever the order of answers, and after a break."""

import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dynosim.errors import TraceError
from dynosim.sweep.capacity import LoadRange
from dynosim.sweep.executor import Answer, LocalExecutor, Request
from dynosim.sweep.ledger import Ledger, new_ledger, resumed_ledger
from dynosim.sweep.load_search import LoadSearch
from dynosim.sweep.space import Trial
from dynosim.sweep.status import BAD_INPUT
from dynosim.sweep.study import LoadPlan

PLAN = LoadPlan(LoadRange(0.02, 8.0), 0.95, (0.3, 0.6, 1.0), tries_own_load=True)
CAPACITIES = {0: 1.3, 1: 0.4, 2: 0.001, 3: 9.0}


def layouts() -> list[Trial]:
    return [Trial(index, {"cluster.workers": index}, None) for index in CAPACITIES]


def answered(index: int, load: float | None) -> Answer:
    load = 0.7 if load is None else load
    capacity = CAPACITIES[index]
    carried = load <= capacity
    verdict = {"is_carried": carried, "attainment": 0.97 if carried else 0.9}
    is_stopped = load > 2 * capacity
    return {
        "status": "ok", "reason": "", "load": load, "wall_ms": 1.0, "is_stopped": is_stopped,
        "verdict": None if is_stopped else verdict, "report": {} if is_stopped else {"load": load},
    }  # fmt: skip


class Shuffled(LocalExecutor):
    """Answers in any order; after `until` answers it is interrupted."""

    def __init__(self, seed: int, until: int = 10**9, broken: Answer | None = None) -> None:
        super().__init__(1)
        self.random, self.until, self.broken = random.Random(seed), until, broken
        self.asked: list[tuple[int, float | None]] = []

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
            self.asked.append((index, request["load"]))
            answer = answered(index, request["load"])
            if self.broken is not None and index == 1:
                answer = self.broken
            todo += follow(index, answer)
            yield index, answer


def searched(ledger: Ledger, executor: Shuffled) -> LoadSearch:
    search = LoadSearch(layouts(), PLAN, ledger)
    search.finish(executor, lambda trial, load: {"load": load}, lambda *_: None)
    return search


def found(search: LoadSearch) -> dict[int, Any]:
    return {i: (s.capacity, sorted(s.probes)) for i, s in search.studies.items()}


def test_answers_in_any_order_bring_the_same(tmp_path: Path) -> None:
    every = []
    for seed in range(5):
        ledger = new_ledger(tmp_path / str(seed), sweep_hash="abc", overwrite=False)
        every.append(found(searched(ledger, Shuffled(seed))))
    assert all(other == every[0] for other in every)
    capacity = every[0][0][0]
    assert capacity.low <= 1.3 < capacity.high
    assert every[0][2][0].low is None and every[0][3][0].high is None


@pytest.mark.parametrize("until", [1, 2, 5, 9, 14, 20])
def test_after_a_break_nothing_is_tried_twice(tmp_path: Path, until: int) -> None:
    whole = searched(new_ledger(tmp_path / "a", sweep_hash="abc", overwrite=False), Shuffled(0))
    first = Shuffled(1, until)
    with pytest.raises(KeyboardInterrupt):
        searched(new_ledger(tmp_path / "b", sweep_hash="abc", overwrite=False), first)
    second = Shuffled(2)
    resumed = searched(resumed_ledger(tmp_path / "b", sweep_hash="abc"), second)
    assert found(resumed) == found(whole)
    assert len(first.asked) + len(second.asked) == whole.num_probes
    assert not {pair for pair in first.asked if pair[1] is not None} & set(second.asked)


def test_a_layout_that_cannot_be_run_ends_alone(tmp_path: Path) -> None:
    broken: Answer = {
        "status": "infeasible",
        "reason": "too large",
        "load": None,
        "verdict": None,
        "report": {},
    }
    ledger = new_ledger(tmp_path, sweep_hash="abc", overwrite=False)
    search = searched(ledger, Shuffled(0, broken=broken))
    assert search.failures == {1: broken}
    assert search.studies[1].probes == {} and search.studies[0].capacity.low is not None
    again = Shuffled(0)
    resumed = LoadSearch(layouts(), PLAN, resumed_ledger(tmp_path, sweep_hash="abc"))
    resumed.finish(again, lambda trial, load: {"load": load}, lambda *_: None)
    assert again.asked == [] and resumed.failures == {1: broken}


def test_a_bad_trace_ends_it(tmp_path: Path) -> None:
    broken: Answer = {
        "status": BAD_INPUT,
        "reason": "no such file",
        "load": None,
        "verdict": None,
        "report": {},
    }
    ledger = new_ledger(tmp_path / "out", sweep_hash="abc", overwrite=False)
    with pytest.raises(TraceError, match="no such file"):
        searched(ledger, Shuffled(0, broken=broken))
