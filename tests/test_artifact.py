"""Goal: a model version is its content, and a damaged copy never becomes a model.

Method: artifacts are written, packed and damaged byte by byte; every damage must be named.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from raywatch.actors.scorer import ScorerHost
from raywatch.models import artifact as module
from raywatch.models.artifact import (
    Artifact,
    load,
    pack,
    peek,
    proven,
    save,
    tensors_from_bytes,
    tensors_to_bytes,
    unpack,
)
from raywatch.models.errors import ArtifactError
from raywatch.models.registry import Registry, build

WEIGHTS = bytes(range(256)) * 8


def example(**changes: object) -> Artifact:
    fields: dict[str, object] = {
        "name": "hosts",
        "kind": "linear",
        "settings": {"ridge": 0.01, "levels": (1, 2)},
        "weights": WEIGHTS,
        "trained": {"series": 3},
    }
    return Artifact(**(fields | changes))  # type: ignore[arg-type]


def test_same_content_has_the_same_version_whatever_the_order_of_settings() -> None:
    one = example(settings={"a": 1, "b": [2, 3]})
    other = example(settings={"b": (2, 3), "a": 1})
    assert one == other
    assert one.version == other.version
    assert one.version.startswith("hosts@")
    assert len(one.version) == len("hosts@") + 12


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "host"},
        {"kind": "python"},
        {"settings": {"ridge": 0.02}},
        {"weights": WEIGHTS[:-1]},
        {"weights": WEIGHTS[:-1] + b"\x00"},
        {"weights": None},
        {"weights": b""},
        {"trained": {"series": 4}},
    ],
)
def test_any_other_content_has_another_version(changes: dict[str, object]) -> None:
    assert example(**changes).hash != example().hash


def test_an_artifact_comes_back_from_disk_and_blob_as_it_was(tmp_path: Path) -> None:
    for given in (example(), example(weights=None), example(weights=b"")):
        path = save(given, tmp_path)
        assert path == tmp_path / "hosts" / given.hash[:12]
        assert load(path) == given
        assert load(path).hash == given.hash
        assert peek(path).version == given.version
        assert unpack(pack(given)) == given


def test_saving_twice_changes_nothing_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = save(example(), tmp_path)
    before = (path / "manifest.json").stat().st_mtime_ns
    assert save(example(), tmp_path) == path
    assert (path / "manifest.json").stat().st_mtime_ns == before
    assert [each.name for each in path.parent.iterdir()] == [path.name]


SAVER = """
import sys
from pathlib import Path
from raywatch.models.artifact import Artifact, save
sys.stdin.readline()
for number in range(50):
    made = Artifact("hosts", "linear", {}, b"weights" * 10_000, {"number": number})
    save(made, Path(sys.argv[1]))
"""


def test_processes_that_save_the_same_at_once_all_succeed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SAVER, str(tmp_path)]
    savers = [subprocess.Popen(command, stdin=subprocess.PIPE) for _ in range(3)]
    try:
        for each in savers:
            assert each.stdin is not None
            each.stdin.write(b"go\n")
            each.stdin.flush()
        assert [each.wait(60) for each in savers] == [0, 0, 0]
    finally:
        for each in savers:
            each.kill()
            each.communicate(timeout=30)
    found = list((tmp_path / "hosts").iterdir())
    assert len(found) == 50
    for each in found:
        load(each)


def test_a_crash_while_writing_leaves_no_artifact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(file: Path, blob: bytes) -> None:
        file.write_bytes(blob[:5])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_write", full)
    with pytest.raises(ArtifactError, match="No space left on device") as caught:
        save(example(), tmp_path)
    assert "free space" in caught.value.hint
    assert list((tmp_path / "hosts").iterdir()) == []


def test_torn_weights_are_named_with_both_sizes(tmp_path: Path) -> None:
    path = save(example(), tmp_path)
    (path / "weights.pt").write_bytes(WEIGHTS[:100])
    with pytest.raises(ArtifactError, match=r"weights\.pt` has 100 bytes, the manifest says 2048"):
        load(path)


def test_edited_weights_of_the_same_size_are_named(tmp_path: Path) -> None:
    path = save(example(), tmp_path)
    (path / "weights.pt").write_bytes(b"x" + WEIGHTS[1:])
    with pytest.raises(ArtifactError, match=r"weights\.pt` differs from what was saved"):
        load(path)
    with pytest.raises(ArtifactError, match="differs"):
        save(example(), tmp_path)  # saving does not paper over the damage either


def test_an_edited_manifest_is_named(tmp_path: Path) -> None:
    path = save(example(), tmp_path)
    file = path / "manifest.json"
    file.write_text(file.read_text().replace('"ridge":0.01', '"ridge":0.02'))
    with pytest.raises(ArtifactError, match=r"manifest\.json` was edited"):
        load(path)


def test_a_manifest_edited_with_a_fitting_hash_does_not_fit_its_folder(tmp_path: Path) -> None:
    path = save(example(), tmp_path)
    other = save(example(settings={}), tmp_path)
    (path / "manifest.json").write_bytes((other / "manifest.json").read_bytes())
    with pytest.raises(ArtifactError, match="the folder is named"):
        load(path)


@pytest.mark.parametrize("name", ["manifest.json", "weights.pt"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    path = save(example(), tmp_path)
    (path / name).unlink()
    with pytest.raises(ArtifactError, match=name):
        load(path)


def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    path = save(example(), tmp_path)
    (path / "notes.txt").write_text("mine")
    with pytest.raises(ArtifactError, match=r"notes\.txt` does not belong"):
        load(path)
    bare = save(example(weights=None), tmp_path)
    (bare / "weights.pt").write_bytes(b"x")
    with pytest.raises(ArtifactError, match=r"weights\.pt` does not belong"):
        load(bare)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "not a JSON object"),
        ('{"format":"raywatch artifact 9"}', "expected `raywatch artifact 1`"),
        ('{"format":"raywatch artifact 1"}', "must have the fields"),
    ],
)
def test_a_manifest_that_is_none_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = save(example(), tmp_path)
    (path / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=says):
        load(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("hash", 1),
        ("settings", []),
        ("trained", None),
        ("weights", {"size": -1, "blake2b": ""}),
        ("weights", {"size": True, "blake2b": ""}),
        ("weights", {"size": 1}),
        ("weights", 5),
    ],
)
def test_a_manifest_with_a_field_of_another_type_is_refused(
    tmp_path: Path, field: str, value: object
) -> None:
    path = save(example(), tmp_path)
    file = path / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {field: value}))
    with pytest.raises(ArtifactError, match=field):
        load(path)


def test_every_flipped_byte_and_every_cut_of_a_blob_is_noticed() -> None:
    blob = pack(example(weights=WEIGHTS[:64]))
    for index in range(len(blob)):
        damaged = bytearray(blob)
        damaged[index] ^= 0x04
        with pytest.raises(ArtifactError):
            unpack(bytes(damaged))
        with pytest.raises(ArtifactError):
            unpack(blob[:index])
    with pytest.raises(ArtifactError, match="65 bytes, the manifest says 64"):
        unpack(blob + b"x")


def test_too_large_is_refused_before_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    blob = pack(example())
    monkeypatch.setattr(module, "ARTIFACT_BYTES_MAX", 1_000)
    with pytest.raises(ArtifactError, match="at most 1000"):
        unpack(blob)


@pytest.mark.parametrize("name", ["", "..", ".x", "a/b", "a b", "x" * 101, "a@b"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    with pytest.raises(ArtifactError, match="is no name"):
        example(name=name)


@pytest.mark.parametrize("value", [float("nan"), object(), b"x", np.float32(1)])
def test_settings_that_are_not_json_are_refused(value: object) -> None:
    with pytest.raises(ArtifactError, match="`settings` of an artifact must be JSON"):
        example(settings={"a": value})


def test_the_same_tensors_are_the_same_bytes_and_come_back() -> None:
    tensors = {"a": torch.arange(5.0), "b": torch.tensor(2.0)}
    blob = tensors_to_bytes(tensors)
    assert blob == tensors_to_bytes({"a": torch.arange(5.0), "b": torch.tensor(2.0)})
    back = tensors_from_bytes(blob)
    assert torch.equal(back["a"], tensors["a"])
    assert torch.equal(back["b"], tensors["b"])


class Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("evil"),))


def test_code_in_weights_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    monkeypatch.chdir(tmp_path)
    file = io.BytesIO()
    torch.save({"a": Evil()}, file)
    for blob in (file.getvalue(), b"", b"not torch", tensors_to_bytes({})[:50]):
        with pytest.raises(ArtifactError, match="weights are not a torch file"):
            tensors_from_bytes(blob)
    with pytest.raises(ArtifactError, match="no weights"):
        tensors_from_bytes(None)
    assert not (tmp_path / "evil").exists()


def bomb() -> bytes:
    """Weights that would make a file `evil` where they are unpickled."""
    import io

    file = io.BytesIO()
    torch.save({"a": Evil()}, file)
    return file.getvalue()


def test_an_artifact_with_a_fitting_hash_and_code_in_its_weights_runs_nothing_anywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the folder, and as a scorer gets it: whole by its hash, made by an enemy."""
    monkeypatch.chdir(tmp_path)
    artifact = Artifact("linear", "linear", {}, bomb())
    registry = Registry(tmp_path / "models")
    registry.add(artifact)
    with pytest.raises(ArtifactError, match="weights are not a torch file"):
        build(registry.resolve("linear"))
    with pytest.raises(ArtifactError, match="weights are not a torch file"):
        ScorerHost("s", pack(artifact))
    assert not (tmp_path / "evil").exists()
    torch.load(tmp_path / "models" / "linear" / artifact.hash[:12] / "weights.pt",
               weights_only=False)  # fmt: skip
    assert (tmp_path / "evil").exists()  # it does go off where somebody lets it


def test_a_scorer_builds_nothing_of_a_blob_that_was_edited() -> None:
    blob = bytearray(pack(Artifact("m", "linear", {}, tensors_to_bytes({"w": torch.zeros(4)}))))
    blob[-1] ^= 1
    with pytest.raises(ArtifactError, match="differs from what was saved"):
        ScorerHost("s", bytes(blob))


def test_what_is_stored_under_a_version_must_be_that_version() -> None:
    one, other = (
        Artifact("robustz", "robustz", {}),
        Artifact("robustz", "python", {"class": "os:x"}),
    )
    assert proven(pack(one), one.version) == pack(one)
    with pytest.raises(ArtifactError, match=f"stored as `{one.version}` is `{other.version}`"):
        proven(pack(other), one.version)
    with pytest.raises(ArtifactError, match="not an artifact"):
        proven(b"", one.version)
