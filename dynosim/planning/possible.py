"""Which events of a scenario can happen in a cluster of another size than the file's.

Contestants differ in their workers: what happens to a worker that one of them does not have happens
to nobody there.
"""

from collections import Counter
from collections.abc import Callable, Sequence

from dynosim.config.scenario import ScenarioEventConfig

Had = Callable[[str, float], int]
"""How many workers of a pool there have been by a time in ms, but for those that events start."""


def possible(events: Sequence[ScenarioEventConfig], had: Had) -> list[ScenarioEventConfig]:
    """The events, without those of single workers that there have not been by then."""
    launched: Counter[str] = Counter()
    kept = []
    for event in events:
        named = event.named_worker
        if named is not None:
            pool, number = named
            if number >= had(pool, event.at_s * 1e3) + launched[pool]:
                continue
        if event.launch is not None:
            launched[event.launch] += event.count
        kept.append(event)
    return kept
