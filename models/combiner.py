"""How likely is it, given a record's features in bins? Learnt from labels as they arrive.

Logistic regression on bins and on pairs of bins, hashed into one table of weights; AdaGrad (Duchi
et al. 2011, JMLR): each weight's step shrinks with the squares of its own past gradients, so that
rare bins keep learning and nothing has to be tuned to the share of what is looked for.

    logit = bias + sum_f w[f, bin_f] + sum_(f, g) w[f, bin_f, g, bin_g]

A record's share of a feature is its own weight and half of each pair's. Loops go by the plan, so
the sum has one order and one result. Collisions are not resolved: 2^16 weights lose nothing that
2^20 find. It knows nothing of what the features are.
"""

import math
from typing import NamedTuple

import numpy as np
from numba import njit

from raywatch.models.scorer import F32, F64, I32, U8

BITS = 16
WEIGHTS = 1 << BITS
STEP = 0.05
BIAS = -5.0  # log-odds before a label came
WEIGHT, SQUARES = range(2)
PARTITION_BYTES = WEIGHTS * 8 + 16


class Model(NamedTuple):
    """What is learnt, of P partitions."""

    weight: F32  # (P, WEIGHTS, 2)
    bias: F64  # (P, 2) the bias and its squares


def fresh(partitions: int) -> Model:
    """A model that has seen no label."""
    weight = np.zeros((partitions, WEIGHTS, 2), np.float32)
    weight[:, :, SQUARES] = 1.0  # the first steps are not larger than STEP
    bias = np.empty((partitions, 2))
    bias[:] = BIAS, 1.0
    return Model(weight, bias)


@njit(cache=True, nogil=True)
def _place(codes: U8, pairs: I32, place: I32) -> None:
    """Where the weights of one record are: features first, then pairs."""
    features = codes.shape[0]
    for f in range(features):
        place[f] = ((f + 1) * 256 + codes[f]) * 0x9E3779B1 & (WEIGHTS - 1)
    for at in range(pairs.shape[0]):
        f, g = pairs[at, 0], pairs[at, 1]
        key = np.uint64(((f * 64 + g + 64) << 16) + codes[f] * 256 + codes[g])
        key *= np.uint64(0x9E3779B97F4A7C15)
        place[features + at] = np.int32((key ^ (key >> np.uint64(29))) & np.uint64(WEIGHTS - 1))


@njit(cache=True, nogil=True)
def judge(model: Model, p: int, codes: U8, pairs: I32, place: I32, share: F32) -> float:
    """The logit of one record. Changes nothing.

    Args:
        model: what was learnt.
        p: partition.
        codes: (F,) bins.
        pairs: (Q, 2) pairs of features.
        place: (F + Q,) room to work in.
        share: out, (F,) what each feature adds.
    """
    _place(codes, pairs, place)
    weight, features = model.weight[p], codes.shape[0]
    logit = model.bias[p, 0]
    for f in range(features):
        share[f] = weight[place[f], WEIGHT]
        logit += weight[place[f], WEIGHT]
    for at in range(pairs.shape[0]):
        each = weight[place[features + at], WEIGHT]
        logit += each
        share[pairs[at, 0]] += 0.5 * each
        share[pairs[at, 1]] += 0.5 * each
    return logit


@njit(cache=True, nogil=True)
def learn(
    model: Model, p: int, codes: U8, pairs: I32, true: bool, times: float, place: I32
) -> None:
    """Take one label into account, that of a record that stands for `times` of its kind."""
    _place(codes, pairs, place)
    weight, bias = model.weight[p], model.bias[p]
    logit = bias[0]
    for at in range(place.shape[0]):
        logit += weight[place[at], WEIGHT]
    gradient = times * (1.0 / (1.0 + math.exp(-logit)) - (1.0 if true else 0.0))
    square = gradient * gradient
    bias[1] += square
    bias[0] -= STEP * gradient / math.sqrt(bias[1])
    for at in range(place.shape[0]):
        row = weight[place[at]]
        row[SQUARES] += square
        row[WEIGHT] -= STEP * gradient / math.sqrt(row[SQUARES])
