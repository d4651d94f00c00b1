"""Which labels and places the workers of a plan have: values go to them in turn, as in the twin."""

from dynosim.config import RunConfig


def place_options(plan: RunConfig, index: int) -> tuple[str, ...]:
    """Options of `serve worker` for one of the plan's workers; `index` counts them from 0."""
    cluster = plan.cluster
    options: list[str] = []
    for taint in cluster.taints:
        options += ["--taint", taint]
    for domain, values in cluster.topology.items():
        options += ["--topology", f"{domain}={values[index % len(values)]}"]
    return tuple(options)
