"""Goal: whoever may not see the page does not, by no way a program has.

Method: the real server on real sockets, asked with plain HTTP, with every wrong credential, method,
name and size. Cookies are judged with a clock of our own; connections that ask for nothing, or
slowly, must end. TLS and the ways of a browser are the matter of test_page_tls.py.
"""

import http.client
import logging
import socket
import time
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest
from asking import TOKEN, ask, cookie_of, login, serving

from raywatch.cluster import page_gate, page_listen
from raywatch.cluster.page_gate import FORM_BYTES_MAX, SESSION_S, Passes
from raywatch.cluster.page_listen import CONNECTIONS_MAX, REQUEST_BYTES_MAX
from raywatch.cluster.page_spec import PageSpec
from raywatch.models.errors import ConfigError


@pytest.fixture
def guarded() -> Iterator[str]:
    with serving(PageSpec("0.0.0.0", token=TOKEN)) as url:
        yield url


# ---- who may ask ----------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/", "/snapshot.json", "/snapshot/stream", "/metrics", "/none"])
def test_nothing_but_health_is_said_to_who_does_not_know_the_token(guarded: str, path: str) -> None:
    for headers in (
        {},
        {"authorization": f"Bearer {TOKEN}x"},
        {"authorization": f"Basic {TOKEN}"},
        {"authorization": TOKEN},
        {"cookie": f"raywatch_{urlsplit(guarded).port}={TOKEN}"},
        {"x_forwarded_for": "127.0.0.1"},
    ):
        code, said, body = ask(guarded, path, **headers)
        assert code == 401, (path, headers)
        assert said["www-authenticate"].startswith("Bearer")
        assert b"verdict" not in body
        assert b"raywatch_up" not in body
        assert TOKEN.encode() not in body
    assert ask(guarded, "/healthz")[::2] == (200, b"ok\n")


def test_metrics_are_given_to_the_token_as_scrapers_send_it(guarded: str) -> None:
    found = ask(guarded, "/metrics", authorization=f"bearer {TOKEN}")
    assert (found[0], found[2]) == (200, b"raywatch_up 1\n")


def test_the_form_gives_a_cookie_that_scripts_and_other_sites_do_not_have(guarded: str) -> None:
    code, headers, body = ask(guarded, accept="text/html")
    assert (code, b'<form method="post" action="login">' in body) == (401, True)
    wrong = login(guarded, "guess-of-16-chars")
    assert wrong[0] == 401
    assert "set-cookie" not in wrong[1]
    code, headers, _ = right = login(guarded, TOKEN)
    assert (code, headers["location"]) == (303, ".")
    parts = {each.strip().lower() for each in headers["set-cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/", f"max-age={SESSION_S}"} <= parts
    assert "secure" not in parts  # a browser would not send it back over HTTP
    assert TOKEN not in headers["set-cookie"]
    assert ask(guarded, "/snapshot.json", cookie=cookie_of(right))[0] == 200
    behind = login(guarded, TOKEN, x_forwarded_proto="https")
    assert "; Secure" in behind[1]["set-cookie"]


def test_the_form_takes_nothing_of_other_sites_and_nothing_large(guarded: str) -> None:
    assert login(guarded, TOKEN, sec_fetch_site="cross-site")[0] == 403
    assert login(guarded, TOKEN, sec_fetch_site="same-site")[0] == 403
    assert login(guarded, TOKEN, sec_fetch_site="same-origin")[0] == 303
    assert login(guarded, "x" * FORM_BYTES_MAX)[0] == 413
    assert login(guarded, "%ff%fe%00")[0] == 401
    assert login(guarded, "")[0] == 401


def test_a_cookie_ends_and_is_worth_nothing_when_anything_in_it_is_changed() -> None:
    now = [1_700_000_000.0]
    passes = Passes(TOKEN, lambda: now[0])
    issued = passes.issue()
    assert passes.good(issued)
    ends, _, mac = issued.partition(".")
    for changed in (
        f"{int(ends) + 1}.{mac}",
        f"{ends}.{'0' * 64}",
        mac,
        ends,
        f"{ends}.",
        "",
        f"{ends}.{mac}0",
        f"٣{ends[1:]}.{mac}",  # a digit, but not one of ours
        f"{'9' * 400}.{mac}",
    ):
        assert not passes.good(changed), changed
    assert not Passes(TOKEN + "2", lambda: now[0]).good(issued)  # another token ends all of them
    now[0] += SESSION_S - 1
    assert passes.good(issued)
    now[0] += 1
    assert not passes.good(issued)


def test_a_link_with_the_token_is_exchanged_and_leaves_nothing_in_the_address(guarded: str) -> None:
    answer = code, headers, body = ask(guarded, f"/?token={TOKEN}&print=a-1")
    assert (code, headers["location"], body) == (303, "enter?print=a-1", b"")
    code, headers, body = ask(guarded, "/enter?print=a-1")  # begins a way of its own: see ENTER
    assert (code, b'content="0;url=.?print=a-1"' in body) == (200, True)
    assert ask(guarded, "/?print=a-1", cookie=cookie_of(answer))[0] == 200
    for path in ("/snapshot.json", "/metrics", "/none"):
        assert ask(guarded, f"{path}?token={TOKEN}")[0] == 401  # programs have a header for it


def test_what_the_way_in_says_can_bring_no_markup_and_leads_nowhere_else(guarded: str) -> None:
    _, _, body = ask(guarded, "/enter?a=%22%3E%3Cscript%3E&//evil.example=1&b=javascript:")
    assert b"<script" not in body
    assert body.count(b"url=.?") == 1
    assert b"url=//" not in body
    assert "content-security-policy" in ask(guarded, "/enter")[1]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
def test_it_only_reads(guarded: str, method: str) -> None:
    for path in ("/", "/snapshot.json", "/metrics", "/healthz"):
        code, headers, _ = ask(guarded, path, method, authorization=f"Bearer {TOKEN}")
        assert (code, headers["allow"]) == (405, "GET, HEAD"), path
        assert not [name for name in headers if name.startswith("access-control")]


def test_head_says_what_get_would_without_a_body(guarded: str) -> None:
    for path in ("/", "/snapshot.json", "/metrics", "/snapshot/stream"):
        code, _, body = ask(guarded, path, "HEAD", authorization=f"Bearer {TOKEN}")
        assert (code, body) == (200, b""), path


def test_every_answer_has_the_headers_and_none_tells_what_serves_it(guarded: str) -> None:
    bearer = {"authorization": f"Bearer {TOKEN}"}
    for answer in (
        ask(guarded),
        ask(guarded, **bearer),
        ask(guarded, "/login"),
        ask(guarded, "/enter"),
        ask(guarded, "/none", **bearer),
        ask(guarded, "/", "POST", **bearer),
        ask(guarded, f"/?token={TOKEN}"),
        login(guarded, TOKEN),
        ask(guarded, host="", **bearer),
    ):
        headers = answer[1]
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ")
        assert "unsafe" not in policy
        assert "*" not in policy
        assert {"base-uri 'none'", "frame-ancestors 'none'"} <= set(policy.split("; "))
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["x-frame-options"] == "DENY"
        assert headers["cross-origin-opener-policy"] == "same-origin"
        assert headers["cross-origin-resource-policy"] == "same-origin"
        assert headers["cache-control"] == "no-store"
        assert not {"server", "x-powered-by", "access-control-allow-origin"} & headers.keys()
        assert "strict-transport-security" not in headers  # not over TLS: it would mean nothing


def test_wrong_tokens_are_counted_in_the_log_and_never_shown(
    guarded: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    for number in range(20):
        ask(guarded, f"/?token=wrong-guess-{number:06}", authorization=f"Bearer {TOKEN}-{number}")
    ask(guarded, authorization=f"Bearer {TOKEN}")
    said = [each.message for each in caplog.records if each.name.startswith("raywatch")]
    assert len(said) == 1, said  # one a minute
    assert "with a wrong token were refused" in said[0]
    assert TOKEN not in caplog.text
    assert "wrong-guess" not in caplog.text


def test_comparisons_do_not_stop_at_the_first_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    """By code and not by clock: what decides is `hmac.compare_digest`, for tokens and cookies."""
    asked: list[tuple[bytes, bytes]] = []

    def compare(one: bytes, other: bytes) -> bool:
        asked.append((one, other))
        return one == other

    monkeypatch.setattr(page_gate.hmac, "compare_digest", compare)
    with serving(PageSpec(token=TOKEN)) as url:
        assert ask(url, authorization=f"Bearer {TOKEN}")[0] == 200
        assert ask(url, cookie=cookie_of(login(url, TOKEN)))[0] == 200
    assert (TOKEN.encode(), TOKEN.encode()) in asked
    assert len(asked) == 3  # bearer, form, cookie


# ---- names ----------------------------------------------------------------------------------


def test_names_say_what_the_page_answers_to() -> None:
    loop, far = PageSpec(), PageSpec("10.0.0.9", token=TOKEN)
    named = PageSpec("10.0.0.9", token=TOKEN, names=("Watch.example",))
    proxied = PageSpec(names=("watch.example",))
    for header, answers in {
        "localhost:8787": (True, True, True, True),
        "127.0.0.1": (True, True, True, True),
        "[::1]:1": (True, True, True, True),
        "10.0.0.9:8787": (False, True, True, False),
        "watch.example": (False, True, True, True),
        "WATCH.example.:443": (False, True, True, True),
        "evil.example": (False, True, False, False),
        "127.0.0.1.evil.example": (False, True, False, False),
        "localhost:8787:1": (False, False, False, False),
        "localhost@evil.example": (False, True, False, False),
        "": (False, False, False, False),
    }.items():
        found = tuple(each.answers_to(header) for each in (loop, far, named, proxied))
        assert found == answers, header


def test_a_page_that_others_reach_does_not_begin_without_a_token() -> None:
    for host in ("0.0.0.0", "::", "10.0.0.9", "watch.example"):
        with pytest.raises(ConfigError, match="without a token"):
            PageSpec(host)
        with pytest.raises(ConfigError, match="has 15 characters"):
            PageSpec(host, token="x" * 15)
    assert TOKEN not in repr(PageSpec("0.0.0.0", token=TOKEN))


# ---- bounds ---------------------------------------------------------------------------------


def test_a_request_has_a_size(guarded: str) -> None:
    port = urlsplit(guarded).port or 0
    with socket.create_connection(("127.0.0.1", port), timeout=5) as large:
        large.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * (4 * REQUEST_BYTES_MAX))
        assert b" 400 " in large.recv(100)
    assert ask(guarded, "/healthz")[0] == 200


def test_who_asks_for_nothing_or_slowly_is_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_listen, "HEAD_S", 0.3)
    with serving(PageSpec(token=TOKEN)) as url:
        port = urlsplit(url).port or 0
        silent = socket.create_connection(("127.0.0.1", port), timeout=5)
        slow = socket.create_connection(("127.0.0.1", port), timeout=5)
        posting = socket.create_connection(("127.0.0.1", port), timeout=5)
        posting.sendall(b"POST /login HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\nt")
        reader = socket.create_connection(("127.0.0.1", port), timeout=5)
        reader.sendall(
            f"GET /snapshot/stream HTTP/1.1\r\nHost: localhost\r\n"
            f"Authorization: Bearer {TOKEN}\r\n\r\n".encode()
        )
        begin = time.monotonic()
        gone: set[str] = set()
        waiting = {"silent": silent, "slow": slow, "posting": posting}
        while len(gone) < 3 and time.monotonic() - begin < 5:
            time.sleep(0.05)
            for name, each in waiting.items():
                try:
                    if name == "slow":
                        each.sendall(b"G")
                    each.settimeout(0.01)
                    if each.recv(100) == b"":
                        gone.add(name)
                except TimeoutError:
                    continue
                except OSError:
                    gone.add(name)
        assert gone == set(waiting)
        assert time.monotonic() - begin >= 0.3
        reader.settimeout(5)
        seen = b""
        while seen.count(b"data:") < 3:  # a stream is no idler: it outlives many looks
            part = reader.recv(10_000)
            assert part
            seen += part
        for each in (*waiting.values(), reader):
            each.close()


def test_connections_are_bounded_and_who_was_there_is_still_served(guarded: str) -> None:
    port = urlsplit(guarded).port or 0
    held: list[socket.socket] = []
    first = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        first.request("GET", "/healthz")
        assert first.getresponse().read() == b"ok\n"
        for _ in range(CONNECTIONS_MAX + 40):
            held.append(socket.create_connection(("127.0.0.1", port), timeout=5))
        time.sleep(0.5)
        gone = 0
        for each in held:
            each.settimeout(0.001)
            try:
                gone += each.recv(1) == b""
            except TimeoutError:
                pass
            except OSError:
                gone += 1
        assert 40 <= gone <= 60
    finally:
        for each in held:
            each.close()
        first.close()
    until = time.monotonic() + 5
    while time.monotonic() < until:
        try:
            assert ask(guarded, "/healthz")[0] == 200
            return
        except (OSError, AssertionError):
            time.sleep(0.1)
    raise AssertionError("it did not come back")
