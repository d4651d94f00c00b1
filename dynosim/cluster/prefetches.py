"""Whether a cluster can load KV ahead of requests, as a trace asks it to."""

import numpy as np

from dynosim.cluster.spec import ClusterSpec
from dynosim.errors import ConfigError
from dynosim.records import Trace


def check_prefetches(trace: Trace, cluster: ClusterSpec) -> None:
    """Refuse prefetches where there is nothing to load from.

    Raises: ConfigError naming the first such row.
    """
    if trace.is_prefetch is None:
        return
    row = int(np.flatnonzero(trace.is_prefetch)[0])
    if all(pool.tiers is None for pool in cluster.pools):
        raise ConfigError(
            f"{trace.source or 'trace'}: row {row} is a prefetch: there is no tier to load from "
            "(add cluster.tiers, or leave out workload.agents.prefetch_lead_ms, or the rows with "
            "prefetch)"
        )
