"""Where do snapshots and artifacts lie, and is a blob ever seen half written?

A Store holds named blobs: in a folder (a temporary file, fsync, rename), in a bucket (one put,
which object stores make visible whole or not at all), or in memory. Names are paths with `/`:
they are checked, so that no name leads out of the store. Whatever the medium answers becomes
Unreachable with a hint: a lane repeats its snapshot later, it does not die of a full disk.
"""

import errno
import itertools
import os
import re
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, cast
from urllib.parse import parse_qs, unquote, urlsplit

from raywatch.models.errors import ConfigError, Unreachable

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

    from raywatch.actors.ports import Store

PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._=@+:,~-]{0,199}")
NAME_MAX = 800  # S3 and GCS allow 1,024 bytes for a key, the bucket's own prefix included
TEMPORARY = ".tmp"  # folder of unfinished blobs; no name can begin with a dot
BLOB_BYTES_MAX = 64 << 30  # None of ours is larger: reading one would take all memory
LEFTOVER_S = 3600.0  # an unfinished blob this old belongs to a process that died
CONNECT_S = 5.0
REQUEST_S = 30.0  # bounds every request to a bucket
HINTS = {
    errno.ENOSPC: "the disk is full: free space, or point the store at another folder",
    errno.EDQUOT: "the quota is used up: free space, or point the store at another folder",
    errno.EACCES: "the user that runs raywatch may not do that: check owner and mode",
    errno.EPERM: "the user that runs raywatch may not do that: check owner and mode",
    errno.EROFS: "the file system is mounted read-only",
    errno.EIO: "the disk answered with an error: check the kernel's log",
}


class MemoryStore:
    """Blobs in memory, for tests and simulations. Safe to use from several threads."""

    def __init__(self) -> None:
        self._blobs: dict[str, bytes] = {}
        self._lock = threading.Lock()

    def put(self, name: str, blob: bytes) -> None:
        """Write atomically."""
        checked_name(name)
        with self._lock:
            self._blobs[name] = bytes(blob)

    def get(self, name: str) -> bytes | None:
        """The blob, or None."""
        checked_name(name)
        with self._lock:
            return self._blobs.get(name)

    def names(self, prefix: str) -> list[str]:
        """Names that start with `prefix`, sorted."""
        checked_prefix(prefix)
        with self._lock:
            return sorted(name for name in self._blobs if name.startswith(prefix))

    def delete(self, name: str) -> None:
        """Delete if it is there."""
        checked_name(name)
        with self._lock:
            self._blobs.pop(name, None)


class FolderStore:
    """Blobs as files below one folder. Safe to use from several threads and processes.

    Raises Unreachable (the constructor too) where the folder cannot be read or written.
    """

    def __init__(self, path: Path | str) -> None:
        self._root = Path(path)
        self._temporary = self._root / TEMPORARY
        self._numbers = itertools.count()
        with _reachable(f"`{self._root}`"):
            self._temporary.mkdir(parents=True, exist_ok=True)
            self._sweep()

    def put(self, name: str, blob: bytes) -> None:
        """Write atomically and durably: after a power cut it is the old blob or the new one."""
        target = self._root / checked_name(name)
        unique = f"{os.getpid()}-{threading.get_ident()}-{id(self):x}-{next(self._numbers)}"
        temporary = self._temporary / unique
        with _reachable(f"`{target}`"):
            try:
                with temporary.open("wb") as stream:
                    stream.write(blob)
                    stream.flush()
                    os.fsync(stream.fileno())
                self._folder(target.parent)
                temporary.replace(target)
                _sync(target.parent)
            finally:
                temporary.unlink(missing_ok=True)

    def get(self, name: str) -> bytes | None:
        """The blob, or None; also where it is larger than any of ours."""
        target = self._root / checked_name(name)
        with _reachable(f"`{target}`"):
            try:
                return target.read_bytes() if target.stat().st_size <= BLOB_BYTES_MAX else None
            except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
                return None

    def names(self, prefix: str) -> list[str]:
        """Names that start with `prefix`, sorted."""
        begin = checked_prefix(prefix).rpartition("/")[0]
        found: list[str] = []
        with _reachable(f"`{self._root / begin}`"):
            for folder, folders, files in os.walk(self._root / begin, onerror=_raise):
                if Path(folder) == self._root:
                    folders[:] = [each for each in folders if each != TEMPORARY]
                relative = Path(folder).relative_to(self._root)
                found.extend((relative / each).as_posix() for each in files)
        return sorted(name for name in found if name.startswith(prefix))

    def delete(self, name: str) -> None:
        """Delete if it is there."""
        target = self._root / checked_name(name)
        with _reachable(f"`{target}`"):
            try:
                target.unlink()
            except (FileNotFoundError, NotADirectoryError):
                return
            _sync(target.parent)

    def _folder(self, folder: Path) -> None:
        """Make a folder and its parents durable before something is renamed into it."""
        if folder.is_dir():
            return
        self._folder(folder.parent)
        folder.mkdir(exist_ok=True)
        _sync(folder.parent)

    def _sweep(self) -> None:
        """Remove what processes left behind that died while they wrote."""
        oldest = time.time() - LEFTOVER_S
        for each in self._temporary.iterdir():
            try:
                if each.stat().st_mtime < oldest:
                    each.unlink(missing_ok=True)
            except FileNotFoundError:
                continue  # another process sweeps or finishes at the same time


class BucketStore:
    """Blobs as objects of a bucket, through a pyarrow file system.

    One request writes one blob. Every call ends within the time-outs of the file system.
    """

    def __init__(self, filesystem: "FileSystem", root: str) -> None:
        self._filesystem = filesystem
        self._root = root.strip("/")

    def put(self, name: str, blob: bytes) -> None:
        """Write atomically."""
        path = self._path(checked_name(name))
        with _reachable(f"`{path}`"), self._filesystem.open_output_stream(path) as stream:
            stream.write(blob)

    def get(self, name: str) -> bytes | None:
        """The blob, or None; also where it is larger than any of ours."""
        path = self._path(checked_name(name))
        with _reachable(f"`{path}`"):
            try:
                size: int | None = self._filesystem.get_file_info(path).size
                if size is not None and size > BLOB_BYTES_MAX:
                    return None
                with self._filesystem.open_input_stream(path) as stream:
                    return cast("bytes", stream.read())
            except FileNotFoundError:
                return None

    def names(self, prefix: str) -> list[str]:
        """Names that start with `prefix`, sorted."""
        from pyarrow.fs import FileSelector, FileType

        begin = checked_prefix(prefix).rpartition("/")[0]
        path = self._path(begin) if begin else self._root
        with _reachable(f"`{path}`"):
            found = self._filesystem.get_file_info(
                FileSelector(path, allow_not_found=True, recursive=True)
            )
        cut = len(self._root) + 1
        names = [str(each.path)[cut:] for each in found if each.type == FileType.File]
        return sorted(name for name in names if name.startswith(prefix))

    def delete(self, name: str) -> None:
        """Delete if it is there."""
        path = self._path(checked_name(name))
        with _reachable(f"`{path}`"):
            try:
                self._filesystem.delete_file(path)
            except FileNotFoundError:
                return

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}"


def open_store(url: str) -> "Store":
    """The store behind a folder's path or a URL: `file://`, `s3://`, `gs://`, `memory:`.

    `s3://bucket/prefix?region=eu-central-1&endpoint_override=host:port&scheme=http`: everything
    behind the `?` is optional; credentials come from the machine (role, environment, profile),
    never from the URL. Raises ConfigError for a URL that cannot be, Unreachable for a folder that
    cannot be written.
    """
    if url == "memory:":
        return MemoryStore()
    if "://" not in url:
        if not url:
            raise ConfigError("store must not be empty", hint="a folder, or s3://bucket/prefix")
        return FolderStore(Path(url))
    parts = urlsplit(url)
    if parts.username or parts.password:
        # The URL is not repeated: it would put the secret into a log.
        raise ConfigError(
            "store URL must not hold credentials", hint="use a role, the environment or a profile"
        )
    if parts.scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path:
            raise ConfigError(f"`{url}` is no local folder", hint="file:///var/lib/raywatch")
        return FolderStore(Path(unquote(parts.path)))
    if parts.scheme not in ("s3", "gs"):
        raise ConfigError(
            f"store `{url}` has scheme `{parts.scheme}`", hint="a folder, file://, s3:// or gs://"
        )
    if not parts.netloc:
        raise ConfigError(f"store `{url}` names no bucket", hint=f"{parts.scheme}://bucket/prefix")
    options = _options(url, parts.query)
    root = f"{parts.netloc}/{unquote(parts.path).strip('/')}"
    return BucketStore(_filesystem(parts.scheme, options), root)


def checked_name(name: str) -> str:
    """The name, if it is one: parts of `[A-Za-z0-9._=@+:,~-]` joined by `/`. Else ConfigError."""
    if len(name) > NAME_MAX or not all(PART.fullmatch(part) for part in name.split("/")):
        raise ConfigError(
            f"`{name[:200]}` is no name for a blob",
            hint=f"parts of A-Z a-z 0-9 . _ = @ + : , ~ - joined by `/`, none empty or starting "
            f"with a dot, at most {NAME_MAX} characters",
        )
    return name


def checked_prefix(prefix: str) -> str:
    """The prefix, if a name can begin with it ("" is every name). Else ConfigError."""
    if prefix:
        checked_name(prefix.removesuffix("/"))
    return prefix


def _options(url: str, query: str) -> dict[str, str]:
    options = {name: values[-1] for name, values in parse_qs(query).items()}
    unknown = sorted(set(options) - {"region", "endpoint_override", "scheme", "anonymous"})
    if unknown:
        raise ConfigError(
            f"store `{url.partition('?')[0]}` has the unknown option `{unknown[0]}`",
            hint="known are region, endpoint_override, scheme and anonymous",
        )
    return options


def _filesystem(scheme: str, options: dict[str, str]) -> "FileSystem":
    from pyarrow import fs

    anonymous = options.get("anonymous") == "true"
    if scheme == "s3":
        return fs.S3FileSystem(
            region=options.get("region"),
            endpoint_override=options.get("endpoint_override"),
            scheme=options.get("scheme", "https"),
            anonymous=anonymous,
            connect_timeout=CONNECT_S,
            request_timeout=REQUEST_S,
            retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=3),
        )
    return fs.GcsFileSystem(
        endpoint_override=options.get("endpoint_override"),
        scheme=options.get("scheme", "https"),
        anonymous=anonymous,
        retry_time_limit=timedelta(seconds=REQUEST_S),
    )


@contextmanager
def _reachable(what: str) -> Generator[None]:
    """Turn what the medium raises into Unreachable."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or (str(error).splitlines() or [type(error).__name__])[0]
        raise Unreachable(
            f"store {what}: {reason[:300]}",
            hint=HINTS.get(
                error.errno or 0, "check that the folder or bucket exists and may be written"
            ),
        ) from error


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _sync(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
