"""The strict reading of a comparison's plan: which configs are trained, with which seeds, and what measures them."""

from __future__ import annotations

import dataclasses
import json
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dataflex.cli.compare_inputs import check_held_out
from dataflex.cli.compare_overlap import held_out_rows_trained
from dataflex.cli.config import (
    OUR_KEYS,
    PART_KEYS,
    TARGET_KEYS,
    RunConfig,
    build,
    check_host_keys,
    load_files,
    split_config,
)
from dataflex.cli.plan import check_first_quota, geometry_of, num_passes, segment_plan
from dataflex.cli.pool_size import PoolSize, pool_size
from dataflex.cli.presets import PACKAGE_COMPONENTS, find_components, read_presets
from dataflex.core.errors import ConfigError, did_you_mean, shown
from dataflex.ledger.files import write_atomic
from dataflex.train.score_budget import FULL
from dataflex.train.settings import check_weighers
from dataflex.train.target import check_target, needing_target

BUDGETS = ("steps", "compute", "both")
METRICS = ("loss", "exact_match")
COMPONENT_KEYS = ("name", "component_name", "params", "score_budget")
# Always compared: the method, what it is called in the tables, and its preset in the package's components file.
ALWAYS = {"static": ("static", "static"), "random": ("random", "random"), "length": ("length", "longest")}
# Of a base config; compare says these itself.
SET_HERE = (
    *("output_dir", "overwrite_output_dir", "train_step", "max_steps", "num_train_epochs"),
    *("seed", "data_seed"),  # a data_seed of the base would draw the same rows under every seed
    "resume_from_checkpoint",
)
# Of a base config, and why no comparison can be made of it.
REFUSED = {
    "load_best_model_at_end": "the model of the last step is compared, and this would replace it by another",
    "early_stopping_steps": "runs would end after different numbers of steps",
    "tokenized_path": "rows that were tokenised before would be trained on and measured in place of those named",
    "pissa_init": "its adapters lie on changed weights, without which a checkpoint cannot be measured",
}
# Of a config that trains and means nothing, or another thing, where rows are only measured.
NOT_MEASURED = (
    "val_size",
    "do_eval",
    "do_predict",
    "predict_with_generate",
    "compute_accuracy",
    "metric_for_best_model",
    "max_samples",
    "packing",
    "neat_packing",
    "deepspeed",
    "fsdp",
    "num_samples",
    "interleave_probs",
    "mix_strategy",
    "train_on_prompt",  # the question's tokens are no answer
    "resume_from_checkpoint",
)


@dataclass(frozen=True, kw_only=True)
class HeldOutKeys:
    """``held_out`` of a plan: ``dataset``, a name in the base's dataset_dir, or ``file``, alpaca rows."""

    dataset: str | None = None
    file: str | None = None
    metric: str = "loss"
    points: int = 4  # at which the curves are measured, the end included

    def __post_init__(self) -> None:
        if (self.dataset is None) == (self.file is None):
            raise ConfigError("name either a dataset or a file")
        if self.metric not in METRICS:
            hint = did_you_mean(self.metric, METRICS)
            raise ConfigError(f"metric is {shown(self.metric)}{hint}; it must be one of {', '.join(METRICS)}")
        if not 1 <= self.points <= 100:
            raise ConfigError(f"points is {self.points}; it must be from 1 to 100")


@dataclass(frozen=True, kw_only=True)
class PlanKeys:
    """The keys of a plan, each of its type."""

    base: str | dict[str, Any]
    components: tuple[str | dict[str, Any], ...] = ()
    seeds: tuple[int, ...]
    held_out: dict[str, Any]
    output_dir: str
    budget: str = "steps"
    flops: float | None = None  # of the equal compute; left out: what the dearest costs at equal steps
    launcher: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError(f"seeds is {shown(list(self.seeds))}; it must hold one or more different whole numbers")
        if not all(0 <= seed < 2**32 for seed in self.seeds):
            raise ConfigError(f"seeds is {shown(list(self.seeds))}; each must be from 0 to {2**32 - 1}")
        if self.budget not in BUDGETS:
            hint = did_you_mean(self.budget, BUDGETS)
            raise ConfigError(f"budget is {shown(self.budget)}{hint}; it must be one of {', '.join(BUDGETS)}")
        if self.flops is not None and (self.budget == "steps" or not 0 < self.flops < float("inf")):
            raise ConfigError(f"flops is {self.flops}; it must be above 0, with budget: compute or both")


@dataclass(frozen=True, kw_only=True)
class Method:
    """One method of the comparison: its config, without seed, length and place."""

    label: str
    config: dict[str, Any]
    parsed: RunConfig


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A plan that was checked as far as it can be without a model."""

    keys: PlanKeys
    held_out: HeldOutKeys
    base: dict[str, Any]
    methods: list[Method]
    added: list[str]
    num_steps: int  # of each run at equal steps
    num_held_out_trained: int  # held-out rows that are rows of the pool as well
    launcher: list[str]


def read_plan(path: str) -> Comparison:
    """Read and check a plan; starts nothing, loads no model.

    Raises:
        ConfigError: an unknown key, a wrong value, or a config that cannot be trained.
    """
    raw, component = load_files(path, [])
    if component:
        raise ConfigError(f"component stands in {path}; a plan names its methods under components")
    keys = build(PlanKeys, raw, where=f"{path}: ")
    held_out = build(HeldOutKeys, keys.held_out, where=f"{path}: held_out: ")
    base = _base(keys)
    methods, added = _methods(base, keys)
    num_steps = _check(methods, base)
    check_held_out(base, held_out.dataset, held_out.file)
    try:
        launcher = shlex.split(keys.launcher)
    except ValueError as error:
        raise ConfigError(
            f"launcher {shown(keys.launcher)} cannot be split into words ({error}); correct it"
        ) from error
    if launcher and shutil.which(launcher[0]) is None:
        raise ConfigError(f"launcher {shown(launcher[0])} is no program that can be found; correct it or leave it out")
    return Comparison(
        keys=keys,
        held_out=held_out,
        base=base,
        methods=methods,
        added=added,
        num_steps=num_steps,
        num_held_out_trained=held_out_rows_trained(base, held_out.dataset, held_out.file),
        launcher=launcher,
    )


def _base(keys: PlanKeys) -> dict[str, Any]:
    """The base config with the plan's overrides."""
    if isinstance(keys.base, str):
        base, component = load_files(keys.base, [])
    else:
        base, component = dict(keys.base), keys.base.get("component")
    if component or "component" in keys.overrides:
        raise ConfigError("component stands in the base or the overrides; write params under components instead")
    base = {"train_type": "dynamic_select", **base, **keys.overrides, "output_dir": keys.output_dir}
    if base["train_type"] != "dynamic_select":
        raise ConfigError(f"train_type is {shown(base['train_type'])}; a comparison needs train_type: dynamic_select")
    if base.get("stage", "sft") != "sft":
        raise ConfigError(f"stage is {shown(base['stage'])}; compare measures held-out answers, which stage sft has")
    for key, why in REFUSED.items():
        if base.get(key):
            raise ConfigError(f"{key} is set: {why}; leave it out")
    return base


def _methods(base: Mapping[str, Any], keys: PlanKeys) -> tuple[list[Method], list[str]]:
    """The methods that were named, and the baselines that were not, first; and the labels of the latter."""
    named = [_named(base, given) for given in keys.components]
    added = []
    for name, (label, preset) in ALWAYS.items():
        if not any(_is_baseline(method, name, label) for method in named):
            file = _components_of_baseline(base, name, preset)
            own = {"component_name": preset, "components_cfg_file": str(file)}
            added.append(_method(label, _without_budget({**base, **own}), {}))
    methods = [*added, *named]
    labels = [method.label for method in methods]
    for label in labels:
        if labels.count(label) > 1:
            raise ConfigError(f"two components are called {shown(label)}; give one of them another name")
    return methods, [method.label for method in added]


def _components_of_baseline(base: Mapping[str, Any], name: str, preset: str) -> Path:
    """The components file that an added baseline is taken from: the package's, unless the base's has other parts too.

    Raises:
        ConfigError: the base weighs, mixes or orders by presets of its own file, which has none for the baseline.
    """
    file, parts = find_components(base.get("components_cfg_file")), [key for key in PART_KEYS if base.get(key)]
    if file.resolve() == PACKAGE_COMPONENTS.resolve() or not parts:
        return PACKAGE_COMPONENTS
    if not isinstance(read_presets(file, "selectors").get(preset), dict):
        raise ConfigError(
            f"{', '.join(parts)} of the base {'is' if len(parts) == 1 else 'are'} of {file}, which has no preset for a "
            f"baseline that is always compared; add to its selectors {preset}: {{name: {name}}}"
        )
    return file


def _is_baseline(method: Method, name: str, label: str) -> bool:
    """True when a named method is the baseline ``name``; random and static must go by these names."""
    decides = method.parsed.deciding
    if decides.name != name or (name == "static" and not decides.follows_host):
        return False
    return name == "length" or method.label == label


def _named(base: Mapping[str, Any], given: str | dict[str, Any]) -> Method:
    entry = {"component_name": given} if isinstance(given, str) else dict(given)
    for key in entry:
        if key not in COMPONENT_KEYS:
            hint = did_you_mean(key, COMPONENT_KEYS)
            raise ConfigError(f"unknown key {shown(key)} of a component{hint}; known: {', '.join(COMPONENT_KEYS)}")
    if "component_name" not in entry:
        raise ConfigError(f"component {shown(given)} has no component_name; it must name a preset")
    label = entry.get("name", entry["component_name"])
    if not isinstance(label, str) or not label.replace("-", "").replace("_", "").replace(".", "").isalnum():
        raise ConfigError(
            f"a component is called {shown(label)}; use letters, digits, '-', '_' and '.', for it names a folder"
        )
    config = {**base, "component_name": entry["component_name"]}
    if "score_budget" in entry:
        config["score_budget"] = entry["score_budget"]
    elif config.get("score_budget", FULL) != FULL:
        config = _without_budget(config)
    return _method(label, config, {"params": entry["params"]} if entry.get("params") else {})


def _without_budget(config: dict[str, Any]) -> dict[str, Any]:
    """The config, without the base's ``score_budget`` where a method scores no losses."""
    plain = {key: value for key, value in config.items() if key != "score_budget"}
    return config if split_config(plain, {}).deciding.scores_losses else plain


def _method(label: str, config: dict[str, Any], component: dict[str, Any]) -> Method:
    parsed = split_config(config, component)
    if parsed.target and not needing_target(parsed.deciding):
        # The base's target is for those that choose by it; the others train the same pool without.
        config = {key: value for key, value in config.items() if key not in TARGET_KEYS}
        parsed = split_config(config, component)
    if component:
        config = {**config, "component": component}
    return Method(label=label, config=config, parsed=parsed)


def _check(methods: list[Method], base: Mapping[str, Any]) -> int:
    """Check what `plan` checks of a config; returns the number of steps at equal steps."""
    from dataflex.integrations import llamafactory

    check_host_keys(methods[0].parsed.host, llamafactory.known_keys())
    llamafactory.refuse_config(methods[0].parsed.host)
    geometry, pool = geometry_of(methods[0].parsed.host, llamafactory.num_devices()), pool_size(dict(base))
    chooser = next(method for method in methods if not method.parsed.deciding.follows_host)
    num_steps = segment_plan(chooser.parsed, geometry, pool).num_steps
    for method in methods:
        run_plan, decides = segment_plan(method.parsed, geometry, pool), method.parsed.deciding
        check_first_quota(decides, run_plan, geometry, pool)
        check_weighers(decides, geometry)
        check_target(decides, is_given=bool(method.parsed.target), plan=run_plan)
    model = str(base.get("model_name_or_path", ""))
    if (model.startswith((".", "/", "~")) or model.count("/") > 1) and not Path(model).expanduser().exists():
        raise ConfigError(f"model_name_or_path {shown(model)} does not exist; correct it")
    return num_steps


def sized(method: Method, num_steps: int, points: int) -> dict[str, Any]:
    """The config of a method for so many steps, its learning rate following them, saved where it is measured."""
    config = {key: value for key, value in method.config.items() if key not in SET_HERE}
    every = max(1, -(-num_steps // points))
    saving = {"save_strategy": "steps", "save_steps": every, "save_total_limit": None, "save_only_model": False}
    return {**config, **saving, "train_step": num_steps, "overwrite_output_dir": False}


def passes_of(method: Method, num_steps: int, pool: PoolSize) -> int:
    """Scoring passes of a run of so many steps over a pool."""
    from dataflex.integrations import llamafactory

    assert method.parsed.schedule is not None
    schedule = dataclasses.replace(method.parsed.schedule, train_step=num_steps)
    host = {key: value for key, value in method.parsed.host.items() if key != "max_steps"}
    longer = dataclasses.replace(method.parsed, schedule=schedule, host=host)
    geometry = geometry_of(host, llamafactory.num_devices())
    return num_passes(longer.deciding, segment_plan(longer, geometry, pool))


def measuring_config(comparison: Comparison, folder: Path) -> dict[str, Any]:
    """LLaMA-Factory's keys for reading the model and the held-out rows."""
    skipped = {*OUR_KEYS, *NOT_MEASURED}
    config = {k: v for k, v in comparison.base.items() if k not in skipped and not k.startswith("eval_")}
    config |= {"output_dir": str(folder / "unused"), "do_train": True, "overwrite_cache": True}
    if comparison.held_out.dataset is not None:
        return {**config, "dataset": comparison.held_out.dataset}
    assert comparison.held_out.file is not None
    file = Path(comparison.held_out.file).resolve()
    info = {"held_out": {"file_name": str(file)}}
    write_atomic(folder / "dataset_info.json", json.dumps(info).encode())
    return {**config, "dataset": "held_out", "dataset_dir": str(folder)}
