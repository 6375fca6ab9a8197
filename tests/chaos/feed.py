"""Writes synthetic telemetry to a topic at a rate, in a process of its own, and notes all of it.

    feed.py BOOTSTRAP TOPIC FILE PARTITIONS RATE SEED      words on stdin, one JSON line for each

    mark         {"sent": [records of each partition so far]}
    rate R       R records a second from now on
    more N       N partitions more: keys of their own are written to them
    pause        nothing more, and all is durable: {"sent": ...}
    go           on again
    stop         as pause, then the end

A key has one partition for ever, whatever the topic grows to. Nobody else writes to the topic and
the producer is idempotent, so the n-th record of a partition has offset n. FILE gets the values in
the order in which they were written, one a line. A broker that is away is waited for.
"""

import json
import select
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import confluent_kafka as ck

from raywatch.models.synthetic import Stream, to_json

KEYS = 250
EXTRA_KEYS = 6  # of each partition that is added
EXTRA_SHARE = 0.02  # of the rate
TICK_S = 0.02
BEHIND_S = 2.0  # more than so much is not caught up: a pause is no reason for a flood
FLUSH_S = 120.0


def place(key: str, partitions: int) -> int:
    """The partition of a key, among those there were at the beginning, or that it is named for."""
    name, _, added = key.partition("@")
    return int(added) if added else zlib.crc32(name.encode()) % partitions


def records(seed: int, keys: int, suffix: str = "") -> Iterator[tuple[str, bytes]]:
    """An endless stream of (key, value)."""
    stream = Stream(keys=keys, seed=seed, injections=("spike", "level"), quiet=512)
    number = 0
    while True:
        table = stream.chunk(number)
        names = [f"{name}{suffix}" for name in table.names]
        if suffix:
            values = [
                b'{"host":"%b","ts":%d,"value":%a}' % (names[k].encode(), t, v)
                for k, t, v in zip(
                    table.key.tolist(), table.time_ms.tolist(), table.value.tolist(), strict=True
                )
            ]
        else:
            values = to_json(table)
        yield from zip((names[k] for k in table.key.tolist()), values, strict=True)
        number += 1


class Feed:
    """The producer and its notes."""

    def __init__(self, bootstrap: str, topic: str, file: Path, partitions: int, seed: int) -> None:
        self._producer: Any = ck.Producer(
            {
                "bootstrap.servers": bootstrap,
                "enable.idempotence": True,
                "acks": "all",
                "linger.ms": 5,
                "compression.type": "lz4",
                "message.timeout.ms": 0,
                "queue.buffering.max.messages": 5_000_000,
                "queue.buffering.max.kbytes": 2_000_000,
                "reconnect.backoff.max.ms": 500,
                "log_level": 2,
                "on_delivery": self._delivered,
                "delivery.report.only.error": True,
            }
        )
        self._topic, self._seed, self._base = topic, seed, partitions
        self._file = file.open("wb")
        self._streams = [records(seed, KEYS)]
        self._places: dict[str, int] = {}
        self.sent = [0] * partitions

    def _delivered(self, error: Any, message: Any) -> None:
        print(json.dumps({"error": str(error)}), flush=True)
        sys.exit(1)  # the notes would no longer be true

    def more(self, count: int) -> None:
        """Partitions that were added: the client has to have heard of them first."""
        until = time.monotonic() + FLUSH_S
        while len(self._known()) < len(self.sent) + count:
            assert time.monotonic() < until, "the client does not learn of partitions that came"
            time.sleep(0.1)
        for number in range(len(self.sent), len(self.sent) + count):
            self._streams.append(records(self._seed + number, EXTRA_KEYS, f"@{number}"))
            self.sent.append(0)

    def _known(self) -> Any:
        return self._producer.list_topics(self._topic, 10.0).topics[self._topic].partitions

    def write(self, count: int) -> None:
        """The next records of all streams."""
        self._write(self._streams[0], count)
        for stream in self._streams[1:]:
            self._write(stream, max(1, int(EXTRA_SHARE * count)))
        self._producer.poll(0)

    def _write(self, stream: Iterator[tuple[str, bytes]], count: int) -> None:
        places, sent, produce = self._places, self.sent, self._producer.produce
        lines: list[bytes] = []
        for _ in range(count):
            key, value = next(stream)
            partition = places.get(key)
            if partition is None:
                partition = places[key] = place(key, self._base)
            while True:
                try:
                    produce(self._topic, value, key.encode(), partition)
                    break
                except ck.KafkaException:  # metadata from a broker that does not know it yet
                    self._known()
            sent[partition] += 1
            lines.append(value)
        lines.append(b"")
        self._file.write(b"\n".join(lines))

    def flush(self) -> None:
        """All is durable."""
        left = self._producer.flush(FLUSH_S)
        assert left == 0, f"{left} records could not be written within {FLUSH_S} s"
        self._file.flush()


def main() -> None:
    """Write until told to stop."""
    bootstrap, topic, file, partitions, rate, seed = sys.argv[1:]
    feed = Feed(bootstrap, topic, Path(file), int(partitions), int(seed))
    per_s, due, on, before = float(rate), 0.0, True, time.monotonic()
    while True:
        ready, _, _ = select.select([sys.stdin], [], [], TICK_S)
        word, _, number = sys.stdin.readline().strip().partition(" ") if ready else ("", "", "")
        if ready and not word:
            return  # whoever started us is gone
        match word:
            case "rate":
                per_s = float(number)
            case "more":
                feed.more(int(number))
            case "go":
                on, before, due = True, time.monotonic(), 0.0
            case "pause" | "stop":
                on = False
                feed.flush()
        if word:
            print(json.dumps({"sent": feed.sent}), flush=True)
        if word == "stop":
            return
        now = time.monotonic()
        due = min(due + per_s * (now - before), BEHIND_S * per_s)
        before = now
        if on and due >= 1.0:
            feed.write(int(due))
            due -= int(due)


if __name__ == "__main__":
    main()
