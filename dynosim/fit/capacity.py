"""The KV capacity of a recorded engine: where a fit starts, and what the log tells of it.

Likelihoods alone do not tell it: single requests that slip by a step move them by more than a
capacity does, and a log whose engine was never full is explained by many. So a capacity that was
guessed stands while the fit with it explains its own part. Where it does not, the fit starts anew
from what the log's own concurrency needs, which is close to the truth for an engine that was full.
Where memory matters at all (without it the fit would not explain its part), capacity and constants
are moved in turn until neither moves.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import inf

from dynosim.fit.deployment import Deployment
from dynosim.fit.fitting import Fitted, cost_with, fit_log, moved_fit
from dynosim.fit.measurements import Measurements
from dynosim.fit.needed import longest_blocks, needed_blocks
from dynosim.fit.own_part import own_part
from dynosim.fit.prior import Prior
from dynosim.fit.replay import Engines, replay
from dynosim.timing.fitted import Fit

GAIN = 5.0
"""Of the cost, a negative log likelihood: less is no better (one number is fitted; 1.9 would be
its 95 %)."""

_STEPS = (0.2, 0.08, 0.03, 0.012, 0.005, 0.002, 0.0)
"""By what share of it a capacity is moved, coarse to fine; by single blocks in the end."""
_TURNS = 3
_EQUAL = 1e-9
ROUGH = 0.01
"""A log does not tell a capacity more finely: what was guessed so close to the best stands."""


@dataclass(frozen=True, slots=True)
class Start:
    """A capacity to start from, and who says so."""

    blocks: int
    source: str  # given, blind or needed
    warning: str | None = None  # what a report must say of it

    @property
    def words(self) -> str:
        """For messages."""
        return {
            "given": f"the {self.blocks} blocks that were stated",
            "blind": f"the {self.blocks} blocks that follow from model and hardware",
            "needed": f"the {self.blocks} blocks that the log's own concurrency needs",
        }[self.source]


@dataclass(frozen=True, slots=True)
class FoundCapacity:
    """What became of a capacity in a fit."""

    start: Start
    blocks: int
    is_told: bool  # the log tells it: with endless memory the fit would not explain it
    at_least: int  # what the fitted requests held at once

    @property
    def note(self) -> str:
        """What a report must say of it."""
        if not self.is_told:
            from_ = self.start.words if self.blocks == self.start.blocks else str(self.blocks)
            return (
                f"KV capacity: not told by this log: at least about {self.at_least} blocks;"
                f" fitted with {from_}"
            )
        if self.blocks == self.start.blocks:
            return f"KV capacity: {self.start.words} are what the log tells, too"
        return (
            f"KV capacity: {self.blocks} blocks explain the log clearly better than"
            f" {self.start.words}, and are used in the fit"
            " (state --num-gpu-blocks, as the engine prints it, if you know better)"
        )

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "num_gpu_blocks": self.blocks,
            "start": self.start.blocks,
            "start_from": self.start.source,
            "at_least": self.at_least,
            "told_by_log": self.is_told,
        }


def start_of(deployment: Deployment, measured: Measurements) -> Start:
    """A finite capacity: the stated one, the blind estimate, or what these requests needed."""
    if deployment.given_blocks is not None:
        return Start(deployment.given_blocks, "given")
    lengths = measured.input_tokens + measured.output_tokens
    blind = deployment.blind_capacity(int(lengths.max()))
    if blind is not None:
        return Start(blind.num_gpu_blocks, "blind", blind.warning)
    engine = deployment.engine
    needed = needed_blocks(measured, engine.block_size, num_engines=deployment.num_engines)
    return Start(
        needed,
        "needed",
        f"KV capacity: does not follow from what is known; the {needed:,} blocks that the log's own"
        " concurrency needs are taken (state --num-gpu-blocks, as the engine prints it)",
    )


def fit_with_capacity(
    measured: Measurements,
    prior: Prior,
    engines_with: Callable[[int], Engines],
    start: Start,
    *,
    count: int,
    seed: int = 0,
) -> tuple[Engines, Fitted, FoundCapacity]:
    """The fit of the first `count` requests, and the capacity at which it stands.

    `engines_with` makes the recorded engines with so many blocks. A stated capacity that explains
    its part is obeyed to the block.
    """
    search = _Search(measured, prior, engines_with, start.blocks, count, seed)
    blocks = max(start.blocks, search.fewest)
    fitted = search.fitted(blocks)
    is_needed = False
    if not search.explains(fitted):
        other = search.fitted(search.needed)
        if other.cost < fitted.cost - GAIN:
            blocks, fitted, is_needed = search.needed, other, True
    is_told = not search.explains_endless(fitted)
    if is_told and (is_needed or start.source != "given"):
        best, fit = search.settled(blocks, fitted.fit)
        if is_needed or abs(best / blocks - 1) > ROUGH:
            again = search.fitted(best, fit)
            if again.cost < fitted.cost:
                blocks, fitted = best, again
    at_least = min(search.needed, blocks)
    return engines_with(blocks), fitted, FoundCapacity(start, blocks, is_told, at_least)


class _Search:
    """Costs of capacities with the constants of a fit, and fits at capacities."""

    def __init__(
        self,
        measured: Measurements,
        prior: Prior,
        engines_with: Callable[[int], Engines],
        blocks: int,
        count: int,
        seed: int,
    ) -> None:
        self._measured, self._prior, self._count, self._seed = measured, prior, count, seed
        self._engines_with = engines_with
        engines = engines_with(blocks)
        size, number = engines.engine.block_size, engines.number
        first = measured.first(count)
        self.needed = needed_blocks(first, size, num_engines=number)
        self.fewest = longest_blocks(measured, size)
        # More than all requests at once cannot hold.
        tokens = measured.input_tokens + measured.output_tokens
        self._endless = int((-(-tokens // size)).sum()) + 2
        self._replays = 0

    def fitted(self, blocks: int, start: Fit | None = None) -> Fitted:
        """The fit with so many blocks, from the prior or from another fit on."""
        engines = self._engines_with(blocks)
        fitted = fit_log(
            self._measured, self._prior, engines, count=self._count, seed=self._seed, start=start
        )
        self._replays += fitted.num_replays
        return replace(fitted, num_replays=self._replays)

    def explains(self, fitted: Fitted) -> bool:
        """Whether a fit explains the requests that were fitted."""
        return not own_part(self._measured, fitted.predicted, self._count).misfits

    def explains_endless(self, fitted: Fitted) -> bool:
        """Whether it would with memory without an end: then the log does not tell how much."""
        engines = self._engines_with(self._endless)
        predicted = replay(self._measured.trace(), engines, fitted.model(), self._measured.clock)
        return not own_part(self._measured, predicted, self._count).misfits

    def cost(self, fit: Fit, blocks: int) -> float:
        """How badly constants explain the log with so many blocks; endless if they cannot serve."""
        if blocks < self.fewest:
            return inf
        self._replays += 1
        return cost_with(self._measured, fit, self._engines_with(blocks), self._count)

    def settled(self, blocks: int, fit: Fit) -> tuple[int, Fit]:
        """Capacity and constants moved in turn until neither moves."""
        lowest = inf
        for _ in range(_TURNS):
            best = self._descended(fit, blocks)
            again, cost, replays = moved_fit(
                self._measured, self._prior, self._engines_with(best), fit, count=self._count
            )
            self._replays += replays
            gain = lowest - cost
            if gain > 0:
                blocks, fit, lowest = best, again, cost
            if gain < GAIN:
                break  # neither has moved
        return blocks, fit

    def _descended(self, fit: Fit, blocks: int) -> int:
        """The best capacity around one, with constants held."""
        costs = {blocks: self.cost(fit, blocks)}

        def cost(other: int) -> float:
            if other not in costs:
                costs[other] = self.cost(fit, other)
            return costs[other]

        for share in _STEPS:
            while True:
                step = max(round(share * blocks), 1)
                best = min((blocks + n * step for n in (-2, -1, 1, 2)), key=cost)
                if cost(best) >= costs[blocks] - _EQUAL:
                    break
                blocks = best
        return blocks
