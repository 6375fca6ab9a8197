"""Which model versions exist, and how does a reference become a scorer?

A reference is `name` (the newest trained version of that name, else the one that is shipped) or
`name@hash` (exactly that one; a prefix of the hash will do where it is unique). A damaged newest
version is an error and never a silent step back to an older one.
"""

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from raywatch.models.artifact import HASH_HEX, MANIFEST, Artifact, load, peek, save
from raywatch.models.errors import ArtifactError, RaywatchError
from raywatch.models.scorer import LEVELS, Component, Level, Scorer

# Raise a number when the model's arithmetic changes: its version must not stay what it was.
SHIPPED = {"lagbank": 2, "robustz": 1}
# Signal classes that lanes score themselves: `preset:name`.
PRESETS = {"logs": 1, "network": 1, "payments": 1, "traces": 1}
PRESET = "preset:"
SHOWN_MAX = 20  # versions that an error names
KINDS = ("lagbank", "linear", "logs", "network", "payments", "python", "robustz", "traces")


@dataclass(frozen=True, slots=True)
class Entry:
    """One version that can be referred to."""

    version: str
    name: str
    kind: str
    created: int  # Unix milliseconds when it was added to the folder, 0: shipped
    size: int  # bytes
    note: str  # what it was trained on, or what is wrong with it


def shipped(name: str) -> Artifact:
    """A model that comes with raywatch, with default settings. Raises ArtifactError."""
    known = SHIPPED | PRESETS
    if name not in known:
        raise ArtifactError(
            f"`{name}` is not shipped with raywatch", hint=f"shipped are {', '.join(known)}"
        )
    return Artifact(name, name, {}, None, {"shipped": known[name]})


class Registry:
    """The versions of one folder and the shipped ones. A folder that is not there is empty."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def list(self) -> list[Entry]:
        """All versions: shipped ones, then trained ones by name, newest first.

        A damaged one is listed with what is wrong. Weights are not read: `resolve` checks them.
        """
        entries = [
            Entry(shipped(name).version, name, name, 0, 0, "shipped with raywatch")
            for name in SHIPPED
        ]
        found = [_entry(path) for path in self._paths()]
        return entries + sorted(found, key=lambda each: (each.name, -each.created, each.version))

    def resolve(self, reference: str) -> Artifact:
        """The artifact of `name` or `name@hash`. Raises ArtifactError with what exists."""
        if reference.startswith(PRESET):
            return shipped(reference.removeprefix(PRESET))
        name, at, digits = reference.partition("@")
        paths = [path for path in self._paths() if path.parent.name == name]
        if not at:
            if paths:
                return _load(max(paths, key=_created_ns))
            if name in SHIPPED:
                return shipped(name)
            raise self._unknown(reference)
        if name in SHIPPED and digits and shipped(name).hash.startswith(digits):
            return shipped(name)
        # More digits than a folder shows are compared with the whole hash, once it is read.
        fits = [path for path in paths if digits and path.name.startswith(digits[:HASH_HEX])]
        if len(fits) > 1:
            versions = ", ".join(f"{name}@{path.name}" for path in sorted(fits)[:SHOWN_MAX])
            raise ArtifactError(f"`{reference}` fits {len(fits)} versions", hint=versions)
        artifact = _load(fits[0]) if fits else None
        if artifact is None or not artifact.hash.startswith(digits):
            raise self._unknown(reference)
        return artifact

    def add(self, artifact: Artifact) -> Path:
        """Save an artifact and make it the newest of its name. Raises ArtifactError."""
        path = save(artifact, self.folder)
        others = [each for each in self._paths() if each.parent == path.parent and each != path]
        newest = max((_created_ns(each) for each in others), default=0)
        try:
            os.utime(path / MANIFEST)
            if _created_ns(path) <= newest:
                # File systems tell time in steps of milliseconds: two adds within one, or a clock
                # that was set back, must not make the older version the newest.
                os.utime(path / MANIFEST, ns=(newest + 1_000_000, newest + 1_000_000))
        except OSError as error:
            raise ArtifactError(
                f"cannot date `{path}`: {error.strerror or error}",
                hint="check the rights of the folder",
            ) from error
        return path

    def _paths(self) -> "list[Path]":
        try:
            names = [each for each in self.folder.iterdir() if not each.name.startswith(".")]
            return [
                path
                for folder in names
                if folder.is_dir()
                for path in folder.iterdir()
                if path.is_dir() and not path.name.startswith(".")
            ]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise ArtifactError(
                f"cannot read `{self.folder}`: {error.strerror or error}",
                hint="check the rights of the folder",
            ) from error

    def _unknown(self, reference: str) -> ArtifactError:
        versions = [each.version for each in self.list()]
        more = f" and {len(versions) - SHOWN_MAX} more" if len(versions) > SHOWN_MAX else ""
        meant = f"did you mean `{PRESET}{reference}`? " if reference in PRESETS else ""
        return ArtifactError(
            f"no model `{reference[:200]}`",
            hint=f"{meant}there are {', '.join(versions[:SHOWN_MAX])}{more}",
        )


def build(artifact: Artifact, device: str = "cpu") -> Scorer:
    """The scorer of an artifact on a device (`cpu`, `cuda`, `cuda:1`).

    Raises ArtifactError for an unknown kind, settings the model does not take, or a class of the
    user that cannot be imported or does not keep the protocol.
    """
    version, settings = artifact.version, artifact.settings
    if artifact.kind == "lagbank":
        from raywatch.models.lagbank import LagBank

        scorer = _construct(artifact, LagBank, settings)
    elif artifact.kind == "robustz":
        from raywatch.models.robustz import RobustZ

        scorer = _construct(artifact, RobustZ, settings)
    elif artifact.kind == "network":
        from raywatch.models.network import NetworkModel

        scorer = _construct(artifact, NetworkModel, settings)
    elif artifact.kind == "payments":
        from raywatch.models.payments import PaymentsModel

        scorer = _construct(artifact, PaymentsModel, settings)
    elif artifact.kind == "logs":
        from raywatch.models.logs import LogsModel

        scorer = _construct(artifact, LogsModel, settings)
    elif artifact.kind == "traces":
        from raywatch.models.traces import TracesModel

        scorer = _construct(artifact, TracesModel, settings)
    elif artifact.kind == "linear":
        from raywatch.models.linear import Linear

        scorer = Linear(version=version, weights=artifact.weights, device=device)
    elif artifact.kind == "python":
        made = _user_class(artifact)
        rest = {name: value for name, value in settings.items() if name != "class"}
        given = {"weights": artifact.weights, "settings": rest, "device": device}
        scorer = _construct(artifact, made, given)
    else:
        raise ArtifactError(
            f"`{version}` is of kind `{artifact.kind}`", hint=f"kinds are {', '.join(KINDS)}"
        )
    return _checked(artifact, scorer)


def _construct(artifact: Artifact, made: Callable[..., object], given: dict[str, Any]) -> object:
    try:
        return made(version=artifact.version, **given)
    except ArtifactError:
        raise
    except RaywatchError as error:
        raise ArtifactError(
            f"`{artifact.version}` cannot be built: {error.message}", hint=error.hint
        ) from error
    except Exception as error:
        # Whatever a model raises for its settings, the operator must learn which model it was.
        raise ArtifactError(
            f"`{artifact.version}` of kind `{artifact.kind}` cannot be built: "
            f"{type(error).__name__}: {str(error)[:300]}",
            hint=f"its settings are {artifact.settings}",
        ) from error


def _user_class(artifact: Artifact) -> Callable[..., object]:
    """The class `module:Class` of settings["class"]."""
    where: object = artifact.settings.get("class")
    module, _, name = where.partition(":") if isinstance(where, str) else ("", "", "")
    if not module or not name.isidentifier():
        raise ArtifactError(
            f"`{artifact.version}` has `class: {where!r}`", hint="write it as module:Class"
        )
    here = str(Path.cwd())
    if here not in sys.path:  # last: a file here must not take the place of a library
        sys.path.append(here)
    try:
        found: object = getattr(importlib.import_module(module), name)
    except Exception as error:
        # A user's module can raise anything while it is imported.
        raise ArtifactError(
            f"cannot import `{where}` of `{artifact.version}`: {type(error).__name__}: "
            f"{str(error)[:300]}",
            hint="the module must be installed, or lie in the working directory, of every node",
        ) from error
    if not callable(found):
        raise ArtifactError(f"`{where}` of `{artifact.version}` is not a class")
    return found


def _checked(artifact: Artifact, scorer: object) -> Scorer:
    """The scorer, if it keeps the protocol of models/scorer.py. Else ArtifactError."""
    lacks = _lacks(scorer, artifact.version)
    if lacks:
        raise ArtifactError(
            f"`{artifact.version}` does not keep the scorer protocol: {lacks}",
            hint="raywatch.models.scorer.Scorer says what a model must have",
        )
    return cast("Scorer", scorer)


def _lacks(scorer: object, version: str) -> str:
    """The first thing a scorer lacks of the protocol, "" if nothing."""
    if getattr(scorer, "version", None) != version:
        return f"its `version` must be `{version}`"
    if not callable(getattr(scorer, "score", None)):
        return "it has no method `score`"
    levels = _tuple_of(getattr(scorer, "levels", None), Level)
    alone = getattr(scorer, "stage", "") in PRESETS  # its lane has the state that it scores with
    if not levels and not alone:
        return "its `levels` must be a tuple of Level"
    components = _tuple_of(getattr(scorer, "components", None), Component)
    if not components:
        return "its `components` must be a tuple of Component"
    kept = {each.name: each for each in LEVELS}
    for level in levels:
        most = kept.get(level.name)
        if most is None or level.block != most.block or not 0 < level.history <= most.history:
            return f"{level} is not kept, at most {', '.join(map(str, LEVELS))}"
    wrong = next((each for each in components if not 0.0 < each.trust <= 1.0), None)
    if wrong is not None:
        return f"trust in `{wrong.name}` is `{wrong.trust}`, not within 0 and 1"
    names = [each.name for each in components]
    read = [each.name for each in levels]
    if len(set(names)) != len(names) or len(set(read)) != len(read):
        return f"names of levels {read} and components {names} must be unique"
    foreign = sorted({each.level for each in components} - set(read)) if not alone else []
    return f"a component is of the level `{foreign[0]}`, which it does not read" if foreign else ""


def _tuple_of(value: object, kind: type[Any]) -> "tuple[Any, ...]":
    if not isinstance(value, tuple):
        return ()
    each_one = cast("tuple[object, ...]", value)
    return each_one if all(isinstance(each, kind) for each in each_one) else ()


def _load(path: Path) -> Artifact:
    artifact = load(path)
    if artifact.name != path.parent.name:
        raise ArtifactError(
            f"`{path}` holds `{artifact.version}`", hint="it was copied into the folder of another"
        )
    return artifact


def _entry(path: Path) -> Entry:
    created = _created_ns(path) // 1_000_000
    try:
        artifact = peek(path)
        size = sum(each.stat().st_size for each in path.iterdir())
    except (ArtifactError, OSError) as error:
        version = f"{path.parent.name}@{path.name}"
        return Entry(version, path.parent.name, "?", created, 0, f"damaged: {error}")
    if artifact.name != path.parent.name:
        note = f"damaged: it is `{artifact.version}` in the folder of another name"
        return Entry(artifact.version, path.parent.name, artifact.kind, created, size, note)
    return Entry(artifact.version, artifact.name, artifact.kind, created, size, _note(artifact))


def _note(artifact: Artifact) -> str:
    trained = artifact.trained
    if "series" in trained and "values" in trained:
        return f"trained on {trained['series']} series, {trained['values']} values"
    return str(trained.get("note", ""))[:200]


def _created_ns(path: Path) -> int:
    """When a version was added: the time of its manifest, 0 where it has none."""
    try:
        return (path / MANIFEST).stat().st_mtime_ns
    except OSError:
        return 0
