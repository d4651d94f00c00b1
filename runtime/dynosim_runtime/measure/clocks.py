"""Whether what is measured and what drives it go by the same clock.

Simulated engines may compute faster than their step times say. The load must be offered as much
faster, and measured times multiplied by as much; otherwise the comparison is of different clocks.
"""

from collections.abc import Sequence
from typing import Any

from dynosim.errors import ConfigError
from dynosim_runtime.measure.capacity import read_workers
from dynosim_runtime.measure.client import CompletionsClient
from dynosim_runtime.measure.counters import read_counters


async def check_clocks(client: CompletionsClient, speedup: float) -> None:
    """Raises: ConfigError if what serves at the client's address tells another speed-up."""
    told = reported_speedups(await read_workers(client))
    if not told:
        counters = await read_counters(client)
        told = () if counters is None or counters.speedup is None else (counters.speedup,)
    others = [value for value in told if value != speedup]
    if not others:
        return
    if len(told) > 1:
        raise ConfigError(
            f"{client.url}: its workers compute {', '.join(f'{value:g}' for value in told)} times "
            "faster than their step times say: they have no clock in common (give all the same "
            "--speedup)"
        )
    raise ConfigError(
        f"--speedup {speedup:g}: what serves at {client.url} computes {told[0]:g} times faster "
        f"than its step times say (use --speedup {told[0]:g})"
    )


def reported_speedups(rows: Sequence[Any]) -> tuple[float, ...]:
    """How many times faster than their step times workers say that they compute, each once."""
    told = {row.get("speedup") for row in rows if isinstance(row, dict)}
    return tuple(sorted(value for value in told if isinstance(value, int | float) and value > 0))
