"""Tries all layouts at the loads that their studies ask for, in worker processes.

First every layout's capacity is located: between a load that it carries and one that it does not.
Then those that are worth it are searched to the end. What a layout is tried at follows from its own
probes, and whether it is worth it from those by which all were located, so neither the number of
workers nor the order in which they answer changes any of it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing

from dynosim.errors import TraceError
from dynosim.sweep.executor import Answer, LocalExecutor, Request
from dynosim.sweep.ledger import Ledger
from dynosim.sweep.probe import PROBE
from dynosim.sweep.pruning import not_pursued
from dynosim.sweep.space import Trial
from dynosim.sweep.status import BAD_INPUT, OK
from dynosim.sweep.study import LayoutStudy, LoadPlan, Probe

ProbeOf = Callable[[Trial, float | None], Request]
"""The request of a layout at a load; None: where its search begins."""
Told = Callable[[Trial, LayoutStudy, Answer], None]


class LoadSearch:
    """The studies of all layouts, as far as they have come. `failures` says why some have none, and
    `not_pursued`, once all are located, why some are left at that; `is_exhaustive`: none is."""

    def __init__(
        self,
        layouts: Sequence[Trial],
        plan: LoadPlan,
        ledger: Ledger,
        *,
        is_exhaustive: bool = False,
    ) -> None:
        self.studies = {layout.index: LayoutStudy(plan) for layout in layouts}
        self.failures: dict[int, Answer] = {}
        self.not_pursued: dict[int, str] = {}
        self._is_exhaustive = is_exhaustive
        self._is_second_part = False
        self._layouts = {layout.index: layout for layout in layouts}
        self._ledger = ledger
        self._num_open = dict.fromkeys(self._layouts, 0)
        self._unlocated, self._unfinished = set(self.studies), set(self.studies)
        for index, answers in ledger.probes.items():
            for answer in answers:
                self._note(index, answer)
        self._begin_second_part()

    @property
    def num_probes(self) -> int:
        """Loads that have been tried, of all layouts."""
        return sum(len(study.probes) for study in self.studies.values())

    @property
    def num_finished(self) -> int:
        """Layouts of which nothing more is to be tried."""
        return len(self.studies) - len(self._unfinished)

    def is_finished(self, index: int) -> bool:
        """Whether nothing more is to be tried of a layout."""
        return index not in self._unfinished

    @property
    def num_located(self) -> int:
        """Layouts of which the first part is over."""
        return len(self.studies) - len(self._unlocated)

    def _begin_second_part(self) -> bool:
        """Whether it begins now: all layouts have just been located."""
        if self._is_second_part or self._unlocated:
            return False
        self._is_second_part = True
        if not self._is_exhaustive:
            known = {i: study for i, study in self.studies.items() if i not in self.failures}
            self.not_pursued = not_pursued(known)
        self._unfinished = set(filter(self._has_more, self.studies))
        return True

    def _has_more(self, index: int) -> bool:
        """Whether more is to be tried of a layout in the second part."""
        if index in self.failures or index in self.not_pursued:
            return False
        return bool(self.studies[index].next_loads())

    def finish(self, executor: LocalExecutor, request_of: ProbeOf, told: Told) -> None:
        """Try what is missing; `told` hears of every probe. Raises: TraceError."""

        def asked(index: int) -> list[tuple[int, Request]]:
            if self._num_open[index] or self.is_finished(index):
                return []
            if not self._is_second_part and index not in self._unlocated:
                return []
            layout = self._layouts[index]
            loads = self.studies[index].next_loads()
            self._num_open[index] = len(loads)
            return [(index, request_of(layout, load)) for load in loads]

        def follow(index: int, answer: Answer) -> Iterable[tuple[int, Request]]:
            if answer["status"] == BAD_INPUT:
                raise TraceError(answer["reason"])
            self._num_open[index] -= 1
            self._ledger.append_probe(self._layouts[index], answer)
            self._note(index, answer)
            if self._begin_second_part():
                return [request for layout in self._layouts for request in asked(layout)]
            return asked(index)

        first = [request for index in self._layouts for request in asked(index)]
        with closing(executor.run(PROBE, first, follow)) as answers:
            for index, answer in answers:
                told(self._layouts[index], self.studies[index], answer)

    def _note(self, index: int, answer: Mapping[str, object]) -> None:
        if answer["status"] == OK:
            self.studies[index].told(Probe.of(answer))
        else:
            self.failures[index] = dict(answer)
        if index in self.failures or self.studies[index].is_located:
            self._unlocated.discard(index)
        is_over = self._is_second_part and not self._num_open[index] and not self._has_more(index)
        if index in self.failures or is_over:
            self._unfinished.discard(index)
