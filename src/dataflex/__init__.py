"""DataFlex: decide, while a language model trains, which samples it sees next."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
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
    from dataflex.core.plan import Schedule
    from dataflex.train.mixin import DynamicDataMixin, dynamic
    from dataflex.train.python_api import Options

# Imported on first use: methods need numpy only, and the command line should not wait for torch.
_WHERE = {
    "Adapt": "dataflex.algorithms.weigh.adapt",
    "ClusterLess": "dataflex.algorithms.select.cluster_less",
    "Column": "dataflex.algorithms.weigh.column",
    "DeltaLoss": "dataflex.algorithms.select.delta_loss",
    "DoReMi": "dataflex.algorithms.mix.doremi",
    "dynamic": "dataflex.train.mixin",
    "DynamicDataMixin": "dataflex.train.mixin",
    "Focal": "dataflex.algorithms.weigh.focal",
    "Folding": "dataflex.algorithms.order.folding",
    "Icons": "dataflex.algorithms.select.icons",
    "Ifd": "dataflex.algorithms.select.ifd",
    "InfoBatch": "dataflex.algorithms.select.infobatch",
    "Length": "dataflex.algorithms.select.length",
    "Less": "dataflex.algorithms.select.less",
    "Loss": "dataflex.algorithms.select.loss",
    "LossWeigher": "dataflex.algorithms.weigh.loss",
    "Near": "dataflex.algorithms.select.near",
    "ODM": "dataflex.algorithms.mix.odm",
    "Options": "dataflex.train.python_api",
    "Random": "dataflex.algorithms.select.random",
    "RandomMix": "dataflex.algorithms.mix.random",
    "Replay": "dataflex.algorithms.select.replay",
    "Rho1": "dataflex.algorithms.weigh.rho1",
    "RhoLoss": "dataflex.algorithms.select.rho_loss",
    "S2L": "dataflex.algorithms.select.s2l",
    "Saw": "dataflex.algorithms.order.saw",
    "Schedule": "dataflex.core.plan",
    "SegmentOrder": "dataflex.algorithms.order.segment",
    "SelfPaced": "dataflex.algorithms.weigh.self_paced",
    "Sorting": "dataflex.algorithms.order.sorting",
    "Stages": "dataflex.algorithms.mix.stages",
    "Stair": "dataflex.algorithms.order.stair",
    "Static": "dataflex.algorithms.select.static",
    "StaticMix": "dataflex.algorithms.mix.static",
    "Temperature": "dataflex.algorithms.mix.temperature",
    "Tsds": "dataflex.algorithms.select.tsds",
    "Zigzag": "dataflex.algorithms.order.zigzag",
}

__all__ = [
    "ODM",
    "S2L",
    "Adapt",
    "ClusterLess",
    "Column",
    "DeltaLoss",
    "DoReMi",
    "DynamicDataMixin",
    "Focal",
    "Folding",
    "Icons",
    "Ifd",
    "InfoBatch",
    "Length",
    "Less",
    "Loss",
    "LossWeigher",
    "Near",
    "Options",
    "Random",
    "RandomMix",
    "Replay",
    "Rho1",
    "RhoLoss",
    "Saw",
    "Schedule",
    "SegmentOrder",
    "SelfPaced",
    "Sorting",
    "Stages",
    "Stair",
    "Static",
    "StaticMix",
    "Temperature",
    "Tsds",
    "Zigzag",
    "__version__",
    "dynamic",
]


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_WHERE[name]), name)
