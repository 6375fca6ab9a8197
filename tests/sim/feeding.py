"""The records of a life, and who writes them.

Telemetry holds anomalies, silences and rejects. Payments hold terminals at which fraud goes on, and
labels that come while the life goes on: most of what they name was paid before, some is named
twice, or never came. A topic of labels has a few payments in it, and that of payments a few labels.
"""

import numpy as np

from raywatch.actors.ports import Partition
from sim.broker import Txn
from sim.faults import Chance
from sim.hub import START_MS
from sim.setup import Setup
from sim.world import World

Record = tuple[float, Partition, bytes, bytes]  # when, where, key, value


def records(made: Setup) -> list[Record]:
    """Every record, in the order in which they are written."""
    return payments(made) if made.spec.labels else telemetry(made)


def telemetry(made: Setup) -> list[Record]:
    """Noise of some keys, a record a second each."""
    rng = np.random.default_rng([made.seed & 0x7FFFFFFF, made.seed >> 31, 1])
    chance = Chance(made.seed, "records")
    count = made.partitions * made.keys
    noise = rng.standard_normal((made.rounds, count))
    for _ in range(2 + count // 2):  # anomalies, late enough to be judged
        key, at = chance.below(count), 26 + chance.below(made.rounds - 28)
        worse = 10.0 ** np.arange(1 + chance.below(3))  # each record stranger: some are updates
        noise[at : at + len(worse), key] += (25.0 + 30.0 * chance.share()) * worse
    silent = {
        chance.below(count): (15 + chance.below(8), 30 + chance.below(made.rounds - 30))
        for _ in range(1 + chance.below(2))
    }
    out: list[Record] = []
    step_s = (made.fed_s - 0.2) / made.rounds
    for at, row in enumerate(noise.tolist()):
        for key, value in enumerate(row):
            begin, end = silent.get(key, (0, 0))
            if begin <= at < end:
                continue
            where = Partition("in", key % made.partitions)
            text = b'{"k":"k%d","t":%d,"v":%.4f}' % (key, START_MS + at * 1_000 + key, value)
            if chance.below(70) == 0:
                text = (text[:-4], b"", b"[1]", text.replace(b'"v"', b'"w"'))[chance.below(4)]
            out.append((0.2 + at * step_s, where, b"k%d" % key, text))
    return out


CUSTOMERS = 7
STEP_MS = 1_200_000  # of record time, between two payments at a terminal


def payments(made: Setup) -> list[Record]:
    """Payments at some terminals, and labels of them."""
    rng = np.random.default_rng([made.seed & 0x7FFFFFFF, made.seed >> 31, 2])
    chance = Chance(made.seed, "records")
    count = made.partitions * made.keys
    amount = np.exp(rng.normal(3.0, 0.5, (made.rounds, count)))
    for _ in range(2 * count):
        amount[chance.below(made.rounds), chance.below(count)] *= 5.0 + 50.0 * chance.share()
    out: list[Record] = []
    step_s = (made.fed_s - 0.2) / made.rounds
    for at, row in enumerate(amount.tolist()):
        for key, value in enumerate(row):
            when, number = 0.2 + at * step_s, key % made.partitions
            one = at * count + key
            named = b'"k":"k%d","t":%d,"id":%d' % (key, START_MS + at * STEP_MS + key, one)
            who = b'"c":"c%d"' % chance.below(CUSTOMERS)
            text = b'{%b,%b,"a":%.2f}' % (named, who, value)
            if chance.below(70) == 0:
                text = (text[:-4], b"", b"[1]", text.replace(b'"a"', b'"b"'))[chance.below(4)]
            topic = made.spec.labels if chance.below(60) == 0 else "in"
            out.append((when, Partition(topic, number), b"k%d" % key, text))
            # At every fourth terminal or so most is fraud; three of four payments get a label.
            fraud = chance.below(10) < (8 if key // made.partitions % 4 == 0 else 2)
            late_s = (0.0, 0.1, 0.4, 1.5)[chance.below(4)] * chance.share()
            if chance.below(4) == 0:
                continue
            if chance.below(40) == 0:
                named = named.replace(b'"id":', b'"id":9')  # nobody paid that
            topic = "in" if chance.below(30) == 0 else made.spec.labels
            text = b'{%b,"f":%b}' % (named, b"true" if fraud else b"false")
            where = Partition(topic, number)
            for _ in range(1 + (chance.below(30) == 0)):
                out.append((min(when + late_s, made.fed_s - 0.01), where, b"k%d" % key, text))
    return sorted(out, key=lambda record: record[0])


class Feeder:
    """Writes the records: plainly or in transactions, some of which are undone.

    Where there are labels, the clock of who leads a partition is off, and somebody else takes over
    at times: then the times of a log may go back. Transactions are short there (`Setup.apart_s`).
    """

    def __init__(self, world: World, made: Setup) -> None:
        self._world, self._made = world, made
        self._chance = Chance(made.seed, "feeder")
        self._clocks = Chance(made.seed, "clocks of brokers")
        self._off_ms: dict[Partition, int] = {}
        self._open: dict[Partition, Txn] = {}
        self._numbers = 0
        left = records(made)
        size = 1 + self._chance.below(3) * made.partitions * made.keys
        for begin in range(0, len(left), size):
            some = left[begin : begin + size]
            world.hub.at(some[-1][0], lambda some=some: self._write(some))
        world.hub.at(left[-1][0] + 0.3, self._close)

    def _write(self, some: list[Record]) -> None:
        topics = self._world.broker.topics
        for _, where, key, value in some:
            part, now = topics[where.topic][where.number], self._now_ms(where)
            dice = self._chance.below(60)
            if dice == 0 and where not in self._open:
                self._numbers += 1
                txn = self._open[where] = Txn(-self._numbers, "feeder", 0, 0)
                if self._made.spec.labels:
                    end = lambda where=where, txn=txn: self._end(where, txn)  # noqa: E731
                    self._world.hub.at(self._made.apart_s, end)
            elif dice == 1:
                part.end += 1 + self._chance.below(3)  # what compaction took before anybody read it
            elif dice == 2 and where not in self._open:  # a producer that changed its mind
                self._numbers += 1
                undone = Txn(-self._numbers, "feeder", 0, 0)
                part.append(now, key, b"undone", (), undone)
                part.mark(undone, commit=False)
            part.append(now, key, value, (), self._open.get(where))
            if where in self._open and self._chance.below(12) == 0:
                self._end(where, self._open[where])

    def _now_ms(self, where: Partition) -> int:
        """What the leader of a partition takes the time for."""
        now = self._world.broker.now_ms()
        if not self._made.spec.labels:
            return now
        if where not in self._off_ms or self._clocks.below(40) == 0:
            most = round(1_000 * self._made.apart_s)
            self._off_ms[where] = self._clocks.below(2 * most + 1) - most
        return now + self._off_ms[where]

    def _end(self, where: Partition, txn: Txn) -> None:
        if self._open.get(where) is txn:
            del self._open[where]
            self._world.broker.topics[where.topic][where.number].mark(txn, commit=True)

    def _close(self) -> None:
        for where, txn in list(self._open.items()):
            self._end(where, txn)
