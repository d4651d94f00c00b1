"""vLLM's scheduler is an engine core; what is broken is none."""

import random
from typing import Any

import pytest
from hypothesis import given

from dynosim.engine.plan import StepPlan
from dynosim.engine.sequence import DECODING, FINISHED, Sequence
from dynosim.engine.spec import EngineSpec
from dynosim.engine.vllm import VllmScheduler
from dynosim.testing import law
from dynosim.testing.engine_core import BLOCK, SEEDS, EngineCoreContract, MakeCore, RandomRun


def vllm(spec: EngineSpec, extent_blocks: list[int], publishes: bool) -> VllmScheduler:
    return VllmScheduler(spec, extent_blocks, publish_events=publishes)


def vllm_in_order(spec: EngineSpec, extent_blocks: list[int], publishes: bool) -> VllmScheduler:
    return VllmScheduler(spec, extent_blocks, keep_rows=True, publish_events=publishes)


def vllm_selective(spec: EngineSpec, extent_blocks: list[int], publishes: bool) -> VllmScheduler:
    """Publishes what one extent in two does: no generated block is among them."""
    announced = [number % 2 == 0 for number in range(len(extent_blocks))]
    return VllmScheduler(spec, extent_blocks, publish_events=publishes, announced=announced)


def covered(sequence: Sequence, step: int) -> int:
    """Tokens that a request has computed, or was given blocks for by a load."""
    computed = sequence.anchor + step if sequence.state == DECODING else sequence.num_computed
    return max(computed, sequence.reserved_tokens)


class TestVllm(EngineCoreContract):
    @pytest.fixture(scope="class", params=[vllm, vllm_in_order, vllm_selective])
    @classmethod
    def make_core(cls, request: pytest.FixtureRequest) -> Any:
        return request.param

    @law(100)
    @given(seed=SEEDS)
    def test_no_block_is_taken_beyond_what_requests_have_computed_or_load(
        self, make_core: Any, seed: int
    ) -> None:
        run = RandomRun(make_core, random.Random(seed))
        core, pool = run.core, run.core.pool
        for _ in run.steps():
            assert pool.blank_blocks >= 0 and pool.idle_blocks >= 0
            holders = [s for s in run.requests if s in core.running or core.holds(s)]
            holders += [s for s in run.requests if s.reserved_tokens > 0 and s not in holders]
            held = sum(-(-covered(s, core.decodes.step) // BLOCK) for s in holders)
            held += core.deferred_blocks
            assert run.spec.usable_blocks - pool.free_blocks <= held  # shared blocks count once
            assert not any(s.state == FINISHED for s in core.running)


class ForgetsTheAborted(VllmScheduler):
    """Leaves the blocks of a running request taken."""

    def abort(self, sequence: Sequence) -> int:
        if sequence in self.running:
            self.pool.allocate(min(1, self.pool.free_blocks))
        return super().abort(sequence)


class FinishesTwice(VllmScheduler):
    def finish_step(self, plan: StepPlan) -> list[Sequence]:
        finished = super().finish_step(plan)
        return finished + finished[:1]


class GoesTooFar(VllmScheduler):
    """Takes one step more for uniform than are."""

    def uniform_steps(self) -> int:
        steps = super().uniform_steps()
        return steps + 1 if steps > 1 else steps


class SaysNo(VllmScheduler):
    def add(self, sequence: Sequence) -> bool:
        super().add(sequence)
        return False


class LosesEvents(VllmScheduler):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        take = self.take_events
        self.take_events = lambda: take()[1:]  # type: ignore[method-assign]


@pytest.mark.parametrize(
    ("broken", "noticed_by"),
    [
        (ForgetsTheAborted, "test_aborts_at_any_time_lose_no_block_and_no_other_request"),
        (FinishesTwice, "test_aborts_at_any_time_lose_no_block_and_no_other_request"),
        (GoesTooFar, "test_in_bulk_all_is_as_step_by_step"),
        (SaysNo, "test_a_step_is_within_its_budget_and_admits_whom_add_said_it_could"),
        (
            LosesEvents,
            "test_a_cache_publishes_what_comes_and_goes_and_never_holds_more_than_it_has",
        ),
    ],
)
def test_a_broken_core_fails(broken: type[VllmScheduler], noticed_by: str) -> None:
    def make(spec: EngineSpec, extent_blocks: list[int], publishes: bool) -> VllmScheduler:
        return broken(spec, extent_blocks, publish_events=publishes)

    make_core: MakeCore = make
    with pytest.raises(AssertionError):
        getattr(EngineCoreContract(), noticed_by)(make_core=make_core)
