"""The live page: who may ask, and what they get.

One HTML page, its snapshot (once, or as a stream of one whole snapshot a second), metrics and
health, served by uvicorn in a thread of the supervisor's process. It only reads: there is no
route that changes anything, and no answer that waits for a cluster. A snapshot is encoded once
for all readers, at most every BEAT_S.

Who may ask: on a loopback address everybody on this machine who names it as such (a page of
another site that points its own name at 127.0.0.1 sends that name as Host, and is refused).
Elsewhere only who knows the token, as `Authorization: Bearer TOKEN`, or once as `?token=TOKEN`,
which is answered with a cookie and a redirect that takes the token out of the address. The cookie
is a MAC under the token, not the token. Addresses are never logged.
"""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import logging
import re
import socket
import threading
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode

import msgspec
import uvicorn
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raywatch.models.errors import ConfigError, RaywatchError, Unreachable

log = logging.getLogger(__name__)

BEAT_S = 1.0  # one snapshot a second: as often as it changes
STREAMS_MAX = 32  # readers of the stream; whoever comes later polls
REQUESTS_MAX = 128  # connections at once, streams included; uvicorn answers 503 beyond
SEND_S = 10.0  # a reader that takes nothing for this long is let go
STALE_S = 10.0  # an older snapshot means that the supervisor stands still
START_S = 10.0  # longest the server may take to listen
CLOSE_S = 3.0  # longest `close` waits for its thread
TOKEN_CHARS_MIN = 16  # shorter tokens can be guessed
SCRIPTS = ("page_shape.js", "page_draw.js", "page_live.js")
MARK = "/* page_shape.js, page_draw.js and page_live.js go here */"


@dataclass(frozen=True, slots=True)
class _Document:
    """The page as it is served, and the policy that lets nothing else run in it."""

    html: bytes
    policy: str


def _document() -> _Document:
    """Put the scripts into the page and hash what is inline."""
    room = Path(__file__).parent
    script = "\n".join((room / name).read_text("utf-8") for name in SCRIPTS)
    assert "</script" not in script, "it would end the script early"
    page = (room / "page.html").read_text("utf-8")
    assert page.count(MARK) == 1, MARK
    html = page.replace(MARK, script)
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL)
    assert style is not None, "page.html has no style"
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src {_hash(script)}",
            f"style-src {_hash(style.group(1))}",
            "img-src data:",  # the empty icon
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return _Document(html.encode(), policy)


def _hash(inline: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(inline.encode()).digest()).decode()}'"


class _Snapshots:
    """The newest snapshot, encoded once for all readers. Used by the server's thread only."""

    def __init__(self, take: Callable[[], Mapping[str, Any]]) -> None:
        self._take = take
        self._taken = -BEAT_S
        self._snapshot: dict[str, Any] = {}
        self._tag = ""

    def _refresh(self) -> None:
        """Take it anew if it is a beat old. Raises Unreachable when there is none."""
        now = time.monotonic()
        if now - self._taken < BEAT_S / 2:
            return
        try:
            snapshot = dict(self._take())
            body = msgspec.json.encode(snapshot)
        except Exception as error:
            self._taken = -BEAT_S
            log.warning("page: no snapshot: %s: %s", type(error).__name__, error)
            raise Unreachable("the supervisor has no snapshot to show") from error
        self._snapshot = snapshot
        self._tag = f'W/"{zlib.crc32(body):08x}-{len(body)}"'
        self._taken = now

    def age_s(self) -> float:
        """Seconds since the supervisor made it, by this machine's clock; 0 if it does not say."""
        self._refresh()
        at_ms = self._snapshot.get("at_ms")
        return max(0.0, time.time() - at_ms / 1e3) if isinstance(at_ms, int | float) else 0.0

    def body(self) -> bytes:
        """JSON with `age_s` filled in: a browser's clock need not agree with ours."""
        age_s = self.age_s()
        return msgspec.json.encode({**self._snapshot, "age_s": round(age_s, 3)})

    def tag(self) -> str:
        """Weak, as `age_s` is not part of it."""
        self._refresh()
        return self._tag


class _Gate:
    """ASGI middleware: refuses who may not ask and puts the headers on every answer."""

    def __init__(self, app: ASGIApp, *, token: str | None, cookie: str, policy: str, local: bool):
        self._app = app
        self._token = token
        self._cookie = cookie
        self._local = local
        self._pass = "" if token is None else _mac(token)
        self._headers = {
            "Content-Security-Policy": policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cache-Control": "no-store",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return  # no lifespan, no web sockets

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers[name] = value
            await send(message)

        answer = self._refusal(Request(scope)) or self._app
        await answer(scope, receive, send_with_headers)

    def _refusal(self, request: Request) -> Response | None:
        if self._local and not _names_loopback(request.headers.get("host", "")):
            return PlainTextResponse("this page answers to localhost only\n", 421)
        if self._token is None or request.url.path == "/healthz":
            return None
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and _same(given.strip(), self._token):
            return None
        if _same(request.cookies.get(self._cookie, ""), self._pass):
            return None
        if _same(request.query_params.get("token", ""), self._token):
            return self._welcome(request)
        return PlainTextResponse(
            "a token is needed: `Authorization: Bearer TOKEN`, or once `?token=TOKEN`\n",
            401,
            {"WWW-Authenticate": 'Bearer realm="raywatch"'},
        )

    def _welcome(self, request: Request) -> Response:
        """A cookie, and the same address without the token in it."""
        rest = [(k, v) for k, v in parse_qsl(request.url.query) if k != "token"]
        where = request.url.path.rsplit("/", 1)[-1] or "."  # relative: a proxy may add a prefix
        answer = RedirectResponse(f"{where}?{urlencode(rest)}" if rest else where, 303)
        answer.set_cookie(
            self._cookie,
            self._pass,
            httponly=True,
            samesite="lax",  # strict would not survive a link in a chat; nothing here writes
            secure=request.url.scheme == "https",
        )
        return answer


def _mac(token: str) -> str:
    return hmac.new(token.encode(), b"raywatch page cookie", hashlib.sha256).hexdigest()


def _same(given: str, wanted: str) -> bool:
    return hmac.compare_digest(given.encode(), wanted.encode())


def _is_loopback(host: str) -> bool:
    if host.rstrip(".").lower() == "localhost":
        return True
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _names_loopback(header: str) -> bool:
    """Whether a Host header names this machine as itself: `localhost`, 127.x.x.x or [::1]."""
    match = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+))(?::\d{1,5})?", header)
    return match is not None and _is_loopback(match.group(1) or match.group(2))


class _Routes:
    """What each address answers."""

    def __init__(self, document: _Document, snapshots: _Snapshots, metrics: Callable[[], bytes]):
        self._document = document
        self._snapshots = snapshots
        self._metrics = metrics
        self._streams = 0
        self.closing = asyncio.Event()

    def table(self) -> list[Route]:
        routes: tuple[tuple[str, Callable[[Request], Awaitable[Response]]], ...] = (
            ("/", self.page),
            ("/snapshot.json", self.snapshot),
            ("/snapshot/stream", self.stream),
            ("/metrics", self.metrics),
            ("/healthz", self.health),
        )
        return [Route(path, endpoint, methods=["GET"]) for path, endpoint in routes]

    async def page(self, request: Request) -> Response:
        return Response(self._document.html, media_type="text/html")

    async def snapshot(self, request: Request) -> Response:
        headers = {"ETag": self._snapshots.tag()}
        if request.headers.get("if-none-match") == headers["ETag"]:
            return Response(status_code=304, headers=headers)
        return Response(self._snapshots.body(), 200, headers, "application/json")

    async def stream(self, request: Request) -> Response:
        if self._streams >= STREAMS_MAX:
            say = f"{STREAMS_MAX} pages follow the stream already: poll snapshot.json\n"
            return PlainTextResponse(say, 503, {"Retry-After": "10"})
        return EventSourceResponse(self._beats(), ping=15, send_timeout=SEND_S)

    async def _beats(self) -> AsyncIterator[dict[str, str]]:
        self._streams += 1
        try:
            while not self.closing.is_set():
                with suppress(Unreachable):  # no beat: the page says `unknown` by itself
                    yield {"data": self._snapshots.body().decode()}
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.closing.wait(), BEAT_S)
        finally:
            self._streams -= 1

    async def metrics(self, request: Request) -> Response:
        return Response(self._metrics(), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def health(self, request: Request) -> Response:
        try:
            age_s = self._snapshots.age_s()
        except Unreachable as error:
            return PlainTextResponse(f"{error}\n", 503)
        stale = age_s > STALE_S
        say = f"stale: the last snapshot is {age_s:.0f} s old\n" if stale else "ok\n"
        return PlainTextResponse(say, 503 if stale else 200)


async def _say_error(request: Request, error: Exception) -> Response:
    hint = error.hint if isinstance(error, RaywatchError) else ""
    return JSONResponse({"error": str(error), "hint": hint}, 503)


async def _say_bug(request: Request, error: Exception) -> Response:
    log.error("page: `%s` failed: %s: %s", request.url.path, type(error).__name__, error)
    return JSONResponse({"error": "this answer failed, see the supervisor's log"}, 500)


class Page:
    """The live page of one supervisor.

    `snapshot` and `metrics` are called by the server's thread, at most twice a second and once a
    scrape: they must be quick and safe to call from another thread.
    """

    def __init__(
        self,
        snapshot: Callable[[], Mapping[str, Any]],
        metrics: Callable[[], bytes],
        host: str = "127.0.0.1",
        port: int = 0,
        token: str | None = None,
    ) -> None:
        """Check the address; nothing listens before `start`. Raises ConfigError."""
        self._local = _is_loopback(host)
        if not self._local and token is None:
            raise ConfigError(
                f"the page would listen on `{host}` without a token",
                hint="set a token for the page, or bind it to 127.0.0.1 and use an ssh tunnel",
            )
        if token is not None and (len(token) < TOKEN_CHARS_MIN or not token.isascii()):
            raise ConfigError(
                f"the token of the page has {len(token)} characters, "
                f"at least {TOKEN_CHARS_MIN} (ASCII) are needed",
                hint="`openssl rand -hex 24` makes a good one",
            )
        self._snapshots = _Snapshots(snapshot)
        self._metrics = metrics
        self._host = host
        self._port = port
        self._token = token
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._routes: _Routes | None = None

    def start(self) -> str:
        """Listen; returns the address. Raises ConfigError when the address cannot be had."""
        assert self._thread is None, "started twice"
        document = _document()
        listener = _listen(self._host, self._port)
        port = int(listener.getsockname()[1])
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(document, listener, port, ready)),
            name="raywatch-page",
            daemon=True,
        )
        self._thread.start()
        if not ready.wait(START_S):
            self.close()
            raise ConfigError(f"the page did not start on port {port} within {START_S:.0f} s")
        return f"http://{f'[{self._host}]' if ':' in self._host else self._host}:{port}/"

    async def _serve(
        self, document: _Document, listener: socket.socket, port: int, ready: threading.Event
    ) -> None:
        self._routes = _Routes(document, self._snapshots, self._metrics)
        inner = Starlette(
            routes=self._routes.table(),
            exception_handlers={RaywatchError: _say_error, Exception: _say_bug},
        )
        gate = _Gate(
            inner,
            token=self._token,
            cookie=f"raywatch_{port}",  # cookies do not know ports
            policy=document.policy,
            local=self._local,
        )
        config = uvicorn.Config(
            gate,
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="critical",  # addresses may carry a token: none is ever logged
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=REQUESTS_MAX,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=1,
        )
        self._server = uvicorn.Server(config)
        self._loop = asyncio.get_running_loop()
        listener.listen(REQUESTS_MAX)
        ready.set()  # the kernel queues whoever connects before uvicorn accepts
        await self._server.serve(sockets=[listener])

    def close(self) -> None:
        """End streams, stop listening; idempotent, takes at most CLOSE_S."""
        thread, server, loop, routes = self._thread, self._server, self._loop, self._routes
        if thread is None:
            return
        if server is not None:
            server.should_exit = True
        if loop is not None and routes is not None:
            with suppress(RuntimeError):  # the loop has ended already
                loop.call_soon_threadsafe(routes.closing.set)
        thread.join(CLOSE_S)
        if thread.is_alive():
            log.warning("page: its thread did not end within %.0f s", CLOSE_S)
        self._thread = None


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket. Raises ConfigError naming the port."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listener = socket.socket(family[0], socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(
            f"`{host}` is no address of this machine: {error.strerror or error}"
        ) from error
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(family[4])
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"port {port} of `{host}` cannot be had: {error.strerror or error}",
            hint="something else listens there, or the right is missing: choose another port",
        ) from error
    return listener
