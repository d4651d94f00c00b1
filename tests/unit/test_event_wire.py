"""vLLM's KV events: decoding what real engines send, and refusing what is none."""

import random
from collections import Counter

import msgspec
import pytest

from dynosim.blocks.hashing import local_hashes
from dynosim.blocks.tier import Tier
from dynosim.indexer.base import Cleared, Removed, Stored
from dynosim.indexer.wire import (
    END_OF_REPLAY,
    EngineEvent,
    EventFormatError,
    KvBatch,
    decode_batch,
    decode_replay,
    encode_batch,
    is_end_of_replay,
    removed_event,
    replay_first_sequence,
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

# By vLLM 0.32 too: digests as hashes, no rank; LoRA "adapter", cache salt "salt" in the first
# block's extra keys, a session id.
VLLM_SALTED = bytes.fromhex(
    "93cb4008000000000000918aa474797065ab426c6f636b53746f726564ac626c6f636b5f68617368657392c42000"
    "0102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1fc4200102030405060708090a0b0c0d"
    "0e0f101112131415161718191a1b1c1d1e1f20b1706172656e745f626c6f636b5f68617368c42000000000000000"
    "00000000000000000000000000000000000000000000000000a9746f6b656e5f696473980001020304050607aa62"
    "6c6f636b5f73697a6504a76c6f72615f696401a66d656469756da3475055a96c6f72615f6e616d65a76164617074"
    "6572aa65787472615f6b6579739292a761646170746572a473616c7491a761646170746572aa73657373696f6e5f"
    "6964a173c0"
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


def test_a_salted_block_of_an_adapter_is_told_from_a_plain_one() -> None:
    batch = decode_batch(frames(VLLM_SALTED))
    assert batch.dp_rank == 0
    event = to_block_event(batch.events[0], 4)
    assert isinstance(event, Stored)
    digests = [int.from_bytes(bytes(range(first, first + 32)), "big") for first in (0, 1)]
    assert (event.parent, list(event.block_hashes)) == (0, digests)
    plain, adapted = local_hashes(range(8), 4), local_hashes(range(8), 4, salt="adapter")
    assert event.local_hashes[0] not in (plain[0], adapted[0])  # the cache salt
    assert event.local_hashes[1] == adapted[1]


def test_blocks_with_different_images_differ_and_equal_ones_agree() -> None:
    def first_hash(*images: object) -> int:
        fields = {**stored_event(None, [1], range(4), 4).fields, "extra_keys": [list(images)]}
        event = to_block_event(EngineEvent("BlockStored", fields), 4)
        assert isinstance(event, Stored)
        return event.local_hashes[0]

    assert first_hash(["a", 0]) == first_hash(["a", 0])
    assert len({first_hash(), first_hash(["a", 0]), first_hash(["b", 0])}) == 3
    assert first_hash() == local_hashes(range(4), 4)[0]


@pytest.mark.parametrize(
    ("medium", "tier"),
    [
        (None, Tier.DEVICE),
        *((name, Tier.DEVICE) for name in ("GPU", "gpu", "DEVICE")),
        *((name, Tier.HOST) for name in ("CPU", "CPU_PINNED", "CPU_TIER1")),
        *((name, Tier.DISK) for name in ("CPU_TIER2", "DISK", "NVME", "STORAGE")),
        *((name, Tier.REMOTE) for name in ("EXTERNAL", "NETWORK", "REMOTE", "SHARED")),
    ],
)
def test_every_medium_has_its_tier(medium: str | None, tier: Tier) -> None:
    event = EngineEvent("BlockRemoved", {"block_hashes": [1], "medium": medium})
    assert to_block_event(event, 4) == Removed([1], tier)


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
    assert replay_first_sequence((b"client", *replay_request(5))) == 5
    assert is_end_of_replay((b"", b"", END_OF_REPLAY, b""))
    assert not is_end_of_replay((b"", b"", (5).to_bytes(8, "big"), b"x"))


@pytest.mark.parametrize("in_front", [(), (b"",)])
def test_a_replay_is_decoded_up_to_its_end(in_front: tuple[bytes, ...]) -> None:
    batch = KvBatch(5, 2.25, 1, [removed_event([1])])
    assert decode_replay((*in_front, *encode_batch(batch, "kv"))) == batch
    assert decode_replay((*in_front, b"", END_OF_REPLAY, b"")) is None


@pytest.mark.parametrize("bad", [(b"", b"12345678"), (b"client", b"", b"5")])
def test_a_malformed_replay_request_is_refused(bad: tuple[bytes, ...]) -> None:
    with pytest.raises(EventFormatError, match="8 bytes"):
        replay_first_sequence(bad)


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
        (frames(payload({"type": ["BlockStored"]})), "unknown kind"),
        (frames(payload([{}, 1])), "unknown kind"),
        (frames(payload({"block_hashes": [1]})), "unknown kind of KV event None"),
        (frames(b"\xa2\xff\xfe"), "no msgpack"),  # no UTF-8
        (frames(b"\x91" * 100_000), "no msgpack"),  # too deep
    ],
)
def test_malformed_messages_say_what_is_wrong(bad: tuple[bytes, ...], message: str) -> None:
    with pytest.raises(EventFormatError, match=message):
        decode_batch(bad)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_size": 8}, "blocks hold 8 tokens, the router's 4"),
        ({"block_size": 0, "token_ids": [], "medium": "CPU"}, "self_describing_kv_events: true"),
        ({"medium": "TAPE"}, "unknown medium 'TAPE'"),
        ({"block_hashes": None}, "lacks its block_hashes"),
        ({"block_hashes": ["x"]}, "number or bytes"),
        ({"token_ids": [1, 2, 3]}, "3 token ids for 1 blocks"),
        ({"token_ids": [1, 2, 3, 2**32]}, "token id 4294967296"),
        ({"token_ids": [1, 2, 3, 4.5]}, "whole numbers"),
        ({"token_ids": ["1", "2", "3", "4"]}, "whole numbers"),
        ({"token_ids": [[1], [2], [3], [4]]}, "whole numbers"),
        ({"parent_block_hash": 1.5}, "number or bytes"),
        ({"lora_name": 5}, "lora_name must be a string"),
        ({"extra_keys": [["a"], ["b"]]}, "extra_keys must be a list"),
        ({"extra_keys": ["a"]}, "extra_keys must hold lists"),
    ],
)
def test_events_that_do_not_fit_say_why(change: dict[str, object], message: str) -> None:
    event = stored_event(None, [1], range(4), 4)
    with pytest.raises(EventFormatError, match=message):
        to_block_event(EngineEvent(event.kind, {**event.fields, **change}), 4)


def test_bytes_gone_bad_on_the_way_are_refused_or_still_make_events() -> None:
    """Of those that do, a block is told by a hash of its own and of its content, to be sent on."""
    draw = random.Random(0)
    outcomes: Counter[str] = Counter()
    for _ in range(2000):
        garbled = bytearray(draw.choice((VLLM, VLLM_SALTED)))
        for _ in range(draw.randint(1, 4)):
            garbled[draw.randrange(len(garbled))] = draw.randrange(256)
        try:
            batch = decode_batch(frames(bytes(garbled)))
            events = [to_block_event(event, 4) for event in batch.events]
        except EventFormatError:
            outcomes["refused"] += 1
            continue
        outcomes["made events"] += 1
        for event in events:
            if isinstance(event, Stored):
                assert len(event.block_hashes) == len(event.local_hashes)
                assert all(0 <= local < 1 << 64 for local in event.local_hashes)
        sent_on = decode_batch(encode_batch(batch))
        assert [to_block_event(event, 4) for event in sent_on.events] == events
    assert min(outcomes["refused"], outcomes["made events"]) > 200, outcomes
