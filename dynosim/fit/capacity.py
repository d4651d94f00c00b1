"""The KV capacity of a recorded engine: where a fit starts, and what the log tells of it.

Constants fitted with a capacity that is off explain it away. So a fit never starts far from what
the log's own concurrency needs, whatever was guessed; from there on, capacity and constants are
moved in turn until neither moves. An engine that was never full tells only how much it had at
least, and what was guessed stands.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import ceil, floor, inf

from dynosim.fit.deployment import Deployment
from dynosim.fit.fitting import Fitted, cost_with, fit_log, moved_fit
from dynosim.fit.measurements import Measurements
from dynosim.fit.needed import longest_blocks, needed_blocks
from dynosim.fit.own_part import own_part
from dynosim.fit.prior import Prior
from dynosim.fit.replay import Engines
from dynosim.timing.fitted import Fit

GAIN = 5.0
"""Of the cost, a negative log likelihood: a capacity that explains the log so much better, or an
endless one so much worse, is not luck (one number is fitted; 1.9 would be its 95 %)."""

_STEPS = (0.2, 0.08, 0.03, 0.012, 0.005, 0.002, 0.0)
"""By what share of it a capacity is moved, coarse to fine; by single blocks in the end."""
_TURNS = 3
_EQUAL = 1e-9
_ROUGH = 0.01
"""A log does not tell a capacity more finely: a request that slips by a step moves costs by more
than a block does."""
_ROOM = 1.05
"""Of what the log's own concurrency needs: so much more is as good a start as any that is larger,
and where it was full, close to what it had."""


@dataclass(frozen=True, slots=True)
class Start:
    """A capacity to start from, and who says so."""

    blocks: int
    source: str  # given, blind or needed

    @property
    def words(self) -> str:
        """For messages."""
        return {
            "given": f"the {self.blocks} blocks that were stated",
            "blind": f"the {self.blocks} blocks that follow from model and hardware",
            "needed": f"the {self.blocks} blocks that the log's own concurrency needs",
        }[self.source]


@dataclass(frozen=True, slots=True)
class Capacity:
    """What became of a capacity in a fit."""

    start: Start
    blocks: int
    low: int | None = None  # the fewest that explain the log as well; None: not looked for
    high: int | None = None  # the most; None where the log does not tell

    @property
    def is_told(self) -> bool:
        """Whether the log tells it: more would explain it worse."""
        return self.high is not None

    @property
    def note(self) -> str:
        """What a report must say of it."""
        if self.low is None:
            return f"KV capacity: {self.start.words}, which explain the log"
        if not self.is_told:
            return (
                f"KV capacity: not told by this log: at least {self.low} blocks; fitted with"
                f" {self.blocks if self.blocks != self.start.blocks else self.start.words}"
            )
        if self.blocks == self.start.blocks:
            return f"KV capacity: {self.start.words} are what the log tells, too"
        return (
            f"KV capacity: {self.blocks} blocks ({self.low} to {self.high} do as well) explain the"
            f" log clearly better than {self.start.words}, and are used in the fit"
            " (state --num-gpu-blocks, as the engine prints it, if you know better)"
        )

    def to_dict(self) -> dict[str, object]:
        """For JSON."""
        return {
            "num_gpu_blocks": self.blocks,
            "start": self.start.blocks,
            "start_from": self.start.source,
            "at_least": self.low,
            "at_most": self.high,
            "told_by_log": self.is_told,
        }


def start_of(deployment: Deployment, measured: Measurements) -> Start:
    """A finite capacity: the stated one, the blind estimate, or what the log needs."""
    if deployment.given_blocks is not None:
        return Start(deployment.given_blocks, "given")
    blind = deployment.blind_blocks()
    if blind is not None:
        return Start(blind, "blind")
    engine = deployment.engine
    needed = needed_blocks(measured, engine.block_size, num_engines=deployment.num_engines)
    return Start(needed, "needed")


def fit_with_capacity(
    measured: Measurements,
    prior: Prior,
    engines_with: Callable[[int], Engines],
    start: Start,
    *,
    count: int,
    seed: int = 0,
) -> tuple[Engines, Fitted, Capacity]:
    """The fit of the first `count` requests, and the capacity at which it stands.

    `engines_with` makes the recorded engines with so many blocks. A stated capacity is obeyed as
    long as the fit with it explains its own part; every other is looked for.
    """
    search = _Search(measured, prior, engines_with, engines_with(start.blocks), count)
    first = start.blocks if start.source == "given" else search.near(start.blocks)
    fitted = search.fitted(first, seed)
    explains = not own_part(measured, fitted.predicted, count).misfits
    if start.source == "given":
        if explains:
            return engines_with(first), fitted, Capacity(start, first)
        first = search.near(start.blocks)
    if explains and search.is_alike(fitted.fit, start.blocks, first):
        low, high = search.bounds(fitted.fit, start.blocks)
    else:
        first, fit = search.settled(first, fitted.fit)
        low, high = search.bounds(fit, first)
        fitted = search.fitted(first, seed, fit)
    blocks = first
    if start.blocks != first and low <= start.blocks <= (high or start.blocks):
        # Nothing speaks against what was thought before.
        blocks = start.blocks
        fitted = search.fitted(blocks, seed, fitted.fit)
    return engines_with(blocks), fitted, Capacity(start, blocks, low, high)


class _Search:
    """Costs of capacities with the constants of a fit, and fits at capacities."""

    def __init__(
        self,
        measured: Measurements,
        prior: Prior,
        engines_with: Callable[[int], Engines],
        engines: Engines,
        count: int,
    ) -> None:
        self._measured, self._prior, self._count = measured, prior, count
        self._engines_with = engines_with
        size, number = engines.engine.block_size, engines.number
        first = measured.first(count)
        self.needed = needed_blocks(first, size, num_engines=number)
        self.fewest = longest_blocks(measured, size)
        # More than all requests at once cannot hold.
        tokens = measured.input_tokens + measured.output_tokens
        self._endless = int((-(-tokens // size)).sum()) + 2
        self._replays = 0

    def near(self, blocks: int) -> int:
        """So many, or the nearest that are not absurd: the log's need, or just more than that."""
        return min(max(blocks, self.needed), max(round(_ROOM * self.needed), self.needed + 1))

    def fitted(self, blocks: int, seed: int, start: Fit | None = None) -> Fitted:
        """The fit with so many blocks, from the prior or from another fit on."""
        engines = self._engines_with(blocks)
        fitted = fit_log(
            self._measured, self._prior, engines, count=self._count, seed=seed, start=start
        )
        self._replays += fitted.num_replays
        return replace(fitted, num_replays=self._replays)

    def cost(self, fit: Fit, blocks: int) -> float:
        """How badly constants explain the log with so many blocks; endless if they cannot serve."""
        if blocks < self.fewest:
            return inf
        self._replays += 1
        return cost_with(self._measured, fit, self._engines_with(blocks), self._count)

    def is_alike(self, fit: Fit, one: int, other: int) -> bool:
        """Whether two capacities explain the log as well as each other."""
        return abs(self.cost(fit, one) - self.cost(fit, other)) < GAIN

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

    def bounds(self, fit: Fit, blocks: int) -> tuple[int, int | None]:
        """The fewest and the most blocks that explain the log as well; no most if it does not say.

        Costs are taken to rise away from the best.
        """
        limit = self.cost(fit, blocks) + GAIN
        low = min(self._edge(fit, limit, blocks, self.fewest), floor(blocks / (1 + _ROUGH)))
        if self.cost(fit, max(self._endless, blocks)) <= limit:
            return low, None
        high = self._edge(fit, limit, blocks, self._endless)
        return low, max(high, ceil(blocks * (1 + _ROUGH)))

    def _edge(self, fit: Fit, limit: float, inside: int, outside: int) -> int:
        """Where the cost passes a limit between two capacities, to half a percent."""
        if self.cost(fit, outside) <= limit:
            return outside
        while abs(outside - inside) > max(0.005 * inside, 1):
            middle = (inside + outside) // 2
            if self.cost(fit, middle) <= limit:
                inside = middle
            else:
                outside = middle
        return inside
