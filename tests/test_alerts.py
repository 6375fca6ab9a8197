"""Goal: an alert is the same bytes whenever it is computed, under an id that outlives versions.

Method: alerts made by hand from episodes and silences; their JSON parsed and compared. Windows:
three keys of two channels go through the stages of a lane, in batches of many sizes.
"""

import base64
import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from raywatch.actors.alerts import (
    ANOMALY,
    MISSING,
    SCHEMA,
    WINDOW,
    Window,
    alert_id,
    from_episode,
    from_silence,
)
from raywatch.actors.flow import Flow
from raywatch.actors.noticed import NOTICED
from raywatch.actors.phrases import short
from raywatch.actors.ports import Fetched, Partition
from raywatch.actors.records import RecordSpec
from raywatch.actors.spec import DetectorSpec
from raywatch.actors.windows import Windows
from raywatch.models.decide import Episode
from raywatch.models.linear import Linear
from raywatch.models.missing import Silence
from raywatch.models.registry import build, shipped
from raywatch.models.scorer import F64, ModelSpec, describe
from raywatch.models.settings import DecideSettings

SPEC = DetectorSpec("hosts", ("events",), RecordSpec(("cpu", "mem")), "lagbank")
ORIGIN = (Partition("events", 3), 4_711)
EPISODE = Episode(
    index=5,
    kind="open",
    slot=2,
    since_ms=1_700_000_000_000,
    ordinal=0,
    p=2.5e-8,
    score=float("3.25"),
    event=7.602059991327962,
    component="s",
    channel_share=(0.9, 0.1),
    observed=(97.25, math.nan),
    expected=(41.0 + 1e-12, math.nan),
    lag=144,
    spread=(3.0, math.nan),
    similar_ms=1_699_999_000_000,
    reasons=(("s", 8.5), ("mine", 2.0)),
)
SILENCE = Silence(9, "open", 2, 1_700_000_000_000, 1_700_000_130_000)
AT = 1_700_000_060_000
PINNED = "c201c00f29c31c4a9079d909abeab0bc"


def test_an_alert_says_everything_a_receiver_needs() -> None:
    alert = from_episode(SPEC, b"web-1", AT, ORIGIN, EPISODE, "lagbank@abc")
    body = json.loads(alert.to_json())
    words = body.pop("words")
    assert body == {
        "schema": SCHEMA,
        "id": alert_id("hosts", b"web-1", 1_700_000_000_000, ANOMALY),
        "detector": "hosts",
        "key": "web-1",
        "rule": "anomaly",
        "state": "open",
        "since_ms": 1_700_000_000_000,
        "at_ms": AT,
        "tail_probability": 2.5e-08,
        "score": 3.25,
        "event_score": 7.60205999,
        "component": "s",
        "channels": [
            {
                "name": "cpu",
                "observed": 97.25,
                "expected": 41.0,
                "band": [38.0, 44.0],
                "share": 0.9,
            },
            {"name": "mem", "observed": None, "expected": None, "band": None, "share": 0.1},
        ],
        "lag": 144,
        "similar_ms": 1_699_999_000_000,
        "reasons": [
            {
                "component": "s",
                "noticed": "an unfamiliar short pattern",
                "tail_probability": 3.16227766e-09,
            },
            {"component": "mine", "noticed": "component mine", "tail_probability": 0.01},
        ],
        "model": "lagbank@abc",
        "lineage": {"topic": "events", "partition": 3, "offset": 4_711},
        "run_kind": "live",
        "window": None,
    }
    assert words == (
        "web-1 shows an unfamiliar short pattern: cpu is 97.25, expected 38 to 44; about 1 in 40 "
        "million records of this key look like this, the nearest at 2023-11-14 21:56:40 UTC."
    )


def test_a_value_that_is_usual_by_itself_is_not_said_to_be_unexpected() -> None:
    counted = replace(EPISODE, component="count", observed=(40.0, 8.0))
    words = from_episode(SPEC, b"k", AT, ORIGIN, counted, "m@1").words
    assert "added up: cpu is 40, by itself within 38 to 44; about" in words
    for sums, said in (((0.0, 31.2), "fewer"), ((12.5, 3.0), "more")):
        alert = from_episode(SPEC, b"k", AT, ORIGIN, replace(counted, sums=sums), "m@1")
        came, due = sums
        where = (
            f"{said} of cpu than usual for this hour, {came:g} where {due:g} were due: cpu is 40"
        )
        assert where in alert.words
        assert json.loads(alert.to_json())["counted"] == {"came": came, "due": due}


def test_the_bytes_are_the_same_every_time_and_their_names_are_sorted() -> None:
    one, two = (from_episode(SPEC, b"k", AT, ORIGIN, EPISODE, "m@1").to_json() for _ in range(2))
    assert one == two
    pairs = json.loads(one, object_pairs_hook=lambda items: [name for name, _ in items])
    assert pairs == sorted(pairs)
    assert b"NaN" not in one
    assert b"\n" not in one


def test_noise_in_the_last_bits_of_a_number_does_not_show() -> None:
    other = replace(EPISODE, p=EPISODE.p * (1 + 1e-13), event=EPISODE.event + 1e-12)
    a, b = (from_episode(SPEC, b"k", AT, ORIGIN, e, "m@1").to_json() for e in (EPISODE, other))
    assert a == b


def test_the_id_knows_no_version_no_offset_and_no_state() -> None:
    first = from_episode(SPEC, b"k", AT, ORIGIN, EPISODE, "m@1")
    later = replace(EPISODE, kind="resolved", index=77, p=0.5, component="l")
    moved = (Partition("other", 1), 9)
    assert from_episode(SPEC, b"k", AT + 1, moved, later, "m@2", run_kind="drill").id == first.id


def test_the_id_knows_detector_key_start_rule_and_ordinal() -> None:
    base = ("hosts", b"k", 100, ANOMALY, 0)
    others = [
        ("host", b"sk", 100, ANOMALY, 0),
        ("hosts", b"k1", 100, ANOMALY, 0),
        ("hosts", b"k", 101, ANOMALY, 0),
        ("hosts", b"k", 100, MISSING, 0),
        ("hosts", b"k", 100, ANOMALY, 1),
        ("hosts", b"k", 10, "0anomaly", 0),
    ]
    ids = {alert_id(*parts) for parts in (base, *others)}
    assert len(ids) == 1 + len(others)
    assert all(len(each) == 32 and int(each, 16) >= 0 for each in ids)


def test_the_id_of_today_is_the_id_of_tomorrow() -> None:
    # Pinned: another id would page again for every incident that is open during an upgrade.
    assert alert_id("hosts", b"web-1", 1_700_000_000_000, ANOMALY) == PINNED


def test_a_key_that_is_no_text_travels_as_base64() -> None:
    key = b"\xff\x00k"
    body = json.loads(from_episode(SPEC, key, AT, ORIGIN, EPISODE, "m@1").to_json())
    assert body["key_encoding"] == "base64"
    assert base64.b64decode(body["key"]) == key
    plain = json.loads(from_episode(SPEC, "zürich".encode(), AT, ORIGIN, EPISODE, "m").to_json())
    assert plain["key"] == "zürich"
    assert "key_encoding" not in plain


def test_a_key_cannot_forge_a_line_or_a_colour() -> None:
    words = from_episode(SPEC, b"a\nb\x1b[31m" + b"x" * 500, AT, ORIGIN, EPISODE, "m@1").words
    assert "\n" not in words
    assert "\x1b" not in words
    assert len(words) < 300


def test_in_a_file_there_is_no_lineage_and_nobody_is_paged() -> None:
    body = json.loads(from_episode(SPEC, b"k", AT, None, EPISODE, "m@1").to_json())
    assert body["lineage"] is None
    assert body["run_kind"] == "replay"


def test_the_end_of_an_incident_says_how_long_it_took() -> None:
    one = replace(SPEC, record=RecordSpec(("cpu",)))
    ended = replace(
        EPISODE, kind="resolved", p=0.4, channel_share=(1.0,), observed=(42.0,), expected=(41.0,),
        spread=(3.0,),
    )  # fmt: skip
    words = from_episode(one, b"k", AT + 3_600_000, ORIGIN, ended, "m@1").words
    assert words == "k is no longer strange after 1 h 1 min: cpu is 42, expected 38 to 44."
    lasts = replace(ended, observed=(98.0,))  # what lasts becomes usual, wherever it is
    words = from_episode(one, b"k", AT + 3_600_000, ORIGIN, lasts, "m@1").words
    assert words == "k is no longer strange after 1 h 1 min: cpu is 98."


def test_the_end_of_an_incident_names_no_channel_that_it_was_not_about() -> None:
    ended = replace(EPISODE, kind="resolved", p=0.4, channel_share=(0.1, 0.9), observed=(42.0, 8.0))
    words = from_episode(SPEC, b"k", AT, ORIGIN, ended, "m@1").words
    assert words == "k is no longer strange after 1 min."


@pytest.mark.parametrize(
    ("value", "said"),
    [(9_999.7, "10,000"), (5e6, "5,000,000"), (-0.0, "0"), (-12_345.6, "-12,346"), (1e9, "1e+09")],
)
def test_a_number_is_written_to_be_read(value: float, said: str) -> None:
    assert short(value) == said


def test_what_a_shipped_model_notices_has_words() -> None:
    for model in (build(shipped("lagbank")), build(shipped("robustz")), Linear):
        for component in model.components:
            assert component.name in NOTICED, (model, component)


def test_an_update_says_that_it_got_worse() -> None:
    words = from_episode(SPEC, b"k", AT, ORIGIN, replace(EPISODE, kind="update"), "m@1").words
    assert "worse 1 min on" in words


def test_a_silence_says_since_when_and_for_how_long() -> None:
    alert = from_silence(SPEC, b"web-1", ORIGIN, SILENCE, "m@1")
    assert alert.words == (
        "web-1 has sent nothing for 2 min 10 s, since 2023-11-14 22:13:20 UTC, "
        "while other keys went on."
    )
    body = json.loads(alert.to_json())
    assert (body["rule"], body["state"], body["at_ms"]) == ("missing", "open", SILENCE.at_ms)
    assert body["tail_probability"] is None
    assert body["channels"] == []
    back = from_silence(SPEC, b"web-1", ORIGIN, replace(SILENCE, kind="resolved"), "m@2")
    assert back.id == alert.id
    assert back.state == "resolved"
    assert "sends again after 2 min 10 s" in back.words


@pytest.mark.parametrize(
    ("p", "odds"),
    [
        (0.004, "about 1 in 250 "),
        (1e-5, "about 1 in 100,000 "),
        (2.5e-8, "about 1 in 40 million "),
        (1e-9, "about 1 in 1 billion "),
        (1.001e-12, "about 1 in 1 trillion "),
        (1e-300, "fewer than 1 in a trillion "),
    ],
)
def test_odds_are_said_as_people_say_them(p: float, odds: str) -> None:
    words = from_episode(SPEC, b"k", AT, ORIGIN, replace(EPISODE, p=p), "m@1").words
    assert f"; {odds}records" in words


def test_a_component_without_a_phrase_is_named() -> None:
    words = from_episode(SPEC, b"k", AT, ORIGIN, replace(EPISODE, component="mine"), "m@1").words
    assert "k shows component mine: " in words


# ---- windows --------------------------------------------------------------------------------

ROWS, STEP_MS, KEYS = 900, 250, 3
CLOCKED = DetectorSpec(
    "hosts",
    ("events",),
    RecordSpec(("cpu", "mem"), key="host", time="ts"),
    "lagbank",
    decide=DecideSettings(warmup=300, probability=1e-3),
)


def world() -> F64:
    """(ROWS, KEYS, 2): waves and noise; each key jumps in one channel, and misses some values."""
    rng = np.random.default_rng(5)
    at = np.arange(ROWS)[:, None, None]
    values = 1e4 + 20.0 * np.sin(at / 9.0) + rng.standard_normal((ROWS, KEYS, 2))
    for key in range(KEYS):
        values[600 + 90 * key :, key, key % 2] += 60.0
    values[100:ROWS:97, 1, 0] = math.nan
    return values


def said(values: F64, cuts: Sequence[int], model: ModelSpec | None = None) -> list[dict[str, Any]]:
    """All alerts of the world, its records cut into batches of these sizes, over and over."""
    scorer = build(shipped("lagbank"))
    flow = Flow(CLOCKED, (ORIGIN[0],), model or describe(scorer))
    records = [
        json.dumps({"host": f"h{key}", "ts": STEP_MS * row, "cpu": cpu, "mem": mem}).replace(
            "NaN", "null"
        )
        for row in range(ROWS)
        for key, (cpu, mem) in enumerate(values[row].tolist())
    ]
    alerts: list[dict[str, Any]] = []
    begin, turn = 0, 0
    while begin < len(records):
        part = [each.encode() for each in records[begin : begin + cuts[turn % len(cuts)]]]
        size = len(part)
        offset = np.arange(begin, begin + size)
        fetched = Fetched(np.zeros(size, np.int32), offset, np.full(size, -1), [*part], [])
        batch = flow.prepare(fetched, flow.model, begin={}, end={})
        assert batch.segments is not None
        finished = flow.finish(batch, scorer.score(batch.segments))
        alerts += [json.loads(each.to_json()) for each in finished.alerts]
        begin, turn = begin + size, turn + 1
    return alerts


def test_a_window_holds_the_values_up_to_the_record_and_those_one_lag_before() -> None:
    values = world()
    alerts = [each for each in said(values, [500]) if each["state"] != "resolved"]
    assert {each["key"] for each in alerts} == {"h0", "h1", "h2"}
    for alert in alerts:
        key, row = int(alert["key"][1]), alert["at_ms"] // STEP_MS
        window = alert["window"]
        shares = [each["share"] for each in alert["channels"]]
        channel = shares.index(max(shares))
        assert window["channel"] == ("cpu", "mem")[channel]
        assert window["step_ms"] == STEP_MS
        series = values[:, key, channel]
        filled = series[np.maximum.accumulate(np.where(np.isfinite(series), np.arange(ROWS), 0))]
        # Models see float32 beside the first value; alerts say 9 digits of 10,000.
        assert window["observed"] == pytest.approx(filled[row - 63 : row + 1].tolist(), abs=1e-4)
        assert window["observed"][-1] == pytest.approx(
            alert["channels"][channel]["observed"], abs=1e-4
        )
        lag = alert["lag"]
        if lag == 0:
            assert window["expected"] is None
            assert alert["similar_ms"] is None
            continue
        assert alert["similar_ms"] == alert["at_ms"] - lag * STEP_MS
        past = filled[row - 63 - lag : row + 1 - lag].tolist()
        assert window["expected"] == pytest.approx(past, abs=1e-4)
        expected = alert["channels"][channel]["expected"]
        assert window["expected"][-1] == pytest.approx(expected, abs=1e-4)
    assert any(each["lag"] for each in alerts)


def test_a_window_is_the_same_wherever_batches_are_cut() -> None:
    values = world()
    whole = said(values, [ROWS * KEYS])
    assert any(each["window"] for each in whole)
    for cuts in ([1_000, 7, 300], [31], [700, 64]):
        assert said(values, cuts) == whole


def test_a_key_younger_than_its_window_begins_with_nothing() -> None:
    window = Window("cpu", np.array([math.nan, 1.0 / 3.0]), None, 1_000)
    alert = from_episode(SPEC, b"k", AT, ORIGIN, EPISODE, "m@1", window=window)
    assert json.loads(alert.to_json())["window"] == {
        "channel": "cpu",
        "observed": [None, 0.333333333],
        "expected": None,
        "step_ms": 1_000,
    }


def test_what_is_over_and_what_is_silent_has_no_window() -> None:
    alerts = said(world(), [600])
    assert [each["window"] for each in alerts if each["state"] == "resolved"]
    assert all(each["window"] is None for each in alerts if each["state"] == "resolved")
    silent = from_silence(SPEC, b"web-1", ORIGIN, SILENCE, "m@1")
    assert json.loads(silent.to_json())["window"] is None


def test_a_model_that_looks_back_less_far_gives_no_window() -> None:
    whole = describe(build(shipped("lagbank")))
    flow = Flow(CLOCKED, (ORIGIN[0],), whole)
    assert whole.levels[0].history >= WINDOW - 1
    near = replace(whole, levels=(replace(whole.levels[0], history=WINDOW - 2),))
    record = b'{"host":"h","ts":0,"cpu":1,"mem":2}'
    one = Fetched(np.zeros(1, np.int32), np.zeros(1, np.int64), np.full(1, -1), [record], [])
    batch = flow.prepare(one, near, begin={}, end={})
    assert batch.appended is not None
    episode = replace(EPISODE, index=0, slot=0)
    assert Windows(("cpu", "mem"), batch, batch.appended).of(episode) is None
