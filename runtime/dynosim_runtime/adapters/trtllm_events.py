"""TensorRT-LLM's KV events: fetched from its /kv_cache_events, published in vLLM's form.

Written from TensorRT-LLM's documentation and tried against answers in its form, not proven on
hardware. Blocks that are not full have events there and none in vLLM's form. A block that it moves
to the host counts as removed, since an event of its return would not tell its tokens. Where event
ids have a gap, its buffer has overflown: all it had counts as removed, so that a router never
believes in more than there is.
"""

import asyncio
import logging

import msgspec

from dynosim.indexer.wire import EngineEvent, removed_event, stored_event
from dynosim_runtime.adapters.engine_http import EngineCallError, EngineHttp
from dynosim_runtime.kv_events.publisher import EventPublisher
from dynosim_runtime.outage import Outage

IDLE_S = 0.05  # between two fetches; the engine itself waits for events before it answers
RETRY_S = 1.0

log = logging.getLogger(__name__)


class _Token(msgspec.Struct):
    token_id: int


class _Block(msgspec.Struct):
    block_hash: int
    tokens: list[_Token]
    cache_level: int = 0


class _Diff(msgspec.Struct):
    new_value: int


class _Created(msgspec.Struct, tag="created"):
    num_blocks_per_cache_level: list[int]


class _Stored(msgspec.Struct, tag="stored"):
    parent_hash: int | None
    blocks: list[_Block]


class _Removed(msgspec.Struct, tag="removed"):
    block_hashes: list[int]


class _Updated(msgspec.Struct, tag="updated"):
    block_hash: int
    cache_level: _Diff | None = None


class _Event(msgspec.Struct):
    event_id: int
    data: _Created | _Stored | _Removed | _Updated
    window_size: int | None = None


class TrtllmEvents:
    """Turns one engine's events into vLLM's, in order."""

    def __init__(self) -> None:
        self._partial: set[int] = set()  # hashes of blocks that are not full
        self._next_id: int | None = None
        self._window_size = 0  # the longest attention window, whose blocks are followed
        self._decode = msgspec.json.Decoder(list[_Event]).decode

    def convert(self, answer: bytes | str, block_size: int) -> list[EngineEvent]:
        """What an answer of /kv_cache_events says. Raises: msgspec.MsgspecError if it is none."""
        events: list[EngineEvent] = []
        for event in self._decode(answer):
            if self._next_id is not None and event.event_id != self._next_id:
                log.warning("TensorRT-LLM has lost KV events before %d", event.event_id)
                events = [EngineEvent("AllBlocksCleared", {})]
                self._partial.clear()
            self._next_id = event.event_id + 1
            window_size = event.window_size or 0
            if isinstance(event.data, _Created):
                self._window_size = max(self._window_size, window_size)
            elif window_size >= self._window_size:
                events += self._converted(event.data, block_size)
        return events

    def _converted(self, data: _Stored | _Removed | _Updated, block_size: int) -> list[EngineEvent]:
        if isinstance(data, _Stored):
            return self._stored(data, block_size)
        if isinstance(data, _Removed):
            hashes = [value for value in data.block_hashes if value not in self._partial]
            self._partial.difference_update(data.block_hashes)
            return [removed_event(hashes)] if hashes else []
        has_left = data.cache_level is not None and data.cache_level.new_value > 0
        return [removed_event([data.block_hash])] if has_left else []

    def _stored(self, data: _Stored, block_size: int) -> list[EngineEvent]:
        hashes: list[int] = []
        token_ids: list[int] = []
        for block in data.blocks:
            if len(block.tokens) < block_size or block.cache_level > 0:
                self._partial.add(block.block_hash)
                break  # what follows would hang in the air
            hashes.append(block.block_hash)
            token_ids += [token.token_id for token in block.tokens]
        if not hashes:
            return []
        return [stored_event(data.parent_hash, hashes, token_ids, block_size)]


async def relay_events(http: EngineHttp, publisher: EventPublisher, block_size: int) -> None:
    """Fetch and publish for good, whatever the engine answers."""
    events = TrtllmEvents()
    foreseen = (EngineCallError, msgspec.MsgspecError)
    fetching = Outage(log, "KV events of TensorRT-LLM cannot be fetched", foreseen)
    while True:
        try:
            answer = await http.post_text("/kv_cache_events")
            publisher.publish(events.convert(answer, block_size))
            fetching.worked()
            await asyncio.sleep(IDLE_S)
        except Exception as error:  # numbers that no message can carry, too
            fetching.failed(error)
            await asyncio.sleep(RETRY_S)
