"""What a worker does from its launch until it serves, and how long that takes, phase by phase.

A worker comes up on one or several nodes. Each node is scheduled, perhaps joins first, gets the
image, starts the engine's processes and reads its part of the weights, at its own pace; what
follows, the nodes do together. Only these are known here; who reads from where at which rate is
worked out while workers start (`dynosim.cluster.starting`). A GB is 1e9 bytes.
"""

from dataclasses import dataclass
from math import exp, inf, log, sqrt
from random import Random
from typing import Final, Literal

from dynosim.errors import ConfigError

PHASES: Final = (
    "schedule",
    "node",
    "image",
    "wait_checkpoint",
    "restore",
    "boot",
    "wait_source",
    "weights",
    "compile",
    "warm_up",
    "checkpoint",
    "probe",
)
"""All, in their order."""

Z95: Final = 1.6448536269514722
"""The 95th percentile of a standard normal distribution."""

P95_PER_MEAN_MAX: Final = exp(Z95**2 / 2)
"""No lognormal distribution has its 95th percentile further above its mean (3.87 times)."""


@dataclass(frozen=True, slots=True)
class Duration:
    """A time that is always the same, or drawn: lognormally by its mean and 95th percentile, or
    evenly from `mean_ms - half_width_ms` to `mean_ms + half_width_ms`.

    Raises: ConfigError for a distribution that cannot be.
    """

    mean_ms: float = 0.0
    p95_ms: float | None = None
    half_width_ms: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.mean_ms < inf:
            raise ConfigError(f"a time of {self.mean_ms:g} ms cannot be (state 0 or more)")
        if not 0 <= self.half_width_ms <= self.mean_ms:
            raise ConfigError("a time is drawn from 0 on, and to no less than from")
        if self.p95_ms is not None and not self._has_spread(self.p95_ms):
            raise ConfigError(
                f"no lognormal time has a mean of {self.mean_ms:g} ms and a 95th percentile of "
                f"{self.p95_ms:g} (state a p95 of the mean to {P95_PER_MEAN_MAX:.3g} times it)"
            )

    @classmethod
    def between(cls, min_ms: float, max_ms: float) -> "Duration":
        """Drawn evenly."""
        return cls((min_ms + max_ms) / 2, half_width_ms=(max_ms - min_ms) / 2)

    def draw_ms(self, random: Random) -> float:
        """One of them."""
        if self.half_width_ms:
            return random.uniform(self.mean_ms - self.half_width_ms, self._max_ms)
        if self.p95_ms is None or self.mean_ms == 0:
            return self.mean_ms
        # mean = exp(mu + sigma^2 / 2) and p95 = exp(mu + z sigma), the narrower of both solutions.
        sigma = Z95 - sqrt(max(0.0, Z95**2 - 2 * log(self.p95_ms / self.mean_ms)))
        return random.lognormvariate(log(self.mean_ms) - sigma**2 / 2, sigma)

    @property
    def _max_ms(self) -> float:
        return self.mean_ms + self.half_width_ms

    def _has_spread(self, p95_ms: float) -> bool:
        most_ms = self.mean_ms * P95_PER_MEAN_MAX
        return self.half_width_ms == 0 and self.mean_ms <= p95_ms <= most_ms


NO_TIME: Final = Duration()


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadSpec:
    """A place to read from: what one node gets at most, and all who read together.

    Pools that have an equal one read from the same place.
    """

    node_gb_s: float
    total_gb_s: float | None = None  # None: nodes do not share anything
    first_byte_ms: float = 0.0

    def __post_init__(self) -> None:
        for name in ("node_gb_s", "total_gb_s"):
            rate = getattr(self, name)
            if rate is not None and not 0 < rate < inf:
                raise ConfigError(f"{name}: {rate:g} GB/s brings nothing (state more than 0)")
        if not 0 <= self.first_byte_ms < inf:
            raise ConfigError(f"first_byte_ms: {self.first_byte_ms:g} cannot be (state 0 or more)")


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsSpec:
    """Where a worker's weights come from. `num_bytes` are of the whole worker; of several nodes
    each reads its part.

    With a `peer_gb_s` a node reads from the node of another worker of its pool that has the same
    part, which sends no faster to all who read from it; to `receivers_per_source` at once (None: to
    all who ask). The first has nobody to ask: it reads from `storage`, and others wait for it.
    """

    num_bytes: int
    storage: ReadSpec
    peer_gb_s: float | None = None
    receivers_per_source: int | None = None

    def __post_init__(self) -> None:
        if self.num_bytes < 0:
            raise ConfigError(f"weights of {self.num_bytes} bytes cannot be")
        if self.peer_gb_s is not None and not 0 < self.peer_gb_s < inf:
            raise ConfigError(f"peer_gb_s: {self.peer_gb_s:g} GB/s brings nothing")
        if self.receivers_per_source is not None and self.receivers_per_source < 1:
            raise ConfigError(f"receivers_per_source: {self.receivers_per_source} serves nobody")


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSpec:
    """The image of a running worker, from which others start without booting, loading, compiling
    and warming up.

    Where there is none the first worker starts cold, makes one once it has warmed up, at
    `write_gb_s`, and serves then. Whoever comes before it is made also starts cold, unless it
    `waits`.
    """

    num_bytes: int
    storage: ReadSpec
    restore: Duration = NO_TIME  # beside the reading
    write_gb_s: float | None = None  # None: there is one from the start
    waits: bool = False

    def __post_init__(self) -> None:
        if self.num_bytes < 0:
            raise ConfigError(f"a checkpoint of {self.num_bytes} bytes cannot be")
        if self.write_gb_s is not None and not 0 < self.write_gb_s < inf:
            raise ConfigError(f"write_gb_s: at {self.write_gb_s:g} GB/s no checkpoint is made")

    @property
    def exists(self) -> bool:
        """Whether one was made before the run."""
        return self.write_gb_s is None


CompileCache = Literal["none", "shared", "warm"]
"""What workers find of what others compiled: nothing; what a worker of their pool has compiled
before they begin to; everything."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StartupSpec:
    """The start of a worker on `nodes` nodes."""

    schedule: Duration = NO_TIME
    node: Duration = NO_TIME
    image: Duration = NO_TIME
    boot: Duration = NO_TIME
    weights: WeightsSpec | None = None
    compile: Duration = NO_TIME
    compile_cached: Duration = NO_TIME
    compile_cache: CompileCache = "none"
    warm_up: Duration = NO_TIME
    probe: Duration = NO_TIME
    checkpoint: CheckpointSpec | None = None
    nodes: int = 1

    def __post_init__(self) -> None:
        if self.nodes < 1:
            raise ConfigError(f"a worker on {self.nodes} nodes cannot be")
        if self.nodes > 1 and self.checkpoint is not None:
            raise ConfigError(
                f"checkpoint: the image of one node, but a worker has {self.nodes} (remove it, or "
                "set nodes_per_worker: 1)"
            )

    def duration(self, phase: str) -> Duration:
        """How long a phase takes that only waits for time."""
        found: Duration = getattr(self, phase)
        return found

    def part_bytes(self, node: int) -> int:
        """What a node reads of the weights."""
        if self.weights is None:
            return 0
        part, rest = divmod(self.weights.num_bytes, self.nodes)
        return part + (node < rest)


def constant(startup_ms: float) -> StartupSpec:
    """A start of which only the length is known."""
    return StartupSpec(boot=Duration(startup_ms))


def stream(seed: int, worker_id: int, node: int, phase: str) -> Random:
    """What a worker's phase is drawn from: nothing else that is drawn moves it."""
    return Random(f"{seed}/start-up/{worker_id}/{node}/{phase}")
