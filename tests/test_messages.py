"""Goal: a log line is the same bytes however it comes: scanned, parsed, or read from a file.

Method: lines that hypothesis makes go through the scanner and, behind an escape that it asks about,
through the full parser; through JSON lines, CSV and Parquet. Then what is no line, what is too
long, and what a line that must not be shown leaves behind.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from classes import written
from hypothesis import given, settings
from hypothesis import strategies as st

from raywatch.actors.decode import decode, join
from raywatch.actors.files import read_file, resolve
from raywatch.actors.ports import Fetched
from raywatch.actors.pseudonyms import HmacKey, Pseudonyms
from raywatch.actors.records import LINE_BYTES_MAX, Records, RecordSpec
from raywatch.actors.scan import OK, hash_of, scan, wanted
from raywatch.models.errors import ConfigError

SPEC = RecordSpec(values=(), message="m", session="s", key="k", time="t")


def decoded(values: list[bytes], spec: RecordSpec = SPEC) -> Records:
    """The records of a batch of one partition."""
    count = len(values)
    place = np.zeros(count, np.int32), np.arange(count), np.full(count, -1)
    return decode(Fetched(*place, values=list(values), keys=[]), spec)


def test_a_record_has_its_line_behind_its_words() -> None:
    spec = RecordSpec(values=(), words=("w",), message="m", session="s", pseudonymise=("m", "s"))
    assert spec.texts == ("w", "m", "s")
    assert spec.hidden == (False, False, True)  # a line is read before it goes
    assert RecordSpec(values=("x",)).texts == ()


@settings(max_examples=200, deadline=None)
@given(
    st.text(st.characters(codec="utf-8"), min_size=1, max_size=40),
    st.none() | st.integers(-(2**63), 2**63) | st.text("abc-", max_size=9),
    st.booleans(),
)
def test_the_scanner_and_the_full_parser_read_the_same_line(
    line: str, session: Any, ascii_: bool
) -> None:
    row = {"k": "a", "t": 1, "m": line, "s": session}
    plain = json.dumps(row, ensure_ascii=ascii_).encode()
    escaped = plain.replace(b'"a"', b'"\\u0061"', 1)  # only the full parser reads escaped keys
    records = decoded([plain, escaped])
    assert records.rejects == []
    name = "" if session is None else str(session)
    for index in range(2):
        assert records.word(index, 0) == line
        assert records.word(index, 1) == name
        assert records.words[index].tolist() == [hash_of(line.encode()), hash_of(name.encode())]


def test_a_line_is_taken_by_the_scanner_with_its_escapes() -> None:
    fields = wanted("k", "t", (), ("m",))
    assert fields is not None
    lines = ["GET /a?b=1 ä", 'say "hi" \\ to\tall/\n\r\b\f', "\x00ü€\x7f", "x"]
    values = [json.dumps({"k": "a", "t": 1, "m": line}).encode() for line in lines]
    values.append(rb'{"k":"a","t":1,"m":"\/\u00E9\u20aC"}')
    text, begin, size = join(values, 1 << 20)
    found = scan(text, begin, size, fields, channels=0, key_bytes_max=32, words=1)
    assert found.status.tolist() == [OK] * 5
    records = decoded(values)
    assert [records.word(index, 0) for index in range(5)] == [*lines, "/é€"]
    pair = decoded([rb'{"k":"a","t":1,"m":"\ud83d\ude00"}'])  # a pair of surrogates is parsed
    assert pair.word(0, 0) == "\N{GRINNING FACE}"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"1", "wrong type"), (b"true", "wrong type"), (b"1.5", "wrong type"),
        (b"[1]", "wrong type"), (b'{"a":1}', "wrong type"), (b"null", "missing field"),
        (b'""', "missing field"), (b'"\\ud800"', "not JSON"), (b'"a\nb"', "not JSON"),
    ],
)  # fmt: skip
def test_what_is_no_line_rejects_its_record_and_no_other(line: bytes, reason: str) -> None:
    good = b'{"k":"a","t":1,"s":7,"m":"up"}'
    records = decoded([good, b'{"k":"a","t":1,"s":7,"m":' + line + b"}", good])
    assert records.offset.tolist() == [0, 2]
    assert [reject.reason for reject in records.rejects] == [reason]


@pytest.mark.parametrize("kind", ["message", "words"])
def test_texts_stand_beside_keys_of_kafka(kind: str) -> None:
    # The middle record goes to the full parser, which writes behind what the others lie in.
    texts = ["GET /a 200", "up", "x" * 300]
    values = [json.dumps({"m": text}).encode() for text in texts]
    values[1] = b'{"\\u006d":"up"}'
    keys: list[bytes | None] = [b"a", b'""' * 20, b"web"]
    named: dict[str, Any] = {"message": "m"} if kind == "message" else {"words": ("m",)}
    place = np.zeros(3, np.int32), np.arange(3), np.full(3, 5)
    records = decode(Fetched(*place, values=list(values), keys=keys), RecordSpec((), **named))
    assert records.rejects == []
    assert [records.word(index, 0) for index in range(3)] == texts
    assert [records.key(index) for index in range(3)] == keys


def test_a_record_without_a_line_is_none_and_one_without_a_session_is() -> None:
    records = decoded([b'{"k":"a","t":1,"s":"b"}', b'{"k":"a","t":1,"m":"up"}'])
    assert records.offset.tolist() == [1]
    assert records.words[0, 1] == 0
    assert [(r.reason, r.detail) for r in records.rejects] == [("missing field", "`m`")]
    (wrong,) = decoded([b'{"k":"a","t":1,"m":"up","s":1.5}']).rejects
    assert wrong.reason == "wrong type"


@pytest.mark.parametrize("extra", [0, 1, 10_000])
@pytest.mark.parametrize("kind", ["topic", "parquet"])
def test_of_a_long_line_the_beginning_counts(tmp_path: Path, extra: int, kind: str) -> None:
    row = {"k": "a", "t": 1, "m": "x" * (LINE_BYTES_MAX + extra), "s": None}
    if kind == "topic":
        escaped = json.dumps({**row, "k": "\u00e4"}).encode()
        records = decoded([json.dumps(row).encode(), escaped])
    else:
        path = tmp_path / "rows.parquet"
        pq.write_table(pa.table({name: [value] for name, value in row.items()}), path)
        records = next(iter(read_file(path, SPEC))).records
    assert records.rejects == []
    assert set(records.word_size[:, 0].tolist()) == {LINE_BYTES_MAX}
    assert records.word(0, 0) == "x" * LINE_BYTES_MAX


ROWS: list[dict[str, Any]] = [
    {"k": "a", "t": 1, "m": "GET /a 200", "s": "r-1"},
    {"k": "b", "t": 2, "m": 'said "hi", left', "s": "7"},
    {"k": "a", "t": 3, "m": None, "s": "r-1"},
    {"k": "c", "t": 4, "m": "up ä-ö", "s": None},
]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("batch", [1, 2, 100])
def test_a_file_gives_the_lines_that_a_topic_gives(tmp_path: Path, kind: str, batch: int) -> None:
    live = decoded([json.dumps(row).encode() for row in ROWS])
    pieces = [piece.records for piece in read_file(written(ROWS, tmp_path, kind), SPEC, batch)]
    assert np.concatenate([each.words for each in pieces]).tolist() == live.words.tolist()
    shown = [[r.word(i, n) for n in range(2)] for r in pieces for i in range(len(r))]
    assert shown == [["GET /a 200", "r-1"], ['said "hi", left', "7"], ["up ä-ö", ""]]
    rejects = [reject for each in pieces for reject in each.rejects]
    assert [(r.offset, r.reason) for r in rejects] == [(2, "missing field")]


def test_a_column_that_cannot_be_a_line_is_an_error_with_its_type(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"k": ["a"], "t": [1], "m": [17], "s": ["r"]}), path)
    with pytest.raises(ConfigError, match="`m` is `int64` and cannot be a line"):
        list(read_file(path, SPEC))
    with pytest.raises(ConfigError, match="no column `n`"):
        resolve(path, RecordSpec(values=(), message="n", key="k", time="t"))


@pytest.mark.parametrize("kind", ["topic", "parquet"])
def test_a_disguised_session_is_a_hash_and_a_disguised_key_takes_its_bytes_along(
    tmp_path: Path, kind: str
) -> None:
    hidden = ("k", "m", "s")
    spec = RecordSpec((), "k", "t", message="m", session="s", pseudonymise=hidden)
    if kind == "topic":
        records = decoded([json.dumps(row).encode() for row in ROWS], spec)
    else:
        records = next(iter(read_file(written(ROWS, tmp_path, kind), spec))).records
    assert [records.word(index, 1) for index in range(3)] == [""] * 3
    assert records.words[0].tolist() == [hash_of(b"GET /a 200"), hash_of(b"r-1")]
    (reject,) = records.rejects
    assert b"r-1" not in (reject.value or b"") + reject.detail.encode()
    disguised = Pseudonyms(HmacKey(b"x" * 32)).replaced(records)
    assert [disguised.word(index, 0) for index in range(2)] == ["GET /a 200", 'said "hi", left']
    assert disguised.key(0).startswith(b"h1_")
    left = disguised.text.tobytes()
    assert b"r-1" not in left
    assert b'"k"' not in left
