"""Who a key is must not leave this process: HMAC-SHA-256 (RFC 2104) right after decode.

    pseudonym = "h1_" + id of the HMAC key + "_" + base32(first 128 bits of HMAC(HMAC key, key))

Nothing behind this file sees a clear key: not histories, snapshots, alerts, rejects or the page.
Different keys have different pseudonyms (128 bits: a chance below 2^-75 among 50 million keys), so
slots, histories and scores are what they were. The same key has the same pseudonym in every
detector and every run that has the same HMAC key, and what it says shows under which one it was
made: four characters of HMAC(HMAC key, ""), which no record's key can be.

A key is hashed once, not once a record: a table keeps what was seen, in memory only and bounded.
"""

import hmac
from dataclasses import dataclass, field, replace

import numpy as np

from raywatch.actors.records import Records
from raywatch.models.scorer import I32, I64, U8

SECRET_BYTES_MIN = 32  # A shorter HMAC key could be found by trying (RFC 2104, section 3).
WITHHELD = "(withheld)"  # stands in an alert for a word of `record.pseudonymise`
CACHE_MAX = 1 << 20  # Pseudonyms that are remembered: 34 bytes each, and the clear key.
DIGEST_BYTES = 16
DIGITS = np.frombuffer(b"abcdefghijklmnopqrstuvwxyz234567", np.uint8)  # base32 (RFC 4648)
ID_CHARS = 4


@dataclass(frozen=True, slots=True)
class HmacKey:
    """The key of the pseudonyms; `repr` does not show it."""

    secret: bytes = field(repr=False)

    @property
    def prefix(self) -> bytes:
        """What every pseudonym made with it begins with: form and id of the key."""
        return b"h1_" + _base32([self._hashed(b"")])[0, :ID_CHARS].tobytes() + b"_"

    def of(self, keys: list[bytes]) -> U8:
        """(K, W) the pseudonyms of keys, all of the same length."""
        digits = _base32([self._hashed(key) for key in keys])
        prefix = np.frombuffer(self.prefix, np.uint8)
        return np.hstack((np.broadcast_to(prefix, (len(keys), prefix.shape[0])), digits))

    def _hashed(self, key: bytes) -> bytes:
        return hmac.digest(self.secret, key, "sha256")[:DIGEST_BYTES]


def _base32(digests: list[bytes]) -> U8:
    """(K, 26) digests of 128 bits as digits, without the padding."""
    raw = np.frombuffer(b"".join(digests), np.uint8).reshape(len(digests), DIGEST_BYTES)
    bits = np.unpackbits(raw, axis=1)
    bits = np.pad(bits, ((0, 0), (0, -bits.shape[1] % 5)))
    fives = bits.reshape(len(digests), bits.shape[1] // 5, 5) @ np.array([16, 8, 4, 2, 1], np.uint8)
    return DIGITS[fives]


def gathered(text: U8, begin: I64, size: I32) -> tuple[U8, I64]:
    """Pieces of a text, back to back and nothing else, and where each begins now."""
    long = size.reshape(-1).astype(np.int64)
    ends = np.cumsum(long)
    moved = begin.reshape(-1) - (ends - long)  # of each piece: what its bytes lie ahead
    taken = np.arange(int(ends[-1]) if ends.shape[0] else 0) + np.repeat(moved, long)
    return text[taken], (ends - long).reshape(size.shape)


class Pseudonyms:
    """Replaces the keys of one lane's records."""

    def __init__(self, key: HmacKey, *, cache_max: int = CACHE_MAX) -> None:
        assert cache_max > 0, cache_max
        self.hashed = 0  # keys so far, not records
        self._key = key
        self._cache_max = cache_max
        self._empty(cache_max)

    def _empty(self, keys_max: int) -> None:
        from raywatch.actors.keys import KeyTable  # here: settings need no compiler

        self._known = KeyTable(keys_max)  # clear keys, of all partitions together
        self._texts = self._key.of([])  # (capacity, W) by slot, filled up to `_filled`
        self._filled = 0

    def replaced(self, records: Records) -> Records:
        """The same records under pseudonyms; `text` holds no clear key any more."""
        count, width = len(records), self._texts.shape[1]
        alike = replace(records, partition=np.zeros(count, np.int32))
        slots = self._known.intern(alike)
        if count and int(slots.min()) < 0:  # full: begin again, with room for this batch at least
            self._empty(max(self._cache_max, count))
            slots = self._known.intern(alike)
        self._hash_new()
        keys = self._texts[slots].reshape(-1)
        words, word_begin = gathered(records.text, records.word_begin, records.word_size)
        return replace(
            records,
            text=np.concatenate((keys, words)) if words.shape[0] else keys,
            key_begin=np.arange(count, dtype=np.int64) * width,
            key_size=np.full(count, width, np.int32),
            word_begin=word_begin + keys.shape[0],
        )

    def _hash_new(self) -> None:
        """Fill `_texts` for the keys that came with this batch."""
        begin, end = self._filled, len(self._known)
        if begin == end:
            return
        if end > self._texts.shape[0]:  # doubled: a key now and then must not copy all of them
            larger = np.zeros((max(end, 2 * self._texts.shape[0]), self._texts.shape[1]), np.uint8)
            larger[:begin] = self._texts[:begin]
            self._texts = larger
        self._texts[begin:end] = self._key.of([self._known.key(s) for s in range(begin, end)])
        self._filled = end
        self.hashed += end - begin
