"""Goal: what the documents say is true: commands print what is shown, links lead somewhere, and
the reference pages are what the code says.

Method: every ```console block below a line `<!-- runs -->` is executed by bash, line by line, in a
folder that sees `configs/` and nothing else; lines without `$` are the output, `...` stands for
anything. The marked blocks of one document share a folder, in their order.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from raywatch.cluster import reference

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
BLOCK = re.compile(r"<!-- runs -->\n```console\n(.*?)```", re.S)
ANY_BLOCK = re.compile(r"```.*?```", re.S)
RUNNABLE = [page for page in PAGES if BLOCK.search(page.read_text())]


def steps(block: str) -> list[tuple[str, str]]:
    """Commands (`$ ...`, continued by `> ...`) with the output that follows them."""
    found: list[tuple[str, str]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], ""))
        elif (line == ">" or line.startswith("> ")) and found and not found[-1][1]:
            found[-1] = (f"{found[-1][0]}\n{line[2:]}", "")
        else:
            assert found, f"output before the first command: {line}"
            found[-1] = (found[-1][0], f"{found[-1][1]}{line}\n")
    return found


def matches(shown: str, printed: str) -> bool:
    """Whether the output is what is shown; `...` stands for any text, also for whole lines."""
    pattern = ".*".join(re.escape(part) for part in shown.strip().split("..."))
    return re.fullmatch(pattern, printed.strip(), re.S) is not None


@pytest.mark.parametrize("page", RUNNABLE, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_is_what_happens(page: Path, tmp_path: Path) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    for block in BLOCK.findall(page.read_text()):
        for command, shown in steps(block):
            ran = subprocess.run(
                ["bash", "-c", command],
                cwd=tmp_path,
                env={**os.environ, "PATH": path, "COLUMNS": "100"},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=120,
                check=False,
            )
            assert matches(shown, ran.stdout), f"$ {command}\n{ran.stdout}\n--- shown:\n{shown}"


def test_the_front_page_runs() -> None:
    assert ROOT / "README.md" in RUNNABLE


@pytest.mark.parametrize(
    ("shown", "printed", "same"),
    [
        ("a\n", "a\n", True),
        ("a\n", "b\n", False),
        ("a ... c", "a b c", True),
        ("a\n...\nd", "a\nb\nc\nd", True),
        ("...", "", True),
        ("a.c", "abc", False),
        ("", "unexpected", False),
    ],
)
def test_shown_output_is_compared(shown: str, printed: str, same: bool) -> None:
    assert matches(shown, printed) == same


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    text = ANY_BLOCK.sub("", page.read_text())
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", text):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), target


def test_every_promise_on_the_front_page_names_the_test_that_keeps_it() -> None:
    text = (ROOT / "README.md").read_text()
    table = text[text.index("## Promises") :].split("\n## ")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][2:]
    assert len(rows) >= 5
    for row in rows:
        named = re.findall(r"\]\((tests/test_\w+\.py)\)", row)
        assert named, row
        for each in named:
            assert "def test_" in (ROOT / each).read_text(), each


def test_every_setting_is_documented() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert page == reference.configuration(), "docs/configuration.md is old: make docs"


def test_every_command_is_documented() -> None:
    page = (ROOT / "docs" / "commands.md").read_text()
    assert page == reference.commands(), "docs/commands.md is old: make docs"


def test_decisions_are_numbered_without_gaps_and_say_their_state() -> None:
    pages = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    assert [page.name[:4] for page in pages] == [f"{n:04}" for n in range(1, len(pages) + 1)]
    for page in pages:
        assert re.search(r"^State: (accepted|replaced by \d{4})", page.read_text(), re.M), page


def test_the_newest_version_in_the_changelog_is_the_one_that_is_installed() -> None:
    from importlib.metadata import version

    changes = (ROOT / "CHANGELOG.md").read_text()
    released = re.findall(r"^## \[(\d+\.\d+\.\d+)\]", changes, re.M)
    assert "## [Unreleased]" in changes
    assert released[:1] in ([], [version("raywatch")])
