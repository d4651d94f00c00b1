"""Two runs side by side: their configurations, their results, and what explains the difference.

With the same requests in both, everything is compared request by request.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dynosim.compare.paired import Sample, Statistic, interval_of_change, mean, rank_statistic
from dynosim.compare.result_folder import RunFolder
from dynosim.records import FloatArray, IntArray

if TYPE_CHECKING:
    import polars as pl

BoolArray = NDArray[np.bool_]
_SHOWN_REQUESTS = 3

_LATENCIES: tuple[tuple[str, str, Statistic], ...] = (
    ("mean_ttft_ms", "ttft_ms", mean),
    ("median_ttft_ms", "ttft_ms", rank_statistic(50)),
    ("p95_ttft_ms", "ttft_ms", rank_statistic(95)),
    ("p99_ttft_ms", "ttft_ms", rank_statistic(99)),
    ("mean_tpot_ms", "tpot_ms", mean),
    ("p95_tpot_ms", "tpot_ms", rank_statistic(95)),
    ("mean_e2e_latency_ms", "e2e_ms", mean),
    ("p95_e2e_latency_ms", "e2e_ms", rank_statistic(95)),
)
"""Keys of the report with the column of requests.parquet that they are made of, and how."""

_TOTALS = (
    "output_throughput_tok_s",
    "output_tok_s_per_gpu",
    "request_throughput_rps",
    "completed_requests",
    "prefix_cache_reused_ratio",
    "preemptions",
    "num_gpus",
)
"""Keys of the report that belong to the run as a whole, so that no interval can be told."""


@dataclass(frozen=True, slots=True)
class KeyChange:
    """A key of the configuration that differs; None: it is not there."""

    key: str
    a: Any
    b: Any


@dataclass(frozen=True, slots=True)
class Change:
    """A result in A and in B; `low` and `high` are the 95 % interval of the change, if one is told.

    `percent` is None where A is 0.
    """

    key: str
    a: float | None
    b: float | None
    low: float | None = None
    high: float | None = None

    @property
    def change(self) -> float | None:
        """What B has more than A."""
        return None if self.a is None or self.b is None else self.b - self.a

    @property
    def percent(self) -> float | None:
        """The change in percent of A."""
        change = self.change
        return None if change is None or not self.a else 100 * change / abs(self.a)

    @property
    def can_be_told(self) -> bool | None:
        """Whether the interval excludes no change; None: there is no interval."""
        if self.low is None or self.high is None:
            return None
        return self.low > 0 or self.high < 0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        found = {"change": self.change, "percent": self.percent, "can_be_told": self.can_be_told}
        return {**asdict(self), **found}


@dataclass(frozen=True, slots=True)
class RequestChange:
    """One request in both runs: its times to the first token, and the part that changed most."""

    request_id: str
    a_ms: float
    b_ms: float
    part: str  # of `PARTS`
    part_ms: float  # its change


@dataclass(frozen=True, slots=True)
class RunDiff:
    """All that differs between two runs."""

    keys: tuple[KeyChange, ...]
    is_paired: bool
    num_requests: tuple[int, int]
    num_pairs: int  # completed in both
    same_arrivals: bool  # of sessions, if paired
    saturated: tuple[bool, bool]
    results: tuple[Change, ...]
    parts: tuple[Change, ...]  # means; the first ones add up to the time to the first token
    moved_share: float | None  # of pairs, on another worker than before
    worst: tuple[RequestChange, ...]
    best: tuple[RequestChange, ...]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "configuration": [asdict(change) for change in self.keys],
            "is_paired": self.is_paired,
            "num_requests": list(self.num_requests),
            "num_pairs": self.num_pairs,
            "same_arrivals": self.same_arrivals,
            "saturated": list(self.saturated),
            "results": [change.to_dict() for change in self.results],
            "parts": [change.to_dict() for change in self.parts],
            "moved_share": self.moved_share,
            "worst": [asdict(one) for one in self.worst],
            "best": [asdict(one) for one in self.best],
        }


PARTS = ("router_ms", "queue_ms", "prefill_ms")
"""What the time to the first token consists of."""


class _Requests:
    """The columns of a run's requests that are compared."""

    def __init__(self, table: "pl.DataFrame", session: IntArray) -> None:
        self.session = session
        self.completed: BoolArray = (table["status"] == "completed").to_numpy()
        ttft_ms, e2e_ms = _floats(table, "ttft_ms"), _floats(table, "e2e_ms")
        router_ms = _floats(table, "dispatch_ms") - _floats(table, "arrival_ms")
        self.columns = {
            "ttft_ms": ttft_ms,
            "tpot_ms": _floats(table, "tpot_ms"),
            "e2e_ms": e2e_ms,
            "router_ms": router_ms,
            "queue_ms": _floats(table, "prefill_wait_time_ms") - router_ms,
            "prefill_ms": _floats(table, "prefill_time_ms"),
            "decode_ms": e2e_ms - ttft_ms,
            "cached_tokens": _floats(table, "cached_tokens"),
            "preemptions": _floats(table, "preemptions"),
        }

    def sample(self, column: str, kept: BoolArray) -> Sample:
        """A column's values of some requests that have one."""
        values = self.columns[column]
        return Sample(values, self.session).of(kept & ~np.isnan(values))

    def within(self, sla: Mapping[str, float | None]) -> FloatArray:
        """1 for a request that kept every bound, else 0."""
        good = self.completed.copy()
        for key, column in (("ttft_ms", "ttft_ms"), ("itl_ms", "tpot_ms"), ("e2e_ms", "e2e_ms")):
            bound = sla.get(f"sla.{key}")
            if bound is not None:
                good &= ~(self.columns[column] > bound)
        return good.astype(np.float64)


def diff_runs(a: RunFolder, b: RunFolder) -> RunDiff:
    """What differs between two runs."""
    is_paired = _same_requests(a.requests, b.requests)
    of_a = _Requests(a.requests, _sessions(a.requests))
    of_b = _Requests(b.requests, of_a.session if is_paired else _sessions(b.requests))
    both = of_a.completed & of_b.completed if is_paired else None
    compared = _Comparison(of_a, of_b, both)
    worst, best = _extremes(a.requests, of_a, of_b, both) if both is not None else ((), ())
    return RunDiff(
        keys=changed_keys(a.config, b.config),
        is_paired=is_paired,
        num_requests=(len(a.requests), len(b.requests)),
        num_pairs=0 if both is None else int(both.sum()),
        same_arrivals=is_paired and _same_starts(a.requests, b.requests, of_a.session),
        saturated=(bool(a.report.get("saturated")), bool(b.report.get("saturated"))),
        results=compared.results(a, b),
        parts=compared.parts(),
        moved_share=None if both is None else _moved_share(a.requests, b.requests, both),
        worst=worst,
        best=best,
    )


def changed_keys(a: Mapping[str, Any], b: Mapping[str, Any]) -> tuple[KeyChange, ...]:
    """Keys of two configurations, by dotted name, that differ."""
    keys = dict.fromkeys((*a, *b))
    return tuple(KeyChange(key, a.get(key), b.get(key)) for key in keys if a.get(key) != b.get(key))


def number_changes(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Change]:
    """Every number that at least one of two reports has, by its key."""
    keys = dict.fromkeys((*a, *b))
    changes = {key: Change(key, _number(a, key), _number(b, key)) for key in keys}
    return {key: one for key, one in changes.items() if (one.a, one.b) != (None, None)}


def _same_requests(a: "pl.DataFrame", b: "pl.DataFrame") -> bool:
    """Whether row by row the same was asked for."""
    if len(a) != len(b):
        return False
    if not all(a[name].equals(b[name]) for name in ("request_id", "session_id", "input_tokens")):
        return False
    both = ((a["status"] == "completed") & (b["status"] == "completed")).to_numpy()
    a_tokens, b_tokens = (table["output_tokens"].to_numpy()[both] for table in (a, b))
    return bool((a_tokens == b_tokens).all())


def _same_starts(a: "pl.DataFrame", b: "pl.DataFrame", session: IntArray) -> bool:
    """Whether sessions start at the same times; later turns follow from what came before."""
    first = np.unique(session, return_index=True)[1]
    a_ms, b_ms = (_floats(table, "arrival_ms")[first] for table in (a, b))
    return bool(np.allclose(a_ms, b_ms, rtol=1e-12, atol=1e-6, equal_nan=True))


def _sessions(table: "pl.DataFrame") -> IntArray:
    """By request the number of its session; without one, a request is its own."""
    numbers: dict[object, int] = {}
    lone = count()
    names = [name or ("", next(lone)) for name in table["session_id"].to_list()]
    return np.array([numbers.setdefault(name, len(numbers)) for name in names], np.int64)


class _Comparison:
    """The requests of two runs; `both` flags the pairs that completed in both, if there are."""

    def __init__(self, of_a: _Requests, of_b: _Requests, both: BoolArray | None) -> None:
        self.of_a = of_a
        self.of_b = of_b
        self.both = both

    def results(self, a: RunFolder, b: RunFolder) -> tuple[Change, ...]:
        """What the reports say, with intervals where requests tell them."""
        found = [
            self._change(key, (_number(a.report, key), _number(b.report, key)), column, statistic)
            for key, column, statistic in _LATENCIES
        ]
        found.append(self._attainment(a, b))
        found += [Change(key, _number(a.report, key), _number(b.report, key)) for key in _TOTALS]
        return tuple(change for change in found if (change.a, change.b) != (None, None))

    def parts(self) -> tuple[Change, ...]:
        """Means of what a request's time consists of, and of what makes it longer or shorter."""
        return tuple(
            self._change(column, self._means(column), column, mean)
            for column in (*PARTS, "decode_ms", "cached_tokens", "preemptions")
        )

    def _attainment(self, a: RunFolder, b: RunFolder) -> Change:
        """The share within the SLA; an interval only where it is the same SLA."""
        key = "sla_attainment"
        values = _number(a.report, key), _number(b.report, key)
        sla, other = (
            {key: bound for key, bound in one.config.items() if key.startswith("sla.")}
            for one in (a, b)
        )
        if sla != other or None in values:
            return Change(key, *values)
        good_a = Sample(self.of_a.within(sla), self.of_a.session)
        good_b = Sample(self.of_b.within(sla), self.of_b.session)
        is_paired = self.both is not None
        interval = interval_of_change(good_a, good_b, mean, is_paired=is_paired)
        return Change(key, *values, *(interval or (None, None)))

    def _change(
        self,
        key: str,
        values: tuple[float | None, float | None],
        column: str,
        statistic: Statistic,
    ) -> Change:
        kept_a, kept_b = self._kept(column)
        interval = interval_of_change(
            self.of_a.sample(column, kept_a),
            self.of_b.sample(column, kept_b),
            statistic,
            is_paired=self.both is not None,
        )
        return Change(key, *values, *(interval or (None, None)))

    def _means(self, column: str) -> tuple[float | None, float | None]:
        kept_a, kept_b = self._kept(column)
        a, b = self.of_a.columns[column][kept_a], self.of_b.columns[column][kept_b]
        return (float(a.mean()) if len(a) else None, float(b.mean()) if len(b) else None)

    def _kept(self, column: str) -> tuple[BoolArray, BoolArray]:
        """The requests of each run that count: the same ones where they are paired."""
        there_a = ~np.isnan(self.of_a.columns[column])
        there_b = ~np.isnan(self.of_b.columns[column])
        if self.both is None:
            return self.of_a.completed & there_a, self.of_b.completed & there_b
        kept = self.both & there_a & there_b
        return kept, kept


def _extremes(
    table: "pl.DataFrame", of_a: _Requests, of_b: _Requests, both: BoolArray
) -> tuple[tuple[RequestChange, ...], tuple[RequestChange, ...]]:
    """The pairs whose time to the first token grew most, and shrank most."""
    ids = table["request_id"].to_list()
    a_ms, b_ms = of_a.columns["ttft_ms"], of_b.columns["ttft_ms"]
    rows = np.flatnonzero(both)
    ordered = rows[np.argsort((a_ms - b_ms)[rows], kind="stable")]

    def told(row: int) -> RequestChange:
        changes = {part: float(of_b.columns[part][row] - of_a.columns[part][row]) for part in PARTS}
        part = max(changes, key=lambda name: abs(changes[name]))
        return RequestChange(ids[row], float(a_ms[row]), float(b_ms[row]), part, changes[part])

    worst = [told(row) for row in ordered[:_SHOWN_REQUESTS].tolist() if b_ms[row] > a_ms[row]]
    last = ordered[::-1][:_SHOWN_REQUESTS].tolist()
    return tuple(worst), tuple(told(row) for row in last if b_ms[row] < a_ms[row])


def _moved_share(a: "pl.DataFrame", b: "pl.DataFrame", both: BoolArray) -> float | None:
    if not both.any():
        return None
    moved = a["prefill_worker_id"].ne_missing(b["prefill_worker_id"]).to_numpy()
    return float(moved[both].mean())


def _floats(table: "pl.DataFrame", name: str) -> FloatArray:
    import polars as pl

    values: FloatArray = table[name].cast(pl.Float64).fill_null(float("nan")).to_numpy()
    return values


def _number(report: Mapping[str, Any], key: str) -> float | None:
    value = report.get(key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value)
