"""Kafka's default partitioner: to which partition does a record with this key go?"""

from functools import lru_cache

import numpy as np
from numba import njit

from raywatch.models.scorer import I32, I64, U8


@njit(cache=True, nogil=True)
def murmur2(text: U8, begin: int, size: int) -> int:
    """Kafka's 32-bit hash of a key, as Java's Utils.murmur2 gives it: a signed number."""
    low, prime = 0xFFFFFFFF, 0x5BD1E995
    state = (0x9747B28C ^ size) & low
    whole = size - size % 4
    for at in range(begin, begin + whole, 4):
        word = 0
        for byte in range(3, -1, -1):
            word = (word << 8) | np.int64(text[at + byte])
        word = (word * prime) & low
        word = ((word ^ (word >> 24)) * prime) & low
        state = ((state * prime) & low) ^ word
    if size > whole:
        for byte in range(size - whole - 1, -1, -1):
            state ^= np.int64(text[begin + whole + byte]) << (8 * byte)
        state = (state * prime) & low
    state = ((state ^ (state >> 13)) * prime) & low
    state ^= state >> 15
    return int(state) - 0x100000000 if state > 0x7FFFFFFF else int(state)


@njit(cache=True, nogil=True)
def partitions_of(text: U8, begin: I64, size: I32, partitions: int) -> I32:
    """(N,) the partition of each key among `partitions`."""
    out = np.empty(begin.shape[0], np.int32)
    for index in range(begin.shape[0]):
        out[index] = (murmur2(text, begin[index], size[index]) & 0x7FFFFFFF) % partitions
    return out


@lru_cache(65_536)
def partition_of(key: bytes, partitions: int) -> int:
    """Where a record with this key goes."""
    text = np.frombuffer(key or b" ", np.uint8)
    return (murmur2(text, 0, len(key)) & 0x7FFFFFFF) % partitions
