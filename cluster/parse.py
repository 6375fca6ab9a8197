"""From a YAML file to settings, or to one error that says everything.

Each problem is named with file, line, path in dots, the value, what is allowed, and the setting
that was probably meant. Values of secrets are never shown. Bounds: 1 MiB, 100,000 nodes with
aliases followed (a small file can name billions), TEXT_MAX characters of a value, PROBLEMS_MAX
problems in one message.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from raywatch.cluster.secret import SECRET, Secret
from raywatch.models.errors import ConfigError

BYTES_MAX = 1_048_576
NODES_MAX = 100_000
TEXT_MAX = 16_384  # characters of one value: YAML's `1:1:1` takes time with the square of it
PROBLEMS_MAX = 5
VALUE_CHARS_MAX = 80
REFERENCE = "write a reference: {env: NAME} or {file: PATH}"

M = TypeVar("M", bound=BaseModel)
Location = tuple[int | str, ...]


class _Loader(yaml.SafeLoader):
    """SafeLoader that takes `1e-5` for a number, as JSON and YAML 1.2 do.

    To YAML 1.1 a number with an exponent has a point and a sign of the exponent, or is a text.
    """


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def read(path: Path, model: type[M]) -> M:
    """Read and check one file. Raises ConfigError."""
    text = _text(path)
    try:
        node = yaml.compose(text, Loader=_Loader)
        if node is None:
            raise ConfigError(f"`{path}` is empty", hint="start with configs/local.yaml")
        _sound(node, path)
        tree = _built(text)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        line = f" line {mark.line + 1}" if mark is not None else ""
        raise ConfigError(f"`{path}`{line} is not YAML: {_quiet(error.problem)}") from None
    except RecursionError:
        raise ConfigError(f"`{path}` nests too deep to be a config") from None
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"`{path}` is not YAML: {_quiet(str(error).splitlines()[0])}") from None
    if not isinstance(tree, dict):
        # What it is instead is not shown: it may be the file of a secret.
        raise ConfigError(
            f"`{path}` must be a mapping of settings, it is a {type(tree).__name__}",
            hint="start with configs/local.yaml",
        )
    try:
        # Strict, so that `lanes: true` is not 1; as JSON, so that a list may become a tuple.
        return model.model_validate_json(_as_json(tree, path), strict=True)
    except ValidationError as error:
        # What contains a problem is reported too (a list is empty once its only item fell out).
        every = error.errors(include_url=False)
        inner = {each["loc"][:size] for each in every for size in range(len(each["loc"]))}
        problems = [each for each in every if each["loc"] not in inner]
        problems.sort(key=lambda each: each["type"] != "extra_forbidden")  # the likely cause first
        said = [_problem(each, path, node, tree, model) for each in problems[:PROBLEMS_MAX]]
        if len(problems) > PROBLEMS_MAX:
            said.append((f"and {len(problems) - PROBLEMS_MAX} more", ""))
        hint = next((hint for _, hint in said if hint), "docs/configuration.md lists every setting")
        raise ConfigError("\n  ".join(words for words, _ in said), hint=hint) from None


def _built(text: str) -> Any:
    """The values of a document. Raises YAMLError, ValueError, RecursionError."""
    try:
        return yaml.load(text, Loader=_Loader)
    except (AttributeError, KeyError, OverflowError, TypeError) as error:
        # PyYAML lets these through for `!!bool x`, `!!timestamp x` and the like.
        raise ValueError(f"a value does not fit its tag ({error})") from error


def _as_json(tree: Any, path: Path) -> str:
    try:
        return json.dumps(tree, default=str)
    except TypeError as error:
        raise ConfigError(f"`{path}`: names of settings must be text: {error}") from error
    except ValueError as error:  # of an integer with thousands of digits, or a tree in itself
        raise ConfigError(f"`{path}` holds a value that cannot be one: {error}") from error


def _text(path: Path) -> str:
    try:
        with path.open("rb") as stream:
            blob = stream.read(BYTES_MAX + 1)
        if len(blob) > BYTES_MAX:
            raise ConfigError(f"`{path}` is larger than {BYTES_MAX} bytes: is it a config?")
        return blob.decode()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError(f"cannot read `{path}`: {reason}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"`{path}` is not UTF-8 text (byte {error.start})") from error


def _sound(root: yaml.Node, path: Path) -> None:
    """Refuse keys that stand twice (YAML would silently take the last) and trees without end."""
    waiting = [root]
    seen = 0
    while waiting:
        node = waiting.pop()
        seen += 1
        if seen > NODES_MAX:
            raise ConfigError(f"`{path}` has more than {NODES_MAX} values: do aliases nest?")
        if isinstance(node, yaml.ScalarNode) and len(node.value) > TEXT_MAX:
            line = node.start_mark.line + 1
            raise ConfigError(f"`{path}` line {line}: a value of more than {TEXT_MAX} characters")
        if isinstance(node, yaml.SequenceNode):
            waiting.extend(node.value)
        elif isinstance(node, yaml.MappingNode):
            names: set[str] = set()
            for key, value in node.value:
                name = str(key.value)
                if name in names and name != "<<":
                    line = key.start_mark.line + 1
                    raise ConfigError(f"`{path}` line {line}: `{name}` stands there twice")
                names.add(name)
                waiting += (key, value)


def _problem(
    error: ErrorDetails, path: Path, node: yaml.Node, tree: Any, model: type[BaseModel]
) -> tuple[str, str]:
    """One problem as (words, hint)."""
    location = _real(error["loc"], tree)
    if error["type"] in ("missing", "extra_forbidden"):
        location = error["loc"]
    name = ".".join(str(each) for each in location)
    line = f" line {_line(node, location)}" if location else ""
    where = f"`{path}`{line}: " + (f"`{name}` " if name else "")
    if error["type"] == "extra_forbidden" and _is_secret(model, location[:-1]):
        parent = ".".join(str(each) for each in location[:-1])  # `password: {hunter2}` is a name
        return f"`{path}`{line}: `{parent}` is no reference to a secret", REFERENCE
    if error["type"] == "extra_forbidden":
        known = fields_at(model, location[:-1])
        meant = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.6)
        allowed = ", ".join(f"`{each}`" for each in known)
        hint = f"did you mean `{meant[0]}`?" if meant else f"allowed here: {allowed}"
        return f"{where}is not a setting", hint
    if error["type"] == "missing":
        parent = fields_at(model, location[:-1])
        assert location[-1] in parent, (location, parent)
        return f"{where}is missing", _description(model, location)
    words = error["msg"]
    if error["type"] == "value_error":
        words = words.removeprefix("Value error, ")
        return where + words, ""
    words = words.replace("Input should", "must").replace("String should", "must")
    words = words[:1].lower() + words[1:]
    given = error["input"]
    if isinstance(given, Mapping | Sequence) and not isinstance(given, str):
        return where + words, _description(model, location)
    if re.search(SECRET, name) or _is_secret(model, location):
        return f"{where}{words} (not shown)", REFERENCE
    return f"{where}{words}, got `{_shown(given)}`", _description(model, location)


def _real(location: Location, root: object) -> Location:
    """The part of an error's location that is in the file (pydantic adds names of union cases)."""
    found: list[int | str] = []
    tree: Any = root
    for each in location:
        listed = isinstance(tree, list) and isinstance(each, int) and each < len(tree)
        if not listed and not (isinstance(tree, dict) and each in tree):
            break
        tree = cast("Any", tree)[each]
        found.append(each)
    return tuple(found)


def _line(node: yaml.Node, location: Location) -> int:
    """Line of a setting, or of the closest thing around it that is there."""
    line = node.start_mark.line
    for each in location:
        if isinstance(node, yaml.SequenceNode) and isinstance(each, int) and each < len(node.value):
            node = node.value[each]
            line = node.start_mark.line
        elif isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(each):
                    line, node = key.start_mark.line, value
                    break
            else:
                break
        else:
            break
    return line + 1


def model_of(annotation: Any) -> type[BaseModel] | None:
    """The settings class inside an annotation like `tuple[Detector, ...]` or `Secret | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for each in get_args(annotation):
        found = model_of(each)
        if found is not None:
            return found
    return None


def _owner(model: type[BaseModel], location: Location) -> type[BaseModel] | None:
    """The settings class at a location."""
    found: type[BaseModel] | None = model
    for each in location:
        if isinstance(each, int):
            continue
        if found is None or each not in found.model_fields:
            return None
        found = model_of(found.model_fields[each].annotation)
    return found


def fields_at(model: type[BaseModel], location: Location) -> list[str]:
    """Names of the settings that are allowed at a location."""
    found = _owner(model, location)
    return list(found.model_fields) if found is not None else []


def _description(model: type[BaseModel], location: Location) -> str:
    names = [each for each in location if isinstance(each, str)]
    if not names:
        return ""
    parent = _owner(model, tuple(names[:-1]))
    field = parent.model_fields.get(names[-1]) if parent is not None else None
    return f"{names[-1]}: {field.description}" if field is not None and field.description else ""


def _is_secret(model: type[BaseModel], location: Location) -> bool:
    """Whether a setting is a reference to a secret, or lies in one."""
    names = [each for each in location if isinstance(each, str)]
    for size in range(1, len(names) + 1):
        parent = _owner(model, tuple(names[: size - 1]))
        field = parent.model_fields.get(names[size - 1]) if parent is not None else None
        if field is not None and model_of(field.annotation) is Secret:
            return True
    return False


def _quiet(problem: str | None) -> str:
    """What the YAML parser says, without what it quotes beyond single signs."""
    return re.sub(r"(['\"]).{2,}\1", "...", problem or "")


def _shown(value: object) -> str:
    try:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
    except (TypeError, ValueError, RecursionError):  # thousands of digits, odd keys
        text = f"a value of type {type(value).__name__}"
    return text if len(text) <= VALUE_CHARS_MAX else text[: VALUE_CHARS_MAX - 3] + "..."
