"""Goal: a file is a config or a ConfigError, soon, whatever is in it.

Method: shipped configs and their mutants, trees of any JSON, with names of settings among the
keys; then files that were made to take long.
"""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from fuzz.budget import COUNT, fuzzed
from fuzz.mutate import mutants
from hypothesis import example, given
from hypothesis import strategies as st

from raywatch.cluster.config import Config, load
from raywatch.models.errors import ConfigError

ROOT = Path(__file__).resolve().parent.parent.parent
MUTANTS = 12
LONGEST_S = 20.0  # of the processor; the longest took 5 s, a megabyte of nothing but short values
BASES = [
    (ROOT / "configs" / f"{name}.yaml").read_bytes() for name in ("demo", "local", "production")
]
SMALL = b"""\
kafka: {bootstrap: "127.0.0.1:9092", settings: {client.rack: a}}
detectors:
  - name: hosts
    topics: [events]
    record: {key: host, time: ts, values: [cpu, mem]}
    model: lagbank
"""
TOKENS = (
    b": ", b"- ", b"\n", b"  ", b"{", b"}", b"[", b"]", b'"', b"'", b"&a ", b"*a", b"<<: *a",
    b"!!python/object:os.system", b"!!binary ", b"!!timestamp ", b"!!set ", b"? ", b"---\n", b"...",
    b"%YAML 9.9\n", b"\t", b"\x00", b"\xff", b".inf", b".nan", b"~", b"true", b"0x7", b"1e999",
    b"9" * 400, b"9" * 5_000, b"2001-01-01", b"1:30:30", b"0b1", b"0o7", b"_", b"|\n", b">\n",
    b"#", b"kafka", b"detectors", b"lanes", b"values", b"name", b"password: {env: A}", b"[" * 50,
)  # fmt: skip
KEYS = st.sampled_from(
    ["kafka", "detectors", "bootstrap", "name", "topics", "record", "values", "model", "alert",
     "lanes", "owners", "pool", "page", "store", "security", "password", "env", "min", "settings"]
)  # fmt: skip
TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
    | st.sampled_from(["lagbank", "hosts", "events", "embedded", "x*", "cpu"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=5),
    max_leaves=25,
)  # fmt: skip


def read(path: Path, blob: bytes) -> Config | None:
    """A config or None; anything else than a ConfigError comes through."""
    path.write_bytes(blob)
    began = time.process_time()
    try:
        found = load(path)
    except ConfigError as error:
        found, said = None, error.message
    else:
        said = "a config"
    assert 0 < len(said) < 20_000, len(said)
    took = time.process_time() - began
    assert took < LONGEST_S, (took, blob)
    COUNT["config"] += 1
    return found


@fuzzed("config", MUTANTS + 1)
@given(st.sampled_from([*BASES, SMALL, SMALL, SMALL]), st.integers(0, 2**32))
def test_a_mutant_of_a_config_is_one_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, base: bytes, seed: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "mutant.yaml"
    for blob in (base, *mutants(base, seed, MUTANTS, TOKENS)):
        found = read(path, blob)
        if found is not None:
            assert [spec.name for spec in found.specs()]


@fuzzed("config", 2)
@given(TREES)
@example({"kafka": {"settings": {"a": 10**400}}, "detectors": [10**5_000]})
def test_a_tree_of_anything_is_a_config_or_an_error(
    tmp_path_factory: pytest.TempPathFactory, tree: Any
) -> None:
    path = tmp_path_factory.getbasetemp() / "tree.yaml"
    import sys

    digits = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        blob = json.dumps(tree).encode()
    finally:
        sys.set_int_max_str_digits(digits)
    read(path, blob)


@pytest.mark.parametrize(
    "blob",
    [
        b"a: &a [x,x,x,x,x,x,x,x]\n" + b"".join(
            b"%c: &%c [%s]\n" % (98 + n, 98 + n, b",".join([b"*%c" % (97 + n)] * 8))
            for n in range(20)
        ),
        b"a: &a {b: *a}\n",
        b"&a [*a]",
        b"&a {k: &b [*a, *b]}",
        b"[" * 200_000,
        b"{a: " * 20_000,
        b"- " * 100_000,
        b"? " * 50_000,
        b"a:\n" + b"".join(b" " * n + b"a:\n" for n in range(1, 900)),
        b"- x\n" * 200_000,
        b'"' + b"\\x41" * 200_000 + b'"',
        b"a: 0b" + b"1" * 200_000,
        b"a: 0x" + b"f" * 900_000,
        b"a: " + b"9" * 900_000,
        b"a: " + b"1:" * 200_000 + b"1",
        b"a: " + b"." + b"9" * 900_000,
        b"a: " + b"1_" * 400_000,
        b"a: 2001-99-99",
        b"a: 2001-01-01T99:99:99Z",
        b"a: !!float x",
        b"a: !!int x",
        b"a: !!bool x",
        b"a: !!timestamp x",
        b"a: !!binary \xc3\xa4",
        b"a: !!null [x]",
        b"!!omap [x]",
        b"!!pairs [x, y]",
        b"? [a, b]\n: c\n",
        b"? {a: b}\n: c\n",
        b"1: 2\n2001-01-01: 3\nnull: 4\n",
        b"<<: 3\n",
        b"<<: [1]\n",
        b"a: \xed\xa0\x80",
        b"\xff\xfe" + "a: 1".encode("utf-16-le"),
        b"\xef\xbb\xbfa: 1",
        b"a: 1\n---\nb: 2\n",
        b"a" * 1_048_577,
    ],
    ids=range(37),
)  # fmt: skip
def test_a_file_made_to_take_long_or_to_break_is_refused(tmp_path: Path, blob: bytes) -> None:
    assert read(tmp_path / "it.yaml", blob) is None
