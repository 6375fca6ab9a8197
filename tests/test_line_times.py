"""Goal: lines of a file have the times that they begin with, and no others.

Method: random times from 1990 to 2060, written in every form and read back; other bytes, and what
nearly is a time. Years that are not written; lines that continue others; batches cut anywhere. Then
whole files through the command: a pause and a rush that are there in time alone.
"""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from command import Said, called, written
from hypothesis import given, settings
from hypothesis import strategies as st
from packing import ENDINGS, packed

from raywatch.actors import grammar, line_times, scan
from raywatch.actors.decode import join
from raywatch.actors.files import SAMPLE, read_file
from raywatch.actors.grammar import TIME_MAX_MS
from raywatch.actors.line_times import LINE_MS, NONE, Held, LineClock, warm_line_times
from raywatch.actors.records import LINE, RecordSpec
from raywatch.models.errors import ConfigError

SPEC = RecordSpec(values=(), message=LINE, format="text")
MOMENT = timedelta(milliseconds=1)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def clock_of(lines: Sequence[bytes]) -> LineClock:
    return LineClock(*join(lines, 1 << 20))


def times_of(lines: Sequence[bytes]) -> list[int]:
    """Of lines by a clock that knows no others."""
    return clock_of(lines).times(*join(lines, 1 << 20)).tolist()


def ms(time: datetime) -> int:
    return (time - EPOCH) // MOMENT


def test_new_code_of_the_grammar_is_compiled_anew_by_all_that_use_it() -> None:
    source = Path(grammar.__file__).read_bytes()
    assert scan.GRAMMAR == line_times.GRAMMAR == hashlib.sha256(source).hexdigest()[:12]


# ---- forms -----------------------------------------------------------------------------------

DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


def zone(time: datetime, colon: str = "") -> str:
    minutes = (time.utcoffset() or timedelta()) // timedelta(minutes=1)
    hour, minute = divmod(abs(minutes), 60)
    return f"{'-' if minutes < 0 else '+'}{hour:02d}{colon}{minute:02d}"


# Each writes a time: at a zone, in ms or in whole seconds.
ZONED: dict[str, Callable[[datetime], str]] = {
    "RFC 5424": lambda t: f"<34>1 {t:%FT%T}.{t.microsecond:06d}{zone(t, ':')} web app 7 - - up",
    "rsyslog": lambda t: f"<3>{t:%FT%T}.{t.microsecond // 1000:03d}{zone(t, ':')} web app: up",
    "ISO, a blank": lambda t: f"{t:%F %T},{t.microsecond // 1000:03d}{zone(t)} INFO up",
    "ISO, its zone apart": lambda t: f"{t:%F %T}.{t.microsecond:06d} {zone(t)} [7] up",
    "ISO, in a bracket": lambda t: f"[{t:%F %T}.{t.microsecond // 1000:03d} {zone(t)}] up",
    "logfmt": lambda t: f'ts="{t:%FT%T}.{t.microsecond:06d}{zone(t, ":")}" level=info msg=up',
    "level first": lambda t: f"[INFO] {t:%FT%T},{t.microsecond // 1000:03d}{zone(t)} up",
    "file and tag first": lambda t: f"api.log | {t:%FT%T}.{t.microsecond:06d}{zone(t)} up",
}
IN_SECONDS: dict[str, Callable[[datetime], str]] = {
    "access log": lambda t: (
        f'10.0.0.1 - j d [{t:%d}/{MONTHS[t.month - 1]}/{t:%Y:%T} {zone(t)}] "GET / HTTP/1.1" 200'
    ),
    "access log of IPv6": lambda t: (
        f'[::1]:80 - - [{t:%d}/{MONTHS[t.month - 1]}/{t:%Y:%T} {zone(t)}] "GET / HTTP/1.1" 200'
    ),
    "ISO": lambda t: f"{t:%FT%T}{zone(t)} up",
}
UTC_MS: dict[str, Callable[[datetime], str]] = {
    "ISO, Z": lambda t: f"{t:%FT%T}.{t.microsecond:06d}Z up",
    "log4j": lambda t: f"{t:%F %T},{t.microsecond // 1000:03d} - INFO  [main:Cnx@7] - up",
    "OpenStack": lambda t: f"nova.log.1.2017-05-16_13:53:08 {t:%F %T}.{t.microsecond:06d} 25 INFO",
    "epoch, a fraction": lambda t: f"{ms(t) // 1000}.{t.microsecond:06d}   45 10.0.0.1 TCP_MISS",
    "epoch in ms": lambda t: f"{ms(t)} up",
    "Apache, a fraction": lambda t: (
        f"[{DAYS[t.weekday()]} {MONTHS[t.month - 1]} {t:%d %T}.{t.microsecond:06d} {t:%Y}] [x] up"
    ),
    "ends behind the time": lambda t: f"{t:%FT%T}.{t.microsecond:06d}",
}
UTC_S: dict[str, Callable[[datetime], str]] = {
    "Go, nginx": lambda t: f"{t:%Y/%m/%d %T} [error] 7#7: up",
    "CBS": lambda t: f"{t:%F %T}, Info   CBS  up",
    "Postgres": lambda t: f"{t:%F %T} UTC [7] LOG:  up",
    "Spark": lambda t: f"{t:%y/%m/%d %T} INFO Executor: up",
    "HDFS": lambda t: f"{t:%y%m%d %H%M%S} 148 INFO dfs: up",
    "BGL": lambda t: f"- {ms(t) // 1000} 2005.06.03 R02-M1 RAS KERNEL INFO up",
    "Nagios": lambda t: f"[{ms(t) // 1000}] SERVICE ALERT: up",
    "Apache": lambda t: (
        f"[{DAYS[t.weekday()]} {MONTHS[t.month - 1]} {t:%d %T %Y}] [error] up"
    ),
    "ctime": lambda t: f"{DAYS[t.weekday()]} {MONTHS[t.month - 1]} {t.day:2d} {t:%T %Y} up",
}  # fmt: skip
FORMS = ZONED | IN_SECONDS | UTC_MS | UTC_S
SPAN_S = (datetime(2060, 12, 30, tzinfo=UTC) - datetime(1990, 1, 2, tzinfo=UTC)).total_seconds()
MOMENTS = st.integers(0, int(SPAN_S) * 1_000_000).map(
    lambda micros: datetime(1990, 1, 2, tzinfo=UTC) + timedelta(microseconds=micros)
)
OFFSETS = st.integers(-48, 56).map(lambda quarters: timezone(timedelta(minutes=15 * quarters)))


@pytest.mark.parametrize("form", FORMS)
@settings(max_examples=150, deadline=None)
@given(st.lists(MOMENTS, min_size=1, max_size=4), OFFSETS)
def test_a_time_in_any_form_is_read_back(
    form: str, moments: list[datetime], offset: timezone
) -> None:
    aware = offset if form in ZONED | IN_SECONDS else UTC
    times = [moment.replace(tzinfo=aware) for moment in moments]
    whole = 1_000 if form in IN_SECONDS | UTC_S else 1
    found = times_of([FORMS[form](time).encode() for time in times])
    assert found == [ms(time) // whole * whole for time in times]


YEARLESS: dict[str, Callable[[datetime], str]] = {
    "RFC 3164": lambda t: f"{MONTHS[t.month - 1]} {t.day:2d} {t:%T}.{t.microsecond:06d} web: up",
    "RFC 3164, a priority": lambda t: (
        f"<34>{MONTHS[t.month - 1]} {t:%d %T}.{t.microsecond:06d}: %LINK-3-UPDOWN: up"
    ),
    "RFC 3164, one digit": lambda t: (
        f"- {MONTHS[t.month - 1]} {t.day} {t:%T}.{t.microsecond:06d} web up"
    ),
    "klog": lambda t: f"I{t:%m%d %T}.{t.microsecond:06d} 7 server.go:212] up",
}  # fmt: skip


@pytest.mark.parametrize("form", YEARLESS)
@settings(max_examples=150, deadline=None)
@given(
    MOMENTS,
    st.lists(st.timedeltas(timedelta(), timedelta(days=150)), max_size=30),
)
def test_gaps_without_a_year_are_right_over_the_turn_of_years(
    form: str, first: datetime, gaps: list[timedelta]
) -> None:
    times = [first]
    for gap in gaps:
        times.append(times[-1] + gap)
    found = times_of([YEARLESS[form](time).encode() for time in times])
    assert datetime.fromtimestamp(found[0] / 1_000, UTC).year == 1970
    for (a, b), (one, other) in zip(pairwise(times), pairwise(found), strict=True):
        # What no line says: that a February had 29 days, where none came on its last one.
        day = timedelta(days=1) if leaped(a, b, times) else timedelta()
        assert other - one == ms(b - day) - ms(a)


def leaped(a: datetime, b: datetime, times: Sequence[datetime]) -> bool:
    """Whether a 29th of February on which no line came lies between two lines."""
    leap = [y for y in range(a.year, b.year + 1) if y % 4 == 0 and (y % 100 or y % 400 == 0)]
    days = [datetime(year, 2, 29, tzinfo=UTC).date() for year in leap]
    return any(a.date() < day < b.date() for day in days if day not in {t.date() for t in times})


def test_a_late_line_at_the_turn_of_the_year_moves_no_other() -> None:
    lines = [
        b"Dec 31 23:59:58 a", b"Jan  1 00:00:01 a", b"Dec 31 23:59:59 late", b"Jan  1 00:00:02 a",
        b"Nov  2 00:00:00 a", b"Oct 31 00:00:00 late", b"Nov  2 00:00:01 a",
    ]  # fmt: skip
    seconds = [time // 1_000 for time in times_of(lines)]
    year = 365 * 86_400
    assert [each - year for each in seconds[:4]] == [-2, 1, -1, 2]
    assert [each - seconds[4] for each in seconds[4:]] == [0, -2 * 86_400, 1]
    assert seconds[4] == year + (365 - 31 - 29) * 86_400


def test_time_since_boot_counts_from_1970() -> None:
    assert times_of([b"[    0.000000] Linux", b"<6>[   12.345678] eth0", b"[99999.5] no"]) == [
        0,
        1_000,
        2_000,
    ]  # fmt: skip - two of three are too few: a line is a second
    assert times_of([b"[    0.000000] Linux", b"<6>[   12.345678] eth0", b"[123456.500000] x"]) == [
        0, 12_345, 123_456_500,
    ]  # fmt: skip


# ---- what is no time -------------------------------------------------------------------------

NO_TIMES = [
    "", "up", "2026", "2026-11-30", "2026-11-30 up", "2026-11-30T18:00", "2026-13-30T18:00:01",
    "2026-02-29T18:00:01", "2026-11-30T24:00:01", "2026-11-30T18:60:01", "2026-11-30T18:00:01up",
    "2026-11/30 18:00:01", "1969-11-30T18:00:01Z", "2201-11-30T18:00:01Z", "x2026-11-30T18:00:01",
    "it was 2026-11-30 at 18:00:01", "a b c d 2026-11-30T18:00:01Z", " 2026-11-30T18:00:01Z",
    "\t2026-11-30T18:00:01Z", "Nov 30", "Nov 31 18:00:01", "Nob 30 18:00:01", "Nov 30 18:00",
    "Nov  0 18:00:01", "Nov 30 18:00:01x", "nov 30 18:00:01", "November 30 18:00:01",
    "Mon Nov 31 18:00:01 2026", "[30/Nov/2026 18:00:01]", "[31/Nov/2026:18:00:01 +0000]",
    "10.0.0.1 - - 30/Nov/2026:18:00:01", "117883857", "11788385701", "9999999999", "531152000",
    "1178838570a", "17888385700000", "26/13/30 18:00:01", "11/30/26 18:00:01",
    "261130 240000", "261130 1800011", "261130180001", "I1330 18:00:01.5", "X1130 18:00:01.5",
    "[12.3]", "[   12.345678", "<34", "<3400>Nov 30 18:00:01", 'ts="', "=2026-11-30T18:00:01Z",
    "[[2026-11-30T18:00:01Z", "18:00:01 up", "١٩٧٠-01-01T00:00:00Z", "\0Nov 30 18:00:01",
]  # fmt: skip


@pytest.mark.parametrize("line", NO_TIMES)
def test_what_is_no_time_is_none(line: str) -> None:
    clock = clock_of([line.encode()])
    assert (clock.held.form, clock.held.share) == ("", 0.0)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.binary(max_size=60), min_size=1, max_size=9))
def test_any_bytes_are_read_and_have_times_that_are(lines: list[bytes]) -> None:
    for forms in (FORMS, YEARLESS):
        for write in forms.values():
            header = write(datetime(2026, 11, 30, 18, tzinfo=UTC)).encode()
            mixed = [each for line in lines for each in (header + line, header[: len(line)] + line)]
            found = clock_of([header] * 9 + mixed)
            times = found.times(*join([*mixed, *lines], 1 << 20))
            assert ((times >= 0) & (times <= TIME_MAX_MS)).all()


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text(st.characters(codec="utf-8", categories=["L", "Z", "P"])), min_size=1))
def test_text_without_a_digit_holds_no_time(lines: list[str]) -> None:
    held = clock_of([line.encode() for line in lines]).held
    assert (held.form, held.share) == ("", 0.0)


# ---- files -----------------------------------------------------------------------------------


def read(path: Path, batch: int = 20_000) -> list[tuple[int, int, bytes]]:
    found: list[tuple[int, int, bytes]] = []
    for piece in read_file(path, SPEC, batch):
        r = piece.records
        for n in range(len(r)):
            begin = int(r.word_begin[n, 0])
            line = r.text[begin : begin + int(r.word_size[n, 0])].tobytes()
            found.append((int(r.offset[n]), int(r.time_ms[n]), line))
    return found


def held_in(path: Path) -> Held:
    """What the first lines of a file say of time."""
    held = next(read_file(path, SPEC)).times
    assert held is not None
    return held


TRACE = [
    b"  banner", b"2026-11-30 18:00:01,000 INFO up", b"2026-11-30 18:00:02,500 ERROR down",
    b"java.lang.Error: 2026-11-30 18:00:09,000", b"\tat a.b.C", b"", b"   ", b"   ... 20 more",
    b"2026-11-30 18:00:04,000 INFO up", b"2026-11-30 18:00:03,000 INFO late", b"\tat a.b.C",
    *[b"2026-11-30 18:00:05,000 INFO up"] * 6,
]  # fmt: skip


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_a_line_without_a_time_has_that_of_the_line_before(tmp_path: Path, batch: int) -> None:
    (tmp_path / "a.log").write_bytes(b"\r\n".join(TRACE))
    found = read(tmp_path / "a.log", batch)
    begin = ms(datetime(2026, 11, 30, 18, tzinfo=UTC))
    assert [time - begin for _, time, _ in found] == [
        1_000, 1_000, 2_500, 2_500, 2_500, 2_500, 4_000, 3_000, 3_000, *[5_000] * 6,
    ]  # fmt: skip
    assert [row for row, _, _ in found] == list(range(15))  # blank lines are no rows
    held = held_in(tmp_path / "a.log")
    assert (held.form, held.lines, round(held.share * held.lines)) == ("ISO 8601", 11, 10)


@pytest.mark.parametrize("begin", [b"\t", b" "])
@pytest.mark.parametrize("form", ["level first", "access log"])
def test_a_line_that_begins_with_a_blank_holds_no_time_in_a_later_place(
    form: str, begin: bytes
) -> None:
    first, other = (
        FORMS[form](datetime(2026, 11, 30, hour, tzinfo=UTC)).encode() for hour in (18, 19)
    )
    assert clock_of([first, begin + other]).held.lines == 1
    assert len(set(times_of([first, begin + other]))) == 1


def test_batches_may_be_cut_anywhere_where_years_are_not_written(tmp_path: Path) -> None:
    time, lines = datetime(2023, 10, 1, tzinfo=UTC), []
    for n in range(400):
        time += timedelta(hours=13 + n % 7)
        lines.append(YEARLESS["RFC 3164"](time).encode())
        lines += [b"\tcontinued"] * (n % 3)
    (tmp_path / "a.log").write_bytes(b"\n".join(lines) + b"\n")
    whole = read(tmp_path / "a.log")
    assert (np.diff([time for _, time, _ in whole]) >= 0).all()
    for batch in (1, 7, 100):
        assert read(tmp_path / "a.log", batch) == whole


def test_the_first_lines_alone_say_where_times_are(tmp_path: Path) -> None:
    stamp = b"2026-11-30T18:00:01Z up"
    for count, form in ((SAMPLE * 9 // 10, "ISO 8601"), (SAMPLE * 9 // 10 - 1, "")):
        first = [stamp] * count + [b"up"] * (SAMPLE - count)
        (tmp_path / "a.log").write_bytes(b"\n".join(first + [b"up"] * 5_000))
        held = held_in(tmp_path / "a.log")
        assert (held.form, held.share, held.lines) == (form, count / SAMPLE, SAMPLE)
        found = {time for _, time, _ in read(tmp_path / "a.log")}
        assert len(found) == (1 if form else SAMPLE + 5_000)


def test_a_stream_that_can_be_read_but_once_is_read_from_its_first_line_on() -> None:
    reader, writer = os.pipe()
    os.write(writer, b"\n".join(TRACE))
    os.close(writer)
    found = read(Path(f"/dev/fd/{reader}"), 3)
    os.close(reader)
    assert [line for _, _, line in found] == [line for line in TRACE if not line.isspace() and line]
    assert found[-1][1] - found[0][1] == 4_000


def test_the_first_place_that_holds_a_time_counts() -> None:
    syslog = b"<34>Nov 30 18:00:01 2026-11-30T19:00:00Z 1796061601 up"
    assert clock_of([syslog]).held.form == "RFC 3164"
    assert clock_of([b"up 2026-11-30T19:00:00Z 2026-11-30T20:00:00Z"]).times(
        *join([b"up 2026-11-30T19:00:00Z 2026-11-30T20:00:00Z"], 99)
    ).tolist() == [ms(datetime(2026, 11, 30, 19, tzinfo=UTC))]


def test_a_year_beyond_2200_is_a_bad_time(tmp_path: Path) -> None:
    lines = [f"{month} 10 18:00:01 up".encode() for _ in range(240) for month in ("Aug", "Jan")]
    (tmp_path / "a.log").write_bytes(b"\n".join(lines))
    (piece,) = read_file(tmp_path / "a.log", SPEC)
    assert {reject.reason for reject in piece.records.rejects} == {"bad time"}
    assert len(piece.records) + len(piece.records.rejects) == 480
    assert len(piece.records) > 450


@pytest.mark.parametrize("content", [b"", b"\n\r\n", b"  \t\v\f \n\n"])
def test_a_file_of_blank_lines_is_empty(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.log").write_bytes(content)
    with pytest.raises(ConfigError, match="is empty"):
        list(read_file(tmp_path / "a.log", SPEC))


@pytest.mark.parametrize("record", [SPEC, RecordSpec(values=("x",))])
def test_blank_lines_of_a_file_are_skipped_however_long(tmp_path: Path, record: RecordSpec) -> None:
    spec, path = (
        replace(record, bytes_max=16),
        tmp_path / f"a.{'jsonl' if record.values else 'log'}",
    )
    good = b'{"x": 1}'
    blank = [b"", b"  ", b"\t\r", b" " * 99, b"\v\f"]
    path.write_bytes(b"\n".join([*blank, good, *blank, b" " * 99 + good, good, *blank]))
    for batch in (1, 2, 100):
        pieces = list(read_file(path, spec, batch))
        assert sum(piece.rows for piece in pieces) == 3
        rows = [row for piece in pieces for row in piece.row.tolist()]
        rejects = [each for piece in pieces for each in piece.records.rejects]
        assert rows == [0, 2]
        assert [(each.offset, each.reason) for each in rejects] == [(1, "too large")]


def test_no_file_waits_for_a_compiler() -> None:
    warm_line_times()
    known = [len(kernel.signatures) for kernel in (line_times.read, line_times.follow)]
    for lines in ([b"up"], [b"Nov 30 18:00:01 a", b""], [b"2026-11-30T18:00:01Z"] * 3):
        times_of(lines)
    assert known == [len(kernel.signatures) for kernel in (line_times.read, line_times.follow)]
    assert known == [1, 1]
    assert NONE < 0


# ---- the command -----------------------------------------------------------------------------

COUNT, PAUSE, RUSH, RUSH_LENGTH = 6_000, 4_000, 5_000, 80
BODIES = (
    "sshd[{n}]: Accepted publickey for deploy from 10.0.3.{n}", "cron[{n}]: session opened",
    "app: query took {n} ms", "app: rendered page in {n} ms", "kernel: eth0: link is up",
)  # fmt: skip


def stream() -> tuple[list[datetime], list[str]]:
    """Kinds of line by chance, about a second apart: ten minutes of nothing, 80 in a second."""
    rng = np.random.default_rng(5)
    gaps = np.exp(rng.normal(-0.2, 0.5, COUNT))
    gaps[PAUSE] = 600.0
    gaps[RUSH : RUSH + RUSH_LENGTH] = 0.01
    begin = datetime(2026, 12, 31, 22, 40, tzinfo=UTC)  # a year ends on the way
    times = [begin + timedelta(seconds=float(each)) for each in np.cumsum(gaps)]
    kinds = rng.integers(0, len(BODIES), COUNT).tolist()
    return times, [BODIES[kind].format(n=17 + n % 50) for n, kind in enumerate(kinds)]


TIMES, LINES = stream()
HEADERS: dict[str, Callable[[datetime], str]] = {
    "RFC 3164": lambda t: f"{MONTHS[t.month - 1]} {t.day:2d} {t:%T} web ",
    "ISO 8601": lambda t: f"{t:%FT%T}.{t.microsecond // 1000:03d}Z web ",
    "": lambda t: "web ",
}


@pytest.fixture
def raywatch(capsys: pytest.CaptureFixture[str]) -> Callable[..., Said]:
    return partial(called, capsys)


def config(folder: Path) -> Path:
    return written(
        folder, name="d", model="preset:logs", record={"format": "text"},
        alert={"probability": 1e-4, "warmup": 300},
    )  # fmt: skip


def filed(
    folder: Path, raywatch: Callable[..., Said], header: str, *more: str
) -> tuple[Said, list[dict[str, Any]], list[int]]:
    """What the command says of the stream behind a header; incidents, and times of its rows."""
    log, out, alerts = (folder / name for name in ("web.log", "o.parquet", "a.jsonl"))
    write = HEADERS[header]
    log.write_text("".join(f"{write(t)}{b}\n\n" for t, b in zip(TIMES, LINES, strict=True)))
    said = raywatch(
        "backtest", config(folder), log, "--output", out, "--alerts", alerts, *more
    )  # fmt: skip
    assert said.code == 0, said.err
    opened = [json.loads(line) for line in alerts.read_text().splitlines()]
    opened = [each for each in opened if each["state"] == "open"]
    return said, opened, pq.read_table(out)["ts"].to_pylist()


@pytest.mark.parametrize("header", ["RFC 3164", "ISO 8601"])
def test_a_pause_and_a_rush_are_found_by_the_times_of_lines(
    tmp_path: Path, raywatch: Callable[..., Said], header: str
) -> None:
    said, opened, times = filed(tmp_path, raywatch, header)
    assert (
        f"times: those that lines begin with ({header}), in 100.0% of the first 1,000" in said.out
    )
    assert "counts as a second" not in said.err
    assert f"{COUNT:,} records of 1 keys" in said.out
    assert "0 rejects" in said.out
    whole = 1 if header == "ISO 8601" else 1_000
    years = 0 if header == "ISO 8601" else ms(datetime(2026, 1, 1, tzinfo=UTC))
    meant = [ms(time) // whole * whole - years for time in TIMES]
    assert times == meant
    assert meant[-1] > meant[0]
    (pause,) = [each for each in opened if each["component"] == "pause"]
    assert pause["at_ms"] == meant[PAUSE]
    rush = [each for each in opened if each["component"] == "rush"]
    assert len(rush) == 1
    assert meant[RUSH] <= rush[0]["at_ms"] <= meant[RUSH + RUSH_LENGTH]


@pytest.mark.parametrize("ending", ENDINGS)
def test_compressed_lines_have_their_times_their_key_and_their_scores(
    tmp_path: Path, raywatch: Callable[..., Said], ending: str
) -> None:
    said, opened, _ = filed(tmp_path, raywatch, "RFC 3164")
    assert {each["key"] for each in opened} == {"web"}
    copy, out, alerts = packed(tmp_path / "web.log", ending), tmp_path / "p", tmp_path / "a"
    again = raywatch("backtest", config(tmp_path), copy, "--output", out, "--alerts", alerts)
    assert again.code == 0, again.err
    assert again.out.splitlines()[2:-1] == said.out.splitlines()[2:-1]  # rejects and times
    assert out.read_bytes() == (tmp_path / "o.parquet").read_bytes()
    assert alerts.read_bytes() == (tmp_path / "a.jsonl").read_bytes()


def test_where_a_line_is_a_second_neither_is_found_and_that_is_said(
    tmp_path: Path, raywatch: Callable[..., Said]
) -> None:
    said, opened, times = filed(tmp_path, raywatch, "")
    assert {each["component"] for each in opened} & {"pause", "rush"} == set()
    assert times == [LINE_MS * n for n in range(COUNT)]
    assert "times: a line a second" in said.out
    assert "a line counts as a second" in said.err
    assert "0% of the first 1,000 lines" in said.err
    told = json.loads(filed(tmp_path, raywatch, "", "--json")[0].out)
    assert (told["line_ms"], told["times"]) == (
        LINE_MS, {"form": "", "share": 0.0, "lines": SAMPLE},
    )  # fmt: skip
    told = json.loads(filed(tmp_path, raywatch, "ISO 8601", "--json")[0].out)
    assert (told["line_ms"], told["times"]["form"]) == (None, "ISO 8601")
