"""Which configurations are the same plan, written in other words."""

from typing import Any

from dynosim.config.schema import RunConfig
from dynosim.files.digest import digest

_OF_POOLS = {"engine", "router", "hardware", "timing"}


def plan_data(config: RunConfig) -> dict[str, Any]:
    """A configuration without its name; of a disaggregated one what each of its pools comes to.

    So it does not matter whether a key is written for both pools or for each of them.
    """
    data: dict[str, Any] = config.model_dump(mode="json", exclude={"name"})
    if not config.cluster.is_disagg:
        return data
    cluster = {key: value for key, value in data["cluster"].items() if value is not None}
    for role in ("prefill", "decode"):
        cluster[role] = config.for_pool(role).model_dump(
            mode="json", include={*_OF_POOLS, "cluster"}
        )
    return {key: value for key, value in data.items() if key not in _OF_POOLS} | {
        "cluster": cluster
    }


def plan_digest(config: RunConfig) -> str:
    """Equal for configurations that are the same plan."""
    return digest(plan_data(config))
