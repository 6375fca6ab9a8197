"""What the same work costs without a framework: the bars that raywatch is measured against.

    python bench/floors.py consume BOOTSTRAP TOPIC RECORDS     read, nothing else
    python bench/floors.py loop    BOOTSTRAP TOPIC RECORDS     read, parse, z-score per key, alert

One process, one consumer of all partitions, at least once. `loop` is what a careful person writes
by hand: confluent-kafka, msgspec and a dict; an exponentially weighted mean and variance a key
(half-life 100 records), an alert where |z| > 6 after 100 records. Prints one line of JSON.
"""

import json
import resource
import sys
import time

import msgspec
from confluent_kafka import Consumer, Producer, TopicPartition

ALPHA = 1.0 - 0.5 ** (1.0 / 100.0)
QUIET_S = 20.0  # give up after this long without a record


class Event(msgspec.Struct):
    """The fields that the loop needs."""

    key: str
    ts: int
    value: float


def consumer(bootstrap: str, topic: str) -> Consumer:
    """All partitions from their beginning, with the settings that a fast consumer needs."""
    reader = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": f"floor-{time.time_ns()}",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "fetch.queue.backoff.ms": 10,
            "fetch.message.max.bytes": 262_144,
        }
    )
    partitions = reader.list_topics(topic, timeout=10).topics[topic].partitions
    reader.assign([TopicPartition(topic, number, 0) for number in partitions])
    return reader


def main(what: str, bootstrap: str, topic: str, records: int) -> dict[str, float]:
    """Drain `records` records and say what it took."""
    reader = consumer(bootstrap, topic)
    writer = Producer({"bootstrap.servers": bootstrap, "linger.ms": 5})
    decode = msgspec.json.Decoder(Event).decode
    state: dict[str, list[float]] = {}
    seen = alerts = 0
    began = cpu = 0.0
    last = time.monotonic()
    committed = last
    while seen < records and time.monotonic() - last < QUIET_S:
        messages = reader.consume(500, 0.1)
        if not messages:
            continue
        last = time.monotonic()
        if not seen:
            began, cpu = last, _cpu()
        seen += len(messages)
        if what == "loop":
            for message in messages:
                event = decode(message.value())
                entry = state.get(event.key)
                if entry is None:
                    state[event.key] = [1.0, event.value, 0.0]
                    continue
                count, mean, var = entry
                apart = event.value - mean
                if count >= 100 and apart * apart > 36.0 * var:
                    alerts += 1
                    writer.produce("floor.alerts", key=event.key, value=message.value())
                entry[0] = count + 1.0
                entry[1] = mean + ALPHA * apart
                entry[2] = (1.0 - ALPHA) * (var + ALPHA * apart * apart)
            if last - committed > 0.2:
                writer.flush(10)
                reader.commit(asynchronous=True)
                committed = last
    writer.flush(10)
    return {
        "records": seen,
        "seconds": time.monotonic() - began,
        "cpu_s": _cpu() - cpu,
        "alerts": alerts,
    }


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))))
