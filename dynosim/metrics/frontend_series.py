"""The frontend's metrics over time: as a table, and as text that Prometheus reads."""

import re
from collections.abc import Iterator
from itertools import groupby
from math import isnan
from typing import TYPE_CHECKING

from dynosim.planner.frontend_metrics import BUCKETS
from dynosim.planner.metric_series import MetricSeries
from dynosim.planner.observation import Scrape

if TYPE_CHECKING:
    import polars as pl

_LE = re.compile(r',?le="[^"]*"')


def series_table(series: MetricSeries) -> "pl.DataFrame":
    """A row per scrape and sample: `time_ms`, `name`, `labels` as Prometheus writes them, `value`.

    Rows go by time. `le` is a label like every other.
    """
    import polars as pl

    times_ms = pl.Series("time_ms", series.at_ms, dtype=pl.Float64)
    parts = []
    for sample, column in series.values.items():
        name, _, labels = sample.partition("{")
        part = pl.DataFrame({"time_ms": times_ms, "value": pl.Series(column, dtype=pl.Float64)})
        part = part.with_columns(name=pl.lit(name), labels=pl.lit(labels.removesuffix("}")))
        parts.append(part.filter(~pl.col("value").is_nan()))
    schema = {"time_ms": pl.Float64, "name": pl.String, "labels": pl.String, "value": pl.Float64}
    if not parts:
        return pl.DataFrame(schema=schema)
    table = pl.concat(parts).select(schema.keys())
    return table.sort("time_ms", maintain_order=True)


def series_of(table: "pl.DataFrame") -> MetricSeries:
    """The series that a table was made of, also of some of its rows."""
    series = MetricSeries()
    times, names, labels, values = (column.to_list() for column in table.get_columns())
    for at_ms, rows in groupby(range(len(times)), key=times.__getitem__):
        scrape = {
            f"{names[row]}{{{labels[row]}}}" if labels[row] else names[row]: values[row]
            for row in rows
        }
        series.add(Scrape(at_ms, scrape))
    return series


def openmetrics_text(series: MetricSeries) -> Iterator[str]:
    """The series in OpenMetrics' text, line by line, with times: what `promtool` backfills from."""
    families: dict[str, dict[str, list[str]]] = {}
    for sample in series.values:
        name, _, labels = sample.partition("{")
        metrics = families.setdefault(_family(name), {})
        metrics.setdefault(_LE.sub("", labels), []).append(sample)
    for family, metrics in families.items():
        yield f"# TYPE {family} {_kind(next(iter(metrics.values()))[0], family)}\n"
        for samples in metrics.values():
            yield from _points(series, samples)
    yield "# EOF\n"


def _points(series: MetricSeries, samples: list[str]) -> Iterator[str]:
    """The samples of one metric, moment by moment."""
    columns = [series.values[sample] for sample in samples]
    for index, at_ms in enumerate(series.at_ms):
        for sample, column in zip(samples, columns, strict=True):
            if not isnan(column[index]):
                yield f"{sample} {column[index]!r} {at_ms / 1e3!r}\n"


def _family(name: str) -> str:
    """What the samples of a metric have their names from."""
    for suffix in ("_bucket", "_sum", "_count"):
        if name.removesuffix(suffix) in BUCKETS:
            return name.removesuffix(suffix)
    return name.removesuffix("_total")


def _kind(sample: str, family: str) -> str:
    if family in BUCKETS:
        return "histogram"
    return "counter" if sample.startswith(f"{family}_total") else "gauge"
