"""The strict reading of a config: files, overrides, our keys, method presets."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import PydanticUserError, TypeAdapter, ValidationError

from dataflex.algorithms.catalog import foreign_module, selector_class
from dataflex.core.errors import ConfigError, did_you_mean, shown
from dataflex.core.plan import Schedule

TRAIN_TYPES = ("static", "dynamic_select")
LATER_TRAIN_TYPES = ("dynamic_mix", "dynamic_weight", "dynamic_reorder")
SCHEDULE_KEYS = tuple(field.name for field in dataclasses.fields(Schedule))
OTHER_KEYS = ("train_type", "components_cfg_file", "component_name", "score_batch_tokens", "log_source_loss")
OUR_KEYS = (*OTHER_KEYS, *SCHEDULE_KEYS)
PACKAGE_COMPONENTS = Path(__file__).parent.parent / "configs" / "components.yaml"
# What the verbs ask of a selector, beyond the calls of a run; `SelectorBase` has all of it.
SELECTOR_PARTS = ("select", "needs", "needs_at", "init", "observe", "follows_host", "serves_warmup")
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
    log_source_loss: bool = False

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
            raise ConfigError(f"{shown(text)} is not an override; write key=value")
    try:
        given = OmegaConf.to_container(OmegaConf.from_dotlist(overrides))
        merged = OmegaConf.to_container(OmegaConf.merge(config, given), resolve=True)
    except Exception as error:  # OmegaConf, its grammar and PyYAML raise some twenty types for a wrong text
        if not overrides:
            raise ConfigError(f"the values of {path!r} cannot be resolved ({_line(error)}); correct them") from error
        raise ConfigError(f"the overrides cannot be applied ({_line(error)}); write key=value") from error
    if not isinstance(merged, dict) or not isinstance(given, dict):
        raise ConfigError(f"{path} holds no mapping of keys to values")
    component = merged.pop("component", None)
    component = {} if component is None else component
    if not isinstance(component, dict):
        raise ConfigError(f"component is {shown(component)}; write component.params.NAME=value")
    return {str(key): value for key, value in merged.items()}, component


def split_config(config: dict[str, Any], component: Mapping[str, Any]) -> RunConfig:
    """Take our keys out of a merged config and build what they describe."""
    ours = {key: config[key] for key in OUR_KEYS if key in config}
    host = {key: value for key, value in config.items() if key not in OUR_KEYS}
    train_type = ours.get("train_type", "static")
    if train_type in LATER_TRAIN_TYPES:
        raise ConfigError(f"train_type {train_type!r} is not served yet; served: {', '.join(TRAIN_TYPES)}")
    if train_type not in TRAIN_TYPES:
        hint = did_you_mean(train_type, (*TRAIN_TYPES, *LATER_TRAIN_TYPES))
        raise ConfigError(f"train_type is {shown(train_type)}{hint}; it must be one of {', '.join(TRAIN_TYPES)}")
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
        raise ConfigError(f"score_batch_tokens is {shown(batch_tokens)}; it must be at least 1")
    log_source_loss = _checked("log_source_loss", ours.get("log_source_loss", False), bool)
    components_path = find_components(ours.get("components_cfg_file"))
    output_dir = str(host.get("output_dir") or "")
    if not output_dir:
        raise ConfigError("output_dir is missing; the run's record and checkpoints are written there")
    preset = read_preset(components_path, ours.get("component_name"), component, output_dir=output_dir)
    module = foreign_module(preset["name"])
    if module is not None:  # said before it runs: importing it may do anything
        _say_foreign(preset["name"], module, "the config" if "name" in component else str(components_path))
    selector = build(selector_class(preset["name"]), preset["params"], where=f"component {ours['component_name']}: ")
    for part in SELECTOR_PARTS:
        if not hasattr(selector, part):
            raise ConfigError(f"{preset['name']} is no selector: it has no {part}; derive it from SelectorBase")
    try:
        resolved = json.loads(json.dumps({**config, "component": preset}, default=str))
    except (TypeError, ValueError, RecursionError) as error:  # keys of bytes, numbers of 5,000 digits, deep nesting
        raise ConfigError(f"the config cannot be kept as JSON in the run's record ({_line(error)})") from error
    return RunConfig(
        host=host,
        train_type=train_type,
        resolved=resolved,
        method_name=preset["name"],
        selector=selector,
        schedule=schedule,
        score_batch_tokens=batch_tokens,
        log_source_loss=log_source_loss,
    )


def check_host_keys(host: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise for a key that neither we nor LLaMA-Factory know (with the nearest name), or a word in a number's place.

    Args:
        host: LLaMA-Factory's keys of a config.
        known: all its keys with their types.
    """
    for key, value in host.items():
        if key not in known:
            hint = did_you_mean(key, (*known, *OUR_KEYS))
            raise ConfigError(f"unknown key {shown(key)}{hint}; remove or correct it")
        # LLaMA-Factory checks no types; a word would fail much later, in the middle of PyTorch. Other types than the
        # plain ones have their own readers.
        if known[key] in (int, float, bool, int | None, float | None, bool | None):
            _checked(key, value, known[key])


def _checked(name: str, value: Any, hint: Any, where: str = "") -> Any:
    """``value`` if it is of type ``hint``, strictly: nothing is converted."""
    try:
        return TypeAdapter(hint).validate_python(value, strict=True)
    except ValidationError as error:
        problem = error.errors(include_input=False)[0]["msg"]
        raise ConfigError(f"{where}{name} is {shown(value)}: {problem[0].lower()}{problem[1:]}") from error
    except PydanticUserError as error:
        raise ConfigError(f"{where}{name} is of type {hint}, which no config can hold; leave it out") from error


def find_components(path: Any) -> Path:
    """The components file: relative to the working directory, then to the package, else the one shipped."""
    if path is None:
        return PACKAGE_COMPONENTS
    if not isinstance(path, (str, int, float)):
        raise ConfigError(f"components_cfg_file is {shown(path)}; it must be the name of a file")
    given = Path(str(path))
    inside_package = Path(__file__).parent.parent / os.path.normpath(str(path)).removeprefix("src/dataflex/")
    for candidate in (given, inside_package):
        try:
            if candidate.is_file():
                return candidate
        except OSError:  # a name that the file system does not take
            continue
    raise ConfigError(
        f"components_cfg_file {shown(str(path))} does not exist, neither in the working directory nor in the package; "
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
    listing = _listed(presets)
    if name is None:
        raise ConfigError(f"component_name is missing; it must name a preset of {path}: {listing}")
    if not isinstance(name, (str, int)) or name not in presets:
        raise ConfigError(
            f"component_name {shown(name)} is not in {path}{did_you_mean(name, presets)}; known: {listing}"
        )
    preset = {} if presets[name] is None else presets[name]
    if not isinstance(preset, dict):
        raise ConfigError(f"the preset {shown(name)} of {path} is no mapping; write name: and params:")
    merged = {**preset, **{key: value for key, value in overrides.items() if key != "params"}}
    for key in merged:
        if key not in ("name", "params"):
            hint = did_you_mean(key, ("name", "params"))
            raise ConfigError(f"unknown key {shown(key)} in the preset {shown(name)}{hint}")
    params, changed = ({} if part.get("params") is None else part["params"] for part in (preset, overrides))
    if not isinstance(params, dict) or not isinstance(changed, dict):
        raise ConfigError(f"params of the preset {shown(name)} is no mapping of parameters to values")
    params = {key: _replace_output_dir(key, value, output_dir) for key, value in {**params, **changed}.items()}
    method = merged.get("name", name)
    return {"name": method if isinstance(method, str) else shown(method), "params": params}


def build(cls: Any, values: Mapping[str, Any], *, where: str) -> Any:
    """Make a dataclass from config values, strictly: unknown names and wrong types are errors, nothing is converted."""
    if not (isinstance(cls, type) and dataclasses.is_dataclass(cls)):
        raise ConfigError(f"{where}{getattr(cls, '__name__', cls)} is not a dataclass of parameters")
    try:
        hints = typing.get_type_hints(cls)
    except (NameError, TypeError, SyntaxError) as error:  # annotations that are no types at run time
        raise ConfigError(f"{where}the parameters of {cls.__name__} have unreadable types ({_line(error)})") from error
    names = [field.name for field in dataclasses.fields(cls) if field.init]
    checked = {}
    for name, value in values.items():
        if name not in names:
            raise ConfigError(
                f"{where}unknown parameter {shown(name)}{did_you_mean(name, names)}; known: {', '.join(names)}"
            )
        # YAML has lists only; strict mode would refuse one where a tuple is meant.
        checked[name] = _checked(name, tuple(value) if isinstance(value, list) else value, hints[name], where)
    for field in dataclasses.fields(cls):
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if field.init and required and field.name not in checked:
            raise ConfigError(f"{where}{field.name} is missing; it has no default")
    try:
        return cls(**checked)
    except (ConfigError, ValueError, TypeError) as error:  # the latter are how other people's classes refuse a value
        raise ConfigError(f"{where}{error}") from error


def _load_mapping(path: Path, what: str) -> dict[str, Any]:
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
        raise ConfigError(f"the {what} {name} is not valid: {_line(error)}") from error
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


def _replace_output_dir(name: Any, value: Any, output_dir: str) -> Any:
    """``value`` with ``${output_dir}`` replaced; any other ``${`` is not resolved in a preset, hence an error."""
    if isinstance(value, list):
        return [_replace_output_dir(name, item, output_dir) for item in value]
    if not isinstance(value, str):
        return value
    if "${" in value.replace("${output_dir}", ""):
        raise ConfigError(f"{shown(name)} is {shown(value)}; only ${{output_dir}} is replaced in a preset")
    return value.replace("${output_dir}", output_dir)


@functools.cache
def _say_foreign(name: str, module: str, where: str) -> None:
    """Tell, once, whose code is about to run."""
    if os.environ.get("RANK", "0") == "0":
        print(f"[dataflex] method {shown(name)} is code of module {shown(module)}, named in {where}", flush=True)


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(name if isinstance(name, str) else shown(name) for name in names) or "none"


def _line(error: BaseException) -> str:
    """The message of a foreign error on one line; its type where it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__
