"""Reads throughput curves: requests with arrivals, output tokens of every second, three means.

One JSON document, plain or gzipped: `setup` (model, hardware, tensor_parallel, engines, engine with
its version), `measured` (`output_tok_s_by_second`: pairs of second and rate; `throughput_tok_s`,
`mean_ttft_ms`, `mean_tpot_ms`) and `requests` (`arrival_ms, input_tokens, output_tokens,
hash_ids_N`). Nothing is repaired.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dynosim.errors import TraceError
from dynosim.fit.measurements import Measurements
from dynosim.records import FloatArray, Trace
from dynosim.verify.finding import read_document
from dynosim.verify.verdict import THROUGHPUT, TPOT, TTFT

_HASHES = re.compile(r"hash_ids_(\d+)")
_VERSION = re.compile(r"\d+(?:\.\d+)+")
_MEANS = {
    "throughput_tok_s": THROUGHPUT,
    "mean_ttft_ms": f"mean_{TTFT}",
    "mean_tpot_ms": f"mean_{TPOT}",
}
"""What was measured, by the report's names."""


@dataclass(frozen=True, slots=True)
class ThroughputCurve:
    """One recorded run. `tok_s[i]` is the output in the second that ends at `second[i]`."""

    source: str
    setup: Mapping[str, Any]
    trace: Trace
    second: FloatArray
    tok_s: FloatArray
    means: Mapping[str, float]  # by the report's names
    is_caching: bool  # prefixes, in the run of the curve; the means are of a run without

    @property
    def version(self) -> str | None:
        """Of the engine, as far as the set-up tells it."""
        stated = self.setup.get("vllm_version") or self.setup.get("engine") or ""
        found = _VERSION.search(str(stated))
        return None if found is None else found[0]


def read_curve(path: Path) -> ThroughputCurve:
    """The curve in a file. Raises: TraceError naming the key and a remedy."""
    data = read_document(path)
    reader = _Reader(str(path))
    setup, measured = (reader.section(data, key) for key in ("setup", "measured"))
    points = measured.get("output_tok_s_by_second")
    pairs = reader.pairs("measured.output_tok_s_by_second", points)
    means = {
        ours: reader.number(f"measured.{theirs}", measured[theirs])
        for theirs, ours in _MEANS.items()
        if measured.get(theirs) is not None
    }
    return ThroughputCurve(
        source=str(path),
        setup=setup,
        trace=reader.trace(data.get("requests")),
        second=pairs[:, 0],
        tok_s=pairs[:, 1],
        means=means,
        is_caching="prefix caching" in str(setup.get("what", "")).lower(),
    )


class _Reader:
    """Checks one file's fields."""

    def __init__(self, path: str) -> None:
        self._path = path

    def _fail(self, key: str, message: str) -> TraceError:
        return TraceError(message, path=self._path, field=key)

    def section(self, data: Mapping[str, Any], key: str) -> Mapping[str, Any]:
        value = data.get(key)
        if not isinstance(value, dict):
            raise self._fail(key, "expected an object with keys")
        return value

    def number(self, key: str, value: Any) -> float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or value < 0:
            raise self._fail(key, f"expected a number from 0, got {value!r}")
        return float(value)

    def pairs(self, key: str, points: Any) -> FloatArray:
        if not isinstance(points, list) or len(points) < 2:
            raise self._fail(key, "expected a list of at least two pairs [second, tokens a second]")
        rows = []
        for index, point in enumerate(points):
            if not isinstance(point, list) or len(point) != 2:
                raise self._fail(f"{key}[{index}]", f"expected [second, rate], got {point!r}")
            rows.append([self.number(f"{key}[{index}]", one) for one in point])
        found = np.array(rows, np.float64)
        if (np.diff(found[:, 0]) <= 0).any():
            raise self._fail(key, "seconds do not rise: sort the points by time")
        return found

    def trace(self, requests: Any) -> Trace:
        """The workload. Arrivals count from the moment that the seconds do."""
        if not isinstance(requests, list) or not requests:
            raise self._fail("requests", "expected a list of requests")
        columns, hashes, block = [], [], 0
        for index, row in enumerate(requests):
            key = f"requests[{index}]"
            if not isinstance(row, dict):
                raise self._fail(key, f"expected an object, got {row!r}")
            arrival = self.number(f"{key}.arrival_ms", row.get("arrival_ms"))
            counts = [self._count(f"{key}.{kind}_tokens", row.get(f"{kind}_tokens"))
                      for kind in ("input", "output")]  # fmt: skip
            columns.append((arrival, *counts))
            found, mine = self._hashes(key, row)
            block = found or block
            hashes.append(mine)
        table = np.array(columns, np.float64)
        if (np.diff(table[:, 0]) < 0).any():
            raise self._fail("requests", "arrival_ms goes back: sort the requests by arrival")
        return _as_measurements(self._path, table, tuple(hashes), block).trace()

    def _count(self, key: str, value: Any) -> int:
        if type(value) is not int or value < 1:
            raise self._fail(key, f"expected a whole number >= 1, got {value!r}")
        return value

    def _hashes(self, key: str, row: Mapping[str, Any]) -> tuple[int, tuple[int, ...]]:
        for name, value in row.items():
            match = _HASHES.fullmatch(name)
            if match is None:
                continue
            if not isinstance(value, list) or not all(type(one) is int for one in value):
                raise self._fail(f"{key}.{name}", "expected a list of whole numbers")
            return int(match[1]), tuple(value)
        return 0, ()


def _as_measurements(
    path: str, table: FloatArray, hashes: tuple[tuple[int, ...], ...], block: int
) -> Measurements:
    """Columns as logs have them: how part-full blocks are named is said there."""
    nothing = np.zeros(len(table))
    return Measurements(
        source=path,
        setup={},
        clock="clients",
        arrival_ms=table[:, 0],
        input_tokens=table[:, 1].astype(np.int64),
        output_tokens=table[:, 2].astype(np.int64),
        ttft_ms=nothing,
        decode_ms=nothing,
        block_tokens=block,
        hashes=hashes,
    )
