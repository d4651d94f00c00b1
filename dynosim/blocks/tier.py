"""Where a copy of a KV block lies."""

from enum import IntEnum


class Tier(IntEnum):
    """A kind of memory for KV blocks, fastest first."""

    DEVICE = 0
    HOST = 1
    DISK = 2
    REMOTE = 3  # a store that all workers reach


SLOWER = (Tier.HOST, Tier.DISK, Tier.REMOTE)
"""All but the device, fastest first."""
