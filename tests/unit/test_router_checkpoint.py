"""A router's checkpoint: whatever is altered in it is another router."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from router_support import BLOCK, card, request

from dynosim.blocks.hashing import sequence_hashes
from dynosim.blocks.tier import Tier
from dynosim.errors import ConfigError
from dynosim.indexer.approximate import ApproximateIndex, PredictedIndex
from dynosim.indexer.base import Removed, Stored
from dynosim.indexer.compressed import CompressedRadixIndex
from dynosim.indexer.extents import ExtentIndex
from dynosim.indexer.naive import InvertedIndex, NaiveIndex
from dynosim.indexer.positional import PositionalIndex
from dynosim.indexer.radix import RadixIndex
from dynosim.indexer.tiers import TieredIndex
from dynosim.router.classes import PolicyClass
from dynosim.router.knobs import AffinitySpec, CostSpec, LoadSpec, RouterSpec
from dynosim.router.kv_router import KvRouter
from dynosim.router.log.checkpoint import CheckpointInParts, checkpoint, difference
from dynosim.router.log.plain import pack, unpack
from dynosim.router.log.replay import replay_entry

SETTINGS = RouterSpec(
    BLOCK,
    mode="kv",
    cost=CostSpec(active_request_weight=0.5),
    load=LoadSpec(track_output_blocks=True),
    classes=(PolicyClass("a", prefill_busy_threshold=0), PolicyClass("b", policy_family="b")),
    affinity=AffinitySpec(50.0, "soft"),
)
INDEXES: dict[str, Callable[[], Any]] = {
    "radix": RadixIndex,
    "compressed": CompressedRadixIndex,
    "naive": NaiveIndex,
    "inverted": InvertedIndex,
    "positional": PositionalIndex,
    "tiered": lambda: TieredIndex(CompressedRadixIndex()),
    "guesses": lambda: ApproximateIndex(ttl_ms=1e6),
    "bounded guesses": lambda: ApproximateIndex(capacity_blocks=9),
    "predicted": lambda: PredictedIndex(RadixIndex(), ApproximateIndex(ttl_ms=1e6)),
}


class Half:
    """Of every other prompt it says how long it takes."""

    def predict_ms(self, new_tokens: int, cached_tokens: int) -> float | None:
        return 8.0 if new_tokens % 2 else None


def made(kind: str, mode: str = "kv") -> KvRouter:
    settings = RouterSpec(
        BLOCK, mode, SETTINGS.cost, SETTINGS.load, SETTINGS.classes, affinity=SETTINGS.affinity
    )
    return KvRouter(settings, INDEXES[kind](), estimator=Half())


def busy_router(kind: str, mode: str = "kv") -> KvRouter:
    """Something of everything that a router can know."""
    router = made(kind, mode)
    for worker_id in range(3):
        router.add_worker(card(worker_id, dp_size=1 + worker_id % 2, taints=frozenset({"x"})))
    router.remove_worker(0)  # leaves a free slot
    tiers = list(Tier) if kind == "tiered" else [Tier.DEVICE]
    if "guesses" not in kind:
        names = sequence_hashes([1, 2, 3, 4])
        for worker_id in (1, 2):
            router.apply_events(worker_id, 0, [Stored(None, names, [1, 2, 3, 4])])
            for tier in tiers:
                router.apply_events(worker_id, 0, [Stored(names[0], names[1:2], [2], tier)])
        router.apply_events(1, 0, [Removed(names[1:2])])  # a hole
    faded = request("faded", [7, 8, 9], input_tokens=49, expected_output_tokens=64, session_id="s")
    for number, entry in enumerate([faded, request("old", [7, 1]), request("other", [5])]):
        router.submit(entry, float(number))
    router.output_tokens("faded", 32, 3.0)
    router.first_token("old", 4.0)
    router.free("old", 5.0)
    for slot in (1, 2, 3):
        router.load.book(request(slot, [slot, 2], input_tokens=36 + slot), slot, 0, 6.0)
    for name in ("waits", "waits too"):
        wishes = {"session_id": "t", "priority_jump": 1.0, "strict_priority": 2}
        assert router.submit(request(name, [1, 2, 3], **wishes), 7.0) is None
    for session_id in "uv":
        entry = request(session_id, [1], session_id=session_id, policy_family="b")
        sessions = router._sessions
        assert sessions is not None
        sessions.begin(session_id, entry.request_id, router.table.candidate(1), 8.0)  # type: ignore[arg-type]
        sessions._affinity.end(session_id, 8.0 + len(session_id))
    return router


def through_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def restored(kind: str, entries: list[Any], mode: str = "kv") -> KvRouter:
    router = made(kind, mode)
    for entry in entries:
        replay_entry(router, entry)
    return router


@pytest.mark.parametrize("kind", INDEXES)
def test_a_restored_router_tells_the_same_checkpoint(kind: str) -> None:
    router = busy_router(kind)
    entries = through_json(checkpoint(router, 9.0))
    born = restored(kind, entries)
    assert difference(router, born) is None
    assert born.load.num_requests == router.load.num_requests
    for slot in (1, 2, 3):
        assert born.load.blocks(slot) == router.load.blocks(slot)
        assert born.load.prefill_tokens(slot, 11.0) == router.load.prefill_tokens(slot, 11.0)
    again = through_json(checkpoint(born, 9.0))
    assert [entry for entry in again if entry[0] in ("workers", "state")] == [
        entry for entry in entries if entry[0] in ("workers", "state")
    ]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where plain values stand inside a state; of many numbers in a row the first three."""
    if isinstance(value, dict | list):
        keys = list(value) if isinstance(value, dict) else range(len(value))
        for key in keys[:3] if path[:1] == ("random",) else keys:
            yield from places(value[key], (*path, key))
    else:
        yield path


def altered(value: Any, path: tuple[Any, ...]) -> Any:
    if path[:2] == ("load", "bookings") and path[3] == 2:
        return pack([*unpack(value), 77])  # another block in use
    if isinstance(value, bool) or value is None:
        return 1
    return value + "x" if isinstance(value, str) else value + 1


def with_altered(state: Any, path: tuple[Any, ...]) -> Any:
    copy = through_json(state)
    inside = copy
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = altered(inside[path[-1]], path)
    return copy


UNSEEN = {"policy", "guesses", "next_slot"}  # by this router; see below for those with them


def test_every_part_of_the_state_counts() -> None:
    router = busy_router("compressed")
    *entries, (kind, at_ms, state) = through_json(checkpoint(router, 9.0))
    assert kind == "state"
    found = set()
    for path in places(state):
        if path[0] in UNSEEN or (path[0] == "random" and path[1] == 0):
            continue
        try:
            born = restored("compressed", [*entries, ["state", at_ms, with_altered(state, path)]])
        except (ConfigError, ValueError):
            found.add(path[0])  # no router has such a state
            continue
        part = difference(router, born)
        assert part == path[0], path
        found.add(path[0])
    assert found == set(state) - UNSEEN


def test_whose_turn_it_is_counts() -> None:
    router = busy_router("compressed", "round-robin")
    *entries, (kind, at_ms, state) = through_json(checkpoint(router, 9.0))
    assert state["next_slot"] > 0
    state["next_slot"] += 1
    born = restored("compressed", [*entries, [kind, at_ms, state]], "round-robin")
    assert difference(router, born) == "next_slot"


@pytest.mark.parametrize("kind", ["guesses", "bounded guesses", "predicted"])
def test_guesses_count_with_their_times_or_users_and_their_order(kind: str) -> None:
    router = busy_router(kind)
    *entries, (name, at_ms, state) = through_json(checkpoint(router, 9.0))
    assert state["guesses"]
    for number, (worker, middle, blocks) in enumerate(state["guesses"]):
        others = [[worker + 8, middle, blocks], [worker, middle, pack(unpack(blocks)[:-1])]]
        if isinstance(middle, float):
            others.append([worker, middle + 1, blocks])
        for other in others:
            guesses = [*state["guesses"][:number], other, *state["guesses"][number + 1 :]]
            born = restored(kind, [*entries, [name, at_ms, {**state, "guesses": guesses}]])
            same = other[2] == blocks and other[:2] == [worker, middle]
            assert (difference(router, born) is None) == same


@pytest.mark.parametrize("kind", ["radix", "compressed", "inverted", "positional", "tiered"])
def test_every_block_held_counts(kind: str) -> None:
    router = busy_router(kind)
    names = sequence_hashes([1, 2, 3, 4])
    entries = through_json(checkpoint(router, 9.0))
    for worker_id in (1, 2):
        for change in (Removed(names[3:]), Stored(None, [99], [5])):
            born = restored(kind, entries)
            assert difference(router, born) is None
            born.apply_events(worker_id, 0, [change])
            assert difference(router, born) == "index"
    if kind == "tiered":
        born = restored(kind, entries)
        born.apply_events(2, 0, [Removed(names[1:2], Tier.DISK)])
        assert difference(router, born) == "index"


def test_other_workers_count() -> None:
    router, entries = busy_router("radix"), through_json(checkpoint(busy_router("radix"), 9.0))
    assert entries[0][0] == "workers"
    entries[0][2][0]["max_num_batched_tokens"] += 1
    assert difference(router, restored("radix", entries)) == "workers"


def test_an_index_that_cannot_tell_what_it_holds_is_refused() -> None:
    router = KvRouter(SETTINGS, ExtentIndex([1, 2]))
    with pytest.raises(ConfigError, match="cannot follow ExtentIndex"):
        checkpoint(router, 0.0)
    with pytest.raises(ConfigError, match="this router's index knows no tiers"):
        replay_entry(busy_router("radix"), ["tiers", 0.0, 1, 0, []])
    with pytest.raises(ConfigError, match="worker 8 rank 1 is not among the workers"):
        replay_entry(busy_router("radix"), ["index", 0.0, 8, 1, {"names": "", "local": ""}])


# ---- in parts ------------------------------------------------------------------------------------


def test_a_checkpoint_in_parts_takes_in_what_happens_meanwhile() -> None:
    router = busy_router("compressed")
    parts = CheckpointInParts(router)
    entries = [parts.begin(9.0)]
    assert not parts.is_complete
    entries += parts.next_part(9.0)  # of worker 1, rank 0
    assert entries[-1][:4] == ["index", 9.0, 1, 0]
    names = sequence_hashes([1, 2])
    for entry, is_part in (
        (["event", 9.0, 1, 0, {"stored": [91], "local": [6], "parent": None, "tier": 0}], True),
        (["event", 9.0, 2, 0, {"removed": names[:1], "tier": 0}], False),  # told of below
        (["join", 9.0, {**entries[0][2][0], "worker_id": 7, "dp_size": 1}], True),
        (["event", 9.0, 7, 0, {"stored": [92], "local": [7], "parent": None, "tier": 0}], True),
        (["first", 9.0, "faded"], False),  # in the state, at the end
        (["arrive", 9.0, {}, None], False),
    ):
        assert parts.belongs(entry) == is_part
        if entry[0] in ("event", "join"):
            replay_entry(router, through_json(entry))
        if is_part:
            entries.append(entry)
    assert not parts.is_complete
    entries += parts.finish(9.0)
    assert parts.is_complete
    assert difference(router, restored("compressed", through_json(entries))) is None


def test_a_worker_that_leaves_meanwhile_is_not_told_of() -> None:
    router = busy_router("compressed")
    parts = CheckpointInParts(router)
    entries = [parts.begin(9.0), *parts.next_part(9.0)]
    leave = ["leave", 9.0, 2]
    assert parts.belongs(leave)
    replay_entry(router, leave)
    entries += [leave, *parts.finish(9.0)]
    assert {entry[2] for entry in entries if entry[0] == "index"} == {1}
    assert difference(router, restored("compressed", through_json(entries))) is None
