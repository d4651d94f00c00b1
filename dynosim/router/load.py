"""Active load: what each candidate has in flight, from the router's own bookings.

The router books a request when it places it and receives its first token and its end; it does
not wait for workers to report. Prefill work counts until the first token; prompt blocks count as
long as the request lives, blocks shared by several active requests of a candidate once.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import NamedTuple

from dynosim.errors import InvariantError
from dynosim.router.active_blocks import ActiveBlocks
from dynosim.router.knobs import CostSpec, LoadSpec
from dynosim.router.levels import CostLevels
from dynosim.router.prefill_load import ClockSnapshot, PrefillClock, PrefillEstimator
from dynosim.router.request import RoutingRequest
from dynosim.workers.ids import Slot


@dataclass(slots=True, init=False)
class Booking:
    """A request that has been placed and has not ended."""

    slot: Slot
    keys: Sequence[int]
    private_blocks: int  # complete prompt blocks that `keys` do not name
    prefill_tokens: int  # to compute before the first token; 0 afterwards
    input_tokens: int
    expected_output_tokens: int | None
    heard_ms: float  # when the router last heard of it
    output_blocks: int
    fraction: float  # weight of the blocks that are only its own

    def __init__(
        self,
        slot: Slot,
        keys: Sequence[int],
        private_blocks: int,
        prefill_tokens: int,
        input_tokens: int,
        expected_output_tokens: int | None,
        heard_ms: float,
        output_blocks: int = 0,
        fraction: float = 1.0,
    ) -> None:
        self.slot = slot
        self.keys = keys
        self.private_blocks = private_blocks
        self.prefill_tokens = prefill_tokens
        self.input_tokens = input_tokens
        self.expected_output_tokens = expected_output_tokens
        self.heard_ms = heard_ms
        self.output_blocks = output_blocks
        self.fraction = fraction


class LoadSnapshot(NamedTuple):
    """What an `ActiveLoad` was; lists other than `bookings` go by slot."""

    bookings: list[tuple[Hashable, Booking]]  # in the order in which they were made
    blocks: list[float]
    weights: list[list[tuple[int, float]]]
    clocks: list[ClockSnapshot]


class ActiveLoad:
    """Requests, prefill tokens and distinct blocks in flight, by slot.

    `key_blocks`: see `ActiveBlocks`. `estimator` makes prefill load decay.
    """

    def __init__(
        self,
        block_size: int,
        cost: CostSpec,
        settings: LoadSpec,
        *,
        key_blocks: list[int] | None = None,
        estimator: PrefillEstimator | None = None,
    ) -> None:
        self.num_requests: list[int] = []
        self.bookings: dict[Hashable, Booking] = {}
        self._prefill_tokens: list[int] = []
        self._blocks: list[float] = []
        self._block_size = block_size
        self._cost = cost
        self._prefill_load_scale = cost.prefill_load_scale if cost.track_prefill_tokens else 0.0
        self._request_weight = cost.active_request_weight
        self._settings = settings
        self.active = ActiveBlocks(key_blocks)
        self._estimator = estimator
        self._clocks: list[PrefillClock] = []
        self._in_use: list[bool] = []  # by slot
        self._levels = CostLevels()  # as of the last look
        self._changed: set[Slot] = set()  # slots whose own cost has to be looked at again

    def add_slot(self, slot: Slot) -> None:
        """Start to count for a slot that has come into use."""
        self._grow(slot + 1)
        self._in_use[slot] = True
        self._changed.add(slot)

    def remove_slot(self, slot: Slot) -> list[Hashable]:
        """Drop a slot and what was booked on it; returns the requests concerned."""
        lost = [name for name, booking in self.bookings.items() if booking.slot == slot]
        for name in lost:
            self.free(name, 0.0)
        self._in_use[slot] = False
        self._changed.add(slot)
        return lost

    # ---- the life of a request -----------------------------------------------------------------

    def book(self, request: RoutingRequest, slot: Slot, cached_tokens: int, now_ms: float) -> None:
        """Count a request as placed on `slot`, which has `cached_tokens` of its prompt."""
        name, input_tokens = request.request_id, request.input_tokens
        if name in self.bookings:
            raise InvariantError(f"request {name} is placed twice")
        cost = request.overrides or self._cost
        counts_blocks = self._settings.track_active_blocks
        keys = request.keys if counts_blocks and cost.assume_kv_reuse else ()
        grown, named = self.active.hold(slot, keys)
        private = request.num_blocks - named if counts_blocks else 0
        prefill = 0
        if cost.track_prefill_tokens and input_tokens > cached_tokens:
            prefill = input_tokens - cached_tokens
        expected = request.expected_output_tokens
        self.bookings[name] = Booking(slot, keys, private, prefill, input_tokens, expected, now_ms)
        self.num_requests[slot] += 1
        if prefill:
            self._prefill_tokens[slot] += prefill
            if self._estimator is not None:
                duration_ms = self._estimator.predict_ms(prefill, cached_tokens)
                self._clocks[slot].add(name, prefill, duration_ms, now_ms)
        self._blocks[slot] += private + grown
        self._changed.add(slot)

    def first_token(self, name: Hashable, now_ms: float) -> None:
        """Count a request's prefill as done. An unknown or repeated name changes nothing."""
        booking = self.bookings.get(name)
        if booking is None:
            return
        booking.heard_ms = now_ms
        if booking.prefill_tokens:
            self._end_prefill(name, booking, now_ms)
            self._changed.add(booking.slot)

    def output_tokens(self, name: Hashable, num_tokens: int, now_ms: float) -> None:
        """Note that a request has produced `num_tokens` tokens in all."""
        booking = self.bookings.get(name)
        if booking is None:
            return
        booking.heard_ms = now_ms
        if not (self._settings.track_output_blocks and self._settings.track_active_blocks):
            return
        total = -(-(booking.input_tokens + num_tokens) // self._block_size)
        prompt_blocks = booking.private_blocks + self.active.num_blocks(booking.keys)
        output_blocks = max(total - prompt_blocks, 0)
        if output_blocks == booking.output_blocks:
            return
        self._weigh(booking, output_blocks, num_tokens)
        self._changed.add(booking.slot)

    def free(self, name: Hashable, now_ms: float) -> bool:
        """Count a request as ended, however it ended; returns whether it was known."""
        booking = self.bookings.pop(name, None)
        if booking is None:
            return False
        slot = booking.slot
        self.num_requests[slot] -= 1
        if booking.prefill_tokens:
            self._end_prefill(name, booking, now_ms)
        own = booking.fraction * (booking.private_blocks + booking.output_blocks)
        self._blocks[slot] -= own + self.active.let_go(slot, booking.keys)
        if not self.num_requests[slot]:
            self._blocks[slot] = 0  # fractions may have left a rounding error
        self._changed.add(slot)
        return True

    def stale(self, now_ms: float) -> list[Hashable]:
        """Requests not heard of for too long; their ends must have been lost."""
        limit_ms = now_ms - self._settings.stale_after_ms
        return [name for name, booking in self.bookings.items() if booking.heard_ms < limit_ms]

    # ---- checkpoints ---------------------------------------------------------------------------

    def snapshot(self) -> LoadSnapshot:
        """All that future answers depend on; see `restore`."""
        return LoadSnapshot(
            [(name, replace(booking)) for name, booking in self.bookings.items()],
            list(self._blocks),
            [list(weights.items()) for weights in self.active.weights],
            [clock.snapshot() for clock in self._clocks],
        )

    def restore(self, snapshot: LoadSnapshot) -> None:
        """Make a load without bookings, with the same slots in use, what another one was."""
        self._grow(len(snapshot.blocks))
        for name, booking in snapshot.bookings:
            self.bookings[name] = replace(booking)
            self.num_requests[booking.slot] += 1
            self._prefill_tokens[booking.slot] += booking.prefill_tokens
            self.active.hold(booking.slot, booking.keys)
        for number, blocks in enumerate(snapshot.blocks):
            slot = Slot(number)
            self._blocks[slot] = blocks
            self.active.weights[slot] = dict(snapshot.weights[slot])
            self._clocks[slot].restore(snapshot.clocks[slot])
            self._changed.add(slot)

    # ---- what the cost function asks -----------------------------------------------------------

    @property
    def decays(self) -> bool:
        """Whether prefill load shrinks while it is worked on."""
        return self._estimator is not None

    def prefill_tokens(self, slot: Slot, now_ms: float) -> int:
        """Prompt tokens that a slot has still to compute, as far as the router knows."""
        if self._estimator is None:
            return self._prefill_tokens[slot]
        return self._clocks[slot].tokens(now_ms)

    def active_prefill_tokens(self, now_ms: float) -> list[int]:
        """`prefill_tokens` of every slot; not to be changed."""
        if self._estimator is None:
            return self._prefill_tokens
        return [clock.tokens(now_ms) for clock in self._clocks]

    def blocks(self, slot: Slot) -> int:
        """Distinct blocks of a slot's active requests, to the nearest integer."""
        return int(self._blocks[slot] + 0.5)

    def active_blocks(self) -> list[int]:
        """`blocks` of every slot."""
        return [int(blocks + 0.5) for blocks in self._blocks]

    def own_costs(self) -> CostLevels:
        """What each slot costs any request, whatever that saves; not to be changed.

        Slots not in use have an infinite cost.
        """
        levels = self._levels
        scale, weight = self._prefill_load_scale, self._request_weight
        for slot in self._changed:  # derived anew, never added up: no rounding accumulates
            cost = inf
            if self._in_use[slot]:
                prefill_blocks = self._prefill_tokens[slot] / self._block_size
                blocks = int(self._blocks[slot] + 0.5)
                cost = scale * prefill_blocks + blocks + weight * self.num_requests[slot]
            levels.change(slot, cost)
        self._changed.clear()
        return levels

    # ---- inside --------------------------------------------------------------------------------

    def _grow(self, num_slots: int) -> None:
        """Make room for so many slots."""
        while len(self.num_requests) < num_slots:
            self._levels.add()
            self._in_use.append(False)
            self.num_requests.append(0)
            self._prefill_tokens.append(0)
            self._blocks.append(0)
            self.active.grow()
            self._clocks.append(PrefillClock())

    def _end_prefill(self, name: Hashable, booking: Booking, now_ms: float) -> None:
        self._prefill_tokens[booking.slot] -= booking.prefill_tokens
        booking.prefill_tokens = 0
        if self._estimator is not None:
            self._clocks[booking.slot].remove(name, now_ms)

    def _weigh(self, booking: Booking, output_blocks: int, num_tokens: int) -> None:
        """Count new output blocks, and what is only this request's own by how much is to come."""
        slot = booking.slot
        fraction = 1.0
        if booking.expected_output_tokens is not None:
            fraction = max(0.0, 1 - num_tokens / max(booking.expected_output_tokens, 1))
        own_before = booking.fraction * (booking.private_blocks + booking.output_blocks)
        change = fraction * (booking.private_blocks + output_blocks) - own_before
        change = self.active.weigh(slot, booking.keys, fraction, change)
        booking.fraction = fraction
        booking.output_blocks = output_blocks
        self._blocks[slot] += change
