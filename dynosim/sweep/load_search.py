"""Tries all layouts at the loads that their studies ask for, in worker processes.

What a layout is tried at follows from its own probes alone, so neither the number of workers nor
the order in which they answer changes any of it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing

from dynosim.errors import TraceError
from dynosim.sweep.executor import Answer, Executor, Request
from dynosim.sweep.ledger import Ledger
from dynosim.sweep.probe import PROBE
from dynosim.sweep.space import Trial
from dynosim.sweep.status import BAD_INPUT, FAILED, OK
from dynosim.sweep.study import LayoutStudy, LoadPlan, Probe

ProbeOf = Callable[[Trial, float | None], Request]
"""The request of a layout at a load; None: where its search begins."""
Told = Callable[[Trial, LayoutStudy, Answer], None]


class LoadSearch:
    """The studies of all layouts, as far as they have come. `failures` says why some have none."""

    def __init__(self, layouts: Sequence[Trial], plan: LoadPlan, ledger: Ledger) -> None:
        self.studies: dict[int, LayoutStudy] = {}
        self.failures: dict[int, Answer] = {}
        self._layouts: dict[int, Trial] = {}
        self._plan = plan
        self._ledger = ledger
        self._num_open: dict[int, int] = {}
        self.add(layouts)

    def add(self, layouts: Sequence[Trial]) -> None:
        """More layouts, with what the ledger has of them; a load that crashed is tried again."""
        for layout in layouts:
            self._layouts[layout.index] = layout
            self._num_open[layout.index] = 0
            self.studies[layout.index] = LayoutStudy(self._plan)
            for answer in self._ledger.probes_of(layout):
                if answer["status"] != FAILED:
                    self._note(layout.index, answer)

    @property
    def num_probes(self) -> int:
        """Loads that have been tried, of all layouts."""
        return sum(len(study.probes) for study in self.studies.values())

    @property
    def num_finished(self) -> int:
        """Layouts of which nothing more is to be tried."""
        return sum(self.is_finished(index) for index in self.studies)

    def is_finished(self, index: int) -> bool:
        """Whether nothing more is to be tried of a layout."""
        return index in self.failures or not self.studies[index].next_loads()

    def finish(self, executor: Executor, request_of: ProbeOf, told: Told) -> None:
        """Try what is missing; `told` hears of every probe. Raises: TraceError."""

        def asked(index: int) -> list[tuple[int, Request]]:
            if index in self.failures or self._num_open[index]:
                return []
            layout = self._layouts[index]
            loads = self.studies[index].next_loads()
            self._num_open[index] = len(loads)
            return [(index, request_of(layout, load)) for load in loads]

        def follow(index: int, answer: Answer) -> Iterable[tuple[int, Request]]:
            if answer["status"] == BAD_INPUT:
                raise TraceError(answer["reason"])
            self._num_open[index] -= 1
            kept = self._ledger.append_probe(self._layouts[index], answer)
            self._note(index, kept)
            return asked(index)

        first = (request for index in self._layouts for request in asked(index))
        with closing(executor.run(PROBE, first, follow)) as answers:
            for index, answer in answers:
                told(self._layouts[index], self.studies[index], answer)

    def _note(self, index: int, answer: Mapping[str, object]) -> None:
        if answer["status"] == OK:
            self.studies[index].told(Probe.of(answer))
        else:
            self.failures[index] = dict(answer)
