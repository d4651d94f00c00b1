"""The workers of a local deployment, as who decides on their number has them."""

from collections.abc import Mapping

from dynosim.build.live_control import pool_name, pool_sizes
from dynosim.config import RunConfig
from dynosim.config.cluster import POOL_ROLES, PoolRole
from dynosim.planner.observation import PoolState
from dynosim.workers.lifecycle import Phase
from dynosim_runtime.launch.deployment import LocalDeployment
from dynosim_runtime.planner.workforce import Serving


class LocalWorkforce:
    """See `Workforce`."""

    def __init__(self, deployment: LocalDeployment, plan: RunConfig) -> None:
        self.wanted = pool_sizes(plan)
        self._deployment = deployment
        roles: tuple[PoolRole | None, ...] = POOL_ROLES if plan.cluster.is_disagg else (None,)
        self._roles = {pool_name(role or "agg"): role for role in roles}

    def serving(self) -> list[Serving]:
        """See `Workforce`."""
        cards = self._deployment.cards()
        return [
            Serving(life.worker_id, life.pool, cards[life.name])
            for life in self._deployment.lives.lives(Phase.READY, Phase.DRAINING)
            if life.name in cards
        ]

    def pool(self, name: str, num_requests: Mapping[int, int]) -> PoolState:
        """See `Workforce`."""
        return self._deployment.lives.pool(name, self.wanted[name], num_requests)

    async def launch(self, pool: str) -> None:
        """See `Workforce`."""
        await self._deployment.launch(self._roles[pool])

    def drain(self, worker_id: int) -> None:
        """See `Workforce`."""
        name = self._deployment.lives.name_of(worker_id)
        if name is not None:
            self._deployment.drain(name)
