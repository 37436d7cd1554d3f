"""From the names in a config to what decides in a run: presets, methods, how they meet."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflex.algorithms.catalog import component_class, foreign_module
from dataflex.algorithms.combine import Part
from dataflex.algorithms.mix.user_guide import with_user_guide_keys
from dataflex.algorithms.select.static import Static
from dataflex.cli.presets import find_components, read_preset
from dataflex.cli.strict import build, checked
from dataflex.core.errors import ConfigError, did_you_mean, shown
from dataflex.train.method import Method

# The kind of the component that ``component_name`` names.
KINDS = {
    "dynamic_select": "selectors",
    "dynamic_mix": "mixers",
    "dynamic_weight": "weighters",
    "dynamic_reorder": "orders",
}
# Any of them beside it, or all by name with ``train_type: dynamic``.
PART_KEYS = {"select": "selectors", "mix": "mixers", "weigh": "weighters", "order": "orders"}
MIXTURE_KEYS = ("mixture_sample_rule", "init_mixture_proportions", "static_mix")
TOGETHER_KEYS = ("mode", "keep", "normalize")
# What is asked of each kind beyond the calls of a run; the base classes have all of it.
ASKED = {
    "selectors": ("select", "needs", "needs_at", "init", "observe", "follows_host", "serves_warmup"),
    "mixers": ("mix", "needs", "step_needs", "needs_at", "init", "observe", "domain_weights", "unit", "max_times"),
    "weighters": ("weigh", "needs", "init", "check_rows_in_scope"),
    "orders": ("arrange", "by", "over"),
}
BASES = {"selectors": "SelectorBase", "mixers": "MixerBase", "weighters": "WeigherBase", "orders": "OrderBase"}


def read_method(
    ours: Mapping[str, Any], component: Mapping[str, Any], *, output_dir: str, weigh_warmup: int
) -> tuple[Method, dict[str, Any]]:
    """What decides, and the presets as they were resolved, for the record.

    Args:
        ours: our keys of the config.
        component: the overrides of the component that ``component_name`` names.
        weigh_warmup: optimizer steps in which every coefficient is 1.

    Raises:
        ConfigError: a name or a parameter that is wrong, or components that cannot be combined.
    """
    path = find_components(ours.get("components_cfg_file"))
    train_type = ours["train_type"]
    reader = _Reader(path, ours, output_dir)
    if train_type in KINDS:
        kind = KINDS[train_type]
        taken = [key for key in PART_KEYS if PART_KEYS[key] == kind and key in ours]
        if taken:
            raise ConfigError(
                f"{taken[0]} is set beside train_type: {train_type}, whose component_name is of that kind; set "
                "train_type: dynamic to name all by their keys, or leave one out"
            )
        reader.take(kind, ours.get("component_name"), component, every=1, key="component_name")
    elif "component_name" in ours or component:
        key = "component_name" if "component_name" in ours else "component"
        raise ConfigError(f"{key} is set beside train_type: dynamic, which names components by {', '.join(PART_KEYS)}")
    for key, kind in PART_KEYS.items():
        if key in ours:
            reader.take_named(key, kind, ours[key])
    if not any(reader.parts.values()):
        raise ConfigError(f"train_type: dynamic names no component; set one of {', '.join(PART_KEYS)}")
    mixture = [key for key in MIXTURE_KEYS if key in ours]
    if mixture and not reader.parts["mixers"]:
        raise ConfigError(f"{mixture[0]} is set, but no mixer is named; set train_type: dynamic_mix, or mix:")
    selectors, mixers = reader.parts["selectors"], reader.parts["mixers"]
    for key, found in (("select", selectors), ("mix", mixers)):
        if len(found) > 1:
            raise ConfigError(f"{key} names {len(found)} components, and each decides the same thing; name one")
    selector = selectors[0] if selectors else Part(name="static", method=Static())
    method = Method(
        name=selector.name,
        selector=selector.method,
        every=selector.every,
        mixer=mixers[0] if mixers else None,
        weighers=tuple(reader.parts["weighters"]),
        orders=tuple(reader.parts["orders"]),
        weigh_warmup=weigh_warmup if reader.parts["weighters"] else 0,
        **_together(ours.get("compose")),
    )
    return method, reader.presets


class _Reader:
    """Collects the components of one config."""

    def __init__(self, path: Path, ours: Mapping[str, Any], output_dir: str) -> None:
        self._path, self._ours, self._output_dir = path, ours, output_dir
        self.parts: dict[str, list[Part]] = {kind: [] for kind in PART_KEYS.values()}
        self.presets: dict[str, Any] = {}  # as they were resolved, by the key that names them

    def take_named(self, key: str, kind: str, value: Any) -> None:
        """The components under ``select``, ``mix``, ``weigh`` or ``order``: a preset, a mapping, or a list of them."""
        for item in value if isinstance(value, list) else [value]:
            item = item if isinstance(item, dict) else {"component_name": item}
            known = ("component_name", "params", "name", "every")
            for word in item:
                if word not in known:
                    raise ConfigError(f"unknown key {shown(word)} in {key}{did_you_mean(word, known)}")
            changes = {word: item[word] for word in ("params", "name") if word in item}
            every = checked(f"{key}.every", item.get("every", 1), int)
            self.take(kind, item.get("component_name"), changes, every=every, key=key)

    def take(self, kind: str, name: Any, changes: Mapping[str, Any], *, every: int, key: str) -> None:
        """One component by the name of its preset."""
        preset = read_preset(self._path, kind, name, changes, output_dir=self._output_dir, key=key)
        if kind == "mixers":
            guide = {word: self._ours[word] for word in MIXTURE_KEYS if word in self._ours}
            preset["params"] = with_user_guide_keys(preset["name"], preset["params"], **guide)
        method = _built(kind, preset, name, "the config" if "name" in changes else str(self._path))
        self.parts[kind].append(Part(name=preset["name"], method=method, every=every))
        recorded = {**preset, **({"every": every} if every != 1 else {})}
        if key == "component_name":
            self.presets["component"] = recorded
        else:
            self.presets.setdefault(key, []).append(recorded)


def _built(kind: str, preset: Mapping[str, Any], name: Any, where: str) -> Any:
    """The value of a preset, with all that is asked of its kind."""
    module = foreign_module(kind, preset["name"])
    if module is not None:  # said before it runs: importing it may do anything
        _say_foreign(preset["name"], module, where)
    method = build(component_class(kind, preset["name"]), preset["params"], where=f"component {name}: ")
    for part in ASKED[kind]:
        if not hasattr(method, part):
            one = "weigher" if kind == "weighters" else kind[:-1]
            raise ConfigError(f"{preset['name']} is no {one}: it has no {part}; derive it from {BASES[kind]}")
    return method


def _together(value: Any) -> dict[str, Any]:
    """How selection and mixture meet, from the key ``compose``."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ConfigError(f"compose is {shown(value)}; it must be a mapping of {', '.join(TOGETHER_KEYS)}")
    for word in value:
        if word not in TOGETHER_KEYS:
            raise ConfigError(f"unknown key {shown(word)} in compose{did_you_mean(word, TOGETHER_KEYS)}")
    types = {"mode": str, "keep": float, "normalize": str}
    numbers = {word: float(v) if word == "keep" and type(v) is int else v for word, v in value.items()}
    return {word: checked(f"compose.{word}", v, types[word]) for word, v in numbers.items()}


@functools.cache
def _say_foreign(name: str, module: str, where: str) -> None:
    """Tell, once, whose code is about to run."""
    if os.environ.get("RANK", "0") == "0":
        print(f"[dataflex] method {shown(name)} is code of module {shown(module)}, named in {where}", flush=True)
