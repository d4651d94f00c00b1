"""Constants of step times from nothing but requests: simulation in the loop.

The log's workload is replayed with candidate constants; what is minimised is the robust error of
first-token times and of the time from first to last token, plus the distance from the prior in its
standard deviations (a maximum a posteriori estimate). A replay is deterministic but not smooth,
since a request that misses a step waits for the next one. So derivatives are taken with the
schedule held: which steps a request waits for and decodes in is known from the replay, and its
times are sums of their durations. Every move is then judged by a new replay. The loss grows ever
slower for large errors: one missed step must not outweigh what all other requests say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from dynosim.fit.measurements import Measurements
from dynosim.fit.prior import Prior
from dynosim.fit.replay import Engines, Predicted, replay
from dynosim.fit.schedule import held_schedule
from dynosim.records import FloatArray, Trace
from dynosim.timing.fitted import DRIFT, FACTOR_NAMES, Fit, FittedModel, MeasuredRange

FIRST_TOKEN_SHARE, FIRST_TOKEN_MS = 0.01, 3.0
"""Scale of first-token errors of requests that wait for the right steps."""
DECODE_SHARE, DECODE_MS = 0.005, 2.0
"""Scale of errors from first to last token: hundreds of steps average out to 0.5 %."""

_DIFFERENCE = 0.01  # standard deviations of the prior
_ROUNDS = 20
_CONVERGED = 1e-3  # of the cost
_STEP_LENGTHS = (1.0, 0.5, 0.2, 0.05)
_BOOTSTRAPS = 400
_NOISE_MEDIANS = 2.385 * 1.4826
"""Scale of the loss in medians of absolute errors: for normal errors this keeps 95 % of the
efficiency of least squares (Cauchy's loss: 2.385 standard deviations of 1.4826 medians each)."""
_SCALINGS = 4
_STRETCH = 20  # requests
_UNIDENTIFIED = 0.7
"""A parameter whose interval is still so much of its prior's was not told by the log."""


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
    measured: Measurements, prior: Prior, engines: Engines, *, count: int, seed: int = 0
) -> Fitted:
    """Fits the times of the first `count` requests.

    Arrivals and lengths of later requests are used as far as they came before the last of those
    ended: they shared the engine. Their times are not looked at.
    """
    problems = [
        _Problem(measured, with_knee, engines, count) for with_knee in prior.with_all_knees()
    ]
    solved = [(problem, problem.minimize()) for problem in problems]
    problem, best = min(solved, key=lambda pair: pair[1].cost)
    prior = problem.prior
    moves, jacobian, residuals = best.moves, problem.jacobian(best), best.residuals
    samples = _bootstrap(jacobian, residuals, moves, problem.lowest, seed)
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
    predicted = replay(measured.trace(), engines, FittedModel(fit), measured.clock)
    return Fitted(
        fit=replace(
            fit,
            measured=_measured_range(predicted, measured, count),
            errors={DRIFT: _drift(predicted, measured.first(count))},
        ),
        names=names,
        cost=best.cost,
        num_replays=sum(one.num_replays for one in problems),
        draws=tuple(problem.fit_at(sample) for sample in samples),
        correlations=_correlations(names, samples),
        predicted=predicted,
    )


def cost_with(measured: Measurements, fit: Fit, engines: Engines, count: int) -> float:
    """How badly a fit explains the first `count` requests, were the engine another one."""
    held = Prior(fit, {}, fit.source)
    return _Problem(measured, held, engines, count).trial(np.zeros(0)).cost


@dataclass(frozen=True, slots=True)
class _Trial:
    """One replay: where, what it gave, and how bad that is."""

    moves: FloatArray
    predicted: Predicted
    noise: FloatArray  # (2,) of first tokens and of decode, in their scales; at least 1
    residuals: FloatArray  # in scales times noise
    cost: float


class _Problem:
    """Residuals as a function of moves: parameters' distances from the prior, in its spreads."""

    def __init__(self, measured: Measurements, prior: Prior, engines: Engines, count: int) -> None:
        fitted = measured.first(count)
        until_ms = float(fitted.end_ms.max())
        seen = int(np.searchsorted(measured.arrival_ms, until_ms, side="right"))
        self._trace: Trace = measured.first(max(seen, count)).trace()
        self._measured = fitted
        self.prior = prior
        self._engines = engines
        self._count = count
        self.names = tuple(name for name, spread in prior.spread.items() if spread > 0)
        parameters = prior.fit.parameters
        self._spread = np.array([prior.spread[name] for name in self.names])
        self._center = np.array([getattr(parameters, name) for name in self.names])
        self.lowest = -self._center / self._spread  # where constants are zero
        self.num_replays = 0

    def fit_at(self, moves: FloatArray) -> Fit:
        """The fit so far from the prior; nothing below zero."""
        values = np.maximum(self._center + moves * self._spread, 0.0).tolist()
        changes = dict(zip(self.names, values, strict=True))
        return replace(self.prior.fit, parameters=replace(self.prior.fit.parameters, **changes))

    def trial(self, moves: FloatArray) -> _Trial:
        """Replays with some constants."""
        self.num_replays += 1
        timing = FittedModel(self.fit_at(moves))
        return self._judged(moves, replay(self._trace, self._engines, timing, self._measured.clock))

    def _judged(self, moves: FloatArray, predicted: Predicted) -> _Trial:
        """Errors in what they are noisy by themselves: how noisy a log is shows at the optimum.

        Less noise is as good as smaller errors (it enters as in a likelihood). A loss that is
        robust for errors much smaller than the noise would follow a few requests that happen to fit
        and be deaf to all others; one that reckoned with too much would be deaf to everything.
        """
        measured, count = self._measured, self._count
        first_scale, decode_scale = self._scales()
        errors = np.array(
            [
                (predicted.ttft_ms[:count] - measured.ttft_ms) / first_scale,
                (predicted.decode_ms[:count] - measured.decode_ms) / decode_scale,
            ]
        )
        noise = np.maximum(_NOISE_MEDIANS * np.median(np.abs(errors), axis=1), 1.0)
        residuals = (errors / noise[:, None]).ravel()
        cost = 0.5 * float(np.log1p(residuals**2).sum() + (moves**2).sum())
        cost += count * float(np.log(noise).sum())
        return _Trial(moves, predicted, noise, residuals, cost)

    def _scales(self) -> tuple[FloatArray, FloatArray]:
        """What first-token and decode errors are measured in, per request."""
        measured = self._measured
        return (
            FIRST_TOKEN_SHARE * measured.ttft_ms + FIRST_TOKEN_MS,
            DECODE_SHARE * measured.decode_ms + DECODE_MS,
        )

    def jacobian(self, trial: _Trial) -> FloatArray:
        """Derivatives of the residuals by the moves, with the schedule of the trial held."""
        timing = FittedModel(self.fit_at(trial.moves))
        held = held_schedule(trial.predicted, timing, self._measured.clock, self._count)
        first_scale, decode_scale = (
            scale * noise for scale, noise in zip(self._scales(), trial.noise, strict=True)
        )
        durations = held.durations(timing)
        columns = []
        for index, name in enumerate(self.names):
            if name == "ingress_ms":
                is_seen = float(self._measured.clock == "clients")
                first, decode = np.full(self._count, is_seen), np.zeros(self._count)
                factor = self._spread[index]
            else:
                ahead = trial.moves.copy()
                ahead[index] += _DIFFERENCE
                changed = held.durations(FittedModel(self.fit_at(ahead)))
                first, decode = held.sums(changed - durations)
                factor = 1 / _DIFFERENCE
            columns.append(np.concatenate([first / first_scale, decode / decode_scale]) * factor)
        return np.array(columns).T

    def _along(self, start: _Trial, step: FloatArray) -> _Trial:
        """The best of some lengths of a step; the start if none is better."""
        best = start
        for length in _STEP_LENGTHS:
            trial = self.trial(np.maximum(start.moves + length * step, self.lowest))
            if trial.cost < best.cost:
                best = trial
            elif best is not start:
                break
        return best

    def minimize(self) -> _Trial:
        """Gauss and Newton's method, reweighted for the robust loss, searching along each step.

        Where the whole step does not help, its parts may: constants are moved one by one.
        """
        best = self.trial(np.zeros(len(self.names)))
        for _ in range(_ROUNDS):
            step = _newton_step(self.jacobian(best), best.residuals, best.moves, self.lowest)
            step = np.clip(step, -2.0, 2.0)
            before = best
            best = self._along(best, step)
            if before.cost - best.cost < _CONVERGED * before.cost:
                for index in range(len(step)):
                    best = self._along(best, step * (np.arange(len(step)) == index))
            if before.cost - best.cost < _CONVERGED * before.cost:
                break
        return self._unbiased(best)

    def _unbiased(self, best: _Trial) -> _Trial:
        """All steps longer or shorter by one factor, until decode takes as long as measured.

        A robust loss looks past the slow spells that a mean consists of too.
        """
        is_step = np.array([name not in ("ingress_ms", *FACTOR_NAMES) for name in self.names])
        for _ in range(_SCALINGS):
            excess = self._decode_excess(best)
            values = self._center + best.moves * self._spread
            values = np.where(is_step, values / (1 + excess), values)
            trial = self.trial((values - self._center) / self._spread)
            if abs(self._decode_excess(trial)) >= abs(excess):
                break
            best = trial
        return best

    def _decode_excess(self, trial: _Trial) -> float:
        """Predicted over measured decode time of all requests, less one."""
        measured_ms = float(self._measured.decode_ms.sum())
        predicted_ms = float(trial.predicted.decode_ms[: self._count].sum())
        return predicted_ms / measured_ms - 1 if measured_ms and predicted_ms else 0.0


def _newton_step(
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


def _bootstrap(
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
        step = _newton_step(jacobian[rows], residuals[rows], moves, lowest, prior)
        samples.append(moves + step)
    return np.array(samples)


def _unidentified(
    names: Sequence[str], jacobian: FloatArray, residuals: FloatArray, measured: Measurements
) -> tuple[str, ...]:
    """Parameters about which the log says little beyond the prior."""
    weights = 1 / (1 + residuals**2)
    hessian = (jacobian * weights[:, None]).T @ jacobian + np.eye(len(names))
    left = np.sqrt(np.diag(np.linalg.inv(hessian)))  # of the prior's standard deviation
    blurred = [name for name, share in zip(names, left, strict=True) if share > _UNIDENTIFIED]
    outside = ["ingress_ms", "egress_ms"] if measured.clock == "engine" else ["egress_ms"]
    return (*blurred, *outside)


def _drift(predicted: Predicted, measured: Measurements) -> float:
    """Standard deviation of the engine's speed between stretches of the log, as a share.

    What a machine's speed differs by from one time to another, so may it differ in another run.
    """
    stretches = np.array_split(np.arange(len(measured)), max(len(measured) // _STRETCH, 2))
    ratios = [
        float(measured.decode_ms[rows].sum() / max(predicted.decode_ms[rows].sum(), 1e-9))
        for rows in stretches
    ]
    return float(np.std(ratios, ddof=1))


def _correlations(names: Sequence[str], samples: FloatArray) -> dict[str, float]:
    moving = samples.std(axis=0) > 0
    names = [name for name, is_moving in zip(names, moving, strict=True) if is_moving]
    table = np.atleast_2d(np.corrcoef(samples[:, moving].T))
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
