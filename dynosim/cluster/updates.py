"""Rolling updates and canaries of the twin: new generations of workers beside old ones."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from dynosim.cluster.control import ControlPlane, ProcessGenerator, WorkerView
from dynosim.cluster.spec import PoolSpec
from dynosim.planner.rolling import (
    USUAL_LIMITS,
    GenerationCounts,
    Moves,
    RollingLimits,
    next_moves,
)
from dynosim.workers.lifecycle import Phase

RECONCILE_MS = 1000.0
"""How often whoever carries out an update looks at how far it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RollingUpdate:
    """Replaces all workers of pools, few at a time.

    `specs` are the new workers by pool; pools not in it get the same again, as a new image would.
    `share` is how much of each pool is replaced, from 0 to 1; the rest stays as it is.
    """

    at_ms: float
    pools: tuple[str, ...]
    limits: RollingLimits = USUAL_LIMITS
    specs: Mapping[str, PoolSpec] = field(default_factory=dict)
    share: float = 1.0

    def happen(self, control: ControlPlane) -> ProcessGenerator:
        """See `ScenarioEvent`."""
        generation = 1 + max(worker.generation for worker in control.workers)
        parts = [_PoolUpdate(pool, generation, self, control) for pool in self.pools]
        while not all([part.is_complete(control) for part in parts]):
            keeps_one = False
            if control.mixes_no_generations:
                if all([part.is_nearly_complete(control) for part in parts]):
                    control.close_generation(generation - 1)
                keeps_one = control.has_unfinished(generation - 1)
            for part in parts:
                part.go_on(control, keeps_one=keeps_one)
            yield control.env.timeout(RECONCILE_MS)


class _PoolUpdate:
    """The update of one pool."""

    def __init__(
        self, pool: str, generation: int, update: RollingUpdate, control: ControlPlane
    ) -> None:
        self._pool = pool
        self._generation = generation
        self._limits = update.limits
        alive = [one for one in _in(pool, control) if one.phase is not Phase.DRAINING]
        self._wanted = round(update.share * len(alive))
        # Those that are not to be replaced count as little as if they were not there.
        self._replaced = {one.worker_id for one in alive[: self._wanted]}
        control.update_pool(pool, generation, update.specs.get(pool))

    def go_on(self, control: ControlPlane, *, keeps_one: bool) -> None:
        """Launch and drain what may be now; `keeps_one`: the last old worker is still needed."""
        old, new = self._counts(control)
        moves: Moves = next_moves(old, new, self._wanted, self._limits)
        for _ in range(moves.num_launched):
            control.launch(self._pool)
        num_drained = moves.num_drained_ready
        if keeps_one and num_drained == old.ready:
            num_drained -= 1
        mine = [one for one in _in(self._pool, control) if one.worker_id in self._replaced]
        starting = [one for one in mine if one.phase is Phase.STARTING]
        ready = [one for one in mine if one.phase is Phase.READY]
        for worker in [*starting, *ready[: max(num_drained, 0)]]:
            control.drain(worker.worker_id)

    def is_nearly_complete(self, control: ControlPlane) -> bool:
        """Whether new workers take requests, and of the old ones at most one does."""
        old, new = self._counts(control)
        return new.ready > 0 and old.staying <= 1

    def is_complete(self, control: ControlPlane) -> bool:
        """Whether no old worker is left, and as many new ones serve."""
        old, new = self._counts(control)
        return old.present == 0 and new.ready >= self._wanted

    def _counts(self, control: ControlPlane) -> tuple[GenerationCounts, GenerationCounts]:
        """The workers to be replaced, and those that replace them."""
        workers = _in(self._pool, control)
        old = [one for one in workers if one.worker_id in self._replaced]
        new = [one for one in workers if one.generation == self._generation]
        return _count(old), _count(new)


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A share of the requests is served by a few workers of a new generation, for a while.

    `counts` are the new workers by pool, `specs` what they are; see `RollingUpdate`. Without
    `for_ms` they stay.
    """

    at_ms: float
    share: float
    counts: Mapping[str, int]
    specs: Mapping[str, PoolSpec] = field(default_factory=dict)
    for_ms: float | None = None

    def happen(self, control: ControlPlane) -> ProcessGenerator:
        """See `ScenarioEvent`. Afterwards pools launch again what they did before."""
        old = max(worker.generation for worker in control.workers)
        new = old + 1
        control.set_generation_shares({old: 1.0 - self.share, new: self.share})
        launched = []
        for pool, count in self.counts.items():
            before = control.update_pool(pool, new, self.specs.get(pool))
            launched += [control.launch(pool) for _ in range(count)]
            control.update_pool(pool, before.generation, before)
        if self.for_ms is None:
            return
        yield control.env.timeout(self.for_ms)
        control.set_generation_shares({})
        control.close_generation(new)
        while control.has_unfinished(new):
            yield control.env.timeout(RECONCILE_MS)
        for worker in control.workers:
            if worker.worker_id in launched and worker.phase in (Phase.STARTING, Phase.READY):
                control.drain(worker.worker_id)


def _in(pool: str, control: ControlPlane) -> list[WorkerView]:
    """Its workers that hold GPUs, each by its first rank."""
    over = (Phase.GONE, Phase.FAILED)
    mine = [one for one in control.workers if one.pool == pool and not one.rank]
    return [one for one in mine if one.phase not in over]


def _count(workers: list[WorkerView]) -> GenerationCounts:
    phases = [worker.phase for worker in workers]
    return GenerationCounts(
        phases.count(Phase.STARTING), phases.count(Phase.READY), phases.count(Phase.DRAINING)
    )
