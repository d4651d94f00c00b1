"""Constants of step times from nothing but requests: simulation in the loop.

The log's workload is replayed with candidate constants; what is minimised is the robust error of
first-token times and of the time from first to last token, plus the distance from the prior in its
standard deviations (a maximum a posteriori estimate). A replay is deterministic but not smooth,
since a request that misses a step waits for the next one: differences are taken over finite moves,
and the loss grows in proportion for large errors.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dynosim.engine.spec import EngineSpec
from dynosim.records import FloatArray, Trace
from dynosim.timing.fitted import Fit, FittedModel, MeasuredRange
from dynosim.validate.measurements import Measurements
from dynosim.validate.prior import Prior
from dynosim.validate.replay import Predicted, replay

FIRST_TOKEN_SHARE, FIRST_TOKEN_MS = 0.02, 10.0
"""Scale of first-token errors: 2 %, and 10 ms for the step that an arrival may just miss."""
DECODE_SHARE = 0.005
"""Scale of errors from first to last token: hundreds of steps average out to 0.5 %."""
DECODE_MS = 2.0

_DIFFERENCE = 0.05  # standard deviations of the prior
_ROUNDS = 10
_DAMPING = 1e-2
_BOOTSTRAPS = 400
_UNIDENTIFIED = 0.7
"""A parameter whose interval is still so much of its prior's was not told by the log."""

Loss = Callable[[FloatArray], FloatArray]


@dataclass(frozen=True, slots=True)
class Fitted:
    """A fit and what it rests on."""

    fit: Fit
    names: tuple[str, ...]  # free parameters
    cost: float
    num_replays: int
    draws: tuple[Fit, ...]  # plausible fits, from a bootstrap over requests
    correlations: Mapping[str, float]  # "a, b" -> correlation of estimates beyond 0.9
    predicted: Predicted  # of the whole workload

    def model(self) -> FittedModel:
        """The step-time model."""
        return FittedModel(self.fit)


def fit_log(
    measured: Measurements, prior: Prior, spec: EngineSpec, *, count: int, seed: int = 0
) -> Fitted:
    """Fits the times of the first `count` requests.

    Arrivals and lengths of later requests are used as far as they came before the last of those
    ended: they shared the engine. Their times are not looked at.
    """
    problem = _Problem(measured, prior, spec, count)
    moves, cost = problem.minimize()
    jacobian, residuals = problem.linearise(moves)
    samples = _bootstrap(jacobian, residuals, count, moves, seed)
    low, high = np.percentile(samples, [2.5, 97.5], axis=0)
    names = problem.names
    spread = np.array([prior.spread[name] for name in names])
    center = np.array([getattr(prior.fit.parameters, name) for name in names])
    fit = replace(
        problem.fit_at(moves),
        intervals={
            name: (max(a, 0.0), max(b, 0.0))
            for name, a, b in zip(
                names, (center + low * spread).tolist(), (center + high * spread).tolist(),
                strict=True,
            )
        },
        unidentified=_unidentified(names, jacobian, residuals, measured),
    )  # fmt: skip
    predicted = replay(measured.trace(), spec, FittedModel(fit), measured.clock)
    return Fitted(
        fit=replace(fit, measured=_measured_range(predicted, measured, count)),
        names=names,
        cost=cost,
        num_replays=problem.num_replays,
        draws=tuple(problem.fit_at(sample) for sample in samples),
        correlations=_correlations(names, samples),
        predicted=predicted,
    )


class _Problem:
    """Residuals as a function of moves: parameters' distances from the prior, in its spreads."""

    def __init__(self, measured: Measurements, prior: Prior, spec: EngineSpec, count: int) -> None:
        fitted = measured.first(count)
        until_ms = float(fitted.end_ms.max())
        seen = int(np.searchsorted(measured.arrival_ms, until_ms, side="right"))
        self._trace: Trace = measured.first(max(seen, count)).trace()
        self._measured = fitted
        self._prior = prior
        self._spec = spec
        self._count = count
        self.names = tuple(name for name, spread in prior.spread.items() if spread > 0)
        parameters = prior.fit.parameters
        self._spread = np.array([prior.spread[name] for name in self.names])
        self._center = np.array([getattr(parameters, name) for name in self.names])
        self.num_replays = 0

    def fit_at(self, moves: FloatArray) -> Fit:
        """The fit so far from the prior; nothing below zero."""
        values = np.maximum(self._center + moves * self._spread, 0.0).tolist()
        changes = dict(zip(self.names, values, strict=True))
        return replace(self._prior.fit, parameters=replace(self._prior.fit.parameters, **changes))

    def residuals(self, moves: FloatArray) -> FloatArray:
        """Errors of first tokens, then of decoding, in their scales."""
        self.num_replays += 1
        measured = self._measured
        timing = FittedModel(self.fit_at(moves))
        predicted = replay(self._trace, self._spec, timing, measured.clock)
        first = predicted.ttft_ms[: self._count] - measured.ttft_ms
        decode = predicted.decode_ms[: self._count] - measured.decode_ms
        return np.concatenate(
            [
                first / (FIRST_TOKEN_SHARE * measured.ttft_ms + FIRST_TOKEN_MS),
                decode / (DECODE_SHARE * measured.decode_ms + DECODE_MS),
            ]
        )

    def cost(self, residuals: FloatArray, moves: FloatArray) -> float:
        """Robust sum of errors plus the prior's."""
        return float((np.sqrt(1 + residuals**2) - 1).sum() + 0.5 * (moves**2).sum())

    def jacobian(self, moves: FloatArray, difference: float) -> FloatArray:
        """Central differences of the residuals."""
        columns = []
        for index in range(len(moves)):
            offset = np.zeros(len(moves))
            offset[index] = difference
            columns.append(
                (self.residuals(moves + offset) - self.residuals(moves - offset)) / (2 * difference)
            )
        return np.array(columns).T

    def linearise(self, moves: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Jacobian and residuals, for what is estimated around the optimum."""
        return self.jacobian(moves, _DIFFERENCE), self.residuals(moves)

    def minimize(self) -> tuple[FloatArray, float]:
        """Levenberg and Marquardt's method, reweighted for the robust loss."""
        moves = np.zeros(len(self.names))
        lowest = -self._center / self._spread
        residuals = self.residuals(moves)
        cost = self.cost(residuals, moves)
        damping, difference = _DAMPING, _DIFFERENCE
        for _ in range(_ROUNDS):
            jacobian = self.jacobian(moves, difference)
            for _ in range(4):
                step = _newton_step(jacobian, residuals, moves, damping)
                trial = np.maximum(moves + np.clip(step, -1.5, 1.5), lowest)
                trial_residuals = self.residuals(trial)
                trial_cost = self.cost(trial_residuals, trial)
                if trial_cost < cost:
                    break
                damping *= 6
            gained = cost - trial_cost
            if gained > 0:
                moves, residuals, cost = trial, trial_residuals, trial_cost
                damping = max(damping / 6, 1e-4)
            if gained < 1e-3 * cost:
                if difference < _DIFFERENCE:
                    break
                difference, damping = difference / 2, _DAMPING
        return moves, cost


def _newton_step(
    jacobian: FloatArray, residuals: FloatArray, moves: FloatArray, damping: float
) -> FloatArray:
    weights = 1 / np.sqrt(1 + residuals**2)
    hessian = (jacobian * weights[:, None]).T @ jacobian + np.eye(len(moves))
    gradient = (jacobian * weights[:, None]).T @ residuals + moves
    damped = hessian + damping * np.diag(np.diag(hessian))
    return -np.linalg.solve(damped, gradient)


def _bootstrap(
    jacobian: FloatArray, residuals: FloatArray, count: int, moves: FloatArray, seed: int
) -> FloatArray:
    """Moves refitted to resampled requests, in the linear approximation around the optimum.

    Requests that share steps err together, so blocks of neighbours are drawn, not single ones.
    """
    rng = np.random.default_rng(seed)
    block = max(1, round(count ** (1 / 3)))
    samples = []
    for _ in range(_BOOTSTRAPS):
        starts = rng.integers(0, count - block + 1, -(-count // block))
        chosen = (starts[:, None] + np.arange(block)).ravel()[:count]
        rows = np.concatenate([chosen, chosen + count])
        shift = rng.standard_normal(len(moves)) - moves  # the prior's own sample
        part, errors = jacobian[rows], residuals[rows]
        weights = 1 / np.sqrt(1 + errors**2)
        hessian = (part * weights[:, None]).T @ part + np.eye(len(moves))
        gradient = (part * weights[:, None]).T @ errors - shift
        samples.append(moves - np.linalg.solve(hessian, gradient))
    centered = np.array(samples)
    return centered - np.median(centered, axis=0) + moves


def _unidentified(
    names: Sequence[str], jacobian: FloatArray, residuals: FloatArray, measured: Measurements
) -> tuple[str, ...]:
    """Parameters about which the log says little beyond the prior."""
    weights = 1 / np.sqrt(1 + residuals**2)
    hessian = (jacobian * weights[:, None]).T @ jacobian + np.eye(len(names))
    left = np.sqrt(np.diag(np.linalg.inv(hessian)))  # of the prior's standard deviation
    blurred = [name for name, share in zip(names, left, strict=True) if share > _UNIDENTIFIED]
    outside = ["ingress_ms", "egress_ms"] if measured.clock == "engine" else ["egress_ms"]
    return (*blurred, *outside)


def _correlations(names: Sequence[str], samples: FloatArray) -> dict[str, float]:
    table = np.corrcoef(samples.T)
    return {
        f"{names[i]}, {names[j]}": float(table[i, j])
        for i in range(len(names))
        for j in range(i)
        if abs(table[i, j]) > 0.9
    }


def _measured_range(predicted: Predicted, measured: Measurements, count: int) -> MeasuredRange:
    """The steps that the fitted requests were part of, as the replay made them."""
    steps = predicted.result.steps
    until_ms = float(measured.first(count).end_ms.max())
    part = steps.start_ms <= until_ms
    decodes = steps.num_decodes[part]
    contexts = steps.decode_context_tokens[part] / np.maximum(decodes, 1)
    contexts = contexts + steps.num_steps[part] - 1
    prompts = np.maximum(steps.num_prefills[part], 1)
    return MeasuredRange(
        prefill_tokens=int(steps.prefill_tokens[part].max()),
        prefix_tokens=float((steps.prefix_tokens[part] / prompts).max()),
        num_decodes=int(decodes.max()),
        mean_context=float(contexts[decodes > 0].max()) if (decodes > 0).any() else None,
    )
