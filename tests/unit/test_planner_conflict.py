"""Two controllers of one pool notice each other; one alone notices nobody."""

from dataclasses import dataclass, field, replace

from dynosim.planner.conflict import ANOTHER_CONTROLLER, Guarded
from dynosim.planner.decision import PoolDecision, ScalingDecision
from dynosim.planner.hpa import Hpa, HpaSpec
from dynosim.planner.observation import Observation, PoolState, Scrape, WorkerState
from dynosim.planner.queries import ServiceMetric, SumQuery
from dynosim.workers.lifecycle import Phase

S = 1000.0


@dataclass
class Wishes:
    """A controller that wants one number after another, every ten seconds."""

    targets: list[int]
    name: str = "wishes"
    next_ms: float = 0.0
    is_advisory: bool = field(default=False)

    def look(self, seen: Observation) -> ScalingDecision | None:
        if seen.now_ms < self.next_ms:
            return None
        self.next_ms += 10 * S
        wish = PoolDecision("pool", seen.pools[0].wanted, self.targets.pop(0), "scale")
        return ScalingDecision(seen.now_ms, self.name, (wish,), is_advisory=self.is_advisory)


def observation(now_s: float, wanted: int, **load: float) -> Observation:
    workers = tuple(WorkerState(i, Phase.READY, 0.0) for i in range(wanted))
    scrapes = (Scrape(now_s * S, load),) if load else ()
    return Observation(now_s * S, (PoolState("pool", wanted, workers),), scrapes)


def looked(guarded: Guarded, now_s: float, wanted: int) -> PoolDecision:
    decision = guarded.look(observation(now_s, wanted))
    assert decision is not None
    return decision.pools[0]


def test_own_words_are_nobody_elses_even_if_carried_out_late() -> None:
    guarded = Guarded(Wishes([3, 4, 4, 4, 2, 2]))
    seen = [1, 1, 1, 3, 4, 2]
    verdicts = [looked(guarded, 10 * i, wanted).verdict for i, wanted in enumerate(seen)]
    assert verdicts == ["scale"] * 6


def test_number_nobody_here_asked_for_is_anothers() -> None:
    guarded = Guarded(Wishes([3, 3, 3]))
    assert looked(guarded, 0, 3).verdict == "scale"
    found = looked(guarded, 10, 7)
    assert (found.verdict, found.target) == (ANOTHER_CONTROLLER, 7)
    assert found.figures["own_target"] == 3
    assert found.reasons[0] == "3 workers became 7 and wishes asked for 3, 0 s ago; wishes wants 3"


def test_return_to_an_older_number_is_noticed() -> None:
    guarded = Guarded(Wishes([3, 3, 3]))
    assert [looked(guarded, 0, 1).verdict, looked(guarded, 10, 3).verdict] == ["scale"] * 2
    assert looked(guarded, 20, 1).verdict == ANOTHER_CONTROLLER


def test_it_stands_back_for_a_while_and_then_goes_on() -> None:
    guarded = Guarded(Wishes([3] * 9), hold_ms=20 * S)
    looked(guarded, 0, 3)
    found = [looked(guarded, 10 + 10 * i, wanted) for i, wanted in enumerate((7, 7, 7))]
    assert [(one.verdict, one.target) for one in found] == [
        (ANOTHER_CONTROLLER, 7), (ANOTHER_CONTROLLER, 7), ("scale", 3)
    ]  # fmt: skip


def test_advice_is_not_carried_out_and_so_nobody_elses_change_is_its_own() -> None:
    guarded = Guarded(Wishes([3, 3], is_advisory=True))
    looked(guarded, 0, 1)
    assert looked(guarded, 10, 3).verdict == ANOTHER_CONTROLLER


def test_it_looks_when_its_controller_does() -> None:
    guarded = Guarded(Wishes([3, 3]))
    looked(guarded, 0, 3)
    assert (guarded.name, guarded.next_ms) == ("wishes", 10 * S)
    assert guarded.look(observation(5, 3)) is None


def test_two_autoscalers_of_one_pool_are_detected_by_both() -> None:
    load = ServiceMetric(name="load", query=SumQuery("load"), target=10.0)
    spec = HpaSpec(pool="pool", metrics=(load,), max_replicas=10)
    eager = replace(spec, name="eager", metrics=(replace(load, target=5.0),), sync_ms=10 * S)
    one, two = Guarded(Hpa(spec)), Guarded(Hpa(eager, start_ms=5 * S))
    wanted, verdicts = 2, set()
    for second in range(0, 60, 5):
        for scaler in (one, two):
            if scaler.next_ms <= second * S:
                decision = scaler.look(observation(second, wanted, load=10.0))
                assert decision is not None
                wanted = decision.pools[0].target
                verdicts.add((scaler.name, decision.pools[0].verdict))
    assert ("hpa", ANOTHER_CONTROLLER) in verdicts
    assert ("hpa", "no_change") in verdicts
    alone = {verdict for name, verdict in verdicts if name == "eager"}
    assert ANOTHER_CONTROLLER not in alone  # the other stood back
