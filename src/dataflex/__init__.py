"""DataFlex: decide, while a language model trains, which samples it sees next."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from dataflex.algorithms.select.delta_loss import DeltaLoss
    from dataflex.algorithms.select.length import Length
    from dataflex.algorithms.select.loss import Loss
    from dataflex.algorithms.select.random import Random
    from dataflex.algorithms.select.replay import Replay
    from dataflex.algorithms.select.static import Static
    from dataflex.core.plan import Schedule
    from dataflex.train.mixin import DynamicDataMixin, dynamic
    from dataflex.train.python_api import Options

# Imported on first use: methods need numpy only, and the command line should not wait for torch.
_WHERE = {
    "DeltaLoss": "dataflex.algorithms.select.delta_loss",
    "DynamicDataMixin": "dataflex.train.mixin",
    "Length": "dataflex.algorithms.select.length",
    "Loss": "dataflex.algorithms.select.loss",
    "Options": "dataflex.train.python_api",
    "Random": "dataflex.algorithms.select.random",
    "Replay": "dataflex.algorithms.select.replay",
    "Schedule": "dataflex.core.plan",
    "Static": "dataflex.algorithms.select.static",
    "dynamic": "dataflex.train.mixin",
}

__all__ = [
    "DeltaLoss",
    "DynamicDataMixin",
    "Length",
    "Loss",
    "Options",
    "Random",
    "Replay",
    "Schedule",
    "Static",
    "__version__",
    "dynamic",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
