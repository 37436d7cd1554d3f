"""The verb ``components``: methods, parameters, defaults, sources; presets."""

from __future__ import annotations

import dataclasses
import typing
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dataflex.algorithms.catalog import selector_class, selector_names
from dataflex.cli.config import PACKAGE_COMPONENTS, find_components, read_presets
from dataflex.core.errors import ConfigError


def components(file: str | None) -> None:
    """Print all methods and the presets of the shipped file and of ``file``."""
    console = Console()
    for name in selector_names():
        try:
            cls = selector_class(name)
        except ConfigError as error:  # another package's; it must not hide the rest
            console.print(f"[bold]{name}[/bold]  {error}\n", highlight=False)
            continue
        console.print(f"[bold]{name}[/bold]  {(cls.__doc__ or '').strip().splitlines()[0]}")
        hints = typing.get_type_hints(cls)
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2))
        for field in dataclasses.fields(cls):
            default = "required" if field.default is dataclasses.MISSING else repr(field.default)
            table.add_row(f"    {field.name}", default, _type_name(hints[field.name]))
        console.print(table)
        console.print(f"    source: {getattr(cls, 'source', '')}\n", highlight=False)
    for path in [PACKAGE_COMPONENTS, *([find_components(file)] if file else [])]:
        console.print(f"presets of {_shown(path)}", highlight=False)
        for preset, content in read_presets(path).items():
            content = content or {}
            console.print(f"    {preset}: {content.get('name', preset)} {content.get('params') or ''}", highlight=False)


def _type_name(hint: object) -> str:
    if typing.get_origin(hint) is typing.Literal:
        return " | ".join(map(str, typing.get_args(hint)))
    return getattr(hint, "__name__", str(hint)) if isinstance(hint, type) else str(hint)


def _shown(path: Path) -> str:
    return "the package" if path == PACKAGE_COMPONENTS else str(path)
