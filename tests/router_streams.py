"""Random routers and random streams of inputs to them, the wrong ones included."""

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from router_support import BLOCK, card, request

from dynosim.blocks.hashing import sequence_hashes
from dynosim.blocks.tier import Tier
from dynosim.indexer.base import BlockEvent, Cleared, Removed, Stored
from dynosim.indexer.make import IndexSpec
from dynosim.router.busy import BusyThresholds
from dynosim.router.classes import PolicyClass
from dynosim.router.cost import WorkerOption
from dynosim.router.decision import Decision
from dynosim.router.eligibility import Constraints
from dynosim.router.knobs import AffinitySpec, CostSpec, LoadSpec, RouterSpec
from dynosim.router.kv_router import KvRouter
from dynosim.router.modes import MODES
from dynosim.router.refusals import RequestRefusedError, UnknownWorkerError
from dynosim.router.request import RoutingRequest

HASH_INDEXES = ("compressed", "compressed", "radix", "positional", "naive", "inverted")


class Evenly:
    """A policy that takes the options in turn and keeps no account of it elsewhere."""

    def __init__(self, settings: RouterSpec, seed: int) -> None:
        self.count = seed

    def choose(
        self, request: RoutingRequest, options: Sequence[WorkerOption], now_ms: float
    ) -> WorkerOption:
        self.count += 1
        return options[self.count % len(options)]


class EvenlyWithState(Evenly):
    """The same, able to go on where another one was."""

    def state(self) -> dict[str, int]:
        return {"count": self.count}

    def restore(self, state: dict[str, int]) -> None:
        self.count = state["count"]


class Pace:
    """Predicts prefill times; of some prompts it cannot tell."""

    def predict_ms(self, new_tokens: int, cached_tokens: int) -> float | None:
        return None if new_tokens % 7 == 3 else 0.31 * new_tokens + 0.01 * cached_tokens


def random_settings(rng: random.Random) -> RouterSpec:
    """Any mode, half of the time kv, with and without features."""
    affinity = AffinitySpec(rng.choice([3.0, 50.0]), rng.choice(["hard", "soft"]))
    busy = BusyThresholds(0.5, None, 2.0) if rng.random() < 0.2 else BusyThresholds()
    return RouterSpec(
        BLOCK,
        mode=rng.choice(["kv", "kv", "kv", "kv", *MODES]),
        cost=CostSpec(
            overlap_score_credit=rng.choice([1.0, 0.7, 2.0]),
            overlap_score_credit_decay=rng.choice([0.0, 0.0, 0.5]),
            temperature=rng.choice([0.0, 0.0, 0.3]),
            active_request_weight=rng.choice([0.0, 0.25]),
            assume_kv_reuse=rng.random() < 0.9,
        ),
        load=LoadSpec(track_output_blocks=rng.random() < 0.4, stale_after_ms=40.0),
        classes=_random_classes(rng) if rng.random() < 0.5 else (),
        busy=busy,
        affinity=affinity if rng.random() < 0.4 else None,
        seed=rng.randint(0, 9),
    )


def random_index(rng: random.Random) -> IndexSpec:
    """A hash index, often with guesses beside it, or guesses alone."""
    if rng.random() < 0.2:
        return IndexSpec("approximate", ttl_ms=20.0, capacity_blocks=rng.choice([None, 6]))
    predicted = rng.choice([None, None, 5.0])
    return IndexSpec(rng.choice(HASH_INDEXES), predicted_ttl_ms=predicted)


def _random_classes(rng: random.Random) -> tuple[PolicyClass, ...]:
    def made(name: str, **fields: Any) -> PolicyClass:
        policy = rng.choice(["fcfs", "lcfs", "wspt"])
        return PolicyClass(
            name, policy, rng.choice([8, 64]), rng.choice([0, 40]), busy_worker_ratio=0.6, **fields
        )

    short = made("short", max_uncached_tokens=40, request_queue_limit_per_worker=2)
    return (made("batch", policy_family="batch"), short, made("rest"))


class Stream:
    """Gives a router random inputs; `step` returns what the router answered."""

    def __init__(self, rng: random.Random, *, takes_events: bool = True) -> None:
        self.rng = rng
        self.now_ms = 0.0
        self._takes_events = takes_events
        self._num_requests = 0
        self._in_flight: list[Any] = []
        self._held: dict[tuple[int, int], dict[int, tuple[int, ...]]] = {}  # name -> prompt so far

    def step(self, routers: Sequence[KvRouter]) -> list[Any]:
        """One input, the same to all routers; returns their answers."""
        rng = self.rng
        self.now_ms += rng.choice([0.0, 0.37, 1.21])
        kinds = [self._arrive] * 6 + [self._first] * 3 + [self._end] * 3 + [self._tokens] * 2
        kinds += [self._event] * 6 + [self._release] * 2 + [self._join, self._leave, self._rare]
        call = rng.choice(kinds)()
        answers = []
        for router in routers:
            try:
                answers.append(call(router))
            except (RequestRefusedError, UnknownWorkerError) as error:
                answers.append(f"{type(error).__name__}: {error}")
        return answers

    def _arrive(self) -> Any:
        rng = self.rng
        name = self._num_requests
        if self._in_flight and rng.random() < 0.05:
            name = rng.choice(self._in_flight)  # twice
        elif rng.random() < 0.2:
            name = f"request-{name}"  # type: ignore[assignment]
        self._num_requests += 1
        self._in_flight.append(name)
        made = request(
            name,
            [rng.randint(0, 2) for _ in range(rng.randint(1, 6))],
            priority_jump=rng.choice([0.0, 0.0, 1.5]),
            strict_priority=rng.choice([0, 0, 1]),
            expected_output_tokens=rng.choice([None, 40]),
            session_id=rng.choice([None, "a", "b", "c"]),
            constraints=_random_constraints(rng),
            policy_family=rng.choice([None, "batch"]),
            overrides=CostSpec(temperature=0.2) if rng.random() < 0.1 else None,
        )
        made = replace(made, input_tokens=made.input_tokens + rng.randint(0, BLOCK - 1))
        return lambda router: router.submit(made, self.now_ms)

    def _first(self) -> Any:
        name = self._any_request()
        return lambda router: router.first_token(name, self.now_ms)

    def _tokens(self) -> Any:
        name, count = self._any_request(), self.rng.randint(1, 60)
        return lambda router: router.output_tokens(name, count, self.now_ms)

    def _end(self) -> Any:
        name = self._any_request()
        if name in self._in_flight:
            self._in_flight.remove(name)
        return lambda router: router.free(name, self.now_ms)

    def _release(self) -> Any:
        return lambda router: [_told(outcome) for outcome in router.release(self.now_ms)]

    def _join(self) -> Any:
        rng = self.rng
        worker_id = rng.randint(0, 4)
        size, start = rng.choice([1, 1, 2]), rng.choice([0, 0, 3])
        self._forget(worker_id)
        for rank in range(start, start + size):
            self._held[worker_id, rank] = {}
        made = card(
            worker_id,
            dp_size=size,
            dp_start=start,
            device=rng.choice(["gpu", "gpu", "cpu"]),
            taints=frozenset(rng.sample(["x", "y"], rng.randint(0, 2))),
            topology={"zone": rng.choice(["a", "b"])},
        )
        return lambda router: router.add_worker(made)

    def _leave(self) -> Any:
        worker_id = self.rng.randint(0, 5)
        self._forget(worker_id)
        return lambda router: router.remove_worker(worker_id)

    def _rare(self) -> Any:
        rng = self.rng
        kind = rng.randrange(4)
        if kind == 0:
            return lambda router: router.drop_stale(self.now_ms)
        if kind == 1:
            session_id = rng.choice(["a", "b", "z"])
            return lambda router: router.unbind_session(session_id)
        if kind == 2:
            return lambda router: router.apply_events(9, 0, [Removed([1])])
        tokens = list(range(rng.randint(1, 3 * BLOCK)))
        name = f"best-{self._num_requests}" if rng.random() < 0.5 else None
        self._num_requests += 1
        return lambda router: router.best_worker(
            tokens, name, update_states=name is not None, now_ms=self.now_ms
        )

    def _event(self) -> Any:
        if not self._takes_events or not self._held:
            return self._release()
        who = self.rng.choice(list(self._held))
        events = [random_event(self.rng, self._held[who]) for _ in range(self.rng.randint(1, 3))]
        return lambda router: router.apply_events(*who, events)

    def _forget(self, worker_id: int) -> None:
        for who in [who for who in self._held if who[0] == worker_id]:
            del self._held[who]

    def _any_request(self) -> Any:
        return self.rng.choice(self._in_flight) if self._in_flight else "nobody"


def random_event(
    rng: random.Random,
    held: dict[int, tuple[int, ...]],
    tier: Tier = Tier.DEVICE,
    salts: Sequence[int] = (0, 0, 0, 1),
) -> BlockEvent:
    """An event of a worker that holds these blocks, which it changes. Holes come about.

    With several salts a block may have several names.
    """
    point = rng.random()
    if point < 0.6:
        parent = rng.choice([None, *held])
        before = () if parent is None else held[parent]
        local = [rng.randint(0, 2) for _ in range(rng.randint(1, 4))]
        salt = rng.choice(salts)
        names = [h ^ salt for h in sequence_hashes([*before, *local])[len(before) :]]
        held.update({n: (*before, *local[: i + 1]) for i, n in enumerate(names)})
        return Stored(parent, names, local, tier)
    if point < 0.7:
        return Stored(12345, [54321], [1], tier)  # behind a block that is not there
    if point < 0.97:
        gone = rng.sample(list(held), min(len(held), rng.randint(1, 3)))
        for name in gone:
            del held[name]
        return Removed([*gone, 777], tier)
    held.clear()
    return Cleared()


def _random_constraints(rng: random.Random) -> Constraints | None:
    point = rng.random()
    if point < 0.6:
        return None
    if point < 0.75:
        return Constraints(pinned_worker=rng.randint(0, 5))
    if point < 0.85:
        return Constraints(allowed_workers=frozenset({1, 2, rng.randint(0, 5)}))
    if point < 0.92:
        return Constraints(required_taints=frozenset({"x"}))
    return Constraints(preferred_taints={"y": 0.5, "x": -0.25})


def _told(outcome: Any) -> Any:
    return outcome if isinstance(outcome, Decision) else (outcome.request_id, str(outcome.error))
