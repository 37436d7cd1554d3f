"""Losses of a whole pool from those of some of its rows: a regression on what is known of each row without a pass."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy.stats import rankdata
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.linear_model import Ridge, RidgeCV

ALPHAS = np.logspace(-2, 5, 15)  # of the ridge, features scaled to variance 1
FOLDS = 5
BOOSTED_FROM = 200  # rows from which boosting is tried
FEWEST_CHECKED = 20  # rows without which no quality is told
# How much of what a row deviates by remains until it is asked for: 0.7 with the weight of so many rows that tell it.
PERSISTENCE, PERSISTENCE_ROWS = 0.7, 20.0
# That trees tell apart in a feature; scikit-learn's own binning of weighted rows is 20 times slower than a fit.
LEVELS = 64
DECIMALS = 4  # of the targets: what the order of a summation changes must not decide between two trees


@dataclass(frozen=True, kw_only=True)
class Observations:
    """Values that were seen of some rows; a row may occur several times."""

    rows_K: np.ndarray  # int64
    values_K: np.ndarray  # float64
    ages_K: np.ndarray  # decisions ago; 0: measured now, exactly
    trained_K: np.ndarray  # seen by the training's own forward, in training mode, and not by a pass; bool

    def __len__(self) -> int:
        return len(self.rows_K)

    def part(self, which_K: np.ndarray) -> Observations:
        return Observations(**{name: values[which_K] for name, values in vars(self).items()})

    @classmethod
    def joined(cls, *parts: Observations) -> Observations:
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in vars(parts[0])})


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Values of all rows now, and how far they can be trusted."""

    values_N: np.ndarray  # float64; exact where measured now
    estimator: str  # "ridge" or "boosting"
    # Of rows that a pass measured lately, each left out of the fit: what it was, as of now, and what was predicted.
    checked_rows_C: np.ndarray
    checked_C: np.ndarray
    predicted_C: np.ndarray

    @property
    def errors_C(self) -> np.ndarray:
        return self.checked_C - self.predicted_C

    def rank_correlation(self, offsets_N: np.ndarray | None = None) -> float | None:
        """Spearman's rank correlation of the checked rows, None where they are too few.

        Args:
            offsets_N: added to both, where another quantity is ranked than the one that was fitted.
        """
        if len(self.checked_C) < FEWEST_CHECKED:
            return None
        offsets_C = 0.0 if offsets_N is None else offsets_N[self.checked_rows_C]
        return spearman(self.checked_C + offsets_C, self.predicted_C + offsets_C)


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Rank correlation, ties at their mean rank; 0 where one is constant."""
    ranks = np.stack([rankdata(one), rankdata(other)])
    ranks -= ranks.mean(axis=1, keepdims=True)
    scale = np.sqrt((ranks**2).sum(axis=1)).prod()
    return float(ranks[0] @ ranks[1] / scale) if scale > 0 else 0.0


def estimate(
    features_NxF: np.ndarray, seen: Observations, *, half_life: float, recent: float, rng: np.random.Generator
) -> Estimate:
    """Estimate a value of every row now.

    ``value_i = w . x_i + a * age + b * trained + g(x_i) + k * e_i``: ridge with an age term and an offset of values
    that training showed; g boosted on its residuals, where there are enough rows and the checks rank better with it;
    e_i is what the row's last value deviates by, of which the share k remains. Older values weigh ``2 ** (-age /
    half_life)``.

    Args:
        features_NxF: of every row, known without a pass.
        half_life: decisions after which a value weighs half.
        recent: decisions back to which measured rows are used for the check.
        rng: deals rows to folds.

    Returns:
        Values of all rows; exact for those of age 0.

    Raises:
        ValueError: nothing was seen.
    """
    if len(seen) == 0:
        raise ValueError("nothing was seen, of which the other rows could be estimated")
    exact = np.flatnonzero(~seen.trained_K & (seen.ages_K == 0))
    exact_rows, exact_values = seen.rows_K[exact], seen.values_K[exact]
    seen = replace(seen, values_K=np.round(seen.values_K, DECIMALS))
    scaled_NxF = _scaled(features_NxF)
    weights_K = 2.0 ** (-seen.ages_K / half_life)
    enough = len(np.unique(seen.rows_K)) >= BOOSTED_FROM
    levels_NxF = _levels(features_NxF) if enough else None
    alpha = _choose_alpha(scaled_NxF, seen, weights_K)
    checked = latest(seen, ~seen.trained_K & (seen.ages_K <= recent))
    fold_K = _folds(seen, checked, rng)
    rows_U, place_K = np.unique(seen.rows_K, return_inverse=True)  # the checks need no other rows
    at_hand = replace(seen, rows_K=place_K)
    checks = [
        _check(scaled_NxF[rows_U], levels, at_hand, weights_K, alpha, checked, fold_K)
        for levels in ((None, levels_NxF[rows_U]) if levels_NxF is not None else (None,))
    ]
    best = max(range(len(checks)), key=lambda which: checks[which].quality)  # the simpler one where both are equal
    check, boosted = checks[best], best == 1
    model = _Model(scaled_NxF, levels_NxF if boosted else None, seen, weights_K, alpha)
    values_N = model.now_N.copy()
    last = latest(seen, np.ones(len(seen), dtype=bool))
    values_N[seen.rows_K[last]] += check.persistence * model.deviations(seen.part(last))
    values_N[exact_rows] = exact_values
    return Estimate(
        values_N=values_N,
        estimator="boosting" if boosted else "ridge",
        checked_rows_C=seen.rows_K[checked],
        checked_C=check.values_C,
        predicted_C=check.predicted_C,
    )


def latest(seen: Observations, which_K: np.ndarray) -> np.ndarray:
    """Of some observations, the position of the youngest of each row; ascending by row."""
    among = np.flatnonzero(which_K)
    order = among[np.lexsort((seen.ages_K[among], seen.rows_K[among]))]
    first = np.ones(len(order), dtype=bool)
    first[1:] = seen.rows_K[order][1:] != seen.rows_K[order][:-1]
    return order[first]


class _Model:
    """One fit: ridge, with trees on its residuals where ``levels_NxF`` are given."""

    def __init__(
        self,
        scaled_NxF: np.ndarray,
        levels_NxF: np.ndarray | None,
        seen: Observations,
        weights_K: np.ndarray,
        alpha: float,
    ) -> None:
        ridge = Ridge(alpha=alpha).fit(_inputs(scaled_NxF, seen), seen.values_K, sample_weight=weights_K)
        *w_F, self._per_age, self._of_training = ridge.coef_
        self.now_N = scaled_NxF @ np.array(w_F) + ridge.intercept_  # untrained, age 0
        if levels_NxF is not None:
            trees: Any = HistGradientBoostingRegressor(
                max_iter=100,
                max_leaf_nodes=8,
                min_samples_leaf=10,
                l2_regularization=1.0,
                early_stopping=False,  # type: ignore[arg-type]
                random_state=0,
            )
            trees.fit(levels_NxF[seen.rows_K], self.deviations(seen), sample_weight=weights_K)
            self.now_N = self.now_N + trees.predict(levels_NxF)

    def as_of_now(self, seen: Observations) -> np.ndarray:
        """Values as they would be seen by a pass now."""
        return seen.values_K - self._per_age * seen.ages_K - self._of_training * seen.trained_K

    def deviations(self, seen: Observations) -> np.ndarray:
        """How far values lie from what is expected of their rows."""
        return seen.values_K - self._expected(seen)

    def _expected(self, seen: Observations) -> np.ndarray:
        return self.now_N[seen.rows_K] + self._per_age * seen.ages_K + self._of_training * seen.trained_K


@dataclass(frozen=True, kw_only=True)
class _Check:
    """What was predicted of rows that were left out."""

    values_C: np.ndarray
    predicted_C: np.ndarray
    persistence: float

    @property
    def quality(self) -> float:
        return spearman(self.values_C, self.predicted_C) if len(self.values_C) else 0.0


def _check(
    scaled_NxF: np.ndarray,
    levels_NxF: np.ndarray | None,
    seen: Observations,
    weights_K: np.ndarray,
    alpha: float,
    checked: np.ndarray,
    fold_K: np.ndarray,
) -> _Check:
    """Predict the checked observations by fits that know no pass over their rows; what training showed stays known."""
    values_C, base_C, deviations_C = (np.full(len(checked), np.nan) for _ in range(3))
    trained = latest(seen, seen.trained_K)
    for fold in range(FOLDS):
        out = fold_K[checked] == fold
        kept = fold_K != fold
        if not out.any() or not kept.any():
            continue
        model = _Model(scaled_NxF, levels_NxF, seen.part(kept), weights_K[kept], alpha)
        left_out = seen.part(checked[out])
        values_C[out], base_C[out] = model.as_of_now(left_out), model.now_N[left_out.rows_K]
        deviation_N = np.full(len(scaled_NxF), np.nan)
        deviation_N[seen.rows_K[trained]] = model.deviations(seen.part(trained))
        deviations_C[out] = deviation_N[left_out.rows_K]
    persistence = _persistence(values_C - base_C, deviations_C)
    return _Check(
        values_C=values_C, predicted_C=base_C + persistence * np.nan_to_num(deviations_C), persistence=persistence
    )


def _persistence(errors_C: np.ndarray, deviations_C: np.ndarray) -> float:
    """The share of an earlier deviation that is found again, 0 to 1, shrunk to ``PERSISTENCE``."""
    both = np.isfinite(errors_C) & np.isfinite(deviations_C)
    squares = deviations_C[both] ** 2
    if not squares.sum() > 0:
        return PERSISTENCE
    prior = PERSISTENCE_ROWS * squares.mean()
    found = (PERSISTENCE * prior + errors_C[both] @ deviations_C[both]) / (prior + squares.sum())
    return float(np.clip(found, 0.0, 1.0))


def _folds(seen: Observations, checked: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fold of each observation: all that passes measured of a checked row are in one, the others in none (-1)."""
    rows_C = seen.rows_K[checked]  # ascending
    fold_C = np.argsort(np.argsort(rng.random(len(rows_C)))) % FOLDS
    place_K = np.searchsorted(rows_C, seen.rows_K)
    place_K = np.minimum(place_K, max(len(rows_C) - 1, 0))
    is_checked_K = ~seen.trained_K & (rows_C[place_K] == seen.rows_K if len(rows_C) else False)
    return np.where(is_checked_K, fold_C[place_K] if len(rows_C) else -1, -1)


def _choose_alpha(scaled_NxF: np.ndarray, seen: Observations, weights_K: np.ndarray) -> float:
    """The ridge's strength by leave-one-out errors."""
    if len(seen) < 3:
        return float(ALPHAS[-1])
    fitted: Any = RidgeCV(ALPHAS).fit(_inputs(scaled_NxF, seen), seen.values_K, sample_weight=weights_K)
    return float(fitted.alpha_)


def _inputs(scaled_NxF: np.ndarray, seen: Observations) -> np.ndarray:
    return np.hstack([scaled_NxF[seen.rows_K], np.stack([seen.ages_K, seen.trained_K], axis=1)])


def _scaled(features_NxF: np.ndarray) -> np.ndarray:
    """Features with mean 0 and variance 1 over the pool; those that do not vary are 0."""
    spread_F = features_NxF.std(axis=0, dtype=np.float64)
    centred_NxF = features_NxF - features_NxF.mean(axis=0, dtype=np.float64)
    return centred_NxF / np.where(spread_F > 1e-6, spread_F, np.inf)


def _levels(features_NxF: np.ndarray) -> np.ndarray:
    """Each feature cut at its quantiles over the pool, uint8: whole numbers that trees split between."""
    levels_NxF = np.empty(features_NxF.shape, dtype=np.uint8)
    for column, values_N in enumerate(features_NxF.T):
        cuts = np.unique(np.quantile(values_N, np.arange(1, LEVELS) / LEVELS))
        levels_NxF[:, column] = np.searchsorted(cuts, values_N, side="left")
    return levels_NxF


def smooth(features_NxF: np.ndarray, rows_K: np.ndarray, values_K: np.ndarray) -> np.ndarray:
    """What is expected of every row by the values of some, float64, shape (N,): ridge without terms of age."""
    scaled_NxF = _scaled(features_NxF)
    ridge = RidgeCV(ALPHAS).fit(scaled_NxF[rows_K], np.round(values_K.astype(np.float64), DECIMALS))
    return scaled_NxF @ ridge.coef_ + ridge.intercept_
