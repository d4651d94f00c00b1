"""A controller's own metrics, `dynamo_planner_...`, and the page that shows them."""

from collections import Counter
from collections.abc import Iterator

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.registry import Collector

from dynosim.planner.look import Look
from dynosim_runtime.planner.lives import ALIVE
from dynosim_runtime.ports import listening_socket

PREFIX = "dynamo_planner"
_MS_PER_HOUR = 3.6e6
_CLOSE_S = 0.5


class ControllerGauges(Collector):
    """What a controller saw and decided last. `gpus` are those of a worker, by pool."""

    def __init__(self, gpus: dict[str, int]) -> None:
        self._gpus = gpus
        self._last: Look | None = None
        self._figures: dict[tuple[str, str], float] = {}  # by pool and name: the latest
        self._decisions: Counter[tuple[str, str]] = Counter()
        self._gpu_ms = 0.0

    @property
    def gpu_hours(self) -> float:
        """Of all workers, whatever their phase, from the first look to the last."""
        return self._gpu_ms / _MS_PER_HOUR

    def note(self, look: Look) -> None:
        """A look was taken."""
        if self._last is not None:
            before = self._last.seen
            passed_ms = look.seen.now_ms - before.now_ms
            held = sum(len(pool.workers) * self._gpus.get(pool.name, 0) for pool in before.pools)
            self._gpu_ms += held * passed_ms
        self._last = look
        for decided in () if look.decision is None else look.decision.pools:
            self._decisions[decided.pool, decided.verdict] += 1
            for name, value in decided.figures.items():
                self._figures[decided.pool, name] = value

    def collect(self) -> Iterator[Metric]:
        """See `Collector`. A figure of the decision log is a gauge of its name."""
        replicas = _gauge("replicas", "Workers of a pool in a phase.", ["pool", "phase"])
        wanted = _gauge("wanted_replicas", "Workers that a pool is to have.", ["pool"])
        last = self._last
        for pool in () if last is None else last.seen.pools:
            for phase in ALIVE:
                replicas.add_metric([pool.name, phase.value], pool.count(phase))
            wanted.add_metric([pool.name], pool.wanted)
        for decided in () if last is None or last.decision is None else last.decision.pools:
            wanted.samples = [one for one in wanted.samples if one.labels["pool"] != decided.pool]
            wanted.add_metric([decided.pool], decided.target)
        yield replicas
        yield wanted
        yield GaugeMetricFamily(f"{PREFIX}_gpu_hours", "GPU hours so far.", self.gpu_hours)
        decisions = CounterMetricFamily(
            f"{PREFIX}_decisions", "Decisions on a pool by verdict.", labels=["pool", "verdict"]
        )
        for (pool_name, verdict), number in sorted(self._decisions.items()):
            decisions.add_metric([pool_name, verdict], number)
        yield decisions
        yield from self._of_figures()
        yield from self._of_engines()

    def _of_figures(self) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for (pool, name), value in sorted(self._figures.items()):
            text = "A figure of the last decision that had it."
            families.setdefault(name, _gauge(name, text, ["pool"])).add_metric([pool], value)
        yield from families.values()

    def _of_engines(self) -> Iterator[Metric]:
        reports = () if self._last is None else self._last.seen.reports
        for name, text in (
            ("queued_prefill_tokens", "Prompt tokens that wait at an engine."),
            ("decode_kv_tokens", "KV of an engine's decoding sequences."),
            ("queued_decode_kv_tokens", "KV of those that wait to decode."),
        ):
            family = _gauge(f"engine_{name}", text, ["pool", "worker"])
            for one in reports:
                family.add_metric([one.pool, str(one.worker_id)], getattr(one, name))
            yield family


def _gauge(name: str, text: str, labels: list[str]) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"{PREFIX}_{name}", text, labels=labels)


class GaugesPage:
    """Answers GET /metrics on the loopback; `url` is known once it has started."""

    def __init__(self, gauges: ControllerGauges, port: int = 0) -> None:
        self.url: str | None = None
        self._port = port
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(gauges)
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Raises: LiveError if the port is taken."""
        listener = listening_socket("127.0.0.1", self._port)
        app = web.Application()
        app.add_routes([web.get("/metrics", self._metrics)])
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=_CLOSE_S)
        await self._runner.setup()
        await web.SockSite(self._runner, listener).start()
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}/metrics"

    async def close(self) -> None:
        """Answer no more."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(
            body=generate_latest(self._registry), headers={"Content-Type": CONTENT_TYPE_LATEST}
        )
