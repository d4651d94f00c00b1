"""Rolling updates: replacing the workers of a pool by those of a new generation, few at a time.

The arithmetic is that of Kubernetes Deployments: never more than the wanted number plus the surge,
never fewer ready ones than the wanted number less the unavailable. Who drains still holds GPUs, so
it counts as there until it is gone.
"""

from dataclasses import dataclass
from enum import Enum
from math import ceil, floor
from typing import Final

from dynosim.errors import ConfigError

Amount = int | float
"""Workers if an `int`, a share of the wanted number from 0 to 1 if a `float`."""


class UpdateStatus(Enum):
    """How far an update is."""

    PENDING = "pending"
    IN_PROGRESS = "in progress"
    COMPLETED = "completed"


@dataclass(frozen=True, slots=True)
class RollingLimits:
    """How many workers there may be more, and fewer that are ready, than are wanted.

    `surge` is rounded up to whole workers, `unavailable` down; where both come to nothing, one may
    be unavailable, or no update would ever begin.

    Raises: ConfigError for an amount that is negative or a share above 1, or if both are 0.
    """

    surge: Amount = 0.25
    unavailable: Amount = 0.25

    def __post_init__(self) -> None:
        for key, amount in (("max_surge", self.surge), ("max_unavailable", self.unavailable)):
            if amount < 0 or (isinstance(amount, float) and amount > 1):
                raise ConfigError(
                    f"{key}: {amount:g} (a number of workers, or a share from 0 to 1)"
                )
        if not self.surge and not self.unavailable:
            raise ConfigError(
                "max_surge: 0, as is max_unavailable, so no worker could ever be replaced (raise "
                "one of them)"
            )

    def workers(self, wanted: int) -> tuple[int, int]:
        """Surge and unavailable of a pool that is to have `wanted` workers."""
        surge = self.surge if isinstance(self.surge, int) else ceil(self.surge * wanted - 1e-9)
        unavailable = self.unavailable
        if not isinstance(unavailable, int):
            unavailable = floor(unavailable * wanted + 1e-9)
        if surge == 0 and unavailable == 0:
            unavailable = 1
        return surge, unavailable


USUAL_LIMITS: Final = RollingLimits()


@dataclass(frozen=True, slots=True)
class GenerationCounts:
    """The workers of a pool of one generation: starting, ready and draining ones."""

    starting: int = 0
    ready: int = 0
    draining: int = 0

    @property
    def staying(self) -> int:
        """Those not told to go."""
        return self.starting + self.ready

    @property
    def present(self) -> int:
        """Those that hold GPUs."""
        return self.staying + self.draining


@dataclass(frozen=True, slots=True)
class Moves:
    """What to do now: launch new workers; drain old ones, those that are starting first."""

    num_launched: int = 0
    num_drained_starting: int = 0
    num_drained_ready: int = 0


def next_moves(
    old: GenerationCounts, new: GenerationCounts, wanted: int, limits: RollingLimits
) -> Moves:
    """The next moves of an update that ends with `wanted` new workers and no old one.

    Old workers that are not ready yet serve nobody and go at once.
    """
    surge, unavailable = limits.workers(wanted)
    room = wanted + surge - old.present - new.present
    launched = max(0, min(wanted - new.staying, room))
    spare = old.ready + new.ready - max(0, wanted - unavailable)
    # One too many of the old goes even where the new are not all there: that makes room for them.
    return Moves(launched, old.starting, max(0, min(old.ready, spare)))


def status_of(old: GenerationCounts, new: GenerationCounts, wanted: int) -> UpdateStatus:
    """How far an update of that many workers is."""
    if old.present == 0 and new.ready == wanted and new.starting == 0:
        return UpdateStatus.COMPLETED
    return UpdateStatus.IN_PROGRESS if new.present or old.draining else UpdateStatus.PENDING
