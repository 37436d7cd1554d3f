"""Components files: the presets of methods, by kind."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dataflex.algorithms.catalog import COMPONENTS
from dataflex.cli.strict import load_mapping
from dataflex.core.errors import ConfigError, did_you_mean, shown

PACKAGE_COMPONENTS = Path(__file__).parent.parent / "configs" / "components.yaml"


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


def read_presets(path: Path, kind: str) -> dict[str, Any]:
    """Presets of one kind of a components file; one without the top-level ``selectors:`` and so on is of any kind."""
    content = load_mapping(path, "components file")
    kinds = [known for known in COMPONENTS if known in content]
    presets = content.get(kind, {} if kinds else content)
    if not isinstance(presets, dict):
        raise ConfigError(f"{kind} of {path} is no mapping of preset names")
    return presets


def presets_by_kind(path: Path) -> dict[str, dict[str, Any]]:
    """All presets of a components file; those of a file without the top-level kinds are taken for selectors."""
    found = {kind: read_presets(path, kind) for kind in COMPONENTS}
    whole = all(presets == found["selectors"] for presets in found.values())
    return {"selectors": found["selectors"]} if whole else {kind: p for kind, p in found.items() if p}


def read_preset(
    path: Path, kind: str, name: Any, overrides: Mapping[str, Any], *, output_dir: str, key: str = "component_name"
) -> dict[str, Any]:
    """One preset as {"name": method, "params": {...}}, overrides applied, ``${output_dir}`` replaced.

    Args:
        key: what the name stands under in the config, for the sentences.
    """
    presets = read_presets(path, kind)
    listing = _listed(presets)
    if name is None:
        raise ConfigError(f"{key} is missing; it must name one of the {kind} of {path}: {listing}")
    if not isinstance(name, (str, int)) or name not in presets:
        raise ConfigError(
            f"{key} {shown(name)} is not among the {kind} of {path}{did_you_mean(name, presets)}; known: {listing}"
        )
    preset = {} if presets[name] is None else presets[name]
    if not isinstance(preset, dict):
        raise ConfigError(f"the preset {shown(name)} of {path} is no mapping; write name: and params:")
    merged = {**preset, **{key: value for key, value in overrides.items() if key != "params"}}
    for word in merged:
        if word not in ("name", "params"):
            hint = did_you_mean(word, ("name", "params"))
            raise ConfigError(f"unknown key {shown(word)} in the preset {shown(name)}{hint}")
    params, changed = ({} if part.get("params") is None else part["params"] for part in (preset, overrides))
    if not isinstance(params, dict) or not isinstance(changed, dict):
        raise ConfigError(f"params of the preset {shown(name)} is no mapping of parameters to values")
    if merged.get("name", name) != preset.get("name", name):
        params = {}  # another method's
    params = {word: _replace_output_dir(word, value, output_dir) for word, value in {**params, **changed}.items()}
    method = merged.get("name", name)
    return {"name": method if isinstance(method, str) else shown(method), "params": params}


def _replace_output_dir(name: Any, value: Any, output_dir: str) -> Any:
    """``value`` with ``${output_dir}`` replaced; any other ``${`` is not resolved in a preset, hence an error."""
    if isinstance(value, list):
        return [_replace_output_dir(name, item, output_dir) for item in value]
    if not isinstance(value, str):
        return value
    if "${" in value.replace("${output_dir}", ""):
        raise ConfigError(f"{shown(name)} is {shown(value)}; only ${{output_dir}} is replaced in a preset")
    return value.replace("${output_dir}", output_dir)


def _listed(names: Iterable[Any]) -> str:
    return ", ".join(name if isinstance(name, str) else shown(name) for name in names) or "none"
