"""Goal: whatever lies in the audit topic, a supervisor begins, remembers and draws its page.

Method: journal entries, `serve` records and mutants of both are read as a supervisor reads
them; what is taken for an entry is bounded, comes back from its own JSON and can be drawn.
"""

import json
import math
from typing import Any

from fuzz.budget import COUNT, fuzzed
from fuzz.mutate import JSON, mutants
from hypothesis import example, given
from hypothesis import strategies as st
from test_scan import ANY_JSON

from raywatch.actors.checkpoint import note, noted
from raywatch.cluster import rollout
from raywatch.cluster.journal import (
    FIELDS_MAX,
    KINDS,
    TEXT_MAX,
    WORDS_MAX,
    Entry,
    Journal,
    of_json,
    to_json,
)  # fmt: skip
from raywatch.cluster.series import Axis, Chart
from raywatch.cluster.snapshot import marks

MUTANTS = 40
NOW_MS = 1_795_527_806_123
TOKENS = (
    *JSON,
    b'"at_ms":',
    b'"fields":{',
    b'"kind":"fault"',
    b'"label":"x"',
    b'"until_ms":1',
    b"9" * 300,
)

ENTRIES = st.builds(
    Entry,
    at_ms=st.integers(0, 2**45),
    kind=st.sampled_from(KINDS),
    words=st.text(max_size=30),
    fields=st.dictionaries(
        st.sampled_from(["label", "until_ms", "n", "closes"]),
        st.none()
        | st.booleans()
        | st.integers(-(2**53), 2**53)
        | st.text(max_size=9)
        | st.floats(),
        max_size=4,
    ),
)


def read(value: bytes) -> None:
    """As a supervisor reads a record of the audit topic."""
    entry = of_json(value)
    if entry is None:
        return
    assert len(entry.words) <= WORDS_MAX
    assert len(entry.fields) <= FIELDS_MAX
    for name, each in entry.fields.items():
        assert len(name) <= TEXT_MAX
        assert not isinstance(each, str) or len(each) <= TEXT_MAX
        assert not isinstance(each, float) or math.isfinite(each)
        assert not isinstance(each, int) or abs(each) <= 2**63
    entry.words.encode()
    assert of_json(to_json(entry)) == entry
    journal = Journal(bound=4)
    journal.take(entry)
    axis = Axis()
    drawn = marks(list(journal), NOW_MS, axis)
    json.dumps(drawn, allow_nan=False)
    chart = Chart(axis)
    for each in entry.fields.values():
        if isinstance(each, int | float):
            chart.put("x", entry.at_ms, each)
    assert len(chart.values("x", NOW_MS)) == axis.n


@fuzzed("journal", MUTANTS + 1)
@given(ENTRIES, st.integers(0, 2**32))
@example(Entry(0, "info", "x", {"a" * 5_000: "b" * 100_000}), 0)
@example(Entry(0, "info", "\ud800\U00010000", {"\udc00": "\ud83d"}), 0)  # halves of pairs
def test_a_record_of_the_audit_topic_is_an_entry_or_nothing(entry: Entry, seed: int) -> None:
    value = to_json(entry)
    assert of_json(value) is not None
    for each in (value, *mutants(value, seed, MUTANTS, TOKENS)):
        read(each)
    COUNT["journal"] += MUTANTS + 1


@fuzzed("journal", MUTANTS + 1)
@given(st.dictionaries(st.sampled_from(["before", "after", "phase", "why", "person"]), ANY_JSON))
def test_a_rollout_that_was_noted_is_one_or_nothing(fields: dict[str, Any]) -> None:
    found = rollout.of_fields(fields, 1.0)
    assert found is None or isinstance(found.phase, rollout.Phase)
    COUNT["journal"] += 1


@fuzzed("journal", MUTANTS + 1)
@given(st.text(max_size=9), st.integers(0, 2**63), st.integers(0, 2**32))
def test_a_note_of_a_commit_is_one_or_says_nothing(model: str, since: int, seed: int) -> None:
    text = note(model, since, "raywatch.d.0-of-4")
    assert noted(text) == (model, since)
    for each in mutants(text.encode(), seed, MUTANTS, TOKENS):
        name, first = noted(each.decode("utf-8", "replace"))
        assert type(name) is str
        assert first is None or (type(first) is int and first >= 0)
    COUNT["journal"] += MUTANTS + 1
