"""Goal: where a config names fields that must not leave, no clear key is in anything that leaves,
and what is said is otherwise what would be said without.

Method: the same stream with anomalies, a silence and bad records goes through a real lane twice,
in the clear and under pseudonyms, and everything that was written (alerts, rejects with headers,
audit, commits' notes, snapshots, counters) is searched for each clear key, and compared. The form
of a pseudonym is computed a second time from RFC 2104's own definition. Then the same as a file,
and over a change of the HMAC key.
"""

import base64
import dataclasses
import hashlib
import json
import pickle
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from command import called
from lanes import World, live, read_all, spec, world

from raywatch.actors import checkpoint
from raywatch.actors.backtest import backtest
from raywatch.actors.decode import decode
from raywatch.actors.flow import Flow
from raywatch.actors.names import Names
from raywatch.actors.partitioner import partition_of
from raywatch.actors.ports import Fetched, Out, Partition
from raywatch.actors.pseudonyms import SECRET_BYTES_MIN, HmacKey, Pseudonyms
from raywatch.actors.records import REASONS, RecordSpec
from raywatch.cluster.config import load
from raywatch.models.errors import EXIT_CHANGE, ConfigError
from raywatch.models.registry import build, shipped
from raywatch.models.scorer import describe
from raywatch.models.settings import MissingSettings

SECRET = b"one that is only for this test.."
OTHER = b"the one that comes after a year."
RECORD = RecordSpec(values=("value",), key="host", time="ts")
HIDDEN = dataclasses.replace(RECORD, pseudonymise=("host",))
BEGIN_MS = 1_700_000_000_000
CANARY = "mary.canary"
KEYS = [f"{CANARY}-{number}@example.org" for number in range(12)]
ROWS = 400
SILENT = KEYS[5]  # from row 300 on
ODD = KEYS[::4]  # off by 30 sigma from row 250 on, for 20 rows


def by_hand(key: bytes, secret: bytes) -> bytes:
    """A pseudonym as docs/security.md defines it: RFC 2104 and RFC 4648 written out."""

    def digits(message: bytes) -> bytes:
        padded = secret.ljust(64, b"\0")
        inner = hashlib.sha256(bytes(b ^ 0x36 for b in padded) + message).digest()
        outer = hashlib.sha256(bytes(b ^ 0x5C for b in padded) + inner).digest()
        return base64.b32encode(outer[:16]).rstrip(b"=").lower()

    return b"h1_" + digits(b"")[:4] + b"_" + digits(key)


def body(key: str, row: int, value: float, **more: Any) -> bytes:
    fields = {"host": key, "ts": BEGIN_MS + row * 1_000, "value": value, **more}
    return json.dumps(fields).encode()


def stream(rows: int = ROWS) -> list[Out]:
    """Rows of all keys in turn: some odd, one that falls silent."""
    drawn = np.random.default_rng(5).normal(size=(rows, len(KEYS)))
    drawn[250:270, ::4] += 30.0
    return [
        Out("in", key.encode(), body(key, row, drawn[row, k]))
        for row in range(rows)
        for k, key in enumerate(KEYS)
        if key != SILENT or row < 300
    ]


def bad() -> list[Out]:
    """A record of each kind that cannot be read, with a clear key where it can stand."""
    key = KEYS[0]
    values: list[bytes | None] = [
        None,
        b"",
        b'{"host": "%s", "ts": 1, "value": 1, "note": "%s"}' % (key.encode(), b"x" * 1_100_000),
        f"GET /{key}".encode(),
        f'{{"host": "{key}"'.encode(),
        f'{{"host": "{key}", "ts": 1, "value": NaN}}'.encode(),
        f'{{"host": "{key}", "ts": 1, "value": 1e999}}'.encode(),
        json.dumps([key]).encode(),
        b"[" * 100_000 + key.encode(),
        json.dumps({"Host": key, "ts": 1, "value": 1}).encode(),  # the field's name is misspelt
        json.dumps({"host": [key], "ts": 1, "value": 1}).encode(),
        json.dumps({"host": key * 100, "ts": 1, "value": 1}).encode(),  # longer than keys may be
        f'{{"host": "{key}\\ud800", "ts": 1, "value": 1}}'.encode(),
        json.dumps({"host": "h", "ts": key, "value": 1}).encode(),  # in the place of another
        json.dumps({"host": "h", "ts": 1, "value": key}).encode(),
        json.dumps({"host": key, "ts": 10**16, "value": 1}).encode(),
        json.dumps({"host": key, "ts": BEGIN_MS * 100, "value": 1}).encode(),
        json.dumps({"host": key, "ts": -1, "value": 1}).encode(),
        json.dumps({"host": key, "ts": 1}).encode(),
    ]
    return [Out("in", KEYS[0].encode(), value) for value in values]


def detector(secret: bytes | None, **changes: Any) -> Any:
    hidden = {} if secret is None else {"record": HIDDEN, "pseudonym": HmacKey(secret)}
    missing = MissingSettings(floor_ms=10_000, records_min=50)
    return spec("d", "in", **{"record": RECORD, "missing": missing, **hidden, **changes})


def lived(secret: bytes | None, **changes: Any) -> tuple[World, Any]:
    """A lane that read the whole stream, bad records between the good ones."""
    there = world()
    records = stream()
    there.log.write([*records[:600], *bad(), *records[600:]])
    lane = live(there, detector(secret, **changes))
    return there, lane


def snapshots(there: World) -> list[bytes]:
    return [there.store.get(name) or b"" for name in there.snapshots()]


def everything(there: World, lane: Any) -> list[bytes]:
    """All that left a lane, as bytes."""
    found: list[bytes] = []
    for topic in ("d.alerts", "d.rejects", "raywatch.audit"):
        found += [out.key + (out.value or b"") for out in read_all(there.log, topic)]
    found += [b"".join(name.encode() + value for name, value in each) for each in rejects(there)]
    commits = there.log.committed("raywatch.d", there.partitions)
    found += [entry.note.encode() for entry in commits.values()]
    found += snapshots(there) + [name.encode() for name in there.snapshots()]
    return [*found, repr(lane.stats).encode(), repr(lane.spec).encode()]


def rejects(there: World) -> list[tuple[tuple[str, bytes], ...]]:
    """Headers of all rejects."""
    at = Partition("d.rejects", 0)
    source = there.log.source("", [at], keys=True)
    try:
        source.assign({at: 0})
        found = source.fetch(10_000, 1.0).headers
    finally:
        source.close()
    return found


def said(there: World, secret: bytes | None) -> Counter[str]:
    """Alerts with keys as `secret` makes them, but for the id, which is made of the key."""
    clear = {key.encode() if secret is None else by_hand(key.encode(), secret): key for key in KEYS}
    found: Counter[str] = Counter()
    for out in read_all(there.log, "d.alerts"):
        if out.key not in clear:
            continue  # under another HMAC key
        fields = json.loads(out.value or b"")
        assert out.key == fields["key"].encode()
        del fields["id"], fields["words"]
        found[json.dumps({**fields, "key": clear[out.key]}, sort_keys=True)] += 1
    return found


# ---- the form -------------------------------------------------------------------------------


def test_a_pseudonym_is_what_the_definition_says() -> None:
    keys = [b"a", CANARY.encode(), bytes(range(256)), b"k" * 5_000]
    found = [each.tobytes() for each in HmacKey(SECRET).of(keys)]
    assert found == [by_hand(key, SECRET) for key in keys]
    assert {len(each) for each in found} == {34}  # h1_ 3, id 4, _ 1, 128 bits in base32: 26
    assert all(each.decode().isprintable() for each in found)


def test_the_hmac_key_shows_in_every_pseudonym_and_itself_in_none() -> None:
    one, other = HmacKey(SECRET), HmacKey(OTHER)
    assert one.prefix != other.prefix
    assert one.of([b"a"]).tobytes()[8:] != other.of([b"a"]).tobytes()[8:]
    shown = repr(one) + repr(detector(SECRET)) + str(one) + f"{one!r:>80}"
    assert SECRET.decode() not in shown
    assert pickle.loads(pickle.dumps(one)) == one  # it does travel to who decodes


def batch(keys: list[bytes]) -> Any:
    count = len(keys)
    values: list[bytes | None] = [json.dumps({"v": 1, "k": k.decode()}).encode() for k in keys]
    rows = np.arange(count)
    fetched = Fetched(rows.astype(np.int32) % 3, rows, np.full(count, 5), values, [])
    return decode(fetched, RecordSpec(values=("v",), key="k", pseudonymise=("k",)))


@pytest.mark.parametrize(("cache_max", "hashed"), [(1_000, 15), (7, 30), (1, 30)])
def test_a_key_is_hashed_once_and_a_full_cache_only_costs_time(cache_max: int, hashed: int) -> None:
    names = Pseudonyms(HmacKey(SECRET), cache_max=cache_max)
    for begin in (0, 5, 0):
        keys = [b"key-%d" % (begin + number) for number in range(10)]
        records = names.replaced(batch(keys))
        assert [records.key(at) for at in range(10)] == [by_hand(key, SECRET) for key in keys]
        assert b"key-" not in records.text.tobytes()
    assert names.hashed == hashed  # 15 distinct keys; where no two batches fit, 3 times 10


def test_an_empty_batch_keeps_no_text() -> None:
    names = Pseudonyms(HmacKey(SECRET))
    records = batch([b"secret-key"])
    none = dataclasses.replace(
        records,
        **{
            name: getattr(records, name)[:0]
            for name in ("partition", "offset", "time_ms", "values", "key_begin", "key_size")
        },
    )
    assert names.replaced(none).text.tobytes() == b""


def test_hashing_costs_a_fraction_of_what_decoding_does() -> None:
    keys = [b"key-%d" % (number % 500) for number in range(20_000)]
    names = Pseudonyms(HmacKey(SECRET))
    records = batch(keys)
    names.replaced(records)
    begin = time.perf_counter()
    for _ in range(5):
        names.replaced(records)
    took_s = (time.perf_counter() - begin) / 5
    assert took_s / 20_000 < 1e-6, took_s  # measured 45 ns; hashing each would be 2,300 ns
    assert names.hashed == 500


# ---- a lane ---------------------------------------------------------------------------------


def test_no_clear_key_leaves_a_lane_and_the_alerts_are_those_of_the_clear_one() -> None:
    clear, plain = lived(None)
    hidden, lane = lived(SECRET)
    # The search finds what is there: a lane in the clear does show its keys, nearly everywhere.
    assert sum(CANARY.encode() in each for each in everything(clear, plain)) > 20
    assert [each[:300] for each in everything(hidden, lane) if CANARY.encode() in each] == []
    assert [each[:300] for each in everything(hidden, lane) if SECRET in each] == []
    assert len(snapshots(hidden)) == len(snapshots(clear)) > 0

    alerts = said(hidden, SECRET)
    assert alerts == said(clear, None)
    rules = {(json.loads(each)["rule"], json.loads(each)["key"]) for each in alerts}
    assert {("anomaly", key) for key in ODD} | {("missing", SILENT)} <= rules


def test_rejects_say_why_and_where_and_carry_no_bytes() -> None:
    clear, _ = lived(None)
    hidden, _ = lived(SECRET)
    named = [dict(each) for each in rejects(hidden)]
    plain = [dict(each) for each in rejects(clear)]
    assert len(named) == len(bad())
    for ours, theirs in zip(named, plain, strict=True):
        assert {n: v for n, v in ours.items() if n not in ("detail", "withheld")} == {
            n: v for n, v in theirs.items() if n != "detail"
        }  # reason, topic, partition, offset and size are the same
        assert ours["withheld"] == b"record.pseudonymise"
        assert "withheld" not in theirs
    assert {each["reason"].decode() for each in named} == set(REASONS) - {"too many keys"}
    assert [out.value for out in read_all(hidden.log, "d.rejects")] == [b""] * len(bad())
    details = {each["detail"].decode() for each in named}
    assert {"`host`", "`value`", "a tombstone", "`ts`", "key `host`"} <= details


def test_a_key_that_finds_no_room_is_rejected_under_its_pseudonym() -> None:
    there, lane = lived(SECRET, keys_max=1, keys_full="reject")
    full = [dict(each) for each in rejects(there) if dict(each)["reason"] == b"too many keys"]
    assert len(full) > 100
    assert all(b"h1_" in each["detail"] for each in full)
    assert [each[:300] for each in everything(there, lane) if CANARY.encode() in each] == []


def test_keys_that_are_forgotten_for_others_leave_no_clear_key_either() -> None:
    there, lane = lived(SECRET, keys_max=2)
    assert [each[:300] for each in everything(there, lane) if CANARY.encode() in each] == []


def test_a_field_that_is_not_the_key_is_withheld_from_rejects_and_the_key_stays() -> None:
    record = dataclasses.replace(RECORD, pseudonymise=("mail",))
    there = world()
    there.log.write([Out("in", b"h1", body("h1", 0, 1.0)), Out("in", b"h1", CANARY.encode())])
    lane = live(there, spec("d", "in", record=record))
    assert [each[:99] for each in everything(there, lane) if CANARY.encode() in each] == []
    state = checkpoint.decode(snapshots(there)[-1])
    assert state is not None
    assert state.arrays["keys.text"].tobytes() == b"h1"


def test_kafkas_own_key_is_called_key() -> None:
    record = RecordSpec(values=("value",), time="ts", pseudonymise=("key",))
    there = world()
    there.log.write([Out("in", KEYS[0].encode(), body("h1", row, 1.0)) for row in range(3)])
    lane = live(there, spec("d", "in", record=record, pseudonym=HmacKey(SECRET)))
    state = checkpoint.decode(snapshots(there)[-1])
    assert state is not None
    assert state.arrays["keys.text"].tobytes() == by_hand(KEYS[0].encode(), SECRET)
    assert [each[:99] for each in everything(there, lane) if CANARY.encode() in each] == []


def test_a_lane_without_the_hmac_key_does_not_begin() -> None:
    model = describe(build(shipped("robustz")))
    with pytest.raises(AssertionError, match="keys would be clear"):
        Flow(spec("d", "in", record=HIDDEN), [], model)


# ---- another HMAC key -----------------------------------------------------------------------


def test_another_hmac_key_reads_the_state_anew_and_nobody_falls_silent() -> None:
    there, records, cut = world(), stream(), 3_000
    there.log.write(records[:cut])
    live(there, detector(SECRET))
    ends = Counter(partition_of(out.key, 4) for out in records[:cut])  # committed so far
    there.log.write(records[cut:])
    lane = live(there, detector(OTHER), epoch="e2")

    whole = world()
    whole.log.write(records)
    live(whole, detector(OTHER))
    expected: Counter[str] = Counter()
    for alert, count in said(whole, OTHER).items():
        where = json.loads(alert)["lineage"]
        if where["offset"] >= ends[where["partition"]]:
            expected[alert] = count
    # To the bit what a lane says that had the new key from the start, from the commit on.
    assert said(there, OTHER) == expected
    assert {json.loads(each)["rule"] for each in expected} == {"anomaly", "missing"}
    newest = checkpoint.decode(snapshots(there)[-1])
    assert newest is not None
    text = newest.arrays["keys.text"].tobytes()
    assert HmacKey(SECRET).prefix not in text
    assert text.count(HmacKey(OTHER).prefix) == len(KEYS) == lane.stats.keys


# ---- a file ---------------------------------------------------------------------------------


def test_a_backtest_writes_the_same_pseudonyms_and_the_same_scores(tmp_path: Path) -> None:
    lines = tmp_path / "in.jsonl"
    junk = [f'{{"host": "{KEYS[0]}"'.encode()]
    lines.write_bytes(b"\n".join([*(out.value or b"" for out in stream()), *junk]) + b"\n")
    scorer = build(shipped("robustz"))
    for name, secret in (("clear", None), ("hidden", SECRET)):
        backtest(
            detector(secret),
            scorer,
            lines,
            tmp_path / f"{name}.parquet",
            alerts=tmp_path / f"{name}.jsonl",
            partitions=4,
        )
    clear = pq.read_table(tmp_path / "clear.parquet")
    hidden = pq.read_table(tmp_path / "hidden.parquet")
    keys = [None if k is None else by_hand(k.encode(), SECRET).decode() for k in column(clear)]
    assert column(hidden) == keys
    for name in ("ts", "score", "p_value", "event_score", "alert"):
        assert hidden.column(name).equals(clear.column(name)), name
    assert CANARY.encode() not in (tmp_path / "hidden.parquet").read_bytes()
    said = (tmp_path / "hidden.jsonl").read_text()
    assert CANARY not in said
    assert said.count("\n") == (tmp_path / "clear.jsonl").read_text().count("\n") > 0


def column(table: Any) -> list[str | None]:
    return table.column("key").to_pylist()


# ---- settings -------------------------------------------------------------------------------

CONFIG = """\
kafka: embedded
detectors:
  - name: hosts
    topics: [events]
    record: {key: host, time: ts, values: [cpu], %s}
    model: robustz
"""


def write(folder: Path, record: str) -> Path:
    path = folder / "it.yaml"
    path.write_text(CONFIG % record)
    return path


@pytest.mark.parametrize(
    ("record", "words"),
    [
        ("pseudonymise: [host]", "belong together"),
        ("pseudonym_key: {env: PSEUDONYM_KEY}", "belong together"),
        ("pseudonymise: [mail], pseudonym_key: {env: PSEUDONYM_KEY}", "belong together"),
        ("pseudonymise: [cpu]", "`cpu` is scored as it is"),
        ("pseudonymise: [ts]", "`ts` is scored as it is"),
    ],
)
def test_settings_that_would_promise_what_they_do_not_keep_are_refused(
    tmp_path: Path, record: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        load(write(tmp_path, record))


def test_the_hmac_key_is_revealed_only_for_who_decodes_and_must_be_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PSEUDONYM_KEY", raising=False)
    text = "pseudonymise: [host], pseudonym_key: {env: PSEUDONYM_KEY}"
    config = load(write(tmp_path, text))
    known = config.spec("hosts")  # for `alerts`, `rejects`, `lag`, `status`: without the key
    assert (known.pseudonym, known.record.pseudonymous) == (None, True)
    with pytest.raises(ConfigError, match="PSEUDONYM_KEY` is empty or not set"):
        config.disguised(known)
    monkeypatch.setenv("PSEUDONYM_KEY", "x" * (SECRET_BYTES_MIN - 1))
    with pytest.raises(ConfigError, match="has 31 bytes, at least 32"):
        config.disguised(known)
    monkeypatch.setenv("PSEUDONYM_KEY", SECRET.decode())
    assert config.disguised(known).pseudonym == HmacKey(SECRET)
    assert SECRET.decode() not in repr(config.disguised(known)) + repr(config)


def test_patterns_never_mean_a_field_that_must_not_leave(tmp_path: Path) -> None:
    text = CONFIG % "pseudonymise: [card]"
    (tmp_path / "it.yaml").write_text(text.replace("[cpu]", "['c*']"))
    config = load(tmp_path / "it.yaml")
    assert config.spec("hosts", Names(("card", "cpu"))).record.values == ("cpu",)
    (tmp_path / "it.yaml").write_text(text.replace("[cpu]", "['c*.*']"))
    config, names = load(tmp_path / "it.yaml"), Names(("card.n",), ("card.age", "cpu.user"))
    # A flat `card.n` is no part of a field `card`; who is `card.age` is.
    assert config.spec("hosts", names).record.values == ("card.n", "cpu.user")


def test_the_command_backtests_under_pseudonyms_and_refuses_without_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PSEUDONYM_KEY", raising=False)
    path = write(tmp_path, "pseudonymise: [host], pseudonym_key: {env: PSEUDONYM_KEY}")
    lines = b"\n".join(b'{"host":"%s","ts":%d,"cpu":1}' % (KEYS[0].encode(), t) for t in range(9))
    (tmp_path / "in.jsonl").write_bytes(lines)
    words = ("backtest", path, tmp_path / "in.jsonl", "--output", tmp_path / "out.parquet")
    refused = called(capsys, *words)
    assert refused.code == EXIT_CHANGE
    assert "PSEUDONYM_KEY" in refused.err
    assert not (tmp_path / "out.parquet").exists()
    monkeypatch.setenv("PSEUDONYM_KEY", SECRET.decode())
    done = called(capsys, *words)
    assert done.code == 0, done.err
    keys = set(column(pq.read_table(tmp_path / "out.parquet")))
    assert keys == {by_hand(KEYS[0].encode(), SECRET).decode()}
    assert CANARY not in done.out + done.err
