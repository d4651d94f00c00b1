"""How sure an estimate is: a Newton step, a bootstrap of it, and which parameters a log tells of.

Everything here is linear around an optimum; parameters are moves from the prior in its standard
deviations, so that the prior's curvature is one.
"""

from collections.abc import Sequence

import numpy as np

from dynosim.records import FloatArray

_BOOTSTRAPS = 400
_UNIDENTIFIED = 0.7
"""A parameter whose interval is still so much of its prior's was not told by the log."""


def newton_step(
    jacobian: FloatArray,
    residuals: FloatArray,
    moves: FloatArray,
    lowest: FloatArray,
    prior: FloatArray | float = 0.0,
) -> FloatArray:
    """Step to the minimum of the reweighted squares that keeps every move above its lowest.

    What would go below is held there, and the others make up for it. `prior` is the prior's place.
    """
    weights = 1 / (1 + residuals**2)
    hessian = (jacobian * weights[:, None]).T @ jacobian + np.eye(len(moves))
    gradient = (jacobian * weights[:, None]).T @ residuals + moves - prior
    room = lowest - moves
    held = np.zeros(len(moves), np.bool_)
    step = np.zeros(len(moves))
    for _ in range(len(moves)):
        free = ~held
        step[held] = room[held]
        pull = gradient[free] + hessian[np.ix_(free, held)] @ step[held]
        step[free] = -np.linalg.solve(hessian[np.ix_(free, free)], pull)
        below = free & (step < room)
        if not below.any():
            break
        held |= below
    return np.maximum(step, room)


def bootstrap(
    jacobian: FloatArray, residuals: FloatArray, moves: FloatArray, lowest: FloatArray, seed: int
) -> FloatArray:
    """Moves refitted to resampled requests, in the linear approximation around the optimum.

    Requests that share steps err together, so blocks of neighbours are drawn, not single ones. The
    prior is drawn too: what the log does not tell stays as uncertain as it was.
    """
    rng = np.random.default_rng(seed)
    count = len(residuals) // 2
    block = max(1, round(count ** (1 / 3)))
    samples = []
    for _ in range(_BOOTSTRAPS):
        starts = rng.integers(0, count - block + 1, -(-count // block))
        chosen = (starts[:, None] + np.arange(block)).ravel()[:count]
        rows = np.concatenate([chosen, chosen + count])
        prior = rng.standard_normal(len(moves))
        step = newton_step(jacobian[rows], residuals[rows], moves, lowest, prior)
        samples.append(moves + step)
    return np.array(samples)


def untold(names: Sequence[str], jacobian: FloatArray, residuals: FloatArray) -> tuple[str, ...]:
    """Parameters about which the log says little beyond the prior, to be left there.

    One after another, the least told first: of two that only show together, the second is told
    once the first is held.
    """
    weights = 1 / (1 + residuals**2)
    hessian = (jacobian * weights[:, None]).T @ jacobian + np.eye(len(names))
    free = list(range(len(names)))
    while free:
        covariance = np.linalg.inv(hessian[np.ix_(free, free)])
        left = np.sqrt(np.diag(covariance))  # of the prior's standard deviation
        least = int(np.argmax(left))
        if left[least] <= _UNIDENTIFIED:
            break
        del free[least]
    return tuple(name for index, name in enumerate(names) if index not in free)


def correlations(names: Sequence[str], samples: FloatArray) -> dict[str, float]:
    """Pairs of parameters whose estimates go together by more than 0.9."""
    moving = samples.std(axis=0) > 0
    names = [name for name, is_moving in zip(names, moving, strict=True) if is_moving]
    table = np.atleast_2d(np.corrcoef(samples[:, moving].T))
    return {
        f"{names[i]}, {names[j]}": float(table[i, j])
        for i in range(len(names))
        for j in range(i)
        if abs(table[i, j]) > 0.9
    }
