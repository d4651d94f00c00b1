"""From measured steps to the constants of a fitted step-time model, and how well they fit.

Least squares over relative errors with a robust loss: a step that the machine disturbed must not
bend the rest, and short steps count as much as long ones. No constant may be negative.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from dynosim.errors import ConfigError
from dynosim.records import FloatArray
from dynosim.timing.fitted import (
    DEFAULT_KNEE,
    Fit,
    FittedModel,
    FittedParameters,
    MeasuredRange,
)
from dynosim_runtime.calibration.points import Point

FREE: tuple[str, ...] = (
    "overhead_ms",
    "weights_ms",
    "per_token_ms",
    "prompt_step_ms",
    "per_decode_ms",
    "per_context_token_ms",
    "per_pair_ms",
    "ingress_ms",
)
"""Fitted; the way in and the way out are seen only together, and all of it is called way in."""

ROBUST_SCALE = 0.05  # relative errors beyond it count less and less
NUM_FOLDS = 5
_TINY_MS = 1e-9
_Z95 = 1.96


@dataclass(frozen=True, slots=True)
class Residual:
    """A point and what the fit says of it."""

    point: Point
    fitted_ms: float

    @property
    def error(self) -> float:
        """Relative to what was measured."""
        return self.fitted_ms / self.point.measured_ms - 1


@dataclass(frozen=True, slots=True)
class FitResult:
    """A fit with its errors, in relative terms."""

    fit: Fit
    residuals: list[Residual]
    r_squared: float
    mean_error: float  # absolute value, over the points
    max_error: float
    held_out_error: float  # mean absolute value, of points that the fit had not seen


def fit_points(points: Sequence[Point], *, source: str, method: str) -> FitResult:
    """The constants that explain the points best. Raises: ConfigError for too few points."""
    if len(points) < len(FREE):
        raise ConfigError(
            f"{len(points)} measured points are too few for {len(FREE)} constants; measure longer"
        )
    solution, jacobian = _solve(points)
    intervals, unidentified = _confidence(points, solution, jacobian)
    held_out = _held_out_error(points)
    residuals = _residuals(points, solution)
    errors = np.array([abs(residual.error) for residual in residuals])
    fit = Fit(
        parameters=_parameters(solution),
        knee=DEFAULT_KNEE,
        intervals=intervals,
        unidentified=unidentified,
        measured=_measured_range(points),
        errors={"step_ms": held_out},
        source=source,
        method=method,
    )
    return FitResult(
        fit=fit,
        residuals=residuals,
        r_squared=_r_squared(residuals),
        mean_error=float(errors.mean()),
        max_error=float(errors.max()),
        held_out_error=held_out,
    )


def point_ms(model: FittedModel, point: Point) -> float:
    """What the model says a point takes."""
    step_ms = model.step_ms(
        point.num_prefills,
        point.prefill_tokens,
        point.prefix_tokens,
        point.num_decodes,
        point.context_tokens,
    )
    return step_ms + (model.ingress_ms + model.egress_ms if point.is_outside_included else 0.0)


def _parameters(solution: FloatArray) -> FittedParameters:
    values = dict(zip(FREE, solution.tolist(), strict=True))
    return FittedParameters(**{name: max(0.0, value) for name, value in values.items()})


def _residuals(points: Sequence[Point], solution: FloatArray) -> list[Residual]:
    model = FittedModel(Fit(parameters=_parameters(solution)))
    return [Residual(point, point_ms(model, point)) for point in points]


def _relative_errors(points: Sequence[Point], scale: FloatArray) -> Callable[..., FloatArray]:
    def errors(scaled: FloatArray) -> FloatArray:
        residuals = _residuals(points, scaled * scale)
        return np.array([residual.error for residual in residuals])

    return errors


def _solve(points: Sequence[Point]) -> tuple[FloatArray, FloatArray]:
    """The constants, and the derivatives of the relative errors by them."""
    from scipy.optimize import least_squares

    best = None
    for start in _starts(points):
        scale = np.maximum(start, _TINY_MS)
        found = least_squares(
            _relative_errors(points, scale),
            np.ones(len(FREE)),
            bounds=(0.0, np.inf),
            loss="soft_l1",
            f_scale=ROBUST_SCALE,
            max_nfev=400,
        )
        if best is None or found.cost < best[0]:
            best = (found.cost, found.x * scale, found.jac / scale)
    assert best is not None
    return best[1], best[2]


def _starts(points: Sequence[Point]) -> list[FloatArray]:
    """Where to begin: the linear part solved outright, with the knee placed high or low."""
    from scipy.optimize import nnls

    rows, measured = [], []
    for point in points:
        reach = point.prefix_tokens + (point.prefill_tokens + 1) / 2
        rows.append(
            [
                1.0,
                point.prefill_tokens + point.num_decodes,
                float(point.prefill_tokens > 0),
                point.num_decodes,
                point.context_tokens,
                point.prefill_tokens * reach,
                float(point.is_outside_included),
            ]
        )
        measured.append(point.measured_ms)
    weights = 1 / np.array(measured)
    linear, _ = nnls(np.array(rows) * weights[:, None], np.ones(len(measured)))
    base, per_token, prompt_step, per_decode, per_context, per_pair, outside = linear.tolist()
    typical = float(np.median(measured))
    floor = {
        "base": max(base, typical / 20),
        "token": max(per_token, typical / 1e4),
        "decode": max(per_decode, typical / 1e3),
        "context": max(per_context, typical / 1e6),
        "pair": max(per_pair, typical / 1e9),
        "step": max(prompt_step, typical / 50),
        "outside": max(outside, typical / 50),
    }
    return [
        np.array(
            [
                floor["base"] * (1 - share),
                floor["base"] * share,
                floor["token"],
                floor["step"],
                floor["decode"],
                floor["context"],
                floor["pair"],
                floor["outside"],
            ]
        )
        for share in (0.1, 0.5, 0.9)
    ]


def _confidence(
    points: Sequence[Point], solution: FloatArray, jacobian: FloatArray
) -> tuple[dict[str, tuple[float, float]], tuple[str, ...]]:
    """95 % intervals, and the constants whose interval is wider than they are large."""
    errors = np.array([residual.error for residual in _residuals(points, solution)])
    freedom = max(1, len(points) - len(FREE))
    # A robust measure of spread: the few points that fit badly widen no interval.
    variance = min(float((errors**2).sum()) / freedom, 10 * float(np.median(errors**2)) + 1e-12)
    covariance = np.linalg.pinv(jacobian.T @ jacobian) * variance
    half = _Z95 * np.sqrt(np.maximum(np.diag(covariance), 0.0))
    intervals = {
        name: (max(0.0, float(value - width)), float(value + width))
        for name, value, width in zip(FREE, solution, half, strict=True)
    }
    unsure = tuple(
        name
        for name, value, width in zip(FREE, solution, half, strict=True)
        if width > value and width > _TINY_MS
    )
    return intervals, unsure


def _held_out_error(points: Sequence[Point]) -> float:
    """Mean relative error of every point under a fit to the points of other folds."""
    errors: list[float] = []
    for fold in range(NUM_FOLDS):
        seen = [point for index, point in enumerate(points) if index % NUM_FOLDS != fold]
        unseen = [point for index, point in enumerate(points) if index % NUM_FOLDS == fold]
        if len(seen) >= len(FREE):
            solution, _ = _solve(seen)
            errors += [abs(residual.error) for residual in _residuals(unseen, solution)]
    return float(np.mean(errors)) if errors else float("nan")


def _r_squared(residuals: Sequence[Residual]) -> float:
    measured = np.array([residual.point.measured_ms for residual in residuals])
    fitted = np.array([residual.fitted_ms for residual in residuals])
    total = float(((measured - measured.mean()) ** 2).sum())
    return 1 - float(((measured - fitted) ** 2).sum()) / total if total else 1.0


def _measured_range(points: Sequence[Point]) -> MeasuredRange:
    decodes = [point for point in points if point.num_decodes]
    prompts = [point for point in points if point.prefill_tokens]
    return MeasuredRange(
        prefill_tokens=max((point.prefill_tokens for point in prompts), default=None),
        prefix_tokens=max((float(point.prefix_tokens) for point in prompts), default=None),
        num_decodes=max((point.num_decodes for point in decodes), default=None),
        mean_context=max(
            (point.context_tokens / point.num_decodes for point in decodes), default=None
        ),
    )
