"""The `cluster:` section: which workers there are, and how they share the work.

A pool states only those keys of its engines, its hardware, its timing and its router in which it
differs from the run file's own sections; `RunConfig.for_pool` puts both together.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from dynosim.config.base import (
    Amount,
    Count,
    NotNegative,
    PositiveMs,
    Rate,
    Section,
    Share,
    as_stated,
    check_rules,
    refuse,
)
from dynosim.config.engine import EngineKnobs
from dynosim.config.hardware import Hardware
from dynosim.config.router import RouterKnobs
from dynosim.config.startup import StartupConfig
from dynosim.config.timing import TimingConfig
from dynosim.router.frontend import FrontendSpec

PoolRole = Literal["prefill", "decode"]
POOL_ROLES: tuple[PoolRole, ...] = ("prefill", "decode")

_FRONTEND = FrontendSpec()
Topology = dict[str, Annotated[tuple[str, ...], Field(strict=False, min_length=1)]]


def _some_workers(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool) and value < 1:
        raise refuse(
            f"a pool of {value} workers serves nobody",
            "at least 1 is needed, or set cluster.mode: agg",
        )
    return value


Workers = Annotated[Annotated[int, Field(ge=1, le=65536)], BeforeValidator(_some_workers)]


class WorkerPoolConfig(Section):
    """Equal workers of one role, and in which keys they differ from the rest of the run file."""

    workers: Workers = 1
    """Workers of the pool. Unit: workers."""
    engine: Annotated[EngineKnobs, PlainSerializer(as_stated)] = EngineKnobs.model_construct()
    """Keys of `engine:` that are others for this pool."""
    hardware: Hardware = None
    """GPU of this pool; null: the run file's."""
    timing: TimingConfig | None = None
    """How long a step of this pool takes; null: as the run file says."""
    router: Annotated[RouterKnobs, PlainSerializer(as_stated)] = RouterKnobs.model_construct()
    """Keys of `router:` that are others for the router of this pool."""
    topology: Topology | None = None
    """Where its workers are: domain (like zone or node) to values, which go to the workers in turn;
    null: as `cluster.topology` says."""
    taints: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Labels of its workers, which a request may require or prefer."""
    startup: StartupConfig | None = None
    """How its workers start; null: as `cluster.startup` says."""


class TransferConfig(Section):
    """How KV gets from a prefill worker to a decode worker."""

    preset: Literal["nvlink", "ib", "roce", "efa", "tcp", "pcie"] | None = None
    """The link of each worker; null: stated by `bandwidth_gb_s`."""
    bandwidth_gb_s: Rate | None = None
    """What a worker's link achieves in each direction, all its GPUs together; null: as the preset
    has it. Unit: GB/s."""
    latency_us: NotNegative | None = None
    """Time before the first byte; null: as the preset has it. Unit: us."""
    per_descriptor_us: NotNegative | None = None
    """Time to post one piece of memory; null: as the preset has it. Unit: us."""
    handshake_ms: NotNegative | None = None
    """Further time of the first transfer between two workers; null: as the preset has it."""
    exposed_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Part of a transfer that is not hidden behind the prefill's own computing, as layer by layer
    it could be. Unit: share."""
    uplink_gb_s: dict[str, Rate] = Field({})
    """What all workers of one value of a topology domain (such as a node) have together to others,
    in each direction, by domain. Unit: GB/s."""
    moves: Literal["full_prompt", "destination_missing"] = "destination_missing"
    """What is sent: the KV of the whole prompt, or the blocks that the decode worker has not
    cached."""
    kv_bytes_per_token: Annotated[int, Field(ge=1)] | None = None
    """KV of one token, all layers and GPUs of a worker together; null: follows from the model.
    Unit: bytes."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        is_unknown = self.preset is None and self.bandwidth_gb_s is None
        check_rules(
            [
                ("preset", is_unknown, "missing; no bandwidth_gb_s is stated either",
                 "add `preset: ib` or another link, or bandwidth_gb_s"),
            ]
        )  # fmt: skip
        return self


class KvTransferConfig(Section):
    """Where a decode worker may be, seen from its prefill worker (Dynamo's kvTransferPolicy)."""

    domain: str
    """Kind of place that both should share, one of the workers' topology."""
    enforcement: Literal["required", "preferred"] = "required"
    """Whether a request fails, or goes elsewhere, where nobody in the same place can take it."""
    preferred_weight: Share | None = None
    """How strongly the same place is preferred. Unit: share."""
    label_key: str | None = None
    """Label of a Kubernetes node that carries the place."""


class ConditionalConfig(Section):
    """When a decode worker computes the prompt itself."""

    policy: Literal["isl_bounding", "prefill_load", "isl_or_load"] = "isl_bounding"
    """What decides: the prompt's uncached length, the prefill workers' load, or either."""
    eff_isl_threshold: Amount = 2048
    """A prompt with fewer uncached tokens is short. Unit: tokens."""
    eff_isl_ratio_threshold: Share = 0.7
    """And its uncached part must be less than this. Unit: share."""
    prefill_busy_threshold: Amount | None = None
    """A prefill worker with more prompt tokens in flight is busy; null: none is. Unit: tokens."""
    decode_busy_threshold: Share | None = None
    """A decode worker with more of its KV blocks in use computes no prompt; null: no limit. Unit:
    share."""


class HandoffConfig(Section):
    """How a request goes from its prefill to its decode worker."""

    order: Literal["prefill_first", "decode_first"] | None = None
    """Whether the decode worker makes room after the prefill, or before it; null: as the engine
    does (vLLM: prefill_first)."""
    first_token: Literal["decode", "prefill"] | None = None
    """Whose first token the client gets: the decode worker's, which computes the prompt's last
    token again, or the prefill worker's; null: as the engine does (vLLM: decode)."""
    load_failure_policy: Literal["fail", "recompute"] = "fail"
    """What a decode worker does with a request whose KV does not arrive."""


def _positive_capacity(value: Any) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool) and not value > 0:
        raise refuse(f"a tier of {value:g} holds nothing", "raise it, or remove the tier")
    return value


Capacity = Annotated[Annotated[float, Field(gt=0, le=1e9)], BeforeValidator(_positive_capacity)]
Blocks = Annotated[Count, BeforeValidator(_positive_capacity)]


class TierConfig(Section):
    """What every tier of KV below the device says of itself."""

    capacity_gb: Capacity | None = None
    """Room for KV; null: stated by `num_blocks`. Unit: GB."""
    num_blocks: Blocks | None = None
    """Room for KV, in the engine's blocks; null: stated by `capacity_gb`. Unit: blocks."""
    policy: Literal["lru", "arc", "priority"] = "lru"
    """What goes when it is full: what was used least recently, as ARC learns, or what requests say
    is worth least (`workload.retention` and columns of traces)."""
    read_gb_s: Rate | None = None
    """What a worker gets from it; null: as the preset has it. Unit: GB/s."""
    write_gb_s: Rate | None = None
    """What a worker gives to it; null: as the preset has it. Unit: GB/s."""
    total_read_gb_s: Rate | None = None
    """What all who share it get together; null: no limit but their own. Unit: GB/s."""
    total_write_gb_s: Rate | None = None
    """What all who share it give together; null: no limit but their own. Unit: GB/s."""
    latency_ms: NotNegative | None = None
    """Time before the first byte of a copy; null: as the preset has it."""

    @model_validator(mode="after")
    def _rules(self) -> Self:
        is_unknown = self.capacity_gb is None and self.num_blocks is None
        both = self.capacity_gb is not None and self.num_blocks is not None
        is_alone = getattr(self, "scope", "cluster") == "worker"
        check_rules(
            [
                ("capacity_gb", is_unknown, "missing; no num_blocks is stated either",
                 "add one of them"),
                ("num_blocks", both, "capacity_gb and num_blocks exclude each other",
                 "remove one"),
                *((key, getattr(self, "preset", None) is None and getattr(self, key) is None,
                   "missing; a tier without a link is of no use", "state it, or a preset")
                  for key in ("read_gb_s", "write_gb_s")),
                *((key, is_alone and getattr(self, key) is not None,
                   "stated, but every worker has the tier for itself",
                   "remove it, or set scope: node")
                  for key in ("total_read_gb_s", "total_write_gb_s")),
            ]
        )  # fmt: skip
        return self


class HostTierConfig(TierConfig):
    """KV in the memory of the workers' hosts."""

    preset: Literal["pcie4", "pcie5", "c2c"] | None = "pcie5"
    """The link between each GPU and its host's memory; null: stated by `read_gb_s` and
    `write_gb_s`."""
    scope: Literal["worker", "node"] = "worker"
    """Whether each worker has it for itself, or the workers of a node share it."""
    store_threshold: Amount = 0
    """A block is kept from the so many-th request on that brings it. Unit: requests."""
    prompt_only: bool = False
    """Whether generated text is not kept."""


class DiskTierConfig(TierConfig):
    """KV on disks."""

    preset: Literal["nvme4", "nvme5"] | None = "nvme5"
    """What the disks are; null: stated by `read_gb_s` and `write_gb_s`."""
    scope: Literal["worker", "node"] = "worker"
    """Whether each worker has it for itself, or the workers of a node share it."""


class RemoteTierConfig(TierConfig):
    """KV in a store that all workers share."""

    preset: Literal["rdma_store", "nfs_rdma", "s3"] | None = "rdma_store"
    """What the store is; null: stated by `read_gb_s` and `write_gb_s`."""


class TiersConfig(Section):
    """KV below the device: what engines compute is copied there, and loaded when it is asked for
    again."""

    host: HostTierConfig | None = None
    """Memory of the workers' hosts; null: none is used."""
    peers_gb_s: Rate | None = None
    """What a worker gets from the host tiers of other workers, which it reads before disk and
    remote store; null: it does not. Unit: GB/s."""
    disk: DiskTierConfig | None = None
    """Disks; null: none are used."""
    remote: RemoteTierConfig | None = None
    """A store that all workers share; null: none is used."""
    domain: str = "node"
    """Topology domain whose workers share what has `scope: node`."""
    offload: Literal["write_through", "on_eviction"] = "write_through"
    """When a tier beyond the nearest gets KV: as soon as the nearer one has it, or when that throws
    it out."""
    onboard: Literal["always", "faster"] = "always"
    """Whether all that is found is loaded, or only what would take longer to compute."""
    onboard_granularity_blocks: Count = 1
    """With `faster`, loads end at multiples of so many blocks. Unit: blocks."""
    kv_bytes_per_token: Count | None = None
    """KV of one token, all layers and GPUs of a worker together; null: follows from the model.
    Unit: bytes."""

    def beyond_own_host(self) -> str | None:
        """The first key by which a worker has anything but a host tier of its own; None: none."""
        host = self.host
        asked_for = {
            "host": host is None,
            "host.scope": host is not None and host.scope != "worker",
            "peers_gb_s": self.peers_gb_s is not None,
            "disk": self.disk is not None,
            "remote": self.remote is not None,
            "onboard": self.onboard != "always",
        }
        return next((key for key, is_so in asked_for.items() if is_so), None)

    @model_validator(mode="after")
    def _rules(self) -> Self:
        is_empty = self.host is None and self.disk is None and self.remote is None
        is_shared = self.host is not None and self.host.scope == "node"
        is_coarse = self.onboard_granularity_blocks != 1
        check_rules(
            [
                ("host", is_empty, "missing; no tier is stated",
                 "add `host: {capacity_gb: 64}`, or remove cluster.tiers"),
                ("peers_gb_s", self.peers_gb_s is not None and (self.host is None or is_shared),
                 "stated, but workers have no host tiers of their own to read from",
                 "remove it, or add `host: {capacity_gb: 64}`"),
                ("onboard_granularity_blocks", is_coarse and self.onboard == "always",
                 "stated, but all that is found is loaded", "set `onboard: faster`"),
            ]
        )  # fmt: skip
        return self


class FrontendConfig(Section):
    """Times of the frontend's stages in a simulation, one after the other; each request has its
    own. Live they take what they take."""

    preprocess_ms: NotNegative = _FRONTEND.preprocess_ms
    """Time to check a request and to render its prompt."""
    preprocess_us_per_token: NotNegative = _FRONTEND.preprocess_us_per_token
    """And to tokenize it, for each token of the prompt. Unit: us."""
    route_ms: NotNegative = _FRONTEND.route_ms
    """Time to choose a worker; waiting for one comes on top."""
    dispatch_ms: NotNegative = _FRONTEND.dispatch_ms
    """Hop of the request plane, from the frontend to the worker."""
    startup_ms: NotNegative = _FRONTEND.startup_ms
    """Time from the run's start until the frontend takes requests; who comes before waits."""

    @property
    def is_instant(self) -> bool:
        """Whether all of it takes no time."""
        return not any(getattr(self, key) for key in type(self).model_fields)


AGG_KEYS = ("workers", "cpu_workers", "cpu_step_time_scale")
DISAGG_KEYS = ("prefill", "decode", "transfer", "handoff", "conditional", "kv_transfer")
"""Keys of `cluster:` that belong to one mode only."""


class ClusterConfig(Section):
    """Equal workers that serve whole requests (`agg`), or a pool for each phase (`disagg`)."""

    mode: Literal["agg", "disagg"] = "agg"
    """How the work is split: `agg`, every worker serves whole requests; `disagg`, workers of one
    pool compute prompts, those of another one answers."""
    workers: Annotated[int, Field(ge=0, le=65536)] = 1
    """Equal workers (`agg`), each of `engine.tensor_parallel` x `engine.data_parallel` GPUs; 0 only
    where a controller launches some. Unit: workers."""
    cpu_workers: Annotated[int, Field(ge=0, le=65536)] = 0
    """How many of the workers, the last ones, run on CPUs. Unit: workers."""
    cpu_step_time_scale: Annotated[float, Field(gt=0)] = 8.0
    """How much longer steps take on a CPU worker. Unit: factor."""
    prefill: WorkerPoolConfig = WorkerPoolConfig.model_construct()
    """Workers that compute prompts (`disagg`)."""
    decode: WorkerPoolConfig = WorkerPoolConfig.model_construct()
    """Workers that compute answers (`disagg`)."""
    transfer: TransferConfig | None = None
    """How KV gets from one to the other (`disagg`)."""
    handoff: HandoffConfig = HandoffConfig.model_construct()
    """The order in which that goes (`disagg`)."""
    conditional: ConditionalConfig | None = None
    """When a decode worker computes a prompt itself (`disagg`); null: never."""
    kv_transfer: KvTransferConfig | None = None
    """Which places a transfer may connect (`disagg`); null: any."""
    tiers: TiersConfig | None = None
    """KV in slower memory below the devices (of prefill workers, with `disagg`); null: none."""
    startup: StartupConfig | None = None
    """How a worker starts; null: in no time."""
    frontend: FrontendConfig = FrontendConfig.model_construct()
    """What requests go through before a worker has them."""
    topology: Topology = Field({})
    """Where the workers are: domain (like zone or node) to values, which go to the workers in
    turn."""
    taints: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Labels of all workers, which a request may require or prefer."""
    max_sim_time_ms: PositiveMs | None = None
    """Virtual time at which the run is cut off; null: it ends with the last request."""

    @property
    def is_disagg(self) -> bool:
        """Whether there is a pool for each phase."""
        return self.mode == "disagg"

    def pool(self, role: PoolRole) -> WorkerPoolConfig:
        """The pool of a role."""
        return self.prefill if role == "prefill" else self.decode

    def topology_of(self, role: PoolRole | None) -> Mapping[str, tuple[str, ...]]:
        """Where the workers of a role are; of an aggregated cluster's without one."""
        own = None if role is None else self.pool(role).topology
        return self.topology if own is None else own

    def startup_of(self, role: PoolRole | None) -> StartupConfig | None:
        """How the workers of a role start."""
        own = None if role is None else self.pool(role).startup
        return self.startup if own is None else own

    def taints_of(self, role: PoolRole | None) -> tuple[str, ...]:
        """The labels of the workers of a role."""
        return self.taints if role is None else (*self.taints, *self.pool(role).taints)

    @model_validator(mode="after")
    def _rules(self) -> Self:
        check_rules(
            [
                *((key, not self.is_disagg and self._is_stated(key),
                   "stated, but cluster.mode is agg", "remove it, or set cluster.mode: disagg")
                  for key in DISAGG_KEYS),
                *((key, self.is_disagg and self._is_stated(key),
                   "stated, but cluster.mode is disagg",
                   "remove it; cluster.prefill.workers and cluster.decode.workers count")
                  for key in AGG_KEYS),
                ("startup", self.startup is not None and self.is_disagg
                 and all(self.pool(role).startup is not None for role in POOL_ROLES),
                 "stated, but each pool states its own", "remove one"),
                ("transfer", self.is_disagg and self.transfer is None,
                 "missing; KV must get from prefill to decode workers",
                 "add `transfer: {preset: ib}` or another link"),
            ]
        )  # fmt: skip
        self._check_places()
        return self

    def _is_stated(self, key: str) -> bool:
        """Whether a key differs from its default: a file that is written has all of them."""
        return bool(getattr(self, key) != type(self).model_fields[key].default)

    def _check_places(self) -> None:
        """Refuses a domain that no worker has, and a weight that is missing or out of place."""
        if not self.is_disagg:
            return
        roles = POOL_ROLES
        known = [set(self.topology_of(role)) for role in roles]
        rules = []
        policy = self.kv_transfer
        if policy is not None:
            from dynosim.errors import ConfigError
            from dynosim.router.topology import KvTransferPolicy

            problem = ""
            try:
                KvTransferPolicy(policy.domain, policy.enforcement, policy.preferred_weight)
            except ConfigError as error:
                problem = str(error).removeprefix("kv_transfer.")
            key, _, text = problem.partition(": ")
            rules.append((f"kv_transfer.{key}", bool(problem), text, ""))
            lacking = [role for role, has in zip(roles, known, strict=True)
                       if policy.domain not in has]  # fmt: skip
            rules.append(
                ("kv_transfer.domain", bool(lacking) and not problem,
                 f"{policy.domain} is no domain of the {' and '.join(lacking)} workers",
                 f"add `topology: {{{policy.domain}: [a, b]}}`")
            )  # fmt: skip
        transfer = self.transfer
        if transfer is not None:
            rules += [
                (f"transfer.uplink_gb_s.{domain}", any(domain not in has for has in known),
                 "is no domain of both pools' topology",
                 f"add `topology: {{{domain}: [a, b]}}`")
                for domain in transfer.uplink_gb_s
            ]  # fmt: skip
        check_rules(rules)
