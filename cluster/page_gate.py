"""Who may ask the live page.

On a loopback address without a token: everybody on this machine who names it as such. Otherwise
only who knows the token: as `Authorization: Bearer TOKEN`, through the form of `/login`, or once as
`/?token=TOKEN`, which is answered with a redirect that takes it out of the address. Form and link
give a cookie that scripts cannot read and other sites cannot send; it holds when it ends and a MAC
of that under the token, never the token. `/healthz` says one word and is open to all.

GET and HEAD only, but for the form. Nothing a request says is logged, only how many were refused.
"""

import base64
import hashlib
import hmac
import html
import logging
import re
import time
from collections.abc import Callable, Mapping
from functools import cache
from urllib.parse import parse_qsl, urlencode

from starlette.datastructures import MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raywatch.cluster.page_spec import PageSpec

log = logging.getLogger(__name__)

SESSION_S = 43_200  # a cookie is good for this long: a shift
HSTS_S = 31_536_000  # browsers keep to TLS for this long
FORM_BYTES_MAX = 4_096  # of what the form may send
SAY_S = 60.0  # refused tokens are said at most this often
CSS = "body{font:16px system-ui;max-width:26rem;margin:20vh auto;padding:0 1rem}input,button{font:\
inherit;padding:.4rem;margin:.4rem 0;width:100%;box-sizing:border-box}"
FORM = """<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1"><title>raywatch</title>
<link rel="icon" href="data:,"><style>{css}</style>
<h1>raywatch</h1><form method="post" action="{action}">
<label>Token of this page<input type="password" name="token" required autofocus
autocomplete="current-password" maxlength="1024"></label><button>Log in</button></form>
<p role="alert">{words}</p></html>
"""
# A cookie that other sites cannot send is not sent on a way that began at another site, be it a
# link in a chat: this page begins a way of its own.
ENTER = """<!doctype html><html lang="en"><meta charset="utf-8"><title>raywatch</title>
<link rel="icon" href="data:,"><meta http-equiv="refresh" content="0;url={where}">
<p><a href="{where}">raywatch</a></p></html>
"""


def source_hash(inline: str) -> str:
    """An inline script or style as a content security policy names it."""
    digest = hashlib.sha256(inline.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def policy(*sources: str) -> str:
    """A content security policy that lets nothing in but these sources."""
    closed = ("default-src 'none'", *sources, "base-uri 'none'", "frame-ancestors 'none'")
    return "; ".join(closed)


@cache
def _small_policy() -> str:
    style = f"style-src {source_hash(CSS)}"
    return policy(style, "img-src data:", "form-action 'self'")


def same(given: str, wanted: str) -> bool:
    """Compare in a time that does not say how much of it fits."""
    return hmac.compare_digest(given.encode(), wanted.encode())


class Passes:
    """Cookies: the time they end, and a MAC of it under the token."""

    def __init__(self, token: str, clock: Callable[[], float] = time.time) -> None:
        self._key = hashlib.sha256(b"raywatch page cookie\0" + token.encode()).digest()
        self._clock = clock

    def issue(self) -> str:
        """One that is good for SESSION_S."""
        return self._signed(int(self._clock()) + SESSION_S)

    def good(self, given: str) -> bool:
        """Whether it was issued under this token and has not ended."""
        ends = re.fullmatch(r"(\d{1,12})\.[0-9a-f]{64}", given)
        if ends is None or not same(given, self._signed(int(ends.group(1)))):
            return False
        return self._clock() < int(ends.group(1))

    def _signed(self, ends: int) -> str:
        return f"{ends}.{hmac.new(self._key, str(ends).encode(), hashlib.sha256).hexdigest()}"


class Gate:
    """ASGI middleware: refuses who may not ask and puts the headers on every answer."""

    def __init__(self, app: ASGIApp, spec: PageSpec, *, port: int, page_policy: str) -> None:
        self._app = app
        self._spec = spec
        self._passes = None if spec.token is None else Passes(spec.token)
        # Cookies do not know ports; one with this prefix is refused unless it came over TLS.
        self._cookie = f"{'__Host-' if spec.secure else ''}raywatch_{port}"
        self._refused = 0
        self._said = -SAY_S
        self._headers = {
            "Content-Security-Policy": page_policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
            "Cache-Control": "no-store",
        }
        if spec.secure:
            self._headers["Strict-Transport-Security"] = f"max-age={HSTS_S}"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, or let the page answer."""
        if scope["type"] != "http":
            return  # no lifespan, no web sockets

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in self._headers.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope, receive)
        answer = await self._answer(request) or self._app
        await answer(scope, receive, send_with_headers)

    async def _answer(self, request: Request) -> Response | None:
        """What is said here; None: the page may answer."""
        if not self._spec.answers_to(request.headers.get("host", "")):
            return PlainTextResponse("this page does not answer to that name\n", 421)
        path, passes = request.url.path, self._passes
        form = passes is not None and path == "/login"
        if request.method not in (("GET", "HEAD", "POST") if form else ("GET", "HEAD")):
            return PlainTextResponse("this page only reads\n", 405, {"Allow": "GET, HEAD"})
        if passes is None or path == "/healthz":
            return None
        if form:
            return await self._login(request, passes)
        if path == "/enter":
            return self._enter(request)
        if self._may(request, passes):
            return None
        if path == "/" and self._is_token(request.query_params.get("token", "")):
            return self._welcome(request, passes)
        return self._unknown(request)

    def _may(self, request: Request, passes: Passes) -> bool:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and self._is_token(given.strip()):
            return True
        return passes.good(request.cookies.get(self._cookie, ""))

    def _is_token(self, given: str) -> bool:
        assert self._spec.token is not None
        if not given or same(given, self._spec.token):
            return bool(given)
        self._refused += 1
        now = time.monotonic()
        if now - self._said >= SAY_S:
            log.warning("page: %d requests with a wrong token were refused", self._refused)
            self._refused, self._said = 0, now
        return False

    async def _login(self, request: Request, passes: Passes) -> Response:
        if request.method != "POST":
            return _form("login", "", 200)
        if request.headers.get("sec-fetch-site", "none") not in ("same-origin", "none"):
            return PlainTextResponse("this form is for this page\n", 403)
        body = b""
        try:
            async for part in request.stream():
                body += part
                if len(body) > FORM_BYTES_MAX:
                    return PlainTextResponse("too much\n", 413, {"Connection": "close"})
        except ClientDisconnect:
            return Response(status_code=400)
        fields = dict(parse_qsl(body.decode("utf-8", "replace")))
        if not self._is_token(fields.get("token", "")):
            return _form("login", "That is not the token of this page.", 401)
        return self._marked(RedirectResponse(".", 303), request, passes)

    def _welcome(self, request: Request, passes: Passes) -> Response:
        """A cookie, and a way to the same address without the token in it."""
        rest = [(k, v) for k, v in parse_qsl(request.url.query) if k != "token"]
        # Relative: a proxy may add a prefix.
        where = f"enter?{urlencode(rest)}" if rest else "enter"
        return self._marked(RedirectResponse(where, 303), request, passes)

    def _enter(self, request: Request) -> Response:
        query = urlencode(parse_qsl(request.url.query))
        where = html.escape(f".?{query}" if query else ".", quote=True)
        headers = {"Content-Security-Policy": _small_policy()}
        return Response(ENTER.format(where=where), 200, headers, "text/html")

    def _marked(self, answer: Response, request: Request, passes: Passes) -> Response:
        # A proxy in front that speaks TLS says so; who says it wrongly spoils his own cookie.
        https = request.headers.get("x-forwarded-proto", request.url.scheme) == "https"
        answer.set_cookie(
            self._cookie,
            passes.issue(),
            max_age=SESSION_S,
            httponly=True,
            samesite="strict",
            secure=self._spec.secure or https,
        )
        return answer

    def _unknown(self, request: Request) -> Response:
        """The form for who reads pages, a line for programs."""
        if request.url.path == "/" and "text/html" in request.headers.get("accept", ""):
            return _form("login", "", 401)
        return PlainTextResponse(
            "a token is needed: `Authorization: Bearer TOKEN`, or log in at /login\n",
            401,
            {"WWW-Authenticate": 'Bearer realm="raywatch"'},
        )


def _form(action: str, words: str, status: int) -> Response:
    headers: Mapping[str, str] = {"Content-Security-Policy": _small_policy()}
    if status == 401:
        headers = {**headers, "WWW-Authenticate": 'Bearer realm="raywatch"'}
    body = FORM.format(css=CSS, action=action, words=words)
    return Response(body, status, headers, "text/html")
