"""Scrapes of a frontend's metrics in columns, for who keeps many of them."""

from array import array
from collections.abc import Iterator
from math import isnan, nan

from dynosim.planner.observation import Scrape


class MetricSeries:
    """Scrapes in columns: `values[name][i]` is what the sample was at `at_ms[i]`; NaN: not there.

    Times are on the clients' clock; names are those of `Scrape`.
    """

    def __init__(self) -> None:
        self.at_ms = array("d")
        self.values: dict[str, array[float]] = {}

    def __len__(self) -> int:
        return len(self.at_ms)

    def add(self, scrape: Scrape) -> None:
        """Add a later scrape."""
        num_before = len(self.at_ms)
        self.at_ms.append(scrape.at_ms)
        for name, value in scrape.values.items():
            column = self.values.get(name)
            if column is None:
                column = self.values[name] = array("d", [nan]) * num_before
            column.append(value)
        for column in self.values.values():
            if len(column) == num_before:
                column.append(nan)

    def scrapes(self) -> Iterator[Scrape]:
        """The scrapes as they came."""
        for index, at_ms in enumerate(self.at_ms):
            values = {name: column[index] for name, column in self.values.items()}
            yield Scrape(at_ms, {name: v for name, v in values.items() if not isnan(v)})

    def since(self, from_ms: float) -> "MetricSeries":
        """From that moment on, on a clock that is 0 then; counters stay as they are."""
        later = MetricSeries()
        for scrape in self.scrapes():
            if scrape.at_ms >= from_ms:
                later.add(Scrape(scrape.at_ms - from_ms, scrape.values))
        return later
