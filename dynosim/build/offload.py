"""How engines are told to keep KV in their host's memory, as `cluster.tiers` says.

The twin's host tier is that of vLLM's OffloadingConnector, so that is what is started. What else a
plan may have below the device has no counterpart there: such a plan is simulated, not served.
"""

from typing import Any

from dynosim.build.engine_command import kv_transfer_settings
from dynosim.build.tiers import host_bytes
from dynosim.config.cluster import PoolRole
from dynosim.config.schema import RunConfig
from dynosim.errors import ConfigError

KVBM_SETTINGS = {
    "kv_connector": "DynamoConnector",
    "kv_role": "kv_both",
    "kv_connector_module_path": "kvbm.vllm_integration.connector",
}
"""What vLLM's `--kv-transfer-config` takes to keep KV by Dynamo's KVBM in place of its own."""


def check_vllm_tiers(plan: RunConfig, *, on_cpu: bool = False) -> None:
    """Whether vLLM has the tiers of a plan, or of a pool; `on_cpu`, on its CPU backend.

    Raises: ConfigError naming the key that it does not have, and what to do.
    """
    tiers = plan.cluster.tiers
    if tiers is None:
        return
    if on_cpu or plan.cluster.cpu_workers:
        key = "cluster.tiers" if on_cpu else "cluster.cpu_workers"
        raise ConfigError(
            f"{key}: vLLM keeps KV in its host's memory on GPUs only, not on CPUs (--set "
            "cluster.tiers=null, or use GPUs only; simulated engines have the tier: --mock)"
        )
    key_beyond = tiers.beyond_own_host()
    if key_beyond is not None:
        raise ConfigError(
            f"cluster.tiers.{key_beyond}: a vLLM engine is started with a host tier of its own and "
            "nothing beyond (state `host` alone, or simulate the plan with `dynosim run`)"
        )
    if tiers.host is not None and tiers.host.policy == "priority":
        raise ConfigError(
            "cluster.tiers.host.policy: priority, but a vLLM engine's host tier heeds nothing that "
            "requests say of their blocks (set lru or arc, or simulate the plan with `dynosim run`)"
        )
    if not plan.pools()[0].engine.enable_prefix_caching:
        raise ConfigError(
            "cluster.tiers: without engine.enable_prefix_caching nothing is found again (set it, "
            "or remove the tiers)"
        )
    offload_settings(plan.pools()[0])


def refuse_tiers(plan: RunConfig, engine: str) -> None:
    """Raises: ConfigError if a plan has tiers; the engines of this kind are started without."""
    if plan.cluster.tiers is not None:
        raise ConfigError(
            f"cluster.tiers: {engine} engines are started without tiers here (--engine vllm, or "
            "--set cluster.tiers=null)"
        )


def offload_settings(pool: RunConfig) -> dict[str, Any] | None:
    """What vLLM's `--kv-transfer-config` takes for the host tier of a pool; None: it has none.

    The pool must have been checked by `check_vllm_tiers`. Raises: ConfigError, see `host_bytes`.
    """
    tiers = pool.cluster.tiers
    if tiers is None or tiers.host is None:
        return None
    host = tiers.host
    return {
        "kv_connector": "OffloadingConnector",
        "kv_role": "kv_both",
        "kv_connector_extra_config": {
            "cpu_bytes_to_use": host_bytes(pool),
            "eviction_policy": host.policy,
            "store_threshold": host.store_threshold,
            "offload_prompt_only": host.prompt_only,
            # an event of a block in the host's memory names its tokens, which the router needs
            "self_describing_kv_events": True,
        },
    }


def connector_settings(
    pool: RunConfig,
    role: PoolRole | None,
    *,
    load_failure_policy: str = "fail",
    buffer_device: str = "cuda",
) -> dict[str, Any] | None:
    """What vLLM's `--kv-transfer-config` takes of an engine of a pool; None: it needs none.

    An engine that hands its KV over and keeps it does both: vLLM loads from the first connector
    that has something, and gives to all. `role` is None for engines that serve whole requests.
    """
    kept = offload_settings(pool)
    if role is None:
        return kept
    handed = kv_transfer_settings(
        role, load_failure_policy=load_failure_policy, buffer_device=buffer_device
    )
    if kept is None:
        return handed
    return {
        "kv_connector": "MultiConnector",
        "kv_role": handed["kv_role"],
        "kv_load_failure_policy": load_failure_policy,
        "kv_connector_extra_config": {"connectors": [handed, kept]},
    }
