"""Per-sample losses against the model's own loss of one row at a time."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from tiny_models import (
    MODELS,
    NEVER_SCORED,
    VOCAB,
    WithoutLogitsToKeep,
    collate,
    losses_one_by_one,
    make_model,
    make_rows,
    measured_losses,
    signal_of,
)

from dataflex.signals import loss as loss_module
from dataflex.signals.loss import LossSignal, loss_sums, mean_losses, with_positions

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
ROWS = make_rows()


@pytest.fixture(scope="module")
def llama():
    return make_model("llama")


@pytest.fixture(scope="module")
def gpt2():
    """Absolute positions: the one that notices when a batch mate pushes a row to the right."""
    return make_model("gpt2")


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", MODELS)
def test_every_row_has_the_loss_that_the_model_gives_it_alone(name: str, side: str) -> None:
    model = make_model(name)
    wanted = losses_one_by_one(model, ROWS)
    assert np.isnan(wanted).nonzero()[0].tolist() == list(NEVER_SCORED)
    assert np.nanstd(wanted) > 0.05, "rows that all have the same loss would prove nothing"
    found = measured_losses(model, ROWS, side=side)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mixtral"])
@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
@pytest.mark.parametrize(("side", "multiple"), [("right", 1), ("left", 1), ("right", 8), ("left", 64)])
def test_batch_size_and_padding_change_nothing(name: str, batch_tokens: int, side: str, multiple: int) -> None:
    model = make_model(name)
    alone = measured_losses(model, ROWS, batch_tokens=1)
    found = measured_losses(model, ROWS, batch_tokens=batch_tokens, side=side, multiple=multiple)
    np.testing.assert_allclose(found, alone, **CLOSE)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_order_of_the_rows_changes_nothing(llama, side: str) -> None:
    straight = measured_losses(llama, ROWS, side=side)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(ROWS))
        shuffled = measured_losses(llama, [ROWS[row] for row in order], side=side)
        np.testing.assert_allclose(shuffled, straight[order], **CLOSE)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_row_does_not_know_its_batch_mates(gpt2, side: str) -> None:
    signal = signal_of(gpt2, ROWS, side=side)
    with torch.no_grad():
        alone = signal.measure(np.array([0]))[0]
        for mate in range(1, len(ROWS)):
            together = signal.measure(np.array([mate, 0]))
            torch.testing.assert_close(together[1], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma2", "cohere"])
def test_computing_all_logits_or_only_those_with_a_label_is_the_same(name: str, side: str) -> None:
    model = make_model(name)
    seen: list[torch.Size] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda _, __, output: seen.append(output.shape))
    kept = measured_losses(model, ROWS, side=side)
    positions_kept = sum(shape[1] for shape in seen)
    seen.clear()
    everything = measured_losses(WithoutLogitsToKeep(model), ROWS, side=side)
    handle.remove()
    np.testing.assert_allclose(kept, everything, **CLOSE)
    assert positions_kept < sum(shape[1] for shape in seen), "prompt positions need no logits"


def test_a_batch_without_any_predicted_label_is_counted_zero(llama) -> None:
    with torch.no_grad():
        values = signal_of(llama, ROWS).measure(np.array(NEVER_SCORED))
    assert values.tolist() == [[0.0, 0.0]] * 3
    assert values.dtype == torch.float64


def test_a_row_with_an_infinite_loss_is_nan_and_its_mates_are_as_before(llama) -> None:
    model = make_model("llama")
    clean = measured_losses(model, ROWS)
    token = ROWS[3]["input_ids"][1]
    with torch.no_grad():
        model.get_input_embeddings().weight[token] = float("inf")
    poisoned = measured_losses(model, ROWS)
    # Only a row that reads the token before a label of its own is touched.
    last_label = [max([i for i, label in enumerate(row["labels"]) if label != -100], default=0) for row in ROWS]
    touched = np.array([token in row["input_ids"][:last] for row, last in zip(ROWS, last_label, strict=True)])
    assert touched[3]
    assert not touched.all()
    assert np.isnan(poisoned[touched]).all()
    np.testing.assert_allclose(poisoned[~touched], clean[~touched], **CLOSE)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_sum_that_is_not_finite_is_a_loss_that_is_nan(value: float) -> None:
    losses_N = mean_losses(np.array([[value, 2.0], [3.0, 2.0], [0.0, 0.0], [np.nan, np.nan], [0.0, 5.0]]))
    np.testing.assert_array_equal(losses_N, np.array([np.nan, 1.5, np.nan, np.nan, 0.0], dtype=np.float32))
    assert losses_N.dtype == np.float32


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_sums_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 11, VOCAB, generator=generator)
    targets = torch.randint(0, VOCAB, (4, 11), generator=generator)
    targets[torch.rand(4, 11, generator=generator) < 0.4] = -100
    targets[2] = -100
    monkeypatch.setattr(loss_module, "CHUNK", chunk)
    values = loss_sums(logits, targets)
    log_probabilities = logits.double().log_softmax(-1)
    for sample in range(4):
        labels = [(p, int(t)) for p, t in enumerate(targets[sample]) if t != -100]
        assert values[sample, 1] == len(labels)
        assert float(values[sample, 0]) == pytest.approx(
            -sum(float(log_probabilities[sample, p, t]) for p, t in labels)
        )


def test_low_precision_logits_are_upcast_before_the_softmax() -> None:
    logits = torch.full((1, 1, 4), 100.0, dtype=torch.bfloat16)
    assert float(loss_sums(logits, torch.tensor([[2]]))[0, 0]) == pytest.approx(np.log(4), rel=1e-6)


def test_positions_are_counted_only_where_padding_stands_in_front() -> None:
    left = collate([ROWS[0], ROWS[1]], side="left")
    with_positions(left)
    assert left["position_ids"][0, -3:].tolist() == [0, 1, 2]
    assert left["position_ids"][1].tolist() == list(range(60))
    right = collate([ROWS[0], ROWS[1]], side="right")
    with_positions(right)
    assert "position_ids" not in right
    own = {**collate([ROWS[0], ROWS[1]], side="left"), "position_ids": torch.zeros(2, 60)}
    with_positions(own)
    assert not own["position_ids"].any(), "the host's own positions stay"


def test_the_collators_batch_is_not_changed_and_further_inputs_reach_the_model(llama) -> None:
    batch = {**collate(ROWS[:2], side="left"), "token_type_ids": torch.zeros(2, 60)}
    before = set(batch)
    seen = {}

    class Spy(torch.nn.Module):
        def forward(self, **inputs):
            seen.update(inputs)
            inputs.pop("token_type_ids")
            return llama(**inputs)

    signal = LossSignal(
        model=Spy(), features=lambda rows: [], collate=lambda f: batch, to_device=dict, autocast=nullcontext
    )
    with torch.no_grad():
        signal.measure(np.array([0, 1]))
    assert set(batch) == before
    assert "token_type_ids" in seen
    assert seen["use_cache"] is False
    assert "labels" not in seen, "the model would compute its own loss for nothing"


def test_the_hosts_autocast_is_around_the_forward(llama) -> None:
    signal = LossSignal(
        model=llama,
        features=lambda rows_B: [ROWS[row] for row in rows_B],
        collate=collate,
        to_device=lambda batch: batch,
        autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    )
    with torch.no_grad():
        low = signal.measure(np.array([1, 3]))
        exact = signal_of(llama, ROWS).measure(np.array([1, 3]))
    assert not torch.equal(low, exact)
    torch.testing.assert_close(low, exact, rtol=0.05, atol=0.1)


def test_a_wrapped_model_is_looked_into_for_logits_to_keep(llama) -> None:
    class Wrapper(torch.nn.Module):  # as DistributedDataParallel and DeepSpeed do it
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args, **kwargs):
            return self.module(*args, **kwargs)

    seen: list[int] = []
    handle = llama.lm_head.register_forward_hook(lambda _, __, output: seen.append(output.shape[1]))
    with torch.no_grad():
        wrapped = signal_of(Wrapper(Wrapper(llama)), ROWS).measure(np.array([1]))
        plain = signal_of(llama, ROWS).measure(np.array([1]))
    handle.remove()
    assert torch.equal(wrapped, plain)
    assert seen == [5, 5]
