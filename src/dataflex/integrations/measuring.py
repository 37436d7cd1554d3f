"""LLaMA-Factory loads model and data as for a training, and signals are measured instead, into the run's cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dataflex.core.errors import DataFlexError
from dataflex.integrations.llamafactory import Session, num_devices, refuse_config
from dataflex.integrations.selecting import LEFT_OUT, OVERRIDES
from dataflex.train.ahead import Made, making
from dataflex.train.pool import read_pool
from dataflex.train.settings import Settings


class _AheadSession(Session):
    def __init__(self, settings: Settings, signals: tuple[str, ...]) -> None:
        super().__init__(settings, explicit_checkpoint=False, serve=making(signals))

    def check(self, train_dataset: Any, rows: Mapping[str, Any], args: Any) -> None:
        self._settings = replace(self._settings, pool=read_pool(train_dataset), rows=rows)


def run_ahead(
    config: Mapping[str, Any], settings: Settings, signals: tuple[str, ...], *, output_dir: str
) -> Mapping[str, Mapping[str, Any]]:
    """Measure signals with the model of a config; return what each cost.

    Raises:
        DataFlexError: anything that the user can mend, in one sentence.
    """
    refuse_config(config)
    if num_devices() > 1:
        raise DataFlexError(f"this runs on one device, {num_devices()} are visible; set CUDA_VISIBLE_DEVICES to one")
    host = {key: value for key, value in config.items() if key not in LEFT_OUT}
    session = _AheadSession(settings, signals)
    try:
        session.run({**host, **OVERRIDES, "output_dir": output_dir, "overwrite_output_dir": True})
    except Made as made:
        return made.costs
    raise DataFlexError("LLaMA-Factory built another trainer than the one that can be served; nothing was measured")
