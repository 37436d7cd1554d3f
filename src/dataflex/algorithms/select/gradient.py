"""What all selectors by gradients share: how the gradients are taken, and how similarities are kept on record."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from dataflex.algorithms.base import Progress, SelectorBase
from dataflex.algorithms.checks import require_one_of, require_range
from dataflex.core.errors import ConfigError

SIMILARITY = "similarity_"  # of each group, as a column of the record
PROJ_DIM = 256


@dataclass(frozen=True, kw_only=True)
class GradientSelector(SelectorBase):
    """Parameters of the similarities that a selector is given.

    Args:
        gradient_type: ``adam``: of the update that Adam would make of a row's gradient; ``sgd``: of the gradient.
        engine: ``exact``; ``ghost``, which materialises no gradient (full fine-tuning; under Adam the rows' own squares
            are left out); or ``factorised``, whose small features stay on disk for other targets.
        bias_correction: Adam's moments divided as Adam divides them, which the released code of LESS does not.
        proj_dim: numbers that are kept of each weight, a square; for ``factorised`` alone, nothing else projects.
        seed: of that projection.
        cache_dir: where a pass that is killed is kept; None: beside the run's record.

    Raises:
        ConfigError: a parameter out of range.
    """

    gradient_type: Literal["adam", "sgd"] = "adam"
    engine: Literal["exact", "ghost", "factorised"] = "exact"
    bias_correction: bool = False
    proj_dim: int = PROJ_DIM
    seed: int = 0
    cache_dir: str | None = None

    def __post_init__(self) -> None:
        require_one_of("gradient_type", self.gradient_type, ("adam", "sgd"))
        require_one_of("engine", self.engine, ("exact", "ghost", "factorised"))
        require_range("proj_dim", self.proj_dim, at_least=1)
        side = math.isqrt(self.proj_dim)
        if self.engine == "factorised" and side * side != self.proj_dim:
            raise ConfigError(
                f"proj_dim is {self.proj_dim}; engine factorised projects both sides of a weight, so it must be a "
                f"square, such as {side * side} or {(side + 1) ** 2}"
            )
        if self.bias_correction and self.gradient_type == "sgd":
            raise ConfigError("bias_correction is true beside gradient_type: sgd, which has no moments; leave it out")

    def unused(self, progress: Progress) -> tuple[str, ...]:
        """What is to be said, once, of a parameter that has no effect."""
        if self.engine == "factorised" or self.proj_dim == PROJ_DIM or progress.updates_made:
            return ()
        return (f"proj_dim {self.proj_dim} is not used: engine {self.engine} projects nothing",)


def group_columns(similarities_NxG: np.ndarray) -> dict[str, np.ndarray]:
    """Each group's similarities as a column of the record."""
    return {f"{SIMILARITY}{group}": similarities_NxG[:, group] for group in range(similarities_NxG.shape[1])}


def recorded_similarities(columns_N: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The similarities that ``group_columns`` made these columns of, shape (N, G); None where there are none."""
    num_groups = sum(name.startswith(SIMILARITY) for name in columns_N)
    if num_groups == 0:
        return None
    return np.stack([columns_N[f"{SIMILARITY}{group}"] for group in range(num_groups)], axis=1)
