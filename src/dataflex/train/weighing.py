"""Weighers in the training loop: what they are shown of a micro-batch, and the coefficients that come of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from dataflex.algorithms.base import State, TrainedBatch
from dataflex.algorithms.combine import Part
from dataflex.algorithms.weigh.apply import weigh
from dataflex.core.compose import multiply_weights
from dataflex.train.ranks import Ranks

_STATISTICS = ("count", "sum", "sum_of_squares", "zeros", "unscored")


class Weighing:
    """All weighers of a run; their state is the same on all ranks.

    A weigher is shown the rows of a micro-batch over all ranks, in ascending order of pool row, so that neither their
    order nor the cutting into ranks matters; one of tokens (``token_loss`` in its ``needs``) their losses by token too.
    A weigher that needs a column only costs no message and no waiting for the device.

    Args:
        parts: the weighers; their coefficients multiply.
        normalize: ``mean_one`` divides the product by its mean over the micro-batch over all ranks.
        warmup_step: optimizer steps in which every coefficient is 1.
        num_steps: of the whole run.
        columns: numbers by pool row that weighers name, float64.
        factor: further coefficients of rows, given pool rows, such as those of a mixer's domains.
        rows_in_scope: of one micro-batch over all ranks.

    Raises:
        ConfigError: a weigher that would be without effect on so few rows.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        *,
        ranks: Ranks,
        num_steps: int,
        rows_in_scope: int,
        normalize: Literal["none", "mean_one"] = "none",
        warmup_step: int = 0,
        columns: Mapping[str, np.ndarray] | None = None,
        factor: Callable[[np.ndarray], np.ndarray | None] | None = None,
    ) -> None:
        for part in parts:
            part.method.check_rows_in_scope(rows_in_scope)
        self._parts, self._ranks, self._num_steps = list(parts), ranks, num_steps
        self._normalize, self._warmup_step, self._factor = normalize, warmup_step, factor
        self._columns = dict(columns or {})
        self._states: list[State] = [part.method.init() for part in self._parts]
        self.needs_tokens = any("token_loss" in part.method.needs for part in self._parts)
        self._needs_losses = any("loss" in part.method.needs for part in self._parts) or normalize == "mean_one"
        self.needs_reference = any("reference_token_loss" in part.method.needs for part in self._parts)
        self.needs_embeddings = any("embedding" in part.method.needs for part in self._parts)
        self.met_unscored = False  # in the last micro-batch a row had no finite loss
        self._clear()

    def coefficients(
        self,
        rows_B: np.ndarray,
        step: int,
        sums_Bx2: torch.Tensor,
        losses_BxT: torch.Tensor,
        owner_BxT: torch.Tensor,
        reference_BxT: torch.Tensor | None = None,
        embeddings_BxE: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Coefficients of each position of this rank's micro-batch, of the losses' type and shape (collective).

        Args:
            rows_B: pool rows.
            sums_Bx2: loss sum and label tokens of each.
            losses_BxT: loss at each position; NaN where there is no label, if ``needs_tokens``.
            owner_BxT: which of the rows each position belongs to.
            reference_BxT: loss of a reference at each position, if ``needs_reference``.
            embeddings_BxE: unit vector of each row, if ``needs_embeddings``.
        """
        by_token = [losses_BxT] if self.needs_tokens else []
        if reference_BxT is not None:
            by_token.append(reference_BxT.to(losses_BxT.device).masked_fill(torch.isnan(losses_BxT), torch.nan))
        whole = self._whole(rows_B, step, sums_Bx2, by_token, owner_BxT, embeddings_BxE)
        weights_KxB, tokens_KxBxT = [], []
        for number, part in enumerate(self._parts):
            weights, state = weigh(part.method, self._states[number], whole.batch, self._warmup_step)
            self._states[number] = state
            weights_KxB.append(weights.weights_B)
            if weights.token_weights_BxT is not None:
                tokens_KxBxT.append(weights.token_weights_BxT[whole.own])
        if self._factor is not None and (factors := self._factor(whole.rows_B)) is not None:
            weights_KxB.append(np.asarray(factors, dtype=np.float64))
        scored_B = whole.batch.scored_B
        mean_one = self._normalize == "mean_one" and step >= self._warmup_step
        product_B = multiply_weights([np.ones(len(scored_B)), *weights_KxB], mean_one=mean_one, scored_B=scored_B)
        # Also where only a factor multiplies, which knows nothing of losses.
        own_B = np.where(scored_B, product_B, 0.0)[whole.own]
        self.met_unscored = not bool(scored_B.all())
        self._count(own_B, scored_B[whole.own])
        if not tokens_KxBxT:
            return torch.from_numpy(own_B).to(losses_BxT.device, losses_BxT.dtype)[owner_BxT]
        owners = owner_BxT.cpu().numpy()
        weights_BxT = own_B[owners]
        for token_weights_BxT in tokens_KxBxT:
            weights_BxT = weights_BxT * _back_in_place(token_weights_BxT, owners)
        return torch.from_numpy(weights_BxT).to(losses_BxT.device, losses_BxT.dtype)

    def refresh(self, step: int, read_anchors: Callable[[], np.ndarray]) -> None:
        """Give weighers by embeddings the anchors anew where their time has come (collective).

        Args:
            step: the optimizer step that begins.
            read_anchors: unit rows of the anchors under the present weights, the same on all ranks.
        """
        anchors_MxE: np.ndarray | None = None
        for number, part in enumerate(self._parts):
            state = self._states[number]
            if "embedding" not in part.method.needs:
                continue
            if len(state["anchors_MxE"]) and int(state.get("read_at", -1)) + part.method.refresh > step:
                continue
            anchors_MxE = read_anchors() if anchors_MxE is None else anchors_MxE
            self._states[number] = {**state, "anchors_MxE": anchors_MxE, "read_at": np.array(step)}

    def _whole(
        self,
        rows_B: np.ndarray,
        step: int,
        sums_Bx2: torch.Tensor,
        by_token: list[torch.Tensor],
        owner_BxT: torch.Tensor,
        embeddings_BxE: torch.Tensor | None,
    ) -> _Whole:
        """The micro-batch of all ranks in ascending order of pool row (collective, where a loss is asked for).

        Where nobody asks for losses it is this rank's rows, with losses of 1 in their place.
        """
        if not self._needs_losses:
            ones_B = np.ones(len(rows_B))
            return _Whole(self._batch(rows_B, step, ones_B, ones_B, [], None), np.arange(len(rows_B)), rows_B)
        sums_B, tokens_B = sums_Bx2.cpu().numpy().T
        with np.errstate(invalid="ignore"):  # a sum that is not finite stays so
            losses_B = np.divide(sums_B, tokens_B, out=np.full(len(sums_B), np.nan), where=tokens_B > 0)
        mine = np.column_stack([rows_B, losses_B, tokens_B]).astype(np.float64)
        lines_KxBxT = [_lines(losses_BxT, owner_BxT, len(rows_B)) for losses_BxT in by_token]
        longest = max((lines_BxT.shape[1] for lines_BxT in lines_KxBxT), default=0)
        sizes_Rx2 = self._ranks.gather(torch.tensor([[len(rows_B), longest]])).numpy()
        width = int(sizes_Rx2[:, 1].max())
        parts = [
            np.pad(lines_BxT, ((0, 0), (0, width - lines_BxT.shape[1])), constant_values=np.nan)
            for lines_BxT in lines_KxBxT
        ]
        if embeddings_BxE is not None:
            parts.append(embeddings_BxE.double().cpu().numpy())
        all_ = self._ranks.gather_rows(torch.from_numpy(np.column_stack([mine, *parts]))).numpy()
        order = np.argsort(all_[:, 0], kind="stable")
        place = np.empty(len(order), dtype=np.int64)
        place[order] = np.arange(len(order))
        before = int(sizes_Rx2[: self._ranks.rank, 0].sum())
        all_ = all_[order]
        rows_B = all_[:, 0].astype(np.int64)
        token_numbers = [all_[:, 3 + k * width : 3 + (k + 1) * width] for k in range(len(by_token))]
        embeddings = all_[:, 3 + len(by_token) * width :] if embeddings_BxE is not None else None
        batch = self._batch(rows_B, step, all_[:, 1], all_[:, 2], token_numbers, embeddings)
        return _Whole(batch, place[before : before + len(mine)], rows_B)

    def _batch(
        self,
        rows_B: np.ndarray,
        step: int,
        losses_B: np.ndarray,
        tokens_B: np.ndarray,
        token_losses_KxBxT: list[np.ndarray],
        embeddings_BxE: np.ndarray | None,
    ) -> TrainedBatch:
        return TrainedBatch(
            losses_B=losses_B,
            tokens_B=tokens_B,
            step=step,
            num_steps=self._num_steps,
            columns_B={name: values_N[rows_B] for name, values_N in self._columns.items()},
            token_losses_BxT=token_losses_KxBxT[0] if token_losses_KxBxT else None,
            reference_losses_BxT=token_losses_KxBxT[1] if len(token_losses_KxBxT) > 1 else None,
            embeddings_BxE=embeddings_BxE,
        )

    # what is recorded, saved and restored

    def _clear(self) -> None:
        self._totals = dict.fromkeys(_STATISTICS, 0.0)
        self._range = [np.inf, -np.inf]

    def _count(self, weights_B: np.ndarray, scored_B: np.ndarray) -> None:
        counted = weights_B[scored_B]
        values = (len(counted), counted.sum(), (counted**2).sum(), (counted == 0).sum(), (~scored_B).sum())
        for name, value in zip(_STATISTICS, values, strict=True):
            self._totals[name] += float(value)
        if len(counted):
            self._range = [min(self._range[0], counted.min()), max(self._range[1], counted.max())]

    def take_statistics(self) -> dict[str, float]:
        """Of the rows' coefficients since the last call, over all ranks; {} where none was computed (collective).

        ``effective_share`` is (sum c)^2 / (n sum c^2): 1 where all count alike, 1/n where one counts alone.
        """
        count, total, squares, zeros, unscored, low, high = self._statistics().tolist()
        self._clear()
        if count == 0:
            return {}
        return {
            "mean": total / count,
            "min": low,
            "max": high,
            "effective_share": total**2 / (count * squares) if squares else 0.0,
            "zero_share": zeros / count,
            "num_unscored": unscored,
        }

    def _statistics(self) -> np.ndarray:
        """The statistics so far, over all ranks (collective)."""
        mine = torch.tensor([[*self._totals.values(), *self._range]], dtype=torch.float64)
        whole = self._ranks.gather(mine).numpy()
        return np.array([*whole[:, :-2].sum(axis=0), whole[:, -2].min(), whole[:, -1].max()])

    def state_arrays(self) -> dict[str, np.ndarray]:
        """The weighers' states and the statistics in progress, for a checkpoint (collective)."""
        arrays = {
            f"{number}.{name}": np.asarray(values)
            for number, state in enumerate(self._states)
            for name, values in state.items()
        }
        return {**arrays, "statistics": self._statistics()}

    def load_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Go on from what ``state_arrays`` returned; the statistics of all ranks are rank 0's from here on."""
        for number in range(len(self._states)):
            prefix = f"{number}."
            self._states[number] = {
                name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)
            }
        self._clear()
        if self._ranks.is_main:
            *totals, low, high = arrays["statistics"].tolist()
            self._totals, self._range = dict(zip(_STATISTICS, totals, strict=True)), [low, high]


@dataclass(frozen=True)
class _Whole:
    """A micro-batch over all ranks, and where this rank's rows stand in it."""

    batch: TrainedBatch
    own: np.ndarray
    rows_B: np.ndarray


def _lines(losses_BxT: torch.Tensor, owner_BxT: torch.Tensor, num_rows: int) -> np.ndarray:
    """Losses by row and token, float64: each row on a line of its own, NaN after its end."""
    losses = losses_BxT.detach().cpu().double().numpy()
    if len(losses) == num_rows:
        return losses
    owners = owner_BxT.cpu().numpy()
    lines = [losses[owners == row] for row in range(num_rows)]
    laid_BxT = np.full((num_rows, max(map(len, lines))), np.nan)
    for row, line in enumerate(lines):
        laid_BxT[row, : len(line)] = line
    return laid_BxT


def _back_in_place(token_weights_BxT: np.ndarray, owners: np.ndarray) -> np.ndarray:
    """Weights by row and token, back at the positions of the batch."""
    if len(token_weights_BxT) == len(owners):
        return token_weights_BxT[:, : owners.shape[1]]
    weights = np.zeros(owners.shape)
    for row, line in enumerate(token_weights_BxT):
        at_row = owners == row
        weights[at_row] = line[: int(at_row.sum())]
    return weights
