"""The training loss of each source, as the training's own forwards show it."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from dataflex.ledger.groups import Groups
from dataflex.train.metrics import PREFIX


class SourceLoss:
    """Adds up, for each source, the negative log-likelihood of the label tokens that are trained.

    ``loss_s = sum of -log p(label token) over the samples of source s / number of those tokens``, in fp32, with the
    dropout of the training. It is read beside the host's own loss and changes nothing of it; where that is another
    function of the logits (label smoothing, DFT), this one is the likelihood all the same.
    """

    def __init__(self, sources: Groups) -> None:
        self._sources = sources
        self._totals_Sx2: torch.Tensor | None = None  # loss sum, number of tokens; since they were last asked for

    def take(self, rows_B: np.ndarray, sums_Bx2: torch.Tensor) -> None:
        """Take in the rows of one micro-batch: their loss sums and label tokens, float64."""
        if self._totals_Sx2 is None:
            self._totals_Sx2 = sums_Bx2.new_zeros(len(self._sources.labels), 2)
        codes_B = torch.from_numpy(self._sources.codes_N[rows_B].astype(np.int64)).to(sums_Bx2.device)
        self._totals_Sx2.index_add_(0, codes_B, sums_Bx2)

    def means(self, gather: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, float]:
        """Mean loss of each source that was trained since the last call, over all ranks (collective)."""
        num_sources = len(self._sources.labels)
        mine = self._totals_Sx2 if self._totals_Sx2 is not None else torch.zeros(num_sources, 2, dtype=torch.float64)
        sums_S, counts_S = gather(mine).reshape(-1, num_sources, 2).sum(0).unbind(1)
        self._totals_Sx2 = None
        return {
            f"{PREFIX}source_loss/{label}": total / count
            for label, total, count in zip(self._sources.labels, sums_S.tolist(), counts_S.tolist(), strict=True)
            if count > 0
        }
