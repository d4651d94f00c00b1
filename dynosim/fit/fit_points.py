"""From measured steps to a fitted step-time model, and how well it fits.

Both forms (see `forms`) are fitted; the one that foretells points better that it has not seen wins.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dynosim.errors import ConfigError
from dynosim.fit.forms import (
    LINEAR,
    PRODUCTS,
    ROBUST_SCALE,
    Solution,
    Solver,
    point_ms,
    relative_errors,
    solve_curve,
    solve_limits,
)
from dynosim.fit.points import Point
from dynosim.records import FloatArray
from dynosim.timing.fitted import Fit, FittedModel, FittedParameters, MeasuredRange

FORMS: dict[str, Solver] = {"limits": solve_limits, "curve": solve_curve}
MIN_POINTS = 2 * (len(LINEAR) + len(PRODUCTS))
NUM_FOLDS = 5
NUM_DRAWS = 32
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
    form: str  # of FORMS
    residuals: list[Residual]
    r_squared: float
    mean_error: float  # absolute value, over the points
    max_error: float
    held_out_error: float  # mean absolute value, of points that the fit had not seen
    held_out_errors: dict[str, float]  # the same, by form


def fit_points(points: Sequence[Point], *, source: str) -> FitResult:
    """The model that explains the points best. Raises: ConfigError for too few points."""
    if len(points) < MIN_POINTS:
        raise ConfigError(
            f"{len(points)} measured points are too few to fit step times ({MIN_POINTS} are "
            "needed): the engine has too little room (max_model_len) or is too slow"
        )
    held_out = {form: held_out_error(points, solve) for form, solve in FORMS.items()}
    form = min(held_out, key=lambda name: held_out[name])
    solution = FORMS[form](points)
    intervals, unidentified = _confidence(points, solution)
    fit = replace(
        solution.fit,
        intervals=intervals,
        draws=bootstrap_draws(points, solution),
        unidentified=unidentified,
        measured=_measured_range(points),
        errors={"step_ms": held_out[form]},
        source=source,
        method=f"robust least squares over measured steps; matrix products: {form}",
    )
    model = FittedModel(fit)
    residuals = [Residual(point, point_ms(model, point)) for point in points]
    errors = np.array([abs(residual.error) for residual in residuals])
    return FitResult(
        fit=fit,
        form=form,
        residuals=residuals,
        r_squared=_r_squared(residuals),
        mean_error=float(errors.mean()),
        max_error=float(errors.max()),
        held_out_error=held_out[form],
        held_out_errors=held_out,
    )


def held_out_error(points: Sequence[Point], solve: Solver) -> float:
    """Mean relative error of every point under a fit to the points of the other folds."""
    errors: list[float] = []
    for fold in range(NUM_FOLDS):
        seen = [point for index, point in enumerate(points) if index % NUM_FOLDS != fold]
        unseen = [point for index, point in enumerate(points) if index % NUM_FOLDS == fold]
        errors += np.abs(relative_errors(solve(seen).fit, unseen)).tolist()
    return float(np.mean(errors))


def _confidence(
    points: Sequence[Point], solution: Solution
) -> tuple[dict[str, tuple[float, float]], tuple[str, ...]]:
    """95 % intervals of the named constants, and those whose interval is wider than their value.

    The spread of errors is taken from their median, so that a few disturbed points widen nothing.
    """
    errors = np.abs(relative_errors(solution.fit, points))
    deviation = 1.4826 * float(np.median(errors))  # of a normal distribution
    scale = np.maximum(np.abs(solution.jacobian).max(axis=0), 1e-300)
    scaled = solution.jacobian / scale
    covariance = np.linalg.pinv(scaled.T @ scaled, rcond=1e-12) * deviation**2
    half = _Z95 * np.sqrt(np.maximum(np.diag(covariance), 0.0)) / scale
    intervals, unidentified = {}, []
    for name, value, width in zip(
        solution.names, solution.values.tolist(), half.tolist(), strict=True
    ):
        if not name:
            continue
        if not solution.jacobian[:, solution.names.index(name)].any():
            unidentified.append(name)  # no point feels it
            continue
        intervals[name] = (max(0.0, value - width), value + width)
        if width > value:
            unidentified.append(name)
    return intervals, tuple(unidentified)


def bootstrap_draws(
    points: Sequence[Point], solution: Solution, *, seed: int = 0
) -> tuple[FittedParameters, ...]:
    """Constants refitted to resampled points, in the linear approximation around the solution.

    A curve over tokens keeps its shape: its pieces grow together, by `curve_scale`.
    """
    from scipy.optimize import nnls

    names, values, jacobian = _with_curve_scale(solution)
    errors = relative_errors(solution.fit, points)
    trusted = np.array([point.weight for point in points]) ** 2
    weights = trusted / np.sqrt(1 + trusted * (errors / ROBUST_SCALE) ** 2)
    rows = jacobian * np.sqrt(weights)[:, None]
    wanted = (jacobian @ values - errors) * np.sqrt(weights)
    rng = np.random.default_rng(seed)
    draws = []
    for _ in range(NUM_DRAWS):
        chosen = rng.integers(0, len(points), len(points))
        scale = np.abs(rows[chosen]).max(axis=0)
        is_felt = scale > 0  # a constant that no chosen point feels stays as it is
        kept = rows[np.ix_(chosen, ~is_felt)] @ values[~is_felt]
        found, _ = nnls(
            rows[np.ix_(chosen, is_felt)] / scale[is_felt], wanted[chosen] - kept, maxiter=1000
        )
        drawn = values.copy()
        drawn[is_felt] = found / scale[is_felt]
        changes = dict(zip(names, drawn.tolist(), strict=True))
        draws.append(replace(solution.fit.parameters, **changes))
    return tuple(draws)


def _with_curve_scale(solution: Solution) -> tuple[tuple[str, ...], FloatArray, FloatArray]:
    """Names, values and derivatives, those of a curve's pieces drawn together to its scale."""
    is_piece = np.array([not name for name in solution.names])
    names = tuple(name for name in solution.names if name)
    values, jacobian = solution.values[~is_piece], solution.jacobian[:, ~is_piece]
    if not is_piece.any():
        return names, values, jacobian
    curve = solution.jacobian[:, is_piece] @ solution.values[is_piece]
    return (*names, "curve_scale"), np.append(values, 1.0), np.column_stack((jacobian, curve))


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
