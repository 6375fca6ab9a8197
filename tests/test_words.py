"""Goal: a word is one and the same number however it comes: scanned, parsed, or read from a file.

Method: words that hypothesis makes go through the scanner and, behind an escape that it asks about,
through the full parser; through JSON lines, CSV and Parquet; and are compared with a slow hash
written here. Then what is no word, and what of a word that must not be shown is kept.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from classes import written
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raywatch.actors.decode import decode, join
from raywatch.actors.files import read_file, resolve
from raywatch.actors.ports import Fetched
from raywatch.actors.pseudonyms import HmacKey, Pseudonyms
from raywatch.actors.records import Records, RecordSpec
from raywatch.actors.scan import OK, hash_of, scan, wanted
from raywatch.models.errors import ConfigError

SPEC = RecordSpec(values=("x",), words=("w", "v"), key="k", time="t")
MASK = (1 << 64) - 1


def decoded(values: list[bytes], spec: RecordSpec = SPEC) -> Records:
    """The records of a batch of one partition."""
    count = len(values)
    place = np.zeros(count, np.int32), np.arange(count), np.full(count, -1)
    return decode(Fetched(*place, values=list(values), keys=[]), spec)


def mixed(h: int) -> int:
    h = (h ^ h >> 30) * 0xBF58476D1CE4E5B9 & MASK
    h = (h ^ h >> 27) * 0x94D049BB133111EB & MASK
    return h ^ h >> 31


def slow(text: bytes) -> int:
    """The hash, line by line in integers without bounds."""
    if not text:
        return 0
    h = len(text) * 0x9E3779B97F4A7C15 & MASK
    whole = len(text) - len(text) % 8
    for at in range(0, whole, 8):
        h = mixed(h ^ int.from_bytes(text[at : at + 8], "little"))
    h = mixed(mixed(h ^ int.from_bytes(text[whole:], "little")))
    return (h - (1 << 64) if h >> 63 else h) or 1


def text_of(word: Any) -> bytes:
    """What a word stands for."""
    if word is None:
        return b""
    return (str(word).lower() if isinstance(word, bool) else str(word)).encode()


WORDS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | st.text(st.characters(codec="utf-8"), max_size=20)
    | st.sampled_from(["tcp", "", "true", "80", "-0", "a\\b", "null"])
)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=40))
@example(b"12345678")
@example(b"\0")
@example(b"\0\0")
def test_the_hash_is_what_it_says(text: bytes) -> None:
    assert hash_of(text) == slow(text)
    assert (hash_of(text) == 0) == (text == b"")


@settings(max_examples=200, deadline=None)
@given(WORDS, WORDS, st.booleans())
def test_the_scanner_and_the_full_parser_read_the_same_words(w: Any, v: Any, ascii_: bool) -> None:
    plain = json.dumps({"k": "a", "t": 1, "x": 1, "w": w, "v": v}, ensure_ascii=ascii_).encode()
    escaped = plain.replace(b'"a"', b'"\\u0061"', 1)  # only the full parser reads escaped keys
    records = decoded([plain, escaped])
    assert records.rejects == []
    for index in range(2):
        assert records.words[index].tolist() == [slow(text_of(w)), slow(text_of(v))]
        assert [records.word(index, n).encode() for n in range(2)] == [text_of(w), text_of(v)]
        assert records.key(index) == b"a"


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.text(max_size=8) | st.integers() | st.floats() | st.booleans() | st.none(), min_size=1
    ),
    st.integers(0, 40),
    st.sampled_from(b'{}[]",:\\ 019.-eEntu\x00\x1f\xc3\xff'),
)
def test_what_the_scanner_takes_is_what_a_strict_parser_gives(
    words: list[Any], place: int, byte: int
) -> None:
    values: list[bytes] = []
    for word in words:
        value = bytearray(json.dumps({"k": "a", "t": 1, "w": word, "x": 1}).encode())
        value[place % len(value)] = byte
        values.append(bytes(value))
    fields = wanted("k", "t", ("x",), ("w",))
    assert fields is not None
    text, begin, size = join(values, 1 << 20)
    found = scan(text, begin, size, fields, channels=1, key_bytes_max=32, words=1)
    for index in np.flatnonzero(found.status == OK).tolist():
        word = json.loads(values[index]).get("w")
        assert isinstance(word, str | int | type(None)), values[index]
        assert found.words[index, 0] == slow(text_of(word)), values[index]


@pytest.mark.parametrize(
    "word", [b'"tcp"', b"443", b"-7", b"0", b"true", b"false", b"null", b'""', b'"\xc3\xa4"']
)
def test_plain_words_are_taken_by_the_scanner(word: bytes) -> None:
    fields = wanted("k", "t", ("x",), ("w",))
    assert fields is not None
    text, begin, size = join([b'{"k":"a","t":1,"x":1,"w":' + word + b"}"], 1 << 20)
    found = scan(text, begin, size, fields, channels=1, key_bytes_max=32, words=1)
    assert found.status[0] == OK


@pytest.mark.parametrize(
    ("word", "reason"),
    [
        (b"1.5", "wrong type"), (b"1e3", "wrong type"), (b"[1]", "wrong type"),
        (b'{"a":1}', "wrong type"), (b"1e999", "wrong type"), (b"truth", "not JSON"),
        (b"01", "not JSON"), (b'"\\ud800"', "not JSON"), (b"tru", "not JSON"),
        (b"9" * 5_000, "wrong type"), (b"NaN", "not JSON"), (b'"a\nb"', "not JSON"),
    ],
)  # fmt: skip
def test_what_is_no_word_rejects_its_record_and_no_other(word: bytes, reason: str) -> None:
    good = b'{"k":"a","t":1,"x":1,"w":"tcp"}'
    records = decoded([good, b'{"k":"a","t":1,"x":1,"w":' + word + b"}", good])
    assert records.offset.tolist() == [0, 2]
    assert [reject.reason for reject in records.rejects] == [reason]


def test_one_word_is_enough_for_a_record_and_nothing_is_not() -> None:
    values = [
        b'{"k":"a","t":1,"v":"b"}',
        b'{"k":"a","t":1}',
        b'{"k":"a","t":1,"w":"","v":null,"x":null}',
        b'{"k":"\\u0061","t":1,"w":"","v":null,"x":null}',
    ]
    records = decoded(values)
    assert records.offset.tolist() == [0]
    assert records.words.tolist() == [[0, hash_of(b"b")]]
    assert {reject.reason for reject in records.rejects} == {"missing field"}
    only = RecordSpec(values=(), words=("w", "v"), key="k", time="t")
    assert decoded(values, only).values.shape == (1, 0)


def test_texts_are_shown_beside_the_keys_that_kafka_has() -> None:
    values = [b'{"w":"tcp","x":1}', b'{"x":2,"w":"say \\"hi\\""}', b'{"w":"\\ud83d\\ude00"}'] * 20
    place = np.zeros(60, np.int32), np.arange(60), np.full(60, 5)
    keys: list[bytes | None] = [b"host-%d" % at for at in range(60)]
    for spec in (RecordSpec(("x",), words=("w",)), RecordSpec((), message="w")):
        records = decode(Fetched(*place, values=list(values), keys=keys), spec)
        assert [records.key(at) for at in range(60)] == keys
        assert [records.word(at, 0) for at in range(60)] == ["tcp", 'say "hi"', "\U0001f600"] * 20


def test_a_word_may_be_the_key_or_a_channel_too() -> None:
    spec = RecordSpec(values=("x",), words=("k", "x"), key="k", time="t")
    records = decoded([b'{"k":"a","t":1,"x":7}'], spec)
    assert records.words.tolist() == [[hash_of(b"a"), hash_of(b"7")]]
    assert records.key(0) == b"a"


ROWS: list[dict[str, Any]] = [
    {"k": "a", "t": 1, "x": 1.5, "w": "tcp", "v": 80},
    {"k": "b", "t": 2, "x": None, "w": "ä-ö", "v": 443},
    {"k": "a", "t": 3, "x": 2.5, "w": None, "v": None},
    {"k": "c", "t": 4, "x": None, "w": None, "v": None},
    {"k": "c", "t": 5, "x": None, "w": "none", "v": -1},
]


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet"])
@pytest.mark.parametrize("batch", [1, 2, 100])
def test_a_file_gives_the_words_that_a_topic_gives(tmp_path: Path, kind: str, batch: int) -> None:
    live = decoded([json.dumps(row).encode() for row in ROWS])
    pieces = [piece.records for piece in read_file(written(ROWS, tmp_path, kind), SPEC, batch)]
    assert np.concatenate([each.words for each in pieces]).tolist() == live.words.tolist()
    shown = [[r.word(i, n) for n in range(2)] for r in pieces for i in range(len(r))]
    assert shown == [["tcp", "80"], ["ä-ö", "443"], ["", ""], ["none", "-1"]]
    assert [r.key(i) for r in pieces for i in range(len(r))] == [b"a", b"b", b"a", b"c"]
    rejects = [reject for each in pieces for reject in each.rejects]
    assert [(r.offset, r.reason) for r in rejects] == [(3, "missing field")]


def test_booleans_and_categories_of_parquet_are_words(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    named = pa.array(["tcp", None, "udp"]).dictionary_encode()
    columns = {"k": ["a", "b", "c"], "t": [1, 2, 3], "x": [1.0, 2.0, 3.0]}
    pq.write_table(pa.table({**columns, "w": named, "v": [True, None, False]}), path)
    (piece,) = read_file(path, SPEC)
    expected = [[b"tcp", b"true"], [b"", b""], [b"udp", b"false"]]
    assert piece.records.words.tolist() == [[hash_of(w) for w in row] for row in expected]


def test_a_column_that_cannot_be_a_word_is_an_error_with_its_type(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"k": ["a"], "t": [1], "x": [1.0], "w": [1.5], "v": ["b"]}), path)
    with pytest.raises(ConfigError, match="`w` is `double` and cannot be a word"):
        list(read_file(path, SPEC))
    with pytest.raises(ConfigError, match="no column `u`"):
        resolve(path, RecordSpec(values=("x",), words=("u",), key="k", time="t"))


@pytest.mark.parametrize("kind", ["topic", "parquet"])
def test_a_disguised_word_counts_and_is_not_shown(tmp_path: Path, kind: str) -> None:
    spec = RecordSpec(values=("x",), words=("w", "v"), key="k", time="t", pseudonymise=("w", "k"))
    if kind == "topic":
        records = decoded([json.dumps(row).encode() for row in ROWS], spec)
    else:
        records = next(iter(read_file(written(ROWS, tmp_path, kind), spec))).records
    assert [records.word(index, 0) for index in range(4)] == [""] * 4
    assert records.words[0].tolist() == [hash_of(b"tcp"), hash_of(b"80")]
    hidden = Pseudonyms(HmacKey(b"x" * 32)).replaced(records)
    assert [hidden.word(index, 1) for index in range(4)] == ["80", "443", "", "-1"]
    assert hidden.key(0).startswith(b"h1_")
    left = hidden.text.tobytes()
    assert b"tcp" not in left
    assert b'"k"' not in left


def test_records_that_are_left_out_take_their_words_along() -> None:
    records = decoded([json.dumps(row).encode() for row in ROWS])
    some = records.kept(np.array([1, 3]), [])
    assert some.words.tolist() == records.words[[1, 3]].tolist()
    assert [some.word(index, 0) for index in range(2)] == ["ä-ö", "none"]
