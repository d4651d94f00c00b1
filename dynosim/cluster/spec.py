"""What a simulated cluster is built from, and how far a run of it goes.

Workers are numbered through the pools in their order: those of the first come first.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import count
from typing import Literal

from dynosim.engine.ranks import ONE_RANK, RankSpec
from dynosim.engine.spec import EngineSpec
from dynosim.errors import ConfigError
from dynosim.memory.kv_transfer import KvGeometry, Moved
from dynosim.memory.links import LinkSpec
from dynosim.memory.tiers import TiersSpec
from dynosim.router.frontend import FrontendSpec
from dynosim.router.handoff import HandoffSpec
from dynosim.router.spec import RoutingSpec
from dynosim.router.workers import WorkerCard
from dynosim.timing.model import StepTimeModel
from dynosim.workers.ids import WorkerId
from dynosim.workers.startup import StartupSpec, constant

Role = Literal["agg", "prefill", "decode"]
"""What the workers of a pool do for a request: `agg`, all of it."""

_SHARED = {
    "engine": ("block_size", "max_model_len", "enable_prefix_caching"),
    "times": ("ingress_ms", "egress_ms"),
}
GENERATION = "generation"
"""The domain under which a worker's card tells its own."""
_KEY_NAMES = {"kv_dtype": "kv_cache_dtype"}
_AGREED = ("block_size", "model", "kv_dtype")
"""In what prefill and decode workers must agree for the KV of one to be of use to the other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSpec:
    """Workers that are alike. What `engine` says is said of each rank.

    `startup` is how a worker starts, or `startup_ms` how long that takes if no more is known; those
    of the run's start are ready, unless they `start_cold`. `step_time_scale` tells reports how many
    times as long as the run's model has it `times` are, where that is known to be one factor.
    `taints` are those of all its workers; values of a `topology` domain go to them in turn, also to
    those that are launched later. `model` and `kv_dtype` are compared only. An update's new workers
    are of the next `generation`.
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
    startup: StartupSpec | None = None
    start_cold: bool = False
    step_time_scale: float = 1.0
    tensor_parallel: int = 1
    topology: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    taints: frozenset[str] = frozenset()
    model: str | None = None
    kv_dtype: str = "auto"
    tiers: TiersSpec | None = None
    generation: int = 0

    @property
    def block_size(self) -> int:
        """Tokens per KV block."""
        return self.engine.block_size

    @property
    def start(self) -> StartupSpec:
        """How one of its workers starts."""
        return constant(self.startup_ms) if self.startup is None else self.startup

    def place_of(self, number: int) -> dict[str, str]:
        """Where its worker of that number, from 0, is."""
        return {domain: values[number % len(values)] for domain, values in self.topology.items()}

    def __post_init__(self) -> None:
        for key in ("workers", "gpus_per_worker", "startup_ms"):
            value = getattr(self, key)
            if not value >= 0:
                raise ConfigError(f"pool {self.name}: {key}: expected at least 0, got {value}")
        if self.startup is not None and self.startup_ms:
            raise ConfigError(
                f"pool {self.name}: startup_ms: stated beside startup, which says it by phases "
                "(remove one)"
            )
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
class TransferSpec:
    """How KV gets from prefill to decode workers.

    `uplinks` are capacities in GB/s, in each direction, that all workers of one value of a topology
    domain share, by domain.
    """

    link: LinkSpec
    geometry: KvGeometry
    exposed_share: float = 1.0
    moves: Moved = "destination_missing"
    uplinks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class DisaggSpec:
    """What a cluster with a pool for each phase has besides its pools.

    `decode_routing` places requests on decode workers, as the cluster's `routing` does on prefill
    workers; without one they go round.
    """

    handoff: HandoffSpec
    transfer: TransferSpec
    decode_routing: RoutingSpec | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """Pools behind one front end.

    Without `disagg` it may place any request on any worker. So pools agree in what a request is
    before it is placed: the size of blocks, the context length, whether prefixes are cached, and
    the time spent outside engines; and in the ranks of a worker. With it there is a pool of each
    phase, and they agree in what their KV is. Without a `routing` requests go round.

    Ranks are numbered through the workers: those of the first have the first ids.

    If it `mixes_no_generations`, one generation of workers serves a request from its arrival on;
    see `without_mixing`. Without a `frontend` requests are placed when they come, but for the
    constants of step times and routing. It may have no worker if it `starts_empty`: somebody
    launches them.

    Raises: ConfigError naming the key in which pools differ, or if there is no worker.
    """

    pools: tuple[PoolSpec, ...]
    routing: RoutingSpec | None = None
    disagg: DisaggSpec | None = None
    mixes_no_generations: bool = False
    frontend: FrontendSpec | None = None
    starts_empty: bool = False

    def __post_init__(self) -> None:
        self._check_tiers()
        if self.disagg is not None:
            self._check_disagg()
            return
        if self.num_workers < 1 and not self.starts_empty:
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

    def _check_tiers(self) -> None:
        """Refuses tiers of ranks, and of nodes that nobody names."""
        for pool in self.pools:
            if pool.tiers is None:
                continue
            if pool.ranks.number > 1:
                raise ConfigError(
                    f"cluster.tiers: {pool.ranks.number} data-parallel ranks in a worker, but the "
                    "tiers of ranks are not simulated (give the pool as many workers instead)"
                )
            if not pool.engine.enable_prefix_caching:
                raise ConfigError(
                    "cluster.tiers: without engine.enable_prefix_caching nothing is found again "
                    "(set it, or remove the tiers)"
                )
            of_nodes = [tier.name for tier in pool.tiers.tiers if tier.scope == "node"]
            domain = pool.tiers.domain
            if of_nodes and domain not in pool.topology:
                raise ConfigError(
                    f"cluster.tiers.{of_nodes[0]}.scope: node, but the workers have no {domain} "
                    f"(add `topology: {{{domain}: [a, b]}}`, or name another cluster.tiers.domain)"
                )

    def _check_disagg(self) -> None:
        if [pool.role for pool in self.pools] != ["prefill", "decode"]:
            raise ConfigError("a disaggregated cluster has a prefill pool and a decode pool")
        prefill, decode = self.pools
        for pool in self.pools:
            if pool.workers < 1:
                raise ConfigError(
                    f"cluster.{pool.role}.workers: at least 1 is needed, got {pool.workers}"
                )
            if pool.ranks.number > 1:
                raise ConfigError(
                    f"cluster.{pool.role}.engine.data_parallel: {pool.ranks.number}, but transfers "
                    "between ranks are not simulated (give the pool as many workers instead)"
                )
        policy = self.disagg.handoff.kv_transfer if self.disagg is not None else None
        if policy is not None and policy.enforcement == "required":
            ours, theirs = [set(pool.topology.get(policy.domain, ())) for pool in self.pools]
            if not ours & theirs:
                raise ConfigError(
                    f"cluster.kv_transfer.domain: no decode worker is in a {policy.domain} of a "
                    f"prefill worker ({', '.join(sorted(ours))}), and none else may take its KV "
                    "(give both pools a place in common, or set enforcement: preferred)"
                )
        for key in _AGREED:
            ours, theirs = getattr(prefill, key), getattr(decode, key)
            if ours != theirs:
                where = "model" if key == "model" else f"engine.{_KEY_NAMES.get(key, key)}"
                raise ConfigError(
                    f"cluster.decode.{where}: {theirs}, but the prefill workers have {ours}; KV of "
                    "one is of no use to the other (state the same for both)"
                )

    @property
    def num_workers(self) -> int:
        """Workers of all pools at the start."""
        return sum(pool.workers for pool in self.pools)

    @property
    def starts_cold(self) -> bool:
        """Whether a worker of the run's start has to start."""
        return any(pool.start_cold and pool.workers for pool in self.pools)

    @property
    def block_size(self) -> int:
        """Tokens per KV block, of all."""
        return self.pools[0].engine.block_size

    @property
    def max_model_len(self) -> int:
        """Tokens of a request at most, on its whole way."""
        return min(pool.engine.max_model_len for pool in self.pools)

    @property
    def enable_prefix_caching(self) -> bool:
        """Whether prefixes are cached anywhere."""
        return any(pool.engine.enable_prefix_caching for pool in self.pools)

    @property
    def ranks(self) -> RankSpec:
        """The ranks of each worker."""
        return self.pools[0].ranks

    def workers(self) -> Iterator[tuple[WorkerId, PoolSpec]]:
        """The ids of workers, or of their ranks where they have several, each with its pool."""
        number = self.ranks.number
        pools = (pool for pool in self.pools for _ in range(pool.workers * number))
        return ((WorkerId(number), pool) for number, pool in enumerate(pools))

    def cards(self, role: Role | None = None) -> list[WorkerCard]:
        """What the workers, all or those of a role, say of themselves when they join."""
        number = self.ranks.number
        ids = map(WorkerId, count())
        cards = [
            (pool.role, worker_card(next(ids), pool, place))
            for pool in self.pools
            for place in range(pool.workers)
            for _ in range(number)
        ]
        return [card for its_role, card in cards if role is None or its_role == role]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """How a cluster is run.

    `concurrency` requests are in flight at most, each arriving as one ends; None: they come by the
    trace's clock. `seed` is that of the default routing. Events after `until_ms` do not happen;
    what is under way then is unfinished. `exact_stepping` decides every engine step on its own
    instead of in bulk: the same result, slower. `records_trail` keeps what single requests did in
    steps. A client gives up a request whose last token has not come `client_timeout_ms` after it
    was sent; None: never. A request that has lost its worker more than `migration_limit` times
    fails; None: it always moves on. While no worker at all could take a request it
    `waits_for_workers`, or is refused.
    """

    concurrency: int | None = None
    seed: int = 0
    until_ms: float | None = None
    exact_stepping: bool = False
    records_trail: bool = False
    client_timeout_ms: float | None = None
    migration_limit: int | None = None
    waits_for_workers: bool = False


def without_mixing(cluster: ClusterSpec) -> ClusterSpec:
    """The same cluster, whose workers tell their generation, so that requests can keep to one."""
    pools = tuple(of_generation(pool, pool.generation, is_told=True) for pool in cluster.pools)
    return replace(cluster, pools=pools, mixes_no_generations=True)


def with_numbered_events(cluster: ClusterSpec) -> ClusterSpec:
    """The same cluster, whose routers notice KV events that get lost in the course of a run."""

    def numbered(routing: RoutingSpec | None) -> RoutingSpec | None:
        if routing is None:
            return None
        return replace(routing, events=replace(routing.events, may_worsen=True))

    disagg = cluster.disagg
    if disagg is not None:
        disagg = replace(disagg, decode_routing=numbered(disagg.decode_routing))
    return replace(cluster, routing=numbered(cluster.routing), disagg=disagg)


def of_generation(pool: PoolSpec, generation: int, *, is_told: bool) -> PoolSpec:
    """The same workers of another generation; `is_told`: their cards tell it."""
    topology = pool.topology
    if is_told:
        topology = {**topology, GENERATION: (str(generation),)}
    return replace(pool, generation=generation, topology=topology)


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
        topology=pool.place_of(place),
    )
