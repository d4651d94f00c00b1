"""A router's state as log entries, from which a new router goes on exactly as the old one would.

What the index holds is written worker by worker, since events of one worker do not touch another's
part: it can be written a bit at a time between inputs (`CheckpointInParts`), if the joins, leaves
and events that come meanwhile are written as well. All else is written at once, at the end. The
index is restored block by block and may be laid out otherwise than the old one, but answers alike;
all else is restored bit by bit, dict orders, sums of floats and the random generator included.

    workers t cards candidates          candidates by slot: [worker_id, dp_rank] or null
    index   t worker_id dp_rank columns what a rank holds
    held    t worker_id dp_rank columns the same, of a positional index
    tiers   t worker_id dp_rank columns what a rank holds in which tiers
    state   t state                     all else
"""

from collections.abc import Callable, Iterator
from typing import Any, Protocol, runtime_checkable

from dynosim.errors import ConfigError
from dynosim.indexer.approximate import ApproximateIndex, PredictedIndex
from dynosim.indexer.base import BlockEvent, Removed, Stored, sequence_names
from dynosim.indexer.positional import Held, PositionalIndex
from dynosim.indexer.tiers import TieredIndex
from dynosim.router.kv_router import AnyRouter, KvRouter
from dynosim.router.log.plain import (
    Entry,
    card_from_plain,
    card_to_plain,
    pack,
    unpack,
)
from dynosim.router.log.state import snapshot_from_plain, snapshot_to_plain
from dynosim.router.workers import Candidate
from dynosim.workers.ids import DpRank, Slot, WorkerId


@runtime_checkable
class DumpedIndex(Protocol):
    """An index that can give what a worker holds as events."""

    def dump(self, worker: Slot) -> list[BlockEvent]:
        """Events that lead an empty index to what a worker holds."""
        ...


class CheckpointInParts:
    """Tells a router's state a part at a time; between two parts the router may get inputs.

    Entries, in this order: `begin()`, then what `next_part()` returns and what `belongs` of the
    log's own entries, as they come, then `finish()`.
    Raises: ConfigError for an index that cannot give what it holds.
    """

    def __init__(self, router: AnyRouter) -> None:
        check_can_be_told(router.index)
        self._router = router
        self._pending: dict[Candidate, None] = {
            who: None for who in router.table.candidates if who is not None
        }

    @property
    def is_complete(self) -> bool:
        """Whether only `finish` is left to be called."""
        return not self._pending

    def begin(self, now_ms: float) -> Entry:
        """The workers."""
        table = self._router.table
        cards = [card_to_plain(card) for card in table.cards.values()]
        return ["workers", now_ms, cards, [who and list(who) for who in table.candidates]]

    def next_part(self, now_ms: float) -> list[Entry]:
        """What the next rank holds."""
        who = next(iter(self._pending))
        del self._pending[who]
        slot = self._router.table.slot_of(who.worker_id, who.dp_rank)
        assert slot is not None
        parts = _index_parts(self._router, slot)
        return [[kind, now_ms, *who, plain] for kind, plain in parts if plain]

    def belongs(self, entry: Entry) -> bool:
        """Whether an entry logged meanwhile is part of the checkpoint; to be asked of each."""
        kind = entry[0]
        if kind in ("join", "leave"):  # one that joins again begins anew
            worker_id = entry[2] if kind == "leave" else entry[2]["worker_id"]
            for who in [who for who in self._pending if who.worker_id == worker_id]:
                del self._pending[who]
        if kind == "event":
            return Candidate(entry[2], entry[3]) not in self._pending
        return kind in ("join", "leave")

    def finish(self, now_ms: float) -> list[Entry]:
        """All parts that are left."""
        entries: list[Entry] = []
        while self._pending:
            entries += self.next_part(now_ms)
        return [*entries, ["state", now_ms, snapshot_to_plain(self._router.snapshot())]]


def checkpoint(router: AnyRouter, now_ms: float) -> list[Entry]:
    """Entries that make a new router with the same settings and index kind what this one is.

    Raises: ConfigError for an index that cannot give what it holds.
    """
    parts = CheckpointInParts(router)
    return [parts.begin(now_ms), *parts.finish(now_ms)]


def check_can_be_told(index: object) -> None:
    """Raises: ConfigError if there is no telling what a router's index holds."""
    index = _primary(index)
    if not isinstance(index, DumpedIndex | PositionalIndex | ApproximateIndex):
        raise ConfigError(
            f"a rotating router log cannot follow {type(index).__name__}; use an index of block "
            "hashes, such as router.index: compressed"
        )


def difference(one: AnyRouter, other: AnyRouter) -> str | None:
    """In what two routers with the same settings differ; None if they will decide alike."""
    ones, others = _parts(one), _parts(other)
    return next((name for name, part in ones.items() if part != others[name]), None)


def _parts(router: AnyRouter) -> dict[str, Any]:
    """The state, by parts, free of the ways in which an index can tell the same."""
    table = router.table
    index: dict[Any, Any] = {}
    for slot, who in enumerate(table.candidates):
        if who is not None:
            for kind, plain in _index_parts(router, Slot(slot)):
                index[who, kind] = _held_blocks(plain)
    state = snapshot_to_plain(router.snapshot())
    return {"workers": (table.cards, table.candidates), "index": index, **state}


def _held_blocks(plain: Any) -> set[Any]:
    """Every block with its prefix, however it is told."""
    if not isinstance(plain, dict):
        return set(_rows(plain))
    return set(sequence_names(_events_from_plain(plain)).items()) if plain else set()


# ---- the index -----------------------------------------------------------------------------------


def _primary(index: object) -> object:
    """The index that events of devices go to; an approximate one if none do."""
    known = _tiered(index)
    if known is not None:
        return known.device
    return index.primary if isinstance(index, PredictedIndex) else index


def _tiered(index: object) -> TieredIndex | None:
    known = index.primary if isinstance(index, PredictedIndex) else index
    return known if isinstance(known, TieredIndex) else None


def _index_parts(router: AnyRouter, slot: Slot) -> list[tuple[str, Any]]:
    """(kind of entry, plain values) of what a slot holds."""
    index = _primary(router.index)
    parts: list[tuple[str, Any]] = []
    if isinstance(index, PositionalIndex):
        parts.append(("held", _held_to_plain(index.dump_held(slot))))
    elif isinstance(index, DumpedIndex):
        parts.append(("index", _events_to_plain(index.dump(slot))))
    tiered = _tiered(router.index)
    if tiered is not None:
        parts.append(("tiers", _columns(tiered.dump_tiers(slot))))
    return parts


def _events_to_plain(events: list[BlockEvent]) -> dict[str, Any]:
    """Events of a dump in columns; empty if there are none."""
    parents: list[int | None] = []
    lengths: list[int] = []
    names: list[int] = []
    local: list[int] = []
    missing: list[int] = []
    for event in events:
        if isinstance(event, Stored):
            parents.append(event.parent)
            lengths.append(len(event.block_hashes))
            names += event.block_hashes
            local += event.local_hashes
        elif isinstance(event, Removed):
            missing += event.block_hashes
    if not names:
        return {}
    columns = {"names": pack(names), "local": pack(local), "missing": pack(missing)}
    return {"parents": parents, "lengths": lengths, **columns}


def _events_from_plain(plain: dict[str, Any]) -> Iterator[Stored | Removed]:
    names, local, end = unpack(plain["names"]), unpack(plain["local"]), 0
    for parent, length in zip(plain["parents"], plain["lengths"], strict=True):
        begin, end = end, end + length
        yield Stored(parent, names[begin:end], local[begin:end])
    missing = unpack(plain["missing"])
    if missing:
        yield Removed(missing)


def _held_to_plain(blocks: list[tuple[int, Held]]) -> list[Any]:
    rows = [
        (name, held.position, held.local, held.sequence, held.parent or 0) for name, held in blocks
    ]
    return _columns(rows)


def _columns(rows: list[Any]) -> list[Any]:
    return [pack(column) for column in zip(*rows, strict=True)]


def _rows(columns: list[Any]) -> Any:
    return zip(*[unpack(column) for column in columns], strict=True)


# ---- restoring -----------------------------------------------------------------------------------


def _restore_workers(router: AnyRouter, cards: list[Any], candidates: list[Any]) -> None:
    router.restore_workers(
        [card_from_plain(card) for card in cards], [who and Candidate(*who) for who in candidates]
    )


def _restore_index(
    router: KvRouter[BlockEvent], worker_id: WorkerId, dp_rank: DpRank, plain: dict[str, Any]
) -> None:
    slot = _slot(router, worker_id, dp_rank)
    for event in _events_from_plain(plain):
        router.index.apply(slot, event)


def _restore_held(
    router: AnyRouter, worker_id: WorkerId, dp_rank: DpRank, columns: list[Any]
) -> None:
    blocks = [
        (name, Held(position, local, sequence, parent if position else None))
        for name, position, local, sequence, parent in _rows(columns)
    ]
    index = _primary(router.index)
    if not isinstance(index, PositionalIndex):
        raise ValueError("this router's index is not positional")
    index.restore_held(_slot(router, worker_id, dp_rank), blocks)


def _restore_tiers(
    router: AnyRouter, worker_id: WorkerId, dp_rank: DpRank, columns: list[Any]
) -> None:
    tiered = _tiered(router.index)
    if tiered is None:
        raise ValueError("this router's index knows no tiers")
    tiered.restore_tiers(_slot(router, worker_id, dp_rank), _rows(columns))


def _slot(router: AnyRouter, worker_id: WorkerId, dp_rank: DpRank) -> Slot:
    slot = router.table.slot_of(worker_id, dp_rank)
    if slot is None:
        raise ValueError(f"worker {worker_id} rank {dp_rank} is not among the workers")
    return slot


def _restore_state(router: AnyRouter, plain: dict[str, Any]) -> None:
    router.restore(snapshot_from_plain(plain))


RESTORERS: dict[str, Callable[..., None]] = {
    "workers": _restore_workers,
    "index": _restore_index,
    "held": _restore_held,
    "tiers": _restore_tiers,
    "state": _restore_state,
}
"""By kind of entry: what gives it to a router that is still as `begin` found a new one."""
