"""Policies and load modes that are ours keep their contracts; broken ones do not."""

from collections.abc import Sequence
from random import Random
from typing import Any

import pytest
from router_support import BLOCK, card

from dynosim.router.cost import WorkerOption
from dynosim.router.knobs import RouterSpec
from dynosim.router.modes import LOAD_MODES, LeastLoaded, LoadMode, make_load_mode
from dynosim.router.request import RoutingRequest
from dynosim.router.workers import WorkerTable
from dynosim.testing.placement import LoadModeContract, PlacementPolicyContract
from dynosim.workers.ids import Slot
from examples.thompson import ThompsonSampling


class Cheapest:
    """The shortest policy, as `router/policy` shows it."""

    def choose(
        self, request: RoutingRequest, options: Sequence[WorkerOption], now_ms: float
    ) -> WorkerOption:
        return min(options, key=lambda option: option.cost)


class TestPolicies(PlacementPolicyContract):
    @pytest.fixture(
        scope="class",
        params=[Cheapest, lambda: ThompsonSampling(RouterSpec(BLOCK, mode="kv"), 7)],
        ids=["cheapest", "thompson"],
    )
    @classmethod
    def make_policy(cls, request: pytest.FixtureRequest) -> Any:
        return request.param


def mode_of(name: str) -> LoadMode:
    table = WorkerTable(BLOCK)
    for worker_id in range(6):
        table.add(card(worker_id, device="gpu" if worker_id < 4 else "cpu"))
    return make_load_mode(name, Random(3), table)


class TestLoadModes(LoadModeContract):
    @pytest.fixture(scope="class", params=LOAD_MODES)
    @classmethod
    def make_mode(cls, request: pytest.FixtureRequest) -> Any:
        return lambda: mode_of(request.param)


class MakesItsOwn(Cheapest):
    def choose(
        self, request: RoutingRequest, options: Sequence[WorkerOption], now_ms: float
    ) -> WorkerOption:
        return super().choose(request, options, now_ms)._replace(slot=Slot(99))


class Sorts(Cheapest):
    """Brings what the router gave it into another order."""

    def choose(
        self, request: RoutingRequest, options: Sequence[WorkerOption], now_ms: float
    ) -> WorkerOption:
        assert isinstance(options, list)
        options.sort(key=lambda option: option.cost)
        return options[0]


class DrawsAnywhere(Cheapest):
    generator = Random(0)  # of all of them

    def choose(
        self, request: RoutingRequest, options: Sequence[WorkerOption], now_ms: float
    ) -> WorkerOption:
        return self.generator.choice(options)


class MissesStrangers(ThompsonSampling):
    def on_end(self, request_id: Any, now_ms: float) -> None:
        del self._placed[request_id]


class ForgetsItsGenerator(ThompsonSampling):
    def state(self) -> dict[str, Any]:
        return super().state() | {"random": Random(0).getstate()}


SETTINGS = RouterSpec(BLOCK, mode="kv")


@pytest.mark.parametrize(
    ("make_policy", "noticed_by"),
    [
        (MakesItsOwn, "test_it_chooses_one_of_its_options_and_changes_nothing"),
        (Sorts, "test_it_chooses_one_of_its_options_and_changes_nothing"),
        (DrawsAnywhere, "test_two_that_were_made_alike_choose_alike"),
        (lambda: MissesStrangers(SETTINGS, 7), "test_strangers_are_no_news"),
        (
            lambda: ForgetsItsGenerator(SETTINGS, 7),
            "test_what_is_restored_goes_on_as_the_one_before",
        ),
    ],
)
def test_a_broken_policy_fails(make_policy: Any, noticed_by: str) -> None:
    with pytest.raises((AssertionError, KeyError)):
        getattr(PlacementPolicyContract(), noticed_by)(make_policy=make_policy)


class IgnoresWhoMay(LeastLoaded):
    def choose(self, eligible: int, num_requests: list[int]) -> Slot:
        return super().choose(63, num_requests)


class Counts(LeastLoaded):
    def choose(self, eligible: int, num_requests: list[int]) -> Slot:
        slot = super().choose(eligible, num_requests)
        num_requests[slot] += 1
        return slot


@pytest.mark.parametrize("broken", [IgnoresWhoMay, Counts])
def test_a_broken_load_mode_fails(broken: type[LeastLoaded]) -> None:
    with pytest.raises(AssertionError):
        LoadModeContract().test_it_chooses_an_eligible_slot_and_changes_nothing(make_mode=broken)  # type: ignore[call-arg]
