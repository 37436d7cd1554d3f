"""Weighers, mixers and orders with TRL: every way of SFT that has a loss of each row, and a sentence for the others."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from test_trl_trainers import SFT, sft_data
from trl_runs import build, pairs, rated, same_weights, sums

from dataflex import ODM, Column, Focal, Loss, LossWeigher, Options, Schedule, Sorting, StaticMix
from dataflex.algorithms.base import TrainedBatch, WeigherBase, Weights
from dataflex.core.errors import ConfigError
from dataflex.ledger.ledger import Ledger

WEIGHABLE = [name for name in SFT if name not in ("dft", "label smoothing")]
LORA = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}


@dataclass(frozen=True, kw_only=True)
class Ones(WeigherBase):
    """One for every row, told by nobody that it is one."""

    needs: ClassVar[frozenset[str]] = frozenset({"loss"})

    def weigh(self, state: Any, batch: TrainedBatch) -> tuple[Weights, Any]:
        return Weights(weights_B=np.exp(batch.losses_B * 0.0)), state


def weighted(num_rows: int = 61) -> Any:
    data = sums(num_rows)
    return data.add_column("weight", [row % 4 / 2 for row in range(num_rows)])


def adapter() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.1, task_type="CAUSAL_LM")


@pytest.mark.parametrize("name", WEIGHABLE)
def test_weights_of_one_train_what_the_stock_class_trains(tmp_path: Path, name: str) -> None:
    stock = build("SFT", tmp_path / "stock", sft_data(name), **SFT[name])
    stock.train()
    ours = build("SFT", tmp_path / "ours", sft_data(name), weigher=[Ones(), Focal(gamma=0.0)], **SFT[name])
    ours.train()
    assert same_weights(stock, ours)
    # The host sums the losses of a step in an order of its own.
    host, mine = ([e["loss"] for e in t.state.log_history if "loss" in e] for t in (stock, ours))
    np.testing.assert_allclose(mine, host, rtol=2e-6, atol=1e-4 if name == "neftune" else 0)


def test_weights_of_one_with_an_adapter_and_checkpointed_activations(tmp_path: Path) -> None:
    trained = []
    for options in ({}, {"weigher": Ones()}):
        trainer = build("SFT", tmp_path / str(len(trained)), sums(), peft_config=adapter(), **LORA, **options)
        trainer.train()
        trained.append(trainer)
    assert same_weights(*trained)


@pytest.mark.parametrize("weigher", [Column(), LossWeigher(r=0.5), [Focal(), Column()]], ids=str)
def test_rows_that_were_joined_weigh_what_they_weigh_when_they_are_padded(tmp_path: Path, weigher: Any) -> None:
    """Padding-free: several rows in one line of tokens."""
    trained = []
    for options in ({}, SFT["padding-free"]):
        output_dir = tmp_path / str(len(trained))
        trainer = build("SFT", output_dir, weighted(), weigher=weigher, max_steps=6, **options)
        trainer.train()
        trained.append((trainer, [line for line in Ledger(output_dir).lines() if line["kind"] == "trained"]))
    (padded, told), (joined, told_joined) = trained
    for (name, left), right in zip(padded.model.named_parameters(), joined.model.parameters(), strict=True):
        torch.testing.assert_close(left, right, rtol=1e-3, atol=2e-5, msg=name)
    for left, right in zip(told, told_joined, strict=True):
        assert left["weights"] == pytest.approx(right["weights"], rel=1e-4)
    assert told[-1]["weights"]["min"] < told[-1]["weights"]["max"]


def test_losses_seen_in_training_are_the_losses_of_the_rows(tmp_path: Path) -> None:
    """A learning rate of almost nothing: what training shows is what a pass over the pool would show."""
    order = Sorting(by="loss", loss_source="reuse")
    schedule = Schedule(warmup_step=4, update_step=2, update_times=1)
    trainer = build("SFT", tmp_path / "a", sums(), order=order, schedule=schedule, learning_rate=1e-12, max_steps=6)
    trainer.train()
    swept = build("SFT", tmp_path / "b", sums(), selector=Loss(), schedule=Schedule(update_step=1, update_times=1))
    swept.train()
    line = Ledger(tmp_path / "a").segments()[1]
    seen_N = Ledger(tmp_path / "a").signals_of(line)["training_loss"]
    loss_N = Ledger(tmp_path / "b").signals_of(Ledger(tmp_path / "b").segments()[0])["loss"]
    found = np.isfinite(seen_N)
    assert found.sum() == 32
    np.testing.assert_allclose(seen_N[found], loss_N[found], rtol=1e-5)


@pytest.mark.parametrize("name", ["dft", "label smoothing", "packed by bfd", "text"])
def test_a_mixer_reads_the_losses_beside_any_loss_of_the_hosts(tmp_path: Path, name: str) -> None:
    data = sft_data(name)
    if name != "packed by bfd":
        data = data.add_column("dataset", ["ab"[row % 2] for row in range(len(data))])
    options = Options(domain_column="seq" if name == "packed by bfd" else None)
    if name == "packed by bfd":  # blocks of several rows have no domain
        with pytest.raises(ConfigError, match="domain_column is 'seq'"):
            build("SFT", tmp_path, data, mixer=ODM(), options=options, **SFT[name])
        return
    trainer = build("SFT", tmp_path, data, mixer=ODM(), options=options, **SFT[name])
    trainer.train()
    told = [line for line in Ledger(tmp_path).lines() if line["kind"] == "trained"]
    assert all(set(line["domain_losses"]) == {"a", "b"} for line in told)
    assert all(1 < loss < 6 for line in told for loss in line["domain_losses"].values())


def test_all_four_in_one_run_resume_to_the_bit(tmp_path: Path) -> None:
    data = weighted().add_column("dataset", ["ab"[row % 3 == 0] for row in range(61)])
    parts = {
        "selector": Loss(),
        "mixer": ODM(),
        "weigher": [LossWeigher(scope="window"), Column()],
        "order": Sorting(by="loss"),
    }
    saving = {"save_strategy": "steps", "save_steps": 3}
    whole = build("SFT", tmp_path / "whole", data, **parts, **saving)
    whole.train()
    lines = [line for _, line in sorted(Ledger(tmp_path / "whole").segments().items())]
    guided = [line for line in lines if line["update"] is not None]
    assert all(sum(line["mix"]["counts"].values()) == line["num_rows"] for line in lines)
    assert all((line["weigh"], line["order"]) == (["loss", "column"], ["sorting"]) for line in lines)
    for line in guided:
        losses = Ledger(tmp_path / "whole").signals_of(line)["loss"][Ledger(tmp_path / "whole").rows_of(line)]
        assert losses.tolist() == sorted(losses.tolist())
    again = build("SFT", tmp_path / "again", data, **parts, **saving, max_steps=-1)
    again.train()
    import shutil

    for checkpoint in (tmp_path / "again").glob("checkpoint-*"):
        if int(checkpoint.name.split("-")[1]) > 3:
            shutil.rmtree(checkpoint)
    resumed = build("SFT", tmp_path / "again", data, **parts, **saving)
    resumed.train(resume_from_checkpoint=True)
    assert same_weights(whole, resumed)


@pytest.mark.parametrize(
    ("kind", "data", "options", "said"),
    [
        ("SFT", sums, {"loss_type": "dft"}, "compute_loss_func|loss_type is dft"),
        ("SFT", sums, {"label_smoothing_factor": 0.1}, "label_smoothing_factor 0.1 makes another"),
        ("SFT", sums, {"use_liger_kernel": True}, "fused loss of Liger"),
        ("DPO", pairs, {}, "rows of this kind"),
        ("Reward", pairs, {}, "rows of this kind"),
        ("KTO", rated, {}, "rows of this kind"),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_what_has_no_loss_of_a_rows_tokens_is_refused(
    tmp_path: Path, kind: str, data: Any, options: Any, said: str
) -> None:
    pytest.importorskip("liger_kernel") if "use_liger_kernel" in options else None
    with pytest.raises(ConfigError, match=said):
        build(kind, tmp_path, data(), weigher=Ones(), **options)


def test_a_mixture_of_pairs_needs_no_losses(tmp_path: Path) -> None:
    """DPO: proportions that are given work on any rows."""
    data = pairs()
    trainer = build(
        "DPO", tmp_path, data, mixer=StaticMix(proportions="uniform"), options=Options(domain_column="kind")
    )
    trainer.train()
    line = Ledger(tmp_path).segments()[1]
    counts = list(line["mix"]["counts"].values())
    assert sum(counts) == line["num_rows"]
    assert max(counts) - min(counts) <= 1
