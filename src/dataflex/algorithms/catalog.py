"""Which methods exist: one visible table, plus those of other packages."""

from __future__ import annotations

import importlib
from importlib.metadata import entry_points

from dataflex.algorithms.select.delta_loss import DeltaLoss
from dataflex.algorithms.select.length import Length
from dataflex.algorithms.select.loss import Loss
from dataflex.algorithms.select.random import Random
from dataflex.algorithms.select.replay import Replay
from dataflex.algorithms.select.static import Static
from dataflex.core.errors import ConfigError, did_you_mean

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


def selector_class(name: str) -> type:
    """Return the class of a method: one of ours, an entry point of another package, or ``package.module:Class``.

    Raises:
        ConfigError: nothing of that name, or it cannot be imported.
    """
    if name in SELECTORS:
        return SELECTORS[name]
    if ":" in name:
        module_name, _, class_name = name.partition(":")
        try:
            return getattr(importlib.import_module(module_name), class_name)
        except (ImportError, AttributeError, ValueError, TypeError) as error:
            raise ConfigError(
                f"method {name!r} cannot be imported ({error}); check the names, and that its folder is on PYTHONPATH"
            ) from error
    for entry_point in entry_points(group=ENTRY_POINT_GROUPS["selectors"]):
        if entry_point.name == name:
            try:
                return entry_point.load()
            except (ImportError, AttributeError) as error:
                raise ConfigError(f"method {name!r} of another package cannot be imported ({error})") from error
    names = selector_names()
    raise ConfigError(f"there is no method named {name!r}{did_you_mean(name, names)}; known: {', '.join(names)}")
