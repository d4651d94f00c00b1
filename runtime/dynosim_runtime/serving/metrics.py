"""The frontend's Prometheus metrics, with Dynamo's names and labels.

Durations are histograms in seconds. What has no counterpart there begins with `dynosim_`. The HTTP
layer tells of requests as clients see them (`HttpObserver`), streams tell of tokens.
"""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dynosim.planner import frontend_metrics as names
from dynosim.planner.frontend_metrics import BUCKETS, TTFT_BUCKETS
from dynosim_runtime.http.observer import Outcome, RequestType, Stage
from dynosim_runtime.http.speculative_prefills import AheadOutcome
from dynosim_runtime.requests import RequestRecord
from dynosim_runtime.serving.histogram import LeanHistogram


class FrontendMetrics:
    """One frontend's metrics in a registry of their own.

    `namespace` is the `dynamo_namespace` label, `model` the served model's name.
    """

    def __init__(self, *, namespace: str, model: str) -> None:
        self.registry = CollectorRegistry()
        labels = {names.NAMESPACE_LABEL: namespace, names.MODEL_LABEL: model}
        self._labels = labels
        self._requests = self._counter(
            names.REQUESTS, "HTTP requests that ended.", names.REQUEST_LABELS
        )
        active = self._gauge(names.ACTIVE_REQUESTS, "HTTP requests under way.")
        self._active = active.labels(**labels)
        self._preprocessing = 0
        ttft = self._histogram(names.TTFT, "Arrival to first token.")
        self._gap = LeanHistogram(
            names.ITL, "Between two tokens.", BUCKETS[names.ITL], labels, self.registry
        )
        duration = self._histogram(names.DURATION, "Arrival to end.")
        isl = self._histogram(names.INPUT_TOKENS, "Tokens of prompts.")
        osl = self._histogram(names.OUTPUT_TOKENS, "Tokens of answers.")
        wait = self._histogram(names.ROUTER_WAIT, "Arrival to dispatch to a worker.")
        self._ttft, self._duration, self._isl, self._osl, self._wait = (
            histogram.labels(**labels) for histogram in (ttft, duration, isl, osl, wait)
        )
        self._handoff: Histogram | None = None  # where requests go through prefill workers
        self._transfer: Histogram | None = None
        self._cached = self._counter(
            names.ROUTER_CACHED_TOKENS, "Prompt tokens the router took to be cached."
        ).labels(**labels)
        self._engine_cached = self._counter(
            names.ENGINE_CACHED_TOKENS, "Prompt tokens that engines reported as cached."
        ).labels(**labels)
        self._prompt_tokens = self._counter(
            names.PROMPT_TOKENS, "Prompt tokens of all requests."
        ).labels(**labels)
        self.migrations = self._counter(
            names.MIGRATIONS, "Times a request moved on from a lost worker."
        ).labels(**labels)
        self._ended = self._counter(
            names.GENERATIONS, "Generations by how they ended.", names.GENERATION_LABELS
        )
        self._speculative = self._counter(
            "dynosim_frontend_speculative_prefills",
            "Prompts of next turns sent ahead, by how that ended; counted nowhere else.",
            names.GENERATION_LABELS,
        )
        self._speculative_tokens = self._counter(
            "dynosim_frontend_speculative_tokens",
            "Tokens of prompts sent ahead that engines computed, those unknown taken as computed.",
        ).labels(**labels)

    def observe(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Add a gauge that is read when asked for."""
        self._gauge(name, text).labels(**self._labels).set_function(value)

    def observe_stages(
        self,
        route: Callable[[], float],
        dispatch: Callable[[], float],
        prefill: Callable[[], float] | None = None,
    ) -> None:
        """Add `dynamo_frontend_stage_requests`: requests in each stage, read when asked for.

        As in Dynamo it has no model label; the phase of an aggregated cluster is empty. `prefill`
        counts what is dispatched to prefill workers, where there are such.
        """
        phase = "" if prefill is None else "decode"
        counts: dict[tuple[str, str], Callable[[], float]] = {
            ("preprocess", ""): lambda: self._preprocessing,
            ("route", ""): route,
            ("dispatch", phase): dispatch,
        }
        if prefill is not None:
            counts["dispatch", "prefill"] = prefill
        gauge = Gauge(
            names.STAGE_REQUESTS,
            "Requests in a stage of the frontend.",
            names.STAGE_LABELS,
            registry=self.registry,
        )
        namespace = self._labels[names.NAMESPACE_LABEL]
        for (stage, phase), count in counts.items():
            gauge.labels(dynamo_namespace=namespace, stage=stage, phase=phase).set_function(count)

    def observe_handoffs(self) -> None:
        """Add the times between the two workers of a request."""
        handoff = self._histogram(
            "dynosim_handoff_seconds", "Prefill worker's answer to first token."
        )
        transfer = self._histogram(
            "dynosim_kv_transfer_seconds", "Transfers of KV, of engines that tell."
        )
        self._handoff = handoff.labels(**self._labels)
        self._transfer = transfer.labels(**self._labels)

    # ---- what the HTTP layer tells, see HttpObserver ---------------------------------------------

    def request_started(self, model: str, endpoint: str, request_type: RequestType) -> None:
        """See `HttpObserver`."""
        self._active.inc()

    def request_ended(
        self,
        model: str,
        endpoint: str,
        request_type: RequestType,
        outcome: Outcome,
        duration_s: float,
    ) -> None:
        """See `HttpObserver`."""
        self._active.dec()
        self._duration.observe(duration_s)
        labels = {"endpoint": endpoint, "request_type": request_type, "status": outcome}
        self._requests.labels(**self._labels, **labels).inc()

    def stage_entered(self, stage: Stage) -> None:
        """See `HttpObserver`."""
        self._preprocessing += 1

    def stage_left(self, stage: Stage) -> None:
        """See `HttpObserver`."""
        self._preprocessing -= 1

    # ---- what streams tell -------------------------------------------------------------------

    def note_arrival(self, input_tokens: int) -> None:
        """A stream was asked for."""
        self._isl.observe(input_tokens)
        self._prompt_tokens.inc(input_tokens)

    def note_placed(self, cached_tokens: int, wait_ms: float) -> None:
        """A request goes to a worker."""
        self._cached.inc(cached_tokens)
        self._wait.observe(wait_ms / 1e3)

    def note_first_tokens(self, ttft_ms: float, num_tokens: int) -> None:
        """The first token is there; `num_tokens` came together."""
        self._ttft.observe(ttft_ms / 1e3)
        self._note_together(num_tokens)

    def note_gap(self, gap_ms: float, num_tokens: int) -> None:
        """`num_tokens` came together, so long after the last one."""
        self._gap.observe(gap_ms / 1e3)
        self._note_together(num_tokens)

    def _note_together(self, num_tokens: int) -> None:
        if num_tokens > 1:
            self._gap.observe(0.0, num_tokens - 1)

    def note_end(self, record: RequestRecord) -> None:
        """A stream ended, however it ended."""
        self._ended.labels(**self._labels, outcome=record.status).inc()
        self._osl.observe(record.output_tokens)
        for histogram, duration_ms in (
            (self._handoff, record.handoff_ms),
            (self._transfer, record.transfer_ms),
        ):
            if histogram is not None and duration_ms is not None:
                histogram.observe(duration_ms / 1e3)
        if record.cached_tokens:
            self._engine_cached.inc(record.cached_tokens)

    def note_sent_ahead(self, outcome: AheadOutcome, record: RequestRecord | None) -> None:
        """A speculative prefill ended; see `SpeculativePrefills`."""
        self._speculative.labels(**self._labels, outcome=outcome).inc()
        if record is not None:
            self._speculative_tokens.inc(record.input_tokens - (record.cached_tokens or 0))

    def exposition(self) -> bytes:
        """All metrics as Prometheus reads them."""
        return generate_latest(self.registry)

    def _counter(
        self, name: str, text: str, labels: tuple[str, ...] = names.COMMON_LABELS
    ) -> Counter:
        return Counter(name, text, labels, registry=self.registry)

    def _gauge(self, name: str, text: str) -> Gauge:
        return Gauge(name, text, names.COMMON_LABELS, registry=self.registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        buckets = BUCKETS.get(name, TTFT_BUCKETS)
        return Histogram(name, text, names.COMMON_LABELS, buckets=buckets, registry=self.registry)
