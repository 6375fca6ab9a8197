"""Goal: the template of a line is a function of its bytes, and of nothing else.

Method: lines that hypothesis makes, together, alone and in another order; lines whose values vary;
lines without end. What it finds in real logs is measured by bench/quality_logs.py.
"""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raywatch.models.log_template import TOKENS, ids_of, template_of

PIECES = st.sampled_from(
    ["user", "for", "from", "root", "7", "10.0.0.1", "a=b", "x=", "()", "....", "/etc/passwd", "-",
     "failed:", "[12]", "Jan", "ünïcode", "I", '"q"', ",", "port", "\t", "=", "<>", "a.b.c", "'"]
)  # fmt: skip
SOME = st.lists(PIECES, max_size=12).map(" ".join).map(str.encode) | st.binary(max_size=60)


@settings(max_examples=300, deadline=None)
@given(st.lists(SOME, min_size=1, max_size=8))
@example([b"", b"/", b"=", b"....", b"()", b"a" * 5_000, b"a " * 2_000, b"\xff\x00"])
def test_a_template_is_a_function_of_its_line(some: list[bytes]) -> None:
    together = ids_of(some)
    alone = [int(ids_of([line])[0]) for line in some]
    assert together.tolist() == alone
    assert ids_of(some[::-1]).tolist() == alone[::-1]
    assert 0 not in alone
    spaced = [b" \t" + line.replace(b" ", b"  ") + b" " for line in some]
    assert ids_of(spaced).tolist() == alone  # blanks are no part of it
    texts = [template_of(line) for line in some]
    for one, id_one in zip(texts, alone, strict=True):
        for other, id_other in zip(texts, alone, strict=True):
            if one != other and ".." not in one + other and "--" not in one + other:
                runs = [mark * 2 in one + other for mark in "*#_"]
                assert any(runs) or id_one != id_other


@pytest.mark.parametrize(
    ("line", "template"),
    [
        (
            "Failed password for root from 5.36.59.76 port 42393 ssh2",
            "Failed password for <*> from <*> port <*>",
        ),
        (
            "rts: bad header: type=3 (softheader=0b 1f)",
            "rts : bad header : type = <*> ( softheader = <*> )",
        ),
        (
            "Received block blk_-1608999687919862906 of size 91178 from /10.250.10.6",
            "Received block <*> of size <*> from <*>",
        ),
        ("connection from 1.2.3.4 (host.example.org) at Mon", "connection from <*> ( <*> ) at <*>"),
        ("opened for user cyrus by (uid=0)", "opened for user <*> by ( uid = <*> )"),
        ("generating core.2275", "generating <*>"),
        ("proxy started: Name: - Input:", "proxy started : Name : <*> Input :"),
        ("a=1, mode=", "a = <*> , mode ="),
        ("list () is empty", "list ( <*> ) is empty"),
        ("1 2 3 4", "<*>"),
        ("", ""),
    ],
)  # fmt: skip
def test_values_go_and_words_stay(line: str, template: str) -> None:
    assert template_of(line.encode()) == template


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 10**12), st.integers(0, 10**12), st.text("abcxyz", min_size=1, max_size=8))
def test_what_varies_in_a_place_of_a_value_changes_no_template(a: int, b: int, name: str) -> None:
    line = "Failed password for %s from 10.0.%d.9 port %d ssh2, tag=%s"
    one, other = line % (f"{name}q", a, b, name), line % ("root", b, a, "x")
    assert template_of(one.encode()) == "Failed password for <*> from <*> port <*> , tag = <*>"
    assert ids_of([one.encode()]) == ids_of([other.encode()])
    assert ids_of([one.encode()]) != ids_of([one.replace("password", "key").encode()])


def test_a_line_of_any_length_is_cut_at_a_bound() -> None:
    long = b"ab, " * (4 * TOKENS)
    assert len(template_of(long).split()) < TOKENS
    assert ids_of([long]) == ids_of([long + b"and more"])
