"""The reference pages, made from the code they describe, so that they cannot be wrong.

    python -m raywatch.cluster.reference        writes docs/configuration.md and docs/commands.md

A test fails when the pages in docs/ differ from what this file makes (`make docs` repairs them).
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from raywatch.cluster.config import Config
from raywatch.cluster.parse import model_of

SETTINGS_HEAD = """\
# Configuration

Made by `make docs` from `cluster/config.py`, `schema.py`, `fields.py`: change descriptions there.

One YAML file serves `check`, `run`, `deploy`, `backtest` and the demo. This is a whole config:

```yaml
kafka: {bootstrap: "127.0.0.1:9092"}          # or kafka: embedded
detectors:
  - name: hosts
    topics: [events]
    record: {key: host, time: ts, values: [cpu, mem]}
    model: lagbank
```

Unknown settings are errors. A unit is the last part of a name (`_ms`, `_s`, `_bytes`); where there
is none, the setting counts records or things. Secrets are references: `{env: NAME}` or
`{file: PATH}`; they are read when they are needed and shown nowhere.

## Names of fields

`host.name` means the record's field of exactly that name; where it has none, the field `name` of
the object in its field `host`:

```yaml
record: {key: host.name, time: "@timestamp", values: [system.cpu.*, system.load.1]}
```

The same holds in each object for the rest of the name, so `attributes.http.route` is found in
`{"attributes": {"http.route": "/"}}` as well. A dot is never part of a step (`{"a.b": {"c": 1}}`
has no `a.b.c`), and lists are not entered: where null, a list or anything else that is no object
stands on the way, the field is missing. A name that comes twice in an object means its last value.
Files are read by the same rule: structs of Parquet are objects, columns of CSV have their names and
nothing inside. A pattern with a dot (`system.cpu.*`, `*.pct`) matches fields inside of objects as
well, one without does not. In alerts and rejects a field is called what it is called here.
"""

COMMANDS_HEAD = """\
# Commands

Made by `make docs` from the commands themselves (`cluster/commands/`).

Results go to stdout, everything else to stderr. `--json` makes stdout one JSON document (`tail`:
one a line); fields are added, never renamed. Exit codes: 0 done, 1 the answer is no, 2 a file, a
flag or a right must change, 3 something did not answer in time, 70 a bug, 130 interrupted.
"""


def settings(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every setting with its path, `[]` behind what is a list; parts before what they contain."""
    for name, field in model.model_fields.items():
        path = f"{prefix}{name}"
        yield path, field
        inner = model_of(field.annotation)
        if inner is not None and inner.__name__ != "Secret":
            listed = "[]" if get_origin(field.annotation) is tuple else ""
            yield from settings(inner, f"{path}{listed}.")


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    default: Any = field.default
    if default is PydanticUndefined or model_of(field.annotation) is not None:
        return ""
    if default is None or default == "":
        return "none"
    return f"`{default if isinstance(default, str) else json.dumps(default)}`"


def _allowed(field: FieldInfo) -> str:
    annotation: Any = field.annotation
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{each}`" for each in get_args(annotation))
    inner = model_of(annotation)
    if inner is not None:
        return "`{env: NAME}` or `{file: PATH}`" if inner.__name__ == "Secret" else ""
    bounds: list[str] = []
    for rule in field.metadata:
        for name, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
            if hasattr(rule, name):
                bounds.append(f"{sign} {_number(getattr(rule, name))}")
        if get_origin(annotation) in (tuple, dict) and hasattr(rule, "max_length"):
            bounds.append(f"at most {rule.max_length}")
        if getattr(rule, "pattern", None):
            bounds.append("`" + rule.pattern.replace("|", "\\|") + "`")
    if annotation is bool:
        bounds.append("`true`, `false`")
    return ", ".join(bounds)


def _number(value: float) -> str:
    whole = isinstance(value, int) or (value.is_integer() and abs(value) < 1e9)
    return f"{int(value):,}" if whole else f"{value:g}"


def configuration() -> str:
    """docs/configuration.md."""
    parts = [SETTINGS_HEAD]
    rows = list(settings(Config))
    lists = "A `[]` stands for each thing of a list."
    parts.append(
        f"## Settings\n\n{lists}\n\n| setting | default | allowed | |\n|---|---|---|---|\n"
    )
    for path, field in rows:
        words = field.description or ""
        parts.append(f"| `{path}` | {_default(field)} | {_allowed(field)} | {words} |\n")
    text = parts[0] + "\n" + "".join(parts[1:])
    assert len(rows) > 60, len(rows)  # the walk over the schema did not end early
    return text


def commands() -> str:
    """docs/commands.md."""
    from raywatch.cluster.cli import pages

    parts = [COMMANDS_HEAD]
    for name, words in pages():
        parts.append(f"\n## {name}\n\n```text\n{words.rstrip()}\n```\n")
    return "".join(parts)


def main(folder: str = "docs") -> None:
    """Write both pages."""
    for name, words in (("configuration.md", configuration()), ("commands.md", commands())):
        path = Path(folder) / name
        path.write_text(words)
        print(path)


if __name__ == "__main__":
    main(*sys.argv[1:])
