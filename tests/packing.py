"""Compressed copies of files, as programs write them."""

import bz2
import gzip
from pathlib import Path

import pyarrow as pa

ENDINGS = (".gz", ".bz2", ".zst", ".lz4")


def compressed(blob: bytes, ending: str) -> bytes:
    """One part of a compressed file."""
    match ending.lower():
        case ".gz":
            return gzip.compress(blob, 6, mtime=0)
        case ".bz2":
            return bz2.compress(blob)
        case _:
            sink = pa.BufferOutputStream()
            with pa.CompressedOutputStream(sink, {".zst": "zstd", ".lz4": "lz4"}[ending]) as out:
                out.write(blob)
            return sink.getvalue().to_pybytes()


def packed(path: Path, ending: str) -> Path:
    """A compressed copy beside a file, in two parts that meet in the middle of a line."""
    blob = path.read_bytes()
    middle = blob.index(b"\n", len(blob) // 2) - 2
    copy = path.with_name(path.name + ending)
    copy.write_bytes(compressed(blob[:middle], ending) + compressed(blob[middle:], ending))
    return copy
