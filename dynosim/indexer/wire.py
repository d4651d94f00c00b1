"""vLLM's KV events on the wire: three ZMQ frames (topic, sequence number, msgpack payload).

Pure functions over bytes. The payload is `[timestamp, [events], data-parallel rank]`; an event is a
map with its kind under `type` or an array with the kind first, by the engine's version. The
engine's block hashes are opaque; its token ids become our local hashes. Fields that a newer engine
may add are passed over.

vLLM's replay endpoint takes a sequence number and answers with all messages from there on that it
still has, each as it was published, and then an end mark.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

from dynosim.blocks.hashing import local_hashes
from dynosim.blocks.tier import Tier
from dynosim.errors import ConfigError
from dynosim.indexer.base import BlockEvent, Cleared, Removed, Stored

TIERS = {
    "GPU": Tier.DEVICE,
    "DEVICE": Tier.DEVICE,
    "CPU": Tier.HOST,
    "CPU_PINNED": Tier.HOST,
    "CPU_TIER1": Tier.HOST,
    "CPU_TIER2": Tier.DISK,
    "DISK": Tier.DISK,
    "NVME": Tier.DISK,
    "STORAGE": Tier.DISK,
    "EXTERNAL": Tier.REMOTE,
    "NETWORK": Tier.REMOTE,
    "REMOTE": Tier.REMOTE,
    "SHARED": Tier.REMOTE,
}
MEDIA = {Tier.DEVICE: "GPU", Tier.HOST: "CPU", Tier.DISK: "DISK", Tier.REMOTE: "REMOTE"}
FIELDS = {
    "BlockStored": (
        "block_hashes", "parent_block_hash", "token_ids", "block_size", "lora_id", "medium",
        "lora_name", "extra_keys",
    ),
    "BlockRemoved": ("block_hashes", "medium"),
    "AllBlocksCleared": (),
}  # fmt: skip
MAX_HASH_BYTES = 64  # vLLM sends 64 bits of a digest as a number, or the digest: 32 bytes
END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)


class EventFormatError(ConfigError):
    """Bytes that are not KV events, or events that do not fit this router."""


class EngineEvent(NamedTuple):
    """One event as an engine sent it."""

    kind: str  # BlockStored, BlockRemoved or AllBlocksCleared
    fields: dict[str, Any]


class KvBatch(NamedTuple):
    """One message of an engine: what happened in one step."""

    sequence: int
    timestamp_s: float
    dp_rank: int
    events: list[EngineEvent]


def decode_batch(frames: Sequence[bytes]) -> KvBatch:
    """The message in the frames of a subscription.

    Raises: EventFormatError telling what is wrong with them.
    """
    if len(frames) != 3:
        raise EventFormatError(
            f"a KV event message has 3 frames (topic, sequence number, payload), got {len(frames)}"
        )
    _, number, payload = frames
    if len(number) != 8:
        raise EventFormatError(f"the sequence number must have 8 bytes, got {len(number)}")
    try:
        data = msgspec.msgpack.decode(payload)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:  # UTF-8, depth
        raise EventFormatError(
            f"the payload of a KV event message is no msgpack: {error}"
        ) from None
    if not isinstance(data, list) or len(data) < 2 or not isinstance(data[1], list):
        raise EventFormatError("the payload must be [timestamp, [events], data-parallel rank]")
    if not isinstance(data[0], int | float):
        raise EventFormatError(f"the timestamp must be a number, got {data[0]!r:.80}")
    dp_rank = data[2] if len(data) > 2 and data[2] is not None else 0
    if not isinstance(dp_rank, int) or dp_rank < 0:
        raise EventFormatError(f"the data-parallel rank must be a number >= 0, got {dp_rank!r:.80}")
    events = [_engine_event(event) for event in data[1]]
    return KvBatch(int.from_bytes(number, "big"), float(data[0]), dp_rank, events)


def encode_batch(batch: KvBatch, topic: str = "") -> tuple[bytes, bytes, bytes]:
    """The frames that carry a message, as a recent vLLM sends them."""
    events = [{"type": event.kind, **event.fields} for event in batch.events]
    payload = msgspec.msgpack.encode([batch.timestamp_s, events, batch.dp_rank])
    return topic.encode(), batch.sequence.to_bytes(8, "big"), payload


def to_block_event(event: EngineEvent, block_size: int, salt: str = "") -> BlockEvent:
    """The event in the indexer's terms; a LoRA name in it takes the place of `salt`.

    Raises: EventFormatError for another block size, an unknown medium or malformed fields.
    """
    kind, fields = event
    if kind == "AllBlocksCleared":
        return Cleared()
    tier = _tier(fields.get("medium"))
    hashes = [_as_int(value) for value in _listed(fields, "block_hashes")]
    if kind == "BlockRemoved":
        return Removed(hashes, tier)
    if fields.get("block_size") == 0:
        raise EventFormatError(
            f"what the engine stored in {fields.get('medium')} comes without its tokens; start "
            "vLLM's offloading with self_describing_kv_events: true"
        )
    if fields.get("block_size") != block_size:
        raise EventFormatError(
            f"the engine's KV blocks hold {fields.get('block_size')} tokens, the router's "
            f"{block_size}; start both with the same block size"
        )
    parent = fields.get("parent_block_hash")
    local = _local_hashes(fields, len(hashes), block_size, salt)
    return Stored(None if parent is None else _as_int(parent), hashes, local, tier)


def stored_event(
    parent: int | None,
    hashes: Sequence[int],
    token_ids: Sequence[int],
    block_size: int,
    tier: Tier = Tier.DEVICE,
) -> EngineEvent:
    """An engine's news that blocks with these tokens are cached in a tier."""
    return EngineEvent(
        "BlockStored",
        {
            "block_hashes": list(hashes),
            "parent_block_hash": parent,
            "token_ids": list(token_ids),
            "block_size": block_size,
            "lora_id": None,
            "medium": MEDIA[tier],
            "lora_name": None,
        },
    )


def removed_event(hashes: Sequence[int], tier: Tier = Tier.DEVICE) -> EngineEvent:
    """An engine's news that blocks were evicted."""
    return EngineEvent("BlockRemoved", {"block_hashes": list(hashes), "medium": MEDIA[tier]})


def replay_request(first_sequence: int) -> tuple[bytes, bytes]:
    """Frames that ask vLLM's replay endpoint for all messages from a sequence number on."""
    return b"", first_sequence.to_bytes(8, "big")


def replay_first_sequence(frames: Sequence[bytes]) -> int:
    """The sequence number asked for, from a request as the endpoint's ROUTER socket gets it.

    Raises: EventFormatError.
    """
    if len(frames) != 3 or len(frames[2]) != 8:
        raise EventFormatError(
            "a replay request has 3 frames (client, empty, sequence number of 8 bytes)"
        )
    return int.from_bytes(frames[2], "big")


def decode_replay(frames: Sequence[bytes]) -> KvBatch | None:
    """A message in an answer of the replay endpoint; None: there are no more.

    Takes the frames with and without the empty one in front (DEALER and REQ sockets).
    Raises: EventFormatError.
    """
    if is_end_of_replay(frames):
        return None
    return decode_batch(frames[1:] if len(frames) == 4 else frames)


def is_end_of_replay(frames: Sequence[bytes]) -> bool:
    """Whether an answer of the replay endpoint is its last."""
    return len(frames) >= 2 and frames[-2] == END_OF_REPLAY


def _engine_event(data: Any) -> EngineEvent:
    if isinstance(data, dict):
        kind = data.get("type")
        fields = {name: value for name, value in data.items() if name != "type"}
    elif isinstance(data, list) and data:
        kind = data[0]
        fields = dict(zip(FIELDS.get(str(kind), ()), data[1:], strict=False))
    else:
        raise EventFormatError(f"a KV event must be a map or an array, got {data!r:.80}")
    if not isinstance(kind, str) or kind not in FIELDS:
        raise EventFormatError(f"unknown kind of KV event {kind!r:.80}; known: {', '.join(FIELDS)}")
    return EngineEvent(kind, fields)


def _local_hashes(fields: dict[str, Any], num_blocks: int, block_size: int, salt: str) -> list[int]:
    """Local hashes of a stored event's blocks, each with what else its content depends on."""
    tokens = _listed(fields, "token_ids")
    if len(tokens) != num_blocks * block_size:
        raise EventFormatError(
            f"{len(tokens)} token ids for {num_blocks} blocks of {block_size} tokens"
        )
    lora_name = fields.get("lora_name")
    if not isinstance(lora_name, str | None):
        raise EventFormatError(f"lora_name must be a string, got {lora_name!r:.80}")
    salt = lora_name or salt
    try:
        local = local_hashes(tokens, block_size, salt=salt)
        for block, other_keys in _other_keys(fields, num_blocks, lora_name):
            part = tokens[block * block_size : (block + 1) * block_size]
            local[block : block + 1] = local_hashes(part, block_size, salt=f"{salt}+{other_keys}")
    except ConfigError as error:
        raise EventFormatError(f"a stored KV event: {error}") from None
    return local


def _other_keys(
    fields: dict[str, Any], num_blocks: int, lora_name: str | None
) -> Iterator[tuple[int, str]]:
    """Blocks whose content tokens and LoRA name alone do not tell, with what else it depends on.

    Images and cache salts: such a block must not pass for one of a plain prompt.
    """
    extra_keys = fields.get("extra_keys") or [None] * num_blocks
    if not isinstance(extra_keys, list) or len(extra_keys) != num_blocks:
        raise EventFormatError("extra_keys must be a list with an entry for each block hash")
    for block, keys in enumerate(extra_keys):
        if keys is not None and not isinstance(keys, list):
            raise EventFormatError(f"extra_keys must hold lists, got {keys!r:.80}")
        other = [key for key in keys or () if key != lora_name]
        if other:
            yield block, msgspec.msgpack.encode(other).hex()


def _tier(medium: Any) -> Tier:
    if medium is None:
        return Tier.DEVICE
    tier = TIERS.get(str(medium).upper())
    if tier is None:
        raise EventFormatError(
            f"unknown medium {medium!r:.80} of a KV event; known: {', '.join(TIERS)}"
        )
    return tier


def _listed(fields: dict[str, Any], name: str) -> list[Any]:
    value = fields.get(name)
    if not isinstance(value, list):
        raise EventFormatError(f"a KV event lacks its {name}")
    return value


def _as_int(value: Any) -> int:
    """A block hash as a number; newer engines send digests."""
    if isinstance(value, int) and not isinstance(value, bool):
        if not -(1 << 63) <= value < 1 << 64:
            raise EventFormatError("a block hash that is a number must have at most 64 bits")
        return value
    if isinstance(value, bytes):
        if not 0 < len(value) <= MAX_HASH_BYTES:
            raise EventFormatError(
                f"a block hash must have 1 to {MAX_HASH_BYTES} bytes, got {len(value)}"
            )
        return int.from_bytes(value, "big")
    raise EventFormatError(f"a block hash must be a number or bytes, got {value!r:.80}")
