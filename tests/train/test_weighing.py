"""Weighers in a plain Trainer: what c_i does to the gradient, and that c = 1 does nothing to a bit of it."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from test_plain_trainer import NUM_ROWS, VOCAB, collate, make_model, make_rows
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from dataflex import Column, DoReMi, Focal, LossWeigher, Schedule, SelfPaced, StaticMix, dynamic
from dataflex.algorithms.base import TrainedBatch, WeigherBase, Weights
from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.ledger.ledger import Ledger
from dataflex.train.mixin import Options

WEIGHTS = (np.arange(NUM_ROWS) % 5) / 2.0  # 0, 0.5, 1, 1.5, 2


def rows_with(**columns: Any) -> Any:
    from datasets import Dataset

    rows = [{**row, **{name: values[i] for name, values in columns.items()}} for i, row in enumerate(make_rows())]
    return Dataset.from_list(rows)


def training_args(output_dir: Path, **changes: Any) -> TrainingArguments:
    settings = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 4,
        "max_steps": 20,
        "num_train_epochs": 8,
        "learning_rate": 5e-2,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
        "max_grad_norm": 0.0,
    }
    return TrainingArguments(output_dir=str(output_dir), **{**settings, **changes})


def losses_of(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def train(output_dir: Path, *, model: Any = None, data: Any = None, base: type = Trainer, **options: Any) -> Any:
    """A run with weighers or a mixer; ``args`` are changes of the training arguments."""
    args = training_args(output_dir, **options.pop("args", {}))
    resume = options.pop("resume", None)
    callbacks = options.pop("callbacks", None)
    schedule = options.pop("schedule", Schedule(update_step=5))
    trainer = dynamic(base)(
        model=model or make_model(),
        args=args,
        train_dataset=data if data is not None else rows_with(weight=WEIGHTS.tolist()),
        data_collator=collate,
        callbacks=callbacks,
        schedule=schedule,
        **options,
    )
    trainer.train(resume)
    return trainer


def stock(output_dir: Path, **changes: Any) -> Trainer:
    trainer = Trainer(
        model=make_model(),
        args=training_args(output_dir, **changes),
        train_dataset=rows_with(),
        data_collator=collate,
    )
    trainer.train()
    return trainer


def assert_same_weights(left: nn.Module, right: nn.Module) -> None:
    for (name, mine), theirs in zip(left.named_parameters(), right.parameters(), strict=True):
        assert torch.equal(mine, theirs), name


@dataclass(frozen=True, kw_only=True)
class Ones(WeigherBase):
    """One for every row, told by nobody that it is one."""

    needs: ClassVar[frozenset[str]] = frozenset({"loss"})

    def weigh(self, state: Any, batch: TrainedBatch) -> tuple[Weights, Any]:
        return Weights(weights_B=np.exp(batch.losses_B * 0.0)), state


@pytest.mark.parametrize(
    ("name", "weigher"),
    [
        ("ones", Ones()),
        ("uniform", LossWeigher(strategy="uniform")),
        ("column", Column(column="one")),
        ("focal", Focal(gamma=0.0)),
        ("several", [Ones(), Column(column="one"), Focal(gamma=0.0)]),
    ],
)
def test_weights_of_one_change_no_bit_of_the_model(name: str, weigher: Any, tmp_path: Path) -> None:
    expected = stock(tmp_path / "stock")
    trainer = train(tmp_path / "ours", data=rows_with(one=[1.0] * NUM_ROWS), weigher=weigher)
    assert trainer.state.global_step == 20
    assert_same_weights(trainer.model, expected.model)
    np.testing.assert_allclose(losses_of(trainer), losses_of(expected), rtol=1e-6)


@pytest.mark.parametrize("changes", [{"gradient_accumulation_steps": 1}, {"max_grad_norm": 1.0}, {"bf16": True}])
def test_weights_of_one_under_other_arguments(changes: dict[str, Any], tmp_path: Path) -> None:
    expected = stock(tmp_path / "stock", **changes)
    trainer = train(tmp_path / "ours", weigher=Ones(), args=changes)
    assert_same_weights(trainer.model, expected.model)
    np.testing.assert_allclose(losses_of(trainer), losses_of(expected), rtol=1e-6)


def test_other_weights_give_other_weights_of_the_model(tmp_path: Path) -> None:
    expected = stock(tmp_path / "stock")
    trainer = train(tmp_path / "ours", weigher=Column())
    pairs = zip(trainer.model.parameters(), expected.model.parameters(), strict=True)
    assert any(not torch.equal(mine, theirs) for mine, theirs in pairs)


# the gradient of one step


class Kept(TrainerCallback):
    """The gradients of the first optimizer step, before they are used."""

    def __init__(self) -> None:
        self.gradients: dict[str, torch.Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if not self.gradients:
            self.gradients = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def gradients_of_first_step(tmp_path: Path, **options: Any) -> tuple[dict[str, torch.Tensor], list[int]]:
    kept = Kept()
    options.setdefault("model", make_model().double().eval())
    # No dropout: rows are looked at one by one afterwards.
    for module in options["model"].modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    trainer = train(tmp_path, callbacks=[kept], **options)
    ledger = Ledger(tmp_path)
    batch = trainer.curator.geometry.global_batch
    return kept.gradients, ledger.rows_of(ledger.segments()[0])[:batch].tolist()


def row_loss_sum(model: nn.Module, row: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token losses of one row alone, and how many there are."""
    logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1]
    labels = torch.tensor(row["labels"])[1:]
    return nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none"), labels


def expected_gradients(
    rows: list[int], coefficient: Callable[[int, torch.Tensor], torch.Tensor | float]
) -> dict[str, torch.Tensor]:
    """sum_i sum_t c_it grad l_it / sum_i T_i, by autograd, row by row."""
    model = make_model().double().eval()
    data = make_rows()
    tokens = sum(sum(label != -100 for label in data[row]["labels"]) for row in rows)
    total = torch.zeros((), dtype=torch.float64)
    for row in rows:
        losses_T, _ = row_loss_sum(model, data[row])
        if len(losses_T):
            total = total + (coefficient(row, losses_T.detach()) * losses_T).sum()
    (total / tokens).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_close(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor], rtol: float = 1e-5) -> None:
    assert found.keys() == wanted.keys()
    for name in wanted:
        scale = wanted[name].norm()
        assert (found[name].double() - wanted[name]).norm() <= rtol * scale, name
        assert scale > 0


ONE_STEP = {"max_steps": 1}


def test_the_gradient_is_the_weighted_sum_of_the_rows_gradients(tmp_path: Path) -> None:
    found, rows = gradients_of_first_step(tmp_path, weigher=Column(), args=ONE_STEP)
    assert len(set(WEIGHTS[rows])) > 2
    assert_close(found, expected_gradients(rows, lambda row, _: float(WEIGHTS[row])))


def test_weights_of_tokens_reach_their_tokens(tmp_path: Path) -> None:
    found, rows = gradients_of_first_step(tmp_path, weigher=[Focal(gamma=2.0), Column()], args=ONE_STEP)
    wanted = expected_gradients(rows, lambda row, losses_T: float(WEIGHTS[row]) * (1 - torch.exp(-losses_T)) ** 2)
    assert_close(found, wanted)


def test_the_gradient_of_focal_loss_itself(tmp_path: Path) -> None:
    """detach: false is the derivative of (1 - p)^gamma l."""
    found, rows = gradients_of_first_step(tmp_path, weigher=Focal(gamma=2.0, detach=False), args=ONE_STEP)
    model, data = make_model().double().eval(), make_rows()
    tokens = sum(sum(label != -100 for label in data[row]["labels"]) for row in rows)
    losses = [row_loss_sum(model, data[row])[0] for row in rows]
    (sum(((1 - torch.exp(-losses_T)) ** 2 * losses_T).sum() for losses_T in losses) / tokens).backward()
    assert_close(found, {n: p.grad for n, p in model.named_parameters() if p.grad is not None})


def test_loss_weights_are_those_of_the_micro_batch(tmp_path: Path) -> None:
    args = {"max_steps": 1, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    found, rows = gradients_of_first_step(tmp_path, weigher=LossWeigher(r=0.5), args=args)
    model, data = make_model().double().eval(), make_rows()
    weigher = LossWeigher(r=0.5)
    weights: dict[int, float] = {}
    for part in (rows[:4], rows[4:]):
        losses = np.array([float(row_loss_sum(model, data[row])[0].detach().mean()) for row in part])
        scope = losses[np.isfinite(losses)]
        for row, weight in zip(np.array(part)[np.isfinite(losses)], weigher.coefficients(scope, scope), strict=True):
            weights[int(row)] = float(weight)
    assert_close(found, expected_gradients(rows, lambda row, _: weights[row]))


@pytest.mark.parametrize("weigher", [Column(), [Column(), Focal()], LossWeigher(scope="window")], ids=str)
def test_how_a_step_is_cut_into_micro_batches_changes_nothing(weigher: Any, tmp_path: Path) -> None:
    found = []
    for micro_batch in (1, 2, 8):
        args = {"per_device_train_batch_size": micro_batch, "gradient_accumulation_steps": 8 // micro_batch}
        kept = make_model().double()
        for module in kept.modules():
            if hasattr(module, "attention_dropout"):
                module.attention_dropout = 0.0
        trainer = train(tmp_path / str(micro_batch), model=kept, weigher=weigher, args={**args, "max_steps": 4})
        found.append({name: p.detach().clone() for name, p in trainer.model.named_parameters()})
    for other in found[1:]:
        for name, values in found[0].items():
            torch.testing.assert_close(other[name], values, rtol=1e-7, atol=1e-9)


def test_a_row_of_weight_zero_has_no_gradient(tmp_path: Path) -> None:
    rows = make_rows()
    at = {"seed": 3, "max_steps": 1}
    zero = [0.0] * NUM_ROWS
    found, trained = gradients_of_first_step(tmp_path / "zero", data=rows_with(weight=zero), weigher=Column(), args=at)
    assert all(not gradient.any() for gradient in found.values())
    # Alone among the others it is as if it were not there, but for the count of tokens.
    left_out = trained[0]
    weights = [1.0] * NUM_ROWS
    weights[left_out] = 0.0
    found, _ = gradients_of_first_step(tmp_path / "one", data=rows_with(weight=weights), weigher=Column(), args=at)
    assert_close(found, expected_gradients(trained, lambda row, _: float(row != left_out)))
    assert len(rows) == NUM_ROWS


# what comes with it


def test_one_cross_entropy_is_computed_for_each_micro_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    original = nn.functional.cross_entropy

    def counted(*args: Any, **kwargs: Any) -> torch.Tensor:
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(nn.functional, "cross_entropy", counted)
    train(tmp_path, weigher=LossWeigher(), args={"max_steps": 3})
    assert len(calls) == 3 * 4


def test_a_column_costs_no_message_between_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dataflex.train.ranks import Ranks

    gathered: list[int] = []
    original = Ranks.gather_rows
    monkeypatch.setattr(Ranks, "gather_rows", lambda self, t: gathered.append(1) or original(self, t))
    train(tmp_path / "column", weigher=Column(), args={"max_steps": 3})
    quiet = len(gathered)
    train(tmp_path / "loss", weigher=LossWeigher(), args={"max_steps": 3})
    assert quiet <= 2, "at the decision and at the end"
    assert len(gathered) - quiet >= 3 * 4


@pytest.mark.parametrize("weigher", [LossWeigher(scope="window"), SelfPaced(), Column()], ids=str)
def test_a_resume_goes_on_to_the_bit(weigher: Any, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 3, "max_steps": 9}
    whole = train(tmp_path / "whole", weigher=weigher, args=saving)
    train(tmp_path / "again", weigher=weigher, args=saving)
    for step in (9, 6):
        import shutil

        shutil.rmtree(tmp_path / "again" / f"checkpoint-{step}")
    resumed = train(tmp_path / "again", weigher=weigher, args=saving, resume=True)
    assert_same_weights(resumed.model, whole.model)
    told = [[line for line in Ledger(tmp_path / n).lines() if line["kind"] == "trained"] for n in ("whole", "again")]
    last = [{line["segment"]: (line["weights"], line["stop"]) for line in lines} for lines in told]
    assert last[0] == last[1]


def test_the_record_and_the_loggers_say_what_the_weights_were(tmp_path: Path) -> None:
    trainer = train(tmp_path, weigher=Column(), args={"max_steps": 10})
    ledger = Ledger(tmp_path)
    line = next(line for line in ledger.lines() if line["kind"] == "trained")
    rows = ledger.rows_of(ledger.segments()[0])
    assert line["weights"]["mean"] == pytest.approx(WEIGHTS[rows].mean())
    assert line["weights"]["zero_share"] == pytest.approx((WEIGHTS[rows] == 0).mean())
    assert line["weights"]["effective_share"] == pytest.approx(
        WEIGHTS[rows].sum() ** 2 / (len(rows) * (WEIGHTS[rows] ** 2).sum())
    )
    assert ledger.segments()[0]["weigh"] == ["column"]
    assert any("dataflex/weight_mean" in entry for entry in trainer.state.log_history)
    assert json.loads(json.dumps(ledger.run()["parts"]))["weigh"][0]["method"] == "column"


def test_warm_up_counts_every_row_alike(tmp_path: Path) -> None:
    schedule = Schedule(warmup_step=4, update_step=4)
    trainer = train(tmp_path, weigher=Column(), schedule=schedule, args={"max_steps": 8})
    told = [line["weights"] for line in Ledger(tmp_path).lines() if line["kind"] == "trained"]
    assert (told[0]["min"], told[0]["max"]) == (1.0, 1.0)
    assert told[1]["min"] < told[1]["max"]
    assert trainer.state.global_step == 8


class Broken(Trainer):
    """Row 5's logits overflow."""

    def training_step(self, model: Any, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        bad = (inputs["input_ids"][:, 0] == 3) & (inputs["input_ids"][:, 1] == 15)

        def spoil(module: Any, args: Any, output: Any) -> Any:
            return torch.where(bad[:, None, None], torch.full_like(output, torch.nan), output)

        handle = self.model.lm_head.register_forward_hook(spoil)
        try:
            return super().training_step(model, inputs, *args, **kwargs)
        finally:
            handle.remove()


def test_a_row_without_a_finite_loss_does_not_poison_the_others(tmp_path: Path) -> None:
    args = {"max_steps": 1, "gradient_accumulation_steps": 1, "per_device_train_batch_size": NUM_ROWS}
    found, rows = gradients_of_first_step(tmp_path, base=Broken, weigher=Ones(), args=args)
    assert 5 in rows
    assert_close(found, expected_gradients(rows, lambda row, _: float(row != 5)))
    line = next(line for line in Ledger(tmp_path).lines() if line["kind"] == "trained")
    assert line["weights"]["num_unscored"] == 2, "row 5, and row 9, which has no label"


# domains


def domains(row: int) -> str:
    return "abc"[row % 3]


def test_a_domain_of_weight_zero_has_no_gradient(tmp_path: Path) -> None:
    """DoReMi's alpha / pi as coefficients, over the global batch: sum a S / sum a T."""

    class Fixed(DoReMi):
        """Alpha is what it is told; the reference is asked for all the same."""

        def domain_weights(self, state: Any) -> np.ndarray:
            return np.array([0.0, 1.0, 2.0])

    make_model().save_pretrained(tmp_path / "reference")
    names = [domains(row) for row in range(NUM_ROWS)]
    mixer = Fixed(step=2, reference=str(tmp_path / "reference"))
    found, rows = gradients_of_first_step(
        tmp_path / "run",
        data=rows_with(dataset=names),
        mixer=mixer,
        schedule=Schedule(update_step=1, update_times=1),
        args={"max_steps": 1},
    )
    a = {"a": 0.0, "b": 1.0, "c": 2.0}
    data = make_rows()
    tokens = {row: sum(label != -100 for label in data[row]["labels"]) for row in rows}
    scale = sum(tokens.values()) / sum(a[domains(row)] * tokens[row] for row in rows)
    assert_close(found, expected_gradients(rows, lambda row, _: a[domains(row)] * scale))
    assert {domains(row) for row in rows} == {"a", "b", "c"}


def test_doremi_takes_the_excess_of_each_step_over_the_reference(tmp_path: Path) -> None:
    model = make_model()
    for module in model.modules():
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    reference = copy.deepcopy(model)
    with torch.no_grad():
        reference.lm_head.weight.mul_(0.5)
    reference.save_pretrained(tmp_path / "reference")
    before = copy.deepcopy(model).eval()
    trainer = train(
        tmp_path / "run",
        model=model,
        data=rows_with(dataset=[domains(row) for row in range(NUM_ROWS)]),
        mixer=DoReMi(step=2, reference=str(tmp_path / "reference")),
        schedule=Schedule(update_step=1, update_times=1),
        args={"max_steps": 1},
    )
    ledger = Ledger(tmp_path / "run")
    matrices = [p for name, p in reference.named_parameters() if p.dim() == 2 and "embed_tokens" not in name]
    assert ledger.run()["reference_weights"] == sum(p.numel() for p in matrices)  # it reads every trained token
    rows = ledger.rows_of(ledger.segments()[0])
    data, reference = make_rows(), reference.eval()
    lambdas = []
    for name in "abc":
        excess, count = 0.0, 0
        for row in rows:
            if domains(row) == name:
                own, theirs = (row_loss_sum(m, data[row])[0].detach().double() for m in (before, reference))
                excess, count = excess + float((own - theirs).clamp(min=0).sum()), count + len(own)
        lambdas.append(excess / count)
    uniform = np.full(3, 1 / 3)
    expected = DoReMi(step=2, reference="x").updated(uniform, np.array(lambdas))
    found = json.loads((tmp_path / "run" / "dataflex" / "proportions.json").read_text())
    np.testing.assert_allclose([found[name] for name in "abc"], expected, rtol=1e-5)
    assert not np.allclose(expected, uniform, atol=1e-3)
    assert trainer.state.global_step == 1
    # Step 3 trains on what step 2 found.
    third = train(
        tmp_path / "third",
        data=rows_with(dataset=[domains(row) for row in range(NUM_ROWS)]),
        mixer=DoReMi(step=3, path=str(tmp_path / "run")),
        schedule=Schedule(update_step=2, update_times=1),
        args={"max_steps": 2},
    )
    mixed = third.history[0]
    assert mixed["decision"] == "fixed"
    proportions = Ledger(tmp_path / "third").segments()[0]["mix"]["proportions"]
    assert [proportions[name] for name in "abc"] == pytest.approx([found[name] for name in "abc"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weigher": LossWeigher(), "args": {"per_device_train_batch_size": 1}}, "compares the 1 row"),
        ({"weigher": SelfPaced(), "args": {"per_device_train_batch_size": 1}}, "keeps the row of the smallest loss"),
        ({"weigher": Column(column="wieght")}, r"column is 'wieght' \(did you mean 'weight'\?\)"),
        ({"weigher": Column(), "args": {"label_smoothing_factor": 0.1}}, "label_smoothing_factor 0.1 makes another"),
        ({"weigher": [Column(), Column(column="bad")]}, "negative"),
        ({"mixer": StaticMix()}, "a mixer needs the domain of every row"),
        ({"mixer": StaticMix(), "options": Options(domain_column="wieght")}, "domain_column is 'wieght'"),
        ({"mixer": DoReMi(step=2, reference="./missing")}, "a mixer needs the domain"),
    ],
    ids=str,
)
def test_what_cannot_be_weighed_is_a_sentence(options: dict[str, Any], said: str, tmp_path: Path) -> None:
    data = rows_with(weight=WEIGHTS.tolist(), bad=(-WEIGHTS).tolist())
    with pytest.raises(ConfigError, match=said):
        train(tmp_path, data=data, **options)


def test_a_missing_reference_is_a_sentence(tmp_path: Path) -> None:
    data = rows_with(dataset=[domains(row) for row in range(NUM_ROWS)])
    with pytest.raises(ConfigError, match="does not exist; name the model that step 1 trained"):
        train(tmp_path / "run", data=data, mixer=DoReMi(step=2, reference=str(tmp_path / "no")))


class Bare(nn.Module):
    """A model that computes its loss by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCAB, 4), nn.Linear(4, VOCAB)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor, attention_mask: Any = None) -> dict[str, Any]:
        logits = self.head(self.embed(input_ids))
        return {"loss": nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())}


def test_a_model_whose_loss_cannot_be_reached_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(DataFlexError, match="no logits of every position"):
        train(tmp_path, model=Bare(), weigher=Ones())
