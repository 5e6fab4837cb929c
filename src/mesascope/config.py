"""Configurations: frozen dataclasses that turn into JSON and back without loss.

The JSON of a configuration is what a run stores, and its hash names the run. Every object carries its class name under
`"type"`, so a union of dataclasses is read back as the right one. Unknown and missing fields are errors that name the
field: a default that changes later must not silently change the meaning of a stored file. Fields that a class gained
after files were stored are made with `added`, and leave those files and their hashes as they are.
"""

import dataclasses
import hashlib
import json
import math
import types
import typing
from typing import Any, Literal, TypeVar, Union

from mesascope.errors import InputError, suggest

Config = TypeVar("Config")
Value = TypeVar("Value")

SCHEMA = 1
"""Version of the stored form. It changes when old files can no longer be read as they are."""

_ABSENT = "absent"


def added(absent: Value) -> Value:
    """A dataclass field that came after files were stored. It is left out of the JSON, and so of the hash, where it has
    the value `absent`, which is also its default: what those files mean by not naming it, and must go on to mean.
    """
    field: Value = dataclasses.field(default=absent, metadata={_ABSENT: absent})
    return field


def to_json(config: Any) -> Any:
    """A configuration as plain JSON values; dataclasses become objects with their class name under `"type"`."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        values = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        for field in dataclasses.fields(config):
            if _ABSENT in field.metadata and values[field.name] == field.metadata[_ABSENT]:
                del values[field.name]
        return {"type": type(config).__name__, **{name: to_json(value) for name, value in values.items()}}
    if isinstance(config, (tuple, list)):
        return [to_json(item) for item in config]
    if isinstance(config, dict):
        return {key: to_json(item) for key, item in config.items()}
    return config


def from_json(expected: type[Config], data: Any, where: str = "config") -> Config:
    """Read a configuration of type `expected` from JSON values.

    Raises:
        InputError: a field is unknown, missing or of the wrong type (the message gives its path), or a value is out
            of its range.
    """
    return typing.cast(Config, _read(expected, data, where))


def config_hash(config: Any) -> str:
    """The first 12 hexadecimal digits of the SHA-256 of the canonical JSON: the name of the run it describes.

    Equal configurations have equal hashes: an int that was given for a float counts as that float.
    """
    read_back = from_json(type(config), to_json(config))
    canonical = json.dumps(to_json(read_back), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _read(expected: Any, data: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin in (Union, types.UnionType):
        return _read_union(arguments, data, where)
    if origin is Literal:
        if data not in arguments:
            raise InputError(f"{where}: got {data!r}, but it must be one of {', '.join(map(repr, arguments))}")
        return data
    if origin is tuple:
        return _read_tuple(arguments, data, where)
    if dataclasses.is_dataclass(expected):
        return _read_dataclass(expected, data, where)
    if expected is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if expected is type(None):
        expected = types.NoneType
    if isinstance(data, float) and not math.isfinite(data):
        raise InputError(f"{where}: got {data!r}, but it must be a finite number")
    # bool is a subclass of int, so a plain isinstance would let true pass for 1
    if type(data) is not expected:
        raise InputError(f"{where}: got {data!r}, but it must be of type {expected.__name__}")
    return data


def _read_union(members: tuple[Any, ...], data: Any, where: str) -> Any:
    if data is None and types.NoneType in members:
        return None
    candidates = [member for member in members if member is not types.NoneType]
    if isinstance(data, dict):
        named = {member.__name__: member for member in candidates if isinstance(member, type)}
        name = data.get("type")
        if name not in named:
            raise InputError(f"{where}.type: got {name!r}; {suggest(str(name), named)}")
        return _read_dataclass(named[name], data, where)
    if len(candidates) == 1:
        return _read(candidates[0], data, where)
    for candidate in candidates:
        try:
            return _read(candidate, data, where)
        except InputError:
            continue
    names = ", ".join(getattr(member, "__name__", str(member)) for member in members)
    raise InputError(f"{where}: got {data!r}, but it must be one of {names}")


def _read_tuple(arguments: tuple[Any, ...], data: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(data, (list, tuple)):
        raise InputError(f"{where}: got {data!r}, but it must be a list")
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_read(arguments[0], item, f"{where}[{index}]") for index, item in enumerate(data))
    if len(data) != len(arguments):
        raise InputError(f"{where}: got {len(data)} items, but it must have {len(arguments)}")
    pairs = zip(arguments, data, strict=True)
    return tuple(_read(member, item, f"{where}[{index}]") for index, (member, item) in enumerate(pairs))


def _read_dataclass(expected: Any, data: Any, where: str) -> Any:
    if not isinstance(data, dict):
        raise InputError(f"{where}: got {data!r}, but it must be an object with the fields of {expected.__name__}")
    if data.get("type", expected.__name__) != expected.__name__:
        raise InputError(f"{where}.type: got {data['type']!r}, but it must be {expected.__name__!r}")
    hints = typing.get_type_hints(expected)
    fields = {field.name: field for field in dataclasses.fields(expected)}
    for name in data:
        if name != "type" and name not in fields:
            raise InputError(f"{where}.{name}: no such field in {expected.__name__}; {suggest(name, fields)}")
    values = {}
    for name, field in fields.items():
        if name in data:
            values[name] = _read(hints[name], data[name], f"{where}.{name}")
        elif _ABSENT in field.metadata:
            values[name] = field.metadata[_ABSENT]
        else:
            raise InputError(f"{where}.{name}: field of {expected.__name__} is missing")
    try:
        return expected(**values)
    except InputError as error:
        raise InputError(f"{where}.{error}") from None
