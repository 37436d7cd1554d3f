"""The target: rows that steer a selection and are not trained, in groups."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from dataflex.algorithms.base import TARGET_SIGNALS
from dataflex.core.errors import ConfigError, did_you_mean, shown
from dataflex.core.plan import SegmentPlan
from dataflex.train.method import Method
from dataflex.train.pool import Pool, is_language_modelling, read_pool, rows_also_in

MOST_GROUPS = 256  # each is a vector as large as the trained weights
ONE_GROUP = "target"


@dataclass(frozen=True, kw_only=True)
class Target:
    """Target rows, tokenised as the pool is."""

    dataset: Any
    pool: Pool  # their lengths and their content
    names: tuple[str, ...]  # of the groups
    group_M: np.ndarray  # group of each row, int64
    num_in_pool: int = 0  # rows of the pool whose tokens are those of a target row

    def __len__(self) -> int:
        return len(self.pool)

    @property
    def sizes_G(self) -> np.ndarray:
        """Rows of each group, int64."""
        return np.bincount(self.group_M, minlength=len(self.names))

    def record(self) -> dict[str, Any]:
        """What run.yaml and the fingerprint keep of it."""
        return {
            "data": self.pool.digest,
            "groups": dict(zip(self.names, self.sizes_G.tolist(), strict=True)),
            "order": list(self.names),
            "rows_in_pool": self.num_in_pool,
        }


def read_target(
    dataset: Any,
    columns: Mapping[str, Any],
    *,
    train_dataset: Any,
    column: str | None = None,
    allow_overlap: bool = False,
    collate: Any = None,
) -> Target:
    """Read the target's rows and compare them with the pool's.

    Args:
        columns: of the target's rows, one entry a row; ``dataset`` among them where there are several.
        column: which of them says the group of a row; None: its data set.
        allow_overlap: accept rows that are in the pool as well.
        collate: the host's collator.

    Raises:
        ConfigError: no rows, rows without a label, no such column, too many groups, or rows that are in the pool too.
    """
    if not (is_language_modelling(dataset) and is_language_modelling(train_dataset)):
        raise ConfigError(
            "a target is of rows of text, as the pool must be, and these are pairs or classes; take a method that "
            "needs no target, such as delta_loss"
        )
    pool = read_pool(dataset, collate)
    empty = np.flatnonzero(~pool.info.trainable_N)
    if len(empty):
        raise ConfigError(
            f"{len(empty)} of {len(pool)} target rows have no label token (the first is row {empty[0]}), as one whose "
            "answer was cut off; raise cutoff_len, or take them out of the target"
        )
    names, group_M = _groups(columns, column, len(pool))
    found = rows_also_in(train_dataset, dataset)
    if len(found) and not allow_overlap:
        raise ConfigError(
            f"{len(found)} of {len(train_dataset)} rows of the pool are target rows as well (the first is row "
            f"{found[0]}), which would be chosen for being the target itself; take them out, or set allow_overlap: true"
        )
    return Target(dataset=dataset, pool=pool, names=names, group_M=group_M, num_in_pool=len(found))


def _groups(columns: Mapping[str, Any], column: str | None, num_rows: int) -> tuple[tuple[str, ...], np.ndarray]:
    """Names of the groups, in the order of their first rows, and the group of each row."""
    name = column or "dataset"
    if name not in columns:
        if column is not None:
            known = [known for known in columns if known not in ("row", "source_row", "excerpt", "dataset")]
            raise ConfigError(
                f"target_groups is {shown(column)}{did_you_mean(column, known)}; columns of the target: "
                f"{', '.join(known) or 'none'}"
            )
        return (ONE_GROUP,), np.zeros(num_rows, dtype=np.int64)
    values = columns[name]
    values = values.to_pylist() if isinstance(values, (pa.Array, pa.ChunkedArray)) else list(values)
    texts = ["none" if value is None else str(value) for value in values]
    names = tuple(dict.fromkeys(texts))
    if len(names) > MOST_GROUPS:
        raise ConfigError(
            f"the column {name} of the target has {len(names)} different values, at most {MOST_GROUPS} groups are "
            "kept; name another column in target_groups, or none for one group a data set"
        )
    codes = {text: number for number, text in enumerate(names)}
    return names, np.array([codes[text] for text in texts], dtype=np.int64)


def needing_target(method: Method) -> list[str]:
    """The components that need one."""
    choosing = [method.name] if method.selects and TARGET_SIGNALS & method.selector.needs else []
    return choosing + [part.name for part in method.weighers if "embedding" in part.method.needs]


def check_target(method: Method, *, is_given: bool, plan: SegmentPlan | None = None) -> None:
    """Raise where a target is missing or of no use, or where a decision comes too early to have its gradients.

    Args:
        plan: of the run, where it is known.

    Raises:
        ConfigError: one of these.
    """
    choosing = [method.name] if method.selects and TARGET_SIGNALS & method.selector.needs else []
    needed = needing_target(method)
    if needed and not is_given:
        does = "chooses what serves" if choosing else "weighs rows by"
        raise ConfigError(
            f"{needed[0]} {does} a target, and none is named; set target to one or more data sets of "
            "rows like those the model shall answer"
        )
    if is_given and not needed:
        raise ConfigError(f"target is set, but {method.title} uses none; remove it, or choose a method such as less")
    reads_moments = getattr(method.selector, "gradient_type", None) == "adam"
    if plan is not None and reads_moments and plan.warmup_step == 0:
        raise ConfigError(
            f"warmup_step is 0, and {method.name} scales gradients by the moments that Adam has after its first steps; "
            "set warmup_step to 1 or more, or gradient_type: sgd"
        )
