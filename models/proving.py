"""Does somebody's scorer keep the contract of scorer.py?

It is given made-up series of three keys, one of them younger than the history that it asks for and
one with missing values, whole, key by key, and cut into batches of many sizes. Its answers must
have the shapes of the contract, and must be the same bits however they were asked for: otherwise a
retry, a replay or another owner would say something else than was said.
"""

import numpy as np

from raywatch.models.errors import ArtifactError
from raywatch.models.history import History
from raywatch.models.scorer import F64, Scorer, Scores, Segments

RECORDS = (1_400, 900, 60)  # of each key
SIZES = (1, 7, 64, 3, 500, 16)  # of batches, in turn
CHANNELS = (1, 2)
SEED = 1


def prove(scorer: Scorer) -> None:
    """Raises ArtifactError that says which rule is broken, and how."""
    for channels in CHANNELS:
        series = _series(channels)
        whole = _run(scorer, series, channels, sizes=(max(RECORDS),))
        for what, other in (
            ("cut into batches", _run(scorer, series, channels, sizes=SIZES)),
            ("alone", _alone(scorer, series, channels)),
        ):
            for name, answer in whole.items():
                for key, (one, two) in enumerate(zip(answer, other[name], strict=True)):
                    if not np.array_equal(one, two, equal_nan=True):
                        unequal = (one != two) & ~(np.isnan(one) & np.isnan(two))
                        at = int(np.flatnonzero(unequal)[0])
                        raise _broken(
                            scorer,
                            f"`{name}` of a key is {one.flat[at]!r} in one batch and "
                            f"{two.flat[at]!r} {what} (series {key}, value {at})",
                            "a score may depend on the segment alone: no state, no other rows",
                        )


def _series(channels: int) -> list[F64]:
    """Seasonal, noisy, with an anomaly; the first one has holes."""
    draw = np.random.default_rng(SEED)
    found: list[F64] = []
    for size in RECORDS:
        at = np.arange(size)[:, np.newaxis]
        values = 50.0 + 10.0 * np.sin(at / 9.0) + draw.standard_normal((size, channels))
        values[size // 2] += 40.0
        found.append(values)
    found[0][draw.random(found[0].shape) < 0.02] = np.nan
    return found


Answers = dict[str, list[F64]]  # part -> of each key, in order


def _run(scorer: Scorer, series: list[F64], channels: int, *, sizes: tuple[int, ...]) -> Answers:
    """All keys together, in batches."""
    history = History(channels)
    history.ensure(len(series))
    told: dict[str, list[list[F64]]] = {}
    done, turn = [0] * len(series), 0
    while any(at < len(values) for at, values in zip(done, series, strict=True)):
        size = sizes[turn % len(sizes)]
        turn += 1
        slots = [key for key, values in enumerate(series) if done[key] < len(values)]
        parts = [series[key][done[key] : done[key] + size] for key in slots]
        counts = np.array([len(part) for part in parts], np.int32)
        appended = history.append(
            np.array(slots, np.int32), counts, np.concatenate(parts), scorer.levels
        )
        for name, key, part in _split(scorer, appended.segments, slots):
            told.setdefault(name, [[] for _ in series])[key].append(part)
        for key, part in zip(slots, parts, strict=True):
            done[key] += len(part)
    return {
        name: [
            np.concatenate(parts, axis=1) if parts else np.zeros((channels, 0)) for parts in keys
        ]
        for name, keys in told.items()
    }


def _alone(scorer: Scorer, series: list[F64], channels: int) -> Answers:
    """Each key by itself."""
    found: Answers = {}
    for values in series:
        for name, parts in _run(scorer, [values], channels, sizes=(len(values),)).items():
            found.setdefault(name, []).extend(parts)
    return found


def _split(scorer: Scorer, segments: Segments, slots: list[int]) -> list[tuple[str, int, F64]]:
    """Score a batch: (part, key, (C, new values))."""
    scores = _asked(scorer, segments)
    level_of = {each.name: each.level for each in scorer.components}
    names = [level.name for level in segments.levels]
    found: list[tuple[str, int, F64]] = []
    for name, flat in (*scores.parts.items(), ("expected", scores.expected), ("lag", scores.lag)):
        level = level_of.get(name, "fine")
        if level not in names:
            continue  # `expected` and `lag` of a model that does not read the fine level
        begin = 0
        for at, slot in enumerate(slots):
            size = segments.channels * int(segments.fresh[names.index(level), at])
            part = flat[begin : begin + size].astype(np.float64)
            found.append((name, slot, part.reshape(segments.channels, -1)))
            begin += size
    return found


def _asked(scorer: Scorer, segments: Segments) -> Scores:
    """What a scorer answers, if it has the form of an answer."""
    before = segments.values.copy()
    try:
        scores = scorer.score(segments)
    except Exception as error:
        # Whatever somebody's model raises is theirs to mend; it must be said which model it was.
        raise _broken(
            scorer, f"`score` raised {type(error).__name__}: {str(error)[:300]}", ""
        ) from error
    if not np.array_equal(before, segments.values, equal_nan=True):
        raise _broken(scorer, "`score` changed the segments that it was given", "copy them first")
    fresh = dict(zip((level.name for level in segments.levels), segments.fresh, strict=True))
    wanted = {c.name: int(fresh[c.level].sum()) * segments.channels for c in scorer.components}
    if set(scores.parts) != set(wanted):
        raise _broken(
            scorer, f"`parts` are {sorted(scores.parts)}, its components {sorted(wanted)}", ""
        )
    fine = int(fresh["fine"].sum()) * segments.channels if "fine" in fresh else None
    shapes = [
        (f"parts[{name!r}]", scores.parts[name], size, np.float32) for name, size in wanted.items()
    ]
    if fine is not None:
        shapes += [
            ("expected", scores.expected, fine, np.float32),
            ("lag", scores.lag, fine, np.int32),
        ]
    for name, array, size, dtype in shapes:
        if array.shape != (size,) or array.dtype != dtype:
            raise _broken(
                scorer,
                f"`{name}` is {array.dtype} of shape {array.shape}",
                f"it has to be {np.dtype(dtype)} of shape ({size},): one for each new value",
            )
    if scores.version != scorer.version:
        raise _broken(scorer, f"`version` of its answer is `{scores.version}`", "pass it on")
    return scores


def _broken(scorer: Scorer, message: str, hint: str) -> ArtifactError:
    return ArtifactError(
        f"`{scorer.version}` does not keep the contract of scorers: {message}",
        hint=hint or "raywatch.models.scorer says what an answer is",
    )
