"""A space with aggregated and disaggregated clusters: which keys of a point count in its mode.

The keys that belong to the other mode are left out of a point, and so are those that both pools
have for themselves: they change nothing there, and points that differ in them alone are one.
"""

from collections.abc import Mapping
from typing import Any

from dynosim.config.cluster import AGG_KEYS, DISAGG_KEYS, POOL_ROLES
from dynosim.config.overrides import put

MODE = "cluster.mode"
AGG, DISAGG = "agg", "disagg"
_KEYS_OF_OTHER = {AGG: DISAGG_KEYS, DISAGG: AGG_KEYS}
_POOL_SECTIONS = ("engine", "router")
_POOL_VALUES = ("hardware", "timing")

Data = dict[str, Any]


def is_of_mode(key: str, mode: str) -> bool:
    """Whether a dotted key can stand in a cluster of a mode."""
    section, _, below = key.partition(".")
    return section != "cluster" or below.partition(".")[0] not in _KEYS_OF_OTHER[mode]


def mode_of(values: Mapping[str, Any], base: Data) -> str:
    """The mode of a point; an unknown one is left to the schema to refuse, and counts as agg."""
    cluster = values.get("cluster", base.get("cluster"))
    own = cluster.get("mode") if isinstance(cluster, dict) else None
    return DISAGG if values.get(MODE, own) == DISAGG else AGG


def data_at(values: Mapping[str, Any], base: Data) -> Data:
    """The run file's data at a point. Where the mode varies, the file may have keys of both."""
    if MODE in values:
        base = _without_other(base, mode_of(values, base))
    for key, value in values.items():
        base = put(base, tuple(key.split(".")), value)
    return base


def values_that_count(values: Mapping[str, Any], base: Data) -> Data:
    """Of a point's values those that its cluster obeys."""
    mode = mode_of(values, base)
    kept = dict(values)
    if MODE in values:
        kept = {key: value for key, value in values.items() if is_of_mode(key, mode)}
    if mode != DISAGG:
        return kept
    data = data_at(kept, base)
    return {key: value for key, value in kept.items() if not _is_of_each_pool(key, data)}


def _without_other(base: Data, mode: str) -> Data:
    cluster = base.get("cluster")
    if not isinstance(cluster, dict):
        return base
    others = _KEYS_OF_OTHER[mode]
    return {**base, "cluster": {key: value for key, value in cluster.items() if key not in others}}


def _is_of_each_pool(key: str, data: Data) -> bool:
    """Whether both pools state for themselves what a key of the run file would give them."""
    section, _, name = key.partition(".")
    if section not in (*_POOL_SECTIONS, *_POOL_VALUES) or (name and section in _POOL_VALUES):
        return False
    pools = [data["cluster"].get(role) for role in POOL_ROLES]
    stated = [pool.get(section) if isinstance(pool, dict) else None for pool in pools]
    if section in _POOL_VALUES:
        return all(value is not None for value in stated)
    return all(isinstance(keys, dict) and bool(name) and name in keys for keys in stated)
