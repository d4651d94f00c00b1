"""How many replicas the demand of the next interval takes, by what one engine can serve."""

from dataclasses import dataclass
from math import ceil

from dynosim.planner.capacity import OperatingPoint, best_point
from dynosim.planner.decision import WARNING
from dynosim.planner.engine_model import EngineModel, RequestMix
from dynosim.planner.forecast import Forecast, Forecaster, ForecastSpec, forecaster
from dynosim.planner.traffic import LastMix, Traffic

_LEAST_CORRECTION, _MOST_CORRECTION = 0.5, 2.0


@dataclass(frozen=True, slots=True)
class Foreseen:
    """The next interval's requests a second and their mix; None where none were ever seen."""

    rps: float
    mix: RequestMix | None
    reasons: tuple[str, ...]


class DemandForecast:
    """Foresees requests, prompt and answer length, each for itself; hit rate and accept length stay
    the last ones."""

    def __init__(self, spec: ForecastSpec, interval_ms: float, most_accepted: int) -> None:
        self._interval_ms = interval_ms
        self._most_accepted = most_accepted
        self._method = spec.method
        self._requests, self._isl, self._osl = (forecaster(spec) for _ in range(3))
        self._last = LastMix()

    @property
    def last_mix(self) -> RequestMix | None:
        """The requests of the last interval in which any came."""
        return self._last.mix()

    def note(self, seen: Traffic) -> None:
        """Take in what is known of requests; forecasts stay."""
        self._last.take(seen, self._most_accepted)

    def take(self, seen: Traffic) -> None:
        """Take in an interval."""
        self.note(seen)
        self._requests.add(max(0.0, seen.rps * self._interval_ms / 1e3))
        for series, value in ((self._isl, seen.isl), (self._osl, seen.osl)):
            if value is not None and seen.num_requests > 0:
                series.add(value)

    def foresee(self) -> Foreseen:
        """The interval that begins now."""
        foreseen = self._requests.forecast()
        if foreseen is None:
            return Foreseen(0.0, self.last_mix, ("nobody has come yet",))
        rps = foreseen.value / self._interval_ms * 1e3
        return Foreseen(rps, self._mix(), (self._sentence(foreseen, rps),))

    def _mix(self) -> RequestMix | None:
        last = self.last_mix
        if last is None:
            return None
        isl, osl = _value(self._isl, last.isl), _value(self._osl, last.osl)
        return RequestMix(isl, osl, last.hit_rate, last.accept_length)

    def _sentence(self, foreseen: Forecast, rps: float) -> str:
        how = f"by {self._method}"
        if foreseen.is_fallback:
            how = f"as in the last one: {foreseen.num_points} are too few for {self._method}"
        return f"{foreseen.value:.4g} requests in the next interval ({rps:.4g}/s), {how}"


def _value(series: Forecaster, last: float) -> float:
    foreseen = series.forecast()
    return last if foreseen is None else max(1.0, foreseen.value)


@dataclass(frozen=True, slots=True)
class Needed:
    """Replicas that a demand takes, before any limit."""

    replicas: int
    engines: float  # the same before it was rounded up
    reasons: tuple[str, ...]
    figures: dict[str, float]

    def with_headroom(self, factor: float) -> int:
        """Replicas that so many times the demand takes."""
        return ceil(self.engines * factor - 1e-9)


NOTHING = Needed(0, 0.0, ("no demand",), {"demand_rps": 0.0})
"""What no demand takes."""


def needed(
    role: str,
    engine: EngineModel,
    foreseen: Foreseen,
    targets: tuple[float, float],
    max_utilization: float,
) -> Needed:
    """The fewest engines of a role whose capacity holds the demand; `targets`: TTFT, ITL in ms."""
    if foreseen.rps <= 0 or foreseen.mix is None:
        return NOTHING
    point = best_point(role, engine, foreseen.mix, *targets)
    usable_rps = point.rps * max_utilization
    engines = foreseen.rps / usable_rps
    replicas = ceil(engines - 1e-9)
    figures = {
        "demand_rps": foreseen.rps,
        "engine_rps": point.rps,
        "engine_seqs": float(point.num_seqs),
        "isl": foreseen.mix.isl,
        "osl": foreseen.mix.osl,
        "hit_rate": foreseen.mix.hit_rate,
        "accept_length": foreseen.mix.accept_length,
    }
    for name, value in (("engine_ttft_ms", point.ttft_ms), ("engine_itl_ms", point.itl_ms)):
        if value is not None:
            figures[name] = value
    reasons = [
        f"{foreseen.rps:.4g}/s by {usable_rps:.4g}/s of an engine ({point.num_seqs} at a time) "
        f"takes {replicas}"
    ]
    if not point.meets_targets:
        reasons.append(_missed(point, targets))
    return Needed(replicas, engines, tuple(reasons), figures)


def correction(observed_ms: float | None, expected_ms: float) -> float:
    """What expected times are multiplied by, within a factor of 2; 1 where nothing is known."""
    if observed_ms is None or expected_ms <= 0:
        return 1.0
    return min(_MOST_CORRECTION, max(_LEAST_CORRECTION, observed_ms / expected_ms))


def _missed(point: OperatingPoint, targets: tuple[float, float]) -> str:
    told = []
    for name, value, target in zip(
        ("TTFT", "ITL"), (point.ttft_ms, point.itl_ms), targets, strict=True
    ):
        if value is not None:
            told.append(f"{name} {value:.4g} ms (target {target:g})")
    return f"{WARNING}no engine meets the targets; planned with {' and '.join(told)}"
