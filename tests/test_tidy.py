"""Goal: the house rules hold in every file, and every rule of this file would notice a breach.

Method: rules are functions from (path, text) to problems, run over all tracked and new files; each
is also run on a snippet that breaks it. ruff and pyright run as they would by hand.
"""

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
ROOMS = ("models", "actors", "cluster")  # each may import those before it, and itself
LINES_MAX = 500
FUNCTION_LINES_MAX = 70
RAY_IN = {"actors/runtime.py", "cluster/runtime.py"}
KAFKA_IN = {"actors/kafka.py"}
ENVIRONMENT_IN = {"cluster/secret.py"}
VAGUE = {"utils", "util", "common", "helpers", "helper", "base", "misc", "manager"}

Problems = Iterator[str]


@cache
def files() -> tuple[str, ...]:
    """Tracked files and new ones that git does not ignore, links left out."""
    asked = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(asked, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    found = [each for each in names.stdout.split("\0") if each]
    return tuple(
        each for each in found if (ROOT / each).is_file() and not (ROOT / each).is_symlink()
    )


def texts() -> Iterator[tuple[str, str]]:
    for name in files():
        try:
            yield name, (ROOT / name).read_text()
        except UnicodeDecodeError:
            continue


def python() -> Iterator[tuple[str, str]]:
    return ((name, text) for name, text in texts() if name.endswith(".py"))


def product() -> Iterator[tuple[str, str]]:
    return ((name, text) for name, text in python() if name.split("/")[0] in ROOMS)


def program() -> Iterator[tuple[str, str]]:
    """All but tests, whose tables of cases may be long."""
    return ((name, text) for name, text in python() if not name.startswith("tests/"))


# ---- the rules ------------------------------------------------------------------------------


def imports(text: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            yield from (each.name for each in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{each.name}" for each in node.names)


def layers(path: str, text: str) -> Problems:
    """models know numbers, actors know records, cluster knows actors: never the other way."""
    room = path.split("/", maxsplit=1)[0]
    higher = ROOMS[ROOMS.index(room) + 1 :]
    for name in imports(text):
        for each in higher:
            if name == f"raywatch.{each}" or name.startswith(f"raywatch.{each}."):
                yield f"{path}: imports {name} from a higher layer"


def importers(path: str, text: str) -> Problems:
    """Ray behind the two runtime.py, Kafka behind actors/kafka.py."""
    for name in imports(text):
        top = name.split(".")[0]
        if top == "ray" and path not in RAY_IN:
            yield f"{path}: only {' and '.join(sorted(RAY_IN))} may import ray"
        if top == "confluent_kafka" and path not in KAFKA_IN:
            yield f"{path}: only {' and '.join(KAFKA_IN)} may import confluent_kafka"


def full_names(path: str, text: str) -> Problems:
    """`import models` finds whatever lies in the working directory."""
    for name in imports(text):
        if name.split(".")[0] in (*ROOMS, "configs"):
            yield f"{path}: write raywatch.{name}"


def sizes(path: str, text: str) -> Problems:
    lines = text.count("\n") + (not text.endswith("\n") and bool(text))
    if lines > LINES_MAX:
        yield f"{path}: {lines} lines, at most {LINES_MAX}"


def functions(path: str, text: str) -> Problems:
    """Docstrings do not count: they are for whoever calls."""
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = (node.end_lineno or node.lineno) - node.lineno + 1
        if ast.get_docstring(node) is not None:
            first = node.body[0]
            lines -= (first.end_lineno or first.lineno) - first.lineno + 1
        if lines > FUNCTION_LINES_MAX:
            yield f"{path}: {node.name} has {lines} lines, at most {FUNCTION_LINES_MAX}"


def names(path: str, text: str) -> Problems:
    for part in Path(path).with_suffix("").parts:
        if part in VAGUE:
            yield f"{path}: `{part}` says nothing about what is in it"


def environment(path: str, text: str) -> Problems:
    """What decides comes from the config; the environment is invisible to whoever reads it."""
    if path in ENVIRONMENT_IN:
        return
    tree = ast.parse(text)
    # Setting a variable for the processes that one starts is no reading.
    given = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Subscript) and not isinstance(node.ctx, ast.Load)
    }
    for node in ast.walk(tree):
        named = isinstance(node, ast.Attribute) and node.attr in ("environ", "getenv", "environb")
        reads = named and node not in given
        brings = isinstance(node, ast.ImportFrom) and node.module == "os"
        if reads or (brings and {"environ", "getenv"} & {each.name for each in node.names}):
            yield f"{path}:{node.lineno}: only {' and '.join(ENVIRONMENT_IN)} reads the environment"


def header(path: str, text: str) -> Problems:
    """A file opens with what it is for."""
    if text.strip() and not ast.get_docstring(ast.parse(text)):
        yield f"{path}: begins without saying what it is for"


def fakes(path: str, text: str) -> Problems:
    """Fakes of the ports only, written by hand: a mock agrees with every mistake."""
    for name in imports(text):
        if name.startswith("unittest.mock") or name.split(".")[0] == "mock":
            yield f"{path}: imports {name}"


# Written in pieces, here and below, so that this file does not find itself.
UNFINISHED = r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HAC" + r"K)\b|raise NotImplemented" + "Error"


def unfinished(path: str, text: str) -> Problems:
    for number, line in enumerate(text.splitlines(), 1):
        if re.search(UNFINISHED, line):
            yield f"{path}:{number}: unfinished: {line.strip()[:80]}"


def strangers(path: str, text: str) -> Problems:
    """Nothing that is true on one machine only: its folders, its mirrors, its users."""
    for number, line in enumerate(text.splitlines(), 1):
        for pattern in STRANGERS:
            if re.search(pattern, line):
                yield f"{path}:{number}: {line.strip()[:80]}"


STRANGERS = (
    "/wo" + r"rk/",
    "/ro" + r"ot/",
    r"/home/" + r"\w",
    "--(extra-)?index" + "-url",
    "--trusted" + "-host",
    r"https?://[^/\s]+:[^/\s@{]+" + "@",
    r"\.inter" + r"nal\b",
    r"\.cor" + r"p\b",
    "artifact" + "ory",
)


RULES: dict[str, tuple[Callable[[str, str], Problems], Callable[[], Iterator[tuple[str, str]]]]] = {
    "layers": (layers, product),
    "importers": (importers, product),
    "full names": (full_names, python),
    "sizes": (sizes, python),
    "functions": (functions, program),
    "names": (names, python),
    "environment": (environment, product),
    "header": (header, python),
    "fakes": (fakes, python),
    "unfinished": (unfinished, python),
    "strangers": (strangers, texts),
}

BREACHES = [
    ("layers", "models/a.py", "from raywatch.cluster import lag\n", 1),
    ("layers", "models/a.py", "import raywatch.actors.ports\n", 1),
    ("layers", "actors/a.py", "def f():\n    from raywatch.cluster.lag import verdict\n", 1),
    ("layers", "cluster/a.py", "from raywatch.actors import ports\n", 0),
    ("importers", "actors/a.py", "import ray\n", 1),
    ("importers", "cluster/a.py", "def f():\n    from ray.util import state\n", 1),
    ("importers", "cluster/a.py", "from confluent_kafka import Producer\n", 1),
    ("importers", "actors/runtime.py", "import ray\n", 0),
    ("importers", "actors/kafka.py", "import confluent_kafka\n", 0),
    ("importers", "actors/a.py", "import raywatch.actors\n", 0),
    ("full names", "tests/test_a.py", "import models\n", 1),
    ("full names", "cluster/a.py", "from actors.ports import Log\n", 1),
    ("sizes", "models/a.py", "x = 1\n" * 501, 1),
    ("sizes", "models/a.py", "x = 1\n" * 500, 0),
    ("functions", "models/a.py", "def f():\n" + "    x = 1\n" * 70, 1),
    ("functions", "models/a.py", "def f():\n" + "    x = 1\n" * 69, 0),
    (
        "functions",
        "models/a.py",
        'def f():\n    """A.\n\n    B.\n    """\n' + "    x = 1\n" * 69,
        0,
    ),
    ("names", "actors/utils.py", "", 1),
    ("names", "models/common/a.py", "", 1),
    ("environment", "models/a.py", "import os\nx = os.environ['A']\n", 1),
    ("environment", "models/a.py", "import os\nx = os.getenv('A')\n", 1),
    ("environment", "models/a.py", "from os import environ\n", 1),
    ("environment", "models/a.py", "import os\nos.environ['A'] = '1'\n", 0),
    ("environment", "cluster/secret.py", "import os\nx = os.environ['A']\n", 0),
    ("header", "models/a.py", "x = 1\n", 1),
    ("header", "models/a.py", "", 0),
    ("fakes", "tests/test_a.py", "from unittest.mock import MagicMock\n", 1),
    ("fakes", "tests/test_a.py", "from unittest import mock\n", 1),
    ("unfinished", "models/a.py", "# TO" + "DO: later\n", 1),
    ("unfinished", "models/a.py", "raise NotImplemented" + "Error\n", 1),
    ("strangers", "docs/a.md", "see /wo" + "rk/main\n", 1),
    ("strangers", "Makefile", "pip install --index" + "-url https://a\n", 1),
    ("strangers", "docs/a.md", "https://me:pass" + "word@example.org/\n", 1),
    ("strangers", "docs/a.md", "https://example.org/a\n", 0),
]


@pytest.mark.parametrize("rule", RULES)
def test_the_house_keeps_the_rule(rule: str) -> None:
    check, where = RULES[rule]
    seen = list(where())
    assert len(seen) > 20  # the rule was not run over nothing
    assert [each for name, text in seen for each in check(name, text)] == []


@pytest.mark.parametrize(("rule", "path", "text", "problems"), BREACHES)
def test_each_rule_notices_a_breach_and_nothing_else(
    rule: str, path: str, text: str, problems: int
) -> None:
    assert len(set(RULES[rule][0](path, text))) >= problems
    assert bool(list(RULES[rule][0](path, text))) == bool(problems)


def test_every_rule_has_a_breach() -> None:
    assert {rule for rule, _, _, problems in BREACHES if problems} == set(RULES)


# ---- packaging ------------------------------------------------------------------------------


def folders_with_code() -> set[str]:
    """Packages below the rooms, as pyproject.toml must list them."""
    found = {str(Path(name).parent) for name in files() if name.endswith(".py")}
    return {
        f"raywatch.{each.replace('/', '.')}"
        for each in found
        if each.split("/")[0] in (*ROOMS, "configs")
    }


def test_every_package_is_listed_and_has_its_markers() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    assert set(project["packages"]) == folders_with_code()
    for name in project["packages"]:
        folder = ROOT / name.removeprefix("raywatch.").replace(".", "/")
        assert (folder / "__init__.py").is_file(), folder
    for room in (*ROOMS, "configs"):
        assert project["package-dir"][f"raywatch.{room}"] == room
        assert (ROOT / room / "py.typed").is_file(), room


def test_links_for_the_type_checker_point_at_the_rooms() -> None:
    links = ROOT / ".links" / "raywatch"
    assert {each.name: os.readlink(each) for each in links.iterdir()} == {
        room: f"../../{room}" for room in (*ROOMS, "configs")
    }


def test_every_dependency_is_pinned_and_has_a_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    bare = [re.split(r"[\[><=!~ ]", each)[0].lower() for each in wanted]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = [each for each in lines if each and not each.startswith("#")]
    assert [
        each for each in pinned if not re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.+!]+", each)
    ] == []
    exact = {each.split("==")[0].lower().replace("_", "-") for each in pinned}
    assert [each for each in bare if each not in exact] == []
    reasons = (ROOT / "docs" / "decisions" / "0002-dependencies.md").read_text()
    assert [each for each in bare if f"`{each}`" not in reasons] == []


# ---- tools ----------------------------------------------------------------------------------


def ran(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=280, check=False)


def test_ruff_has_nothing_to_say() -> None:
    done = ran(BIN / "ruff", "check", "--no-cache", ".")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_formatter_would_change_nothing() -> None:
    done = ran(BIN / "ruff", "format", "--no-cache", "--check", ".")
    assert done.returncode == 0, done.stdout + done.stderr


def test_pyright_strict_has_nothing_to_say() -> None:
    done = ran(BIN / "pyright")
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr
