"""Gradients of the pool against those of the target: the engine on the host's model, collator and Adam."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dataflex.core.errors import ConfigError
from dataflex.signals.collect import Place
from dataflex.signals.gradient.moments import Adam, adam_of
from dataflex.signals.gradient.signal import Source
from dataflex.signals.gradient.similarity import (
    Similarities,
    factorised_similarities,
    pass_key,
    similarities,
    target_groups,
)
from dataflex.signals.gradient.targets import TargetGroups
from dataflex.signals.gradient.weights import Weights, trainable_weights
from dataflex.signals.sweep import Collective
from dataflex.train.pool import Pool
from dataflex.train.progress import PassProgress
from dataflex.train.target import Target

FOLDER = "gradients"  # of the cache: one pass at a time


@dataclass
class GradientPass:
    """Measures how far an update by each pool row moves the model along the target (collective).

    Args:
        trainer: the host's trainer; read when a pass is made.
        source_of: rows of a data set as the host batches them.
        directory: a pass that is killed goes on from what lies here.
        batch_tokens: padded tokens of a batch, where the user pins it.
    """

    trainer: Any
    source_of: Callable[[Any], Source]
    target: Target
    pool: Pool
    directory: Path
    batch_tokens: int | None
    say: Callable[[str], None]

    def __call__(self, selector: Any, ranks: Collective, rows: np.ndarray | None = None) -> Similarities:
        """Mean cosines with each group, for every row that has a label token.

        Args:
            selector: its ``gradient_type``, ``engine``, ``proj_dim`` and ``seed`` say how.
            rows: of these alone; None: of all.

        Raises:
            ConfigError: weights that are sharded, an optimizer without moments, more than a few left out.
        """
        began = time.perf_counter()
        trainer, info = self.trainer, self.pool.info
        model = trainer.accelerator.unwrap_model(trainer.model)
        weights = trainable_weights(model)
        adam = self._adam(selector, model, weights)
        pool = self.source_of(trainer.train_dataset)
        rows = np.flatnonzero(info.trainable_N) if rows is None else rows[info.trainable_N[rows]]
        num_target_tokens = int(self.target.pool.info.num_tokens_N.sum())
        progress = PassProgress(
            len(rows) + len(self.target),
            int(info.num_tokens_N[rows].sum()) + num_target_tokens,
            bar=not trainer.args.disable_tqdm,
            shown=ranks.rank == 0,
            say=self.say,
        )
        place = Place(directory=self.directory / FOLDER, key=self._key(selector, model, weights, adam))
        with progress:
            targets = self._targets(weights, ranks)
            progress.advance(num_target_tokens)
            measure = factorised_similarities if selector.engine == "factorised" else similarities
            found = measure(
                pool,
                weights,
                targets,
                adam,
                info.num_tokens_N,
                rows,
                ranks=ranks,
                place=place,
                batch_tokens=self.batch_tokens,
                advance=progress.advance,
                **_options(selector),
            )
        self._tell(found, ranks)
        found.cost["seconds"] = time.perf_counter() - began
        found.cost["num_tokens"] += num_target_tokens
        return found

    def _adam(self, selector: Any, model: Any, weights: Weights) -> Adam | None:
        if selector.gradient_type != "adam":
            return None
        if self.trainer.optimizer is None:
            raise ConfigError(
                "there is no optimizer whose moments could scale gradients, since nothing is trained here; set "
                "gradient_type: sgd"
            )
        return adam_of(self.trainer.optimizer, model, weights, bias_correction=selector.bias_correction)

    def _targets(self, weights: Weights, ranks: Collective) -> TargetGroups:
        """The group vectors: each rank makes its own, and an error of one is raised on all."""
        failure: Exception | None = None
        targets: TargetGroups | None = None
        try:
            targets = target_groups(
                self.source_of(self.target.dataset),
                weights,
                self.target.pool.info.num_tokens_N,
                self.target.group_M,
                device=ranks.device,
                batch_tokens=self.batch_tokens,
            )
        except Exception as error:
            failure = error
        ranks.raise_together(failure)
        assert targets is not None
        return targets

    def _key(self, selector: Any, model: Any, weights: Weights, adam: Adam | None) -> dict[str, str]:
        """What the numbers on disk depend on. Projected features are of the pool alone, and serve any target."""
        more = {"data": self.pool.digest, "engine": selector.engine}
        if selector.engine != "factorised":
            more["target"] = f"{self.target.pool.digest} {self.target.group_M.tolist()}"
        return pass_key(model, weights, None if selector.engine == "factorised" else adam, **more)

    def _tell(self, found: Similarities, ranks: Collective) -> None:
        if ranks.rank != 0:
            return
        if found.why_single:
            self.say(f"gradients are taken one row at a time, which is slower: {found.why_single}")
        if found.left_out:
            few = ", ".join(found.left_out[:3])
            self.say(f"{len(found.left_out)} trained parameters are no part of the gradients, such as {few}")
        if not found.normalised:
            self.say(
                "similarities are not divided by the length of a row's own update, which this engine cannot know under "
                "Adam: long updates rank higher; engine: exact has no such bias"
            )


def _options(selector: Any) -> dict[str, Any]:
    if selector.engine == "factorised":
        return {"rank": math.isqrt(selector.proj_dim), "seed": selector.seed}
    return {"engine": selector.engine}
