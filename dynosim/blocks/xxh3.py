"""XXH3-64, for many equally long inputs at once.

The algorithm is Yann Collet's (xxHash 0.8 specification). Row by row it is a job for the `xxhash`
package; hashing all blocks of a prompt, or of a whole trace, is a handful of numpy operations.
All arithmetic is modulo 2**64, which numpy's uint64 does by itself.
"""

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]

P32_1, P32_2, P32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
P64_1, P64_2, P64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
P64_4, P64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
MX1, MX2 = 0x165667919E3779F9, 0x9FB21C651E98DF25
M64 = (1 << 64) - 1
STRIPE = 64
SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)


def xxh3_64_rows(rows: NDArray[np.uint8], seed: int = 0) -> U64:
    """XXH3-64 of every row of a (n, length) array of bytes."""
    rows = np.ascontiguousarray(rows, np.uint8)
    length = rows.shape[1]
    with np.errstate(over="ignore"):
        if length == 0:
            value = _avalanche64(_u64(seed ^ _secret(56) ^ _secret(64)))
            return np.full(len(rows), value, np.uint64)
        if length <= 3:
            return _up_to_3(rows, length, seed)
        if length <= 8:
            return _up_to_8(rows, length, seed)
        if length <= 16:
            return _up_to_16(rows, length, seed)
        if length <= 128:
            return _up_to_128(rows, length, seed)
        if length <= 240:
            return _up_to_240(rows, length, seed)
        return _long(rows, length, seed)


def _u64(value: int) -> U64:
    return np.array([value & M64], np.uint64)


def _secret(offset: int, size: int = 8) -> int:
    return int.from_bytes(SECRET[offset : offset + size], "little")


def _read(rows: NDArray[np.uint8], offset: int, size: int = 8) -> U64:
    """Little-endian integers at a byte offset of every row."""
    part = np.ascontiguousarray(rows[:, offset : offset + size])
    values: U64 = part.view(f"<u{size}")[:, 0].astype(np.uint64)
    return values


def _avalanche64(value: U64) -> U64:
    """The final mix of XXH64."""
    value = (value ^ (value >> np.uint64(33))) * np.uint64(P64_2)
    value = (value ^ (value >> np.uint64(29))) * np.uint64(P64_3)
    return value ^ (value >> np.uint64(32))


def _avalanche(value: U64) -> U64:
    """The final mix of XXH3."""
    value = (value ^ (value >> np.uint64(37))) * np.uint64(MX1)
    return value ^ (value >> np.uint64(32))


def _fold(left: U64, right: U64) -> U64:
    """High half xor low half of the 128-bit products."""
    low_mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    a, b = left & low_mask, left >> half
    c, d = right & low_mask, right >> half
    low_low, high_low, low_high, high_high = a * c, b * c, a * d, b * d
    middle = (low_low >> half) + (high_low & low_mask) + low_high
    high = (high_low >> half) + (middle >> half) + high_high
    low = (middle << half) | (low_low & low_mask)
    return np.asarray(low ^ high, np.uint64)


def _rotated(value: U64, bits: int) -> U64:
    rotated: U64 = (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))
    return rotated


def _up_to_3(rows: NDArray[np.uint8], length: int, seed: int) -> U64:
    first = rows[:, 0].astype(np.uint64)
    middle = rows[:, length >> 1].astype(np.uint64)
    last = rows[:, length - 1].astype(np.uint64)
    combined = (first << np.uint64(16)) | (middle << np.uint64(24)) | last
    combined |= np.uint64(length << 8)
    flip = (_secret(0, 4) ^ _secret(4, 4)) + seed
    return _avalanche64(combined ^ _u64(flip))


def _up_to_8(rows: NDArray[np.uint8], length: int, seed: int) -> U64:
    swapped = int.from_bytes((seed & 0xFFFFFFFF).to_bytes(4, "little"), "big")
    seed ^= swapped << 32
    first, last = _read(rows, 0, 4), _read(rows, length - 4, 4)
    combined = last + (first << np.uint64(32))
    flip = ((_secret(8) ^ _secret(16)) - seed) & M64
    value = combined ^ _u64(flip)
    value ^= _rotated(value, 49) ^ _rotated(value, 24)
    value = value * np.uint64(MX2)
    value ^= (value >> np.uint64(35)) + np.uint64(length)
    value = value * np.uint64(MX2)
    return value ^ (value >> np.uint64(28))


def _up_to_16(rows: NDArray[np.uint8], length: int, seed: int) -> U64:
    low = _read(rows, 0) ^ _u64((_secret(24) ^ _secret(32)) + seed)
    high = _read(rows, length - 8) ^ _u64((_secret(40) ^ _secret(48)) - seed)
    swapped = low.byteswap()
    return _avalanche(np.uint64(length) + swapped + high + _fold(low, high))


def _mix16(rows: NDArray[np.uint8], offset: int, secret: int, seed: int) -> U64:
    left = _read(rows, offset) ^ _u64(_secret(secret) + seed)
    right = _read(rows, offset + 8) ^ _u64(_secret(secret + 8) - seed)
    return _fold(left, right)


def _up_to_128(rows: NDArray[np.uint8], length: int, seed: int) -> U64:
    total = np.full(len(rows), (length * P64_1) & M64, np.uint64)
    for i in range((length - 1) // 32, -1, -1):
        total += _mix16(rows, 16 * i, 32 * i, seed)
        total += _mix16(rows, length - 16 * (i + 1), 32 * i + 16, seed)
    return _avalanche(total)


def _up_to_240(rows: NDArray[np.uint8], length: int, seed: int) -> U64:
    total = np.full(len(rows), (length * P64_1) & M64, np.uint64)
    for i in range(8):
        total += _mix16(rows, 16 * i, 16 * i, seed)
    total = _avalanche(total)
    for i in range(8, length // 16):
        total += _mix16(rows, 16 * i, 16 * (i - 8) + 3, seed)
    total += _mix16(rows, length - 16, 136 - 17, seed)
    return _avalanche(total)


def _seeded_secret(seed: int) -> bytes:
    if seed == 0:
        return SECRET
    words = [
        _secret(8 * i) + (seed if i % 2 == 0 else -seed) & M64 for i in range(len(SECRET) // 8)
    ]
    return b"".join(word.to_bytes(8, "little") for word in words)


def _long(rows: NDArray[np.uint8], length: int, seed: int) -> U64:
    secret = _seeded_secret(seed)
    keys = np.frombuffer(secret, np.uint8)
    stripes_per_block = (len(secret) - STRIPE) // 8
    sums = np.empty((len(rows), 8), np.uint64)
    sums[:] = np.array([P32_3, P64_1, P64_2, P64_3, P64_4, P32_2, P64_5, P32_1], np.uint64)
    num_stripes = (length - 1) // STRIPE
    for stripe in range(num_stripes):
        position = stripe % stripes_per_block
        _accumulate(sums, rows, STRIPE * stripe, keys, 8 * position)
        if position == stripes_per_block - 1:
            _scramble(sums, keys, len(secret) - STRIPE)
    _accumulate(sums, rows, length - STRIPE, keys, len(secret) - STRIPE - 7)
    total = np.full(len(rows), (length * P64_1) & M64, np.uint64)
    for i in range(4):
        left = sums[:, 2 * i] ^ _u64(int.from_bytes(secret[11 + 16 * i : 19 + 16 * i], "little"))
        right = sums[:, 2 * i + 1] ^ _u64(
            int.from_bytes(secret[19 + 16 * i : 27 + 16 * i], "little")
        )
        total += _fold(left, right)
    return _avalanche(total)


def _words(data: NDArray[np.uint8], offset: int) -> U64:
    return np.ascontiguousarray(data[..., offset : offset + STRIPE]).view("<u8").astype(np.uint64)


def _accumulate(
    sums: U64, rows: NDArray[np.uint8], offset: int, keys: NDArray[np.uint8], key_offset: int
) -> None:
    words = _words(rows, offset)
    keyed = words ^ _words(keys, key_offset)
    sums += words[:, [1, 0, 3, 2, 5, 4, 7, 6]]
    sums += (keyed & np.uint64(0xFFFFFFFF)) * (keyed >> np.uint64(32))


def _scramble(sums: U64, keys: NDArray[np.uint8], key_offset: int) -> None:
    sums ^= sums >> np.uint64(47)
    sums ^= _words(keys, key_offset)
    sums *= np.uint64(P32_1)
