"""Block identity: XXH3-64, local and sequence hashes, of tokens and of trace ids."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import xxhash

from dynosim.blocks.hashing import (
    SEED,
    extend_sequence_hashes,
    local_hashes,
    request_local_hashes,
    salted_seed,
    sequence_hashes,
    trace_local_hashes,
    trace_sequence_hashes,
)
from dynosim.blocks.xxh3 import xxh3_64_rows
from dynosim.errors import ConfigError, InvariantError
from dynosim.records import Trace

VECTORS = json.loads((Path(__file__).parent / "xxh3_vectors.json").read_text())
SEEDS = (0, SEED, 2**63 + 5, 2**64 - 1)


def sample(length: int) -> bytes:
    """The input of a test vector: bytes of a simple sequence."""
    return bytes((7 * i + length) % 251 for i in range(length))


@pytest.mark.parametrize(
    "lengths", [*(range(start, start + 100) for start in range(0, 1100, 100)), (1100, 2049, 5000)]
)
def test_rows_hash_as_the_reference_package_does(lengths: Sequence[int]) -> None:
    random = np.random.default_rng(lengths[0])
    for length in lengths:
        rows = random.integers(0, 256, (3, length), dtype=np.uint8)
        for seed in SEEDS:
            expected = [xxhash.xxh3_64_intdigest(row.tobytes(), seed=seed) for row in rows]
            assert xxh3_64_rows(rows, seed).tolist() == expected, (length, seed)


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: f"{v['length']}-{v['seed']}")
def test_published_vectors_hold(vector: dict[str, int]) -> None:
    rows = np.frombuffer(sample(vector["length"]), np.uint8).reshape(1, -1)
    assert int(xxh3_64_rows(rows, vector["seed"])[0]) == int(vector["hash"])


def test_a_local_hash_is_the_hash_of_little_endian_token_ids() -> None:
    tokens = [5, 2**32 - 1, 0, 7, 1, 2, 3]
    packed = struct.pack("<3I", *tokens[:3]), struct.pack("<3I", *tokens[3:6])
    expected = [xxhash.xxh3_64_intdigest(block, seed=1337) for block in packed]
    assert local_hashes(tokens, 3) == expected


def test_a_sequence_hash_chains_the_one_before_with_the_local_hash() -> None:
    first, second, third = sequence_hashes([10, 20, 30])
    assert first == 10
    assert second == xxhash.xxh3_64_intdigest(struct.pack("<QQ", 10, 20), seed=1337)
    assert third == xxhash.xxh3_64_intdigest(struct.pack("<QQ", second, 30), seed=1337)
    assert extend_sequence_hashes(first, [20, 30]) == [second, third]


def test_the_same_chunk_at_two_places_has_one_local_and_two_sequence_hashes() -> None:
    local = local_hashes([1, 2, 3, 4, 1, 2], 2)
    assert local[0] == local[2] != local[1]
    assert len(set(sequence_hashes(local))) == 3


def test_a_salt_changes_every_hash_and_an_empty_one_none() -> None:
    tokens = list(range(8))
    assert local_hashes(tokens, 4, salt="") == local_hashes(tokens, 4)
    assert not set(local_hashes(tokens, 4, salt="lora-a")) & set(local_hashes(tokens, 4))
    assert salted_seed("lora-a") != salted_seed("lora-b")


def test_an_incomplete_block_has_no_hash() -> None:
    assert local_hashes([1, 2, 3], 4) == []
    assert len(local_hashes([1, 2, 3, 4, 5], 4)) == 1


@pytest.mark.parametrize("wrong", [-1, 2**32, 2**63, 2**70, "a", "2", 1.5, None, [2]])
def test_a_token_id_that_is_none_is_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match="4294967295"):
        local_hashes([1, wrong, 3], 3)  # type: ignore[list-item]


def test_token_ids_come_as_a_list_a_tuple_a_range_or_an_array() -> None:
    expected = local_hashes([0, 1, 2, 3], 2)
    for tokens in ((0, 1, 2, 3), range(4), np.arange(4), np.arange(4, dtype=np.uint32)):
        assert local_hashes(tokens, 2) == expected  # type: ignore[arg-type]


def make_trace(rows: list[tuple[int, list[int]]], block: int) -> Trace:
    offsets = np.cumsum([0, *(len(ids) for _, ids in rows)])
    lengths = np.array([length for length, _ in rows], np.int64)
    return Trace(
        arrival_ms=np.zeros(len(rows)),
        input_tokens=lengths,
        output_tokens=np.ones(len(rows), np.int64),
        hash_ids=np.array([i for _, ids in rows for i in ids], np.int64),
        hash_offsets=offsets if any(ids for _, ids in rows) else np.zeros(len(rows) + 1, np.int64),
        trace_block_size=block,
    )


ROWS = [(50, [1, 2, 3, 4]), (48, [1, 2, 9]), (16, [7]), (33, [1, 2, 3]), (5, [8])]


@pytest.mark.parametrize("block_size", [4, 8, 16, 32, 48, 12, 20])
def test_trace_hashes_are_those_of_each_request(block_size: int) -> None:
    trace = make_trace(ROWS, 16)
    local, offsets = trace_local_hashes(trace, block_size)
    chained = trace_sequence_hashes(local, offsets)
    for row, (length, ids) in enumerate(ROWS):
        part = slice(offsets[row], offsets[row + 1])
        mine = request_local_hashes(ids, length, 16, block_size)
        assert local[part].tolist() == mine
        assert chained[part].tolist() == sequence_hashes(mine)


@pytest.mark.parametrize("block_size", [4, 8, 16, 32, 12, 20])
def test_prompts_share_hashes_as_far_as_they_share_ids(block_size: int) -> None:
    one = request_local_hashes([1, 2, 3, 4], 64, 16, block_size)
    other = request_local_hashes([1, 2, 9, 4], 64, 16, block_size)
    common = 32 // block_size
    assert one[:common] == other[:common]
    assert one[common] != other[common]
    assert len(set(one)) == len(one)


def test_a_salt_changes_the_hashes_of_a_trace() -> None:
    trace = make_trace(ROWS, 16)
    plain, offsets = trace_local_hashes(trace, 8)
    salted, _ = trace_local_hashes(trace, 8, salt="tenant")
    assert not set(plain.tolist()) & set(salted.tolist())
    assert salted[: offsets[1]].tolist() == request_local_hashes(
        [1, 2, 3, 4], 50, 16, 8, salt="tenant"
    )


def test_a_prompt_with_too_few_ids_is_noticed() -> None:
    with pytest.raises(InvariantError, match="too few"):
        trace_local_hashes(make_trace([(64, [1]), (64, [1, 2, 3, 4])], 16), 16)
    with pytest.raises(ConfigError, match="hash_ids: 1 for a prompt of 40 tokens"):
        request_local_hashes([1], 40, 16, 16)


def test_a_block_size_below_one_is_refused() -> None:
    for refused in (
        lambda: local_hashes([1], 0),
        lambda: request_local_hashes([1], 5, 16, -1),
        lambda: trace_local_hashes(make_trace(ROWS, 16), 0),
    ):
        with pytest.raises(ConfigError, match="block_size"):
            refused()


def test_a_trace_without_complete_blocks_has_no_hashes() -> None:
    local, offsets = trace_local_hashes(make_trace([(5, [1])], 16), 16)
    assert (len(trace_sequence_hashes(local, offsets)), offsets.tolist()) == (0, [0, 0])


def test_a_trace_without_ids_has_no_equal_blocks() -> None:
    local, _ = trace_local_hashes(make_trace([(64, []), (64, [])], 512), 16)
    assert len(set(local.tolist())) == 8
