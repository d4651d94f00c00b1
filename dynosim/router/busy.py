"""Busy thresholds: workers above them get no new requests; if all are, requests are refused."""

from collections.abc import Sequence
from dataclasses import dataclass

from dynosim.errors import ConfigError
from dynosim.indexer.answers import members
from dynosim.router.workers import WorkerTable
from dynosim.workers.ids import Slot


@dataclass(frozen=True, slots=True)
class BusyThresholds:
    """A rank is busy if it is above any of the limits that are set.

    `active_decode_blocks_threshold` is a share of the worker's KV blocks,
    `active_prefill_tokens_threshold_frac` a multiple of its `max_num_batched_tokens`. A worker
    that does not tell these sizes is never above them.
    """

    active_decode_blocks_threshold: float | None = None
    active_prefill_tokens_threshold: int | None = None
    active_prefill_tokens_threshold_frac: float | None = None

    def __post_init__(self) -> None:
        for name in self.__slots__:
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ConfigError(f"router.{name}: must be at least 0, got {value}")

    @property
    def is_set(self) -> bool:
        """Whether there is any limit."""
        return any(getattr(self, name) is not None for name in self.__slots__)


def busy_mask(
    thresholds: BusyThresholds,
    table: WorkerTable,
    active_blocks: Sequence[int],
    active_prefill_tokens: Sequence[int],
) -> int:
    """The slots of busy workers; one with several ranks is busy only if all its ranks are."""
    if not thresholds.is_set:
        return 0
    busy = 0
    for worker_id in table.cards:
        ranks = table.mask_of_worker(worker_id)
        if all(
            _is_above(thresholds, table, slot, active_blocks[slot], active_prefill_tokens[slot])
            for slot in members(ranks)
        ):
            busy |= ranks
    return busy


def _is_above(
    thresholds: BusyThresholds, table: WorkerTable, slot: Slot, blocks: int, prefill_tokens: int
) -> bool:
    card = table.card(slot)
    share = thresholds.active_decode_blocks_threshold
    if share is not None and card.total_kv_blocks is not None:
        if blocks > share * card.total_kv_blocks:
            return True
    limit = thresholds.active_prefill_tokens_threshold
    if limit is not None and prefill_tokens > limit:
        return True
    multiple = thresholds.active_prefill_tokens_threshold_frac
    budget = card.max_num_batched_tokens
    return multiple is not None and budget is not None and prefill_tokens > multiple * budget
