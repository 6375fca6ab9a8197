"""Which file is compressed, and what is read of it? Its name says the first, and it is unpacked.

`web-1.log.2.gz` is read as `web-1.log.2` would be: its kind and its stem are those of the name
without the ending of a compression. Files of several parts one behind the other (`cat a.gz b.gz`,
pigz, pzstd) are read to the end; one that ends within a part is an error of the reader. All are
streams: memory does not follow what a file unpacks to.

Names alone count. What a file of another name holds is not looked at. Arrow's bzip2 takes an empty
part between others for an error.
"""

import codecs
import io
from pathlib import Path
from typing import IO, Any, cast

import pyarrow as pa

from raywatch.models.errors import ConfigError

CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}  # as Arrow calls them
PROGRAMS = {**CODECS, ".bz2": "bzip2"}  # that test and unpack them
REFUSED = (".xz", ".zip", ".tar", ".tgz")  # endings of what holds no lines as it is
READ_BYTES = 1_048_576  # that are unpacked at once
UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def packed(path: Path) -> bool:
    """Whether a file is compressed, by its name."""
    return path.suffix.lower() in CODECS


def unpacked(path: Path) -> Path:
    """The name without the ending of a compression."""
    return path.with_suffix("") if packed(path) else path


def must_be_readable(path: Path) -> None:
    """Raise ConfigError for what is compressed in another way, twice, or an archive."""
    if unpacked(path).suffix.lower() in (*CODECS, *REFUSED):
        raise ConfigError(
            f"`{path}` has to be unpacked first",
            hint=f"compressed files are read as they are if they end in {', '.join(CODECS)}, "
            "compressed once; archives are not",
        )


def opened(path: Path) -> IO[bytes]:
    """The bytes of a file, unpacked, without a byte order mark.

    Raises OSError, also while they are read; ConfigError for UTF-16.
    """
    file = path.open("rb")
    if packed(path):
        # Not by Arrow's own files: they take no name that is not UTF-8.
        stream: Any = pa.CompressedInputStream(file, CODECS[path.suffix.lower()])
        file = cast("io.BufferedReader", io.BufferedReader(stream, READ_BYTES))
    head = file.peek(len(codecs.BOM_UTF8))
    if head.startswith(UTF16):
        file.close()
        raise ConfigError(
            f"`{path}` is UTF-16", hint="`iconv -f UTF-16 -t UTF-8` writes what can be read"
        )
    if head.startswith(codecs.BOM_UTF8):
        file.read(len(codecs.BOM_UTF8))
    return file


def stream_of(path: Path) -> Any:
    """The bytes of a file, unpacked, for Arrow's readers, whose threads want a file of Arrow's.

    Raises as `opened`.
    """
    opened(path).close()
    return pa.input_stream(path, compression=CODECS.get(path.suffix.lower()))


def hint_of(path: Path) -> str:
    """What to do about a file that cannot be read."""
    if not packed(path):
        return "is it there, whole, and of its ending?"
    program = PROGRAMS[path.suffix.lower()]
    return (
        f"is it there, whole, and of its ending? `{program} -t` tests it, `{program} -dc` saves "
        "what is whole of it"
    )
