"""raywatch status: the verdict of the running service, from its page or through Ray."""

import http.client
import json as json_module
import ssl
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, cast
from urllib.parse import urlsplit

import typer

from raywatch.cluster.output import JsonFlag, of_labels, result
from raywatch.models.errors import (
    EXIT_NO,
    EXIT_OK,
    ConfigError,
    Refused,
    Unreachable,
)

TIMEOUT_S = 5.0
BYTES_MAX = 64 << 20  # 2,000 partitions are 114 KB
SCHEMA = "raywatch.snapshot/1"

app = typer.Typer(rich_markup_mode=None, add_completion=False)


@app.command()
def status(
    config: Annotated[str, typer.Argument(metavar="[CONFIG]", help="The config file.")] = "",
    url: Annotated[str, typer.Option(help="The page instead, e.g. http://127.0.0.1:8787.")] = "",
    address: Annotated[
        str, typer.Option(help="Ask through Ray: `auto` on any machine of the cluster, host:port.")
    ] = "",
    json: JsonFlag = False,
) -> None:
    """Say how the running service does: 0 healthy, 1 slow or degraded, 3 not reachable.

    Asks the page that the config describes, which is on this machine under `raywatch run` and on
    the head of a cluster. `--address` needs no page, and works on every machine of the cluster.
    """
    if (url and (config or address)) or not (url or config or address):
        raise ConfigError("name the config or `--url`, one of them", hint="raywatch status --help")
    if address:
        found = ask(address)
    elif config:
        found = fetch(*_page_of(config))
    else:
        found = fetch(url)
    result(found, json, lines)
    state = found.get("verdict", {}).get("state")
    raise typer.Exit(EXIT_OK if state == "healthy" else EXIT_NO)


def _page_of(config: str) -> tuple[str, str, str]:
    """Address, token and certificate of the page that a config describes."""
    from raywatch.cluster.config import load

    page = load(config).page
    if page.port == 0:
        raise ConfigError(
            "`page.port` is 0, so nobody knows where the page is",
            hint="`--url` with the address that was said at the start, or `--address auto`",
        )
    token = page.token.reveal() if page.token is not None else ""
    # 0.0.0.0 is where to listen; the service itself is on this machine.
    host = "127.0.0.1" if page.host in ("0.0.0.0", "::") else page.host
    scheme = "https" if page.certificate else "http"
    where = f"[{host}]" if ":" in host else host
    return f"{scheme}://{where}:{page.port}", token, page.certificate


def ask(address: str) -> dict[str, Any]:
    """The snapshot of the service on a Ray cluster. Raises Unreachable."""
    from raywatch.cluster import runtime

    try:
        runtime.connect(address)
        return runtime.call(runtime.supervisor(), "snapshot", timeout_s=TIMEOUT_S)
    finally:
        runtime.leave()


def fetch(
    url: str, token: str = "", certificate: str = "", timeout_s: float = TIMEOUT_S
) -> dict[str, Any]:
    """The snapshot of a running service. Raises Unreachable, Refused, ConfigError.

    With the file of a `certificate`, it and no other is believed, whatever name it is for.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        # It is not shown: what stands there instead may be a token.
        raise ConfigError("`--url` is no address of a page", hint="http://127.0.0.1:8787")
    if "@" in parts.netloc:
        raise ConfigError("`--url` holds credentials", hint="`raywatch status CONFIG` has a token")
    address = f"{parts.scheme}://{parts.netloc}{parts.path.rstrip('/')}/snapshot.json"
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(address, headers=headers)
    # The page is ours and near: what proxies the environment names is for the world outside.
    handlers: list[urllib.request.BaseHandler] = [urllib.request.ProxyHandler({}), _Stays()]
    if certificate:
        handlers.append(urllib.request.HTTPSHandler(context=_only(certificate)))
    opener = urllib.request.build_opener(*handlers)
    try:
        with opener.open(request, timeout=timeout_s) as answer:
            blob = answer.read(BYTES_MAX)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code in (401, 403):
            raise Refused(
                f"`{address}` wants a token", hint="`page.token` in the config names it"
            ) from error
        raise Unreachable(f"`{address}` answered {error.code}") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or error or type(error).__name__
        raise Unreachable(
            f"`{address}` does not answer: {str(reason).lower()}",
            hint="is the service running, and is `page` of the config its own? On a machine of a "
            "Ray cluster that is not the head: `--address auto`",
        ) from error
    try:
        found = json_module.loads(blob)
    except ValueError as error:
        raise Unreachable(f"`{address}` answered no JSON") from error
    schema: Any = cast("dict[str, Any]", found).get("schema") if isinstance(found, dict) else None
    if schema != SCHEMA:
        raise Unreachable(
            f"`{address}` is not the page of a raywatch this one understands: `{schema}`",
            hint=f"expected `{SCHEMA}`; compare `raywatch version` there and here",
        )
    return cast("dict[str, Any]", found)


class _Stays(urllib.request.HTTPRedirectHandler):
    """A redirect would take the token elsewhere; the page sends none for its snapshot."""

    def redirect_request(
        self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        """Not followed."""


def _only(certificate: str) -> ssl.SSLContext:
    """Believes the page's own certificate. Raises ConfigError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # it is asked at its address, by who has its file
    context.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN  # itself, not its maker
    end = "-----END CERTIFICATE-----"
    try:
        first = Path(certificate).read_text("ascii").partition(end)  # without its makers'
        context.load_verify_locations(cadata="".join(first[:2]))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"cannot read `page.certificate`, `{certificate}`: "
            f"{getattr(error, 'strerror', None) or error}",
            hint="it is read where `status` is typed; or `--address auto`, which asks Ray",
        ) from error
    return context


def lines(found: Mapping[str, Any]) -> list[str]:
    """A snapshot in a few lines; what is not known is a dash, never zero."""

    def part(name: str) -> dict[str, Any]:
        value = found.get(name)
        return cast("dict[str, Any]", value) if isinstance(value, dict) else {}

    def shown(name: str, key: str) -> str:
        value = part(name).get(key)
        if isinstance(value, float):
            return f"{value:.2g}"
        return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)

    verdict, step = part("verdict"), part("verdict").get("next") or {}
    said = [f"{verdict.get('state', found.get('state', '-'))}: {verdict.get('words', '-')}"]
    if verdict.get("why"):
        said.append(f"  {verdict['why']}")
    if step.get("command"):
        said.append(f"  {step.get('say', 'Next:')} {step['command']}")
    mode = part("cluster").get("exactly_once")
    once = "exactly once" if mode else "at least once (a repeated one has the same id)"
    once = "-" if mode is None else once
    said += [
        f"owners   {shown('owners', 'up')} of {shown('owners', 'want')} up, lag "
        f"{shown('owners', 'lag_records')} records, oldest {shown('owners', 'lag_oldest_s')} s",
        f"scorers  {shown('scorers', 'serving')} serving, {shown('scorers', 'starting')} starting "
        f"({shown('scorers', 'min')} to {shown('scorers', 'max')}), "
        f"busy {shown('scorers', 'busy')}, "
        f"p99 {shown('scorers', 'p99_ms')} ms, {shown('scorers', 'model')}",
        f"alerts   {shown('alerts', 'today')} today, {shown('alerts', 'last_minute')} in the last "
        f"minute, {shown('alerts', 'unacknowledged')} unacknowledged; {once}",
        f"records  {shown('alerts', 'scored_today')} scored today, "
        f"{shown('alerts', 'rejects_today')} rejected",
    ]
    for each in found.get("detectors") or []:
        if each.get("nominal"):
            said.append(f"  {each.get('name')}: {_calibrated(each)}")
        said += [f"  {each.get('name')}: {words}" for words in of_labels(each.get("labels") or {})]
    for each in (found.get("incidents") or [])[:10]:
        said.append(f"  {each.get('detector')} {each.get('key')}: {each.get('what')}")
    return said


def _calibrated(detector: Mapping[str, Any]) -> str:
    """How a detector keeps its promise; a dash where too few records came to tell."""
    said = [
        f"p <= {each['p']:g}: {'-' if each['ratio'] is None else format(each['ratio'], '.2f')}"
        for each in detector["nominal"]
    ]
    words = f"{', '.join(said)} of nominal, {detector['judged_records']:,} records"
    held = detector.get("held")
    return words if held is None else f"{words}; held back by per_day: {held:,}"
