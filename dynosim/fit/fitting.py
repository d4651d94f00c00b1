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
from dynosim.fit.spread import bootstrap, correlations, newton_step, untold
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
_NOISE_MEDIANS = 2.385 * 1.4826
"""Scale of the loss in medians of absolute errors: for normal errors this keeps 95 % of the
efficiency of least squares (Cauchy's loss: 2.385 standard deviations of 1.4826 medians each)."""
_SCALINGS = 4
_STRETCH = 20  # requests


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
    measured: Measurements,
    prior: Prior,
    engines: Engines,
    *,
    count: int,
    seed: int = 0,
    start: Fit | None = None,
) -> Fitted:
    """Fits the times of the first `count` requests, from the prior on or from a fit of its form.

    Arrivals and lengths of later requests are used as far as they came before the last of those
    ended: they shared the engine. Their times are not looked at. What the log does not tell stays
    at the prior.
    """
    priors = prior.with_all_knees() if start is None else [prior.with_knee(start.knee)]
    problems = [_Problem(measured, with_knee, engines, count) for with_knee in priors]
    solved = [(problem, problem.minimize(start)) for problem in problems]
    problem, best = min(solved, key=lambda pair: pair[1].cost)
    names = problem.names
    held = untold(names, problem.jacobian(best), best.residuals)
    if held:
        best = problem.with_held(held, best)
    moves, jacobian = best.moves, problem.jacobian(best)
    samples = bootstrap(jacobian, best.residuals, moves, problem.lowest, seed)
    fit = replace(
        problem.fit_at(moves),
        intervals=problem.intervals(moves, samples),
        unidentified=(*held, *_outside(measured)),
    )
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
        correlations=correlations(names, samples),
        predicted=predicted,
    )


def moved_fit(
    measured: Measurements, prior: Prior, engines: Engines, fit: Fit, *, count: int
) -> tuple[Fit, float, int]:
    """Where a fit of the prior's form moves with other engines, its cost, and replays taken."""
    problem = _Problem(measured, prior.with_knee(fit.knee), engines, count)
    best = problem.minimize(fit)
    return problem.fit_at(best.moves), best.cost, problem.num_replays


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
        self._all_measured = measured
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
        return np.array(columns).reshape(len(self.names), len(trial.residuals)).T

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

    def moves_of(self, fit: Fit) -> FloatArray:
        """Where a fit of the same form stands."""
        values = np.array([getattr(fit.parameters, name) for name in self.names])
        return np.asarray((values - self._center) / self._spread)

    def with_held(self, held: Sequence[str], best: _Trial) -> _Trial:
        """The best with some parameters at the prior, from the best of all on."""
        rest = {name: 0.0 if name in held else spread for name, spread in self.prior.spread.items()}
        problem = _Problem(
            self._all_measured, replace(self.prior, spread=rest), self._engines, self._count
        )
        found = problem.minimize(self.fit_at(best.moves))
        self.num_replays += problem.num_replays
        moves = np.zeros(len(self.names))
        moves[[self.names.index(name) for name in problem.names]] = found.moves
        return replace(found, moves=moves)

    def intervals(self, moves: FloatArray, samples: FloatArray) -> dict[str, tuple[float, float]]:
        """95 % by parameter, of resampled moves; the estimate itself is inside."""
        bounds = np.array([*np.percentile(samples, [2.5, 97.5], axis=0), moves])
        values = np.maximum(self._center + bounds * self._spread, 0.0)
        lows, highs = values.min(axis=0).tolist(), values.max(axis=0).tolist()
        return dict(zip(self.names, zip(lows, highs, strict=True), strict=True))

    def minimize(self, start: Fit | None = None) -> _Trial:
        """Gauss and Newton's method, reweighted for the robust loss, searching along each step.

        Where the whole step does not help, its parts may: constants are moved one by one.
        """
        best = self.trial(np.zeros(len(self.names)) if start is None else self.moves_of(start))
        for _ in range(_ROUNDS):
            step = newton_step(self.jacobian(best), best.residuals, best.moves, self.lowest)
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


def _outside(measured: Measurements) -> tuple[str, ...]:
    """Ways in and out that the clock of a log does not see."""
    return ("ingress_ms", "egress_ms") if measured.clock == "engine" else ("egress_ms",)


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
