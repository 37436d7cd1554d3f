"""What run.yaml says that a reader of the record needs: pool, batch, plan, method."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dataflex.core.errors import ConfigError, LedgerError
from dataflex.core.plan import Schedule, SegmentPlan
from dataflex.ledger import schema


@dataclass(frozen=True, kw_only=True)
class Facts:
    """A run, as far as its record must agree with it."""

    run_id: str
    method: str
    params: Mapping[str, Any]
    seed: int
    num_rows: int
    data: str  # digest of the pool
    global_batch: int
    plan: SegmentPlan
    follows_host: bool  # trained in the host's own order


def facts_of(run: Mapping[str, Any]) -> Facts:
    """Read the facts of a run.

    Raises:
        LedgerError: a field is missing or of another type; the sentence names all of them.
    """
    wrong = schema.wrong_fields(run, schema.RUN)
    if not wrong:
        parts = {"fingerprint": schema.FINGERPRINT, "schedule": schema.SCHEDULE, "plan": schema.PLAN}
        for name, fields in {**parts, "geometry": schema.GEOMETRY}.items():
            wrong += [f"{name}: {problem}" for problem in schema.wrong_fields(run[name], fields)]
    if wrong:
        raise LedgerError(f"its fields are not those of a run: {', '.join(wrong)}")
    fingerprint = run["fingerprint"]
    follows_host = "world_size" in fingerprint
    num_steps = run["plan"]["num_steps"]
    try:
        schedule = Schedule(**{name: run["schedule"][name] for name in schema.SCHEDULE})
        # As many epochs as steps are enough for any run; the bound then gives its length.
        plan = (SegmentPlan.host if follows_host else SegmentPlan.dynamic)(
            schedule, num_epochs=num_steps, pool_steps=run["plan"]["steps_per_epoch"], max_steps=num_steps
        )
    except ConfigError as error:
        raise LedgerError(f"its schedule is not one of a run: {error}") from error
    return Facts(
        run_id=run["run_id"],
        method=run["method"],
        params=run["params"],
        seed=run["seed"],
        num_rows=fingerprint["num_rows"],
        data=fingerprint["data"],
        global_batch=fingerprint["global_batch"],
        plan=plan,
        follows_host=follows_host,
    )


def contradictions(run: Mapping[str, Any], facts: Facts, comparable: Mapping[str, Any]) -> list[str]:
    """Where two places of run.yaml say different things; ``comparable`` is the fingerprint's part of its config."""
    fingerprint, geometry = run["fingerprint"], run["geometry"]
    said = []
    for name in ("method", "schedule"):
        if fingerprint.get(name) != run[name]:
            said.append(f"{name} is one thing in the fingerprint and another beside it")
    if fingerprint.get("params") != without_cache(run["params"]):
        said.append("params are one thing in the fingerprint and another beside it")
    samples = geometry["world_size"] * geometry["accumulation"] * geometry["micro_batch"]
    if samples != facts.global_batch:
        said.append(f"the geometry makes {samples} samples a step, the fingerprint has {facts.global_batch}")
    if facts.plan.num_steps != run["plan"]["num_steps"]:
        said.append(f"the plan has {run['plan']['num_steps']} steps, the schedule makes {facts.plan.num_steps}")
    if facts.plan.steps_per_epoch != run["plan"]["steps_per_epoch"]:
        said.append("an epoch of the plan is not one of the schedule")
    for key in comparable.keys() - {"method", "params", "schedule", *schema.FINGERPRINT}:
        if key in fingerprint and fingerprint[key] != comparable[key]:
            said.append(f"{key} is one thing in the fingerprint and another in the config")
    return said


def without_cache(params: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters that a choice depends on: not where arrays are kept."""
    return {name: value for name, value in params.items() if name != "cache_dir"}
