"""When two runs are the same run: by what they train, not by where they write or how much they log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# How the keys begin that name the versions of packages.
VERSION = "version of "

# Keys that change neither the weights nor the choice of rows, and keys that are compared in a better way: batch size
# and accumulation as the global batch (a run may go on with another number of ranks), our own keys as method,
# parameters and schedule, the place of the data as its content.
NEUTRAL_KEYS = frozenset(
    """
    output_dir overwrite_output_dir resume_from_checkpoint logging_dir logging_steps logging_strategy
    logging_first_step log_level log_level_replica disable_tqdm report_to run_name plot_loss save_steps save_strategy
    save_total_limit save_only_model save_on_each_node push_to_hub hub_model_id hub_token ddp_timeout
    dataloader_num_workers dataloader_pin_memory dataloader_persistent_workers dataloader_prefetch_factor
    preprocessing_num_workers preprocessing_batch_size overwrite_cache cache_dir components_cfg_file eval_steps
    eval_strategy eval_dataset eval_on_start per_device_eval_batch_size do_eval do_predict
    per_device_train_batch_size gradient_accumulation_steps include_num_input_tokens_seen use_swanlab swanlab_project
    local_rank print_param_status dataset_dir
    score_batch_tokens score_budget log_source_loss train_type component component_name warmup_step update_step
    update_times train_step
    """.split()  # noqa: SIM905  a block of words reads better than forty quoted strings
)


def comparable(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a resolved config that makes two runs the same run."""
    return {key: config[key] for key in sorted(config) if key not in NEUTRAL_KEYS}


def differences(old: Mapping[str, Any], new: Mapping[str, Any], limit: int = 3) -> str:
    """Name what differs between two fingerprints: "learning_rate (1e-04 then, 2e-04 now)"."""
    keys = [key for key in sorted({*old, *new}) if old.get(key) != new.get(key)]
    named = [f"{key} ({_short(old.get(key))} then, {_short(new.get(key))} now)" for key in keys[:limit]]
    more = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return ", ".join(named) + more


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}…"
