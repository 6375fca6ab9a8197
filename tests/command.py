"""The `raywatch` command in tests: a config file, and the command in this process or another."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from raywatch.cluster import cli

SCRIPT = Path(sys.executable).parent / "raywatch"


def written(folder: Path, **detector: Any) -> Path:
    """A config file; `bootstrap` may be among the settings."""
    bootstrap = detector.pop("bootstrap", "127.0.0.1:1")
    entry = {
        "name": "d",
        "topics": ["events"],
        "record": {"key": "host", "time": "ts", "values": ["value"]},
        "model": "robustz",
        **detector,
    }
    path = folder / "it.yaml"
    path.write_text(
        json.dumps(  # JSON is YAML
            {
                "kafka": {"bootstrap": bootstrap},
                "detectors": [entry],
                "store": str(folder / "state"),
                "models": str(folder / "models"),
                "page": {"port": 0},
                "pool": {"min": 1, "max": 1},
            }
        )
    )
    return path


class Said:
    """What a command in this process said, and its exit code."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err


def called(capsys: pytest.CaptureFixture[str], *words: str | Path) -> Said:
    """A command in this process. A traceback fails the test."""
    code = cli.main([str(word) for word in words])
    said = capsys.readouterr()
    assert "Traceback" not in said.err, said.err
    return Said(code, said.out, said.err)


def started(*words: str | Path, **options: Any) -> subprocess.Popen[str]:
    """A command in a process of its own."""
    return subprocess.Popen(
        [SCRIPT, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )
