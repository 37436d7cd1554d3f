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
    collate,
    losses_one_by_one,
    make_model,
    make_rows,
    measured_losses,
    signal_of,
)

from dataflex.signals.head import LabelHead
from dataflex.signals.loss import LossSignal, loss_sums, mean_losses, with_positions
from dataflex.signals.sweep import Collective, sweep

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
ROWS = make_rows()


@pytest.fixture(scope="module")
def llama():
    return make_model("llama")


@pytest.fixture(scope="module")
def gpt2():
    """Absolute positions: the one that notices when a batch mate pushes a row to the right."""
    return make_model("gpt2")


@pytest.mark.parametrize(("side", "fast"), [("right", False), ("left", False), ("right", True)])
@pytest.mark.parametrize("name", MODELS)
def test_every_row_has_the_loss_that_the_model_gives_it_alone(name: str, side: str, fast: bool) -> None:
    model = make_model(name)
    wanted = losses_one_by_one(model, ROWS)
    assert np.isnan(wanted).nonzero()[0].tolist() == list(NEVER_SCORED)
    assert np.nanstd(wanted) > 0.05, "rows that all have the same loss would prove nothing"
    found = measured_losses(model, ROWS, side=side, fast=fast)  # fast: asserted to have been taken
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=0)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gemma3", "mixtral"])
@pytest.mark.parametrize("batch_tokens", [1, 64, 100_000])
@pytest.mark.parametrize(
    ("side", "multiple", "fast"), [("right", 1, False), ("left", 1, False), ("left", 64, False), ("right", 8, True)]
)
def test_batch_size_and_padding_change_nothing(
    name: str, batch_tokens: int, side: str, multiple: int, fast: bool
) -> None:
    model = make_model(name)
    alone = measured_losses(model, ROWS, batch_tokens=1)
    found = measured_losses(model, ROWS, batch_tokens=batch_tokens, side=side, multiple=multiple, fast=fast)
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
        alone = signal.measure(signal.prepare(np.array([0])))[0]
        for mate in range(1, len(ROWS)):
            together = signal.measure(signal.prepare(np.array([mate, 0])))
            torch.testing.assert_close(together[1], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_the_fast_path_sends_only_label_positions_through_the_head(name: str) -> None:
    model = make_model(name)
    signal, rows = signal_of(model, ROWS), np.array([1, 3, 6])
    num_labels = sum(label != -100 for row in rows for label in ROWS[row]["labels"][1:])
    with torch.no_grad(), signal.engaged(rows) as why_not:
        assert why_not is None
        seen: list[int] = []
        head = LabelHead(model)._head
        assert head is not None
        handle = head.register_forward_hook(lambda _, __, output: seen.append(output.shape[:-1].numel()))
        signal.measure(signal.prepare(rows))
        handle.remove()
    assert sum(seen) == num_labels + len(rows), "and one position of each row, for the model's own logits"


def test_the_logits_held_at_a_time_are_bounded(llama, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dataflex.signals.head.CHUNK_ELEMENTS", 16 * llama.config.vocab_size)
    whole = measured_losses(llama, ROWS)
    sizes: list[int] = []
    handle = llama.lm_head.register_forward_hook(lambda _, __, output: sizes.append(output.shape[:-1].numel()))
    chunked = measured_losses(llama, ROWS, batch_tokens=100_000, fast=True)
    handle.remove()
    np.testing.assert_allclose(chunked, whole, **CLOSE)
    assert max(sizes[4:]) <= 16, "after the check on full logits"


def test_a_model_that_changes_its_logits_unseen_is_measured_the_plain_way(llama) -> None:
    class Unknown(torch.nn.Module):
        config = llama.config

        def __init__(self) -> None:
            super().__init__()
            self.inner = llama

        def get_output_embeddings(self):
            return self.inner.lm_head

        def forward(self, **inputs):
            output = self.inner(**inputs)
            output.logits = output.logits * 1.5  # nothing in the config tells
            return output

    model = Unknown()
    signal = signal_of(model, ROWS)
    with torch.no_grad(), signal.engaged(np.array([1, 3, 6])) as why_not:
        assert "differs from the model's own logits" in why_not
        assert not signal.is_fast
        values = signal.measure(signal.prepare(np.array([1])))
        ids = torch.tensor([ROWS[1]["input_ids"]])
        log_probabilities = model(input_ids=ids).logits.log_softmax(-1)
    wanted = -sum(float(log_probabilities[0, p - 1, t]) for p, t in enumerate(ROWS[1]["labels"]) if p and t != -100)
    assert float(values[0, 0]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("extra", [{"images": ["x.png"]}, {"labels": None}], ids=["an image", "no labels"])
def test_rows_that_are_more_than_text_are_measured_the_plain_way(llama, extra: dict) -> None:
    rows = [{k: v for k, v in {**row, **extra}.items() if v is not None} for row in ROWS]
    signal = LossSignal(
        model=llama,
        features=lambda rows_B: [dict(rows[row]) for row in rows_B],
        collate=lambda features: collate([{**ROWS[1], "input_ids": f["input_ids"]} for f in features[:1]]),
        to_device=lambda batch: batch,
        autocast=nullcontext,
    )
    with signal.engaged(np.array([1])) as why_not:
        assert why_not == "rows are more than tokens and labels"


def test_a_row_with_an_image_among_rows_of_text_keeps_its_image(llama) -> None:
    """The fast path is checked on two rows only; it must not take every other row for text."""
    rows = [{**row, "images": None} for row in ROWS]
    rows[6] = {**ROWS[6], "images": ["x.png"]}
    seen: list[set[str]] = []

    class Spy(torch.nn.Module):
        config = llama.config

        def __init__(self) -> None:
            super().__init__()
            self.inner = llama

        def get_output_embeddings(self):
            return self.inner.get_output_embeddings()

        def forward(self, pixel_values=None, **inputs):
            seen.append({*inputs, *(["pixel_values"] if pixel_values is not None else [])})
            return self.inner(**inputs)

    def collate_with_images(features: list[dict]) -> dict[str, torch.Tensor]:
        pictured = any(feature.pop("images", None) for feature in features)
        return {**collate(features), **({"pixel_values": torch.zeros(1)} if pictured else {})}

    signal = LossSignal(
        model=Spy(),
        features=lambda rows_B: [dict(rows[row]) for row in rows_B],
        collate=collate_with_images,
        to_device=lambda batch: batch,
        autocast=nullcontext,
    )
    with torch.no_grad(), signal.engaged(np.array([1, 3])) as why_not:
        assert why_not is None
        values = torch.cat([signal.measure(signal.prepare(np.array(rows_B))) for rows_B in ([6, 7], [8, 9])])
    assert ["pixel_values" in inputs for inputs in seen[-2:]] == [True, False]
    np.testing.assert_allclose(mean_losses(values.numpy()), losses_one_by_one(llama, ROWS)[6:10], rtol=1e-5)


def test_a_pool_without_a_row_to_score_is_no_crash(llama) -> None:
    signal = signal_of(llama, ROWS)
    with torch.no_grad(), signal.engaged(np.zeros(0, dtype=np.int64)) as why_not:
        assert why_not == "there is no row to compare on"
        result = sweep(signal, np.full(3, 5), np.zeros(0, dtype=np.int64), ranks=Collective(device=torch.device("cpu")))
    assert np.isnan(result.values_NxC).all()


def test_a_row_with_masked_tokens_keeps_its_mask(llama) -> None:
    masked = {**ROWS[6], "attention_mask": [0, 0] + [1] * (len(ROWS[6]["input_ids"]) - 2)}
    signal = LossSignal(
        model=llama,
        features=lambda rows_B: [dict(masked if row == 0 else ROWS[row]) for row in rows_B],
        collate=lambda fs: {**collate(fs), **({"attention_mask": _masks(fs)} if "attention_mask" in fs[0] else {})},
        to_device=lambda batch: batch,
        autocast=nullcontext,
    )
    with torch.no_grad(), signal.engaged(np.array([1, 3])) as why_not:
        assert why_not is None
        assert "attention_mask" in signal.prepare(np.array([0]))
        assert "attention_mask" not in signal.prepare(np.array([1, 3]))


def _masks(features: list[dict]) -> torch.Tensor:
    return torch.tensor([feature["attention_mask"] for feature in features])


def test_half_precision_agrees_with_full_precision_to_two_percent() -> None:
    model = make_model("llama")
    exact = measured_losses(model, ROWS)
    half = measured_losses(model.to(torch.bfloat16), ROWS, fast=True)
    np.testing.assert_allclose(half, exact, rtol=2e-2, equal_nan=True)


def test_a_batch_without_any_predicted_label_is_counted_zero(llama) -> None:
    with torch.no_grad():
        values = (s := signal_of(llama, ROWS)).measure(s.prepare(np.array(NEVER_SCORED)))
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


@pytest.mark.parametrize("chunk", [1, 17, 1000])  # 16 positions at least
def test_sums_do_not_depend_on_the_chunk(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 11, VOCAB, generator=generator)
    targets = torch.randint(0, VOCAB, (4, 11), generator=generator)
    targets[torch.rand(4, 11, generator=generator) < 0.4] = -100
    targets[2] = -100
    monkeypatch.setattr("dataflex.signals.head.CHUNK_ELEMENTS", chunk * VOCAB)
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
        signal.measure(signal.prepare(np.array([0, 1])))
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
        low = signal.measure(signal.prepare(np.array([1, 3])))
        exact = (s := signal_of(llama, ROWS)).measure(s.prepare(np.array([1, 3])))
    assert not torch.equal(low, exact)
    torch.testing.assert_close(low, exact, rtol=0.05, atol=0.1)


def test_a_wrapped_model_is_looked_into_for_its_head(llama) -> None:
    class Wrapper(torch.nn.Module):  # as DistributedDataParallel and DeepSpeed do it
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, *args, **kwargs):
            return self.module(*args, **kwargs)

    wrapped = measured_losses(Wrapper(Wrapper(llama)), ROWS, fast=True)
    np.testing.assert_array_equal(wrapped, measured_losses(llama, ROWS, fast=True))
