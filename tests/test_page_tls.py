"""Goal: off this machine the page is read by who logged in, over TLS where there is a certificate,
and neither other sites nor what a browser remembers get at it.

Method: the real server with a certificate made here, asked by `raywatch status` and by headless
Chromium, which logs in through the form, comes by a link of another site, and reports every
violation of a policy.
"""

import http.client
import json
import shutil
import socket
import ssl
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from asking import TOKEN, ask, certificate, cookie_of, login, openssl, serving
from playwright.sync_api import Browser, BrowserContext, sync_playwright

from raywatch.cluster import page_listen
from raywatch.cluster.commands import status
from raywatch.cluster.page_listen import tls
from raywatch.cluster.page_spec import PageSpec
from raywatch.models.errors import ConfigError, Refused, Unreachable

# ---- TLS ------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1")
def test_under_tls_browsers_are_held_to_it_and_cookies_go_nowhere_else(tmp_path: Path) -> None:
    pem, key = certificate(tmp_path)
    with serving(PageSpec("0.0.0.0", 0, TOKEN, str(pem), str(key))) as url:
        assert url.startswith("https://")
        answer = login(url, TOKEN, trust=pem)
        assert answer[1]["strict-transport-security"] == "max-age=31536000"
        assert answer[1]["set-cookie"].startswith(f"__Host-raywatch_{urlsplit(url).port}=")
        assert "; Secure" in answer[1]["set-cookie"]
        assert ask(url, "/snapshot.json", trust=pem, cookie=cookie_of(answer))[0] == 200
        plain = url.replace("https", "http")
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(plain, "/healthz")
        old = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        old.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
        old.maximum_version = ssl.TLSVersion.TLSv1_1
        with (
            socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), 5) as raw,
            pytest.raises(OSError, match=r"(?i)ssl|version|protocol"),
        ):
            old.wrap_socket(raw)


def test_status_asks_a_page_under_tls_and_believes_no_other(tmp_path: Path) -> None:
    pem, key = certificate(tmp_path)
    other = tmp_path / "other"
    other.mkdir()
    foreign, _ = certificate(other)
    with serving(PageSpec("0.0.0.0", 0, TOKEN, str(pem), str(key))) as url:
        assert status.fetch(url, TOKEN, str(pem))["schema"] == status.SCHEMA
        with pytest.raises(Refused, match="wants a token"):
            status.fetch(url, "", str(pem))
        with pytest.raises(Unreachable, match=r"(?i)certificate"):
            status.fetch(url, TOKEN, str(foreign))
        with pytest.raises(Unreachable, match=r"(?i)certificate"):
            status.fetch(url, TOKEN)
    with pytest.raises(ConfigError, match=r"cannot read `page\.certificate`"):
        status.fetch(url, TOKEN, str(tmp_path / "none.pem"))


def test_status_follows_no_redirect_with_its_token() -> None:
    heard: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(self.path)
            self.send_response(302)
            self.send_header("Location", "/taken")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Elsewhere)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        with pytest.raises(Unreachable, match="answered 302"):
            status.fetch(f"http://127.0.0.1:{server.server_port}", TOKEN)
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
    assert heard == ["/snapshot.json"]


def test_files_that_are_no_certificate_and_key_are_named(tmp_path: Path) -> None:
    pem, key = certificate(tmp_path)
    locked = tmp_path / "locked.key"
    openssl("pkcs8", "-topk8", "-in", key, "-passout", "pass:password", "-out", locked)
    other = tmp_path / "other"
    other.mkdir()
    for one, two in (
        (pem, tmp_path / "none.key"),
        (tmp_path / "none.pem", key),
        (key, pem),
        (pem, certificate(other)[1]),
        (pem, locked),
    ):
        with pytest.raises(ConfigError, match="are no certificate and its key") as caught:
            tls(PageSpec(certificate=str(one), key=str(two)))
        assert "PRIVATE KEY" not in str(caught.value)


def test_a_renewed_certificate_is_taken_over_and_a_broken_one_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pem, key = certificate(tmp_path, serial=1)
    monkeypatch.setattr(page_listen.renew, "__defaults__", (0.05,))

    def shown(url: str) -> int:
        address = ("127.0.0.1", urlsplit(url).port or 0)
        (tmp_path / "shown.pem").write_text(ssl.get_server_certificate(address, timeout=5))
        said = openssl("x509", "-in", tmp_path / "shown.pem", "-noout", "-serial")
        return int(said.partition("=")[2], 16)

    with serving(PageSpec("127.0.0.1", 0, None, str(pem), str(key))) as url:
        assert shown(url) == 1
        pem.write_text("half a file")
        time.sleep(0.3)
        assert shown(url) == 1
        certificate(tmp_path, serial=2)
        until = time.monotonic() + 5
        while shown(url) != 2 and time.monotonic() < until:
            time.sleep(0.05)
        assert shown(url) == 2


# ---- a browser ------------------------------------------------------------------------------

FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync",
         "--host-resolver-rules=MAP elsewhere.example 127.0.0.1"]  # fmt: skip


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    binary = shutil.which("chromium")
    assert binary is not None, "install Debian's `chromium`"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def browsing(chromium: Browser, heard: list[str]) -> Generator[BrowserContext]:
    """A browser's own profile; what its console says is in `heard`."""
    context = chromium.new_context(ignore_https_errors=True)
    context.add_init_script(
        "addEventListener('securitypolicyviolation',"
        "e=>console.error('policy: '+e.violatedDirective+' '+e.blockedURI))"
    )
    context.on(
        "console", lambda m: heard.append(m.text) if m.type in ("error", "warning") else None
    )
    try:
        yield context
    finally:
        context.close()


@pytest.mark.parametrize("secure", [False, True])
def test_a_browser_logs_in_sees_the_page_and_its_policy_is_kept(
    chromium: Browser, tmp_path: Path, secure: bool
) -> None:
    pem, key = map(str, certificate(tmp_path)) if secure else ("", "")
    heard: list[str] = []
    with (
        serving(PageSpec("0.0.0.0", 0, TOKEN, pem, key)) as url,
        browsing(chromium, heard) as context,
    ):
        tab = context.new_page()
        tab.set_default_timeout(8_000)
        tab.goto(url)
        tab.fill("input[name=token]", "not-the-token-of-it")
        tab.click("button")
        assert "not the token" in tab.inner_text("[role=alert]")
        tab.fill("input[name=token]", TOKEN)
        tab.click("button")
        tab.wait_for_selector("#bar")
        tab.wait_for_function("() => typeof S === 'object' && S !== null")
        assert tab.url == url
        assert TOKEN not in tab.evaluate("document.documentElement.outerHTML + document.cookie")
        (cookie,) = context.cookies()
        about = dict(cookie)
        assert (about["httpOnly"], about["sameSite"], about["secure"]) == (True, "Strict", secure)
        framed = context.new_page()
        framed.goto("about:blank")
        assert framed.evaluate(
            """async url => { try { await fetch(url + 'snapshot.json', {credentials: 'include'})
                 return 'read' } catch { return 'refused' } }""",
            url,
        ) == "refused"  # fmt: skip
    quiet = [each for each in heard if "401" not in each and "CORS" not in each]
    assert [each for each in quiet if "net::ERR_FAILED" not in each] == []


def test_a_link_in_another_sites_page_lets_in_and_leaves_no_token_behind(
    chromium: Browser,
) -> None:
    heard: list[str] = []
    asked: list[tuple[str, str]] = []

    with serving(PageSpec("0.0.0.0", token=TOKEN)) as url:

        class Chat(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200)
                self.send_header("Content-Type", "text/html")
                self.end_headers()
                link = f'<link rel=icon href="data:,"><a href="{url}?token={TOKEN}">look</a>'
                self.wfile.write(link.encode())

            def log_message(self, format: str, *args: Any) -> None:
                pass

        chat = HTTPServer(("127.0.0.1", 0), Chat)
        thread = threading.Thread(target=chat.serve_forever, daemon=True)
        thread.start()
        try:
            with browsing(chromium, heard) as context:
                tab = context.new_page()
                tab.set_default_timeout(8_000)
                tab.on(
                    "request",
                    lambda r: asked.append((r.url, r.headers.get("referer", ""))),
                )
                tab.goto(f"http://elsewhere.example:{chat.server_port}/")
                tab.click("a")
                tab.wait_for_function("() => typeof S === 'object' && S !== null")
                assert tab.url == url
                session = context.new_cdp_session(tab)
                history: Any = session.send("Page.getNavigationHistory")
                places = [entry["url"] for entry in history["entries"]]
        finally:
            chat.shutdown()
            chat.server_close()
            thread.join(5)
    assert TOKEN not in json.dumps(places)
    assert url in places
    assert not [where for where, referer in asked if TOKEN in referer]
    assert heard == []
