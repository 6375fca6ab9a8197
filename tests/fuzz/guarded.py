"""Scans records that lie right before, or right behind, memory that nobody may read.

    python tests/fuzz/guarded.py SEED INPUTS

The scanner reads by address: no compiler checks its bounds, but here the machine does. A byte too
far ends this process with a signal; else it prints how many records it scanned, and took.
"""

import ctypes
import mmap
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from fuzz.mutate import mutants

from raywatch.actors.decode import join
from raywatch.actors.scan import OK, scan, wanted

PAGE = mmap.PAGESIZE
ROOM = 16 * PAGE
PROT_NONE = 0
RECORDS = (
    b'{"k":"a","t":1700000000123,"x":1.5,"pad":{"a":[1,{"b":[]}],"c":"\\n\\u00e4"}}',
    b'{"k":"\xc3\xa4\xf0\x9f\x98\x80","t":"2026-11-24T13:43:26.123+01:00","x":-1.5e-3,"y":null}',
    b' {\r\n\t"k" : 17 , "t" : 1.9 , "y" : -1e-3 , "z" : [true,false,null] } ',
    b'{"k":"","t":"2026","x":12345678901234567890123456789012345678901234567890}',
    b'{"k":"a","t":1,"w":"tcp-\xc3\xa4","v":-123456789012345678}',
    b'{"k":"a","t":1,"w":true,"v":"123456789"}',
    b'{"k":"a","t":1,"v":null,"w":"',
    b'{"k":"a","t":1,"w":"say \\"hi\\" \\u20ac\\n","v":"\\u00e9\\\\"}',
    b'{"x',
    b'{"k":"a","t":1,"o":{"x":1.5,"p":{"w":"tcp-1"}},"pad":{"a":[1,2]},"more":{"a":[1,2]}}',
    b'{"k":"a","t":1,"o":{"p.w":true},"o.x":-2,"pad":{"a":[1,2,3]}}',
    b'{"o":{"p":{"w":"tcp-1","x":{}},"x":1},"k":"a","t":1}',
)


def guarded() -> np.ndarray:
    """Pages that may be read, between two that may not."""
    memory = mmap.mmap(-1, ROOM + 2 * PAGE)
    whole = np.frombuffer(memory, np.uint8)
    libc = ctypes.CDLL(None, use_errno=True)
    for place in (whole.ctypes.data, whole.ctypes.data + PAGE + ROOM):
        if libc.mprotect(ctypes.c_void_p(place), ctypes.c_size_t(PAGE), PROT_NONE):
            raise OSError(ctypes.get_errno(), "mprotect")
    return whole[PAGE : PAGE + ROOM]


def main(seed: int, inputs: int) -> None:
    """Scan mutants of RECORDS, a few at a time."""
    room, rng = guarded(), random.Random(seed)
    fields = wanted("k", "t", ("x", "y", "o.x"), ("w", "v", "o.p.w"))
    assert fields is not None
    done = taken = 0
    while done < inputs:
        record = rng.choice(RECORDS)
        values = [record[: rng.randrange(len(record) + 1)], *mutants(record, rng.random(), 5)]
        text, begin, size = join(values, ROOM // 16)
        for at in (0, ROOM - text.shape[0]):
            place = room[at : at + text.shape[0]]
            place[:] = text
            found = scan(place, begin, size, fields, channels=3, key_bytes_max=32, words=3)
            taken += int((found.status == OK).sum())
        done += len(values)
    print(f"{done} records, {taken} times taken")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
