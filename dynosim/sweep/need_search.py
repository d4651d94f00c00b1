"""Finds for every layout the fewest workers that hold the load that is needed.

How many are tried follows from a layout's own probes alone, so neither the number of worker
processes nor the order in which they answer changes any of it.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from dynosim.config.load_rules import DECODE_WORKERS, WORKERS
from dynosim.errors import TraceError
from dynosim.sweep.capacity import LoadOutcome
from dynosim.sweep.executor import Answer, Executor, Request
from dynosim.sweep.fewest import FewestWorkers
from dynosim.sweep.ledger import Ledger
from dynosim.sweep.need_probe import NEED_PROBE
from dynosim.sweep.space import Trial
from dynosim.sweep.status import BAD_INPUT, OK
from dynosim.sweep.study import Probe


@dataclass(frozen=True, slots=True)
class Family:
    """A layout but for its number of workers: `low` to `high`. `trial` has the fewest.

    One that cannot be run at all says so in its trial, and has no numbers.
    """

    trial: Trial
    low: int = 0
    high: int = 0

    @property
    def index(self) -> int:
        """The number of its trial."""
        return self.trial.index

    @property
    def key(self) -> str:
        """The key that says how many: those that compute answers, where prompts have their own."""
        config = self.trial.config
        is_split = config is not None and config.cluster.is_disagg
        return DECODE_WORKERS if is_split else WORKERS


NeedRequest = Callable[[Family, int | None], Request]
"""The request of a layout with so many workers; None: where its search begins."""


class NeedSearch:
    """The searches of all layouts, as far as they have come. `failures` says why some have none."""

    def __init__(
        self,
        families: Sequence[Family],
        target: float,
        ledger: Ledger,
        *,
        goes_by_attainment: bool = True,
    ) -> None:
        self.failures: dict[int, Answer] = {}
        self.probes: dict[int, dict[int, Probe]] = {family.index: {} for family in families}
        self._families = {family.index: family for family in families}
        self._searches = {f.index: FewestWorkers(f.low, f.high, target) for f in families}
        self._goes_by_attainment = goes_by_attainment
        self._ledger = ledger
        for index, answers in ledger.probes.items():
            for answer in filter(is_need_probe, answers):
                self._note(index, answer)

    @property
    def num_probes(self) -> int:
        """Numbers of workers that have been tried, of all layouts."""
        return sum(map(len, self.probes.values()))

    @property
    def num_finished(self) -> int:
        """Layouts of which nothing more is to be tried."""
        return sum(self.is_finished(index) for index in self._families)

    def is_finished(self, index: int) -> bool:
        """Whether nothing more is to be tried of a layout."""
        return index in self.failures or (bool(self.probes[index]) and self._next(index) is None)

    def fewest(self, index: int) -> int | None:
        """The fewest workers that hold the load; None if none do."""
        return self._searches[index].found

    def too_few(self, index: int) -> Probe | None:
        """The probe of the most workers that do not hold it, if any do not."""
        workers = self._searches[index].too_few
        return None if workers is None else self.probes[index][workers]

    def finish(
        self, executor: Executor, request_of: NeedRequest, told: Callable[[Family], None]
    ) -> None:
        """Try what is missing; `told` hears of every probe. Raises: TraceError."""

        def asked(index: int) -> list[tuple[int, Request]]:
            if self.is_finished(index):
                return []
            workers = self._next(index) if self.probes[index] else None
            return [(index, request_of(self._families[index], workers))]

        def follow(index: int, answer: Answer) -> Iterable[tuple[int, Request]]:
            if answer["status"] == BAD_INPUT:
                raise TraceError(answer["reason"])
            self._ledger.append_probe(self._families[index].trial, answer)
            self._note(index, answer)
            return asked(index)

        first = [request for index in self._families for request in asked(index)]
        with closing(executor.run(NEED_PROBE, first, follow)) as answers:
            for index, _ in answers:
                told(self._families[index])

    def _next(self, index: int) -> int | None:
        return self._searches[index].next_workers()

    def _note(self, index: int, answer: Mapping[str, Any]) -> None:
        if answer["status"] != OK:
            self.failures[index] = dict(answer)
            return
        probe, workers = Probe.of(answer), answer["workers"]
        self.probes[index][workers] = probe
        outcome = LoadOutcome(probe.is_carried, probe.attainment, probe.attainment_so_far)
        if not self._goes_by_attainment:
            outcome = LoadOutcome(probe.is_carried)
        self._searches[index].told(workers, outcome)


def is_need_probe(answer: Mapping[str, Any]) -> bool:
    """Whether a line of the ledger is of this search, not of one for the capacity."""
    return "workers" in answer
