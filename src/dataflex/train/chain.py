"""The train dataloader of a dynamic run: one prepared loader, iterated anew for every segment."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import SeedableRandomSampler
from torch.utils.data import SequentialSampler

from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.core.order import Deal, Geometry, micro_batches
from dataflex.train.indexed import SAMPLE_IDS, SegmentSampler


class SegmentChain:
    """Asks for the next segment exactly when the last batch of the previous one has been trained.

    Only what the Trainer needs: length and iteration. Attributes of the inner loader are not forwarded, because
    ``skip_first_batches`` would rebuild a loader from them and train nothing; the chain positions itself instead.
    """

    def __init__(
        self,
        loader: Any,
        *,
        deals: Callable[[], Iterator[Deal]],
        num_micro_batches: int,
        geometry: Geometry,
        rank: int,
        before_epoch: Callable[[], None],
    ) -> None:
        """
        Args:
            loader: the host's prepared loader; its sampler is replaced.
            deals: the segments that are left of the current epoch, decided lazily.
            num_micro_batches: micro-batches of one rank in one epoch.
            geometry: how a step is cut into micro-batches.
            rank: this process.
            before_epoch: called whenever an epoch's iteration begins, also in its middle after a resume.
        """
        self._loader = loader
        self._deals = deals
        self._num_micro_batches = num_micro_batches
        self._geometry = geometry
        self._rank = rank
        self._before_epoch = before_epoch
        self._sampler = SegmentSampler()
        # A private generator: iterating a loader draws a base seed, from the global stream unless it has its own.
        self._generator = torch.Generator()
        getattr(loader, "base_dataloader", loader).generator = self._generator
        loader.set_sampler(self._sampler)

    def __len__(self) -> int:
        return self._num_micro_batches

    def __iter__(self) -> Iterator[Any]:
        self._before_epoch()
        for deal in self._deals():
            self._sampler.rows = deal.rows
            self._generator.manual_seed(deal.seed)
            expected = micro_batches(deal.rows, self._geometry, self._rank)
            for batch, ids in itertools.zip_longest(self._loader, expected):
                if batch is None or ids is None or not np.array_equal(batch[SAMPLE_IDS], ids):
                    given = "nothing" if batch is None else f"samples {batch[SAMPLE_IDS][:4].tolist()}…"
                    wanted = "nothing more" if ids is None else f"{ids[:4].tolist()}…"
                    raise DataFlexError(
                        f"rank {self._rank} was handed {given} where the ledger says {wanted}; the loader does not "
                        "deal as expected: please report your versions with this"
                    )
                yield batch


def host_order(sampler: Any, epoch: int, geometry: Geometry, *, drop_last: bool) -> np.ndarray:
    """The rows that the host's own loader would deal in one epoch, over all ranks, in order.

    With several ranks accelerate completes the last round with rows from the beginning, so that every rank has as
    many; this is done here, since a chain of segments would take them from the beginning of the last segment.

    Args:
        sampler: the sampler of the host's prepared loader.

    Raises:
        ConfigError: a sampler whose order is not a function of the epoch.
    """
    if isinstance(sampler, SeedableRandomSampler):
        sampler.set_epoch(epoch)
    elif not isinstance(sampler, SequentialSampler):
        raise ConfigError(
            f"the trainer's sampler {type(sampler).__name__} cannot be followed; "
            "use accelerator_config use_seedable_sampler: true, or a method other than static"
        )
    rows = np.fromiter(iter(sampler), dtype=np.int64, count=len(sampler))
    round_ = geometry.world_size * geometry.micro_batch
    if drop_last:
        return rows[: len(rows) // round_ * round_]
    if geometry.world_size == 1 or len(rows) % round_ == 0:
        return rows
    return np.concatenate([rows, np.resize(rows[:round_], -len(rows) % round_)])


def draw_like_a_stock_loader() -> None:
    """Take from the global stream what iterating the stock loader takes each epoch: one base seed."""
    torch.empty((), dtype=torch.int64).random_()
