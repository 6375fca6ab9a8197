"""Goal: an artifact is the one whose hash it bears, or an ArtifactError.

Method: packed artifacts and their mutants; manifests that were changed and signed anew, so that
their hash is right and only their content can be wrong.
"""

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from fuzz.budget import COUNT, fuzzed
from fuzz.mutate import BINARY, JSON, mutants
from hypothesis import given
from hypothesis import strategies as st
from test_scan import ANY_JSON

from raywatch.models.artifact import MAGIC, MANIFEST, Artifact, load, pack, save, unpack
from raywatch.models.errors import ArtifactError

MUTANTS = 40
WORDS = st.dictionaries(st.text(max_size=4), ANY_JSON, max_size=3)
TOKENS = (*JSON, *BINARY, b'"size"', b'"weights":null', b'"hash":"', b"../", b'"format"')


@st.composite
def artifacts(draw: st.DrawFn) -> Artifact:
    name = draw(st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,9}", fullmatch=True))
    weights = draw(st.none() | st.binary(max_size=30))
    return Artifact(name, "lagbank", draw(WORDS), weights, draw(WORDS))


def signed(manifest: bytes, weights: bytes) -> bytes:
    """A blob whose manifest has the hash of whatever it says now; the bytes where it is no JSON."""
    try:
        head: Any = json.loads(manifest)
        body = {name: value for name, value in head.items() if name != "hash"}
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
        head["hash"] = hashlib.blake2b(text, digest_size=32).hexdigest()
        manifest = json.dumps(head, sort_keys=True, separators=(",", ":")).encode()
    except (ValueError, AttributeError, RecursionError):
        pass
    return MAGIC + struct.pack("<I", len(manifest)) + manifest + weights


def refused_or_sound(blob: bytes) -> Artifact | None:
    try:
        found = unpack(blob)
    except ArtifactError as error:
        found, said = None, error.message
    else:
        said = found.version
    assert 0 < len(said) < 4_000, said
    if found is None:
        return None
    assert unpack(pack(found)) == found
    return found


@fuzzed("manifest", 2 * MUTANTS + 1)
@given(artifacts(), st.integers(0, 2**32))
def test_a_blob_is_the_artifact_that_was_packed_or_an_error(artifact: Artifact, seed: int) -> None:
    blob = pack(artifact)
    assert unpack(blob) == artifact
    for torn in mutants(blob, seed, MUTANTS, TOKENS):
        found = refused_or_sound(torn)
        assert found is None or found == artifact  # white space in JSON says nothing
    (size,) = struct.unpack_from("<I", blob, len(MAGIC))
    begin = len(MAGIC) + 4
    manifest, weights = blob[begin : begin + size], blob[begin + size :]
    for other in mutants(manifest, seed + 1, MUTANTS, TOKENS):
        refused_or_sound(signed(other, weights))
    COUNT["manifest"] += 2 * MUTANTS + 1


def nested(depth: int) -> bytes:
    settings = b'{"a":' * depth + b"1" + b"}" * depth
    return (
        b'{"format":"raywatch artifact 1","hash":"x","kind":"k","name":"n","settings":'
        + settings
        + b',"trained":{},"weights":null}'
    )


@pytest.mark.parametrize("depth", [100, 900, 990, 1_000, 5_000, 100_000])
def test_a_manifest_that_nests_without_end_is_refused(depth: int) -> None:
    manifest = nested(depth)
    assert refused_or_sound(MAGIC + struct.pack("<I", len(manifest)) + manifest) is None


def test_a_folder_with_a_mutant_for_a_manifest_is_refused(tmp_path: Path) -> None:
    folder = save(Artifact("m", "lagbank", {"lags": 512}, b"weights"), tmp_path)
    manifest = (folder / MANIFEST).read_bytes()
    for torn in mutants(manifest, 7, 300, TOKENS):
        if torn != manifest:
            (folder / MANIFEST).write_bytes(torn)
            try:
                assert json.loads(torn) == json.loads(manifest)
                load(folder)
            except (ArtifactError, ValueError, AssertionError):
                with pytest.raises(ArtifactError):
                    load(folder)
    COUNT["manifest"] += 300
