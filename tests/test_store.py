"""Goal: a blob is the old one, the new one or none, whatever dies, and errors carry a hint.

Method: one contract for a folder, memory and the bucket of an S3 server in this process; then a
full disk, a killed writer and names that lead elsewhere. Clocks: virtual time moves only when told.
"""

import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moto.server import ThreadedMotoServer
from pyarrow import fs

from raywatch.actors.clock import SystemClock, VirtualClock
from raywatch.actors.ports import Clock, Store
from raywatch.actors.store import BucketStore, FolderStore, MemoryStore, open_store
from raywatch.models.errors import ConfigError, Unreachable


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """URL of an empty bucket."""
    import boto3

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        client: Any = boto3.client(
            "s3", endpoint_url=f"http://{host}:{port}", region_name="us-east-1"
        )
        client.create_bucket(Bucket="blobs")
        yield f"s3://blobs/raywatch?endpoint_override={host}:{port}&scheme=http&region=us-east-1"
    server.stop()


@pytest.fixture(params=["folder", "memory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "memory":
        return open_store("memory:")
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    if request.param == "s3":
        opened = open_store(request.getfixturevalue("s3"))
        for name in opened.names(""):
            opened.delete(name)
        return opened
    raise AssertionError(request.param)


def test_a_store_keeps_the_newest_blob_of_each_name(store: Store) -> None:
    first = "hosts/3/000100-7"
    assert store.get(first) is None
    store.put(first, b"old")
    store.put(first, b"new" * 100_000)
    store.put("other", b"")
    assert store.get(first) == b"new" * 100_000
    assert store.get("other") == b""
    assert store.names("") == sorted([first, "other"])
    store.delete(first)
    store.delete(first)
    assert store.get(first) is None
    assert store.names("") == ["other"]


def test_names_are_found_by_any_prefix_in_order(store: Store) -> None:
    for name in ("hosts/10/b", "hosts/1/b", "hosts/1/a", "host", "x"):
        store.put(name, b"1")
    assert store.names("hosts/1/") == ["hosts/1/a", "hosts/1/b"]
    assert store.names("hosts/1") == ["hosts/1/a", "hosts/1/b", "hosts/10/b"]
    assert store.names("host") == ["host", "hosts/1/a", "hosts/1/b", "hosts/10/b"]
    assert store.names("hosts/2/") == []
    assert store.names("nothing/at/all") == []
    assert store.get("hosts/1") is None  # a folder is no blob
    assert store.get("x/below/a/blob") is None


@pytest.mark.parametrize(
    "name", ["", "/", "/etc/passwd", "..", "a/../b", "../a", "a//b", "a/", ".tmp", "a/.b", "a\0"]
)
def test_names_that_lead_elsewhere_are_refused(tmp_path: Path, name: str) -> None:
    for each in (MemoryStore(), FolderStore(tmp_path), BucketStore(fs.LocalFileSystem(), "x")):
        for call in (lambda s: s.put(name, b""), lambda s: s.get(name), lambda s: s.delete(name)):
            with pytest.raises(ConfigError, match="is no name for a blob"):
                call(each)  # type: ignore[no-untyped-call]
    with pytest.raises(ConfigError):
        MemoryStore().names("../")


def test_a_full_disk_is_unreachable_with_a_hint_and_leaves_the_old_blob(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FolderStore(tmp_path)
    store.put("a/b", b"old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(Unreachable, match="No space left") as caught:
            store.put("a/b", b"new")
    assert "disk is full" in caught.value.hint
    assert store.get("a/b") == b"old"
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_a_write_that_ends_half_way_leaves_the_old_blob(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    store.put("blob", b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(Unreachable, match="too large"):
            store.put("blob", b"x" * 200_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.get("blob") == b"old"
    assert list((tmp_path / ".tmp").iterdir()) == []


def test_a_folder_that_cannot_be_is_unreachable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unreachable, match="file"):
        open_store(str(tmp_path / "file" / "store"))
    if os.getuid() != 0:  # root may write anywhere
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(Unreachable) as caught:
            open_store(str(tmp_path / "locked" / "store"))
        assert "owner and mode" in caught.value.hint


WRITER = """
import sys
from raywatch.actors.store import FolderStore
store = FolderStore(sys.argv[1])
number = 0
while True:
    number = (number + 1) % 256
    store.put("a/blob", bytes([number]) * 300_000)
    print(number, flush=True)
"""


def test_a_killed_writer_leaves_a_whole_blob_and_readers_never_see_a_part(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        assert writer.stdout.readline()  # it writes now
        until = time.monotonic() + 1.0
        seen: set[bytes] = set()
        while time.monotonic() < until:
            blob = store.get("a/blob")
            assert blob is not None
            assert blob == blob[:1] * 300_000
            seen.add(blob[:1])
        writer.send_signal(signal.SIGKILL)
        writer.wait(30)
    assert len(seen) > 1
    blob = store.get("a/blob")
    assert blob is not None
    assert blob == blob[:1] * 300_000
    assert store.names("") == ["a/blob"]


def test_leftovers_of_the_dead_are_swept_and_those_of_the_living_are_not(tmp_path: Path) -> None:
    FolderStore(tmp_path)
    old, new = tmp_path / ".tmp" / "old", tmp_path / ".tmp" / "new"
    for each in (old, new):
        each.write_bytes(b"half")
    os.utime(old, (time.time() - 7_200, time.time() - 7_200))
    FolderStore(tmp_path)
    assert not old.exists()
    assert new.exists()


def test_threads_write_side_by_side(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)

    def write(thread: int) -> None:
        for number in range(20):
            store.put(f"{thread}/{number}", b"%d" % thread)
            store.put("shared", b"%d" % thread)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for each in threads:
        each.start()
    for each in threads:
        each.join(60)
    assert len(store.names("")) == 81  # 4 * 20 and the shared one


def test_a_url_opens_what_it_names(tmp_path: Path) -> None:
    store = open_store((tmp_path / "with space").as_uri())
    store.put("a", b"1")
    assert (tmp_path / "with space" / "a").read_bytes() == b"1"
    assert isinstance(open_store("memory:"), MemoryStore)
    assert isinstance(open_store("gs://bucket/prefix?anonymous=true"), BucketStore)


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "must not be empty"),
        ("http://host/x", "scheme `http`"),
        ("s3://", "names no bucket"),
        ("s3://bucket/x?regoin=eu", "unknown option `regoin`"),
        ("file://host/x", "is no local folder"),
    ],
)
def test_a_url_that_cannot_be_is_refused(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        open_store(url)


def test_credentials_in_a_url_are_refused_and_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        open_store("s3://key:hunter2@bucket/x")
    assert "hunter2" not in caught.value.message + caught.value.hint


def test_a_bucket_that_does_not_answer_is_unreachable(s3: str) -> None:
    absent = open_store(s3.replace("blobs/raywatch", "absent/raywatch"))
    with pytest.raises(Unreachable):
        absent.put("a", b"1")
    begin = time.monotonic()
    nobody = open_store("s3://blobs/x?endpoint_override=127.0.0.1:1&scheme=http&region=us-east-1")
    for call in (lambda: nobody.get("a"), lambda: nobody.names(""), lambda: nobody.put("a", b"")):
        with pytest.raises(Unreachable) as caught:
            call()
        assert caught.value.hint
    assert time.monotonic() - begin < 60.0


def test_virtual_time_moves_only_when_told_and_never_back() -> None:
    clock = VirtualClock(1_000)
    for _ in range(1_000):
        clock.sleep(0.1)
    assert clock.now_ms() == 101_000  # 1,000 + 1,000 * 100 ms, no rounding left over
    assert clock.monotonic() == 100.0
    clock.sleep(-5.0)
    clock.advance(0.0005)
    assert clock.now_ms() == 101_000
    clock.advance(0.0005)
    assert clock.now_ms() == 101_001


def test_system_time_is_unix_time_and_sleeping_takes_it() -> None:
    clock: Clock = SystemClock()
    assert abs(clock.now_ms() - time.time() * 1000) < 5_000
    begin = clock.monotonic()
    clock.sleep(0.02)
    clock.sleep(-1.0)
    assert 0.02 <= clock.monotonic() - begin < 5.0
