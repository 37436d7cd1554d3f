"""The verb ``components``: methods, parameters, defaults, sources; presets."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from dataflex.algorithms.catalog import (
    COMPONENTS,
    component_class,
    component_names,
    foreign_packages,
    hidden_by_ours,
)
from dataflex.cli.presets import PACKAGE_COMPONENTS, find_components, presets_by_kind
from dataflex.core.errors import ConfigError

DECIDES = {
    "selectors": "which samples (train_type: dynamic_select, or select:)",
    "mixers": "from which domains (train_type: dynamic_mix, or mix:)",
    "weighters": "how much each sample counts (train_type: dynamic_weight, or weigh:)",
    "orders": "in which order (train_type: dynamic_reorder, or order:)",
}


def components(file: str | None) -> None:
    """Print all methods and the presets of the shipped file and of ``file``."""
    console = Console()
    for kind in COMPONENTS:
        _print(console, Text(f"{kind}: {DECIDES[kind]}\n", style="bold underline"))
        for name in component_names(kind):
            _print_method(console, kind, name)
        for name, package in hidden_by_ours(kind):
            _print(console, f"{name} of {package} is hidden by ours; name it as package.module:Class\n")
    for path in [PACKAGE_COMPONENTS, *([find_components(file)] if file else [])]:
        _print(console, f"presets of {_shown(path)}")
        for kind, presets in presets_by_kind(path).items():
            _print(console, f"  {kind}")
            for preset, content in presets.items():
                content = content or {}
                _print(console, f"    {preset}: {content.get('name', preset)} {content.get('params') or ''}")


def _print_method(console: Console, kind: str, name: str) -> None:
    """A method's first line, its parameters with defaults and types, its source; or why it has none of them."""
    packages = foreign_packages(kind, name)
    heading = Text.assemble((name, "bold"), f"  (package {', '.join(packages)})" if packages else "")
    try:
        cls = component_class(kind, name)
        first_line, rows = _described(cls)
    except Exception as error:  # another package's code; whatever it does, it must not hide the rest
        why = " ".join(str(error).split())
        if not isinstance(error, ConfigError):
            why = f"its parameters cannot be read ({type(error).__name__}: {why})"
        _print(console, heading.append(f"  cannot be used: {why}\n"))
        return
    _print(console, heading.append(f"  {first_line}"))
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
    for row in rows:
        table.add_row(*map(Text, row))
    console.print(table)
    _print(console, f"    source: {getattr(cls, 'source', '')}\n")


def _described(cls: type) -> tuple[str, list[tuple[str, str, str]]]:
    """The first line of a class's docstring; name, default and type of each parameter."""
    hints = typing.get_type_hints(cls)
    rows = []
    for field in dataclasses.fields(cls):
        default = "required" if field.default is dataclasses.MISSING else repr(field.default)
        if field.default_factory is not dataclasses.MISSING:
            default = repr(field.default_factory())
        rows.append((f"    {field.name}", default, _type_name(hints[field.name])))
    return next(iter((cls.__doc__ or "").strip().splitlines()), ""), rows


def _print(console: Console, line: str | Text) -> None:
    """Print as it is: brackets in other people's texts are no markup."""
    console.print(line, highlight=False, markup=False)


def _type_name(hint: object) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(str, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)


def _shown(path: Path) -> str:
    return "the package" if path == PACKAGE_COMPONENTS else str(path)
