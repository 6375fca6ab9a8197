"""Damage as it happens: bits flip, ends are cut off, pieces repeat, numbers grow.

A mutant is a function of the blob and a seed. Tokens are what means something in the blob's
language: an unlucky place is found sooner with them than with random bytes.
"""

import random
from collections.abc import Iterator, Sequence

JSON = (
    b"{", b"}", b"[", b"]", b'"', b",", b":", b"\\", b"\\u0000", b"\\ud800", b"\\udc00", b"null",
    b"true", b"false", b"NaN", b"Infinity", b"-", b"+", b".", b"e", b"E9", b"0", b"1e999",
    b"-1e999", b"1e-999", b"9007199254740993", b"18446744073709551616", b"9" * 400, b" ", b"\n",
    b"\t", b"\x00", b"\x1f", b"\x7f", b"\x80", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80",
    b"\xff", b"\xef\xbb\xbf", b'"k"', b'"t"', b'"x"', b'"k":', b'"x":', b"[[[[[[[[", b"{}", b"-0",
)  # fmt: skip
BINARY = (b"\x00", b"\xff", b"\x00" * 8, b"\xff" * 8, b"\x00\x00\x00\x80", b"\x01")
DIGITS = b"0123456789"


def mutants(blob: bytes, seed: int, count: int, tokens: Sequence[bytes] = JSON) -> Iterator[bytes]:
    """So many damaged copies of a blob, one after the other."""
    rng = random.Random(seed)
    for _ in range(count):
        value = bytearray(blob)
        for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
            _damage(value, rng, tokens)
        yield bytes(value)


def _damage(value: bytearray, rng: random.Random, tokens: Sequence[bytes]) -> None:
    place = rng.randrange(len(value) + 1)
    end = min(len(value), place + rng.randrange(1, 9))
    match rng.randrange(9):
        case 0 if place < len(value):
            value[place] ^= 1 << rng.randrange(8)
        case 1 if place < len(value):
            value[place] = rng.randrange(256)
        case 2:
            value[place:place] = rng.choice(tokens)
        case 3:
            value[place:end] = rng.choice(tokens)
        case 4:
            del value[place:end]
        case 5:
            value[place:place] = value[place : place + rng.randrange(1, 40)]
        case 6:  # one piece in another's place
            other = rng.randrange(len(value) + 1)
            value[place:end] = value[other : other + rng.randrange(1, 16)]
        case 7:  # a number with other digits
            digits = [at for at, byte in enumerate(value) if byte in DIGITS]
            if digits:
                at = rng.choice(digits)
                value[at : at + 1] = rng.choice((b"", b"0", b"9", b"00", b"-1", b".5", b"e5"))
        case _:
            if rng.random() < 0.3:
                del value[place:]
