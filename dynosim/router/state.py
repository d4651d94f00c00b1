"""What a router knows besides what its index holds of caches, as plain values and back."""

from collections.abc import Hashable
from typing import Any

from dynosim.indexer.approximate import ApproximateIndex, PredictedIndex
from dynosim.router.affinity import AffinitySnapshot, Binding
from dynosim.router.kv_router import KvRouter
from dynosim.router.load import Booking, LoadSnapshot
from dynosim.router.modes import RoundRobin
from dynosim.router.plain import pack, request_from_plain, request_to_plain, unpack
from dynosim.router.policy import StatefulPolicy
from dynosim.router.prefill_load import ClockSnapshot
from dynosim.router.queue import LineSnapshot, QueuedRequest, QueueSnapshot
from dynosim.router.workers import Candidate


def state_of(router: KvRouter) -> dict[str, Any]:
    """All but the workers and the blocks that they hold; see `restore_state`."""
    queue, affinity, mode = router._queue, router._affinity, router._mode
    policy, guesses = router.policy, _guesses(router)
    return {
        "load": _load_to_plain(router.load.snapshot()),
        "queue": None if queue is None else _queue_to_plain(queue.snapshot()),
        "sessions": None if affinity is None else _sessions_to_plain(affinity.snapshot()),
        "leases": [list(lease) for lease in router._leases.items()],
        "next_slot": mode.next_slot if isinstance(mode, RoundRobin) else None,
        "random": _generator_to_plain(router),
        "policy": policy.state() if isinstance(policy, StatefulPolicy) else None,
        "guesses": None if guesses is None else [_pack_guess(part) for part in guesses.snapshot()],
    }


def restore_state(router: KvRouter, state: dict[str, Any]) -> None:
    """Make a router with the same settings and workers, and no requests yet, what one was."""
    router.load.restore(_load_from_plain(state["load"]))
    if router._queue is not None:
        router._queue.restore(_queue_from_plain(state["queue"]))
    if router._affinity is not None:
        router._affinity.restore(_sessions_from_plain(state["sessions"]))
    leases: list[tuple[Hashable, str]] = state["leases"]
    router._leases.update(leases)
    if isinstance(router._mode, RoundRobin):
        router._mode.next_slot = state["next_slot"]
    version, numbers, gauss_next = state["random"]
    router.generator.setstate((version, tuple(numbers), gauss_next))
    if isinstance(router.policy, StatefulPolicy):
        router.policy.restore(state["policy"])
    guesses = _guesses(router)
    if guesses is not None:
        guesses.restore([_unpack_guess(part) for part in state["guesses"]])


def _guesses(router: KvRouter) -> ApproximateIndex | None:
    index = router.index
    if isinstance(index, PredictedIndex):
        return index.side
    return index if isinstance(index, ApproximateIndex) else None


def _generator_to_plain(router: KvRouter) -> list[Any]:
    version, numbers, gauss_next = router.generator.getstate()
    return [version, list(numbers), gauss_next]


def _load_to_plain(snapshot: LoadSnapshot) -> dict[str, Any]:
    return {
        "bookings": [
            [
                name, b.slot, pack(b.keys), b.private_blocks, b.prefill_tokens, b.input_tokens,
                b.expected_output_tokens, b.heard_ms, b.output_blocks, b.fraction,
            ]
            for name, b in snapshot.bookings
        ],
        "blocks": snapshot.blocks,
        "weights": [[list(pair) for pair in pairs] for pairs in snapshot.weights],
        "clocks": [
            [clock.anchor_ms, [list(prefill) for prefill in clock.prefills]]
            for clock in snapshot.clocks
        ],
    }  # fmt: skip


def _load_from_plain(plain: dict[str, Any]) -> LoadSnapshot:
    return LoadSnapshot(
        [
            (name, Booking(slot, unpack(keys), *rest))
            for name, slot, keys, *rest in plain["bookings"]
        ],
        plain["blocks"],
        [[(key, weight) for key, weight in pairs] for pairs in plain["weights"]],
        [ClockSnapshot(anchor_ms, prefills) for anchor_ms, prefills in plain["clocks"]],
    )


def _queue_to_plain(snapshot: QueueSnapshot) -> list[Any]:
    lines = [
        [
            line.deficit,
            [
                [order, e.cached_tokens, e.enqueue_ms, e.pinned_slot, request_to_plain(e.payload)]
                for order, e in line.waiting
            ],
        ]
        for line in snapshot.lines
    ]
    return [snapshot.cursor, snapshot.num_pushed, lines]


def _queue_from_plain(plain: list[Any]) -> QueueSnapshot:
    cursor, num_pushed, lines = plain
    return QueueSnapshot(
        cursor,
        num_pushed,
        [
            LineSnapshot(deficit, [(order, _waiting(*rest)) for order, *rest in waiting])
            for deficit, waiting in lines
        ],
    )


def _waiting(
    cached_tokens: int, enqueue_ms: float, pinned_slot: int | None, plain: dict[str, Any]
) -> QueuedRequest:
    request = request_from_plain(plain)
    return QueuedRequest(
        request.request_id, request.input_tokens, cached_tokens, enqueue_ms,
        request.priority_jump, request.strict_priority, pinned_slot, request,
    )  # fmt: skip


def _sessions_to_plain(snapshot: AffinitySnapshot) -> list[Any]:
    bindings = [
        [session_id, *binding.candidate, binding.leases, binding.expires_ms]
        for session_id, binding in snapshot.bindings
    ]
    return [bindings, snapshot.idle]


def _sessions_from_plain(plain: list[Any]) -> AffinitySnapshot:
    bindings, idle = plain
    return AffinitySnapshot(
        [
            (session_id, Binding(Candidate(worker_id, dp_rank), leases, expires_ms))
            for session_id, worker_id, dp_rank, leases, expires_ms in bindings
        ],
        idle,
    )


def _pack_guess(part: tuple[Any, ...]) -> list[Any]:
    """Of an approximate index: (worker, expiry, blocks), or (worker, leases, idle blocks)."""
    worker, middle, blocks = part
    if isinstance(middle, list):
        middle = [[request_id, pack(sequence)] for request_id, sequence in middle]
    return [worker, middle, pack(blocks)]


def _unpack_guess(plain: list[Any]) -> tuple[Any, ...]:
    worker, middle, blocks = plain
    if isinstance(middle, list):
        middle = [(request_id, unpack(sequence)) for request_id, sequence in middle]
    return worker, middle, unpack(blocks)
