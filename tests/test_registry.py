"""Goal: a reference means one version, always the same, and what cannot score is refused early.

Method: a folder with known versions, damaged in known ways; models of a user that each lack one
thing of the protocol.
"""

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from raywatch.models.artifact import Artifact, load, save
from raywatch.models.errors import ArtifactError
from raywatch.models.registry import Registry, build, shipped
from raywatch.models.scorer import Segments
from raywatch.models.train import train


def trained(number: int, name: str = "hosts") -> Artifact:
    return Artifact(name, "lagbank", {}, None, {"series": number, "values": 10 * number})


def test_shipped_models_are_there_without_a_folder(tmp_path: Path) -> None:
    registry = Registry(tmp_path / "absent")
    assert [each.name for each in registry.list()] == ["lagbank", "robustz"]
    for name in ("lagbank", "robustz"):
        found = registry.resolve(name)
        assert found == shipped(name)
        assert registry.resolve(found.version) == found
        assert build(found).version == found.version


def test_a_name_is_its_newest_version(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    for number in range(10):  # faster than the file system's clock ticks
        registry.add(trained(number))
        assert registry.resolve("hosts") == trained(number)
    registry.add(trained(3))  # added again: it is the one meant from now on
    assert registry.resolve("hosts") == trained(3)
    entries = registry.list()[2:]
    assert entries[0].version == trained(3).version
    assert len(entries) == 10
    assert entries[0].note == "trained on 3 series, 30 values"
    assert entries[0].size > 0
    assert entries[0].created > 0


def test_a_clock_set_back_does_not_make_an_old_version_the_newest(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    path = registry.add(trained(1))
    future = (path / "manifest.json").stat().st_mtime + 1e6
    os.utime(path / "manifest.json", (future, future))
    registry.add(trained(2))
    assert registry.resolve("hosts") == trained(2)


def test_a_trained_version_goes_before_the_shipped_one_of_its_name(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    mine = trained(1, "lagbank")
    registry.add(mine)
    assert registry.resolve("lagbank") == mine
    assert registry.resolve(shipped("lagbank").version) == shipped("lagbank")


def test_a_hash_may_be_cut_where_it_stays_unique(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    artifacts = [trained(number) for number in range(20)]  # 20 hashes, 16 first digits
    for each in artifacts:
        registry.add(each)
    for each in artifacts:
        assert registry.resolve(each.version) == each
        assert registry.resolve(f"hosts@{each.hash}") == each
        assert registry.resolve(f"hosts@{each.hash[:8]}") == each
    first = [each.hash[0] for each in artifacts]
    twice = next(digit for digit in first if first.count(digit) > 1)
    with pytest.raises(ArtifactError, match=f"fits {first.count(twice)} versions"):
        registry.resolve(f"hosts@{twice}")


@pytest.mark.parametrize(
    "reference", ["nothing", "", "hosts@", "hosts@ffffffffffff", "@", "../hosts", "hosts@../x"]
)
def test_an_unknown_reference_says_what_exists(tmp_path: Path, reference: str) -> None:
    registry = Registry(tmp_path)
    registry.add(trained(1))
    with pytest.raises(ArtifactError, match="no model") as caught:
        registry.resolve(reference)
    for version in (trained(1).version, shipped("lagbank").version, shipped("robustz").version):
        assert version in caught.value.hint


def test_a_class_that_lacks_its_prefix_is_told_with_it(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="no model `network`") as caught:
        Registry(tmp_path).resolve("network")
    assert caught.value.hint.startswith("did you mean `preset:network`? there are lagbank@")


def test_more_digits_than_a_folder_shows_must_fit_too(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.add(trained(1))
    digits = trained(1).hash
    other = digits[:12] + ("0" if digits[12] != "0" else "1")
    with pytest.raises(ArtifactError, match="no model"):
        registry.resolve(f"hosts@{other}")


def test_a_damaged_newest_version_is_an_error_and_listed_with_its_damage(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.add(trained(1))
    path = registry.add(trained(2))
    file = path / "manifest.json"
    date = file.stat().st_mtime
    file.write_text(file.read_text().replace('"values":20', '"values":21'))
    os.utime(file, (date, date))
    with pytest.raises(ArtifactError, match="was edited"):
        registry.resolve("hosts")
    entry = registry.list()[2]
    assert entry.version == trained(2).version
    assert "damaged" in entry.note
    assert "was edited" in entry.note


def test_an_artifact_under_a_foreign_name_is_refused(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    path = save(trained(1), tmp_path)
    (tmp_path / "other").mkdir()
    path.rename(tmp_path / "other" / path.name)
    assert load(tmp_path / "other" / path.name) == trained(1)
    with pytest.raises(ArtifactError, match="holds `hosts@"):
        registry.resolve("other")
    assert "damaged" in registry.list()[2].note


def test_what_else_lies_in_the_folder_is_no_version(tmp_path: Path) -> None:
    registry = Registry(tmp_path)
    registry.add(trained(1))
    (tmp_path / "README").write_text("x")
    (tmp_path / ".cache" / "x").mkdir(parents=True)
    (tmp_path / "hosts" / ".tmp-crashed").mkdir()
    assert len(registry.list()) == 3


@pytest.mark.parametrize(
    ("artifact", "says"),
    [
        (Artifact("a", "lagbank", {"fine_lags": 100}), "`fine_lags` must be a multiple"),
        (Artifact("a", "lagbank", {"fine": 1}), "unexpected keyword argument 'fine'"),
        (Artifact("a", "robustz", {"version": "b"}), "version"),
        (Artifact("a", "linear", {}), "artifact has no weights"),
        (Artifact("a", "forest", {}), "is of kind `forest`"),
    ],
)
def test_what_a_model_does_not_take_is_refused(artifact: Artifact, says: str) -> None:
    with pytest.raises(ArtifactError, match=says):
        build(artifact)


USER = """
import dataclasses
import numpy as np
from raywatch.models.scorer import Component, Level, Scores

class Steps:
    '''The size of the last step.'''
    levels = (Level("fine", 1, 1),)
    components = (Component("step", sustained=True),)

    def __init__(self, *, version, weights, settings, device):
        self.version, self.weights, self.settings, self.device = version, weights, settings, device
        if settings.get("broken"):
            raise ValueError("it is broken")

    def score(self, segments):
        values, begin, fresh = segments.rows(0)
        rows = zip(begin.tolist(), fresh.tolist())
        part = np.concatenate([np.abs(np.diff(values[b : b + 1 + t])) for b, t in rows])
        nothing = np.full(part.shape, np.nan, np.float32)
        return Scores({"step": part}, nothing, np.zeros(part.shape, np.int32), self.version)

class NoScore(Steps):
    score = None

class NoLevels(Steps):
    levels = ()

class ListOfLevels(Steps):
    levels = [Level("fine", 1, 1)]

class TooLong(Steps):
    levels = (Level("fine", 1, 591),)

class OtherBlock(Steps):
    levels = (Level("c4", 8, 10),)

class NoComponents(Steps):
    components = ()

class ForeignComponent(Steps):
    components = (Component("x", "c8"),)

class TwoOfOneName(Steps):
    components = (Component("x"), Component("x"))

class OtherVersion(Steps):
    def __init__(self, **rest):
        super().__init__(**rest)
        self.version = "mine"

number = 5
"""


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    module = "scorer_of_a_user"
    (tmp_path / f"{module}.py").write_text(USER)
    (tmp_path / "torn_of_a_user.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, module, raising=False)
    return module


def test_a_class_of_the_user_is_built_and_scores(user: str) -> None:
    settings = {"class": f"{user}:Steps", "limit": 3}
    artifact = Artifact("mine", "python", settings, b"weights")
    scorer = build(artifact, device="cpu")
    assert scorer.version == artifact.version
    assert scorer.settings == {"limit": 3}  # type: ignore[attr-defined]
    assert scorer.weights == b"weights"  # type: ignore[attr-defined]
    values = np.array([1, 4, 2, 10, 10], np.float32)
    fresh = np.array([[2, 1]], np.int32)
    scores = scorer.score(Segments(1, scorer.levels, fresh, values))
    assert scores.parts["step"].tolist() == [3, 2, 0]  # |4 - 1|, |2 - 4|; |10 - 10|


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("NoScore", "no method `score`"),
        ("NoLevels", "`levels` must be a tuple"),
        ("ListOfLevels", "`levels` must be a tuple"),
        ("TooLong", "is not kept"),
        ("OtherBlock", "is not kept"),
        ("NoComponents", "`components` must be a tuple"),
        ("ForeignComponent", "of the level `c8`"),
        ("TwoOfOneName", "must be unique"),
        ("OtherVersion", "its `version` must be"),
        ("Absent", "cannot import"),
        ("number", "is not a class"),
    ],
)
def test_a_class_that_lacks_something_of_the_protocol_is_refused(
    user: str, name: str, says: str
) -> None:
    with pytest.raises(ArtifactError, match=says):
        build(Artifact("mine", "python", {"class": f"{user}:{name}"}))


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({}, "write it as module:Class"),
        ({"class": "module"}, "write it as module:Class"),
        ({"class": 5}, "write it as module:Class"),
        ({"class": "no_such_module_here:X"}, "cannot import"),
        ({"class": "torn_of_a_user:X"}, "ZeroDivisionError"),
        ({"class": "scorer_of_a_user:Steps", "broken": True}, "ValueError: it is broken"),
    ],
)
def test_a_class_that_cannot_be_had_is_refused(
    user: str, settings: dict[str, object], says: str
) -> None:
    assert user
    with pytest.raises(ArtifactError) as caught:
        build(Artifact("mine", "python", settings))
    assert says in caught.value.message + caught.value.hint


def test_a_trained_linear_model_goes_through_the_registry_to_a_scorer(tmp_path: Path) -> None:
    series = [("a", np.random.default_rng(1).standard_normal(500))]
    artifact = train("linear", "mine", series)
    registry = Registry(tmp_path)
    registry.add(artifact)
    assert build(registry.resolve("mine")).version == artifact.version
