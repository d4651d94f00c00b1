"""vLLM's KV events: decoding what real engines send, and refusing what is none."""

import msgspec
import pytest

from dynosim.hashing import local_hashes
from dynosim.indexer.base import Cleared, Removed, Stored, Tier
from dynosim.indexer.wire import (
    END_OF_REPLAY,
    EngineEvent,
    EventFormatError,
    KvBatch,
    decode_batch,
    encode_batch,
    is_end_of_replay,
    removed_event,
    replay_request,
    stored_event,
    to_block_event,
)

# By vLLM 0.32 itself: stored (8 tokens in 2 blocks of 4), removed on the CPU, cleared.
VLLM = bytes.fromhex(
    "93cb40290000000000009389a474797065ab426c6f636b53746f726564ac626c6f636b5f686173686573920b0cb1"
    "706172656e745f626c6f636b5f68617368c0a9746f6b656e5f696473980001020304050607aa626c6f636b5f7369"
    "7a6504a76c6f72615f6964c0a66d656469756da3475055a96c6f72615f6e616d65c0a967726f75705f6964780083"
    "a474797065ac426c6f636b52656d6f766564ac626c6f636b5f68617368657391c4020102a66d656469756da34350"
    "5581a474797065b0416c6c426c6f636b73436c656172656401"
)


def frames(payload: bytes, sequence: int = 7) -> tuple[bytes, bytes, bytes]:
    return b"", sequence.to_bytes(8, "big"), payload


def payload(*events: object, rank: object = 0) -> bytes:
    return msgspec.msgpack.encode([1.5, list(events), rank])


def test_what_vllm_sends_is_understood() -> None:
    batch = decode_batch(frames(VLLM))
    assert (batch.sequence, batch.timestamp_s, batch.dp_rank) == (7, 12.5, 1)
    stored, removed, cleared = [to_block_event(event, 4) for event in batch.events]
    assert stored == Stored(None, [11, 12], local_hashes(range(8), 4), Tier.DEVICE)
    assert removed == Removed([0x0102], Tier.HOST)
    assert cleared == Cleared()


def test_the_array_form_of_older_engines_is_understood() -> None:
    event = ["BlockStored", [3], 2, [9, 9, 9, 9], 4, None]
    batch = decode_batch(frames(payload(event, ["BlockRemoved", [3]], ["AllBlocksCleared"])))
    stored, removed, cleared = [to_block_event(event, 4) for event in batch.events]
    assert stored == Stored(2, [3], local_hashes([9, 9, 9, 9], 4), Tier.DEVICE)
    assert removed == Removed([3], Tier.DEVICE)
    assert cleared == Cleared()


def test_encoding_and_decoding_give_the_same_batch() -> None:
    events = [stored_event(None, [1, 2], range(8), 4), removed_event([1], Tier.DISK)]
    batch = KvBatch(3, 2.25, 1, events)
    assert decode_batch(encode_batch(batch, "kv")) == batch


def test_a_lora_name_separates_equal_tokens() -> None:
    plain = stored_event(None, [1], range(4), 4)
    with_lora = EngineEvent(plain.kind, {**plain.fields, "lora_name": "adapter"})
    hashes = [to_block_event(event, 4).local_hashes for event in (plain, with_lora)]  # type: ignore[union-attr]
    assert hashes[0] != hashes[1] == local_hashes(range(4), 4, salt="adapter")


def test_replay_frames_are_vllms() -> None:
    assert replay_request(5) == (b"", (5).to_bytes(8, "big"))
    assert is_end_of_replay((b"", b"", END_OF_REPLAY, b""))
    assert not is_end_of_replay((b"", b"", (5).to_bytes(8, "big"), b"x"))


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ((b"", b"x"), "3 frames"),
        ((b"", b"1234", payload()), "8 bytes"),
        (frames(b"\xc1nonsense"), "no msgpack"),
        (frames(msgspec.msgpack.encode({"a": 1})), "must be \\[timestamp"),
        (frames(msgspec.msgpack.encode(["now", []])), "timestamp"),
        (frames(payload(rank=-2)), "data-parallel rank"),
        (frames(payload(5)), "map or an array"),
        (frames(payload({"type": "BlockMoved"})), "unknown kind of KV event 'BlockMoved'"),
    ],
)
def test_malformed_messages_say_what_is_wrong(bad: tuple[bytes, ...], message: str) -> None:
    with pytest.raises(EventFormatError, match=message):
        decode_batch(bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 8}, "blocks hold 8 tokens, the router's 4"),
        ({"medium": "TAPE"}, "unknown medium 'TAPE'"),
        ({"block_hashes": None}, "lacks its block_hashes"),
        ({"block_hashes": ["x"]}, "number or bytes"),
        ({"token_ids": [1, 2, 3]}, "3 token ids for 1 blocks"),
    ],
)
def test_events_that_do_not_fit_say_why(change: dict[str, object], message: str) -> None:
    event = stored_event(None, [1], range(4), 4)
    with pytest.raises(EventFormatError, match=message):
        to_block_event(EngineEvent(event.kind, {**event.fields, **change}), 4)
