"""Block identity: what makes two KV blocks the same.

A *local hash* names the content of one complete block of tokens, wherever it stands. A *sequence
hash* names a block together with everything before it:

    local    = XXH3-64(the block's token ids, little-endian u32 each; seed)
    sequence = XXH3-64(previous sequence hash, local hash; seed), for the first block: its local

The seed is 1337; a LoRA adapter or cache salt changes it, because equal tokens then do not mean
equal KV. These are NVIDIA Dynamo's definitions, so the hashes are the same numbers. Traces that
name prompt blocks by ids instead of tokens get local hashes from the pieces of ids in each block.
"""

import struct
from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from dynosim.blocks.xxh3 import xxh3_64_rows
from dynosim.errors import ConfigError, InvariantError
from dynosim.records import IntArray, Trace

SEED = 1337
_CHUNK_ROWS = 1 << 15  # hashed at once: small enough to stay in the processor's cache
_pack_pair = struct.Struct("<QQ").pack

HashArray = NDArray[np.uint64]


def salted_seed(salt: str) -> int:
    """The seed for a LoRA adapter or cache namespace; an empty name is none."""
    return xxh3_64_intdigest(salt.encode(), seed=SEED) if salt else SEED


def local_hashes(
    token_ids: Sequence[int] | IntArray, block_size: int, *, salt: str = ""
) -> list[int]:
    """Local hashes of the complete blocks of a prompt; a rest shorter than a block has none.

    Raises: ConfigError for a token id that is not an unsigned 32-bit number, and for a block size
    below 1.
    """
    _check_block_size(block_size)
    num_blocks = len(token_ids) // block_size
    if num_blocks == 0:
        return []
    tokens = token_ids[: num_blocks * block_size]
    plain = tokens.tolist() if isinstance(tokens, np.ndarray) else tokens
    try:
        packed = memoryview(struct.pack(f"<{len(plain)}I", *plain))
    except struct.error:
        raise ConfigError(
            "token ids must be whole numbers from 0 to 4294967295; "
            f"token id {_first_wrong(plain)!r:.40} is not"
        ) from None
    # For the blocks of one prompt, a call for each is many times faster than numpy for all.
    digest, seed, size = xxh3_64_intdigest, salted_seed(salt), 4 * block_size
    return [digest(packed[start : start + size], seed) for start in range(0, len(packed), size)]


def sequence_hashes(local: Iterable[int]) -> list[int]:
    """Sequence hashes of consecutive blocks from the start of a prompt."""
    return extend_sequence_hashes(None, local)


def extend_sequence_hashes(parent: int | None, local: Iterable[int]) -> list[int]:
    """Sequence hashes of blocks that follow the block `parent` (None: the prompt begins here)."""
    digest, pack = xxh3_64_intdigest, _pack_pair
    hashes: list[int] = []
    previous = parent
    for block in local:
        previous = block if previous is None else digest(pack(previous, block), SEED)
        hashes.append(previous)
    return hashes


def trace_local_hashes(
    trace: Trace, block_size: int, *, salt: str = ""
) -> tuple[HashArray, IntArray]:
    """Local hashes of all complete prompt blocks of a trace, without any tokens.

    Returns the hashes of all requests one after the other, and (n + 1,) offsets into them. Blocks
    are equal where they consist of the same pieces (id, first token in the id's block, tokens);
    in a trace without ids no two blocks are equal.
    Raises: ConfigError for a block size below 1, InvariantError if a prompt has too few ids.
    """
    _check_block_size(block_size)
    num_blocks = trace.input_tokens // block_size
    offsets = np.concatenate([[0], np.cumsum(num_blocks)])
    request = np.repeat(np.arange(len(trace)), num_blocks)
    block = np.arange(len(request)) - np.repeat(offsets[:-1], num_blocks)
    has_ids = len(trace.hash_ids) > 0
    if has_ids:
        num_ids = trace.hash_offsets[1:] - trace.hash_offsets[:-1]
        if (num_ids * trace.trace_block_size < num_blocks * block_size).any():
            raise InvariantError("a prompt of the trace has too few hash ids")
    size = trace.trace_block_size if has_ids else block_size
    first_id = trace.hash_offsets[:-1] if has_ids else offsets[:-1]
    ids = trace.hash_ids if has_ids else -1 - np.arange(len(request))
    hashes = np.empty(len(request), np.uint64)
    seed = salted_seed(salt)
    for start in range(0, len(request), _CHUNK_ROWS):
        part = slice(start, start + _CHUNK_ROWS)
        rows = _pieces(ids, first_id[request[part]], block[part], size, block_size)
        hashes[part] = xxh3_64_rows(rows, seed)
    return hashes, offsets


def request_local_hashes(
    hash_ids: Sequence[int],
    input_tokens: int,
    trace_block_size: int,
    block_size: int,
    *,
    salt: str = "",
) -> list[int]:
    """`trace_local_hashes` of a single request.

    Raises: ConfigError for a block size below 1 or too few ids.
    """
    _check_block_size(block_size)
    block = np.arange(input_tokens // block_size)
    if len(hash_ids) * trace_block_size < len(block) * block_size:
        raise ConfigError(
            f"hash_ids: {len(hash_ids)} for a prompt of {input_tokens} tokens; "
            f"one for every {trace_block_size} tokens is needed"
        )
    if len(block) == 0:
        return []
    first_id = np.zeros(len(block), np.int64)
    ids = np.asarray(hash_ids, np.int64)
    rows = _pieces(ids, first_id, block, trace_block_size, block_size)
    hashes: list[int] = _hash_rows(rows, salted_seed(salt)).tolist()
    return hashes


def trace_sequence_hashes(local: HashArray, offsets: IntArray) -> HashArray:
    """Sequence hashes of all requests' blocks, all requests at once, block after block."""
    hashes = local.copy()
    if len(local) == 0:
        return hashes
    num_blocks = offsets[1:] - offsets[:-1]
    longest_first = np.argsort(-num_blocks, kind="stable")
    first = offsets[:-1][longest_first]
    still = np.searchsorted(
        -num_blocks[longest_first], -np.arange(1, num_blocks.max() + 1), "right"
    )
    for depth in range(1, len(still)):
        rows = first[: still[depth]] + depth
        pairs = np.stack([hashes[rows - 1], local[rows]], axis=1).astype("<u8")
        hashes[rows] = _hash_rows(pairs.view(np.uint8), SEED)
    return hashes


def _first_wrong(tokens: Sequence[object]) -> object:
    return next(t for t in tokens if not (isinstance(t, int | np.integer) and 0 <= t < 1 << 32))


def _check_block_size(block_size: int) -> None:
    if block_size < 1:
        raise ConfigError(f"block_size: {block_size}; use 1 or more tokens")


def _hash_rows(rows: NDArray[np.uint8], seed: int) -> HashArray:
    if len(rows) <= _CHUNK_ROWS:
        return xxh3_64_rows(rows, seed)
    parts = range(0, len(rows), _CHUNK_ROWS)
    return np.concatenate([xxh3_64_rows(rows[i : i + _CHUNK_ROWS], seed) for i in parts])


def _pieces(
    ids: IntArray, first_id: IntArray, block: IntArray, id_tokens: int, block_size: int
) -> NDArray[np.uint8]:
    """What each block consists of, as bytes: (id, first token, tokens) per piece, zeros behind."""
    begin = block * block_size
    end = begin + block_size
    max_pieces = (block_size + id_tokens - 2) // id_tokens + 1
    if id_tokens % block_size == 0 or block_size % id_tokens == 0:
        max_pieces = max(block_size // id_tokens, 1)  # boundaries never fall inside a piece
    pieces = np.zeros((len(block), max_pieces, 3), "<i8")
    for piece in range(max_pieces):
        position = begin // id_tokens + piece
        start = np.maximum(begin, position * id_tokens)
        length = np.maximum(np.minimum(end, (position + 1) * id_tokens) - start, 0)
        is_there = length > 0
        index = np.where(is_there, first_id + position, 0)
        pieces[:, piece, 0] = np.where(is_there, ids[index], 0)
        pieces[:, piece, 1] = np.where(is_there, start - position * id_tokens, 0)
        pieces[:, piece, 2] = length
    return pieces.view(np.uint8).reshape(len(block), -1)
