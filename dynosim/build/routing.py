"""From the `router:` section to the router: the one place that knows both."""

import importlib
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from dynosim.build.knobs import from_section
from dynosim.config.cluster import TiersConfig
from dynosim.config.router import RouterConfig
from dynosim.errors import ConfigError
from dynosim.router.busy import BusyThresholds
from dynosim.router.classes import PolicyClass
from dynosim.router.knobs import AffinitySpec, CostSpec, LoadSpec, RouterSpec
from dynosim.router.spec import DelaySpec, RoutingSpec

if TYPE_CHECKING:
    from dynosim.router.policy import PlacementPolicy
    from dynosim.router.prefill_load import PrefillEstimator

_BLIND = {"overlap_score_credit": 0.0, "shared_cache_multiplier": 0.0, "assume_kv_reuse": False}
"""How `load_aware` weighs caches: not at all."""

PolicyFactory = Callable[[RouterSpec, int], "PlacementPolicy"]


def routing_spec(
    router: RouterConfig,
    *,
    block_size: int,
    seed: int,
    estimator: "PrefillEstimator | None" = None,
    has_slower_tiers: bool = False,
) -> RoutingSpec:
    """How a simulated cluster routes under this section.

    `has_slower_tiers`: its engines keep KV in more than the memory of their devices.

    Raises: ConfigError if a policy class cannot be imported.
    """
    return from_section(
        RoutingSpec,
        router,
        settings=router_spec(router, block_size=block_size, seed=seed),
        use_kv_events=router.use_kv_events and not router.load_aware,
        events=from_section(DelaySpec, router.events),
        sync_delay_ms=router.replica_sync_delay_ms,
        policy=None if router.policy is None else load_policy(router.policy),
        estimator=estimator if router.prefill_load_model == "timing" else None,
        has_slower_tiers=has_slower_tiers,
    )


def check_tiers(router: RouterConfig, tiers: TiersConfig | None) -> None:
    """Tiers that no simulated worker has for itself cannot be weighed: what is shared favours none.

    Live routers weigh whatever their engines publish. Raises: ConfigError.
    """
    if router.shared_cache_multiplier and (tiers is None or tiers.remote is None):
        raise ConfigError(
            "router.shared_cache_multiplier: there is no store that all workers share (add "
            "cluster.tiers.remote, or --set router.shared_cache_multiplier=0)"
        )
    for name, tier in (("host_cache_hit_weight", "host"), ("disk_cache_hit_weight", "disk")):
        default = RouterConfig.model_fields[name].default
        section = None if tiers is None else getattr(tiers, tier)
        if getattr(router, name) != default and (section is None or section.scope != "worker"):
            raise ConfigError(
                f"router.{name}: no worker has such a tier for itself, to be weighed (add "
                f"cluster.tiers.{tier}, or --set router.{name}={default})"
            )


def router_spec(router: RouterConfig, *, block_size: int, seed: int) -> RouterSpec:
    """The router's own settings, the same in twin and live layer."""
    affinity = None
    if router.session_affinity_ttl_ms is not None:
        affinity = AffinitySpec(router.session_affinity_ttl_ms, router.session_affinity_mode)
    return from_section(
        RouterSpec,
        router,
        block_size=block_size,
        cost=from_section(CostSpec, router, **(_BLIND if router.load_aware else {})),
        load=from_section(LoadSpec, router),
        classes=_policy_classes(router),
        busy=from_section(BusyThresholds, router),
        affinity=affinity,
        seed=seed,
    )


def load_policy(name: str) -> PolicyFactory:
    """The class `package.module:Class`; called with the router's settings and a seed.

    Raises: ConfigError telling what cannot be imported, or what the class lacks.
    """
    module_name, _, class_name = name.partition(":")
    if "" not in sys.path:  # a command's path has its own folder in place of the current one
        sys.path.append("")
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        raise ConfigError(
            f"router.policy: cannot import {module_name!r} ({error}); it must be in the current "
            "folder or on PYTHONPATH"
        ) from None
    except Exception as error:
        kind = type(error).__name__
        raise ConfigError(
            f"router.policy: {module_name!r} fails on import: {kind}: {error}"
        ) from None
    found: Any = getattr(module, class_name, None)
    if found is None:
        import inspect

        classes = [n for n, c in inspect.getmembers(module, inspect.isclass)
                   if c.__module__ == module.__name__]  # fmt: skip
        known = ", ".join(classes) or "no class"
        raise ConfigError(f"router.policy: {module_name} has no {class_name!r}; it has {known}")
    if not callable(getattr(found, "choose", None)):
        raise ConfigError(
            f"router.policy: {name} has no method choose(request, options, now_ms); "
            "see dynosim.router.policy"
        )
    factory: PolicyFactory = found
    return factory


def _policy_classes(router: RouterConfig) -> tuple[PolicyClass, ...]:
    if router.policy_classes:
        return tuple(from_section(PolicyClass, entry) for entry in router.policy_classes)
    if router.queue_threshold is None:
        return ()
    threshold = router.queue_threshold
    policy = router.queue_policy
    return (PolicyClass(queue_policy=policy, prefill_busy_threshold_frac=threshold),)
