"""The scoring budget of a run, put together from its trainer, data and settings."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError

from dataflex.core.order import Geometry
from dataflex.core.plan import SegmentPlan
from dataflex.ledger.groups import Groups
from dataflex.train.method import Method
from dataflex.train.pool import Pool, is_language_modelling, token_blocks
from dataflex.train.refuse import fuses_loss
from dataflex.train.stage_loss import scores_own_loss

if TYPE_CHECKING:
    from dataflex.signals.cache import SignalCache
    from dataflex.train.budget import Budget

FEATURES = "text features, version 1"
MOST_COUNTED = 10_000  # segments


def make_budget(
    trainer: Any,
    method: Method,
    *,
    plan: SegmentPlan,
    geometry: Geometry,
    pool: Pool,
    seed: int,
    sources: Groups | None,
    cache: SignalCache,
    collate: Callable[[list[dict[str, Any]]], Any],
) -> Budget | None:
    """The budget of a run; None where everything is scored."""
    if method.score_budget is None:
        return None
    from dataflex.signals.flops import flops_of
    from dataflex.train.budget import Budget

    return Budget(
        share=method.score_budget,
        compares=method.compares,
        needs_loss=lambda progress: "loss" in method.needs_at(progress),
        plan=plan,
        global_batch=geometry.global_batch,
        pool=pool,
        seed=seed,
        flops=flops_of(trainer.model, has_reference=scores_own_loss(trainer)),
        features=lambda: _features(trainer.train_dataset, pool, sources, cache, collate),
        # A mixer's domain that is short of rows begins again within a segment.
        repeats=method.replacement or method.mixer is not None,
        strata_N=sources.codes_N if sources is not None else np.zeros(len(pool), dtype=np.int64),
    )


def full_share(method: Method, plan: SegmentPlan, pool: Pool, geometry: Geometry, trainer: Any) -> float:
    """FLOPs of scoring the whole pool at each decision that asks for losses, as a share of the training's."""
    from dataflex.signals.flops import flops_of

    if not method.scores_losses or method.limits_passes or plan.num_segments > MOST_COUNTED:
        return 0.0
    passes = sum("loss" in method.needs_at(plan.progress(segment)) for segment in plan.segments())
    flops, tokens_N = flops_of(trainer.model, has_reference=scores_own_loss(trainer)), pool.info.num_tokens_N
    trainable_N = pool.info.trainable_N
    trained = plan.num_steps * geometry.global_batch * float(flops.training(tokens_N[trainable_N]).mean())
    return passes * float(flops.forward(tokens_N[trainable_N]).sum()) / max(trained, 1.0)


def shows_losses(trainer: Any) -> bool:
    """True where the training's own forward shows the loss of each row."""
    return not fuses_loss(trainer) and not scores_own_loss(trainer)


def _features(
    dataset: Any,
    pool: Pool,
    sources: Groups | None,
    cache: SignalCache,
    collate: Callable[[list[dict[str, Any]]], Any],
) -> np.ndarray:
    """What is known of each row without a model, float32, shape (N, F); its text part is kept for other runs."""
    from dataflex.signals.features import group_features, length_features, text_features

    parts = [length_features(pool.info.num_tokens_N, pool.info.num_label_tokens_N)]
    if sources is not None:
        parts.append(group_features(sources.codes_N))
    if is_language_modelling(dataset):
        key = {"signal": "features", "data": pool.digest, "definition": FEATURES}
        of_text_NxF = cache.load(key)
        if of_text_NxF is None or len(of_text_NxF) != len(pool):
            of_text_NxF = text_features(lambda: token_blocks(dataset, collate))
            with suppress(OSError, SafetensorError):  # a cache is a convenience
                cache.save(key, of_text_NxF)
        parts.append(of_text_NxF)
    return np.hstack(parts)
