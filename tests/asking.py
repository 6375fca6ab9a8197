"""The real page on real sockets, asked with plain HTTP: what tests of the page share."""

import http.client
import ssl
import subprocess
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from raywatch.cluster.commands import status
from raywatch.cluster.page import Page
from raywatch.cluster.page_spec import PageSpec

TOKEN = "canary-token-of-the-page"
FORM = {"content_type": "application/x-www-form-urlencoded"}
Answer = tuple[int, dict[str, str], bytes]


def take() -> dict[str, Any]:
    return {"schema": status.SCHEMA, "at_ms": int(time.time() * 1000), "verdict": {}}


@contextmanager
def serving(spec: PageSpec) -> Generator[str]:
    """The page of a spec; its address on this machine."""
    page = Page(take, lambda: b"raywatch_up 1\n", spec)
    try:
        yield page.start().replace("0.0.0.0", "127.0.0.1")
    finally:
        page.close()


def ask(url: str, path: str = "/", method: str = "GET", **more: Any) -> Answer:
    """One plain request with `body`, trusting `trust`; other names are headers, `_` for `-`."""
    body, trust = more.pop("body", None), more.pop("trust", None)
    parts = urlsplit(url)
    if parts.scheme == "https":
        context = ssl.create_default_context(cafile=trust)
        connection: http.client.HTTPConnection = http.client.HTTPSConnection(
            parts.netloc, timeout=5, context=context
        )
    else:
        connection = http.client.HTTPConnection(parts.netloc, timeout=5)
    try:
        named = {name.replace("_", "-"): value for name, value in more.items()}
        connection.request(method, path, body, named)
        answer = connection.getresponse()
        return answer.status, {k.lower(): v for k, v in answer.getheaders()}, answer.read()
    finally:
        connection.close()


def login(url: str, token: str, **more: Any) -> Answer:
    return ask(url, "/login", "POST", body=f"token={token}".encode(), **{**FORM, **more})


def openssl(*words: str | Path) -> str:
    done = subprocess.run(
        ["openssl", *map(str, words)], capture_output=True, text=True, timeout=30, check=True
    )
    return done.stdout


def certificate(folder: Path, serial: int = 1) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 and localhost, and its key."""
    pem, key = folder / "page.pem", folder / "page.key"
    openssl(
        "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-noenc",
        "-keyout", key, "-out", pem, "-days", "1", "-subj", "/CN=raywatch test",
        "-set_serial", str(serial), "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1",
    )  # fmt: skip
    return pem, key


def cookie_of(answer: Answer) -> str:
    return answer[1]["set-cookie"].split(";")[0]
