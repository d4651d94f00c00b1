"""The plan of the house: few modules at the root, one home for a default, one class for a name."""

import ast
from collections import defaultdict
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, get_args

import pytest

from dynosim.build.engine import GIVEN_ELSEWHERE, KNOBS, engine_spec
from dynosim.build.routing import router_spec
from dynosim.cluster.scaling import ScalingSpec
from dynosim.config import EngineConfig
from dynosim.config.autoscalers import (
    ConcurrencyConfig,
    KedaConfig,
    KedaTriggerConfig,
    ScalingRulesConfig,
)
from dynosim.config.controllers import HpaConfig, LoadPredictorConfig, PlannerConfig, ScalingConfig
from dynosim.config.router import EventConfig, PolicyClassConfig, RouterConfig
from dynosim.engine.cores import CORES
from dynosim.engine.spec import EngineSpec
from dynosim.planner.concurrency import ConcurrencySpec
from dynosim.planner.forecast import ForecastSpec
from dynosim.planner.hpa import HpaSpec
from dynosim.planner.keda import KedaSpec, KedaTrigger
from dynosim.planner.planner_spec import PlannerSpec
from dynosim.planner.scaling_rules import ScalingRules
from dynosim.router.busy import BusyThresholds
from dynosim.router.classes import PolicyClass
from dynosim.router.knobs import CostSpec, LoadSpec, RouterSpec
from dynosim.router.spec import DelaySpec, RoutingSpec
from dynosim.timing.protocols import TimedEngine

ROOT = Path(__file__).parents[2]
BY_OTHERS = [(PlannerSpec, "mode"), (PlannerSpec, "ttft_ms"), (PlannerSpec, "itl_ms")]
"""What is as the cluster is, or as the section `sla` says, where a planner does not say it."""
PACKAGES = (ROOT / "dynosim", ROOT / "runtime" / "dynosim_runtime")


def test_few_modules_stand_at_the_root() -> None:
    modules = {path.stem for path in (ROOT / "dynosim").glob("*.py")}
    assert modules == {"__init__", "__main__", "atomic", "errors", "records"}


def test_no_public_class_name_stands_twice() -> None:
    homes: dict[str, list[str]] = defaultdict(list)
    for package in PACKAGES:
        for path in sorted(package.rglob("*.py")):
            for node in ast.parse(path.read_text()).body:
                if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                    homes[node.name].append(str(path.relative_to(ROOT)))
    assert {name: paths for name, paths in homes.items() if len(paths) > 1} == {}


# ---- each default stands once, and each knob is handed over --------------------------------------


def test_every_key_of_an_engine_is_obeyed_by_its_scheduler_or_by_what_times_it() -> None:
    timed = {name for name in vars(TimedEngine) if not name.startswith("_")}
    between_ranks = {"rank_balancing"}  # see `RankSpec`
    assert set(KNOBS) | timed | between_ranks == set(EngineConfig.model_fields)
    worked_out = {"num_gpu_blocks", "max_model_len", *GIVEN_ELSEWHERE}
    assert {knob.name for knob in fields(EngineSpec)} == set(KNOBS) | worked_out


def test_every_kind_of_engine_has_its_core() -> None:
    assert get_args(EngineConfig.model_fields["kind"].annotation) == tuple(CORES)


BY_VERSION = "async_scheduling"
"""Null in a section; what it comes to depends on the engine's version."""


def test_an_engine_is_what_its_section_says() -> None:
    plain = engine_spec(EngineConfig(), num_gpu_blocks=9, max_model_len=8)
    newest = EngineSpec(num_gpu_blocks=9, max_model_len=8, async_scheduling=True)
    assert plain == newest
    for name in KNOBS:
        value = _other(getattr(plain, name))
        changed = EngineConfig.model_construct(**{name: value})
        spec = engine_spec(changed, num_gpu_blocks=9, max_model_len=8)
        assert getattr(spec, name) == value, name


def _other(value: Any) -> Any:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return "priority"
    return (value or 0) + 1


@pytest.mark.parametrize(
    ("spec", "section"),
    [
        (EngineSpec, EngineConfig),
        (CostSpec, RouterConfig),
        (LoadSpec, RouterConfig),
        (RouterSpec, RouterConfig),
        (RoutingSpec, RouterConfig),
        (BusyThresholds, RouterConfig),
        (PolicyClass, PolicyClassConfig),
        (DelaySpec, EventConfig),
        (PlannerSpec, PlannerConfig),
        (ForecastSpec, LoadPredictorConfig),
        (HpaSpec, HpaConfig),
        (KedaSpec, KedaConfig),
        (KedaTrigger, KedaTriggerConfig),
        (ScalingRules, ScalingRulesConfig),
        (ConcurrencySpec, ConcurrencyConfig),
        (ScalingSpec, ScalingConfig),
    ],
)
def test_what_section_and_spec_share_has_one_default(spec: type, section: Any) -> None:
    keys = section.model_fields
    for knob in fields(spec):
        is_key = knob.name in keys and not keys[knob.name].is_required()
        is_key = is_key and (spec, knob.name) not in BY_OTHERS
        if knob.default is not MISSING and is_key and knob.name != BY_VERSION:
            assert keys[knob.name].default == knob.default, knob.name


def test_a_router_is_what_its_section_says() -> None:
    plain = router_spec(RouterConfig(), block_size=4, seed=0)
    assert (plain.cost, plain.load, plain.busy) == (
        CostSpec(),
        LoadSpec(),
        BusyThresholds(),
    )
    for part in ("cost", "load", "busy"):
        for knob in fields(getattr(plain, part)):
            value = _other(getattr(getattr(plain, part), knob.name))
            changed = RouterConfig.model_construct(**{knob.name: value})
            found = router_spec(changed, block_size=4, seed=0)
            assert getattr(getattr(found, part), knob.name) == value, knob.name
