"""From the `router:` section to the router: every key has its effect, and no other."""

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from dynosim.build.routing import load_policy, router_spec, routing_spec
from dynosim.config import RunConfig
from dynosim.config.router import RouterConfig
from dynosim.errors import ConfigError
from dynosim.router.busy import BusyThresholds
from dynosim.router.classes import PolicyClass
from dynosim.router.knobs import AffinitySpec, CostSpec, LoadSpec, RouterSpec
from dynosim.router.spec import DelaySpec, RoutingSpec


class Ready:
    """An estimator."""

    def predict_ms(self, new_tokens: int, cached_tokens: int) -> float | None:
        return None


READY = Ready()


def spec_of(**keys: Any) -> RoutingSpec:
    return routing_spec(RouterConfig(**keys), block_size=8, seed=3, estimator=READY)


def flat(spec: RoutingSpec) -> dict[str, Any]:
    """All there is in it, by dotted name."""
    found: dict[str, Any] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for key, inside in value.items():
                walk(f"{name}.{key}" if name else key, inside)
        else:
            found[name] = value

    plain = {field: getattr(spec, field) for field in spec.__slots__ if field != "settings"}
    plain["events"] = asdict(spec.events)
    settings = {name: getattr(spec.settings, name) for name in RouterSpec.__slots__}
    for name in ("cost", "load", "busy"):
        settings[name] = asdict(settings[name])
    walk("", {**plain, "settings": settings})
    return found


def test_defaults_are_those_of_the_parts() -> None:
    spec = spec_of()
    assert spec.settings == RouterSpec(8, mode="round-robin", seed=3)
    assert spec == RoutingSpec(spec.settings)
    assert spec.settings.cost == CostSpec() and spec.settings.load == LoadSpec()
    assert spec.settings.busy == BusyThresholds() and spec.events == DelaySpec()
    assert spec.settings == router_spec(RouterConfig(), block_size=8, seed=3)


EFFECTS: dict[str, tuple[Any, dict[str, Any]]] = {
    "mode": ("power-of-two", {"settings.mode": "power-of-two"}),
    "overlap_score_credit": (0.5, {"settings.cost.overlap_score_credit": 0.5}),
    "overlap_score_credit_decay": (0.5, {"settings.cost.overlap_score_credit_decay": 0.5}),
    "prefill_load_scale": (2.0, {"settings.cost.prefill_load_scale": 2.0}),
    "host_cache_hit_weight": (0.5, {"settings.cost.host_cache_hit_weight": 0.5}),
    "disk_cache_hit_weight": (0.5, {"settings.cost.disk_cache_hit_weight": 0.5}),
    "shared_cache_multiplier": (0.5, {"settings.cost.shared_cache_multiplier": 0.5}),
    "active_request_weight": (0.5, {"settings.cost.active_request_weight": 0.5}),
    "temperature": (0.5, {"settings.cost.temperature": 0.5}),
    "assume_kv_reuse": (False, {"settings.cost.assume_kv_reuse": False}),
    "track_prefill_tokens": (False, {"settings.cost.track_prefill_tokens": False}),
    "track_output_blocks": (True, {"settings.load.track_output_blocks": True}),
    "track_active_blocks": (False, {"settings.load.track_active_blocks": False}),
    "stale_after_ms": (5.0, {"settings.load.stale_after_ms": 5.0}),
    "prefill_load_model": ("timing", {"estimator": READY}),
    "cuda_to_cpu_ratio": (4.0, {"settings.cuda_to_cpu_ratio": 4.0}),
    "use_kv_events": (False, {"use_kv_events": False}),
    "approximate_cache_policy": ("lru", {"approximate_cache_policy": "lru"}),
    "ttl_ms": (5.0, {"ttl_ms": 5.0}),
    "predicted_ttl_ms": (5.0, {"predicted_ttl_ms": 5.0}),
    "index": ("radix", {"index": "radix"}),
    "events": (
        {"delay_ms": 1.0, "jitter_ms": 2.0, "loss": 0.25, "recovery_ms": 4.0},
        {"events.delay_ms": 1.0, "events.jitter_ms": 2.0, "events.loss": 0.25,
         "events.recovery_ms": 4.0},
    ),
    "frontends": (3, {"frontends": 3}),
    "hop_ms": (2.5, {"hop_ms": 2.5}),
    "replica_sync_delay_ms": (5.0, {"sync_delay_ms": 5.0}),
    "queue_threshold": (
        0.5, {"settings.classes": (PolicyClass(prefill_busy_threshold_frac=0.5),)}
    ),
    "queue_policy": ("wspt", {}),  # of a queue that is not there
    "policy_classes": (
        [{"name": "a"}], {"settings.classes": (PolicyClass("a"),)}
    ),
    "active_decode_blocks_threshold": (
        0.5, {"settings.busy.active_decode_blocks_threshold": 0.5}
    ),
    "active_prefill_tokens_threshold": (
        5, {"settings.busy.active_prefill_tokens_threshold": 5}
    ),
    "active_prefill_tokens_threshold_frac": (
        0.5, {"settings.busy.active_prefill_tokens_threshold_frac": 0.5}
    ),
    "session_affinity_ttl_ms": (5.0, {"settings.affinity": AffinitySpec(5.0, "hard")}),
    "session_affinity_mode": ("soft", {}),  # of sessions that do not stay
}  # fmt: skip
SPECIAL = {"policy", "load_aware"}


@pytest.mark.parametrize("key", sorted(EFFECTS))
def test_a_key_changes_what_it_is_about_and_nothing_else(key: str) -> None:
    value, changes = EFFECTS[key]
    before = flat(spec_of())
    assert flat(spec_of(**{key: value})) == before | changes
    assert all(before[name] != changed for name, changed in changes.items())


def test_no_key_was_forgotten() -> None:
    assert set(EFFECTS) | SPECIAL == set(RouterConfig.model_fields)


def test_load_aware_routing_sees_no_caches_and_assumes_no_reuse() -> None:
    base = flat(spec_of(mode="kv"))
    assert flat(spec_of(mode="kv", load_aware=True)) == base | {
        "settings.cost.overlap_score_credit": 0.0,
        "settings.cost.assume_kv_reuse": False,
        "use_kv_events": False,
    }


def test_a_queue_threshold_makes_one_class_with_the_queues_policy() -> None:
    assert spec_of(queue_threshold=0.0, queue_policy="lcfs").settings.classes == (
        PolicyClass(queue_policy="lcfs", prefill_busy_threshold_frac=0.0),
    )


def test_sessions_stay_as_they_are_told_to() -> None:
    made = spec_of(session_affinity_ttl_ms=7.0, session_affinity_mode="soft")
    assert made.settings.affinity == AffinitySpec(7.0, "soft")


def test_every_key_of_a_policy_class_is_taken_over() -> None:
    given = {
        "name": "a",
        "queue_policy": "wspt",
        "quantum": 5,
        "prefill_busy_threshold": 6,
        "prefill_busy_threshold_frac": 0.7,
        "busy_worker_ratio": 0.8,
        "request_queue_limit_per_worker": 9,
        "raw_isl_token_queue_limit_per_worker": 10,
        "cached_token_queue_limit_per_worker": 11,
        "policy_family": "f",
        "min_uncached_tokens": 12,
        "max_uncached_tokens": 13,
    }
    assert set(given) == set(PolicyClass.__slots__)
    classes = spec_of(policy_classes=[given, {"name": "b"}]).settings.classes
    assert classes == (PolicyClass(**given), PolicyClass("b"))


# ---- policies of one's own -----------------------------------------------------------------------

MODULE = """
from math import sqrt
from collections import OrderedDict

class Good:
    def __init__(self, settings, seed):
        self.made_of = settings, seed
    def choose(self, request, options, now_ms): ...

class Idle: ...

number = 5
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "routing_config_policies.py").write_text(MODULE)
    (tmp_path / "routing_config_broken.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("routing_config_policies", "routing_config_broken"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return "routing_config_policies"


def test_a_policy_is_made_of_the_settings_and_a_seed(module: str) -> None:
    spec = spec_of(mode="kv", policy=f"{module}:Good")
    assert spec.policy is load_policy(f"{module}:Good")
    assert spec.policy is not None
    assert spec.policy(spec.settings, 7).made_of == (spec.settings, 7)  # type: ignore[attr-defined]
    assert spec.settings.mode == "kv"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("routing_config_nowhere:Good", "cannot import 'routing_config_nowhere' .*PYTHONPATH"),
        (
            "routing_config_broken:Good",
            "fails on import: ZeroDivisionError",
        ),
        ("routing_config_policies:Gud", "has no 'Gud'; it has Good, Idle$"),
        ("routing_config_policies:Idle", "no method choose"),
        ("routing_config_policies:number", "no method choose"),
    ],
)
def test_a_policy_that_cannot_be_had_is_named(module: str, name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_policy(name)


def test_routers_of_two_pools_count_what_matters_there() -> None:
    """As NVIDIA Dynamo sets them: what decode workers hold, and what prefill workers compute."""
    plan = RunConfig.of(
        {
            "engine": {"num_gpu_blocks": 100, "max_model_len": 512},
            "timing": {"kind": "linear", "base_ms": 10.0},
            "workload": {"synthetic": {"requests": 1, "isl": 10, "osl": 2, "rate_rps": 1}},
            "router": {"mode": "kv"},
            "cluster": {
                "mode": "disagg",
                "transfer": {"preset": "ib", "kv_bytes_per_token": 1000},
                "decode": {"router": {"assume_kv_reuse": True}},
            },
        }
    )
    prefill, decode = plan.for_pool("prefill").router, plan.for_pool("decode").router
    assert plan.router.track_active_blocks and decode.track_active_blocks
    assert not prefill.track_active_blocks and prefill.track_prefill_tokens
    assert not decode.track_prefill_tokens and decode.overlap_score_credit == 0
    assert decode.assume_kv_reuse  # as stated for that pool
