"""Plain Python classes of users' own work with either build of the core, and mean the same."""

import random
from copy import copy, deepcopy
from dataclasses import fields
from typing import Any

import numpy as np
import pytest
from clusters import run_twin
from strategies import random_spec, random_trace

from dynosim.engine import cores
from dynosim.engine.vllm import VllmScheduler
from dynosim.records import RunResult
from dynosim.router.cost import WorkerOption
from dynosim.router.knobs import RouterSpec
from dynosim.router.request import RoutingRequest
from dynosim.router.spec import RoutingSpec
from dynosim.timing.formulas import FixedModel
from dynosim.timing.model import StepTimeModel
from dynosim.timing.scaled import ScaledModel
from dynosim.timing.step import StepShape


class PlainCore:
    """A core that inherits nothing: all that an engine asks of it goes to another one."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self._inner = VllmScheduler(*arguments, **options)
        self.num_asked = 0

    def __getattr__(self, name: str) -> Any:
        self.num_asked += 1
        return getattr(self._inner, name)


class Halting(StepTimeModel):
    """Step times whose class says what they are like."""

    source = "measured"
    description = "constant"
    decode_is_monotone = True
    ingress_ms = 2.5
    egress_ms = 1.25

    def step_ms(self, step: StepShape) -> float:
        return 30.0 * (step.num_prefills > 0) + 10.0 * (step.num_decodes > 0)


class Last:
    """A policy that takes the last option, and keeps copies of what it was asked."""

    def __init__(self, settings: RouterSpec, seed: int) -> None:
        self.asked: list[RoutingRequest] = []

    def choose(
        self, request: RoutingRequest, options: list[WorkerOption], now_ms: float
    ) -> WorkerOption:
        self.asked.append(deepcopy(request))
        assert self.asked[-1] == request and copy(request) == request
        return options[-1]


def a_run(mode: str = "kv", timing: StepTimeModel | None = None, **routing: Any) -> RunResult:
    rng = random.Random(5)
    trace = random_trace(rng)
    engine = random_spec(rng, trace)
    return run_twin(
        trace,
        engine=engine,
        timing=timing or FixedModel(30.0, 10.0),
        num_workers=3,
        routing=RoutingSpec(RouterSpec(engine.block_size, mode=mode), **routing),
    )


def assert_equal(ours: RunResult, theirs: RunResult) -> None:
    for part in ("requests", "steps"):
        one, other = getattr(ours, part), getattr(theirs, part)
        for field in fields(one):
            given, expected = getattr(one, field.name), getattr(other, field.name)
            np.testing.assert_array_equal(given, expected, err_msg=field.name)


@pytest.mark.parametrize("mode", ["kv", "round-robin", "least-loaded"])
def test_a_core_that_inherits_nothing(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = a_run(mode)
    made: list[PlainCore] = []

    def make(*arguments: Any, **options: Any) -> PlainCore:
        made.append(PlainCore(*arguments, **options))
        return made[-1]

    monkeypatch.setitem(cores.CORES, "vllm", make)
    assert_equal(a_run(mode), expected)
    assert len(made) == 3 and all(core.num_asked > 10 for core in made)


def test_step_times_that_are_told_by_their_class() -> None:
    own, ours = Halting(), FixedModel(30.0, 10.0)
    ours.ingress_ms, ours.egress_ms = 2.5, 1.25
    assert_equal(a_run(timing=own), a_run(timing=ours))
    scaled = ScaledModel(own, 2.0)
    assert (scaled.ingress_ms, scaled.egress_ms) == (2.5, 1.25)
    assert (scaled.source, scaled.decode_is_monotone) == ("measured", True)
    assert scaled.description == "2 x (constant)"
    assert scaled.step_ms(StepShape.of_prompts(1, 10)) == 60.0


def test_a_policy_that_keeps_what_it_was_asked() -> None:
    result = a_run(policy=Last)
    assert set(result.requests.worker_id.tolist()) == {2}


def test_shapes_of_steps_can_be_copied() -> None:
    shape = StepShape(1, 2, 3, 4, 5)
    copied = deepcopy(shape)
    assert copied == shape and copied is not shape
