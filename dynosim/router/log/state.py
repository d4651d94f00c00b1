"""What a router knows besides its workers and what its index holds, as plain values and back."""

from typing import Any

from dynosim.indexer.base import Guess
from dynosim.router.affinity import AffinitySnapshot, Binding
from dynosim.router.load import Booking, LoadSnapshot
from dynosim.router.log.plain import pack, request_from_plain, request_to_plain, unpack
from dynosim.router.prefill_load import ClockSnapshot
from dynosim.router.queue import LineSnapshot, QueuedRequest, QueueSnapshot
from dynosim.router.sessions import SessionsSnapshot
from dynosim.router.snapshot import RouterSnapshot
from dynosim.router.workers import Candidate


def snapshot_to_plain(snapshot: RouterSnapshot) -> dict[str, Any]:
    """A router's snapshot as plain values."""
    queue, sessions, guesses = snapshot.queue, snapshot.sessions, snapshot.guesses
    version, numbers, gauss_next = snapshot.random
    return {
        "load": _load_to_plain(snapshot.load),
        "queue": None if queue is None else _queue_to_plain(queue),
        "sessions": None if sessions is None else _affinity_to_plain(sessions.affinity),
        "leases": [] if sessions is None else [list(lease) for lease in sessions.leases],
        "next_slot": snapshot.next_slot,
        "random": [version, list(numbers), gauss_next],
        "policy": snapshot.policy,
        "guesses": None if guesses is None else [_guess_to_plain(guess) for guess in guesses],
    }


def snapshot_from_plain(plain: dict[str, Any]) -> RouterSnapshot:
    """The snapshot again."""
    queue, sessions, guesses = plain["queue"], plain["sessions"], plain["guesses"]
    version, numbers, gauss_next = plain["random"]
    leases = [(request_id, session_id) for request_id, session_id in plain["leases"]]
    return RouterSnapshot(
        load=_load_from_plain(plain["load"]),
        queue=None if queue is None else _queue_from_plain(queue),
        sessions=None
        if sessions is None
        else SessionsSnapshot(_affinity_from_plain(sessions), leases),
        next_slot=plain["next_slot"],
        random=(version, tuple(numbers), gauss_next),
        policy=plain["policy"],
        guesses=None if guesses is None else [_guess_from_plain(guess) for guess in guesses],
    )


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
        [
            ClockSnapshot(anchor_ms, [(name, *rest) for name, *rest in prefills])
            for anchor_ms, prefills in plain["clocks"]
        ],
    )


def _queue_to_plain(snapshot: QueueSnapshot) -> list[Any]:
    lines = [
        [
            line.deficit,
            [
                [order, e.cached_tokens, e.enqueue_ms, e.pinned_slot, request_to_plain(e.request)]
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
    return QueuedRequest(request_from_plain(plain), cached_tokens, enqueue_ms, pinned_slot)


def _affinity_to_plain(snapshot: AffinitySnapshot) -> list[Any]:
    bindings = [
        [
            session_id,
            binding.candidate.worker_id,
            binding.candidate.dp_rank,
            binding.leases,
            binding.expires_ms,
        ]
        for session_id, binding in snapshot.bindings
    ]
    return [bindings, snapshot.idle]


def _affinity_from_plain(plain: list[Any]) -> AffinitySnapshot:
    bindings, idle = plain
    return AffinitySnapshot(
        [
            (session_id, Binding(Candidate(worker_id, dp_rank), leases, expires_ms))
            for session_id, worker_id, dp_rank, leases, expires_ms in bindings
        ],
        idle,
    )


def _guess_to_plain(guess: Guess) -> list[Any]:
    middle: Any = guess.expiry_ms
    if middle is None:
        middle = [[request_id, pack(blocks)] for request_id, blocks in guess.leases]
    return [guess.worker, middle, pack(guess.blocks)]


def _guess_from_plain(plain: list[Any]) -> Guess:
    worker, middle, blocks = plain
    if isinstance(middle, list):
        leases = [(request_id, unpack(sequence)) for request_id, sequence in middle]
        return Guess(worker, None, leases, unpack(blocks))
    return Guess(worker, middle, [], unpack(blocks))
