"""Goal: each session that is strange while an incident is open is named by an alert of it.

Method: three broken sessions in one incident (a long `quiet` keeps it open until all have ended),
through a whole flow, however it is cut and behind a snapshot; more than there is room for, by
themselves.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_logs import BROKEN, BROKEN_LENGTH, LINES, MODEL, RECORD, backtested, detector

from raywatch.actors.alerts import Alert
from raywatch.actors.logs import LogsFlow
from raywatch.actors.ports import Fetched, Partition
from raywatch.actors.stages import flow_of
from raywatch.models.errors import ArtifactError
from raywatch.models.incident import OPENED, RESOLVED, UPDATED
from raywatch.models.log_sessions import ID_BYTES
from raywatch.models.settings import DecideSettings
from raywatch.models.strange_sessions import NAMED, Ends, StrangeSessions

BROKEN_ONES = [f"r-{BROKEN + 2 * each}" for each in range(BROKEN_LENGTH)]
HOME = Partition("in", 0)
DECIDE = DecideSettings(probability=1e-4, warmup=300, quiet=600)


def fresh() -> LogsFlow:
    flow = flow_of(detector(decide=DECIDE), [HOME], MODEL)
    assert isinstance(flow, LogsFlow)
    return flow


def said(flow: LogsFlow, begin: int, end: int, size: int) -> list[Alert]:
    """Alerts of rows, in batches of `size`."""
    alerts: list[Alert] = []
    for at in range(begin, end, size):
        part = LINES[at : min(at + size, end)]
        count = len(part)
        where = np.zeros(count, np.int32), np.arange(at, at + count), np.full(count, -1)
        batch = flow.prepare(Fetched(*where, list(part), []), MODEL, begin={}, end={})
        alerts += flow.finish(batch, None).alerts
    return alerts


def names(alerts: list[Any]) -> list[str]:
    return [each["session"] for alert in alerts for each in alert["sessions"]["strange"]]


def test_each_strange_session_of_an_incident_is_named_once(tmp_path: Path) -> None:
    _, alerts = backtested(tmp_path, decide=DECIDE)
    mine = [alert for alert in alerts if set(names([alert])) & set(BROKEN_ONES)]
    assert len({alert["id"] for alert in mine}) == 1  # one incident
    whole = [alert for alert in alerts if alert["id"] == mine[0]["id"]]
    assert [whole[0]["state"], whole[-1]["state"]] == ["open", "resolved"]
    found = names(whole)
    assert sorted(set(found) & set(BROKEN_ONES)) == sorted(BROKEN_ONES)
    assert len(found) == len(set(found)) == whole[-1]["sessions"]["total"]
    shown = [a for a in whole if a["component"] == "session" and a["state"] != "resolved"]
    assert len(shown) < BROKEN_LENGTH  # else the lines of alerts would name them all
    assert all(alert["line"]["session"] in names([alert]) for alert in shown)
    for alert in whole:
        assert alert["sessions"]["more"] == 0
        assert all(0.0 < e["tail_probability"] <= 1e-2 for e in alert["sessions"]["strange"])
        assert all(e["records"] == 21 for e in alert["sessions"]["strange"])
    assert f" Strange sessions: {len(found)}" in whole[-1]["words"]


WHOLE = [alert.to_json() for alert in said(fresh(), 0, len(LINES), len(LINES))]


@pytest.mark.parametrize("size", [97, 1_000])
def test_where_batches_are_cut_changes_no_name(size: int) -> None:
    assert sum(len(json.loads(each)["sessions"]["strange"]) for each in WHOLE) >= BROKEN_LENGTH
    assert [each.to_json() for each in said(fresh(), 0, len(LINES), size)] == WHOLE


def test_names_go_on_from_a_snapshot_in_the_middle_of_an_incident() -> None:
    first = fresh()
    at, alerts = 0, list[Alert]()
    while not first.strange.state()["records"].size:  # until a name waits for the next alert
        assert at < len(LINES), "none did"
        alerts += said(first, at, at + 50, 50)
        at += 50
    second = fresh()
    second.load(first.snapshot({HOME: at}))
    assert second.strange.state()["slot"].tolist() == first.strange.state()["slot"].tolist()
    alerts += said(second, at, len(LINES), 500)
    assert [each.to_json() for each in alerts] == WHOLE


def test_a_detector_without_sessions_says_nothing_of_them(tmp_path: Path) -> None:
    _, alerts = backtested(tmp_path, record=replace(RECORD, session=None))
    assert alerts
    assert all("sessions" not in alert for alert in alerts)


def ended(count: int, index: int = 1) -> Ends:
    ids = np.zeros((count, ID_BYTES), np.uint8)
    ids[:, 0] = ord("a") + np.arange(count) % 26
    return Ends(
        np.full(count, index),
        np.zeros(count, np.int32),
        ids,
        np.arange(count),
        np.full(count, 1e-9),
        np.zeros(count, np.bool_),
    )


def steps(*kinds: int) -> Any:
    return np.array([[at, kind, 0, 0, 0] for at, kind in enumerate(kinds, 1)], np.int64).reshape(
        -1, 5
    )


SLOTS = np.zeros(4, np.int32)


def test_more_than_there_is_room_for_are_counted() -> None:
    state = StrangeSessions(DecideSettings().probability)
    state.follow(ended(5, 0), SLOTS, steps(OPENED))  # before the incident: not its own
    (none,) = state.follow(ended(NAMED + 7, 2), SLOTS, steps(UPDATED))
    assert none == ((), 0, 0)
    updated, resolved = state.follow(ended(2, 2), SLOTS, steps(UPDATED, RESOLVED))
    assert (len(updated.named), updated.more, updated.total) == (NAMED, 7, NAMED + 7)
    assert ([each.session for each in resolved.named], resolved.total) == ([b"a", b"b"], NAMED + 9)
    assert state.state()["slot"].size == 0


def test_a_key_that_is_forgotten_is_told_of_no_more() -> None:
    state = StrangeSessions(1e-5)
    state.follow(ended(3, 2), SLOTS, steps(OPENED))
    assert state.state()["count"].tolist() == [[3, 0, 3]]
    state.forget(np.array([0, 5]))
    assert state.state()["count"].size == 0


@pytest.mark.parametrize(
    ("name", "value"), [("count", -1), ("count", 50), ("p", 2.0), ("records", -3), ("slot", -1)]
)
def test_a_state_that_cannot_be_is_refused(name: str, value: float) -> None:
    state = StrangeSessions(1e-5)
    state.follow(ended(3, 2), SLOTS, steps(OPENED))
    saved = state.state()
    StrangeSessions(1e-5).load(saved)
    saved[name].flat[0] = value
    with pytest.raises(ArtifactError):
        StrangeSessions(1e-5).load(saved)
