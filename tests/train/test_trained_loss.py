"""The loss of the training's own forward: whose it is in any layout of the batch, and what the weights make of it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from test_plain_trainer import VOCAB, make_model
from test_weighing import Ones, assert_close, assert_same_weights, train
from torch import nn
from two_threads import on_ranks, one_rank

from dataflex import Column, Focal, LossWeigher
from dataflex.algorithms.base import TrainedBatch, WeigherBase, Weights
from dataflex.algorithms.combine import Part
from dataflex.algorithms.mix.doremi import domain_coefficients
from dataflex.core.errors import DataFlexError
from dataflex.train.trained_loss import TrainedLoss
from dataflex.train.weighing import Weighing

# Pool rows: tokens, the first of them without a label.
POOL = [np.random.default_rng(7).integers(3, VOCAB, length).tolist() for length in (5, 3, 9, 4, 2, 7)]
NUM_TOKENS = np.array([len(row) for row in POOL])
FIRST_LABEL = 2  # position of the first label


def model_without_dropout() -> Any:
    model = make_model()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0  # type: ignore[assignment]
    return model.train()


def labels_of(row: int) -> list[int]:
    return [-100] * min(FIRST_LABEL, len(POOL[row])) + POOL[row][FIRST_LABEL:]


def padded(rows: Sequence[int]) -> dict[str, torch.Tensor]:
    width = max(len(POOL[row]) for row in rows)

    def line(values: list[int], fill: int) -> list[int]:
        return [*values, *[fill] * (width - len(values))]

    return {
        "input_ids": torch.tensor([line(POOL[row], 0) for row in rows]),
        "labels": torch.tensor([line(labels_of(row), -100) for row in rows]),
        "attention_mask": torch.tensor([line([1] * len(POOL[row]), 0) for row in rows]),
    }


def padded_left(rows: Sequence[int]) -> dict[str, torch.Tensor]:
    return {
        name: torch.stack(
            [values.roll(len(values) - len(POOL[row])) for values, row in zip(values_B, rows, strict=True)]
        )
        for name, values_B in padded(rows).items()
    }


def joined(rows: Sequence[int]) -> dict[str, torch.Tensor]:
    """Padding-free: one line of tokens, positions begin anew with each row."""
    return {
        "input_ids": torch.tensor([[token for row in rows for token in POOL[row]]]),
        "labels": torch.tensor([[label for row in rows for label in labels_of(row)]]),
        "position_ids": torch.tensor([[place for row in rows for place in range(len(POOL[row]))]]),
    }


def own_losses(model: nn.Module, row: int) -> torch.Tensor:
    """Token losses of a row alone, in float64."""
    logits = model(input_ids=torch.tensor([POOL[row]])).logits[0, FIRST_LABEL - 1 : -1].double()
    return nn.functional.cross_entropy(
        logits, torch.tensor(POOL[row][FIRST_LABEL:], dtype=torch.int64), reduction="none"
    )


def watch(
    model: Any, rows: Sequence[int], inputs: dict[str, Any], trained: TrainedLoss, step: int = 0, **more: Any
) -> Any:
    with trained.watching(model, inputs, np.array(rows), step):
        return model(**inputs, use_cache=False, **more)


def as_double(tensors: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    return {name: tensor.double() for name, tensor in tensors.items()}


@pytest.mark.parametrize("layout", [padded, padded_left, joined])
@pytest.mark.parametrize("rows", [[2], [0, 2], [3, 1, 4, 5], [5, 5, 0]], ids=str)
def test_each_row_gets_its_own_loss(layout: Callable[..., dict[str, torch.Tensor]], rows: list[int]) -> None:
    model = model_without_dropout()
    trained = TrainedLoss(ranks=one_rank(), num_tokens_N=NUM_TOKENS)
    loss = watch(model, rows, layout(rows), trained).loss
    found = trained.drain()
    with torch.no_grad():
        own = {row: own_losses(model, row) for row in rows}
    assert found.rows.tolist() == sorted(rows)
    assert found.tokens.tolist() == [len(own[row]) for row in sorted(rows)]
    np.testing.assert_allclose(found.loss_sums, [float(own[row].sum()) for row in sorted(rows)], rtol=1e-5)
    together = torch.cat([own[row] for row in rows])
    assert float(loss.detach()) == pytest.approx(float(together.mean()), rel=1e-5)
    assert len(trained.drain().rows) == 0, "what was drained is gone"


def test_a_packed_block_is_one_row() -> None:
    """A block of two texts is one row of the pool, whose tokens are all of both."""
    model, rows = model_without_dropout(), [0, 2]
    trained = TrainedLoss(ranks=one_rank(), num_tokens_N=np.array([NUM_TOKENS[rows].sum()]))
    watch(model, [0], joined(rows), trained)
    found = trained.drain()
    with torch.no_grad():
        wanted = torch.cat([own_losses(model, row) for row in rows])
    assert (found.rows.tolist(), found.tokens.tolist()) == ([0], [len(wanted)])
    assert found.loss_sums[0] == pytest.approx(float(wanted.sum()), rel=1e-5)


def test_a_line_that_cannot_be_cut_into_its_rows_is_a_sentence() -> None:
    """Tokens that are not those of the rows, as where something cuts the line."""
    trained = TrainedLoss(ranks=one_rank(), num_tokens_N=NUM_TOKENS)
    with pytest.raises(DataFlexError, match="a batch of 3 rows with 12 tokens reached the model as 1 x 14 positions"):
        watch(model_without_dropout(), [0, 1, 3], joined([0, 2]), trained)


def test_entries_come_in_the_order_of_step_and_row_whatever_rank_trained_them() -> None:
    original = model_without_dropout()
    shares = [[(0, [4, 0]), (1, [5])], [(0, [1]), (1, [2, 3])]]  # by rank: step, rows; unequal batches

    def work(ranks: Any) -> Any:
        model = copy.deepcopy(original)
        trained = TrainedLoss(ranks=ranks, num_tokens_N=NUM_TOKENS)
        for step, rows in shares[ranks.rank]:
            watch(model, rows, padded(rows), trained, step)
        return trained.drain()

    both, (alone,) = on_ranks(2, work), on_ranks(1, lambda ranks: _alone(ranks, [[0, 1, 4], [2, 3, 5]]))
    for entries in both:
        assert entries.steps.tolist() == [0, 0, 0, 1, 1, 1]
        assert entries.rows.tolist() == [0, 1, 4, 2, 3, 5]
        assert entries.tokens.tolist() == alone.tokens.tolist()
        np.testing.assert_allclose(entries.loss_sums, alone.loss_sums, rtol=1e-6)


def _alone(ranks: Any, steps: list[list[int]]) -> Any:
    model = model_without_dropout()
    trained = TrainedLoss(ranks=ranks, num_tokens_N=NUM_TOKENS)
    for step, rows in enumerate(steps):
        watch(model, rows, padded(rows), trained, step)
    return trained.drain()


def test_the_model_has_its_own_loss_function_again_even_after_an_error() -> None:
    model = model_without_dropout()
    trained = TrainedLoss(ranks=one_rank(), num_tokens_N=NUM_TOKENS)
    before = model.loss_function
    watch(model, [0], padded([0]), trained)
    assert model.loss_function is before
    with pytest.raises(TypeError):
        watch(model, [0], padded([0]), trained, no_such_argument_of_a_loss={}, input_ids=3)
    assert model.loss_function is before
    assert not model._forward_hooks


# numbers known in advance


def with_losses(model: Any, losses_BxT: Sequence[Sequence[float]]) -> torch.Tensor:
    """Let the head give logits, a leaf, whose losses of label 0 at each position are these, in float64."""
    width = max(map(len, losses_BxT)) + 1
    logits = torch.zeros(len(losses_BxT), width, VOCAB, dtype=torch.float64)
    for row, losses_T in enumerate(losses_BxT):
        for place, loss in enumerate(losses_T):
            logits[row, place, 1:] = math.log(math.expm1(loss) / (VOCAB - 1))
    logits.requires_grad_(True)
    model.lm_head.register_forward_hook(lambda module, args, output: logits)
    return logits


def zeros_with_labels(tokens: Sequence[int]) -> dict[str, torch.Tensor]:
    """Batch of as many labels, all 0, after a token without one."""
    width = max(tokens) + 1
    labels = [[-100, *[0] * count, *[-100] * (width - 1 - count)] for count in tokens]
    return {"input_ids": torch.zeros(len(tokens), width, dtype=torch.int64), "labels": torch.tensor(labels)}


class InDouble(TrainedLoss):
    """Without the host's upcast to single precision, which would hide the sixth decimal."""

    def _loss_function(self, logits: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        logits.float = lambda: logits  # type: ignore[method-assign]
        return super()._loss_function(logits, *args, **kwargs)


def loss_and_gradient(
    sums: Sequence[float], tokens: Sequence[int], weighing: Callable[[Any], Weighing]
) -> tuple[float, torch.Tensor, torch.Tensor]:
    """Loss, gradient of the logits, and the logits."""
    model, ranks = make_model(), one_rank()
    logits = with_losses(model, [[total / count] * count for total, count in zip(sums, tokens, strict=True)])
    trained = InDouble(ranks=ranks, num_tokens_N=np.array(tokens) + 1, weighing=weighing(ranks))
    loss = watch(
        model, range(len(sums)), zeros_with_labels(tokens), trained, num_items_in_batch=torch.tensor(sum(tokens))
    ).loss
    loss.backward()
    assert logits.grad is not None
    return float(loss.detach()), logits.grad, logits.detach()


def weighing_of(*methods: Any, **options: Any) -> Callable[[Any], Weighing]:
    parts = [Part(name=type(method).__name__, method=method) for method in methods]
    return lambda ranks: Weighing(parts, ranks=ranks, num_steps=10, rows_in_scope=4, **options)


@pytest.mark.parametrize(
    ("weigher", "wanted"),
    [(LossWeigher(), 1.614336), (LossWeigher(strategy="uniform"), 20 / 14)],
    ids=["linupper", "uniform"],
)
def test_the_loss_of_the_golden_trace(weigher: Any, wanted: float) -> None:
    loss, _, _ = loss_and_gradient([2.0, 5.0, 4.0, 9.0], [4, 5, 2, 3], weighing_of(weigher))
    assert loss == pytest.approx(wanted, abs=2e-6)


def test_doremis_loss_of_the_golden_trace_and_its_gradient() -> None:
    """sum a l / sum a, by autograd, over domains 0 0 1 2."""
    sums, tokens, domain_B = [6.0, 4.0, 9.0, 2.0], [4, 2, 6, 2], np.array([0, 0, 1, 2])
    a_D = np.array([0.5, 0.3, 0.2]) / (1 / 3)
    tokens_D = np.bincount(domain_B, weights=tokens)

    def factor(rows_B: np.ndarray) -> np.ndarray:
        return domain_coefficients(a_D, domain_B[rows_B], tokens_D)

    loss, gradient, logits = loss_and_gradient(sums, tokens, weighing_of(factor=factor))
    assert loss == pytest.approx(1.557692, abs=2e-6)
    logits = logits.clone().requires_grad_(True)
    above, below = torch.zeros((), dtype=torch.float64), 0.0
    for row, count in enumerate(tokens):
        losses_T = -torch.log_softmax(logits[row, :count], dim=-1)[:, 0]
        above = above + losses_T.sum() * float(a_D[domain_B[row]])
        below += float(a_D[domain_B[row]]) * count
    (above / below).backward()
    assert logits.grad is not None
    torch.testing.assert_close(gradient, logits.grad, rtol=1e-9, atol=1e-12)


# what weighers are shown


@dataclass(frozen=True, kw_only=True)
class HardestTokens(WeigherBase):
    """Needs the whole micro-batch: 2 for tokens above the median of all, half of it for rows of an even column."""

    needs: ClassVar[frozenset[str]] = frozenset({"loss", "token_loss", "column"})
    seen: list[TrainedBatch] = field(default_factory=list)
    column: str = "number"

    def init(self) -> Any:
        return {}  # a key that comes later must be saved too

    def weigh(self, state: Any, batch: TrainedBatch) -> tuple[Weights, Any]:
        self.seen.append(batch)
        losses = np.asarray(batch.token_losses_BxT)
        middle = np.nanmedian(losses)
        weights_BxT = np.where(np.isnan(losses), 0.0, np.where(losses > middle, 2.0, 1.0))
        even_B = batch.columns_B["number"] % 2 == 0
        state = {"total": np.array(state.get("total", 0.0) + np.nansum(losses))}
        return Weights(weights_B=np.where(even_B, 0.5, 1.0), token_weights_BxT=weights_BxT), state


@pytest.mark.parametrize("layout", [padded, joined])
def test_two_ranks_weigh_tokens_as_one_rank_does(layout: Callable[..., dict[str, torch.Tensor]]) -> None:
    """Unequal numbers of rows and unequal widths; weights of rows and of tokens multiply."""
    deals = {1: [[2, 0, 4, 3, 5]], 2: [[2, 0], [4, 3, 5]]}
    columns = {"number": np.arange(len(POOL), dtype=np.float64)}
    tokens = sum(len(labels_of(row)) - FIRST_LABEL for row in deals[1][0])

    original = model_without_dropout()  # made once: two threads would share the random numbers

    def work(ranks: Any) -> Any:
        model, rows = copy.deepcopy(original), deals[ranks.world_size][ranks.rank]
        weigher = HardestTokens()
        weighing = weighing_of(weigher, columns=columns)(ranks)
        trained = TrainedLoss(ranks=ranks, num_tokens_N=NUM_TOKENS, weighing=weighing)
        watch(model, rows, layout(rows), trained, num_items_in_batch=torch.tensor(tokens)).loss.backward()
        gradients = {name: p.grad for name, p in model.named_parameters()}
        return gradients, weighing.take_statistics(), weighing.state_arrays(), weigher.seen[0]

    (alone, told, state, batch), *_ = on_ranks(1, work)
    results = on_ranks(2, work)
    halves = [result[0] for result in results]
    assert_close({name: halves[0][name] + halves[1][name] for name in alone}, as_double(alone))
    with pytest.raises(AssertionError):
        assert_close(halves[0], as_double(alone), rtol=0.1)
    for _, told_there, state_there, seen in results:
        assert told_there == pytest.approx(told)
        assert state_there["0.total"] == pytest.approx(state["0.total"], rel=1e-6)
        assert seen.columns_B["number"].tolist() == [0, 2, 3, 4, 5], "in the order of the pool, whatever was dealt"
        np.testing.assert_allclose(seen.losses_B, batch.losses_B, rtol=1e-6)
        assert np.isfinite(seen.token_losses_BxT).sum() == batch.tokens_B.sum()
    assert told["mean"] == pytest.approx((2 * 0.5 + 2 * 1.0) / 4), "of the rows that have a label"
    assert told["num_unscored"] == 1


def test_what_the_weighing_did_is_the_weighted_sum_by_hand() -> None:
    rows, columns = [2, 0, 5], {"number": np.arange(len(POOL), dtype=np.float64)}
    model, ranks = model_without_dropout(), one_rank()
    trained = TrainedLoss(
        ranks=ranks, num_tokens_N=NUM_TOKENS, weighing=weighing_of(HardestTokens(), columns=columns)(ranks)
    )
    watch(model, rows, joined(rows), trained).loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    losses = [own_losses(model, row) for row in rows]
    all_T = torch.cat(losses).detach()
    total = torch.zeros((), dtype=torch.float64)
    for row, losses_T in zip(rows, losses, strict=True):
        by_token_T = torch.where(losses_T.detach() > np.median(all_T.numpy()), 2.0, 1.0)
        total = total + (0.5 if row % 2 == 0 else 1.0) * (by_token_T * losses_T).sum()
    (total / len(all_T)).backward()
    assert_close(found, as_double({name: p.grad for name, p in model.named_parameters()}))


def test_a_state_that_grew_is_saved_whole() -> None:
    ranks = one_rank()
    columns = {"number": np.arange(len(POOL), dtype=np.float64)}
    first, second = (weighing_of(HardestTokens(), columns=columns)(ranks) for _ in range(2))
    model = model_without_dropout()
    watch(model, [0, 2], padded([0, 2]), TrainedLoss(ranks=ranks, num_tokens_N=NUM_TOKENS, weighing=first))
    second.load_arrays(first.state_arrays())
    assert second.state_arrays().keys() == first.state_arrays().keys() == {"0.total", "statistics"}
    assert second.take_statistics() == first.take_statistics() != {}


@pytest.mark.parametrize(
    ("weighing", "wanted"),
    [
        (weighing_of(Focal(), factor=lambda rows_B: np.full(len(rows_B), 2.0)), 2 * (1 - np.exp([-1.0, -2, -3])) ** 2),
        (weighing_of(normalize="mean_one", factor=lambda rows_B: np.full(len(rows_B), 2.0)), np.ones(3)),
    ],
    ids=["beside a weigher of tokens", "alone"],
)
def test_a_factor_does_not_bring_back_a_row_without_a_loss(
    weighing: Callable[[Any], Weighing], wanted: np.ndarray
) -> None:
    """The second token of the first row overflowed."""
    weighs = weighing(one_rank())
    losses_BxT = torch.tensor([[1.0, torch.nan, 2.0], [1.0, 2.0, 3.0]])
    sums_Bx2 = torch.tensor([[torch.nan, 3], [6, 3]], dtype=torch.float64)
    owner_BxT = torch.arange(2)[:, None].expand(2, 3)
    found = weighs.coefficients(np.array([0, 1]), 0, sums_Bx2, losses_BxT, owner_BxT)
    assert not found[0].any()
    np.testing.assert_allclose(found[1], wanted, rtol=1e-6)
    assert weighs.take_statistics()["num_unscored"] == 1


@dataclass(frozen=True, kw_only=True)
class Careless(WeigherBase):
    """NaN where no label is, or a column too few."""

    needs: ClassVar[frozenset[str]] = frozenset({"loss", "token_loss"})
    missing: int = 0

    def weigh(self, state: Any, batch: TrainedBatch) -> tuple[Weights, Any]:
        losses = np.asarray(batch.token_losses_BxT)[:, self.missing :]
        return Weights(weights_B=np.ones(len(batch)), token_weights_BxT=losses), state


@pytest.mark.parametrize("missing", [0, 1])
def test_token_weights_that_cannot_be_used_are_a_sentence(missing: int) -> None:
    ranks = one_rank()
    weighing = weighing_of(Careless(missing=missing))(ranks)
    trained = TrainedLoss(ranks=ranks, num_tokens_N=NUM_TOKENS, weighing=weighing)
    with pytest.raises(
        DataFlexError, match=r"the weigher Careless returned .* it must return a finite number for each"
    ):
        watch(model_without_dropout(), [0, 2], padded([0, 2]), trained)


# what it costs


def test_a_column_sends_nothing_and_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    model, ranks = model_without_dropout(), one_rank()
    weighing = weighing_of(Column(), columns={"weight": np.arange(6.0)})(ranks)
    trained = TrainedLoss(ranks=ranks, num_tokens_N=NUM_TOKENS, weighing=weighing)
    losses = weighing_of(Ones())(ranks)

    def refuse(name: str) -> Callable[..., Any]:
        def waits(*args: Any, **kwargs: Any) -> Any:
            raise AssertionError(f"Tensor.{name} waits for the device")

        return waits

    def from_here(*args: Any) -> None:
        for name in ("cpu", "item", "tolist", "numpy", "__bool__", "__int__", "__float__", "nonzero"):
            monkeypatch.setattr(torch.Tensor, name, refuse(name))

    handle = model.lm_head.register_forward_hook(from_here)
    batch = padded([0, 2, 5])
    loss = watch(model, [0, 2, 5], batch, trained).loss
    monkeypatch.undo()
    assert ranks.num_messages == 0
    assert torch.isfinite(loss)
    with pytest.raises(AssertionError, match="waits for the device"):
        watch(model, [0, 2, 5], batch, TrainedLoss(ranks=ranks, num_tokens_N=NUM_TOKENS, weighing=losses))
    monkeypatch.undo()
    handle.remove()


@pytest.mark.long
def test_a_compiled_model_is_weighed_as_it_is_uncompiled(tmp_path: Path) -> None:
    weigher = [Focal(), LossWeigher(scope="window"), Column()]
    compiled = {"torch_compile": True, "torch_compile_backend": "eager"}
    ours = train(tmp_path / "compiled", weigher=weigher, args={"max_steps": 3, **compiled})
    plain = train(tmp_path / "plain", weigher=weigher, args={"max_steps": 3})
    assert_same_weights(ours.model, plain.model)
    assert type(ours.model_wrapped).__name__ == "OptimizedModule"
