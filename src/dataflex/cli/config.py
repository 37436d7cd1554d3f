"""The strict reading of a config: files, overrides, our keys, method presets."""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import TypeAdapter, ValidationError

from dataflex.algorithms.catalog import selector_class
from dataflex.core.errors import ConfigError, did_you_mean
from dataflex.core.plan import Schedule

TRAIN_TYPES = ("static", "dynamic_select")
LATER_TRAIN_TYPES = ("dynamic_mix", "dynamic_weight", "dynamic_reorder")
SCHEDULE_KEYS = tuple(field.name for field in dataclasses.fields(Schedule))
OUR_KEYS = ("train_type", "components_cfg_file", "component_name", "score_batch_tokens", *SCHEDULE_KEYS)
PACKAGE_COMPONENTS = Path(__file__).parent.parent / "configs" / "components.yaml"
COMPONENT_KINDS = ("selectors", "mixers", "weighters", "orders")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A config taken apart: what is the host's, what is ours."""

    host: dict[str, Any]  # LLaMA-Factory's keys
    train_type: str
    resolved: dict[str, Any]  # everything, overrides applied
    method_name: str = ""
    selector: Any = None
    schedule: Schedule | None = None
    score_batch_tokens: int | None = None

    @property
    def is_dynamic(self) -> bool:
        return self.train_type != "static"


def read_config(path: str, overrides: list[str]) -> RunConfig:
    """Read a config file with command-line overrides and take our keys out.

    Raises:
        ConfigError: an unreadable file, an override without "=", or any wrong value of our keys.
    """
    return split_config(*load_files(path, overrides))


def load_files(path: str, overrides: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (the config with overrides applied, the overrides of ``component.``)."""
    config = _load_mapping(Path(path), "config")
    if not config:
        raise ConfigError(f"the config {path!r} is empty")
    for text in overrides:
        if "=" not in text or not text.split("=", 1)[0]:
            raise ConfigError(f"{text!r} is not an override; write key=value")
    try:
        given = OmegaConf.to_container(OmegaConf.from_dotlist(overrides))
        merged = OmegaConf.to_container(OmegaConf.merge(config, given), resolve=True)
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError) as error:
        raise ConfigError(f"the overrides cannot be applied ({_line(error)}); write key=value") from error
    if not isinstance(merged, dict) or not isinstance(given, dict):
        raise ConfigError(f"{path} holds no mapping of keys to values")
    component = merged.pop("component", None)
    component = {} if component is None else component
    if not isinstance(component, dict):
        raise ConfigError(f"component is {component!r}; write component.params.NAME=value")
    return {str(key): value for key, value in merged.items()}, component


def split_config(config: dict[str, Any], component: Mapping[str, Any]) -> RunConfig:
    """Take our keys out of a merged config and build what they describe."""
    ours = {key: config[key] for key in OUR_KEYS if key in config}
    host = {key: value for key, value in config.items() if key not in OUR_KEYS}
    train_type = ours.get("train_type", "static")
    if train_type in LATER_TRAIN_TYPES:
        raise ConfigError(f"train_type {train_type!r} is not served yet; served: {', '.join(TRAIN_TYPES)}")
    if train_type not in TRAIN_TYPES:
        hint = did_you_mean(str(train_type), (*TRAIN_TYPES, *LATER_TRAIN_TYPES))
        raise ConfigError(f"train_type is {train_type!r}{hint}; it must be one of {', '.join(TRAIN_TYPES)}")
    if "train_type" not in ours and (ours or component):
        raise ConfigError(
            f"{', '.join(ours) or 'component'} is set but train_type is not; set train_type: dynamic_select, or "
            "train_type: static to train without it"
        )
    if train_type == "static":
        return RunConfig(host=host, train_type=train_type, resolved=dict(config))
    schedule = build(Schedule, {key: ours[key] for key in SCHEDULE_KEYS if key in ours}, where="")
    batch_tokens = _checked("score_batch_tokens", ours.get("score_batch_tokens"), int | None)
    if batch_tokens is not None and batch_tokens < 1:
        raise ConfigError(f"score_batch_tokens is {batch_tokens}; it must be at least 1")
    components_path = find_components(ours.get("components_cfg_file"))
    output_dir = str(host.get("output_dir") or "")
    if not output_dir:
        raise ConfigError("output_dir is missing; the run's record and checkpoints are written there")
    preset = read_preset(components_path, ours.get("component_name"), component, output_dir=output_dir)
    selector = build(selector_class(preset["name"]), preset["params"], where=f"component {ours['component_name']}: ")
    if not callable(getattr(selector, "select", None)):
        raise ConfigError(f"{preset['name']} is no selector: it has no method select")
    return RunConfig(
        host=host,
        train_type=train_type,
        resolved=json.loads(json.dumps({**config, "component": preset}, default=str)),
        method_name=preset["name"],
        selector=selector,
        schedule=schedule,
        score_batch_tokens=batch_tokens,
    )


def check_host_keys(host: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise for a key that neither we nor LLaMA-Factory know (with the nearest name), or a word in a number's place.

    Args:
        host: LLaMA-Factory's keys of a config.
        known: all its keys with their types.
    """
    for key, value in host.items():
        if key not in known:
            raise ConfigError(f"unknown key {key!r}{did_you_mean(key, (*known, *OUR_KEYS))}; remove or correct it")
        # LLaMA-Factory checks no types; a word would fail much later, in the middle of PyTorch. Other types than the
        # plain ones have their own readers.
        if known[key] in (int, float, bool, int | None, float | None, bool | None):
            _checked(key, value, known[key])


def _checked(name: str, value: Any, hint: Any, where: str = "") -> Any:
    """``value`` if it is of type ``hint``, strictly: nothing is converted."""
    try:
        return TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        problem = error.errors()[0]["msg"]
        raise ConfigError(f"{where}{name} is {value!r}: {problem[0].lower()}{problem[1:]}") from error


def find_components(path: Any) -> Path:
    """The components file: relative to the working directory, then to the package, else the one shipped."""
    if path is None:
        return PACKAGE_COMPONENTS
    given = Path(str(path))
    inside_package = Path(__file__).parent.parent / os.path.normpath(str(path)).removeprefix("src/dataflex/")
    for candidate in (given, inside_package):
        try:
            if candidate.is_file():
                return candidate
        except OSError:  # a name that the file system does not take
            continue
    raise ConfigError(
        f"components_cfg_file {str(path)!r} does not exist, neither in the working directory nor in the package; "
        "correct the path, or leave the key out to use the presets of the package"
    )


def read_presets(path: Path) -> dict[str, Any]:
    """Selector presets of a components file, with or without the top-level ``selectors:``."""
    content = _load_mapping(path, "components file")
    kinds = [kind for kind in COMPONENT_KINDS if kind in content]
    presets = content.get("selectors", {} if kinds else content)
    if not isinstance(presets, dict):
        raise ConfigError(f"selectors of {path} is no mapping of preset names")
    return presets


def read_preset(path: Path, name: Any, overrides: Mapping[str, Any], *, output_dir: str) -> dict[str, Any]:
    """One preset as {"name": method, "params": {...}}, overrides applied, ``${output_dir}`` replaced."""
    presets = read_presets(path)
    listing = ", ".join(map(str, presets)) or "none"
    if name is None:
        raise ConfigError(f"component_name is missing; it must name a preset of {path}: {listing}")
    if not isinstance(name, (str, int)) or name not in presets:
        raise ConfigError(
            f"component_name {name!r} is not in {path}{did_you_mean(str(name), map(str, presets))}; known: {listing}"
        )
    preset = presets[name] or {}
    if not isinstance(preset, dict):
        raise ConfigError(f"the preset {name!r} of {path} is no mapping; write name: and params:")
    merged = {**preset, **{key: value for key, value in overrides.items() if key != "params"}}
    for key in merged:
        if key not in ("name", "params"):
            raise ConfigError(f"unknown key {key!r} in the preset {name!r}{did_you_mean(key, ('name', 'params'))}")
    params, changed = preset.get("params") or {}, overrides.get("params") or {}
    if not isinstance(params, dict) or not isinstance(changed, dict):
        raise ConfigError(f"params of the preset {name!r} is no mapping of parameters to values")
    params = {key: _replace_output_dir(value, output_dir) for key, value in {**params, **changed}.items()}
    return {"name": str(merged.get("name", name)), "params": params}


def build(cls: Any, values: Mapping[str, Any], *, where: str) -> Any:
    """Make a dataclass from config values, strictly: unknown names and wrong types are errors, nothing is converted."""
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ConfigError(f"{where}{getattr(cls, '__name__', cls)} is not a dataclass of parameters")
    hints = typing.get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    checked = {}
    for name, value in values.items():
        if name not in names:
            raise ConfigError(
                f"{where}unknown parameter {name!r}{did_you_mean(str(name), names)}; known: {', '.join(names)}"
            )
        # YAML has lists only; strict mode would refuse one where a tuple is meant.
        checked[name] = _checked(name, tuple(value) if isinstance(value, list) else value, hints[name], where)
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.init and required and field.name not in checked:
            raise ConfigError(f"{where}{field.name} is missing; it has no default")
    try:
        return cls(**checked)
    except ConfigError as error:
        raise ConfigError(f"{where}{error}") from error


def _load_mapping(path: Path, what: str) -> dict[str, Any]:
    """Read a YAML or JSON file that holds a mapping; interpolations stay as written."""
    if path.suffix not in (".yaml", ".yml", ".json"):
        raise ConfigError(f"the {what} {str(path)!r} must end in .yaml, .yml or .json")
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
        else:
            # OmegaConf reads 1e-4 as a number, as LLaMA-Factory does; plain YAML reads a string.
            content = OmegaConf.to_container(OmegaConf.load(path))
    except OSError as error:
        raise ConfigError(f"the {what} {str(path)!r} cannot be read: {error.strerror or error}") from error
    except (OmegaConfBaseException, yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"the {what} {str(path)!r} is not valid: {_line(error)}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"the {what} {str(path)!r} holds no mapping of keys to values")
    return content  # type: ignore[return-value]


def _replace_output_dir(value: Any, output_dir: str) -> Any:
    return value.replace("${output_dir}", output_dir) if isinstance(value, str) else value


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200]
