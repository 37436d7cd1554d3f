"""What a backward over a batch tells of each row: the activations and output gradients of every linear module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dataflex.signals.gradient.weights import Weight, Weights


class UnknownRowsError(Exception):
    """A module saw positions of which it cannot be told whose rows they are (the tokens of an expert)."""


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Where the rows of a batch lie in its tensors of shape (B, T)."""

    shape: tuple[int, int]  # B, T
    # (R, L) positions in a batch of one sequence that holds R rows end to end, padded with T; None: row b is tensor b.
    packed_RxL: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.shape[0] if self.packed_RxL is None else len(self.packed_RxL)

    def split(self, values: torch.Tensor) -> torch.Tensor:
        """Values of all positions as (R, L, n), one row each; what is no row's position is 0.

        Raises:
            UnknownRowsError: these are not the batch's positions in their order.
        """
        num_positions = self.shape[0] * self.shape[1]
        if values.dim() == 3 and tuple(values.shape[:2]) == self.shape:
            values_BxTxn = values
        elif values.dim() == 2 and len(values) == num_positions:
            values_BxTxn = values.view(*self.shape, -1)
        elif len(self) == 1:
            return values.reshape(1, -1, values.shape[-1])
        else:
            raise UnknownRowsError(f"shape {tuple(values.shape)} in a batch of shape {self.shape}")
        if self.packed_RxL is None:
            return values_BxTxn
        padded_Txn = torch.cat([values_BxTxn[0], values_BxTxn.new_zeros(1, values_BxTxn.shape[-1])])
        return padded_Txn[self.packed_RxL]


def packed_rows(position_ids_1xT: torch.Tensor) -> Rows:
    """Rows laid end to end in one sequence, each beginning where its positions begin at 0 again."""
    position_ids_T = position_ids_1xT[0]
    starts_R = (position_ids_T == 0).nonzero()[:, 0]
    total = len(position_ids_T)
    stops_R = torch.cat([starts_R[1:], starts_R.new_tensor([total])])
    index_RxL = starts_R[:, None] + torch.arange(int((stops_R - starts_R).max()), device=starts_R.device)
    return Rows(shape=(1, total), packed_RxL=torch.where(index_RxL < stops_R[:, None], index_RxL, total))


@dataclass(frozen=True, kw_only=True)
class Captured:
    """Inputs a and output gradients e of one weight; row i's gradient is ``G_i = e_i^T a_i``, as the weight lies."""

    weight: Weight
    inputs_RxLxI: torch.Tensor
    output_gradients_RxLxO: torch.Tensor

    def __len__(self) -> int:
        return len(self.inputs_RxLxI)

    def gradients(self, part: slice = slice(None)) -> torch.Tensor:
        """Gradients of some rows, float32, shape (R, *weight.shape)."""
        a, e = self.inputs_RxLxI[part].float(), self.output_gradients_RxLxO[part].float()
        return torch.bmm(a.mT, e) if self.weight.input_first else torch.bmm(e.mT, a)

    def weighted_sum(self, coefficients_R: torch.Tensor) -> torch.Tensor:
        """``sum_i c_i G_i`` in one product, float32, of the weight's shape."""
        e = (self.output_gradients_RxLxO.float() * coefficients_R[:, None, None]).flatten(0, 1)
        a = self.inputs_RxLxI.float().flatten(0, 1)
        return a.mT @ e if self.weight.input_first else e.mT @ a


class Capture:
    """Hands each weight's activations and output gradients to ``take``, in the order of the backward.

    An identity function on the module's output keeps the module's input as autograd keeps it for the module itself:
    under gradient checkpointing that is the recomputed one, and nothing outlives its use. Weights that are used more
    than once (``repeated``) and those that the batch did not reach come after the backward, from ``rest``.
    """

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self.repeated: set[str] = {weight.name for weight in weights.included if len(weight.modules) > 1}
        self._rows: Rows | None = None
        self._take: Callable[[Captured], None] = lambda captured: None
        self._parked: dict[str, list[tuple[torch.Tensor, torch.Tensor]]] = {}
        self._seen: dict[str, int] = {}
        self._root: torch.Tensor | None = None

    @contextmanager
    def engaged(self) -> Iterator[None]:
        """Keep the hooks on the modules for the duration."""
        handles = [
            module.register_forward_hook(self._hook(weight))
            for weight in self._weights.included
            for module in weight.modules
        ]
        self._root = torch.zeros((), device=self._weights.included[0].parameter.device, requires_grad=True)
        try:
            yield
        finally:
            self._root = None
            for handle in handles:
                handle.remove()

    @contextmanager
    def batch(self, rows: Rows, take: Callable[[Captured], None]) -> Iterator[None]:
        """One forward and one backward."""
        self._rows, self._take, self._seen = rows, take, {}
        try:
            yield
        finally:
            self._rows, self._parked = None, {}
            self._take = lambda captured: None

    @property
    def num_uses(self) -> dict[str, int]:
        """How often the last batch's backward came to each weight."""
        return dict(self._seen)

    def rest(self) -> Iterator[Captured]:
        """Weights used more than once, and, with no positions, those that no row used."""
        assert self._rows is not None
        for weight in self._weights.included:
            if weight.name in self._parked:
                # A sum of gradients is the gradient of more positions.
                inputs, gradients = zip(*self._parked.pop(weight.name), strict=True)
                a, e = torch.cat(inputs, dim=1), torch.cat(gradients, dim=1)
            elif weight.name not in self._seen:
                a = torch.zeros(len(self._rows), 0, weight.num_in, device=weight.parameter.device)
                e = a.new_zeros(len(self._rows), 0, weight.num_out)
            else:
                continue
            yield Captured(weight=weight, inputs_RxLxI=a, output_gradients_RxLxO=e)

    def _hook(self, weight: Weight) -> Callable[[nn.Module, tuple[Any, ...], torch.Tensor], torch.Tensor | None]:
        def after_forward(module: nn.Module, args: tuple[Any, ...], output: torch.Tensor) -> torch.Tensor | None:
            if self._rows is None:
                return None
            return _Tap.apply(output, args[0], self._root, self, weight)  # type: ignore[no-any-return]

        return after_forward

    def arrived(self, weight: Weight, inputs: torch.Tensor, output_gradients: torch.Tensor) -> None:
        """Called in the backward."""
        assert self._rows is not None
        self._seen[weight.name] = self._seen.get(weight.name, 0) + 1
        a, e = self._rows.split(inputs), self._rows.split(output_gradients)
        if weight.name in self.repeated:
            self._parked.setdefault(weight.name, []).append((a, e))
            return
        if self._seen[weight.name] > 1:
            raise AssertionError(f"{weight.name} was used more than once in a forward, and had not been before")
        self._take(Captured(weight=weight, inputs_RxLxI=a, output_gradients_RxLxO=e))


class _Tap(torch.autograd.Function):
    """The identity on a module's output; its backward meets the output's gradient with the module's input."""

    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any, output: torch.Tensor, inputs: torch.Tensor, root: torch.Tensor, capture: Capture, weight: Weight
    ) -> torch.Tensor:
        ctx.save_for_backward(inputs)
        ctx.capture, ctx.weight = capture, weight
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, output_gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # type: ignore[override]
        (inputs,) = ctx.saved_tensors
        with torch.no_grad():
            ctx.capture.arrived(ctx.weight, inputs.detach(), output_gradients)
        return output_gradients, None, None, None, None
