"""Goal: the live page says what is so, or `unknown`, and runs nothing that records brought.

Method: the real server and headless Chromium, on made-up snapshots of the nine states an operator
meets. Every test ends with a check that the console is clean and that the content security policy
was never violated. Who may ask is the matter of test_page_gate.py.
"""

import copy
import random
import shutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, sync_playwright
from playwright.sync_api import Page as Tab

from raywatch.cluster.page import Page

FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
STATES = {  # name: what the verdict must say first
    "healthy": "healthy",
    "quiet": "healthy",
    "flood": "slow",
    "canary": "healthy",
    "stalled": "degraded",
    "degraded": "degraded",
    "empty": "starting",
    "stale": "unknown",
    "large": "degraded",
}
N, STEP_S = 120, 15


def series(seed: int, level: float, wobble: float, late: float = 0.0) -> list[float | None]:
    """N values around `level`; the last 30 are higher by `late`."""
    chance = random.Random(seed)
    return [
        round(level + chance.uniform(-wobble, wobble) + (late if i >= N - 30 else 0.0), 3)
        for i in range(N)
    ]


def incident(number: int, now_ms: int) -> dict[str, Any]:
    low, high = series(number, 10, 0.1), series(number, 20, 0.1)
    return {
        "id": f"a-{number:04x}",
        "detector": "flows",
        "key": f"edge-{number}",
        "what": "level shift, 38 % above expected",
        "since_ms": now_ms - 30 * STEP_S * 1000,
        "tail_probability": 10.0 ** -(5 + 4 * number),
        "model": "lagbank@12",
        "unit": "MB/s",
        "lineage": "flows-17, 86,420 to 88,213",
        "series": {
            "observed": series(number + 1, 15, 2, late=20),
            "expected": series(number, 15, 0.1),
            "low": low,
            "high": high,
        },
        "channels": [{"name": "bytes_out", "share": 0.61, "observed": 412, "expected": 298}],
    }


def sample(name: str) -> dict[str, Any]:
    """A snapshot of one of STATES, made now."""
    now_ms = int(time.time() * 1000) - (20_000 if name == "stale" else 0)
    empty, big = name == "empty", name == "large"
    names = [f"flows-{i}" for i in range(2_000 if big else 24)]
    words = ["unknown" if empty else "ok"] * len(names)
    if name in ("flood", "degraded"):
        words[:10] = ["slow"] * 10
    if name in ("stalled", "large"):
        words[17] = "stalled"
    if big:
        words[640:642] = ["stopped", "rewound"]
        words[100:150] = ["slow"] * 50
    lag: list[float | None] = [None if empty else 0.4 if w == "ok" else 40.0 for w in words]
    blank: list[float | None] = [None] * N
    busy = None if empty or name == "degraded" else 0.71
    detectors = [
        {
            "name": each,
            "model": "lagbank@12",
            "lag_s": None if empty else 12.0 if name == "flood" else 0.5,
            "delay_ms_p50": None if empty else 7,
            "delay_ms_p99": None if empty else 1_800 if name == "flood" else 18,
            "series": {
                "in_per_s": blank if empty else series(3, 31_000, 900),
                "out_per_s": blank if empty else series(4, 31_000, 900),
                "lag_s": blank if empty else series(5, 0.5, 0.2),
            },
        }
        for each in ("flows", "card-auth", "logins")
    ]
    return {
        "schema": "raywatch.snapshot/1",
        "at_ms": now_ms,
        "axis": {"end_ms": now_ms, "step_s": STEP_S, "n": N},
        "cluster": {"name": "fraud-eu", "version": "0.1.0", "config": "5f2c1a", "up_s": 11_520},
        "verdict": {
            "state": "healthy" if name == "stale" else STATES[name],
            "words": f"a sentence about {name}",
            "why": "The oldest record waits 0.8 s.",
            "next": {"say": "Look at the cluster:", "command": "raywatch status"},
        },
        "owners": {"up": 8, "want": 8, "lag_records": None if empty else 1_032, "lag_oldest_s": 1},
        "scorers": {
            "serving": 3, "starting": 0, "draining": 0, "min": 1, "max": 6, "busy": busy,
            "busy_target": 0.75, "p99_ms": busy and 18, "queue_records": busy and 212,
            "model": "lagbank@12",
        },
        "alerts": {"today": 412, "last_minute": 3, "rejects_today": 1, "scored_today": 438_211},
        "resolved_today": 9,
        "last_resolved": "edge-087, over at 09:58",
        "incidents": [] if name in ("quiet", "empty") else [incident(i, now_ms) for i in (1, 2, 0)],
        "detectors": detectors,
        "partitions": {
            "total": len(names), "name": names, "state": words, "lag_s": lag,
            "lag_records": [v and round(v * 100) for v in lag],
            "owner": [i % 8 for i in range(len(names))],
            "spark": {n: series(9, 1, 0.5, 30) for n, w in zip(names, words, strict=True)
                      if w not in ("ok", "unknown")},
            "ok_p50": blank if empty else series(6, 0.4, 0.1),
            "ok_max": blank if empty else series(7, 1.1, 0.2),
        },
        "pool": {
            "say": "holds at 3",
            "series": {
                "serving": [3] * N, "starting": [0] * 100 + [1] * 20, "draining": [0] * N,
                "wanted": [4] * N, "busy": blank if busy is None else series(8, 0.7, 0.1),
                "queue_records": series(10, 200, 90),
            },
        },
        "marks": [
            {"at_ms": now_ms - 1_290_000, "kind": "shrink", "label": "4 → 3", "words": "shrink"},
            *([{"at_ms": now_ms - 300_000, "until_ms": now_ms, "kind": "rollout",
                "label": "canary", "words": "rollout lagbank@13"}] if name == "canary" else []),
        ],
        "journal": [
            {"at_ms": now_ms - 1_000 * i, "kind": "", "words": f"sentence {i}"} for i in range(14)
        ],
        "flow": [
            {"name": n, "per_s": 38_988.9, "per_min": None, "words": "ok", "held": big}
            for n in ("raw", "score", "alerts")
        ],
    }  # fmt: skip


class Show:
    """What the served page shows: the snapshot, always fresh unless `frozen`."""

    def __init__(self) -> None:
        self.snapshot: dict[str, Any] = sample("healthy")
        self.frozen = False

    def put(self, snapshot: dict[str, Any], *, frozen: bool = False) -> None:
        self.snapshot, self.frozen = snapshot, frozen

    def take(self) -> dict[str, Any]:
        if self.frozen:
            return self.snapshot
        return {**self.snapshot, "at_ms": int(time.time() * 1000)}


@pytest.fixture
def show() -> Show:
    return Show()


@pytest.fixture
def served(show: Show) -> Iterator[str]:
    page = Page(show.take, lambda: b"raywatch_up 1\n")
    yield page.start()
    page.close()


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    binary = shutil.which("chromium")
    assert binary is not None, "install Debian's `chromium`"
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=binary, args=FLAGS)
        yield browser
        browser.close()


Look = Callable[..., Tab]


@pytest.fixture
def look(chromium: Browser, served: str) -> Iterator[Look]:
    """Open the page; at the end its console must be clean and its policy unviolated."""
    heard: list[str] = []
    contexts = []

    def open_(
        width: int = 1440, height: int = 900, url: str = served, *, dark: bool = False
    ) -> Tab:
        context = chromium.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        contexts.append(context)
        context.add_init_script(
            "window.violations=[];addEventListener('securitypolicyviolation',"
            "e=>violations.push(e.violatedDirective+' '+e.blockedURI))"
        )
        tab = context.new_page()
        tab.set_default_timeout(8_000)
        tab.on(
            "console", lambda m: heard.append(m.text) if m.type in ("error", "warning") else None
        )
        tab.on("pageerror", lambda e: heard.append(f"uncaught: {e}"))
        tab.goto(url)
        tab.wait_for_selector("#axis")
        return tab

    yield open_
    for context in contexts:
        for tab in context.pages:
            heard += tab.evaluate("violations")
        context.close()
    assert [text for text in heard if "ERR_CONNECTION_REFUSED" not in text] == []


def verdict(tab: Tab) -> str:
    return tab.inner_text("h1")


# --- what it shows


@pytest.mark.browser
@pytest.mark.parametrize("banded", [True, False])
def test_what_was_expected_is_a_band_or_else_a_line(banded: bool, show: Show, look: Look) -> None:
    snapshot = sample("healthy")
    for each in snapshot["incidents"]:
        if not banded:
            each["series"] |= {"low": [None] * N, "high": [None] * N}
    show.put(snapshot)
    tab = look()
    plots = tab.locator("#incidents .inc svg[role=img]")
    assert plots.count() == len(snapshot["incidents"])
    lines = tab.locator('#incidents .inc svg[role=img] path[stroke="var(--calm)"]')
    bands = tab.locator('#incidents .inc svg[role=img] path[fill="var(--band)"]')
    shown = (0, plots.count()) if banded else (plots.count(), 0)
    assert (lines.count(), bands.count()) == shown


@pytest.mark.browser
@pytest.mark.parametrize("name", STATES)
def test_every_state_is_said_first_and_fits_a_phone(name: str, show: Show, look: Look) -> None:
    show.put(sample(name), frozen=name == "stale")
    tab = look()
    assert verdict(tab).startswith(STATES[name] + ":")
    assert tab.inner_text("main, #top").startswith(STATES[name])  # nothing comes before it
    text = tab.inner_text("body")
    for wrong in ("undefined", "NaN", "null", "[object", "Infinity"):
        assert wrong not in text
    tab.set_viewport_size({"width": 390, "height": 844})
    tab.wait_for_timeout(50)
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    assert verdict(tab).startswith(STATES[name] + ":")


@pytest.mark.browser
def test_a_snapshot_that_no_longer_changes_turns_unknown(show: Show, look: Look) -> None:
    snapshot = sample("healthy")
    snapshot["at_ms"] -= 8_500  # 1.5 s to go, though the server goes on sending it
    show.put(snapshot, frozen=True)
    tab = look()
    assert verdict(tab).startswith("healthy")
    tab.wait_for_selector("body.s-unknown")
    assert "it was healthy at" in verdict(tab)
    assert "values as of" in tab.inner_text("#axis")
    assert tab.locator("#lines .gap").count() == 1


@pytest.mark.browser
def test_a_page_that_lost_its_server_turns_unknown(chromium: Browser, show: Show) -> None:
    show.put(sample("healthy"))
    server = Page(show.take, lambda: b"")
    context = chromium.new_context()
    tab = context.new_page()
    tab.clock.install()
    tab.goto(server.start())
    tab.wait_for_selector("body.s-healthy")
    server.close()
    tab.clock.run_for(12_000)
    assert verdict(tab).startswith("unknown: no data for")
    context.close()


@pytest.mark.browser
def test_nothing_that_records_say_is_ever_run(show: Show, look: Look) -> None:
    evil = "\"'><img src=x onerror=pwned=1><script>pwned=1</script>"

    def poison(value: Any, name: str = "") -> Any:
        if isinstance(value, dict):
            return {k if name != "spark" else k + evil: poison(v, k) for k, v in value.items()}
        if isinstance(value, list):
            return [poison(v, name) for v in value]
        return value + evil if isinstance(value, str) else value

    snapshot = sample("flood")
    snapshot["incidents"][0]["replay"] = snapshot["incidents"][0]["explain"] = "raywatch x"
    snapshot["incidents"][1]["explain_url"] = "javascript:pwned=1"
    state = snapshot["partitions"]["state"]
    snapshot = poison(snapshot)
    snapshot["incidents"][1]["explain_url"] = "javascript:pwned=1"
    show.put(snapshot)
    assert state[0] == "slow"
    tab = look()
    assert tab.evaluate("typeof pwned") == "undefined"
    assert tab.locator("img, iframe, [onerror]").count() == 0
    assert tab.locator("script").count() == 1
    assert tab.locator("a[href^=javascript]").count() == 0
    assert evil in tab.inner_text("#incidents")  # said, not hidden


@pytest.mark.browser
def test_a_key_of_a_thousand_characters_fits_a_phone(show: Show, look: Look) -> None:
    snapshot = sample("healthy")
    for each in snapshot["incidents"]:
        each["key"] = each["what"] = "k" * 1_000
    snapshot["incidents_open"] = 1_200
    snapshot["cluster"]["name"] = snapshot["detectors"][0]["name"] = "c" * 300
    snapshot["verdict"]["words"] = "w" * 300
    show.put(snapshot)
    for width in (390, 1_440):
        tab = look(width)
        assert tab.evaluate("document.documentElement.scrollWidth") == width
        assert "1,197 less unlikely ones are not drawn" in tab.inner_text("#incidents")


@pytest.mark.browser
def test_health_has_no_colour(show: Show, look: Look) -> None:
    show.put(sample("quiet"))
    tab = look()
    loud = tab.evaluate(
        """() => [...document.querySelectorAll('body *')].filter(e =>
          [...e.childNodes].some(n => n.nodeType === 3 && n.data.trim())).filter(e => {
            const [r, g, b] = getComputedStyle(e).color.match(/[\\d.]+/g).map(Number)
            return Math.max(r, g, b) - Math.min(r, g, b) > 40 && e.closest('.page') }
          ).map(e => e.textContent)"""
    )
    assert loud == []  # the inks are greys with a spread below 30; each signal colour is above 80
    assert tab.locator("#verdict").evaluate("e => getComputedStyle(e).backgroundColor") == (
        "rgb(255, 255, 255)"
    )


@pytest.mark.browser
def test_what_a_snapshot_does_not_carry_is_not_shown(show: Show, look: Look) -> None:
    snapshot = sample("healthy")
    del snapshot["incidents"][2]["series"], snapshot["incidents"][2]["channels"]
    show.put(snapshot)
    tab = look()
    text = tab.inner_text("body")
    for absent in ("explain", "replay", "budget", "similar", "unacknowledged"):
        assert absent not in text
    strongest = tab.locator(".inc").first
    assert strongest.locator("svg[role=img]").count() == 1
    tab.click('[data-tog="a-0000"]')  # unfold the one without values
    bare = tab.locator("#i-a-0000")
    assert bare.locator("table").count() == bare.locator(".p").count() == 0
    assert "1 in 100 thousand" in bare.inner_text()
    snapshot["incidents"][1]["replay"] = "raywatch replay flows-17 --from 10:50"
    tab.wait_for_selector("text=raywatch replay flows-17")


@pytest.mark.browser
def test_no_field_can_break_the_page(show: Show, look: Look) -> None:
    show.put(sample("canary"))
    tab = look()
    broken = tab.evaluate(
        """whole => {
          const broken = [], paths = []
          const walk = (v, path) => {
            if (path.length) paths.push(path)
            if (path.length > 3 || v === null || typeof v !== 'object') return
            for (const k of Object.keys(v).slice(0, 12)) walk(v[k], [...path, k])
          }
          walk(whole, [])
          const wrong = [null, undefined, 'x', -1, [null]]
          for (const path of paths) for (const bad of wrong) {
            const s = structuredClone(whole)
            let o = s
            for (const k of path.slice(0, -1)) o = o[k]
            o[path.at(-1)] = bad
            try { accept(s) } catch (e) { broken.push(path.join('.') + ' ' + bad + ': ' + e) }
          }
          for (const s of wrong) try { accept(s) } catch (e) { broken.push(s + ': ' + e) }
          return [paths.length, broken]
        }""",
        {**sample("canary"), "partitions": {**sample("canary")["partitions"], "spark": {}}},
    )
    assert broken[0] > 100  # fields tried
    assert broken[1] == []


# --- how it is used


@pytest.mark.browser
def test_updates_keep_focus_and_scroll(show: Show, look: Look) -> None:
    snapshot = sample("large")
    show.put(snapshot)
    tab = look(1440, 500)
    tab.keyboard.press("j")
    tab.keyboard.press("j")
    assert tab.evaluate("document.activeElement.id") == "i-a-0001"
    tab.evaluate("scrollTo(0, 400)")
    before = copy.deepcopy(snapshot)
    before["journal"] = [{"at_ms": 1, "kind": "fault", "words": "something new"}]
    show.put(before)
    tab.wait_for_selector("text=something new")
    assert tab.evaluate("scrollY") == 400
    assert tab.evaluate("document.activeElement.id") == "i-a-0001"
    after = copy.deepcopy(before)
    after["incidents"].append(incident(3, after["at_ms"]))  # the strongest comes to stand first
    show.put(after)
    tab.wait_for_selector("#i-a-0003")
    assert tab.evaluate("document.activeElement.id") == "i-a-0001"
    assert tab.locator(".inc").first.get_attribute("id") == "i-a-0003"
    swapped = copy.deepcopy(after)
    swapped["incidents"][0]["tail_probability"] = 1e-30  # the one in focus moves to the front
    show.put(swapped)
    tab.wait_for_selector("#i-a-0001:first-of-type")
    assert tab.evaluate("document.activeElement.id") == "i-a-0001"


@pytest.mark.browser
def test_keys_walk_incidents_sections_and_time(show: Show, look: Look) -> None:
    show.put(sample("healthy"))
    tab = look()

    def focused(key: str) -> str:
        tab.keyboard.press(key)
        return tab.evaluate("document.activeElement.id")

    assert [focused(k) for k in "jjjk"] == ["i-a-0002", "i-a-0001", "i-a-0000", "i-a-0001"]
    assert [focused(k) for k in "345"] == ["detectors", "partitions", "pool"]
    tab.focus("#axis .p")
    now = tab.inner_text(".tk.now")
    tab.keyboard.press("Shift+ArrowLeft")
    assert "values at" in tab.inner_text("#axis")
    assert tab.inner_text(".tk.now") != now
    tab.keyboard.press("Escape")
    assert "values now" in tab.inner_text("#axis")


@pytest.mark.browser
def test_the_wall_finds_the_next_partition_in_trouble(show: Show, look: Look) -> None:
    show.put(sample("large"))
    tab = look(1440, 900, dark=True)
    tab.focus("#bars")
    tab.keyboard.press("ArrowDown")
    assert tab.inner_text("#pick").startswith("flows-17 stalled, lag 40 s")
    tab.wait_for_timeout(1_200)  # an update does not take it away
    assert tab.inner_text("#pick").startswith("flows-17 stalled")


@pytest.mark.browser
def test_a_full_stream_falls_back_to_polling(chromium: Browser, show: Show, served: str) -> None:
    show.put(sample("healthy"))
    context = chromium.new_context()
    tab = context.new_page()
    tab.route("**/snapshot/stream", lambda route: route.fulfill(status=503))
    with tab.expect_response("**/snapshot.json") as first:
        tab.goto(served)
    assert first.value.ok
    tab.wait_for_selector("body.s-healthy")
    context.close()
