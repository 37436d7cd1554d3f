"""The scoring budget of a run, put together from its trainer, data and settings."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError

from dataflex.core.errors import ConfigError, shown
from dataflex.core.order import Geometry
from dataflex.core.plan import SegmentPlan
from dataflex.ledger.groups import Groups
from dataflex.train.method import Method
from dataflex.train.pool import Pool, is_language_modelling, token_blocks
from dataflex.train.stage_loss import scores_own_loss

if TYPE_CHECKING:
    from dataflex.signals.cache import SignalCache
    from dataflex.train.budget import Budget

FULL = "full"  # score_budget of a method that scores all
FEATURES = "text features, version 1"
FROM_START = "run_start"
DEAR, SUGGESTED = 0.5, 0.1  # share of the training's FLOPs from which full scoring is warned of, and what is named then
MOST_COUNTED = 10_000  # segments


def read_share(value: Any) -> float | None:
    """The share that ``score_budget`` names; None: everything is scored.

    Raises:
        ConfigError: neither ``full`` nor a number above 0 and at most 100.

    >>> read_share("full"), read_share(0.1)
    (None, 0.1)
    """
    if value is None or value == FULL:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 100:
        raise ConfigError(
            f"score_budget is {shown(value)}; it must be full, or the share of the training's FLOPs that scoring may "
            "cost, such as 0.1"
        )
    return float(value)


def with_budget(method: Method, share: float | None) -> Method:
    """The method as it is under a budget: one that compares with initial losses takes those of step 0.

    Raises:
        ConfigError: a budget, and nothing that needs losses; or scikit-learn is not installed.
    """
    if share is None:
        return method
    if not method.scores_losses:
        raise ConfigError(
            f"score_budget is set, but {method.title} measures no losses of the pool that it could limit; remove it"
        )
    try:
        import sklearn as _  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"score_budget needs scikit-learn ({error}); install it with pip install 'dataflex[budget]'"
        ) from error
    if method.compares and getattr(method.selector, "baseline", FROM_START) != FROM_START:
        method = replace(method, selector=replace(method.selector, baseline=FROM_START))
    return replace(method, score_budget=share)


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
    return passes * float(flops.forward(tokens_N[trainable_N]).sum()) / trained


def budget_sentence(method: Method, share_if_full: float) -> str | None:
    """What a run's first lines say of the cost of scoring; None where there is nothing to say.

    Args:
        share_if_full: FLOPs of full scoring by those of the training.
    """
    if method.score_budget is not None:
        start = " Initial losses are those of step 0 (baseline: run_start)." if method.compares else ""
        return (
            f"score_budget {method.score_budget:g}: scoring costs at most {method.score_budget:.1%} of the training's "
            f"FLOPs, full scoring would cost {share_if_full:.0%}; losses that are not measured are estimated.{start}"
        )
    if share_if_full > DEAR and method.scores_losses:
        return (
            f"scoring the whole pool at each decision costs {share_if_full:.0%} of the training's FLOPs; score_budget: "
            f"{SUGGESTED:g} would cost {SUGGESTED:.0%}, with losses that are estimated for the most part"
        )
    return None


def shows_losses(trainer: Any) -> bool:
    """True where the training's own forward shows the loss of each row."""
    fused = getattr(trainer.args, "use_liger_kernel", False) or getattr(
        getattr(trainer, "model_args", None), "enable_liger_kernel", False
    )
    return not fused and not scores_own_loss(trainer)


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
