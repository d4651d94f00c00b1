"""What a simulated cluster is built from, and how far a run of it goes.

Workers are numbered through the pools in their order: those of the first come first.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Literal

from dynosim.engine.ranks import ONE_RANK, RankSpec
from dynosim.engine.spec import EngineSpec
from dynosim.errors import ConfigError
from dynosim.router.spec import RoutingSpec
from dynosim.router.workers import WorkerCard
from dynosim.timing.model import StepTimeModel
from dynosim.workers.ids import WorkerId

Role = Literal["agg"]
"""What the workers of a pool do for a request: `agg`, all of it."""

_SHARED = {
    "engine": ("block_size", "max_model_len", "enable_prefix_caching"),
    "times": ("ingress_ms", "egress_ms"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """Workers that are alike. What `engine` says is said of each rank.

    `startup_ms` is from the launch of a worker during the run until it takes requests; those of the
    run's start are ready. `step_time_scale` tells reports how many times as long as the run's model
    has it `times` are, where that is known to be one factor. `taints` are those of all its workers;
    values of a `topology` domain go to them in turn, also to those that are launched later.
    """

    name: str = "workers"
    role: Role = "agg"
    engine: EngineSpec
    times: StepTimeModel
    workers: int
    gpus_per_worker: int = 1
    ranks: RankSpec = ONE_RANK
    device: Literal["gpu", "cpu"] = "gpu"
    startup_ms: float = 0.0
    step_time_scale: float = 1.0
    taints: frozenset[str] = frozenset()
    topology: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for key in ("workers", "gpus_per_worker", "startup_ms"):
            value = getattr(self, key)
            if not value >= 0:
                raise ConfigError(f"pool {self.name}: {key}: expected at least 0, got {value}")
        if self.ranks.number < 1 or self.gpus_per_worker % self.ranks.number:
            raise ConfigError(
                f"pool {self.name}: {self.gpus_per_worker} GPUs of a worker do not go into "
                f"{self.ranks.number} ranks"
            )
        scale = self.step_time_scale
        if not scale > 0:
            raise ConfigError(
                f"pool {self.name}: step_time_scale: expected more than 0, got {scale}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """Pools behind one front end, which may place any request on any worker.

    So pools agree in what a request is before it is placed: the size of blocks, the context length,
    whether prefixes are cached, and the time spent outside engines; and in the ranks of a worker.
    Without a `routing` requests go round.

    Ranks are numbered through the workers: those of the first have the first ids.

    Raises: ConfigError naming the key in which pools differ, or if there is no worker.
    """

    pools: tuple[PoolSpec, ...]
    routing: RoutingSpec | None = None

    def __post_init__(self) -> None:
        if self.num_workers < 1:
            raise ConfigError(f"cluster.workers: at least 1 is needed, got {self.num_workers}")
        first = self.pools[0]
        for pool in self.pools[1:]:
            if pool.ranks != first.ranks:
                raise ConfigError(
                    f"pools {first.name} and {pool.name}: all workers need the same ranks"
                )
            for part, keys in _SHARED.items():
                for key in keys:
                    values = [getattr(getattr(one, part), key) for one in (first, pool)]
                    if values[0] != values[1]:
                        raise ConfigError(
                            f"{part}.{key}: {values[0]} in pool {first.name}, {values[1]} in pool "
                            f"{pool.name} (all workers of a cluster need the same)"
                        )

    @property
    def num_workers(self) -> int:
        """Workers of all pools at the start."""
        return sum(pool.workers for pool in self.pools)

    @property
    def block_size(self) -> int:
        """Tokens per KV block, of all."""
        return self.pools[0].engine.block_size

    @property
    def max_model_len(self) -> int:
        """Tokens of a request at most, of all."""
        return self.pools[0].engine.max_model_len

    @property
    def enable_prefix_caching(self) -> bool:
        """Whether prefixes are cached, by all."""
        return self.pools[0].engine.enable_prefix_caching

    @property
    def ranks(self) -> RankSpec:
        """The ranks of each worker."""
        return self.pools[0].ranks

    def workers(self) -> Iterator[tuple[WorkerId, PoolSpec]]:
        """The ids of workers, or of their ranks where they have several, each with its pool."""
        number = self.ranks.number
        pools = (pool for pool in self.pools for _ in range(pool.workers * number))
        return ((WorkerId(number), pool) for number, pool in enumerate(pools))

    def cards(self) -> list[WorkerCard]:
        """What the workers say of themselves when they join."""
        number = self.ranks.number
        ids = map(WorkerId, count())
        return [
            worker_card(next(ids), pool, place)
            for pool in self.pools
            for place in range(pool.workers)
            for _ in range(number)
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a cluster is run.

    `concurrency` requests are in flight at most, each arriving as one ends; None: they come by the
    trace's clock. `seed` is that of the default routing. Events after `until_ms` do not happen;
    what is under way then is unfinished. `exact_stepping` decides every engine step on its own
    instead of in bulk: the same result, slower. `records_trail` keeps what single requests did in
    steps. A client gives up a request whose last token has not come `client_timeout_ms` after it
    was sent; None: never.
    """

    concurrency: int | None = None
    seed: int = 0
    until_ms: float | None = None
    exact_stepping: bool = False
    records_trail: bool = False
    client_timeout_ms: float | None = None


def worker_card(worker_id: WorkerId, pool: PoolSpec, place: int) -> WorkerCard:
    """What a worker of `pool` says of itself; `place` counts the pool's workers from 0."""
    engine = pool.engine
    return WorkerCard(
        worker_id,
        engine.block_size,
        total_kv_blocks=engine.usable_blocks,
        max_num_batched_tokens=engine.max_num_batched_tokens,
        device=pool.device,
        taints=pool.taints,
        topology={domain: values[place % len(values)] for domain, values in pool.topology.items()},
    )
