"""Which labels and places the workers of a plan have: values go to them in turn, as in the twin."""

from dynosim.config import RunConfig
from dynosim.config.cluster import PoolRole


def place_options(plan: RunConfig, index: int, role: PoolRole | None = None) -> tuple[str, ...]:
    """Options of `serve worker` for one of the plan's workers; `index` counts those of its role."""
    cluster = plan.cluster
    options: list[str] = []
    for taint in cluster.taints_of(role):
        options += ["--taint", taint]
    for domain, values in cluster.topology_of(role).items():
        options += ["--topology", f"{domain}={values[index % len(values)]}"]
    return tuple(options)
