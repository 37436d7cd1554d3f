"""Which methods exist: one visible table, plus those of other packages."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from dataflex.algorithms.mix.doremi import DoReMi
from dataflex.algorithms.mix.odm import ODM
from dataflex.algorithms.mix.random import RandomMix
from dataflex.algorithms.mix.stages import Stages
from dataflex.algorithms.mix.static import StaticMix
from dataflex.algorithms.mix.temperature import Temperature
from dataflex.algorithms.order.folding import Folding
from dataflex.algorithms.order.saw import Saw
from dataflex.algorithms.order.segment import SegmentOrder
from dataflex.algorithms.order.sorting import Sorting
from dataflex.algorithms.order.stair import Stair
from dataflex.algorithms.order.zigzag import Zigzag
from dataflex.algorithms.select.cluster_less import ClusterLess
from dataflex.algorithms.select.delta_loss import DeltaLoss
from dataflex.algorithms.select.icons import Icons
from dataflex.algorithms.select.ifd import Ifd
from dataflex.algorithms.select.infobatch import InfoBatch
from dataflex.algorithms.select.length import Length
from dataflex.algorithms.select.less import Less
from dataflex.algorithms.select.loss import Loss
from dataflex.algorithms.select.near import Near
from dataflex.algorithms.select.random import Random
from dataflex.algorithms.select.replay import Replay
from dataflex.algorithms.select.rho_loss import RhoLoss
from dataflex.algorithms.select.s2l import S2L
from dataflex.algorithms.select.static import Static
from dataflex.algorithms.select.tsds import Tsds
from dataflex.algorithms.weigh.adapt import Adapt
from dataflex.algorithms.weigh.column import Column
from dataflex.algorithms.weigh.focal import Focal
from dataflex.algorithms.weigh.loss import LossWeigher
from dataflex.algorithms.weigh.rho1 import Rho1
from dataflex.algorithms.weigh.self_paced import SelfPaced
from dataflex.core.errors import ConfigError, did_you_mean, shown

SELECTORS: dict[str, type] = {
    "delta_loss": DeltaLoss,
    "loss": Loss,
    "random": Random,
    "length": Length,
    "static": Static,
    "replay": Replay,
    "less": Less,
    "cluster_less": ClusterLess,
    "near": Near,
    "tsds": Tsds,
    "rho_loss": RhoLoss,
    "ifd": Ifd,
    "s2l": S2L,
    "infobatch": InfoBatch,
    "icons": Icons,
}

MIXERS: dict[str, type] = {
    "static": StaticMix,
    "random": RandomMix,
    "temperature": Temperature,
    "stages": Stages,
    "odm": ODM,
    "doremi": DoReMi,
}

WEIGHTERS: dict[str, type] = {
    "column": Column,
    "loss": LossWeigher,
    "focal": Focal,
    "self_paced": SelfPaced,
    "rho1": Rho1,
    "adapt": Adapt,
}

ORDERS: dict[str, type] = {
    "sorting": Sorting,
    "folding": Folding,
    "zigzag": Zigzag,
    "stair": Stair,
    "saw": Saw,
    "segment": SegmentOrder,
}

# By the section of a components file. "weighters" is the user guide's word; in code a method of it is a weigher.
COMPONENTS: dict[str, dict[str, type]] = {
    "selectors": SELECTORS,
    "mixers": MIXERS,
    "weighters": WEIGHTERS,
    "orders": ORDERS,
}

ENTRY_POINT_GROUPS = {kind: f"dataflex.{kind}" for kind in COMPONENTS}


def component_names(kind: str) -> list[str]:
    """Names of all methods of one kind at hand, ours first."""
    ours = COMPONENTS[kind]
    return [*ours, *sorted({e.name for e in _entry_points(kind)} - set(ours))]


def hidden_by_ours(kind: str) -> list[tuple[str, str]]:
    """Name and package of entry points that cannot be reached: a method of ours has the name."""
    return sorted((e.name, package_of(e)) for e in _entry_points(kind) if e.name in COMPONENTS[kind])


def foreign_packages(kind: str, name: str) -> list[str]:
    """The installed packages that offer a method of this name, as ``package version``; none for ours."""
    return [] if name in COMPONENTS[kind] else [package_of(e) for e in _entry_points(kind, name)]


def package_of(entry_point: EntryPoint) -> str:
    """The package that an entry point belongs to, as ``package version``."""
    return f"{entry_point.dist.name} {entry_point.dist.version}" if entry_point.dist else "an unknown package"


def foreign_module(kind: str, name: str) -> str | None:
    """The module that a method's code is imported from; None for ours and for names that are no method."""
    if name in COMPONENTS[kind]:
        return None
    if ":" in name:
        return name.partition(":")[0]
    # Not ``EntryPoint.module``, which fails for a value that is no path.
    return next((e.value.partition(":")[0].strip() for e in _entry_points(kind, name)), None)


def component_class(kind: str, name: str) -> type:
    """Return the class of a method: one of ours, an entry point of another package, or ``package.module:Class``.

    Raises:
        ConfigError: nothing of that name, or several packages have one, or it cannot be imported.
    """
    if name in COMPONENTS[kind]:
        return COMPONENTS[kind][name]
    if ":" in name:
        module_name, _, class_name = name.partition(":")
        hint = "; check the names, and that its folder is on PYTHONPATH"
        return _imported(name, lambda: getattr(importlib.import_module(module_name), class_name), hint)
    found = _entry_points(kind, name)
    if len({e.value for e in found}) > 1:
        raise ConfigError(
            f"method {shown(name)} is offered by {' and by '.join(map(package_of, found))}; name the one that is "
            f"meant as {' or as '.join(shown(e.value) for e in found)}"
        )
    if found:
        return _imported(name, found[0].load, " from its package; install that package again")
    names = component_names(kind)
    raise ConfigError(f"there is no method named {shown(name)}{did_you_mean(name, names)}; known: {', '.join(names)}")


def _entry_points(kind: str, name: str | None = None) -> list[EntryPoint]:
    """What other packages offer of one kind, all of it or under one name."""
    return [e for e in entry_points(group=ENTRY_POINT_GROUPS[kind]) if name in (None, e.name)]


def _imported(name: str, load: Callable[[], Any], hint: str) -> Any:
    """What ``load`` imports. Foreign code runs while it is imported and may raise anything, or leave the process."""
    try:
        return load()
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"method {shown(name)} cannot be imported ({why}){hint}") from error
