"""The knobs of the router, in the field's words; defaults are Dynamo 1.6's."""

from dataclasses import dataclass, field, fields
from math import isfinite
from typing import Literal

from dynosim.errors import ConfigError
from dynosim.router.busy import BusyThresholds
from dynosim.router.classes import PolicyClass


@dataclass(frozen=True, slots=True)
class CostSpec:
    """Weights of the cost function, see `dynosim.router.cost`.

    A request can bring its own (`RoutingRequest.overrides`).
    """

    overlap_score_credit: float = 1.0  # blocks of prefill work saved per cached device block
    overlap_score_credit_decay: float = 0.0  # less credit for workers with more queued prefill
    prefill_load_scale: float = 1.0
    host_cache_hit_weight: float = 0.75
    disk_cache_hit_weight: float = 0.25
    active_request_weight: float = 0.0  # blocks per request in flight
    temperature: float = 0.0  # 0: the cheapest worker; more: closer to uniform
    track_prefill_tokens: bool = True
    assume_kv_reuse: bool = True  # False: prompt blocks of active requests are never shared
    shared_cache_multiplier: float = 0.0  # blocks of prefill saved by one in a store of all workers

    def __post_init__(self) -> None:
        for entry in fields(self):
            value = getattr(self, entry.name)
            if not isinstance(value, bool) and not (isfinite(value) and value >= 0):
                raise ConfigError(
                    f"router.{entry.name}: expected a finite number >= 0, got {value}"
                )

    @property
    def is_plain(self) -> bool:
        """Whether costs are own part less savings, as far as devices alone hold anything.

        A credit above 1 could drive prefill below 0.
        """
        return (
            self.temperature == 0
            and self.overlap_score_credit_decay == 0
            and self.overlap_score_credit <= 1
        )

    @property
    def slower_weights(self) -> tuple[float, ...]:
        """Blocks of prefill work saved by a cached block of each slower tier, fastest first.

        A remote store counts as a disk.
        """
        return (
            self.host_cache_hit_weight, self.disk_cache_hit_weight, self.disk_cache_hit_weight
        )  # fmt: skip


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """What the router counts as load of a worker."""

    track_output_blocks: bool = False
    track_active_blocks: bool = True  # False: no blocks count, neither of prompts nor of answers
    stale_after_ms: float = 300_000.0  # a request not heard of for so long is dropped

    def __post_init__(self) -> None:
        if not self.stale_after_ms > 0:
            raise ConfigError(f"router.stale_after_ms: must be above 0, got {self.stale_after_ms}")


@dataclass(frozen=True, slots=True)
class AffinitySpec:
    """Sessions stay with the worker that served them, for `ttl_ms` after their last request.

    `hard`: a session's requests go there or are refused; `soft`: they go there if it is eligible.
    """

    ttl_ms: float
    mode: Literal["hard", "soft"] = "hard"


@dataclass(frozen=True, slots=True)
class RouterSpec:
    """Everything that determines a router's decisions, next to its inputs."""

    block_size: int
    mode: str
    cost: CostSpec = field(default_factory=CostSpec)
    load: LoadSpec = field(default_factory=LoadSpec)
    classes: tuple[PolicyClass, ...] = ()  # none: nothing ever waits in the router
    busy: BusyThresholds = field(default_factory=BusyThresholds)
    affinity: AffinitySpec | None = None
    cuda_to_cpu_ratio: float = 8.0  # how much more a GPU takes than a CPU, device-aware mode
    seed: int = 0
