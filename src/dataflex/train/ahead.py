"""Signals made before a run, for its cache: the Trainer is built as ever, and measures where it would begin."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

from dataflex.core.order import Geometry
from dataflex.core.plan import SegmentPlan
from dataflex.train.mixin import DynamicDataMixin
from dataflex.train.pool import Pool


class Made(Exception):  # noqa: N818  no error: it leaves the host's workflow, which would save a model next
    """Carries what each signal cost out of the host's workflow."""

    def __init__(self, costs: Mapping[str, Mapping[str, Any]]) -> None:
        super().__init__("made")
        self.costs = costs


def making(signals: tuple[str, ...]) -> Callable[[type], type]:
    """Return what makes of a Trainer class one whose ``train`` measures these signals and raises ``Made``."""

    def serve(trainer_class: type) -> type:
        return type(f"Measuring{trainer_class.__name__}", (AheadMixin, trainer_class), {"wanted_signals": signals})

    return serve


class AheadMixin(DynamicDataMixin):
    """Measures some signals with the model as it is before the first step; they end in the method's cache."""

    wanted_signals: tuple[str, ...]

    def _check_quotas(self, plan: SegmentPlan, pool: Pool, geometry: Geometry) -> None:
        """Nothing is drawn."""

    def train(self, *args: Any, **kwargs: Any) -> Any:
        # The pass keeps its batch size in the record, which is thrown away.
        self._ledger.begin({**self._run_record(), "run_id": uuid.uuid4().hex}, self._row_columns())
        self.accelerator.prepare_model(self.model, evaluation_mode=True)  # type: ignore[attr-defined]
        progress = self.curator.plan.progress(self.curator.plan.segment_at(0))
        raise Made({name: self.measurer(name, progress).cost for name in self.wanted_signals})
