"""The live page: what is asked, and what is answered.

One HTML page, its snapshot (once, or as a stream of one whole snapshot a second), metrics and
health, served by uvicorn in a thread of the supervisor's process. It only reads: there is no
route that changes anything, and no answer that waits for a cluster. A snapshot is encoded once
for all readers, at most every BEAT_S.

Who may ask is the matter of page_gate.py, what is let in before that of page_listen.py.
"""

import asyncio
import logging
import re
import socket
import ssl
import threading
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import uvicorn
from sse_starlette import EventSourceResponse
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from raywatch.cluster.page_gate import Gate, policy, source_hash
from raywatch.cluster.page_listen import REQUEST_BYTES_MAX, Hurried, listen, renew, tls
from raywatch.cluster.page_spec import PageSpec
from raywatch.models.errors import ConfigError, RaywatchError, Unreachable

log = logging.getLogger(__name__)

BEAT_S = 1.0  # one snapshot a second: as often as it changes
STREAMS_MAX = 32  # readers of the stream; whoever comes later polls
STREAM_S = 3_600.0  # a stream ends after this long; its reader asks again, and is checked again
REQUESTS_MAX = 128  # connections at once, streams included; uvicorn answers 503 beyond
SEND_S = 10.0  # a reader that takes nothing for this long is let go
STALE_S = 10.0  # an older snapshot means that the supervisor stands still
START_S = 10.0  # longest the server may take to listen
CLOSE_S = 3.0  # longest `close` waits for its thread
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
    allowed = policy(
        f"script-src {source_hash(script)}",
        f"style-src {source_hash(style.group(1))}",
        "img-src data:",  # the empty icon
        "connect-src 'self'",
        "form-action 'none'",
    )
    return _Document(html.encode(), allowed)


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
        if request.method == "HEAD":
            return Response(media_type="text/event-stream")
        return EventSourceResponse(self._beats(), ping=15, send_timeout=SEND_S)

    async def _beats(self) -> AsyncIterator[dict[str, str]]:
        self._streams += 1
        try:
            until = time.monotonic() + STREAM_S
            while not self.closing.is_set() and time.monotonic() < until:
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
        spec: PageSpec | None = None,
    ) -> None:
        """Nothing listens before `start`."""
        self._spec = spec or PageSpec()
        self._snapshots = _Snapshots(snapshot)
        self._metrics = metrics
        self._server: uvicorn.Server | None = None
        self._thread: threading.Thread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._routes: _Routes | None = None

    def start(self) -> str:
        """Listen; returns the address. Raises ConfigError when the address cannot be had."""
        assert self._thread is None, "started twice"
        document, context = _document(), tls(self._spec)
        listener = listen(self._spec.host, self._spec.port)
        port = int(listener.getsockname()[1])
        ready = threading.Event()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(document, listener, context, ready)),
            name="raywatch-page",
            daemon=True,
        )
        self._thread.start()
        if not ready.wait(START_S):
            self.close()
            raise ConfigError(f"the page did not start on port {port} within {START_S:.0f} s")
        host, scheme = self._spec.host, "https" if self._spec.secure else "http"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/"

    async def _serve(
        self,
        document: _Document,
        listener: socket.socket,
        context: ssl.SSLContext | None,
        ready: threading.Event,
    ) -> None:
        self._routes = _Routes(document, self._snapshots, self._metrics)
        inner = Starlette(
            routes=self._routes.table(),
            exception_handlers={RaywatchError: _say_error, Exception: _say_bug},
        )
        port = int(listener.getsockname()[1])
        config = uvicorn.Config(
            Gate(inner, self._spec, port=port, page_policy=document.policy),
            http=Hurried,
            lifespan="off",
            ws="none",
            log_config=None,
            log_level="critical",  # addresses may carry a token: none is ever logged
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=REQUESTS_MAX,
            h11_max_incomplete_event_size=REQUEST_BYTES_MAX,
            timeout_keep_alive=5,
            timeout_graceful_shutdown=1,
        )
        config.load()
        config.ssl = context
        self._server = uvicorn.Server(config)
        self._loop = asyncio.get_running_loop()
        listener.listen(REQUESTS_MAX)
        ready.set()  # the kernel queues whoever connects before uvicorn accepts
        renewing = None if context is None else asyncio.create_task(renew(context, self._spec))
        try:
            await self._server.serve(sockets=[listener])
        finally:
            if renewing is not None:
                renewing.cancel()

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
