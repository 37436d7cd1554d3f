"""What a run is, before it begins: method, schedule, geometry, plan, fingerprint."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from dataflex import __version__
from dataflex.core.draw import check_quota
from dataflex.core.order import Geometry, micro_batches_per_pass
from dataflex.core.plan import Schedule, SegmentPlan
from dataflex.ledger.fingerprint import VERSION, comparable
from dataflex.ledger.ledger import Ledger
from dataflex.train.domains import Domains, find_domains, read_proportions
from dataflex.train.method import Method
from dataflex.train.pool import Pool
from dataflex.train.target import Target


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What a dynamic run needs beyond the host's own arguments."""

    method: Method
    schedule: Schedule
    config: Mapping[str, Any]  # the resolved config, JSON values; kept in run.yaml and part of the fingerprint
    score_batch_tokens: int | None = None  # padded tokens of a scoring batch; None: calibrated
    log_source_loss: bool = False  # the training loss of each source by itself
    domain_column: str | None = None  # which column says the domain of a row; None: its data set
    domain_names: tuple[str, ...] | None = None  # the domains in the user's order, where the config names them
    overwrite: bool = False
    fresh: bool = False  # no array of another run is served from the cache
    other_versions: bool = False  # go on although packages have other versions than the recorded run
    newest_checkpoint: bool = False  # resume from the newest complete checkpoint instead of the one train() is given
    pool: Pool | None = None  # read already, else it is read from the trainer's data set
    target_names: tuple[str, ...] = ()  # data sets of the rows that steer the selection
    target_groups: str | None = None  # which of their columns says the group of a row; None: the data set
    allow_overlap: bool = False  # rows of the target may be in the pool as well
    target: Target | None = None  # those rows, read
    rows: Mapping[str, Any] = field(default_factory=dict)  # columns of rows.parquet beyond row and token counts


def geometry_of(args: Any) -> Geometry:
    """How the host's training arguments cut an optimizer step."""
    return Geometry(
        world_size=args.world_size,
        accumulation=args.gradient_accumulation_steps,
        micro_batch=args.train_batch_size,
    )


def make_plan(settings: Settings, args: Any, num_rows: int, geometry: Geometry) -> SegmentPlan:
    """The plan of a run, from its settings, the host's arguments and the size of the pool."""
    num_micro_batches = micro_batches_per_pass(num_rows, geometry, drop_last=args.dataloader_drop_last)
    follows_host = settings.method.follows_host
    return (SegmentPlan.host if follows_host else SegmentPlan.dynamic)(
        settings.schedule,
        num_epochs=args.num_train_epochs,
        pool_steps=-(-num_micro_batches // geometry.accumulation),
        max_steps=args.max_steps if args.max_steps > 0 else None,
    )


def check_quotas(settings: Settings, plan: SegmentPlan, pool: Pool, geometry: Geometry) -> None:
    """Raise before anything is written when no decision could fill its quota."""
    method = settings.method
    # A mixture repeats rows of a domain that is short of them, unless it is told not to, and then says so itself.
    if method.follows_host or method.replacement or method.serves_warmup or (method.mixer and not method.selects):
        return
    first_updates = [plan.segment_at(step) for step in (0, plan.warmup_step) if step < plan.num_steps]
    steps = max((segment.num_steps for segment in first_updates if not segment.is_warmup), default=0)
    check_quota(steps * geometry.global_batch, int(pool.info.trainable_N.sum()))


def check_weighers(method: Method, geometry: Geometry) -> None:
    """Raise where a weigher would be without effect on the rows of a micro-batch over all ranks."""
    for weigher in method.weighers:
        weigher.method.check_rows_in_scope(geometry.world_size * geometry.micro_batch)


def domains_of_run(settings: Settings, pool: Pool, rows: Mapping[str, Any]) -> Domains | None:
    """The domains that the mixer mixes; None without one.

    Raises:
        ConfigError: a row's domain is unknown, or the mixer's parameters name domains that are not there.
    """
    mixer = settings.method.mixer
    if mixer is None:
        return None
    domains = find_domains(rows, pool.info, column=settings.domain_column, names=settings.domain_names)
    mixer.method.init(domains.info)
    if "proportions_file" in mixer.method.needs:
        read_proportions(mixer.method.path, domains)
    return domains


def unguided(method: Method, plan: SegmentPlan) -> str | None:
    """A sentence when the run ends before the method has chosen anything, such as delta_loss with one update."""
    if not method.selects or plan.num_steps > 100_000:
        return None
    updates = [plan.progress(segment) for segment in plan.segments() if not segment.is_warmup]
    if all(method.plan_note(progress).get("decision") == "first (uniform)" for progress in updates):
        return (
            f"{method.name} chooses nothing in this run: its first selection is uniform and none follows; "
            "set update_times to 2 or more, or train longer"
        )
    return None


def make_fingerprint(settings: Settings, pool: Pool, geometry: Geometry, ledger: Ledger) -> dict[str, Any]:
    """What makes two runs the same run: config, method, schedule, data, global batch and versions.

    Where the user lets a run go on under other versions, those that ``ledger`` has on record stand in for them.
    """
    params = {name: value for name, value in settings.method.params.items() if name != "cache_dir"}
    made_with = {f"{VERSION}{package}": number for package, number in versions().items()}
    if settings.other_versions and not settings.overwrite and ledger.exists():
        recorded = ledger.run().get("fingerprint")
        if isinstance(recorded, dict):
            made_with = {key: value for key, value in recorded.items() if key.startswith(VERSION)}
    return {
        **comparable(settings.config),
        "method": settings.method.name,
        "params": params,
        **({"parts": settings.method.parts} if settings.method.parts else {}),
        **({"score_budget": settings.method.score_budget} if settings.method.score_budget is not None else {}),
        **({"target_rows": settings.target.record()} if settings.target else {}),
        "schedule": dict(vars(settings.schedule)),
        "num_rows": len(pool),
        "data": pool.digest,
        "global_batch": geometry.global_batch,
        # The host's own order depends on how many ranks fill up the end of a pass.
        **({"world_size": geometry.world_size} if settings.method.follows_host else {}),
        **made_with,
    }


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    found = {"dataflex": __version__}
    for package in ("numpy", "torch", "transformers", "accelerate", "peft", "trl", "llamafactory"):
        number = _installed(package)
        if number is not None:
            found[package] = number
    return found


@functools.cache
def _installed(package: str) -> str | None:
    """Looked up once: it takes milliseconds, and a run asks several times."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
