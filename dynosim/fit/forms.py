"""Two forms of a step's matrix products, and how the constants of each are found.

*Limits*: the larger of reading the weights and computing the tokens, as on an accelerator whose
kernels are all alike efficient. Few constants, good beyond what was measured.
*Curve*: straight pieces over the number of tokens, which may bend as an engine's kernels do (those
of CPUs do), and never fall. More constants, but all linear.

Both minimise relative errors under a robust loss: a step that the machine disturbed must not bend
the rest, and short steps count as much as long ones, unsteady ones less. No constant may be
negative.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from dynosim.fit.points import Point
from dynosim.records import FloatArray
from dynosim.timing.fitted import DEFAULT_KNEE, Fit, FittedModel, FittedParameters

LINEAR: tuple[str, ...] = (
    "overhead_ms",
    "prompt_step_ms",
    "per_decode_ms",
    "per_context_token_ms",
    "per_pair_ms",
    "ingress_ms",
)
"""Constants that both forms have. The way in and the way out of an engine are seen only together;
all of it is called way in."""

PRODUCTS: tuple[str, ...] = ("weights_ms", "per_token_ms")
ROBUST_SCALE = 0.03  # relative errors beyond it count less and less
_TINY_MS = 1e-12
_ROUNDS = 30  # of reweighting; far more than it takes to settle


@dataclass(frozen=True, slots=True)
class Solution:
    """Constants and how the relative errors change with them."""

    fit: Fit
    names: tuple[str, ...]  # of the columns; "" for a piece of the curve
    values: FloatArray  # (constants,)
    jacobian: FloatArray  # (points, constants)


Solver = Callable[[Sequence[Point]], Solution]


def point_ms(model: FittedModel, point: Point) -> float:
    """What a model says a point takes."""
    outside_ms = model.ingress_ms + model.egress_ms if point.is_outside_included else 0.0
    return model.step_ms(point.step) + outside_ms


def relative_errors(fit: Fit, points: Sequence[Point]) -> FloatArray:
    """Fitted over measured, less one."""
    model = FittedModel(fit)
    return np.array([point_ms(model, point) / point.measured_ms - 1 for point in points])


def solve_curve(points: Sequence[Point]) -> Solution:
    """The curve form: non-negative least squares, reweighted until the weights settle."""
    from scipy.optimize import nnls

    nodes = _nodes(points)
    measured = _measured(points)
    rows = np.hstack((_linear_rows(points), _piece_rows(points, nodes))) / measured[:, None]
    trusted = _weights(points) ** 2
    weights = trusted
    values = np.zeros(rows.shape[1])
    # Columns differ by many orders of magnitude; the solver's tolerances do not.
    scale = np.maximum(np.abs(rows).max(axis=0), _TINY_MS)
    for _ in range(_ROUNDS):
        root = np.sqrt(weights)
        scaled, _ = nnls(rows / scale * root[:, None], root)
        values = scaled / scale
        errors = rows @ values - 1
        weights = trusted / np.sqrt(1 + trusted * (errors / ROBUST_SCALE) ** 2)
    linear = dict(zip(LINEAR, values.tolist(), strict=False))
    heights = np.concatenate(([0.0], np.cumsum(values[len(LINEAR) :])))
    curve = tuple(zip((float(node) for node in nodes), heights.tolist(), strict=True))
    fit = Fit(parameters=FittedParameters(**linear), token_curve=curve)
    names = (*LINEAR, *("" for _ in nodes[1:]))
    return Solution(fit, names, values, rows)


def solve_limits(points: Sequence[Point]) -> Solution:
    """The limits form: non-linear least squares from several starts."""
    from scipy.optimize import least_squares

    names = (*LINEAR, *PRODUCTS)
    best = None
    for start in _starts(points):
        scale = np.maximum(start, _TINY_MS)

        def errors(scaled: FloatArray, scale: FloatArray = scale) -> FloatArray:
            fit = _limits_fit(names, scaled * scale)
            return relative_errors(fit, points) * _weights(points)

        found = least_squares(
            errors,
            np.ones(len(names)),
            bounds=(0.0, np.inf),
            loss="soft_l1",
            f_scale=ROBUST_SCALE,
            max_nfev=300,
        )
        if best is None or found.cost < best[0]:
            # The loss has bent the solver's own derivatives; they are wanted plain.
            best = (found.cost, found.x * scale)
    assert best is not None
    values = best[1]
    fit = _limits_fit(names, values)
    return Solution(fit, names, values, _derivatives(names, values, points))


def _limits_fit(names: tuple[str, ...], values: FloatArray) -> Fit:
    constants = dict(zip(names, np.maximum(values, 0.0).tolist(), strict=True))
    return Fit(parameters=FittedParameters(**constants), knee=DEFAULT_KNEE)


def _derivatives(names: tuple[str, ...], values: FloatArray, points: Sequence[Point]) -> FloatArray:
    """Central differences of the relative errors."""
    columns = []
    for index, value in enumerate(values.tolist()):
        step = max(value, float(values.max()) * 1e-9) * 1e-4
        above, below = values.copy(), values.copy()
        above[index] += step
        below[index] = max(0.0, value - step)
        difference = relative_errors(_limits_fit(names, above), points) - relative_errors(
            _limits_fit(names, below), points
        )
        columns.append(difference / (above[index] - below[index]))
    return np.stack(columns, axis=1)


def _starts(points: Sequence[Point]) -> list[FloatArray]:
    """Where to begin: all of it linear, solved outright; the weights with any share of the base."""
    from scipy.optimize import nnls

    measured = _measured(points)
    tokens = np.array([[float(_tokens(point))] for point in points])
    rows = np.hstack((_linear_rows(points), tokens)) / measured[:, None]
    scale = np.maximum(np.abs(rows).max(axis=0), _TINY_MS)
    scaled, _ = nnls(rows / scale, np.ones(len(points)))
    # A constant that came out as nothing may grow again: it starts at a hundredth of a step.
    values = np.maximum(scaled, 0.01) / scale
    overhead_ms, per_token_ms = values[0], values[-1]
    starts = []
    for share in (0.1, 0.5, 0.9):
        linear = values[:-1].copy()
        linear[0] = overhead_ms * (1 - share)
        starts.append(np.concatenate((linear, [overhead_ms * share, per_token_ms])))
    return starts


def _linear_rows(points: Sequence[Point]) -> FloatArray:
    """(points, LINEAR) what each constant is multiplied by."""
    return np.array(
        [
            [
                1.0,
                float(point.prefill_tokens > 0),
                float(point.num_decodes),
                float(point.context_tokens),
                point.prefill_tokens * (point.prefix_tokens + (point.prefill_tokens + 1) / 2),
                float(point.is_outside_included),
            ]
            for point in points
        ]
    )


def _piece_rows(points: Sequence[Point], nodes: Sequence[int]) -> FloatArray:
    """(points, pieces) which part of each piece of the curve a point's tokens cover.

    Beyond the last node the last piece goes on.
    """
    tokens = np.array([float(_tokens(point)) for point in points])
    pieces = []
    for low, high in pairwise(nodes):
        limit = np.inf if high == nodes[-1] else 1.0
        pieces.append(np.clip((tokens - low) / (high - low), 0.0, limit))
    return np.stack(pieces, axis=1)


def _nodes(points: Sequence[Point]) -> list[int]:
    """Powers of two up to the largest step, and that one: dense where kernels change."""
    largest = max(_tokens(point) for point in points)
    nodes = [1]
    while nodes[-1] * 2 <= largest * 0.75:
        nodes.append(nodes[-1] * 2)
    return [*nodes, max(largest, 2)]


def _tokens(point: Point) -> int:
    return point.prefill_tokens + point.num_decodes


def _weights(points: Sequence[Point]) -> FloatArray:
    return np.array([point.weight for point in points])


def _measured(points: Sequence[Point]) -> FloatArray:
    return np.array([point.measured_ms for point in points])
