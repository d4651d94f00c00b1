"""Priority classes of a generated workload: which part of the sessions has which priority."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from dynosim.errors import ConfigError
from dynosim.records import IntArray
from dynosim.workload.streams import stream

STREAM = "priority"


@dataclass(frozen=True, slots=True)
class PriorityShare:
    """Sessions of one priority. Shares are relative to each other."""

    priority: int  # lower is served earlier
    share: float

    @classmethod
    def of(cls, value: Any, key: str) -> "PriorityShare":
        """From a mapping or an object that has the fields. Raises: ConfigError naming `key`."""
        if isinstance(value, cls):
            return value
        if isinstance(value, dict):
            unknown = sorted(value.keys() - {"priority", "share"})
            if unknown or len(value) < 2:
                what = f"unknown key {unknown[0]}" if unknown else "a key is missing"
                raise ConfigError(f"{key}: {what}: expected {{priority: ..., share: ...}}")
            return cls(value["priority"], value["share"])
        return cls(value.priority, value.share)


def check_priorities(shares: Iterable[PriorityShare]) -> None:
    """Raises: ConfigError for a share that is none, or if all are 0."""
    given = list(shares)
    for place, one in enumerate(given):
        if not 0.0 <= one.share < float("inf"):
            raise ConfigError(f"priorities[{place}].share: expected >= 0, got {one.share:g}")
    if given and not sum(one.share for one in given):
        raise ConfigError("priorities: all shares are 0 (let one be more)")


def draw_priorities(shares: tuple[PriorityShare, ...], size: int, seed: int) -> IntArray | None:
    """The priority of each session (size,); None where all are alike: 0."""
    if not shares:
        return None
    edges = np.cumsum([one.share for one in shares])
    points = stream(seed, STREAM).random(size) * edges[-1]
    place = np.minimum(np.searchsorted(edges, points, side="right"), len(shares) - 1)
    drawn: IntArray = np.array([one.priority for one in shares], np.int64)[place]
    return drawn
