"""Packages that only some commands need."""

from __future__ import annotations

import importlib
from types import ModuleType

from dataflex.core.errors import ConfigError

DRAWING = "vl_convert"


def drawing_package() -> ModuleType:
    """The package that draws pictures and carries Vega.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(DRAWING)
    except ImportError as error:
        raise ConfigError(
            "the pictures need the package vl-convert-python, which is not installed; install it with "
            "pip install 'dataflex[report]', or in a clone with pip install -e '.[report]'"
        ) from error
