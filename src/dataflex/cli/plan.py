"""The verb ``plan``: segments, quotas, windows and costs of a run, before it; no model is loaded."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dataflex.cli.config import RunConfig, check_host_keys, read_config
from dataflex.cli.forecast import Speed, forecast, recorded_speed
from dataflex.cli.train import launch_number
from dataflex.core.draw import check_quota
from dataflex.core.errors import ConfigError, shown
from dataflex.core.order import Geometry, micro_batches_per_pass
from dataflex.core.plan import SegmentPlan

# Cost of training one row, in forward passes of one row: forward and both backward halves; a LoRA step needs no
# gradients of the frozen weights.
FORWARDS_PER_TRAINED_ROW = {"full": 3.0, "freeze": 3.0, "lora": 2.0, "oft": 2.0}
SHOWN_SEGMENTS = 40
COUNTED_SEGMENTS = 10_000
MOST_NUMBER = 2**63  # of anything that is counted


@dataclass(frozen=True)
class PoolSize:
    """Number of raw rows, where the files can be counted."""

    num_rows: int | None
    note: str


def plan(path: str, overrides: list[str], like: str | None = None) -> None:
    """Print the plan of a config.

    Args:
        like: output_dir of an earlier run on this machine, whose speed tells how long choosing will take.

    Raises:
        ConfigError: any wrong key or value, or a quota larger than the pool.
    """
    config = read_config(path, overrides)
    from dataflex.integrations import llamafactory
    from dataflex.train.method import Method
    from dataflex.train.settings import unguided

    check_host_keys(config.host, llamafactory.known_keys())
    console = Console()
    if not config.is_dynamic:
        console.print("train_type is static: LLaMA-Factory trains as it is, nothing is chosen.", highlight=False)
        return
    llamafactory.refuse_config(config.host)
    speed = recorded_speed(like) if like is not None else None
    geometry = geometry_of(config.host, llamafactory.num_devices())
    pool = pool_size(config.host)
    run_plan = segment_plan(config, geometry, pool)
    check_first_quota(config.selector, run_plan, geometry, pool)
    _print_segments(console, config, run_plan, geometry, pool)
    _print_cost(console, config, run_plan, geometry, pool, speed)
    warning = unguided(Method(name=config.method_name, selector=config.selector), run_plan)
    if warning:
        console.print(f"Note: {warning}.", highlight=False, markup=False)


def geometry_of(host: dict[str, Any], num_devices: int) -> Geometry:
    """Ranks, accumulation and micro-batch of a config, from its keys and the launch variables."""
    return Geometry(
        world_size=launch_number("NNODES", 1) * launch_number("NPROC_PER_NODE", num_devices),
        accumulation=_number(host, "gradient_accumulation_steps", 1, whole=True),
        micro_batch=_number(host, "per_device_train_batch_size", 8, whole=True),
    )


def segment_plan(config: RunConfig, geometry: Geometry, pool: PoolSize) -> SegmentPlan:
    """The segments of a dynamic config; raises where they cannot be known."""
    assert config.schedule is not None
    follows_host = config.selector.follows_host
    if pool.num_rows is None and (follows_host or config.schedule.update_times <= 0) and not config.schedule.train_step:
        raise ConfigError(f"the length of this run depends on the size of the pool, and {pool.note}")
    drop_last = bool(config.host.get("dataloader_drop_last", False))
    num_micro_batches = micro_batches_per_pass(pool.num_rows or 1, geometry, drop_last=drop_last)
    max_steps = _number(config.host, "max_steps", -1, whole=True)
    return (SegmentPlan.host if follows_host else SegmentPlan.dynamic)(
        config.schedule,
        num_epochs=_number(config.host, "num_train_epochs", 3.0),
        pool_steps=math.ceil(num_micro_batches / geometry.accumulation),
        max_steps=max_steps if max_steps > 0 else None,
    )


def check_first_quota(selector: Any, run_plan: SegmentPlan, geometry: Geometry, pool: PoolSize) -> None:
    """Raise when a decision could not fill its quota; none has more steps than the first."""
    chooses = not (selector.follows_host or selector.serves_warmup or getattr(selector, "replacement", False))
    if chooses and pool.num_rows is not None and run_plan.warmup_step < run_plan.num_steps:
        first = run_plan.segment_at(run_plan.warmup_step)
        check_quota(first.num_steps * geometry.global_batch, pool.num_rows)


def _print_segments(
    console: Console, config: RunConfig, run_plan: SegmentPlan, geometry: Geometry, pool: PoolSize
) -> None:
    size = f"about {pool.num_rows:,} rows" if pool.num_rows is not None else "size unknown"
    console.print(
        f"[bold]{escape(config.method_name)}[/bold]: {run_plan.num_steps} optimizer steps of {geometry.global_batch} "
        f"samples ({geometry.world_size} ranks x {geometry.accumulation} micro-batches x {geometry.micro_batch}); "
        f"pool: {size} ({escape(pool.note)})",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for header in ("segment", "steps", "samples", "decision", "window (share)", "scores"):
        table.add_column(header, no_wrap=True)
    for segment in itertools.islice(run_plan.segments(), SHOWN_SEGMENTS):
        progress = run_plan.progress(segment)
        uniform = segment.is_warmup and not config.selector.serves_warmup
        note = {} if uniform else _note(config.selector, progress)
        window = note.get("window_shares")
        decides = "host order" if config.selector.follows_host else note.get("decision", config.method_name)
        table.add_row(
            str(segment.index),
            f"{segment.start}-{segment.stop}",
            str(segment.num_steps * geometry.global_batch),
            "warm-up (uniform)" if uniform else escape(decides),
            f"{window[0]:.4f} to {window[1]:.4f}" if window else "-",
            "the pool" if _scores(config.selector, progress) else "-",
        )
    console.print(table)
    hidden = run_plan.num_segments - SHOWN_SEGMENTS
    if hidden > 0:
        console.print(f"... and {hidden} more segments", highlight=False)


def _print_cost(
    console: Console,
    config: RunConfig,
    run_plan: SegmentPlan,
    geometry: Geometry,
    pool: PoolSize,
    speed: Speed | None,
) -> None:
    passes = num_passes(config.selector, run_plan)
    if passes == 0:
        console.print("No pass over the pool: choosing costs nothing measurable.", highlight=False)
        return
    kind = config.host.get("finetuning_type", "lora")
    kind = kind if isinstance(kind, str) else shown(kind)
    per_row = FORWARDS_PER_TRAINED_ROW.get(kind, 3.0)
    trained = run_plan.num_steps * geometry.global_batch
    counted = pool.num_rows if pool.num_rows is not None else 1000
    share = passes * counted / (per_row * trained)
    what = f"{counted:,} rows" if pool.num_rows is not None else "each 1,000 pool rows"
    console.print(
        f"Scoring: {passes} passes over {what} = {passes * counted:,} forward rows; training: {trained:,} rows at "
        f"{per_row:g} forwards each ({kind}). Choosing costs {share:.0%} of the training's compute "
        f"({share / (1 + share):.0%} of the whole run).",
        highlight=False,
        markup=False,
    )
    if speed is None:
        console.print("How long that takes: --like RUN_DIR, an earlier run on this machine.", highlight=False)
    else:
        sentence = forecast(speed, num_passes=passes, num_rows=counted, num_samples=trained)
        console.print(sentence, highlight=False, markup=False)


def num_passes(selector: Any, run_plan: SegmentPlan) -> int:
    """Passes over the pool in the whole run; in a very long one later segments are taken to be like those before."""
    passes = 0
    counted = {True: 0, False: 0}  # by "is a warm-up"
    last = {True: False, False: False}
    for segment in itertools.islice(run_plan.segments(), COUNTED_SEGMENTS):
        last[segment.is_warmup] = _scores(selector, run_plan.progress(segment))
        counted[segment.is_warmup] += 1
        passes += last[segment.is_warmup]
    updates = run_plan.updates_before(run_plan.num_steps)
    warmups = run_plan.num_segments - updates
    return passes + (updates - counted[False]) * last[False] + (warmups - counted[True]) * last[True]


def _note(selector: Any, progress: Any) -> dict[str, Any]:
    plan_note = getattr(selector, "plan_note", None)
    return plan_note(progress) if plan_note is not None else {}


def _scores(selector: Any, progress: Any) -> bool:
    return not selector.follows_host and "loss" in selector.needs_at(progress)


def _number(host: dict[str, Any], key: str, default: float, *, whole: bool = False) -> Any:
    value = host.get(key, default)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MOST_NUMBER  # no NaN
    if not is_number or (whole and value != int(value)):
        what = "a whole number" if whole else "a number"
        raise ConfigError(f"{key} is {shown(value)}; it must be {what} below {MOST_NUMBER}")
    return int(value) if whole else value


def _positive(key: str, value: Any) -> int:
    """A whole number of rows, at least 1."""
    if _number({key: value}, key, 0, whole=True) < 1:
        raise ConfigError(f"{key} is {shown(value)}; it must be at least 1, or left out")
    return int(value)


def pool_size(host: dict[str, Any]) -> PoolSize:
    """Count the raw rows of the configured data sets, as far as they are files at hand.

    Rows that LLaMA-Factory drops while it converts are counted here; nothing is tokenised.
    """
    names = host.get("dataset")
    names = [name.strip() for name in names.split(",")] if isinstance(names, str) else names
    if not isinstance(names, list) or not names:
        raise ConfigError("dataset is missing; name a data set of dataset_info.json")
    directory = Path(str(host.get("dataset_dir", "data")))
    try:
        info = json.loads((directory / "dataset_info.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        return PoolSize(None, f"{directory / 'dataset_info.json'} cannot be read here ({type(error).__name__})")
    if not isinstance(info, dict):
        raise ConfigError(f"{directory / 'dataset_info.json'} holds no mapping of data set names")
    total = 0
    for name in names:
        if not isinstance(info.get(name) if isinstance(name, str) else None, dict):
            raise ConfigError(
                f"data set {shown(name)} is not in {directory / 'dataset_info.json'}; known: {', '.join(info)}"
            )
        file_name = info[name].get("file_name")
        if info[name].get("num_samples") is not None:  # LLaMA-Factory draws or repeats rows until it has this many
            total += _limited(host, _positive(f"num_samples of {shown(name)}", info[name]["num_samples"]))
            continue
        if not isinstance(file_name, str) or not _is_file(directory / file_name):
            return PoolSize(None, f"the rows of {shown(name)} are not in a file at hand")
        counted = _count_rows(directory / file_name)
        if counted is None:
            return PoolSize(None, f"{file_name} is of a format that is not counted here")
        total += _limited(host, counted)
    if total == 0:
        raise ConfigError(f"the data set {', '.join(names)} is empty")
    val_size = _number(host, "val_size", 0.0)
    if val_size < 0:
        raise ConfigError(f"val_size is {shown(val_size)}; it must be a share below 1 or a number of rows")
    held_out = int(val_size) if val_size >= 1 else math.ceil(val_size * total)
    if held_out >= total:
        raise ConfigError(f"val_size is {val_size}, which leaves nothing of the {total} rows to train on")
    return PoolSize(total - held_out, "raw rows counted, before bad ones are dropped")


def _limited(host: dict[str, Any], num_rows: int) -> int:
    if host.get("max_samples") is None:
        return num_rows
    return min(num_rows, _positive("max_samples", host["max_samples"]))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a name that the file system does not take
        return False


def _count_rows(path: Path) -> int | None:
    """Rows of a .jsonl, .json or .parquet file; None for another format or a file that is not what its name says."""
    try:
        if path.suffix == ".parquet":
            return pq.read_metadata(path).num_rows
        if path.suffix not in (".json", ".jsonl"):
            return None
        text = path.read_text(encoding="utf-8")
    except (OSError, ValueError, pa.ArrowException):
        return None
    try:
        content = json.loads(text) if path.suffix == ".json" else None
    except (ValueError, RecursionError):  # one object a line, under the other ending
        content = None
    if content is None:
        # Not splitlines: it also cuts at characters that may stand inside a JSON string.
        return sum(1 for line in text.split("\n") if line.strip())
    return len(content) if isinstance(content, list) else None
