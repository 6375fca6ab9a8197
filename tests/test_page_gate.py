"""Goal: the page answers whom it should, with headers that trust nobody, and ends when told to.

Method: the real server on real sockets, asked with plain HTTP.
"""

import http.client
import json
import logging
import math
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from raywatch.cluster.page import STREAMS_MAX, Page
from raywatch.cluster.page_spec import PageSpec
from raywatch.models.errors import ConfigError, Unreachable

TOKEN = "a-token-of-some-length"
HALF_BEAT_S = 0.6  # after this a new snapshot is taken


class Show:
    """What the served page shows, `age_s` old."""

    def __init__(self) -> None:
        self.age_s = 0.0
        self.lag: float = 12
        self.fails = False

    def take(self) -> dict[str, Any]:
        if self.fails:
            raise Unreachable("the supervisor is away")
        at_ms = int((time.time() - self.age_s) * 1000)
        return {"at_ms": at_ms, "owners": {"up": 8, "lag_records": self.lag}}


@pytest.fixture
def show() -> Show:
    return Show()


@pytest.fixture
def served(show: Show) -> Iterator[str]:
    page = Page(show.take, lambda: b"raywatch_up 1\n")
    yield page.start()
    page.close()


def ask(
    url: str, path: str = "/", method: str = "GET", **headers: str
) -> tuple[int, dict[str, str], bytes]:
    """One plain request; header names with `_` for `-`."""
    where = url.split("/")[2]
    connection = http.client.HTTPConnection(where, timeout=5)
    try:
        connection.request(
            method, path, headers={k.replace("_", "-"): v for k, v in headers.items()}
        )
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def test_every_answer_carries_the_headers_of_a_page_that_trusts_nobody(served: str) -> None:
    for path, status in (("/", 200), ("/snapshot.json", 200), ("/metrics", 200), ("/etc", 404)):
        code, headers, _ = ask(served, path)
        assert code == status, path
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers
    assert ask(served, "/snapshot.json", "POST")[0] == 405
    assert ask(served, "/metrics")[2] == b"raywatch_up 1\n"


def test_the_page_is_whole_and_asks_nobody_else(served: str) -> None:
    html = ask(served)[2].decode()
    for outside in ("http://", "https://", "//cdn", "@import", "url(http", "src="):
        assert outside not in html.replace("http://www.w3.org", "")
    assert "page_draw.js" not in html.split("<script>")[0]
    assert 20_000 < len(html) < 80_000


def test_a_snapshot_is_json_with_its_age_and_a_tag(served: str, show: Show) -> None:
    show.age_s, show.lag = 4.0, math.nan  # not a number is unknown, and no JSON
    code, headers, body = ask(served, "/snapshot.json")
    got = json.loads(body)
    assert code == 200
    assert 4.0 <= got["age_s"] < 8.0
    assert got["owners"]["lag_records"] is None
    assert ask(served, "/snapshot.json", if_none_match=headers["etag"])[0] == 304


def test_health_is_the_age_of_the_snapshot(served: str, show: Show) -> None:
    assert ask(served, "/healthz")[0] == 200
    show.age_s = 20.0
    time.sleep(HALF_BEAT_S)
    code, _, body = ask(served, "/healthz")
    assert (code, body.split(b":")[0]) == (503, b"stale")
    show.fails = True
    time.sleep(HALF_BEAT_S)
    assert ask(served, "/healthz")[0] == 503
    code, _, body = ask(served, "/snapshot.json")
    assert (code, "error" in json.loads(body)) == (503, True)
    show.fails = False
    assert ask(served, "/snapshot.json")[0] == 200  # and it is back


def test_a_foreign_name_for_this_machine_is_refused(served: str) -> None:
    port = served.split(":")[2].strip("/")
    for name in ("localhost", "127.0.0.1", "127.9.9.9", "[::1]", f"localhost:{port}"):
        assert ask(served, host=name)[0] == 200, name
    for name in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "10.0.0.1", ""):
        assert ask(served, host=name)[0] == 421, name


def test_it_is_never_open_to_others_without_a_token() -> None:
    with pytest.raises(ConfigError, match=r"`0.0.0.0` without a token") as caught:
        PageSpec("0.0.0.0")
    assert "ssh tunnel" in caught.value.hint
    with pytest.raises(ConfigError, match="has 5 characters") as caught:
        PageSpec("0.0.0.0", token="short")
    assert "short" not in str(caught.value)


def test_a_token_opens_it_once_for_all_and_is_never_logged(
    caplog: pytest.LogCaptureFixture, show: Show
) -> None:
    caplog.set_level(logging.DEBUG)
    page = Page(show.take, lambda: b"", PageSpec("0.0.0.0", token=TOKEN))
    url = page.start().replace("0.0.0.0", "127.0.0.1")
    try:
        code, headers, _ = ask(url, "/snapshot.json")
        assert code == 401
        assert headers["www-authenticate"].startswith("Bearer")
        assert ask(url, authorization="Bearer wrong-token-of-length")[0] == 401
        assert ask(url, cookie=f"raywatch_{url.split(':')[2].strip('/')}={TOKEN}")[0] == 401
        assert ask(url, "/?token=wrong")[0] == 401
        assert ask(url, authorization=f"Bearer {TOKEN}")[0] == 200
        assert ask(url, "/healthz")[0] == 200  # says ok or stale, nothing else
        code, headers, _ = ask(url, f"/?token={TOKEN}&print=a-1")
        assert (code, headers["location"]) == (303, "enter?print=a-1")
        cookie = headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert TOKEN not in cookie
        assert ask(url, "/snapshot.json", cookie=cookie.split(";")[0])[0] == 200
        assert ask(url, "/", host="raywatch.example", cookie=cookie.split(";")[0])[0] == 200
    finally:
        page.close()
    assert TOKEN not in caplog.text


# --- how it lives


def test_a_port_in_use_is_named(served: str) -> None:
    port = int(served.split(":")[2].strip("/"))
    with pytest.raises(ConfigError, match=rf"port {port} of `127.0.0.1` cannot be had") as caught:
        Page(dict, bytes, PageSpec(port=port)).start()
    assert "another port" in caught.value.hint


def test_it_starts_at_once_and_ends_under_readers(show: Show) -> None:
    page = Page(show.take, lambda: b"")
    before = time.monotonic()
    url = page.start()
    assert time.monotonic() - before < 1.0
    port = int(url.split(":")[2].strip("/"))
    with socket.create_connection(("127.0.0.1", port), timeout=5) as reader:
        reader.sendall(b"GET /snapshot/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert b"text/event-stream" in reader.recv(2_000)
        page.close()
        page.close()
        assert time.monotonic() - before < 4.0
    assert not [t for t in threading.enumerate() if t.name == "raywatch-page" and t.is_alive()][1:]
    again = Page(show.take, lambda: b"", PageSpec(port=port))
    assert again.start() == url
    again.close()


def test_streams_are_bounded_and_polling_still_works(show: Show) -> None:
    page = Page(show.take, lambda: b"")
    url = page.start()
    readers: list[socket.socket] = []
    try:
        for _ in range(STREAMS_MAX):
            port = int(url.split(":")[2].strip("/"))
            reader = socket.create_connection(("127.0.0.1", port), timeout=5)
            readers.append(reader)
            reader.sendall(b"GET /snapshot/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert b"200 OK" in reader.recv(200)
        code, headers, _ = ask(url, "/snapshot/stream")
        assert (code, headers["retry-after"]) == (503, "10")
        assert ask(url, "/snapshot.json")[0] == 200
    finally:
        for reader in readers:
            reader.close()
        page.close()
