"""What one recording says of one prediction: figures side by side, as plain data to be kept."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Level = Literal["apriori", "capacity", "fitted"]
"""How much a prediction was told. A priori: model, GPU, engine version and arguments. Capacity: the
KV blocks that the engine printed, too. Fitted: constants from the first part of the same log."""

LEVELS: tuple[Level, ...] = ("apriori", "capacity", "fitted")

LOG, EXPERIMENT, CURVE = "log", "experiment", "curve"
"""Kinds of recordings: times of every request; means and percentiles; output of every second."""

E2E, TTFT, TPOT, ITL = "e2e_latency_ms", "ttft_ms", "tpot_ms", "itl_ms"
THROUGHPUT = "output_throughput_tok_s"


@dataclass(frozen=True, slots=True)
class JudgedFigure:
    """One statistic, named as in reports. Without an interval `low` and `high` are None."""

    name: str
    measured: float
    predicted: float
    low: float | None = None
    high: float | None = None

    @property
    def error(self) -> float:
        """Relative: 0.01 is 1 % above the measurement."""
        return self.predicted / self.measured - 1 if self.measured else float("nan")

    @property
    def is_covered(self) -> bool | None:
        """Whether the measured value lies in the interval; None without one."""
        if self.low is None or self.high is None:
            return None
        return self.low <= self.measured <= self.high


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordingVerdict:
    """One recording at one level.

    `distances` are shares: `ks_*`, the largest gap between two distributions of requests' times,
    and `curve`, the mean absolute deviation of output over time over its mean. `series` are the
    points of a curve: `second`, and the tokens a second `measured` and `predicted` before it.
    `causes` is the mean |error| of all statistics with one part measured at a time. `excluded` says
    why the recording is shown and not counted, `problem` why there is no prediction.
    """

    recording: str
    kind: str
    level: str
    setup: Mapping[str, str] = field(default_factory=dict)
    figures: tuple[JudgedFigure, ...] = ()
    distances: Mapping[str, float] = field(default_factory=dict)
    series: Mapping[str, Sequence[float]] = field(default_factory=dict)
    blocks_measured: int | None = None
    blocks_predicted: int | None = None
    timing: str = ""
    causes: Mapping[str, float] = field(default_factory=dict)
    varied: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    timing_notes: tuple[str, ...] = ()
    excluded: str = ""
    problem: str = ""

    def figure(self, name: str) -> JudgedFigure | None:
        """The statistic of that name, if the recording has it."""
        return next((one for one in self.figures if one.name == name), None)

    def error(self, name: str) -> float | None:
        """Relative error of a statistic; None where it was not measured."""
        found = self.figure(name)
        return None if found is None else found.error

    @property
    def block_error(self) -> float | None:
        """Relative error of the KV capacity; None unless it was predicted and is known."""
        if not self.blocks_measured or self.blocks_predicted is None or self.level != "apriori":
            return None
        return self.blocks_predicted / self.blocks_measured - 1

    @property
    def coverage(self) -> tuple[int, int]:
        """Measured figures inside their interval, and figures that have one."""
        known = [one.is_covered for one in self.figures if one.is_covered is not None]
        return sum(known), len(known)

    @property
    def largest_cause(self) -> str:
        """The part whose measurement takes away most of the error; "" if none does."""
        base = self.causes.get("none")
        single = {part: error for part, error in self.causes.items() if part in SINGLE_PARTS}
        if base is None or not single:
            return ""
        part = min(single, key=single.__getitem__)
        return part if single[part] < base else ""

    def to_dict(self) -> dict[str, Any]:
        """For JSON: what `from_dict` reads, and what follows from it."""
        data = asdict(self)
        for plain, figure in zip(data["figures"], self.figures, strict=True):
            plain |= {"error": figure.error, "covered": figure.is_covered}
        covered, of = self.coverage
        return {
            **data,
            "figures": list(data["figures"]),
            "coverage": {"covered": covered, "of": of},
            "block_error": self.block_error,
            "largest_cause": self.largest_cause,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "RecordingVerdict":
        """What `to_dict` wrote, perhaps before some keys were there.

        Raises: KeyError, TypeError for anything else.
        """
        own = {key: data[key] for key in cls.__dataclass_fields__ if key in data}
        own["figures"] = tuple(
            JudgedFigure(*(one[key] for key in JudgedFigure.__dataclass_fields__))
            for one in data["figures"]
        )
        for key in ("notes", "timing_notes", "varied"):
            own[key] = tuple(data.get(key, ()))
        return cls(**own)


SINGLE_PARTS = ("step time", "host overhead", "scheduling", "KV capacity")
"""Causes that one measured part stands for."""
