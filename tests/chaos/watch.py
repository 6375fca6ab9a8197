"""Tails alerts and audit as a reader of committed records, and notes when each came.

    watch.py BOOTSTRAP ALERTS AUDIT                        words on stdin, one JSON line for each

    first {"partitions": [...], "sent": [...], "since_s": S}
                 {"at_s": when the first alert came about a record that was written after, or null}
    heard N      {"heard": [[when, words], ...]}: sentences of the journal from the Nth on

Times are those of the monotonic clock, which all processes of a machine share. Brokers may come
and go.
"""

import json
import select
import sys
import time
from bisect import bisect_left
from typing import Any

import confluent_kafka as ck


class Watch:
    """The consumer and its notes."""

    def __init__(self, bootstrap: str, alerts: str, audit: str) -> None:
        self._consumer: Any = ck.Consumer(
            {
                "bootstrap.servers": bootstrap, "group.id": "chaos.watcher",
                "isolation.level": "read_committed", "enable.auto.commit": False,
                "auto.offset.reset": "earliest", "fetch.wait.max.ms": 20,
                "fetch.queue.backoff.ms": 10, "reconnect.backoff.max.ms": 250, "log_level": 0,
                "topic.metadata.refresh.interval.ms": 2_000,
            }
        )  # fmt: skip
        self._alerts = alerts
        self._consumer.assign(
            [ck.TopicPartition(topic, 0, ck.OFFSET_BEGINNING) for topic in (alerts, audit)]
        )
        self._stamps: list[tuple[float, int, int]] = []  # when, partition, offset of the record
        self._heard: list[tuple[float, str]] = []

    def read(self) -> None:
        """What came in the last moment."""
        for message in self._consumer.consume(500, 0.02):
            if message.error() is not None:
                continue
            now, body = time.monotonic(), json.loads(message.value())
            if message.topic() == self._alerts:
                place = body["lineage"]
                self._stamps.append((now, place["partition"], place["offset"]))
            elif body.get("schema") == "raywatch.journal/1":
                self._heard.append((now, body["words"]))

    def first(self, partitions: list[int], sent: list[int], since_s: float) -> dict[str, Any]:
        """When the first alert came about a record of these that was written after `sent`."""
        for number in range(bisect_left(self._stamps, (since_s, 0, 0)), len(self._stamps)):
            at_s, partition, offset = self._stamps[number]
            if partition in partitions and offset >= sent[partition]:
                return {"at_s": at_s}
        return {"at_s": None}

    def heard(self, start: int) -> dict[str, Any]:
        """Sentences of the journal."""
        return {"heard": self._heard[start:]}


def main() -> None:
    """Read and answer until nobody asks any more."""
    watch = Watch(*sys.argv[1:])
    while True:
        watch.read()
        if not select.select([sys.stdin], [], [], 0.0)[0]:
            continue
        word, _, asked = sys.stdin.readline().strip().partition(" ")
        if not word:
            return  # whoever started us is gone
        question = json.loads(asked)
        answer = watch.first(**question) if word == "first" else watch.heard(question)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
