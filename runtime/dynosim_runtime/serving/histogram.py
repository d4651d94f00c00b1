"""A histogram for what happens with every token."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector


class LeanHistogram(Collector):
    """Counted without locks, in the event loop; made into Prometheus's form when asked for.

    `prometheus_client.Histogram` takes several microseconds for an observation.
    """

    def __init__(
        self,
        name: str,
        text: str,
        buckets: Sequence[float],
        labels: Mapping[str, str],
        registry: CollectorRegistry,
    ) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._bounds = buckets
        self._counts = [0] * (len(buckets) + 1)
        self._sum = 0.0
        registry.register(self)

    def observe(self, value: float, count: int = 1) -> None:
        """The same value, `count` times."""
        self._counts[bisect_left(self._bounds, value)] += count
        self._sum += value * count

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """See `Collector`."""
        family = HistogramMetricFamily(self._name, self._text, labels=tuple(self._labels))
        total, cumulative = 0, []
        for bound, count in zip((*self._bounds, float("inf")), self._counts, strict=True):
            total += count
            name = "+Inf" if bound == float("inf") else str(float(bound))
            cumulative.append((name, float(total)))
        family.add_metric(tuple(self._labels.values()), cumulative, self._sum)
        yield family
