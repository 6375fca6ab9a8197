"""Goal: the journal forgets the oldest, and what went to the audit topic can be read back.

Method: hand-written entries, there and back through JSON, and records that are none.
"""

import json
import math

import pytest

from raywatch.cluster.journal import WORDS_MAX, Entry, Journal, of_json, to_json


def test_the_newest_entry_comes_first_and_the_oldest_is_forgotten() -> None:
    journal = Journal(bound=3)
    for n in range(5):
        journal.add(1_000 + n, "info", f"entry {n}")
    assert [entry.words for entry in journal] == ["entry 4", "entry 3", "entry 2"]
    assert len(journal) == 3


def test_an_entry_comes_back_from_the_audit_topic_as_it_was() -> None:
    entry = Journal().add(7, "grow", "grow: 3 wanted", label="2 → 3", scorers=3, dry=False, p=None)
    assert of_json(to_json(entry)) == entry
    assert to_json(entry) == to_json(entry)


def test_what_is_no_number_is_null_in_json() -> None:
    entry = Journal().add(7, "info", "no rate yet", rate=math.nan)
    assert json.loads(to_json(entry))["fields"] == {"rate": None}


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"\xff",
        b"[1]",
        b'{"schema":"raywatch.alert/1","at_ms":1,"kind":"info","words":"x","fields":{}}',
        b'{"schema":"raywatch.journal/1","at_ms":"1","kind":"info","words":"x","fields":{}}',
        b'{"schema":"raywatch.journal/1","at_ms":1,"kind":"gossip","words":"x","fields":{}}',
        b'{"schema":"raywatch.journal/1","at_ms":1,"kind":"info","words":"x"}',
    ],
)
def test_other_records_of_the_topic_are_passed_over(value: bytes | None) -> None:
    assert of_json(value) is None


def test_a_fault_gets_its_end_when_it_is_over_and_only_the_newest_one() -> None:
    journal = Journal()
    journal.add(1, "fault", "first", label="flood")
    journal.add(2, "fault", "second", label="flood")
    closed = journal.close("fault", "flood", 9)
    assert closed == Entry(2, "fault", "second", {"label": "flood", "until_ms": 9})
    assert [entry.fields.get("until_ms") for entry in journal] == [9, None]
    assert journal.close("fault", "drought", 9) is None


def test_a_sentence_without_end_is_cut() -> None:
    assert len(Journal().add(1, "info", "x" * 9_999).words) == WORDS_MAX
