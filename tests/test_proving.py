"""Goal: a scorer of somebody's that would break replay or retries is not taken, and it is said why.

Method: one scorer that keeps the contract, and one for each way to break it. The command line is
driven in docs/own-models.md and here.
"""

import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from command import SCRIPT

from raywatch.models.errors import ArtifactError
from raywatch.models.proving import prove
from raywatch.models.registry import SHIPPED, build, shipped
from raywatch.models.scorer import C8, FINE, Component, Level, Scores, Segments

LOCAL = Path(__file__).resolve().parent.parent / "configs" / "local.yaml"

MINE = """
import numpy as np
from raywatch.models.scorer import Component, Level, Scores

class Good:
    levels = (Level("fine", 1, 1),)
    components = (Component("value"),)

    def __init__(self, version, weights, settings, device):
        assert settings in ({}, {"limit": 3}), settings
        self.version = version

    def score(self, segments):
        values, begin, fresh = segments.rows(0)
        at = np.concatenate([np.arange(b, b + n) for b, n in zip(begin, fresh)])
        none = np.zeros(len(at), np.int32)
        return Scores({"value": np.abs(values[at + 1])}, values[at], none, self.version)

class Bad(Good):
    def score(self, segments):
        good = super().score(segments)
        return Scores({}, good.expected, good.lag, self.version)
"""


class Step:
    """|x_t - x_{t-1}|."""

    version = "step@1"
    levels = (Level(FINE.name, FINE.block, 1),)
    components = (Component("step", sustained=True),)

    def score(self, segments: Segments) -> Scores:
        values, begin, fresh = segments.rows(0)
        new = [np.arange(b, b + n) for b, n in zip(begin, fresh, strict=True)]
        at = np.concatenate([np.zeros(0, np.int64), *new])
        step = np.abs(values[at + 1] - values[at])
        return Scores({"step": step}, values[at], np.zeros(len(at), np.int32), self.version)


class Counts(Step):
    seen = 0

    def score(self, segments: Segments) -> Scores:
        self.seen += 1
        scores = super().score(segments)
        parts = {"step": scores.parts["step"] * np.float32(1.0 + 1e-3 * self.seen)}
        return replace(scores, parts=parts)


class LooksAside(Step):
    def score(self, segments: Segments) -> Scores:
        scores = super().score(segments)
        largest = np.nanmax(np.append(scores.parts["step"], np.float32(1.0)))
        return replace(scores, parts={"step": scores.parts["step"] / largest})


class Wide(Step):
    def score(self, segments: Segments) -> Scores:
        scores = super().score(segments)
        return replace(scores, parts={"step": scores.parts["step"].astype(np.float64)})


class Short(Step):
    def score(self, segments: Segments) -> Scores:
        scores = super().score(segments)
        return replace(scores, lag=scores.lag[1:])


class Others(Step):
    def score(self, segments: Segments) -> Scores:
        return replace(super().score(segments), parts={})


class Overwrites(Step):
    def score(self, segments: Segments) -> Scores:
        segments.values[0] = 7.0
        return super().score(segments)


class Raises(Step):
    def score(self, segments: Segments) -> Scores:
        raise KeyError("weights")


class Renamed(Step):
    def score(self, segments: Segments) -> Scores:
        return replace(super().score(segments), version="other@1")


@pytest.mark.parametrize("name", SHIPPED)
def test_what_is_shipped_keeps_the_contract(name: str) -> None:
    prove(build(shipped(name)))


def test_a_scorer_that_keeps_it_is_taken() -> None:
    prove(Step())


@pytest.mark.parametrize(
    ("scorer", "says"),
    [
        (Counts(), "cut into batches"),
        (LooksAside(), "in one batch and"),
        (Wide(), "is float64 of shape"),
        (Short(), "`lag` is int32 of shape"),
        (Others(), r"`parts` are \[\]"),
        (Overwrites(), "changed the segments"),
        (Raises(), "raised KeyError: 'weights'"),
        (Renamed(), "`version` of its answer is `other@1`"),
    ],
)
def test_what_breaks_it_is_said(scorer: Step, says: str) -> None:
    with pytest.raises(ArtifactError, match=says) as caught:
        prove(scorer)
    assert "step@1" in caught.value.message


def test_a_model_that_reads_a_coarse_level_alone_is_judged_by_it() -> None:
    class Coarse(Step):
        levels = (Level(C8.name, C8.block, 1),)
        components = (Component("step", "c8"),)

    prove(Coarse())


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (("nobody:Home",), 2, "cannot import `nobody:Home`"),
        (("mine:Bad",), 2, "does not keep the contract"),
        (("mine:Good", "--weights", "absent"), 2, "cannot read weights from `absent`"),
        (("mine:Good", "--setting", "3"), 2, "no NAME=VALUE"),
        (("mine:Good", "--setting", "class=other"), 2, "no NAME=VALUE"),
        (("mine:Good", "--setting", "limit=3", "--weights", "mine.py"), 0, ""),
    ],
)
def test_models_add(tmp_path: Path, words: tuple[str, ...], code: int, says: str) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    command = [SCRIPT, "models", "add", LOCAL, *words, "--name", "mine"]
    ran = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
    )
    assert ran.returncode == code, (ran.stdout, ran.stderr)
    assert says in ran.stderr
    kept = list((tmp_path / "raywatch-models").glob("mine/*/manifest.json"))
    assert len(kept) == (code == 0)
