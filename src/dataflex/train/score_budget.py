"""The key ``score_budget``: read, checked, and told of."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from dataflex.core.errors import ConfigError, shown
from dataflex.train.method import Method

FULL = "full"  # everything is scored
FROM_START = "run_start"
DEAR, SUGGESTED = 0.5, 0.1  # share of the training's FLOPs from which full scoring is warned of, and what is named then


def read_share(value: Any) -> float | None:
    """The share that ``score_budget`` names; None: everything is scored.

    Raises:
        ConfigError: neither ``full`` nor a number from 0 to 100.

    >>> read_share("full"), read_share(0.1)
    (None, 0.1)
    """
    if value is None or value == FULL:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 100:
        raise ConfigError(
            f"score_budget is {shown(value)}; it must be full, or the share of the training's FLOPs that scoring may "
            "cost, such as 0.1; 0 estimates from the losses of training alone"
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


def budget_sentence(method: Method, share_if_full: float | None) -> str | None:
    """What a run's first lines say of the cost of scoring; None where there is nothing to say.

    Args:
        share_if_full: FLOPs of full scoring by those of the training; None: not known.
    """
    if method.score_budget is not None:
        full = "" if share_if_full is None else f", full scoring would cost {share_if_full:.0%}"
        start = " Initial losses are those of step 0 (baseline: run_start)." if method.compares else ""
        return (
            f"score_budget {method.score_budget:g}: scoring costs at most {method.score_budget:.1%} of the training's "
            f"FLOPs{full}; losses that are not measured are estimated.{start}"
        )
    if share_if_full is not None and share_if_full > DEAR and method.scores_losses:
        return (
            f"scoring the whole pool at each decision costs {share_if_full:.0%} of the training's FLOPs; score_budget: "
            f"{SUGGESTED:g} would cost {SUGGESTED:.0%}, with losses that are estimated for the most part"
        )
    return None
