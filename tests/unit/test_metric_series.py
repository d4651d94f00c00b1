"""The frontend's metrics over time, in columns, as a table and as text."""

from itertools import groupby
from math import isnan

import pytest
from clusters import equal_workers
from controllers import Script
from probing import Ask, trace_of
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from dynosim.cluster import simulate
from dynosim.cluster.exposition import FrontendLabels
from dynosim.cluster.metrics_recorder import MetricsRecorder
from dynosim.cluster.scaling import ScalingProcess, ScalingSpec
from dynosim.engine.spec import EngineSpec
from dynosim.metrics.frontend_series import openmetrics_text, series_of, series_table
from dynosim.planner.frontend_metrics import TTFT, sample_name
from dynosim.planner.metric_series import MetricSeries
from dynosim.planner.observation import Scrape
from dynosim.timing.formulas import FixedModel
from dynosim.timing.model import set_client_path

LABELS = FrontendLabels("fleet", 'a "model"')
SPEC = EngineSpec(num_gpu_blocks=400, max_model_len=1000, block_size=4)


def recorded(*arrivals_ms: float, ingress_ms: float = 0.0, egress_ms: float = 0.0) -> MetricSeries:
    times = FixedModel(10.0, 5.0)
    set_client_path(times, ingress_ms=ingress_ms, egress_ms=egress_ms)
    recorder = MetricsRecorder(50.0, LABELS)
    trace = trace_of([Ask(at_ms, (1, 2), 0, output_tokens=20) for at_ms in arrivals_ms], 4)
    result = simulate(trace, equal_workers(SPEC, times), processes=[recorder])
    return recorder.finish(result.end_ms)


def test_a_sample_that_comes_late_is_not_there_before() -> None:
    series = MetricSeries()
    series.add(Scrape(0.0, {"a": 1.0}))
    series.add(Scrape(5.0, {"a": 2.0, "b": 3.0}))
    assert list(series.scrapes()) == [Scrape(0.0, {"a": 1.0}), Scrape(5.0, {"a": 2.0, "b": 3.0})]
    assert isnan(series.values["b"][0])
    assert list(series.since(4.0).scrapes()) == [Scrape(1.0, {"a": 2.0, "b": 3.0})]
    assert series_table(series).rows() == [
        (0.0, "a", "", 1.0), (5.0, "a", "", 2.0), (5.0, "b", "", 3.0)
    ]  # fmt: skip


def test_it_is_what_a_controller_is_shown() -> None:
    trace = trace_of([Ask(at_ms, (1, 2), 0, output_tokens=20) for at_ms in (0.0, 120.0)], 4)
    script, spec = Script([200.0], []), ScalingSpec(scrape_interval_ms=50.0, labels=LABELS)
    process = ScalingProcess(script, spec)
    recorder = MetricsRecorder(50.0, LABELS)
    cluster = equal_workers(SPEC, FixedModel(10.0, 5.0))
    result = simulate(trace, cluster, processes=[process, recorder])
    # The last request is over at 120 + 10 + 19 * 5 ms.
    assert result.end_ms == 225.0
    scrapes = list(recorder.finish(result.end_ms).scrapes())
    assert [one.at_ms for one in scrapes] == [0.0, 50.0, 100.0, 150.0, 200.0, 225.0]
    assert tuple(scrapes[:-1]) == process.looks[0].seen.scrapes
    assert scrapes[-1].values == process.scrape_at_end(225.0).values


def test_times_are_the_clients() -> None:
    """Behind 30 ms on the way in and 7 on the way out the first token comes after 47 ms."""
    series = recorded(0.0, ingress_ms=30.0, egress_ms=7.0)
    assert list(series.at_ms) == [50.0, 100.0, 142.0]
    count = sample_name(f"{TTFT}_count", LABELS.common)
    total = sample_name(f"{TTFT}_sum", LABELS.common)
    assert list(series.values[count]) == [1.0, 1.0, 1.0]
    assert series.values[total][-1] == pytest.approx(0.047)


def test_the_text_is_openmetrics_and_says_what_the_table_says() -> None:
    series = recorded(0.0, 40.0, 90.0)
    lines = list(openmetrics_text(series))
    told, kinds = {}, {}
    for at_ms in series.at_ms:  # one by one: the parser drops samples of histograms at later times
        moment = f" {at_ms / 1e3!r}\n"
        page = [line for line in lines if line.startswith("#") or line.endswith(moment)]
        for family in text_string_to_metric_families("".join(page)):
            kinds[family.name] = family.type
            for sample in family.samples:
                told[float(sample.timestamp), sample_name(sample.name, sample.labels)] = (
                    sample.value
                )
    assert kinds[TTFT] == "histogram"
    assert kinds["dynamo_frontend_requests"] == "counter"
    assert kinds["dynamo_frontend_stage_requests"] == "gauge"
    table = series_table(series)
    assert list(series_of(table).scrapes()) == list(series.scrapes())
    rows = table.rows()
    assert len(told) == len(rows)
    for time_ms, name, labels, value in rows:
        sample = f"{name}{{{labels}}}"
        assert told[time_ms / 1e3, sample] == value
        assert 'dynamo_namespace="fleet"' in labels
    times_ms = [row[0] for row in rows]
    assert [key for key, _ in groupby(times_ms)] == sorted(set(times_ms))


def test_a_table_of_nothing() -> None:
    table = series_table(MetricSeries())
    assert table.is_empty() and table.columns == ["time_ms", "name", "labels", "value"]
    assert not series_of(table)
    assert list(openmetrics_text(MetricSeries())) == ["# EOF\n"]


def test_nothing_is_recorded_before_a_run() -> None:
    with pytest.raises(RuntimeError):
        MetricsRecorder(50.0, LABELS).finish(10.0)
