"""Targets, references and answers with TRL: rows are made ready as the trainer makes its own, or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from tiny import make_sums
from trl_runs import build, pairs, same_weights, sums

from dataflex import Adapt, ClusterLess, Ifd, InfoBatch, Less, Near, Options, Random, Rho1, RhoLoss, Tsds
from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.ledger.audit import audit
from dataflex.ledger.ledger import Ledger
from dataflex.train.rederive import rederive

KEPT = ("input_ids", "completion_mask", "labels")


def wanted(num_rows: int = 6) -> Dataset:
    return Dataset.from_list([{**row, "of": "ab"[i % 2]} for i, row in enumerate(make_sums(num_rows, seed=9))])


def guided(run: Path) -> list[tuple[dict[str, Any], dict[str, np.ndarray]]]:
    ledger = Ledger(run)
    lines = [line for _, line in sorted(ledger.segments().items()) if line["decision"] == "guided"]
    return [(line, ledger.signals_of(line)) for line in lines]


@pytest.mark.parametrize("padding_free", [False, True])
def test_similarities_are_cosines_of_the_models_own_gradients(tmp_path: Path, padding_free: bool) -> None:
    """Plain ones, so that no moments are needed: at the first decision, from the model as it is built."""
    from dataflex import Schedule

    arguments: dict[str, Any] = {"padding_free": True, "max_length": None} if padding_free else {}
    schedule = Schedule(update_step=2, update_times=2)
    trainer = build(
        "SFT",
        tmp_path,
        sums(),
        selector=Less(gradient_type="sgd"),
        target=wanted(),
        options=Options(target_groups="of", allow_overlap=True),
        schedule=schedule,
        **arguments,
    )
    model = build("SFT", tmp_path / "twin", sums()).model.eval()
    collate = trainer.data_collator

    def gradient(row: dict[str, Any]) -> torch.Tensor:
        model.zero_grad()
        batch = collate([{name: row[name] for name in row if name in KEPT}])
        batch = {name: value for name, value in batch.items() if torch.is_tensor(value)}
        model(**batch).loss.backward()
        kept = [p.grad.flatten() for n, p in model.named_parameters() if p.grad is not None and _is_linear(model, n)]
        return torch.cat(kept).double()

    targets = [gradient(row) for row in trainer._dataflex.target.dataset]
    targets = [vector / vector.norm() for vector in targets]
    groups = np.arange(len(targets)) % 2
    rows = [trainer.train_dataset[i] for i in range(12)]
    trainer.train()
    _, columns = guided(tmp_path)[0]
    for i, row in enumerate(rows):
        own = gradient(row)
        cosines = np.array([float(own @ vector / own.norm()) for vector in targets])
        for group in (0, 1):
            assert columns[f"similarity_{group}"][i] == pytest.approx(cosines[groups == group].mean(), abs=2e-5)


def _is_linear(model: Any, name: str) -> bool:
    module = model.get_submodule(name.rpartition(".")[0])
    tied = module is model.get_output_embeddings() and model.config.tie_word_embeddings
    return isinstance(module, torch.nn.Linear) and name.endswith("weight") and not tied


SELECTORS = [Less(), ClusterLess(cluster_size=5), Near(), Tsds(max_K=9), Ifd(), InfoBatch()]


@pytest.mark.parametrize("selector", SELECTORS, ids=repr)
def test_a_run_resumes_bitwise_and_audits(tmp_path: Path, selector: Any) -> None:
    needs = bool({"similarities", "target_embeddings"} & selector.needs)

    def run(folder: str, **more: Any) -> Any:
        target = {"target": wanted(), "options": Options(allow_overlap=True)} if needs else {}
        return build("SFT", tmp_path / folder, sums(), selector=selector, **target, **more)

    whole = run("whole", save_strategy="steps", save_steps=3)
    whole.train()
    resumed = run("whole", save_strategy="steps", save_steps=3)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-3"))
    assert same_weights(whole, resumed)
    assert rederive(audit(Ledger(tmp_path / "whole")), whole._dataflex.method) == []


def test_a_reference_and_tokens_by_its_excess(tmp_path: Path) -> None:
    other = build("SFT", tmp_path / "other", sums(), learning_rate=1e-2)
    other.train()
    other.save_model(str(tmp_path / "reference"))
    path = str(tmp_path / "reference")
    trainer = build(
        "SFT", tmp_path / "run", sums(), selector=RhoLoss(reference=path, ratio=0.5), weigher=Rho1(reference=path)
    )
    trainer.train()
    line, columns = guided(tmp_path / "run")[0]
    assert np.isfinite(columns["loss"]).sum() == 2 * line["num_rows"]
    other.model.eval()
    for i in range(5):
        row = other.train_dataset[i]
        batch = other.data_collator([{name: row[name] for name in KEPT if name in row}])
        with torch.no_grad():
            loss = other.model(**{name: value for name, value in batch.items() if torch.is_tensor(value)}).loss
        assert columns["reference_loss"][i] == pytest.approx(loss.item(), rel=1e-4)
    weights = [entry for entry in trainer.state.log_history if any("weight" in name for name in entry)]
    assert weights


def test_rows_near_anchors_count_more(tmp_path: Path) -> None:
    options = Options(allow_overlap=True)
    run = build("SFT", tmp_path, sums(), selector=Random(), weigher=Adapt(tau=0.2), target=wanted(), options=options)
    run.train()
    assert all(np.isfinite(entry["loss"]) for entry in run.state.log_history if "loss" in entry)


@pytest.mark.parametrize(
    ("selector", "said"),
    [
        (Less(gradient_type="sgd"), "a target is of rows of text"),
        (Near(), "a target is of rows of text"),
        (Ifd(), "has a loss of its own"),
    ],
    ids=repr,
)
def test_pairs_are_refused(tmp_path: Path, selector: Any, said: str) -> None:
    needs = bool({"similarities", "target_embeddings"} & selector.needs)
    target = {"target": pairs(4), "options": Options(allow_overlap=True)} if needs else {}
    with pytest.raises((ConfigError, DataFlexError), match=said):
        build("DPO", tmp_path, pairs(), selector=selector, **target).train()
