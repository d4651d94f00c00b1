"""Seeded random streams, one per purpose, the same on every platform."""

from typing import TYPE_CHECKING
from zlib import crc32

from dynosim.errors import ConfigError

if TYPE_CHECKING:
    from numpy.random import Generator


def stream(seed: int, purpose: str) -> "Generator":
    """The generator of one purpose: draws for one never shift those for another.

    Raises: ConfigError if `seed` is negative.
    """
    from numpy.random import PCG64, Generator, SeedSequence

    if seed < 0:
        raise ConfigError(f"seed: expected an integer >= 0, got {seed}")
    return Generator(PCG64(SeedSequence([seed, crc32(purpose.encode())])))
