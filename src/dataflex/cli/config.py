"""A config taken apart: files, overrides, our keys and the host's."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dataflex.cli.method_config import KINDS, MIXTURE_KEYS, PART_KEYS, read_method
from dataflex.cli.strict import build, checked, load_mapping, one_line
from dataflex.core.errors import ConfigError, did_you_mean, shown
from dataflex.core.plan import Schedule
from dataflex.train.method import Method
from dataflex.train.score_budget import read_share, with_budget

TRAIN_TYPES = ("static", "dynamic", *KINDS)
RECORD_INTERVAL = 10  # optimizer steps of a segment where nothing chooses and update_step is left out
SCHEDULE_KEYS = tuple(field.name for field in dataclasses.fields(Schedule))
OTHER_KEYS = (
    "train_type",
    "components_cfg_file",
    "component_name",
    "score_batch_tokens",
    "score_budget",
    "log_source_loss",
)
TARGET_KEYS = ("target", "target_groups", "allow_overlap")
OUR_KEYS = (*OTHER_KEYS, *SCHEDULE_KEYS, *PART_KEYS, "compose", "domain_column", *MIXTURE_KEYS, *TARGET_KEYS)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A config taken apart: what is the host's, what is ours."""

    host: dict[str, Any]  # LLaMA-Factory's keys
    train_type: str
    resolved: dict[str, Any]  # everything, overrides applied
    method: Method | None = None  # with the schedule, all of a dynamic run
    schedule: Schedule | None = None
    score_batch_tokens: int | None = None
    log_source_loss: bool = False
    domain_column: str | None = None
    target: tuple[str, ...] = ()  # data sets of the rows that steer the selection
    target_groups: str | None = None
    allow_overlap: bool = False

    @property
    def is_dynamic(self) -> bool:
        return self.train_type != "static"

    @property
    def deciding(self) -> Method:
        """What decides in a dynamic run."""
        assert self.method is not None, "the train_type is static"
        return self.method


def read_config(path: str, overrides: list[str]) -> RunConfig:
    """Read a config file with command-line overrides and take our keys out.

    Raises:
        ConfigError: an unreadable file, an override without "=", or any wrong value of our keys.
    """
    return split_config(*load_files(path, overrides))


def load_files(path: str, overrides: list[str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return (the config with overrides applied, the overrides of ``component.``)."""
    config = load_mapping(Path(path), "config")
    if not config:
        raise ConfigError(f"the config {path!r} is empty")
    for text in overrides:
        if "=" not in text or not text.split("=", 1)[0]:
            raise ConfigError(f"{shown(text)} is not an override; write key=value")
    try:
        given = OmegaConf.to_container(OmegaConf.from_dotlist(overrides))
        merged = OmegaConf.to_container(OmegaConf.merge(config, given), resolve=True)
    except Exception as error:  # OmegaConf, its grammar and PyYAML raise some twenty types for a wrong text
        if not overrides:
            raise ConfigError(f"the values of {path!r} cannot be resolved ({one_line(error)}); correct them") from error
        raise ConfigError(f"the overrides cannot be applied ({one_line(error)}); write key=value") from error
    if not isinstance(merged, dict) or not isinstance(given, dict):
        raise ConfigError(f"{path} holds no mapping of keys to values")
    component = merged.pop("component", None)
    component = {} if component is None else component
    if not isinstance(component, dict):
        raise ConfigError(f"component is {shown(component)}; write component.params.NAME=value")
    return {str(key): value for key, value in merged.items()}, component


def split_config(config: dict[str, Any], component: Mapping[str, Any]) -> RunConfig:
    """Take our keys out of a merged config and build what they describe."""
    ours = {key: config[key] for key in OUR_KEYS if key in config}
    host = {key: value for key, value in config.items() if key not in OUR_KEYS}
    train_type = ours.get("train_type", "static")
    if train_type not in TRAIN_TYPES:
        hint = did_you_mean(train_type, TRAIN_TYPES)
        raise ConfigError(f"train_type is {shown(train_type)}{hint}; it must be one of {', '.join(TRAIN_TYPES)}")
    if "train_type" not in ours and (ours or component):
        raise ConfigError(
            f"{', '.join(ours) or 'component'} is set but train_type is not; set train_type: dynamic_select, or "
            "train_type: static to train without it"
        )
    if train_type == "static":
        return RunConfig(host=host, train_type=train_type, resolved=dict(config))
    only_weighs = train_type == "dynamic_weight" or (
        train_type == "dynamic" and set(PART_KEYS) & set(ours) == {"weigh"}
    )
    timing = {"update_step": RECORD_INTERVAL} if only_weighs and not {"select", "mix", "order"} & set(ours) else {}
    schedule = build(Schedule, {**timing, **{key: ours[key] for key in SCHEDULE_KEYS if key in ours}}, where="")
    batch_tokens = checked("score_batch_tokens", ours.get("score_batch_tokens"), int | None)
    if batch_tokens is not None and batch_tokens < 1:
        raise ConfigError(f"score_batch_tokens is {shown(batch_tokens)}; it must be at least 1")
    log_source_loss = checked("log_source_loss", ours.get("log_source_loss", False), bool)
    domain_column = checked("domain_column", ours.get("domain_column"), str | None)
    output_dir = str(host.get("output_dir") or "")
    if not output_dir:
        raise ConfigError("output_dir is missing; the run's record and checkpoints are written there")
    share = read_share(ours.get("score_budget"))
    method, presets = read_method(ours, component, output_dir=output_dir, weigh_warmup=schedule.warmup_step)
    method = with_budget(method, share)
    if domain_column is not None and method.mixer is None:
        raise ConfigError("domain_column is set, but no mixer is named; set train_type: dynamic_mix, or mix:")
    try:
        resolved = json.loads(json.dumps({**config, **presets}, default=str))
    except (TypeError, ValueError, RecursionError) as error:  # keys of bytes, numbers of 5,000 digits, deep nesting
        raise ConfigError(f"the config cannot be kept as JSON in the run's record ({one_line(error)})") from error
    return RunConfig(
        host=host,
        train_type=train_type,
        resolved=resolved,
        method=method,
        schedule=schedule,
        score_batch_tokens=batch_tokens,
        log_source_loss=log_source_loss,
        domain_column=domain_column,
        **_target_keys(ours),
    )


def _target_keys(ours: Mapping[str, Any]) -> dict[str, Any]:
    """What steers the selection: data sets by name as a list or with commas, and how they are grouped."""
    value, names = ours.get("target"), dataset_names(ours, "target")
    if value is not None and not (names and all(isinstance(name, str) and name for name in names)):
        raise ConfigError(f"target is {shown(value)}; it must name one or more data sets of dataset_info.json")
    for key in ("target_groups", "allow_overlap"):
        if key in ours and value is None:
            raise ConfigError(f"{key} is set, but target is not; name the target's data sets, or remove {key}")
    return {
        "target": tuple(names or ()),
        "target_groups": checked("target_groups", ours.get("target_groups"), str | None),
        "allow_overlap": checked("allow_overlap", ours.get("allow_overlap", False), bool),
    }


def dataset_names(host: Mapping[str, Any], key: str = "dataset") -> list[str] | None:
    """The data sets that a config names under ``key``, in its order; None where it names none."""
    names = host.get(key)
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
    return names if isinstance(names, list) and names else None


def check_host_keys(host: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Raise for a key that neither we nor LLaMA-Factory know (with the nearest name), or a word in a number's place.

    Args:
        host: LLaMA-Factory's keys of a config.
        known: all its keys with their types.
    """
    for key, value in host.items():
        if key not in known:
            hint = did_you_mean(key, (*known, *OUR_KEYS))
            raise ConfigError(f"unknown key {shown(key)}{hint}; remove or correct it")
        # LLaMA-Factory checks no types; a word would fail much later, in the middle of PyTorch. Other types than the
        # plain ones have their own readers.
        if known[key] in (int, float, bool, int | None, float | None, bool | None):
            checked(key, value, known[key])
