"""The verb ``plan``: segments, quotas, windows and costs of a run, before it; no model is loaded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dataflex.algorithms.base import LIMITED_SIGNALS
from dataflex.cli.budget import print_budget
from dataflex.cli.config import RunConfig, check_host_keys, dataset_names, read_config
from dataflex.cli.forecast import Speed, forecast, recorded_speed
from dataflex.cli.host_numbers import number
from dataflex.cli.pool_size import PoolSize, pool_size
from dataflex.cli.train import launch_number
from dataflex.core.draw import check_quota
from dataflex.core.errors import ConfigError, shown
from dataflex.core.order import Geometry, micro_batches_per_pass
from dataflex.core.plan import SegmentPlan
from dataflex.core.segment import Progress
from dataflex.train.method import Method
from dataflex.train.score_budget import budget_sentence

# Signals that take a pass over the pool, and how many forwards of a row; None: all that training needs.
PASSES: dict[str, float | None] = {
    "loss": 1.0,
    "similarities": None,
    "embeddings": 1.0,
    "reference_loss": 1.0,
    "answer_losses": 2.0,
}

# Cost of training one row, in forward passes of one row: forward and both backward halves; a LoRA step needs no
# gradients of the frozen weights.
FORWARDS_PER_TRAINED_ROW = {"full": 3.0, "freeze": 3.0, "lora": 2.0, "oft": 2.0}
SHOWN_SEGMENTS = 40
COUNTED_SEGMENTS = 10_000


def plan(path: str, overrides: list[str], like: str | None = None) -> None:
    """Print the plan of a config.

    Args:
        like: output_dir of an earlier run on this machine, whose speed tells how long choosing will take.

    Raises:
        ConfigError: any wrong key or value, or a quota larger than the pool.
    """
    config = read_config(path, overrides)
    from dataflex.integrations import llamafactory
    from dataflex.train.settings import check_weighers, unguided
    from dataflex.train.target import check_target

    check_host_keys(config.host, llamafactory.known_keys())
    console = Console()
    method = config.method
    if method is None:
        console.print("train_type is static: LLaMA-Factory trains as it is, nothing is chosen.", highlight=False)
        return
    llamafactory.refuse_config(config.host)
    speed = recorded_speed(like) if like is not None else None
    geometry = geometry_of(config.host, llamafactory.num_devices())
    pool = pool_size(config.host)
    run_plan = segment_plan(config, geometry, pool)
    check_first_quota(method, run_plan, geometry, pool)
    check_weighers(method, geometry)
    check_target(method, is_given=bool(config.target), plan=run_plan)
    _print_segments(console, method, run_plan, geometry, pool)
    _print_parts(console, config, method)
    _print_cost(console, config.host, method, run_plan, geometry, pool, speed)
    warning = unguided(method, run_plan)
    if warning:
        console.print(f"Note: {warning}.", highlight=False, markup=False)


def geometry_of(host: dict[str, Any], num_devices: int) -> Geometry:
    """Ranks, accumulation and micro-batch of a config, from its keys and the launch variables."""
    return Geometry(
        world_size=launch_number("NNODES", 1) * launch_number("NPROC_PER_NODE", num_devices),
        accumulation=number(host, "gradient_accumulation_steps", 1, whole=True),
        micro_batch=number(host, "per_device_train_batch_size", 8, whole=True),
    )


def segment_plan(config: RunConfig, geometry: Geometry, pool: PoolSize) -> SegmentPlan:
    """The segments of a dynamic config; raises where they cannot be known."""
    assert config.schedule is not None
    follows_host = config.deciding.follows_host
    if pool.num_rows is None and (follows_host or config.schedule.update_times <= 0) and not config.schedule.train_step:
        raise ConfigError(f"the length of this run depends on the size of the pool, and {pool.note}")
    drop_last = bool(config.host.get("dataloader_drop_last", False))
    num_micro_batches = micro_batches_per_pass(pool.num_rows or 1, geometry, drop_last=drop_last)
    max_steps = number(config.host, "max_steps", -1, whole=True)
    return (SegmentPlan.host if follows_host else SegmentPlan.dynamic)(
        config.schedule,
        num_epochs=number(config.host, "num_train_epochs", 3.0),
        pool_steps=math.ceil(num_micro_batches / geometry.accumulation),
        max_steps=max_steps if max_steps > 0 else None,
    )


def check_first_quota(method: Method, run_plan: SegmentPlan, geometry: Geometry, pool: PoolSize) -> None:
    """Raise when a decision could not fill its quota; none has more steps than the first."""
    chooses = method.selects and not (method.serves_warmup or method.replacement)
    if chooses and pool.num_rows is not None and run_plan.warmup_step < run_plan.num_steps:
        first = run_plan.segment_at(run_plan.warmup_step)
        check_quota(first.num_steps * geometry.global_batch, pool.num_rows)


def _print_segments(
    console: Console, method: Method, run_plan: SegmentPlan, geometry: Geometry, pool: PoolSize
) -> None:
    size = f"about {pool.num_rows:,} rows" if pool.num_rows is not None else "size unknown"
    console.print(
        f"[bold]{escape(method.title)}[/bold]: {run_plan.num_steps} optimizer steps of {geometry.global_batch} "
        f"samples ({geometry.world_size} ranks x {geometry.accumulation} micro-batches x {geometry.micro_batch}); "
        f"pool: {size} ({escape(pool.note)})",
        highlight=False,
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for header in ("segment", "steps", "samples", "decision", "window (share)", "scores"):
        table.add_column(header, no_wrap=True)
    for segment in itertools.islice(run_plan.segments(), SHOWN_SEGMENTS):
        progress = run_plan.progress(segment)
        drawn = segment.is_warmup and not (method.serves_warmup or method.follows_host)
        note = {} if drawn else method.plan_note(progress)
        window = note.get("window_shares")
        initial = "initial mixture" if method.mixer is not None else "uniform"
        table.add_row(
            str(segment.index),
            f"{segment.start}-{segment.stop}",
            str(segment.num_steps * geometry.global_batch),
            f"warm-up ({initial})" if drawn else escape(_decides(method, progress, note)),
            f"{window[0]:.4f} to {window[1]:.4f}" if window else "-",
            "the pool" if PASSES.keys() & _needs(method, progress) else "-",
        )
    console.print(table)
    hidden = run_plan.num_segments - SHOWN_SEGMENTS
    if hidden > 0:
        console.print(f"... and {hidden} more segments", highlight=False)


def _decides(method: Method, progress: Progress, note: Mapping[str, Any]) -> str:
    """What decides a segment, in a few words."""
    if method.follows_host:
        return "host order"
    words = []
    if method.selects:
        words = [note.get("decision", method.name) if method.selector_decides(progress) else f"{method.name} as before"]
    if method.mixer is not None:
        words.append(f"mix {method.mixer.name}" if method.mixer_decides(progress) else "mix as before")
    words += [f"order {part.name}" for part in method.orders]
    return ", ".join(words)


def _print_parts(console: Console, config: RunConfig, method: Method) -> None:
    """What the components beside the selector will do, as far as it is known before the run."""
    if method.mixer is not None:
        names = dataset_names(config.host) if config.domain_column is None else None
        where = f"the data sets {', '.join(map(str, names))}" if names else f"the column {config.domain_column}"
        console.print(f"Domains: {where}. {describe_mixer(method)}", highlight=False, markup=False)
    if config.target:
        groups = f"by {config.target_groups}" if config.target_groups else "one a data set"
        names = ", ".join(config.target)
        console.print(f"Target: {names}, groups {groups}; its rows are not trained.", highlight=False, markup=False)
    if method.weighers:
        named = " x ".join(part.name for part in method.weighers)
        after = f" from step {method.weigh_warmup} on; 1 before" if method.weigh_warmup else ""
        console.print(f"Loss: sum of c_i S_i / sum of T_i, c = {named}{after}.", highlight=False, markup=False)
    for part in method.weighers:
        if "reference_token_loss" in part.method.needs:
            what = "A reference's forward is made for each row that is trained: a third of a training step or more."
            console.print(f"{part.name}: {what}", highlight=False, markup=False)
        if "embedding" in part.method.needs:
            what = f"A forward of every target row is made each {part.method.refresh} steps."
            console.print(f"{part.name}: {what}", highlight=False, markup=False)


def describe_mixer(method: Method) -> str:
    """What is known of a mixture before the run."""
    assert method.mixer is not None
    mixer, words = method.mixer.method, []
    if "domain_loss" in mixer.needs:
        words.append("Its rewards are the losses of training, at no extra pass")
    if mixer.step_needs:
        words.append("A reference model's forward is made for each row that is trained: a third of a training step")
    words.append(
        "a domain that runs dry begins again"
        if mixer.max_times is None
        else f"a row comes at most {mixer.max_times} times"
    )
    sentence = "; ".join(words)
    return f"{sentence[0].upper()}{sentence[1:]}."


def _print_cost(
    console: Console,
    host: Mapping[str, Any],
    method: Method,
    run_plan: SegmentPlan,
    geometry: Geometry,
    pool: PoolSize,
    speed: Speed | None,
) -> None:
    foresee = getattr(method.selector, "foresee", None)
    if foresee is not None and pool.num_rows is not None:
        drawn = run_plan.num_steps * geometry.global_batch
        console.print(f"{foresee(drawn, pool.num_rows)}.", highlight=False, markup=False)
    passes = num_passes(method, run_plan)
    if passes == 0:
        console.print("No pass over the pool: choosing costs nothing measurable.", highlight=False)
        return
    kind = host.get("finetuning_type", "lora")
    kind = kind if isinstance(kind, str) else shown(kind)
    per_row = FORWARDS_PER_TRAINED_ROW.get(kind, 3.0)
    trained = run_plan.num_steps * geometry.global_batch
    counted = pool.num_rows if pool.num_rows is not None else 1000
    by_gradient = "similarities" in method.selector.needs
    rows, forwards = measured_rows(method, run_plan, geometry, counted, per_row)
    share = forwards / (per_row * trained)
    what = f"{counted:,} rows" if pool.num_rows is not None else "each 1,000 pool rows"
    over = "over" if rows >= passes * counted else "on parts of"
    kind_of_row, what_of_row = (
        ("gradient", " (forward and backward), target rows besides") if by_gradient else ("forward", "")
    )
    said = what_is_measured(method)
    if method.score_budget is not None:
        segments = itertools.islice(run_plan.segments(), COUNTED_SEGMENTS)
        turns = sum("loss" in _needs(method, run_plan.progress(segment)) for segment in segments)
        print_budget(console, method, turns=turns, forwards=per_row * trained, num_rows=pool.num_rows)
        if not (PASSES.keys() - {"loss"}) & method.selector.needs:
            return
        said = f"{said}, losses counted as if all were scored"
    console.print(
        f"Scoring{said}: {passes} passes {over} {what} = {round(rows):,} {kind_of_row} rows{what_of_row}; training: "
        f"{trained:,} rows at {per_row:g} forwards each ({kind}). Choosing costs {share:.0%} of the training's compute "
        f"({share / (1 + share):.0%} of the whole run).",
        highlight=False,
        markup=False,
    )
    alone = not (PASSES.keys() - {"loss"}) & method.selector.needs
    warning = budget_sentence(method, share) if alone and method.score_budget is None else None
    if warning:
        console.print(f"Note: {warning}.", highlight=False, markup=False)
    if speed is None:
        console.print("How long that takes: --like RUN_DIR, an earlier run on this machine.", highlight=False)
    else:
        sentence = forecast(speed, num_passes=passes, num_rows=counted, num_samples=trained)
        console.print(sentence, highlight=False, markup=False)


def num_passes(method: Method, run_plan: SegmentPlan) -> int:
    """Passes over the pool in the whole run; in a very long one later segments are taken to be like those before."""
    passes = 0
    counted = {True: 0, False: 0}  # by "is a warm-up"
    last = {True: False, False: False}
    for segment in itertools.islice(run_plan.segments(), COUNTED_SEGMENTS):
        last[segment.is_warmup] = bool(PASSES.keys() & _needs(method, run_plan.progress(segment)))
        counted[segment.is_warmup] += 1
        passes += last[segment.is_warmup]
    updates = run_plan.updates_before(run_plan.num_steps)
    warmups = run_plan.num_segments - updates
    return passes + (updates - counted[False]) * last[False] + (warmups - counted[True]) * last[True]


def measured_rows(
    method: Method, run_plan: SegmentPlan, geometry: Geometry, num_rows: int, per_row: float
) -> tuple[float, float]:
    """Rows that are measured in the whole run, each as often as it is, and their forwards.

    In a very long run later decisions are taken to be like those before.

    Args:
        per_row: forwards that training a row costs.
    """
    rows = forwards = last_rows = last_forwards = 0.0
    counted = 0
    for segment in itertools.islice(run_plan.segments(), COUNTED_SEGMENTS):
        progress = run_plan.progress(segment)
        share = getattr(method.selector, "share_measured", lambda quota, size: 1.0)(
            segment.num_steps * geometry.global_batch, num_rows
        )
        last_rows = last_forwards = 0.0
        for name in PASSES.keys() & _needs(method, progress):
            of_signal = num_rows * (share if name in LIMITED_SIGNALS else 1.0)
            cost = PASSES[name]
            last_rows += of_signal
            last_forwards += of_signal * (per_row if cost is None else cost)
        rows, forwards, counted = rows + last_rows, forwards + last_forwards, counted + 1
    rest = run_plan.num_segments - counted
    return rows + rest * last_rows, forwards + rest * last_forwards


def what_is_measured(method: Method) -> str:
    """A word for passes that are not of the loss or of gradients alone."""
    words = {
        "embeddings": "embeddings once",
        "reference_loss": "a reference's losses once",
        "answer_losses": "answers with and without their prompts, once",
    }
    found = [words[name] for name in words if name in method.selector.needs]
    return f" ({', '.join(found)})" if found else ""


def _needs(method: Method, progress: Progress) -> frozenset[str]:
    """Signals that a decision measures."""
    return frozenset() if method.follows_host else method.needs_at(progress)
