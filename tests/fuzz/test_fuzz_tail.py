"""Goal: whatever lies in the alerts and rejects topics, `tail` prints a line and the page is drawn.

Method: real alerts and rejects and mutants of them, through everything that reads these topics.
"""

import json
from typing import Any

from fuzz.budget import COUNT, fuzzed
from fuzz.mutate import JSON, mutants
from hypothesis import given
from hypothesis import strategies as st

from raywatch.actors.ports import Partition
from raywatch.cluster import reader
from raywatch.cluster.commands import alerts, rejects
from raywatch.cluster.series import Axis
from raywatch.cluster.snapshot import build, open_alerts
from raywatch.cluster.tail import Entry
from raywatch.cluster.views import ClusterView, Observed, PoolView

MUTANTS = 40
NOW_MS = 1_795_527_806_123
ALERT = {
    "at_ms": NOW_MS - 1_000, "channels": [
        {"expected": 1.5, "name": "cpu", "observed": 97.25, "share": 1.0},
        {"expected": None, "name": "mem", "observed": None, "share": 0.0},
    ], "component": "s", "detector": "hosts", "event_score": 6.5, "id": "0" * 32, "key": "web-1",
    "lag": 60, "lineage": {"offset": 7, "partition": 0, "topic": "events"}, "model": "lagbank@1",
    "ordinal": 0, "rule": "anomaly", "run_kind": "live", "schema": "raywatch.alert/1",
    "score": 3.25, "since_ms": NOW_MS - 2_000, "state": "open", "tail_probability": 1e-7,
    "window": {"channel": "cpu", "expected": [1.0, None, 2.0], "observed": [1.0, 2.0, 97.25],
               "step_ms": 1000},
    "words": "web-1 shows an unusual value",
}  # fmt: skip
VALUE = json.dumps(ALERT).encode()
TOKENS = (
    *JSON,
    b"9" * 300,
    b"9" * 19,
    b"-1",
    b'"window":',
    b'"observed":[',
    b'"step_ms":',
    b'"id":',
)
CALM = Observed(ClusterView("r", "1", "abc", 1.0), PoolView(1, 2, 0.75))
HEADERS = st.dictionaries(
    st.sampled_from(["reason", "detail", "topic", "partition", "offset", "size", "odd"]),
    st.none() | st.binary(max_size=12) | st.sampled_from([b"7", b"9" * 5_000, b"\xd9\xa3", b"-1"]),
)


def shown(value: bytes | None) -> None:
    """As `raywatch alerts tail` and the page show a record of the alerts topic."""
    found = alerts.parsed(value)
    json.dumps({**found, "log": {"partition": "a/0", "offset": 1}}, default=str)
    assert "\n" not in alerts.sentence(found)
    alert = reader._object(value)
    if alert is None:
        return
    views = open_alerts([{**alert, "detector": "hosts"}])
    seen = Observed(CALM.cluster, CALM.pool, alerts=views)
    json.dumps(build(seen, NOW_MS, Axis()), allow_nan=False)


@fuzzed("tail", MUTANTS + 1)
@given(st.integers(0, 2**32))
def test_a_record_of_the_alerts_topic_is_one_line_and_the_page_is_drawn(seed: int) -> None:
    for each in (None, VALUE, *mutants(VALUE, seed, MUTANTS, TOKENS)):
        shown(each)
    COUNT["tail"] += MUTANTS + 2


@fuzzed("tail", MUTANTS + 1)
@given(HEADERS, st.none() | st.binary(max_size=200) | st.text(max_size=90).map(str.encode))
def test_a_record_of_the_rejects_topic_is_one_line(
    headers: dict[str, Any], value: bytes | None
) -> None:
    entry = Entry(Partition("d.rejects", 0), 3, -1, None, value, headers)
    found = rejects.described(entry)
    json.dumps(found, allow_nan=False)
    line = rejects.sentence(found)
    assert all(each.isprintable() for each in line), line
    COUNT["tail"] += 1
