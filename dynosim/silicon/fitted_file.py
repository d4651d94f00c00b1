"""The file of a fitted step-time model: one JSON object, written by `dynosim calibrate`.

    {"format": "dynosim-fitted-timing", "version": 1,
     "parameters": {"overhead_ms": 1.2, ...},          every name of `FittedParameters`
     "intervals": {"overhead_ms": [1.1, 1.3], ...},    95 %, for those that were fitted
     "draws": [{"overhead_ms": 1.15, ...}, ...],       plausible parameters, of a bootstrap
     "unidentified": ["prompt_step_ms"],
     "measured": {"prefill_tokens": 2048, ...},        largest measured step by axis
     "token_curve": {"tokens": [1, 64], "ms": [9.1, 9.4]},
     "context_curve": {"decodes": [1, 64], "factor": [0.6, 1.1]},
     "knee": 4.0, "graph_sizes": [1, 2, 4, 8],
     "errors": {"mean_ttft_ms": 0.01, ...}, "source": "...", "method": "...",
     "misfits": ["mean_ttft_ms -40.0% (limit 15%)"]}   only in what was written with --force

Everything but format, version and parameters may be left out.
"""

import difflib
import json
import math
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from dynosim.errors import TraceError
from dynosim.files.user_text import parse_json
from dynosim.timing.axes import AXES
from dynosim.timing.fitted import (
    DEFAULT_KNEE,
    PARAMETER_NAMES,
    Curve,
    Fit,
    FittedModel,
    FittedParameters,
    MeasuredRange,
)

FORMAT = "dynosim-fitted-timing"
VERSION = 1
_TOKEN_CURVE = ("tokens", "ms")
_CONTEXT_CURVE = ("decodes", "factor")
_KEYS = (
    "format", "version", "parameters", "intervals", "draws", "unidentified", "measured",
    "token_curve", "context_curve", "knee",
    "graph_sizes", "errors", "source", "method", "misfits",
)  # fmt: skip


def load_fitted(path: Path) -> FittedModel:
    """The model that a file describes. Raises: TraceError naming file and key."""
    return FittedModel(read_fit(path), name=path.name)


def write_fit(fit: Fit, path: Path) -> None:
    """Write a fit so that `read_fit` gives the same back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = {
        "format": FORMAT,
        "version": VERSION,
        "parameters": asdict(fit.parameters),
        "intervals": {name: list(bounds) for name, bounds in fit.intervals.items()},
        "draws": [asdict(draw) for draw in fit.draws],
        "unidentified": list(fit.unidentified),
        "measured": asdict(fit.measured),
        "token_curve": _lists(fit.token_curve, _TOKEN_CURVE),
        "context_curve": _lists(fit.context_curve, _CONTEXT_CURVE),
        "knee": fit.knee,
        "graph_sizes": list(fit.graph_sizes),
        "errors": dict(fit.errors),
        "source": fit.source,
        "method": fit.method,
        **({"misfits": list(fit.misfits)} if fit.misfits else {}),
    }
    path.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def read_fit(path: Path) -> Fit:
    """The fit that a file holds. Raises: TraceError naming file and key."""
    read = _Reader(path)
    knee = read.number("knee", read.data.get("knee", DEFAULT_KNEE))
    if knee < 1:
        read.fail("knee", f"expected 1 or more, got {knee}")
    return Fit(
        parameters=FittedParameters(**read.numbers("parameters", PARAMETER_NAMES)),
        token_curve=read.curve("token_curve", _TOKEN_CURVE),
        context_curve=read.curve("context_curve", _CONTEXT_CURVE),
        knee=knee,
        graph_sizes=read.sizes("graph_sizes"),
        intervals=read.intervals("intervals"),
        draws=read.draws("draws"),
        unidentified=read.names("unidentified"),
        measured=MeasuredRange(**read.numbers("measured", AXES)),  # type: ignore[arg-type]
        errors=read.numbers("errors", None, signed=True),
        source=read.text("source"),
        method=read.text("method"),
        misfits=read.texts("misfits"),
    )


def _lists(curve: Curve, names: tuple[str, str]) -> dict[str, list[float]]:
    """A curve as two lists; they are empty if there is no curve."""
    return {name: [point[axis] for point in curve] for axis, name in enumerate(names)}


class _Reader:
    """Reads the keys of one file, each with its check."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.data = self._read()
        if self.data.get("format") != FORMAT:
            self.fail("format", f'expected "{FORMAT}"; write one with `dynosim calibrate`')
        if self.data.get("version") != VERSION:
            self.fail("version", f"expected {VERSION}; write the file again with this dynosim")
        for key in self.data:
            self._known(key, key, _KEYS)
        if "parameters" not in self.data:
            self.fail("parameters", "missing")

    def fail(self, key: str, message: str) -> None:
        """Raises: TraceError, always."""
        raise TraceError(message, path=str(self._path), field=key)

    def _read(self) -> dict[str, Any]:
        try:
            data = parse_json(self._path.read_bytes())
        except FileNotFoundError:
            raise TraceError(
                "no such file (key timing.file); write one with `dynosim calibrate`",
                path=str(self._path),
            ) from None
        except (OSError, ValueError) as error:
            raise TraceError(f"not readable JSON: {error}", path=str(self._path)) from None
        if not isinstance(data, dict):
            raise TraceError("expected one JSON object", path=str(self._path))
        return data

    def _known(self, where: str, name: str, known: tuple[str, ...]) -> None:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            self.fail(where, f"unknown; {f'did you mean {near[0]}?' if near else 'remove it'}")

    def _section(self, key: str, kind: type) -> Any:
        value = self.data.get(key)
        if value is None:
            return kind()
        if not isinstance(value, kind):
            self.fail(key, f"expected {'an object' if kind is dict else 'a list'}")
        return value

    def number(self, where: str, value: Any, *, signed: bool = False) -> float:
        """A finite number, >= 0 unless signed."""
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not math.isfinite(value) or (value < 0 and not signed):
            self.fail(where, f"expected a number{'' if signed else ' >= 0'}, got {value!r}")
        return value  # type: ignore[no-any-return]

    def numbers(
        self, key: str, known: tuple[str, ...] | None, *, signed: bool = False
    ) -> dict[str, float]:
        """An object of numbers; null stands for "not known" and is left out."""
        return self._numbers(key, self._section(key, dict), known, signed=signed)

    def _numbers(
        self, where: str, section: dict[str, Any], known: tuple[str, ...] | None, *, signed: bool
    ) -> dict[str, float]:
        result = {}
        for name, value in section.items():
            if known is not None:
                self._known(f"{where}.{name}", name, known)
            if value is not None:
                result[name] = self.number(f"{where}.{name}", value, signed=signed)
        return result

    def draws(self, key: str) -> tuple[FittedParameters, ...]:
        """A list of objects like `parameters`."""
        draws = []
        for index, section in enumerate(self._section(key, list)):
            where = f"{key}[{index}]"
            if not isinstance(section, dict):
                self.fail(where, f"expected an object of parameters, got {section!r}")
            draws.append(
                FittedParameters(**self._numbers(where, section, PARAMETER_NAMES, signed=False))
            )
        return tuple(draws)

    def intervals(self, key: str) -> dict[str, tuple[float, float]]:
        """An object of pairs, low and high."""
        result = {}
        for name, bounds in self._section(key, dict).items():
            where = f"{key}.{name}"
            self._known(where, name, PARAMETER_NAMES)
            if not isinstance(bounds, list) or len(bounds) != 2:
                self.fail(where, f"expected [low, high], got {bounds!r}")
            low, high = (self.number(where, bound) for bound in bounds)
            if low > high:
                self.fail(where, f"low {low} is above high {high}")
            result[name] = (low, high)
        return result

    def names(self, key: str) -> tuple[str, ...]:
        """A list of parameter names."""
        names = self._section(key, list)
        for name in names:
            self._known(key, str(name), PARAMETER_NAMES)
        return tuple(names)

    def sizes(self, key: str) -> tuple[int, ...]:
        """A list of rising whole numbers."""
        sizes = self._section(key, list)
        if not all(type(size) is int and size > 0 for size in sizes) or sizes != sorted(set(sizes)):
            self.fail(key, "expected rising whole numbers above 0")
        return tuple(sizes)

    def curve(self, key: str, names: tuple[str, str]) -> Curve:
        """An object of two lists, rising places and the height at each; empty: no curve."""
        section = self._section(key, dict)
        for name in section:
            self._known(f"{key}.{name}", name, names)
        lists = []
        for name in names:
            values = section.get(name, [])
            if not isinstance(values, list):
                self.fail(f"{key}.{name}", "expected a list of numbers")
            lists.append([self.number(f"{key}.{name}", value) for value in values])
        if len(lists[0]) != len(lists[1]) or len(lists[0]) == 1:
            self.fail(key, f"expected as many {names[0]} as {names[1]}, two or more")
        if any(a >= b for a, b in pairwise(lists[0])):
            self.fail(f"{key}.{names[0]}", "expected rising numbers")
        return tuple(zip(*lists, strict=True))

    def text(self, key: str) -> str:
        """A text, empty if missing."""
        value = self.data.get(key, "")
        if not isinstance(value, str):
            self.fail(key, f"expected text, got {value!r}")
        return value  # type: ignore[no-any-return]

    def texts(self, key: str) -> tuple[str, ...]:
        """A list of texts, empty if missing."""
        values = self._section(key, list)
        for value in values:
            if not isinstance(value, str):
                self.fail(key, f"expected a list of texts, got {value!r}")
        return tuple(values)
