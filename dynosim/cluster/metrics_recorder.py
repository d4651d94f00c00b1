"""The frontend's metrics over virtual time, for who wants to see them and steers nothing."""

from dynosim.cluster.control import ControlPlane, ProcessGenerator
from dynosim.cluster.exposition import FrontendLabels
from dynosim.cluster.sight import Sight
from dynosim.planner.metric_series import MetricSeries
from dynosim.planner.observation import Scrape


class MetricsRecorder:
    """Scrapes at the clients' 0, `every_ms`, ...; it is the `Process` of one run."""

    def __init__(self, every_ms: float, labels: FrontendLabels) -> None:
        self.series = MetricSeries()
        self._every_ms = every_ms
        self._labels = labels
        self._ingress_ms = 0.0
        self._outside_ms = 0.0
        self._sight: Sight | None = None

    def __call__(self, control: ControlPlane) -> ProcessGenerator:
        """See `dynosim.cluster.control`; what arrives from now on is seen."""
        self._ingress_ms = control.books.ingress_ms
        self._outside_ms = self._ingress_ms + control.books.egress_ms
        self._sight = Sight(control, self._labels)
        return self._run(control, self._sight)

    def finish(self, end_ms: float) -> MetricSeries:
        """All scrapes, the last one as the run ends, on the clients' clock.

        Raises: RuntimeError if none has begun.
        """
        if self._sight is None:
            raise RuntimeError("no run has been recorded")
        if not self.series or end_ms > self.series.at_ms[-1]:
            scrape = self._sight.scrape(end_ms - self._outside_ms)
            self.series.add(Scrape(end_ms, scrape.values))
        return self.series

    def _run(self, control: ControlPlane, sight: Sight) -> ProcessGenerator:
        number = 0
        while True:
            at_ms = number * self._every_ms
            number += 1
            inside_ms = at_ms - self._ingress_ms
            if inside_ms < 0:
                continue  # no request has come to the engines
            yield control.env.timeout(max(0.0, inside_ms - control.now_ms))
            self.series.add(Scrape(at_ms, sight.scrape(control.now_ms).values))
