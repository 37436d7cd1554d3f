"""Which methods exist: one visible table, plus those of other packages."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import entry_points
from typing import Any

from dataflex.algorithms.select.delta_loss import DeltaLoss
from dataflex.algorithms.select.length import Length
from dataflex.algorithms.select.loss import Loss
from dataflex.algorithms.select.random import Random
from dataflex.algorithms.select.replay import Replay
from dataflex.algorithms.select.static import Static
from dataflex.core.errors import ConfigError, did_you_mean, shown

SELECTORS: dict[str, type] = {
    "delta_loss": DeltaLoss,
    "loss": Loss,
    "random": Random,
    "length": Length,
    "static": Static,
    "replay": Replay,
}

ENTRY_POINT_GROUPS = {"selectors": "dataflex.selectors"}


def selector_names() -> list[str]:
    """Names of all methods at hand, ours first."""
    return [*SELECTORS, *sorted(e.name for e in entry_points(group="dataflex.selectors") if e.name not in SELECTORS)]


def foreign_module(name: str) -> str | None:
    """The module that a method's code is imported from; None for ours and for names that are no method."""
    if name in SELECTORS:
        return None
    if ":" in name:
        return name.partition(":")[0]
    return next((e.module for e in entry_points(group=ENTRY_POINT_GROUPS["selectors"]) if e.name == name), None)


def selector_class(name: str) -> type:
    """Return the class of a method: one of ours, an entry point of another package, or ``package.module:Class``.

    Raises:
        ConfigError: nothing of that name, or it cannot be imported.
    """
    if name in SELECTORS:
        return SELECTORS[name]
    if ":" in name:
        module_name, _, class_name = name.partition(":")
        hint = "; check the names, and that its folder is on PYTHONPATH"
        return _imported(name, lambda: getattr(importlib.import_module(module_name), class_name), hint)
    for entry_point in entry_points(group=ENTRY_POINT_GROUPS["selectors"]):
        if entry_point.name == name:
            return _imported(name, entry_point.load, " from its package; install that package again")
    names = selector_names()
    raise ConfigError(f"there is no method named {shown(name)}{did_you_mean(name, names)}; known: {', '.join(names)}")


def _imported(name: str, load: Callable[[], Any], hint: str) -> Any:
    """What ``load`` imports. Foreign code runs while it is imported and may raise anything, or leave the process."""
    try:
        return load()
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"method {shown(name)} cannot be imported ({why}){hint}") from error
