"""Goal: a line that comes by itself is judged as the same line in a field of JSON is.

Method: lines that hypothesis makes are read both ways, cut anywhere, and all columns compared; then
what JSON cannot hold, what is no line, and lines without a key. A stream with planted trouble goes
through lanes on the embedded log, killed in mid-stream, and as a `.log` file through the command:
alerts must be those of the same lines in JSON, byte for byte.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import confluent_kafka as ck
import numpy as np
import pytest
from classes import Lanes, without_lineage
from command import Said, called, written
from hypothesis import given, settings
from hypothesis import strategies as st
from lanes import Killed, Mortal, World, lag, live, make, read_all, running, until
from lanes import alerts as alerts_of
from test_logs import MODEL, NEW, ROWS, RUSH

from raywatch.actors.backtest import backtest
from raywatch.actors.bare_lines import decode_lines, without_ends
from raywatch.actors.clock import VirtualClock
from raywatch.actors.decode import decode
from raywatch.actors.embedded import EmbeddedBroker, EmbeddedLog
from raywatch.actors.files import read_file
from raywatch.actors.kafka import KafkaLog
from raywatch.actors.keys import warm_decode
from raywatch.actors.line_times import LINE_MS
from raywatch.actors.ports import Fetched, Out, Partition
from raywatch.actors.pseudonyms import HmacKey
from raywatch.actors.records import LINE, LINE_BYTES_MAX, Records, RecordSpec
from raywatch.actors.scan import hash_of
from raywatch.actors.stages import flow_of
from raywatch.models.errors import ConfigError
from raywatch.models.log_template import ids_of
from raywatch.models.settings import DecideSettings, MissingSettings

SPEC = RecordSpec(values=(), message=LINE, format="text")
IN_JSON = replace(SPEC, format="json")
NAMES = (b"in/0", b"in/1")
LANES = Lanes("logs", {
    "record": SPEC, "missing": MissingSettings(enabled=False),
    "decide": DecideSettings(probability=1e-4, warmup=300),
})  # fmt: skip


def fetched(
    values: Sequence[bytes | None], keys: Sequence[bytes | None] | None = None, begin: int = 0
) -> Fetched:
    count = len(values)
    rows = np.arange(begin, begin + count)
    keys = [b"k"] * count if keys is None else keys
    return Fetched((rows % 2).astype(np.int32), rows, 1_000 * rows, list(values), list(keys))


def read(values: Sequence[bytes | None], *more: Any, spec: RecordSpec = SPEC) -> Records:
    return decode_lines(fetched(values, *more), spec, NAMES)


def told(records: Records) -> list[tuple[Any, ...]]:
    """All that is known of each record."""
    at = range(len(records))
    size, begin = records.word_size[:, 0], records.word_begin[:, 0]
    line = [records.text[begin[i] : begin[i] + size[i]].tobytes() for i in at]
    columns = (records.partition, records.offset, records.time_ms, records.words[:, 0])
    return [(*(int(c[i]) for c in columns), records.key(i), line[i]) for i in at]


def kinds(records: Records) -> list[Any]:
    """Types and shapes of columns, but for how many records there are."""
    columns = [getattr(records, name) for name in Records.__slots__ if name != "rejects"]
    return [(column.dtype, column.shape[1:]) for column in columns]


LINES = st.text(st.characters(codec="utf-8"), min_size=1, max_size=40).filter(
    lambda line: line.encode().strip() != b"" and line[-1] not in "\r\n"
)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(LINES, st.binary(min_size=1, max_size=9)), max_size=9),
    st.sampled_from([b"", b"\n", b"\r\n"]),
    st.integers(0, 9),
)
def test_a_line_by_itself_is_the_line_in_json(
    rows: list[tuple[str, bytes]], ending: bytes, cut: int
) -> None:
    values = [line.encode() + ending for line, _ in rows]
    in_json = [json.dumps({LINE: line}).encode() for line, _ in rows]
    keys: list[bytes | None] = [key for _, key in rows]
    whole = read(values, keys)
    other = decode(fetched(in_json, keys), IN_JSON)
    assert whole.rejects == other.rejects == []
    assert told(whole) == told(other)
    assert kinds(whole) == kinds(other)
    halves = read(values[:cut], keys[:cut]), read(values[cut:], keys[cut:], min(cut, len(rows)))
    assert [each for half in halves for each in told(half)] == told(whole)


def test_bytes_that_are_no_text_are_taken_as_they_are() -> None:
    values = [b"caf\xe9 closed", b"\xff\xfe\x00\x01", b"a\nb\n\n", b"\x00", b" a \r\n", b"a\rb"]
    records = read(values)
    lines = [b"caf\xe9 closed", b"\xff\xfe\x00\x01", b"a\nb", b"\x00", b" a ", b"a\rb"]
    assert [line for *_, line in told(records)] == lines
    assert records.words[:, 0].tolist() == [hash_of(line) for line in lines]
    assert records.rejects == []


def test_of_a_long_line_the_beginning_counts() -> None:
    records = read([b"x" * (LINE_BYTES_MAX + extra) for extra in (0, 1, 10_000)])
    assert records.word_size[:, 0].tolist() == [LINE_BYTES_MAX] * 3
    assert records.words[0, 0] != records.words[1, 0]  # as in JSON: the hash is of all of it


BAD: dict[str, tuple[bytes | None, bytes, str, str]] = {
    "a tombstone": (None, b"k", "empty value", "a tombstone"),
    "no bytes": (b"", b"k", "empty value", "no bytes"),
    "a line end": (b"\r\n", b"k", "empty value", "a blank line"),
    "blanks": (b" \t\v\f \n", b"k", "empty value", "a blank line"),
    "too large": (b"x" * 65, b"k", "too large", "`65` bytes, at most `64`"),
    "a long key": (b"up", b"secret-key", "bad key", "10 bytes, not 1 to 8"),
}


@pytest.mark.parametrize("hidden", [(), (LINE,)], ids=["shown", "withheld"])
@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_line_is_rejected_and_costs_no_other(kind: str, hidden: tuple[str, ...]) -> None:
    value, key, reason, detail = BAD[kind]
    spec = replace(SPEC, bytes_max=64, key_bytes_max=8, pseudonymise=hidden)
    records = read([b"up", value, b"down"], [b"k", key, b"k"], spec=spec)
    assert [line for *_, line in told(records)] == [b"up", b"down"]
    (reject,) = records.rejects
    assert (reject.partition, reject.offset, reject.reason) == (1, 1, reason)
    assert detail in reject.detail
    assert reject.value == (None if hidden else value)
    assert reject.withheld == (len(value or b"") if hidden else -1)
    assert not hidden or "secret" not in reject.detail


def test_a_line_without_a_time_is_rejected() -> None:
    batch = replace(fetched([b"a", b"b"]), time_ms=np.array([-1, 5]))
    records = decode_lines(batch, SPEC, NAMES)
    assert records.offset.tolist() == [1]
    assert [(r.reason, r.detail) for r in records.rejects] == [
        ("bad time", "`-1` ms is not between 1970 and 2200")
    ]


def test_a_line_without_a_key_goes_by_its_partition() -> None:
    records = read([b"a"] * 6, [None, None, b"", b"", b"web", b"x" * 2_000])
    assert [key for *_, key, _ in told(records)] == [b"in/0", b"in/1", b"in/0", b"in/1", b"web"]
    assert [reject.reason for reject in records.rejects] == ["bad key"]
    few = read([b"a", b"b"], [None, b"k"], spec=replace(SPEC, key_bytes_max=3))
    assert [key for *_, key, _ in told(few)] == [b"k"]
    assert "`3` bytes" in few.rejects[0].detail
    assert read([]).words.shape == (0, 1)


def test_incidents_of_two_partitions_without_keys_are_two() -> None:
    places = [Partition("in", number) for number in range(2)]
    flow = flow_of(LANES.detector(), places, MODEL)
    flow.speak = dict.fromkeys(places, 0)
    lines = [b"disk failed" if n == 900 else b"request %d took %d ms" % (n, n) for n in range(999)]
    both = [line for line in lines for _ in places]
    batch = replace(fetched(both, [None] * len(both)), time_ms=np.arange(len(both)) // 2 * 1_000)
    said = flow.finish(flow.prepare(batch, MODEL, begin={}, end={}), None)
    opened = [alert for alert in said.alerts if alert.state == "open"]
    assert {alert.key for alert in opened} == {b"in/0", b"in/1"}
    assert len({alert.since_ms for alert in opened}) * 2 == len(opened)  # the same in both
    assert len({alert.id for alert in opened}) == len(opened)


def test_no_batch_waits_for_a_compiler() -> None:
    warm_decode()
    known = len(without_ends.signatures)
    for values in ([b"a"], [None, b"b\n"], [b"a", b"b", b""]):
        read(values)
        read(values, [None] * len(values))
    assert known == len(without_ends.signatures) == 1


# ---- headers ---------------------------------------------------------------------------------

BODIES = (
    "sshd: Failed password for root from 10.0.3.{n} port {n} ssh2", "kernel: eth0: link is up",
    "sshd: Accepted publickey for deploy from 10.0.3.{n} port {n} ssh2", "app: query took {n} ms",
    "systemd: Started Session {n} of user admin.", "app: worker {n} restarted after {n} ms",
)  # fmt: skip
HEADERS = {
    "RFC 3164": "%b %d %H:%M:%S web-1 {who}[{n}]: ",
    "RFC 3164, no pid": "<34>%b %d %H:%M:%S web {who}: ",
    "RFC 5424": "<34>1 %Y-%m-%dT%H:%M:%S.%fZ web-1.example.com {who} {n} ID47 - ",
    "RFC 5424, nothing": "<34>1 %Y-%m-%dT%H:%M:%S.%f+01:00 web {who} - - - ",
    "ISO 8601": "%Y-%m-%dT%H:%M:%SZ INFO {who}: ",
    "ISO 8601, a blank": "%Y-%m-%d %H:%M:%S,%f [main] INFO {who} - ",
    "epoch": "%s.{n} {who}: ",
    "ctime": "[%a %b %d %H:%M:%S %Y] [error] {who}: ",
    "klog": "I%m%d %H:%M:%S.%f {n} {who}.go:212] ",
    "dmesg": "[{n}.123456] {who}: ",
}


def kinds_of(header: str) -> list[int]:
    """Templates of lines behind a header whose times are months apart, numbered as they come."""
    values: list[bytes] = []
    for n in range(10, 40):
        time = datetime.fromtimestamp(1_700_000_000 + n * 3_333_333, UTC).strftime(header)
        for body in BODIES:
            who, line = body.format(n=n).split(": ", 1)
            values.append((time.format(who=who, n=n) + line).encode())
    code = ids_of([line for *_, line in told(read(values))]).tolist()
    return [list(dict.fromkeys(code)).index(each) for each in code]


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_makes_no_other_kinds_of_line(header: str) -> None:
    assert kinds_of("") == list(range(len(BODIES))) * 30
    assert kinds_of(HEADERS[header]) == kinds_of("")


def test_a_bare_word_in_a_header_that_varies_makes_kinds_of_its_own() -> None:
    # Of the weekdays, which are a name here, six occur.
    assert len(set(kinds_of("%b %d %H:%M:%S %A {who}: "))) == 6 * len(BODIES)


# ---- lanes -----------------------------------------------------------------------------------


def topic(values: list[bytes]) -> World:
    """The stream of test_logs.py in one partition, at its own times; every seventh has no key."""
    clock = VirtualClock(ROWS[0]["ts"])
    broker = EmbeddedBroker(clock=clock)
    log = EmbeddedLog(broker)
    for name in ("in", "d.alerts", "d.rejects", "raywatch.audit"):
        log.create(name, 1)
    for number, (row, value) in enumerate(zip(ROWS, values, strict=True)):
        clock.advance((row["ts"] - clock.now_ms()) / 1_000.0)
        log.write([Out("in", b"" if number % 7 == 0 else row["service"].encode(), value)])
    return World(broker, log, [Partition("in", 0)])


BARE = [row["msg"].encode() for row in ROWS]
BARE[NEW] += b" caf\xe9"


def said_of_lines() -> Counter[str]:
    there = topic(BARE)
    live(there, LANES.detector(), model="logs")
    return there.said()


def test_a_lane_says_of_lines_what_it_says_of_them_in_json() -> None:
    rows = [{LINE: row["msg"], "k": row["service"]} for row in ROWS]
    for number in range(0, len(rows), 7):
        rows[number]["k"] = "in/0"
    rows[NEW][LINE] += " caf\u00e9"
    there = topic([json.dumps(row).encode() for row in rows])
    live(there, LANES.detector(record=replace(IN_JSON, key="k")), model="logs")
    said = said_of_lines()
    assert len(said) >= 4
    # Of a letter that is no UTF-8 the bytes count, and another letter is shown.
    shown = Counter(each.replace("\\ufffd", "\\u00e9") for each in said.elements())
    assert shown == there.said()
    assert shown != said


@pytest.mark.parametrize("dies_at", [12, 30, 55])
def test_a_lane_that_is_killed_loses_and_repeats_nothing(dies_at: int) -> None:
    there = topic(BARE)
    detector = LANES.detector(batch_records=200, snapshot_s=0.05)
    with pytest.raises(Killed):
        live(there, detector, log=Mortal(there.log, dies_at, done=True), model="logs")
    live(there, detector, model="logs", epoch="e2")
    assert there.said() == said_of_lines()


@pytest.mark.kafka
def test_on_real_kafka_lines_of_a_plain_producer_are_read_with_and_without_keys(
    kafka: Any, topic: Callable[[str], str], tmp_path: Path
) -> None:
    events, name = topic("lines"), topic("bare").lower()
    log, producer = KafkaLog(kafka.bootstrap), ck.Producer({"bootstrap.servers": kafka.bootstrap})
    places = [Partition(events, number) for number in range(2)]
    detector = replace(LANES.detector(), name=name, topics=(events,), group=name)
    detector = replace(
        detector,
        alerts=f"{name}.alerts",
        rejects=f"{name}.rejects",
        decide=DecideSettings(probability=1e-3, warmup=300),
    )
    rows: list[dict[str, Any]] = []
    try:
        log.create(events, 2, {"retention.ms": "-1"})  # times lie years back
        for each in (detector.alerts, detector.rejects, "raywatch.audit"):
            log.create(each, 1)
        for row, value in zip(ROWS, BARE, strict=True):
            place = places[row["service"] == "api"]
            key = b"gateway" if len(rows) % 3 == 0 else None
            producer.produce(events, value + b"\n", key, place.number, timestamp=row["ts"])
            producer.poll(0)
            rows.append({"k": (key or str(place).encode()).decode(), "t": row["ts"], "n": place})
            rows[-1][LINE] = value.decode("utf-8", "replace")
        producer.produce(events, None, None, 0)
        assert producer.flush(30.0) == 0
        with running(make(detector, log, places, model="logs")):
            until(lambda: lag(log, detector, places) == 0, 60.0)
        said = alerts_of(log, detector.alerts)
        rejects = [out.value for out in read_all(log, detector.rejects)]
    finally:
        log.close()
    filed: list[dict[str, Any]] = []
    in_json = replace(detector, record=replace(IN_JSON, key="k", time="t"))
    path, out = tmp_path / "rows.jsonl", tmp_path / "alerts.jsonl"
    for place in places:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows if row["n"] == place))
        backtest(in_json, LANES.scorer, path, tmp_path / "o.parquet", alerts=out)
        filed += [json.loads(line) for line in out.read_text().splitlines()]
    assert {alert["key"] for alert in said} == {"gateway", *map(str, places)}
    assert without_lineage(said) == without_lineage(filed)
    assert rejects == [b""]


# ---- files and commands ----------------------------------------------------------------------


@pytest.fixture
def raywatch(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    return partial(called, capsys)


def config(folder: Path, **record: Any) -> Path:
    return written(
        folder, name="d", model="preset:logs", record={"format": "text", **record},
        alert={"probability": 1e-4, "warmup": 300},
    )  # fmt: skip


def test_the_command_says_of_a_log_file_what_it_says_of_json(
    tmp_path: Path, raywatch: Callable[..., Said]
) -> None:
    log, out, alerts = (tmp_path / name for name in ("web.log", "o.parquet", "a.jsonl"))
    log.write_bytes(b"\r\n".join([*BARE[:RUSH], b"", *BARE[RUSH:]]) + b"\n")
    words = ("backtest", config(tmp_path), log, "--output", out, "--alerts", alerts)
    said = raywatch(*words)
    assert said.code == 0, said.err
    assert f"{len(ROWS):,} records of 1 keys" in said.out  # the blank line is none
    assert "0 rejects" in said.out
    assert "times: a line a second" in said.out
    assert json.loads(raywatch(*words, "--json").out)["line_ms"] == LINE_MS
    rows = [{"k": "web", "t": 1_000 * n, LINE: row["msg"]} for n, row in enumerate(ROWS)]
    rows[NEW][LINE] += " caf\ufffd"
    table, filed, _ = LANES.filed(
        tmp_path, [json.dumps(row).encode() for row in rows],
        record=RecordSpec(values=(), key="k", time="t", message=LINE),
    )  # fmt: skip
    assert table.num_rows == len(ROWS)
    assert [json.loads(line) for line in alerts.read_bytes().splitlines()] == filed
    assert any(alert["component"] == "rare" for alert in filed)
    assert 'failed: 7 sectors lost caf\ufffd"' in json.dumps(filed, ensure_ascii=False)


@pytest.mark.parametrize("batch", [1, 2, 100])
def test_a_file_gives_the_lines_that_a_topic_gives(tmp_path: Path, batch: int) -> None:
    path = tmp_path / "access.log.1"
    path.write_bytes(b"GET /a 200\nup \xe4\r\n\n" + b"x" * 99 + b"\nlast")
    pieces = list(read_file(path, replace(SPEC, bytes_max=64), batch))
    found = [each for piece in pieces for each in told(piece.records)]
    assert [(row, time, key, line) for _, row, time, _, key, line in found] == [
        (0, 0, b"access.log", b"GET /a 200"),
        (1, LINE_MS, b"access.log", b"up \xe4"),
        (3, 3 * LINE_MS, b"access.log", b"last"),
    ]
    rejects = [reject for piece in pieces for reject in piece.records.rejects]
    assert [(r.offset, r.reason) for r in rejects] == [(2, "too large")]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.jsonl", b"{}\n", "holds records with fields"),
        ("a.jsonl.gz", b"{}\n", "holds records with fields"),
        ("a.log.xz", b"\xfd7zXZ\0", "has to be unpacked first"),
        ("a.log.gz.gz", b"\x1f\x8b", "has to be unpacked first"),
        ("a.tar", b"", "has to be unpacked first"),
        ("a.log.gz", b"\x1f\x8b", "Truncated compressed stream"),
        ("a.log.2.gz", b"up\n", "zlib inflate failed"),
        ("b.log.gz", b"", "is empty"),
        ("a.log", b"", "is empty"),
        ("gone.log", None, "cannot read"),
    ],
)
def test_a_file_that_holds_no_lines_is_refused_and_leaves_nothing(
    tmp_path: Path, raywatch: Callable[..., Said], name: str, content: bytes | None, words: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    out, alerts = tmp_path / "o.parquet", tmp_path / "o.jsonl"
    path = config(tmp_path)
    said = raywatch("backtest", path, tmp_path / name, "--output", out, "--alerts", alerts)
    assert said.code == 2
    assert words in said.err
    assert "hint: " in said.err
    assert not out.exists()
    assert not alerts.exists()


def test_a_log_file_where_records_have_fields_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "a.log").write_bytes(b"up\n")
    with pytest.raises(ConfigError, match="is no file this can read") as caught:
        list(read_file(tmp_path / "a.log", IN_JSON))
    assert "`record.format` is `text`" in caught.value.hint


def test_other_commands_know_lines(tmp_path: Path, raywatch: Callable[..., Said]) -> None:
    path = config(tmp_path)
    assert raywatch("check", path, "--offline").code == 0
    (tmp_path / "a.log").write_bytes(b"up\n")
    said = raywatch("evaluate", path, tmp_path / "a.log")
    assert said.code == 2
    assert "have no labels" in said.err


def test_of_waits_that_the_clock_of_the_lines_cannot_tell_no_mean_is_said(tmp_path: Path) -> None:
    # Two lines a second, the seconds whole: every other wait is 0 ms, and no mean of them is true.
    times = [n // 2 for n in range(3_000)] + [2_400 + n // 2 for n in range(100)]
    text = [f"{1_796_000_000 + at} served /page/{n} in 3 ms" for n, at in enumerate(times)]
    (tmp_path / "a.log").write_text("\n".join(text))
    detector, out = LANES.detector(record=SPEC), tmp_path / "alerts.jsonl"
    backtest(detector, LANES.scorer, tmp_path / "a.log", tmp_path / "o.parquet", alerts=out)
    opened = [alert for alert in map(json.loads, out.open()) if alert["state"] == "open"]
    assert len(opened) == 1
    assert "15 min 1 s without any line, usually less than a second; " in opened[0]["words"]


def test_what_is_disguised_is_in_no_alert(tmp_path: Path) -> None:
    log = tmp_path / "gateway.log"
    log.write_bytes(b"\n".join(BARE) + b"\n")
    seen: dict[tuple[str, ...], str] = {}
    for hidden in ((), (LINE,), ("key", LINE)):
        pseudonym = HmacKey(b"x" * 32) if "key" in hidden else None
        detector = LANES.detector(record=replace(SPEC, pseudonymise=hidden), pseudonym=pseudonym)
        out = tmp_path / "alerts.jsonl"
        backtest(detector, LANES.scorer, log, tmp_path / "o.parquet", alerts=out)
        seen[hidden] = out.read_text()
    counts = {text.count("\n") for text in seen.values()}
    assert len(counts) == 1
    assert "value 1 is 9,000,000, usually" in seen[()]
    assert "gateway" in seen[(LINE,)]
    for secret in ("sectors", "took", "is 9,000,000"):
        assert secret in seen[()]
        assert secret not in seen[(LINE,)] + seen[("key", LINE)]
    assert "gateway" not in seen[("key", LINE)]
    assert '"key":"h1_' in seen[("key", LINE)]
