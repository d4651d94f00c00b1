"""A router's account of what workers have in hand, from scratch out of a list of requests.

Every figure is a sum over the requests that are active now; nothing is carried along but what
depends on the past: how far a request was when it was last heard of, and since when the oldest
prompt of a worker is the oldest.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor

from dynosim.router.knobs import CostSpec, LoadSpec
from dynosim.router.prefill_load import PrefillEstimator
from dynosim.router.request import RoutingRequest


@dataclass
class Active:
    """A request that was placed and has not ended."""

    name: Hashable
    slot: int
    input_tokens: int
    keys: tuple[int, ...]
    prompt_blocks: int
    private_blocks: int  # complete prompt blocks that no key names
    expected_output_tokens: int | None
    prefill_tokens: int  # 0 from the first token on
    prefill_ms: float | None  # predicted
    heard_ms: float
    output_blocks: int = 0
    fraction: float = 1.0  # what its own blocks count


class NaiveLoad:
    """The same questions as `ActiveLoad` answers, and the same news."""

    def __init__(
        self,
        block_size: int,
        cost: CostSpec,
        settings: LoadSpec,
        *,
        key_blocks: Sequence[int] | None = None,
        estimator: PrefillEstimator | None = None,
    ) -> None:
        self.block_size = block_size
        self.cost = cost
        self.settings = settings
        self.key_blocks = key_blocks
        self.estimator = estimator
        self.active: list[Active] = []  # in the order in which they were placed
        self.faded: dict[tuple[int, int], float] = {}  # (slot, key) -> what a block of it counts
        self.oldest_since_ms: dict[int, float] = {}  # by slot

    # ---- news ----------------------------------------------------------------------------------

    def book(self, request: RoutingRequest, slot: int, cached_tokens: int, now_ms: float) -> None:
        cost = request.overrides or self.cost
        keys = tuple(request.keys) if cost.assume_kv_reuse else ()
        num_blocks = request.num_blocks
        if not self.settings.track_active_blocks:
            keys, num_blocks = (), 0
        prefill_tokens = 0
        if cost.track_prefill_tokens:
            prefill_tokens = max(request.input_tokens - cached_tokens, 0)
        prefill_ms = None
        if prefill_tokens and self.estimator is not None:
            prefill_ms = self.estimator.predict_ms(prefill_tokens, cached_tokens)
        if prefill_tokens and not self._prefills(slot):
            self.oldest_since_ms[slot] = now_ms
        for key in keys:
            self.faded.pop((slot, key), None)  # a block of several requests counts in full
        self.active.append(
            Active(
                request.request_id, slot, request.input_tokens, keys, num_blocks,
                num_blocks - sum(map(self.size_of, keys)),
                request.expected_output_tokens, prefill_tokens, prefill_ms, now_ms,
            )
        )  # fmt: skip

    def first_token(self, name: Hashable, now_ms: float) -> None:
        entry = self.named(name)
        if entry is not None:
            entry.heard_ms = now_ms
            self._end_prefill(entry, now_ms)

    def output_tokens(self, name: Hashable, num_tokens: int, now_ms: float) -> None:
        entry = self.named(name)
        if entry is None:
            return
        entry.heard_ms = now_ms
        total = -(-(entry.input_tokens + num_tokens) // self.block_size)
        output_blocks = max(total - entry.prompt_blocks, 0)
        tracked = self.settings.track_output_blocks and self.settings.track_active_blocks
        if not tracked or output_blocks == entry.output_blocks:
            return
        fraction = 1.0
        if entry.expected_output_tokens is not None:
            fraction = max(0.0, 1 - num_tokens / max(entry.expected_output_tokens, 1))
        entry.output_blocks, entry.fraction = output_blocks, fraction
        for key in entry.keys:
            if len(self._owners(entry.slot, key)) == 1:
                self.faded[entry.slot, key] = fraction

    def free(self, name: Hashable, now_ms: float) -> bool:
        entry = self.named(name)
        if entry is None:
            return False
        self._end_prefill(entry, now_ms)
        self.active.remove(entry)
        for key in entry.keys:
            if not self._owners(entry.slot, key):
                self.faded.pop((entry.slot, key), None)
        return True

    def remove_slot(self, slot: int) -> list[Hashable]:
        lost = [entry.name for entry in self.on(slot)]
        for name in lost:
            self.free(name, 0.0)
        return lost

    # ---- questions -----------------------------------------------------------------------------

    def named(self, name: Hashable) -> Active | None:
        return next((entry for entry in self.active if entry.name == name), None)

    def on(self, slot: int) -> list[Active]:
        return [entry for entry in self.active if entry.slot == slot]

    def stale(self, now_ms: float) -> list[Hashable]:
        limit_ms = self.settings.stale_after_ms
        return [entry.name for entry in self.active if entry.heard_ms + limit_ms < now_ms]

    def num_requests(self, slot: int) -> int:
        return len(self.on(slot))

    def blocks(self, slot: int) -> int:
        """Distinct blocks, each by what it counts, to the nearest integer (halves up)."""
        keys = {key for entry in self.on(slot) for key in entry.keys}
        total = sum(self.size_of(key) * self.faded.get((slot, key), 1.0) for key in keys)
        for entry in self.on(slot):
            total += entry.fraction * (entry.private_blocks + entry.output_blocks)
        return floor(total + 0.5)

    def active_prefix(self, slot: int, keys: Sequence[int]) -> int:
        """Leading blocks of a prompt that some request on the slot has in use."""
        blocks = 0
        for key in keys:
            if not self._owners(slot, key):
                break
            blocks += self.size_of(key)
        return blocks

    def prefill_tokens(self, slot: int, now_ms: float) -> int:
        """Prompt tokens without a first token, less what the oldest is taken to have done."""
        line = self._prefills(slot)
        total = sum(entry.prefill_tokens for entry in line)
        if not line or line[0].prefill_ms is None:
            return total
        oldest = line[0]
        elapsed_ms = max(now_ms - self.oldest_since_ms[slot], 0.0)
        done = Fraction(1)
        if oldest.prefill_ms > 0:
            done = Fraction(elapsed_ms) / Fraction(oldest.prefill_ms)
        if all(entry.prefill_ms is not None for entry in line):
            return max(0, total - floor(oldest.prefill_tokens * done))
        return total - oldest.prefill_tokens + ceil(oldest.prefill_tokens * max(0, 1 - done))

    # ---- inside --------------------------------------------------------------------------------

    def size_of(self, key: int) -> int:
        return 1 if self.key_blocks is None else self.key_blocks[key]

    def _owners(self, slot: int, key: int) -> list[Active]:
        return [entry for entry in self.on(slot) if key in entry.keys]

    def _prefills(self, slot: int) -> list[Active]:
        """Prompts without a first token, oldest first."""
        return [entry for entry in self.on(slot) if entry.prefill_tokens]

    def _end_prefill(self, entry: Active, now_ms: float) -> None:
        line = self._prefills(entry.slot)
        if line and line[0] is entry:
            self.oldest_since_ms[entry.slot] = now_ms
        entry.prefill_tokens = 0
