"""Reads the YAML files that people edit, and describes errors in them in one line."""

import json
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML, MappingNode, Node, ScalarNode, YAMLError
from ruamel.yaml.constructor import DuplicateKeyError

from vlm.config.errors import InputError


class Frozen(BaseModel):
    """Configuration read from YAML: immutable and strictly typed; unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


T = TypeVar("T", bound=Frozen)

# pydantic describes these errors in terms of Python; these texts describe them in terms of YAML.
_EXPECTED = {
    "model_type": "should be a mapping of keys to values",
    "dict_type": "should be a mapping of keys to values",
    "tuple_type": "should be a list",
    "list_type": "should be a list",
    "too_short": "should have at least one entry",
    "string_type": "should be text; put it in quotes",
    "string_too_short": "should not be empty",
    "bool_type": "should be true or false",
    "int_type": "should be a whole number",
    "float_type": "should be a number",
    "finite_number": "should be a finite number",
}


def read_yaml(path: str | Path) -> Any:
    """Reads YAML 1.2 as DVC does (`no` is a string, 5e-4 is a number). Raises InputError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
        return YAML(typ="safe", pure=True).load(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {(error.strerror or str(error)).lower()}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: should be text in UTF-8") from None
    except YAMLError as error:
        repeated = isinstance(error, DuplicateKeyError) and _repeated_key(YAML(typ="safe", pure=True).compose(text))
        if repeated:
            raise InputError(f"{path}: {repeated}") from None
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}: " if mark else ""
        raise InputError(f"{path}: {where}{getattr(error, 'problem', None) or 'is not YAML'}") from None


def round_trip() -> YAML:
    """Reads YAML and writes it again with its comments, quotes and styles; only line breaks may change."""
    yaml = YAML()
    yaml.width, yaml.preserve_quotes = 120, True
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar("tag:yaml.org,2002:null", "null")
    )
    return yaml


def _repeated_key(node: Node, *parents: str) -> str | None:
    """One line about the first key that is twice in a mapping; None if it is in a list, or no plain text or number."""
    lines: dict[str, int] = {}
    for key, value in node.value if isinstance(node, MappingNode) else ():
        if not isinstance(key, ScalarNode):
            continue
        name, line = key.value, key.start_mark.line + 1
        if name in lines:
            where = f"in line {line}" if lines[name] == line else f"in lines {lines[name]} and {line}"
            # A block such as `relabel` has other entries the second time; below it, the entry itself is there twice.
            remedy = "join the two" if not parents and isinstance(value, MappingNode) else "remove one of the two"
            return f"{'.'.join((*parents, name))}: is there twice, {where}; {remedy}"
        lines[name] = line
        if found := _repeated_key(value, *parents, name):
            return found
    return None


def read_mapping(path: str | Path) -> dict[str, Any]:
    """Reads a YAML file whose top level is a mapping. Raises InputError."""
    values = read_yaml(path)
    if not isinstance(values, dict):
        raise InputError(f"{path}: should be a mapping of keys to values")
    return values


def named_file(name: str, kind: str) -> tuple[dict[str, Any], str]:
    """The values of configs/<kind>/<name>.yaml, with `name` added, and the file's path. Raises InputError."""
    path = Path("configs", kind, f"{name}.yaml")
    if not path.exists():
        known = ", ".join(sorted(file.stem for file in path.parent.glob("*.yaml")))
        raise InputError(f"params.yaml: {kind[:-1]}: {name!r} has no file {path}; the available names are {known}")
    values = read_mapping(path)
    if "name" in values:
        raise InputError(f"{path}: name: there is no such key; the name is taken from the file name")
    return {**values, "name": name}, str(path)


def validate(kind: type[T], values: dict[str, Any], path: str) -> T:
    """Validates `values`, read from `path`, as a `kind`. Raises InputError for the first error."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InputError(f"{path}: {_describe_first(error, kind)}") from None


def _describe_first(error: ValidationError, kind: type[Frozen]) -> str:
    """Describes the first error that pydantic found: the key, the value and what is expected."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"] if part != "[key]")
    if first["type"] == "missing":
        return f"{key}: is missing; add it"
    if first["type"] == "extra_forbidden":
        return f"{key}: there is no such key; the keys here are {', '.join(_keys(kind, first['loc'][:-1]))}"
    message = _EXPECTED.get(first["type"], first["msg"].removeprefix("Value error, ").removeprefix("Input "))
    if first["type"] == "value_error" and isinstance(first["input"], dict):
        return f"{key}: {message}" if key else message  # the error is about several keys of a block
    value = first["input"]
    if value is None and first["type"] == "string_type":
        return f"{key}: is empty; write some text"
    shown = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)  # null and true, as in YAML
    return f"{key}: {shown} {message}"


def _keys(kind: Any, location: tuple[int | str, ...]) -> list[str]:
    """The keys of the block at `location`."""
    for part in location:
        if part not in kind.model_fields:
            continue  # a key of a mapping whose values are blocks
        annotation = kind.model_fields[part].annotation
        kind = next(choice for choice in (annotation, *get_args(annotation)) if hasattr(choice, "model_fields"))
    return [field.alias or key for key, field in kind.model_fields.items() if key != "name"]
