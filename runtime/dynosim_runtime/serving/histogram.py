"""A histogram for what happens with every token."""

from collections.abc import Iterator, Mapping, Sequence

from prometheus_client import CollectorRegistry
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

from dynosim.planner.frontend_metrics import BucketCounts, le_text


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
        self._counts = BucketCounts(buckets)
        self.observe = self._counts.observe
        registry.register(self)

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """See `Collector`."""
        family = HistogramMetricFamily(self._name, self._text, labels=tuple(self._labels))
        bounds = (*self._counts.bounds, float("inf"))
        counts = self._counts.cumulative()
        buckets = [(le_text(bound), float(n)) for bound, n in zip(bounds, counts, strict=True)]
        family.add_metric(tuple(self._labels.values()), buckets, self._counts.total)
        yield family
