"""LLaMA-Factory loads model and data as for a training, and one decision is made instead."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.integrations.llamafactory import Session, num_devices, refuse_config
from dataflex.integrations.selected_file import dataset_entry, selected_table
from dataflex.train.choose import Chosen, choosing
from dataflex.train.measure import check_files
from dataflex.train.pool import read_pool
from dataflex.train.settings import Settings, geometry_of, make_plan
from dataflex.train.target import check_target
from dataflex.train.wish import Wish, find_decision, num_rows, read_baseline

# Nothing is trained: no sharding, no logger, no checkpoint to go on from.
OVERRIDES = {"report_to": "none", "plot_loss": False, "save_strategy": "no", "eval_strategy": "no"}
LEFT_OUT = ("deepspeed", "fsdp", "fsdp_config", "resume_from_checkpoint", "load_best_model_at_end", "use_swanlab")


@dataclass(frozen=True, kw_only=True)
class Selected:
    """Chosen rows and how LLaMA-Factory reads them again."""

    table: pa.Table
    entry: dict[str, Any]


class _SelectSession(Session):
    def __init__(self, settings: Settings, wish: Wish) -> None:
        super().__init__(settings, explicit_checkpoint=False, serve=choosing(wish))
        self._wish = wish

    def check(self, train_dataset: Any, rows: Mapping[str, Any], args: Any) -> None:
        dataset_entry(self.trace, "")  # refused before a model is loaded
        pool = read_pool(train_dataset)
        self._settings = replace(self._settings, pool=pool, rows=rows)
        method, geometry = self._settings.method, geometry_of(args)
        check_files(method, pool, rows, args.output_dir)
        segment = find_decision(make_plan(self._settings, args, len(pool), geometry), method, self._wish)
        num_rows(self._wish, segment.num_steps * geometry.global_batch, method, pool)
        if self._wish.baseline is not None:
            read_baseline(self._wish.baseline, pool)


def run_select(
    config: Mapping[str, Any], settings: Settings, wish: Wish, *, output_dir: str, file_name: str
) -> Selected:
    """Choose rows with the model of a config; the record is written to ``output_dir``.

    Raises:
        DataFlexError: anything that the user can mend, in one sentence.
    """
    refuse_config(config)
    check_target(settings.method, is_given=bool(settings.target_names))
    if config.get("stage", "sft") != "sft":
        raise ConfigError(
            f"select reads rows of stage sft, not {config['stage']}; train with a dynamic train_type instead"
        )
    if num_devices() > 1:
        raise ConfigError(f"select runs on one device, {num_devices()} are visible; set CUDA_VISIBLE_DEVICES to one")
    host = {key: value for key, value in config.items() if key not in LEFT_OUT}
    session = _SelectSession(settings, wish)
    try:
        session.run({**host, **OVERRIDES, "output_dir": output_dir, "overwrite_output_dir": True})
    except Chosen as chosen:
        choice = chosen.choice
        return Selected(
            table=selected_table(session.trace, choice.rows_Q, choice.columns_N),
            entry=dataset_entry(session.trace, file_name),
        )
    raise DataFlexError("LLaMA-Factory built another trainer than the one that can be served; nothing was chosen")
