"""What exactly is a model version, and is this copy of it whole?

An artifact is a manifest (name, kind, settings, how it was trained) and, for learned models, the
bytes of its weights. Its hash is blake2b over the canonical manifest, which holds size and digest
of the weights: so two artifacts with one hash score alike, and every copy can prove that it is
neither torn nor edited. When it was made is not part of it: the same training gives the same hash.

On disk: <folder>/<name>/<12 hex of the hash>/{manifest.json, weights.pt}, written beside and
renamed into place, never changed afterwards. `pack` makes one blob of it for actors and buckets.
"""

import hashlib
import json
import os
import re
import shutil
import struct
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from raywatch.models.errors import ArtifactError

if TYPE_CHECKING:
    import torch

FORMAT = "raywatch artifact 1"
MANIFEST = "manifest.json"
WEIGHTS = "weights.pt"
MAGIC = b"raywatch-artifact-1\n"
ARTIFACT_BYTES_MAX = 512 << 20  # bounds what an actor must hold to receive one
MANIFEST_BYTES_MAX = 1 << 20  # bounds what is parsed before a hash was checked
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
HASH_HEX = 12  # digits of the hash that a version and a folder show: 48 bits
FIELDS = {"format", "hash", "kind", "name", "settings", "trained", "weights"}


@dataclass(frozen=True, slots=True)
class Artifact:
    """One model version. `settings` and `trained` hold JSON values only.

    Raises ArtifactError for a bad name, a value that is not JSON, or more than 512 MiB.
    """

    name: str
    kind: str
    settings: dict[str, Any]
    weights: bytes | None = None
    trained: dict[str, Any] = field(default_factory=lambda: {})
    hash: str = field(init=False, default="")  # 64 hex digits

    def __post_init__(self) -> None:
        for what, text in (("name", self.name), ("kind", self.kind)):
            if not NAME.fullmatch(text):
                raise ArtifactError(
                    f"`{text[:200]}` is no {what} for an artifact",
                    hint="letters, digits, `.`, `_` and `-`, at most 100, a letter or digit first",
                )
        # Through JSON and back: tuples become lists now and not only after the first load.
        object.__setattr__(self, "settings", _plain(self.settings, "settings"))
        object.__setattr__(self, "trained", _plain(self.trained, "trained"))
        size = len(self.weights or b"")
        if size + MANIFEST_BYTES_MAX > ARTIFACT_BYTES_MAX:
            raise ArtifactError(
                f"`{self.name}` has {size} bytes of weights, at most "
                f"{ARTIFACT_BYTES_MAX - MANIFEST_BYTES_MAX} are allowed"
            )
        object.__setattr__(self, "hash", _digest(_canonical(_body(self))))

    @property
    def version(self) -> str:
        """`name@` and the first 12 hex digits of the hash."""
        return f"{self.name}@{self.hash[:HASH_HEX]}"


def save(artifact: Artifact, folder: Path) -> Path:
    """Write an artifact below `folder` and return its own folder; already there is fine.

    A crash leaves a `.tmp-*` folder beside it at most, never a torn artifact. Raises ArtifactError
    where the folder cannot be written, or where a damaged artifact stands in its place.
    """
    parent = folder / artifact.name
    target = parent / artifact.hash[:HASH_HEX]
    if target.exists():
        load(target)
        return target
    temporary: Path | None = None
    try:
        parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=".tmp-", dir=parent))
        temporary.chmod(0o755)
        _write(temporary / MANIFEST, manifest(artifact))
        if artifact.weights is not None:
            _write(temporary / WEIGHTS, artifact.weights)
        _sync(temporary)
        try:
            temporary.rename(target)
        except OSError:
            if not target.exists():
                raise
            load(target)  # another process was faster: the same content, or it says what differs
        _sync(parent)
    except OSError as error:
        raise ArtifactError(
            f"cannot write `{target}`: {error.strerror or error}",
            hint="check free space and rights of the folder",
        ) from error
    finally:
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)
    return target


def load(path: Path) -> Artifact:
    """Read an artifact and check every byte of it.

    Raises ArtifactError that names the file and what differs.
    """
    head = _checked(path)
    file = path / WEIGHTS
    try:
        weights = None if head["weights"] is None else file.read_bytes()
    except OSError as error:
        raise _unreadable(file, error) from error
    return _verify(_peeked(head), head, weights, str(file))


def peek(path: Path) -> Artifact:
    """Read an artifact without its weights: manifest, list of files and sizes are checked.

    Its `hash` and `version` are those of the whole artifact. Raises ArtifactError.
    """
    return _peeked(_checked(path))


def _checked(path: Path) -> dict[str, Any]:
    """The manifest of a folder that holds the right files of the right sizes."""
    head = _parse(_read_manifest(path), str(path / MANIFEST))
    expected = {MANIFEST} | ({WEIGHTS} if head["weights"] is not None else set[str]())
    try:
        present = {each.name for each in path.iterdir()}
        size = (path / WEIGHTS).stat().st_size if WEIGHTS in present else 0
    except OSError as error:
        raise _unreadable(path, error) from error
    for name in sorted(present - expected):
        raise ArtifactError(
            f"`{path / name}` does not belong to the artifact",
            hint="artifacts are immutable: remove the file, or train a new version",
        )
    for name in sorted(expected - present):
        raise ArtifactError(f"`{path / name}` is missing", hint="copy the whole folder again")
    if head["weights"] is not None and size != head["weights"]["size"]:
        raise ArtifactError(
            f"`{path / WEIGHTS}` has {size} bytes, the manifest says {head['weights']['size']}",
            hint="copy the whole folder again",
        )
    if path.resolve().name != head["hash"][:HASH_HEX]:
        raise ArtifactError(
            f"`{path}` holds `{head['name']}@{head['hash'][:HASH_HEX]}`, the folder is named "
            f"`{path.resolve().name}`",
            hint="the folder's name is the hash of its content: rename it, or copy it again",
        )
    return head


def pack(artifact: Artifact) -> bytes:
    """One blob: magic, length of the manifest (uint32, little endian), manifest, weights."""
    head = manifest(artifact)
    return b"".join((MAGIC, struct.pack("<I", len(head)), head, artifact.weights or b""))


def unpack(blob: bytes) -> Artifact:
    """The artifact of a blob, checked like one on disk. Raises ArtifactError."""
    if len(blob) > ARTIFACT_BYTES_MAX:
        raise ArtifactError(f"blob has {len(blob)} bytes, at most {ARTIFACT_BYTES_MAX} are allowed")
    begin = len(MAGIC) + 4
    if not blob.startswith(MAGIC) or len(blob) < begin:
        raise ArtifactError(f"blob begins with `{blob[:24]!r}`, which is not an artifact")
    (length,) = struct.unpack_from("<I", blob, len(MAGIC))
    if length > MANIFEST_BYTES_MAX or begin + length > len(blob):
        raise ArtifactError(f"blob of {len(blob)} bytes ends within its manifest of {length} bytes")
    head = _parse(blob[begin : begin + length], "manifest of the blob")
    weights = None if head["weights"] is None else blob[begin + length :]
    rest = len(blob) - begin - length
    size = 0 if head["weights"] is None else head["weights"]["size"]
    if rest != size:
        raise ArtifactError(f"weights of the blob have {rest} bytes, the manifest says {size}")
    return _verify(_peeked(head), head, weights, "weights of the blob")


def proven(blob: bytes, version: str) -> bytes:
    """The blob, if it is whole and of that version; nothing in it is run. Raises ArtifactError.

    A blob may be whole and still be another: who asked for a version by its hash gets that one.
    """
    found = unpack(blob).version
    if found != version:
        raise ArtifactError(
            f"what is stored as `{version}` is `{found[:200]}`",
            hint="somebody replaced it: add the artifact again, and see who may write the store",
        )
    return blob


def manifest(artifact: Artifact) -> bytes:
    """The manifest as it is written: canonical JSON with the hash of all other fields."""
    body = _body(artifact)
    body["hash"] = artifact.hash
    blob = _canonical(body)
    if len(blob) > MANIFEST_BYTES_MAX:
        raise ArtifactError(
            f"manifest of `{artifact.name}` has {len(blob)} bytes, at most {MANIFEST_BYTES_MAX} "
            "are allowed",
            hint="put large settings into the weights",
        )
    return blob


def tensors_to_bytes(tensors: "dict[str, torch.Tensor]") -> bytes:
    """Weights of a torch model as bytes; the same tensors give the same bytes."""
    import io

    import torch

    file = io.BytesIO()
    torch.save({name: each.detach().cpu().contiguous() for name, each in tensors.items()}, file)
    return file.getvalue()


def tensors_from_bytes(weights: bytes | None, device: str = "cpu") -> "dict[str, torch.Tensor]":
    """Weights of a torch model from bytes, code in them is refused. Raises ArtifactError."""
    import io

    import torch

    if weights is None:
        raise ArtifactError("artifact has no weights", hint="train it first")
    try:
        loaded: object = torch.load(io.BytesIO(weights), map_location=device, weights_only=True)
    except Exception as error:
        # torch raises anything from RuntimeError to UnpicklingError for foreign bytes.
        first = (str(error).splitlines() or [""])[0]
        raise ArtifactError(f"weights are not a torch file: {first[:200]}") from error
    if not isinstance(loaded, dict) or not all(
        isinstance(each, torch.Tensor) for each in cast("dict[object, object]", loaded).values()
    ):
        raise ArtifactError("weights are not a dictionary of tensors")
    return cast("dict[str, torch.Tensor]", loaded)


def _body(artifact: Artifact) -> dict[str, Any]:
    weights = artifact.weights
    described = None if weights is None else {"size": len(weights), "blake2b": _digest(weights)}
    return {
        "format": FORMAT,
        "kind": artifact.kind,
        "name": artifact.name,
        "settings": artifact.settings,
        "trained": artifact.trained,
        "weights": described,
    }


def _canonical(value: dict[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _digest(blob: bytes) -> str:
    return hashlib.blake2b(blob, digest_size=32).hexdigest()


def _plain(value: dict[str, Any], what: str) -> dict[str, Any]:
    try:
        return json.loads(json.dumps(value, allow_nan=False, sort_keys=True))
    except (TypeError, ValueError) as error:
        raise ArtifactError(f"`{what}` of an artifact must be JSON: {error}") from error


def _read_manifest(path: Path) -> bytes:
    file = path / MANIFEST
    try:
        with file.open("rb") as stream:
            return stream.read(MANIFEST_BYTES_MAX + 1)
    except OSError as error:
        raise _unreadable(file, error) from error


def _parse(blob: bytes, where: str) -> dict[str, Any]:
    """The manifest with types and hash checked. Raises ArtifactError naming `where`."""
    if len(blob) > MANIFEST_BYTES_MAX:
        raise ArtifactError(f"`{where}` is larger than {MANIFEST_BYTES_MAX} bytes")
    try:
        loaded: object = json.loads(blob)
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"`{where}` is not JSON: {error}", hint="copy it again") from error
    if not isinstance(loaded, dict):
        raise ArtifactError(f"`{where}` is not a JSON object")
    head = cast("dict[str, Any]", loaded)
    if head.get("format") != FORMAT:
        raise ArtifactError(
            f"`{where}` has format `{str(head.get('format'))[:100]}`, expected `{FORMAT}`",
            hint="it was written by another program, or by a newer raywatch",
        )
    if set(head) != FIELDS:
        raise ArtifactError(
            f"`{where}` must have the fields {sorted(FIELDS)}, these differ: "
            f"{sorted(set(head) ^ FIELDS)[:10]}"
        )
    types = {"hash": str, "kind": str, "name": str, "settings": dict, "trained": dict}
    for name, kind in types.items():
        if not isinstance(head[name], kind):
            raise ArtifactError(f"`{where}`: `{name}` must be a {kind.__name__}")
    _check_weights_field(head["weights"], where)
    body = {name: value for name, value in head.items() if name != "hash"}
    try:
        found = _digest(_canonical(body))
    except ValueError as error:
        raise ArtifactError(f"`{where}` holds a number that is not finite") from error
    if found != head["hash"]:
        raise ArtifactError(
            f"`{where}` was edited: its content has hash `{found[:HASH_HEX]}`, it says "
            f"`{head['hash'][:HASH_HEX]}`",
            hint="artifacts are immutable: train a new version",
        )
    return head


def _check_weights_field(described: object, where: str) -> None:
    if described is None:
        return
    fields = cast("dict[str, object]", described) if isinstance(described, dict) else {}
    if (
        set(fields) != {"size", "blake2b"}
        or type(fields["size"]) is not int
        or not 0 <= fields["size"] <= ARTIFACT_BYTES_MAX
        or not isinstance(fields["blake2b"], str)
    ):
        raise ArtifactError(f"`{where}`: `weights` must be null or have `size` and `blake2b`")


def _peeked(head: dict[str, Any]) -> Artifact:
    artifact = Artifact(head["name"], head["kind"], head["settings"], None, head["trained"])
    object.__setattr__(artifact, "hash", head["hash"])
    return artifact


def _verify(peeked: Artifact, head: dict[str, Any], weights: bytes | None, where: str) -> Artifact:
    """The whole artifact, once its weights are those that the manifest describes."""
    if weights is not None and _digest(weights) != head["weights"]["blake2b"]:
        raise ArtifactError(
            f"`{where}` differs from what was saved: same size, another blake2b digest",
            hint="copy it again, or train a new version",
        )
    whole = Artifact(peeked.name, peeked.kind, peeked.settings, weights, peeked.trained)
    if whole.hash != head["hash"]:
        raise ArtifactError(f"`{where}` does not belong to `{peeked.version}`")
    return whole


def _unreadable(path: Path, error: OSError) -> ArtifactError:
    return ArtifactError(
        f"cannot read `{path}`: {error.strerror or error}",
        hint="check that the path is right and may be read",
    )


def _write(file: Path, blob: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(blob)
        stream.flush()
        os.fsync(stream.fileno())


def _sync(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
