"""Strict reading: mappings from YAML and JSON files, values of the types that are meant, nothing converted."""

from __future__ import annotations

import dataclasses
import json
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import PydanticUserError, TypeAdapter, ValidationError

from dataflex.core.errors import ConfigError, did_you_mean, shown


def build(cls: Any, values: Mapping[str, Any], *, where: str) -> Any:
    """Make a dataclass from config values, strictly: unknown names and wrong types are errors, nothing is converted."""
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ConfigError(f"{where}{getattr(cls, '__name__', cls)} is not a dataclass of parameters")
    try:
        hints = typing.get_type_hints(cls)
    except (NameError, TypeError, SyntaxError) as error:  # annotations that are no types at run time
        raise ConfigError(
            f"{where}the parameters of {cls.__name__} have unreadable types ({one_line(error)})"
        ) from error
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    values_checked = {}
    for name, value in values.items():
        if name not in names:
            raise ConfigError(
                f"{where}unknown parameter {shown(name)}{did_you_mean(name, names)}; known: {', '.join(names)}"
            )
        # YAML has lists only; strict mode would refuse one where a tuple is meant.
        values_checked[name] = checked(name, tuple(value) if isinstance(value, list) else value, hints[name], where)
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.init and required and field.name not in values_checked:
            raise ConfigError(f"{where}{field.name} is missing; it has no default")
    try:
        return cls(**values_checked)
    except (ConfigError, ValueError, TypeError) as error:  # the latter are how other people's classes refuse a value
        raise ConfigError(f"{where}{error}") from error


def checked(name: str, value: Any, hint: Any, where: str = "") -> Any:
    """``value`` if it is of type ``hint``, strictly: nothing is converted."""
    try:
        return TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]["msg"]
        raise ConfigError(f"{where}{name} is {shown(value)}: {problem[0].lower()}{problem[1:]}") from error
    except PydanticUserError as error:
        raise ConfigError(f"{where}{name} is of type {hint}, which no config can hold; leave it out") from error


def load_mapping(path: Path, what: str) -> dict[str, Any]:
    """Read a YAML or JSON file that holds a mapping; interpolations stay as written."""
    name = shown(str(path))
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise ConfigError(f"the {what} {name} must end in .yaml, .yml or .json")
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_doubles)
        else:
            # OmegaConf reads 1e-4 as a number, as LLaMA-Factory does; plain YAML reads a string. It builds plain values
            # only: a tag such as !!python/object/apply is an error.
            content = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise ConfigError(f"the {what} {name} cannot be read: {error.strerror or error}") from error
    except Exception as error:  # PyYAML raises KeyError for "!!bool maybe", IndexError for "!!int ''", and so on
        raise ConfigError(f"the {what} {name} is not valid: {one_line(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"the {what} {name} holds no mapping of keys to values")
    return content  # type: ignore[return-value]


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object; as in YAML, no key may come twice, since one of its values would be lost."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"found duplicate key {shown(key)}")
        found[key] = value
    return found


def one_line(error: BaseException) -> str:
    """The message of a foreign error on one line; its type where it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__
