"""A placement policy that learns: Thompson sampling over how fast each worker really is.

The router's cost counts work in KV blocks and takes every worker for equally fast. Here each worker
has a belief about its milliseconds per block of cost, updated whenever a first token shows how long
a request really took. Each placement draws one speed per worker from these beliefs and takes the
worker that would be done first: mostly the best one, now and then one that is not well known yet.

    router: {mode: kv, policy: "examples.thompson:ThompsonSampling"}
"""

from collections.abc import Hashable, Sequence
from math import exp, log, sqrt
from random import Random
from typing import Any

from dynosim.router.cost import WorkerOption
from dynosim.router.knobs import RouterSpec
from dynosim.router.request import RoutingRequest

PRIOR_WEIGHT = 2.0  # observations that the first guess is worth
MEMORY = 50.0  # observations remembered: workers may become slower or faster


Worker = tuple[int, int]  # worker id, data-parallel rank


class Belief:
    """Mean and spread of the logarithm of a worker's milliseconds per block of cost."""

    def __init__(self) -> None:
        self.weight = PRIOR_WEIGHT
        self.mean = 0.0
        self.squares = PRIOR_WEIGHT  # sum of squared deviations

    def draw(self, generator: Random) -> float:
        """A speed that this worker may well have."""
        deviation = sqrt(self.squares / self.weight / self.weight)
        return exp(generator.gauss(self.mean, deviation))

    def learn(self, value: float) -> None:
        """Take an observation into account; the oldest fade."""
        fade = min(1.0, MEMORY / (self.weight + 1))
        self.weight = fade * self.weight + 1
        difference = value - self.mean
        self.mean += difference / self.weight
        self.squares = fade * self.squares + difference * (value - self.mean)


class ThompsonSampling:
    """Places where a drawn speed promises the earliest first token."""

    def __init__(self, settings: RouterSpec, seed: int) -> None:
        self._generator = Random(f"{seed}/thompson")
        self._beliefs: dict[Worker, Belief] = {}
        self._placed: dict[Hashable, tuple[Worker, float, float]] = {}

    def choose(
        self, request: RoutingRequest, options: Sequence[WorkerOption], now_ms: float
    ) -> WorkerOption:
        """The option with the lowest drawn time to its first token."""
        best, best_ms = options[0], float("inf")
        for option in options:
            belief = self._belief(_worker(option))
            expected_ms = belief.draw(self._generator) * max(option.cost, 1.0)
            if expected_ms < best_ms:
                best, best_ms = option, expected_ms
        self._placed[request.request_id] = (_worker(best), max(best.cost, 1.0), now_ms)
        return best

    def on_first_token(self, request_id: Hashable, now_ms: float) -> None:
        """Learn how long it took; only the first time, and of requests placed here."""
        placed = self._placed.pop(request_id, None)
        if placed is None:
            return
        worker, cost, placed_ms = placed
        self._belief(worker).learn(log(max(now_ms - placed_ms, 1e-3) / cost))

    def on_end(self, request_id: Hashable, now_ms: float) -> None:
        """A request that ended without a token teaches nothing."""
        self._placed.pop(request_id, None)

    def state(self) -> dict[str, Any]:
        """What a new policy needs to go on from here, for a live router's log."""
        return {
            "random": self._generator.getstate(),
            "beliefs": [[worker, vars(belief)] for worker, belief in self._beliefs.items()],
            "placed": list(self._placed.items()),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where another policy was."""
        version, numbers, gauss_next = state["random"]
        self._generator.setstate((version, tuple(numbers), gauss_next))
        for worker, values in state["beliefs"]:
            vars(self._belief(tuple(worker))).update(values)
        for request_id, (worker, cost, placed_ms) in state["placed"]:
            self._placed[request_id] = (tuple(worker), cost, placed_ms)

    def _belief(self, worker: Worker) -> Belief:
        return self._beliefs.setdefault(worker, Belief())


def _worker(option: WorkerOption) -> Worker:
    return option.worker_id, option.dp_rank
