"""What a user's own placement policy must do, and what a mode by load alone must."""

import json
import random
from collections.abc import Callable, Sequence
from copy import deepcopy

from hypothesis import given
from hypothesis import strategies as st

from dynosim.indexer.answers import members
from dynosim.router.cost import WorkerOption
from dynosim.router.modes import LoadMode
from dynosim.router.policy import LearningPolicy, PlacementPolicy, StatefulPolicy
from dynosim.router.request import RoutingRequest
from dynosim.testing import law
from dynosim.workers.ids import DpRank, Slot, WorkerId

SEEDS = st.integers(0, 2**32 - 1)
MakePolicy = Callable[[], PlacementPolicy]


class PlacementPolicyContract:
    """The tests of a `PlacementPolicy`.

    The heir supplies `make_policy`, a fixture of class scope: a function that makes a new policy,
    the same one every time (one seed).

    A router calls `choose` when a request goes, with the candidates that may serve it and what each
    would cost; never with none. Of a policy that wants to know, it calls `on_first_token` and
    `on_end` once for each request that it placed; after a restart from a log also for such that it
    did not. A policy must not change what it is given, look at a clock, or draw from anything but a
    generator of its own: live and twin, and a log's replay, must decide alike.
    """

    @law(40)
    @given(seed=SEEDS)
    def test_it_chooses_one_of_its_options_and_changes_nothing(
        self, make_policy: MakePolicy, seed: int
    ) -> None:
        draw, policy = random.Random(seed), make_policy()
        for number in range(40):
            request, options, now_ms = _question(draw, number)
            given_request, given_options = deepcopy(request), list(options)
            assert policy.choose(request, options, now_ms) in given_options
            assert (request, options) == (given_request, given_options)
            _report(draw, policy, number, now_ms)

    @law(20)
    @given(seed=SEEDS)
    def test_the_only_option_is_taken(self, make_policy: MakePolicy, seed: int) -> None:
        draw, policy = random.Random(seed), make_policy()
        for number in range(10):
            request, options, now_ms = _question(draw, number)
            assert policy.choose(request, options[:1], now_ms) is options[0]

    @law(20)
    @given(seed=SEEDS)
    def test_two_that_were_made_alike_choose_alike(
        self, make_policy: MakePolicy, seed: int
    ) -> None:
        assert _choices(make_policy(), random.Random(seed)) == _choices(
            make_policy(), random.Random(seed)
        )

    def test_strangers_are_no_news(self, make_policy: MakePolicy) -> None:
        """A policy that began anew receives what becomes of requests that another one placed."""
        policy, new = make_policy(), make_policy()
        if isinstance(new, LearningPolicy):
            new.on_first_token("never placed", 1.0)
            new.on_end("never placed", 2.0)
            new.on_end("never placed", 3.0)
        assert _choices(new, random.Random(1)) == _choices(policy, random.Random(1))

    @law(20)
    @given(seed=SEEDS)
    def test_what_is_restored_goes_on_as_the_one_before(
        self, make_policy: MakePolicy, seed: int
    ) -> None:
        policy, heir = make_policy(), make_policy()
        if not isinstance(policy, StatefulPolicy) or not isinstance(heir, StatefulPolicy):
            return
        _choices(policy, random.Random(seed))
        heir.restore(json.loads(json.dumps(policy.state())))
        assert json.dumps(heir.state()) == json.dumps(policy.state())
        assert _choices(heir, random.Random(seed + 1)) == _choices(policy, random.Random(seed + 1))


class LoadModeContract:
    """The tests of a `LoadMode`.

    The heir supplies `make_mode`, a fixture of class scope: a function that makes a new mode over
    six slots, the same one every time.

    A router calls `choose` when a request goes; `num_requests` are its own counts, which a mode
    must not change or keep.
    """

    @law(40)
    @given(seed=SEEDS)
    def test_it_chooses_an_eligible_slot_and_changes_nothing(
        self, make_mode: Callable[[], LoadMode], seed: int
    ) -> None:
        draw, one, other = random.Random(seed), make_mode(), make_mode()
        for _ in range(40):
            eligible = draw.randint(1, 63)
            num_requests = [draw.randint(0, 5) for _ in range(6)]
            given_counts = list(num_requests)
            slot = one.choose(eligible, num_requests)
            assert slot in set(members(eligible))
            assert num_requests == given_counts
            assert other.choose(eligible, num_requests) == slot


def _question(draw: random.Random, number: int) -> tuple[RoutingRequest, list[WorkerOption], float]:
    """A request, and one to six candidates in slot order."""
    length = draw.randint(1, 4000)
    request = RoutingRequest(f"r{number}", length, length // 16)
    slots = sorted(draw.sample(range(8), draw.randint(1, 6)))
    return request, [_option(draw, slot, length) for slot in slots], 10.0 * number


def _option(draw: random.Random, slot: int, length: int) -> WorkerOption:
    cached = draw.choice([0, draw.randint(0, length)])
    return WorkerOption(
        worker_id=WorkerId(slot // 2),
        dp_rank=DpRank(slot % 2),
        slot=Slot(slot),
        cost=draw.choice([0.0, draw.uniform(0, 500)]),
        overlap_blocks=cached / 16,
        cached_tokens=cached,
        prefill_tokens=draw.randint(length - cached, 9000),
        decode_blocks=draw.randint(1, 2000),
        num_requests=draw.randint(0, 20),
    )


def _choices(policy: PlacementPolicy, draw: random.Random) -> Sequence[WorkerOption]:
    """What a policy chooses in a while in which it learns what comes of its choices."""
    chosen = []
    for number in range(40):
        request, options, now_ms = _question(draw, number)
        chosen.append(policy.choose(request, options, now_ms))
        _report(draw, policy, number, now_ms)
    return chosen


def _report(draw: random.Random, policy: PlacementPolicy, number: int, now_ms: float) -> None:
    """Some requests get their first token before they end, some none; ends out of order."""
    if not isinstance(policy, LearningPolicy):
        return
    if draw.random() < 0.7:
        policy.on_first_token(f"r{number}", now_ms + draw.uniform(0, 9))
    if number and draw.random() < 0.9:
        policy.on_end(f"r{number - 1}", now_ms + 9)
