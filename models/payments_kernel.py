"""Is this payment fraud, by what was labelled so far?

Records of a partition, in order, are payments and labels. A payment is judged by its features
(payment_features.py) and what was learnt (combiner.py), and then waits, as bins, for its label. It
teaches when the label is there, or when `late_s` have passed in record time without one: then it
was honest. So nothing is learnt from what was not known, and of labels only their order counts.

The first label of a payment counts. One for a payment that does not wait (it never came, or came
too long ago) is counted, and a fraud still raises the risk of its terminal and customer. At most W
payments of a partition wait. When there is no room, one half of them goes, by a hash of the id, and
of those to come one half does not stay; each that is left teaches for two; and so on (`level`).
Payments that look like fraud, RISKY times the usual share, always stay.

Two numbers become -log10 p by the partition's own past (calibrate.py). Until FRAUDS_MIN frauds are
labelled, the amount's deviation from the customer's usual one speaks; from then on the chance of
fraud does, in which the amount has its part:

    rare = r(max(z, 0))            or            r(exp(logit / 4))

A clock that is set by records would let one wrong time stamp end all waiting: it moves by at most
CLOCK_STEP a record, and no record is later than it.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from raywatch.models import calibrate, combiner
from raywatch.models import payment_features as features
from raywatch.models.payment_names import FEATURES, FRAUD, PAYMENT
from raywatch.models.scorer import F32, F64, I32, I64, U8

CLOCK, HEAD, TAIL, LEVEL, SEEN, MATCHED, REPEATED, UNKNOWN, LOST = range(9)  # columns of `total`
TOTAL_COLUMNS = 9
WHO_CUSTOMER, WHO_TERMINAL, WHO_DONE, WHO_LEVEL = range(4)  # columns of `who`
CHANCES, AMOUNTS = range(2)  # components: columns of `rare`
OPEN, DONE = range(2)

FRAUDS_MIN = 20.0  # labelled frauds of the partition before chances of fraud are believed
RISKY = 4.0
LEVEL_MAX = 20  # one in a million payments stays
ROOMY = 8  # the level falls when less than one in so many places is taken
VISITS_FULL = 2  # payments for each cell of `visits` after which all are halved
USUAL_RATE = 1.0 / 2_048.0  # of a payment in what features usually add
CLOCK_STEP = 86_400.0  # seconds: pauses end after a record for each day of them
RATE, EXCESS_RATE = calibrate.rates(20_000.0)


class State(NamedTuple):
    """Everything that is remembered, of C customers, T terminals and P partitions."""

    customer: F64  # (C, CUSTOMER_COLUMNS)
    terminal: F64  # (T, TERMINAL_COLUMNS)
    base: F64  # (P, BASE_COLUMNS)
    total: F64  # (P, TOTAL_COLUMNS)
    calibration: F64  # (P, 2, calibrate.COLUMNS)
    usual: F64  # (P, FEATURES) what each feature adds to the log-odds of most payments
    visits: U8  # (P, V) by hash of customer and terminal; collisions only add visits
    id: I64  # (P, W) of the payments that wait: a ring from TAIL to HEAD
    paid: F64  # (P, W) their times
    who: I32  # (P, W, 4) customer, terminal (-1: forgotten), OPEN or DONE, level (-1: risky)
    codes: U8  # (P, W, FEATURES)
    where: I32  # (P, 2 W) place in the ring by hash of the id, -1: empty; linear probing
    model: combiner.Model


class Batch(NamedTuple):
    """N records in batch order (offset order within each partition)."""

    partition: I32
    kind: U8
    time_s: F64
    id: I64
    customer: I32  # slot; -1 of a label that names none
    terminal: I32
    pair: I64  # hash of both keys: slots are numbered by chance, nothing may depend on them
    amount: F64


class Found(NamedTuple):
    """What is said of them; zeros of labels."""

    before: I64  # (N,) payments of the partition before it
    rare: F64  # (N, 2) -log10 p of the chance of fraud and of the amount; one of them is 0
    chance: F64  # (N,) of fraud, by the labels so far
    x: F64  # (N, FEATURES)
    share: F32  # (N, FEATURES) what each adds to the log-odds of fraud beyond what it usually adds


@njit(cache=True, nogil=True)
def _hash(key: int, size: int) -> int:
    """One of `size` places, a power of two."""
    h = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    return int(np.int64((h ^ (h >> np.uint64(32))) & np.uint64(size - 1)))


@njit(cache=True, nogil=True)
def _find(where: I32, ids: I64, key: int) -> int:
    """Cell of `where` that leads to this id, or the empty one where it would stand."""
    at = _hash(key, where.shape[0])
    while where[at] >= 0 and ids[where[at]] != key:
        at = (at + 1) & (where.shape[0] - 1)
    return at


@njit(cache=True, nogil=True)
def _drop(where: I32, ids: I64, at: int) -> None:
    """Empty a cell and move those behind it up, so that no search ends early."""
    size = where.shape[0]
    where[at] = -1
    next_ = (at + 1) & (size - 1)
    while where[next_] >= 0:
        home = _hash(int(ids[where[next_]]), size)
        if ((next_ - home) & (size - 1)) >= ((next_ - at) & (size - 1)):
            where[at], where[next_] = where[next_], -1
            at = next_
        next_ = (next_ + 1) & (size - 1)


@njit(cache=True, nogil=True)
def index(where: I32, ids: I64, tail: int, head: int) -> None:
    """Find the payments of a ring by their ids again; an id that came twice is the later one."""
    where[:] = -1
    for each in range(tail, head):
        at = each & (ids.shape[0] - 1)
        where[_find(where, ids, int(ids[at]))] = at


@njit(cache=True, nogil=True)
def _label(s: State, p: int, c: int, t: int, paid: float, fraud: bool, weight: float) -> None:
    """What a label says about the two entities; `weight`: payments that it stands for."""
    if c >= 0:
        features.label_customer(s.customer[c], paid, fraud, weight)
    if t >= 0:
        features.label_terminal(s.terminal[t], paid, fraud, weight)
    s.base[p, features.B_LABELS] += weight
    s.base[p, features.B_FRAUDS] += weight if fraud else 0.0


@njit(cache=True, nogil=True)
def _teach(s: State, p: int, at: int, fraud: bool, pairs: I32, place: I32) -> None:
    """A waiting payment's label is known."""
    c, t = s.who[p, at, WHO_CUSTOMER], s.who[p, at, WHO_TERMINAL]
    weight = float(1 << max(s.who[p, at, WHO_LEVEL], 0))
    # All frauds are heard of, whether they stayed or not; of the honest only those that stayed.
    _label(s, p, c, t, s.paid[p, at], fraud, 1.0 if fraud else weight)
    combiner.learn(s.model, p, s.codes[p, at], pairs, fraud, weight, place)
    s.who[p, at, WHO_DONE] = DONE


@njit(cache=True, nogil=True)
def _let_go(s: State, p: int) -> None:
    """The oldest payment waits no more."""
    at = int(s.total[p, TAIL]) & (s.id.shape[1] - 1)
    cell = _find(s.where[p], s.id[p], s.id[p, at])
    if s.where[p, cell] == at:  # an id that came twice leads to the later one
        _drop(s.where[p], s.id[p], cell)
    s.total[p, LOST] += 1.0 if s.who[p, at, WHO_DONE] == OPEN else 0.0
    s.total[p, TAIL] += 1.0


@njit(cache=True, nogil=True)
def _ripen(s: State, p: int, late_s: float, pairs: I32, place: I32) -> None:
    """Payments that nobody complained about for `late_s` were honest."""
    mask = s.id.shape[1] - 1
    while s.total[p, TAIL] < s.total[p, HEAD]:
        at = int(s.total[p, TAIL]) & mask
        if s.paid[p, at] + late_s > s.total[p, CLOCK]:
            return  # one whose label is there stays, too: the label may come twice
        if s.who[p, at, WHO_DONE] == OPEN:
            _teach(s, p, at, False, pairs, place)
        _let_go(s, p)


@njit(cache=True, nogil=True)
def _sampled(key: int, level: int) -> bool:
    """One in 2^level ids; those of a level are among those of the level below."""
    h = np.uint64(key) * np.uint64(0xD6E8FEB86659FD93)
    return np.int64((h ^ (h >> np.uint64(32))) & np.uint64((1 << level) - 1)) == 0


@njit(cache=True, nogil=True)
def _thin(s: State, p: int) -> None:
    """Make room: half of the payments that wait go, and those whose label is there."""
    mask = s.id.shape[1] - 1
    level = min(int(s.total[p, LEVEL]) + 1, LEVEL_MAX)
    s.total[p, LEVEL] = level
    tail, head = int(s.total[p, TAIL]), int(s.total[p, HEAD])
    to = tail
    for each in range(tail, head):
        at, new = each & mask, to & mask
        if s.who[p, at, WHO_DONE] == DONE:
            continue
        if s.who[p, at, WHO_LEVEL] >= 0 and not _sampled(s.id[p, at], level):
            s.total[p, LOST] += 1.0
            continue
        s.id[p, new], s.paid[p, new], s.codes[p, new] = s.id[p, at], s.paid[p, at], s.codes[p, at]
        s.who[p, new] = s.who[p, at]
        if s.who[p, new, WHO_LEVEL] >= 0:
            s.who[p, new, WHO_LEVEL] = level
        to += 1
    s.total[p, HEAD] = to
    index(s.where[p], s.id[p], tail, to)


@njit(cache=True, nogil=True)
def _keep(s: State, p: int, b: Batch, i: int, now: float, codes: U8, risky: bool) -> None:
    """Let a payment wait for its label."""
    size = s.id.shape[1]
    waiting = s.total[p, HEAD] - s.total[p, TAIL]
    if waiting >= size:
        _thin(s, p)
        if s.total[p, HEAD] - s.total[p, TAIL] >= size:  # all look like fraud
            _let_go(s, p)
    elif waiting * ROOMY < size and s.total[p, LEVEL] > 0.0:
        s.total[p, LEVEL] -= 1.0
    level = int(s.total[p, LEVEL])
    if not (risky or _sampled(b.id[i], level)):
        s.total[p, LOST] += 1.0
        return
    at = int(s.total[p, HEAD]) & (size - 1)
    s.id[p, at], s.paid[p, at], s.codes[p, at] = b.id[i], now, codes
    s.who[p, at, WHO_CUSTOMER], s.who[p, at, WHO_TERMINAL] = b.customer[i], b.terminal[i]
    s.who[p, at, WHO_DONE], s.who[p, at, WHO_LEVEL] = OPEN, -1 if risky else level
    s.where[p, _find(s.where[p], s.id[p], b.id[i])] = at
    s.total[p, HEAD] += 1.0


@njit(cache=True, nogil=True)
def _heard(s: State, b: Batch, i: int, late_s: float, pairs: I32, place: I32) -> None:
    """A label came."""
    p, fraud = b.partition[i], b.kind[i] == FRAUD
    at = s.where[p, _find(s.where[p], s.id[p], b.id[i])]
    if at >= 0 and s.who[p, at, WHO_DONE] == OPEN:
        s.total[p, MATCHED] += 1.0
        _teach(s, p, at, fraud, pairs, place)
    elif at >= 0:
        s.total[p, REPEATED] += 1.0
    else:
        s.total[p, UNKNOWN] += 1.0
        if fraud:  # when it was paid is not known: as long ago as labels are late
            _label(s, p, b.customer[i], b.terminal[i], s.total[p, CLOCK] - late_s, True, 1.0)


@njit(cache=True, nogil=True)
def _rare(s: State, p: int, logit: float, z: float, rare: F64) -> None:
    """Judge both numbers by the partition's past, then learn them. `rare`: out, (2,)."""
    # Frauds are a crowd of their own far above the others. Of the odds, their logarithm and powers
    # between, the fourth root has the tail that the calibration describes best.
    root = math.exp(0.25 * logit)
    which = CHANCES if s.base[p, features.B_FRAUDS] >= FRAUDS_MIN else AMOUNTS
    deviation = max(z, 0.0)
    rare[:] = 0.0
    rare[which] = calibrate.judge(s.calibration, p, which, root if which == CHANCES else deviation)
    calibrate.learn(s.calibration, p, CHANCES, root, RATE, EXCESS_RATE)
    calibrate.learn(s.calibration, p, AMOUNTS, deviation, RATE, EXCESS_RATE)


@njit(cache=True, nogil=True)
def _apart(share: F32, usual: F64) -> None:
    """Take off what features add to any payment: an explanation is of what is not so usual."""
    for f in range(FEATURES):
        more = share[f] - usual[f]
        usual[f] += USUAL_RATE * more
        share[f] = more


@njit(cache=True, nogil=True)
def observe(s: State, b: Batch, late_s: float, labelled: bool, pairs: I32, found: Found) -> None:
    """Judge payments and learn labels, in batch order; `labelled`: whether labels can come."""
    codes = np.empty(FEATURES, np.uint8)
    place = np.empty(FEATURES + pairs.shape[0], np.int32)
    for i in range(b.kind.shape[0]):
        p, total = b.partition[i], s.total[b.partition[i]]
        first = total[CLOCK] == 0.0
        step = b.time_s[i] if first else min(b.time_s[i], total[CLOCK] + CLOCK_STEP)
        total[CLOCK] = max(total[CLOCK], step)
        now = min(b.time_s[i], total[CLOCK])
        found.before[i] = int(total[SEEN])
        if b.kind[i] != PAYMENT:
            found.rare[i], found.chance[i], found.x[i], found.share[i] = 0.0, 0.0, 0.0, 0.0
            _heard(s, b, i, late_s, pairs, place)
            continue
        _ripen(s, p, late_s, pairs, place)
        c, t, base, x = s.customer[b.customer[i]], s.terminal[b.terminal[i]], s.base[p], found.x[i]
        pair = _hash(b.pair[i], s.visits.shape[1])
        visits = s.visits[p, pair]
        features.read(c, t, base, visits, now, late_s, b.amount[i], x)
        features.encode(x, codes)
        logit = combiner.judge(s.model, p, codes, pairs, place, found.share[i])
        _apart(found.share[i], s.usual[p])
        chance = 1.0 / (1.0 + math.exp(-logit))
        found.chance[i] = chance
        _rare(s, p, logit, x[features.AMOUNT_Z], found.rare[i])
        features.add(c, t, base, now, b.amount[i], x[features.AMOUNT_RATIO])
        s.visits[p, pair] = min(visits + 1, 255)
        if labelled:
            risky = chance > RISKY * features.usual_share(base)
            _keep(s, p, b, i, now, codes, risky)
        total[SEEN] += 1.0
        if int(total[SEEN]) % (VISITS_FULL * s.visits.shape[1]) == 0:
            s.visits[p] >>= np.uint8(1)
