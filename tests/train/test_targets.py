"""Selection by gradients in a plain Trainer: what is recorded is what autograd says at that step, and it decides."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from datasets import Dataset
from test_plain_trainer import NUM_ROWS, VOCAB, collate, make_model, make_rows
from transformers import Trainer, TrainingArguments

from dataflex import Icons, Less, Loss, Random, Schedule, Temperature, dynamic
from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.ledger.ledger import Ledger
from dataflex.train.mixin import Options

SCHEDULE = Schedule(warmup_step=2, update_step=2, update_times=2)
BETAS, EPSILON = (0.9, 0.999), 1e-8


def target_rows() -> Dataset:
    rng = np.random.default_rng(5)
    rows = []
    for i in range(7):
        tokens = rng.integers(3, VOCAB, 4 + i).tolist()
        rows.append({"input_ids": tokens, "labels": [-100, *tokens[1:]], "group": f"g{i % 3 % 2}"})
    return Dataset.from_list(rows)


def lora() -> Any:
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=8, lora_dropout=0.1, target_modules="all-linear", task_type="CAUSAL_LM")
    return peft.get_peft_model(make_model(), config)


def make_trainer(output_dir: Path, selector: Any, *, target: Any = None, options: Options | None = None, **more: Any):
    settings: dict[str, Any] = {
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "num_train_epochs": 2,
        "learning_rate": 2e-2,
        "report_to": "none",
        "save_strategy": "no",
        "logging_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
        "remove_unused_columns": True,
    }
    args = {name: more.pop(name) for name in list(more) if name in ("save_strategy", "save_steps", "optim")}
    more.setdefault("schedule", SCHEDULE)
    return dynamic(Trainer)(
        model=more.pop("model", None) or lora(),
        args=TrainingArguments(output_dir=str(output_dir), **{**settings, **args}),
        train_dataset=more.pop("train_dataset", None) or Dataset.from_list(make_rows()),
        data_collator=collate,
        selector=selector,
        target=target,
        options=options or Options(),
        **more,
    )


class KilledError(BaseException):
    """Not an exception that anything on the way would catch."""


def train_until(trainer: Any, step: int) -> None:
    """Train, and end abruptly in the first micro-batch after so many optimizer steps."""
    original = trainer.training_step

    def stop(*args: Any, **kwargs: Any) -> Any:
        if trainer.state.global_step == step:
            raise KilledError
        return original(*args, **kwargs)

    trainer.training_step = stop
    with pytest.raises(KilledError):
        trainer.train()
    trainer._ledger.unlock()


def row_gradient(model: torch.nn.Module, row: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Gradient of one row's mean loss in evaluation mode, by parameter name."""
    model.zero_grad()
    model.eval()
    inputs = {name: torch.tensor([row[name]]) for name in ("input_ids", "labels")}
    model(**inputs).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}


def brute_force(trainer: Any, state: dict[str, Any], targets: Dataset, groups: list[str]) -> np.ndarray:
    """``mean over j in group k of cos(u_i, g_j)`` by two loops, shape (N, G)."""
    model = state["model"]
    wanted = [row_gradient(model, row) for row in targets]
    names = list(dict.fromkeys(groups))
    found = np.full((NUM_ROWS, len(names)), np.nan)
    for i, row in enumerate(make_rows()):
        if all(label == -100 for label in row["labels"][1:]):
            continue
        gradient = row_gradient(model, row)
        update = {}
        for name, g in gradient.items():
            m, v = state["moments"][name]
            root = (BETAS[1] * v + (1 - BETAS[1]) * g * g + EPSILON).sqrt()
            update[name] = (BETAS[0] * m + (1 - BETAS[0]) * g) / root
        cosines = [cosine(update, target) for target in wanted]
        for k, name in enumerate(names):
            found[i, k] = np.mean([c for c, group in zip(cosines, groups, strict=True) if group == name])
    return found


def cosine(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    def dot(a: Any, b: Any) -> float:
        return sum(float((a[name].double() * b[name].double()).sum()) for name in a)

    return dot(one, other) / (dot(one, one) * dot(other, other)) ** 0.5


def watched(trainer: Any) -> list[dict[str, Any]]:
    """Model and moments as they are whenever similarities are measured."""
    seen: list[dict[str, Any]] = []
    measure: Callable[..., Any] = trainer.curator._measure

    def measuring(name: str, progress: Any, rows: Any = None) -> Any:
        if name == "similarities":
            optimizer = trainer.optimizer.optimizer
            state = {n: optimizer.state[p] for n, p in trainer.model.named_parameters() if p in optimizer.state}
            moments = {n: (s["exp_avg"].clone(), s["exp_avg_sq"].clone()) for n, s in state.items()}
            seen.append({"model": copy.deepcopy(trainer.model), "moments": moments})
        return measure(name, progress, rows)

    trainer.curator._measure = measuring
    return seen


def test_similarities_are_those_of_two_loops_of_autograd_and_decide(tmp_path: Path) -> None:
    targets = target_rows()
    trainer = make_trainer(tmp_path, Less(), target=targets, options=Options(target_groups="group"))
    seen = watched(trainer)
    trainer.train()
    ledger = Ledger(tmp_path)
    guided = [line for _, line in sorted(ledger.segments().items()) if line["decision"] == "guided"]
    assert len(guided) == len(seen) == 4
    for line, state in zip(guided, seen, strict=True):
        columns = ledger.signals_of(line)
        found = np.stack([columns["similarity_0"], columns["similarity_1"]], axis=1)
        wanted = brute_force(trainer, state, targets, targets["group"])
        np.testing.assert_allclose(found, wanted, atol=2e-5)
        score = np.where(np.isfinite(wanted).all(axis=1), wanted.max(axis=1), -np.inf)
        best = np.argsort(-score, kind="stable")[: line["num_rows"]]
        assert sorted(ledger.rows_of(line).tolist()) == sorted(best.tolist())
        assert np.isnan(found[9]).all(), "it has no label"
    assert ledger.run()["target"]["groups"] == {"g0": 5, "g1": 2}
    scoring = guided[0]["scoring"]
    assert scoring["gradient_tokens"] == scoring["num_tokens"]
    assert scoring["num_rows"] == NUM_ROWS - 1


def test_training_goes_on_as_if_nothing_had_been_measured(tmp_path: Path) -> None:
    """A pass changes no weight, moment, random number or gradient: a recorded run repeats it without passes."""
    trainer = make_trainer(tmp_path / "less", Less(), target=target_rows())
    trainer.train()
    from dataflex import Replay

    again = make_trainer(tmp_path / "replay", Replay(path=str(tmp_path / "less")))
    again.train()
    for (name, one), other in zip(trainer.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_resume_is_bitwise_and_the_record_audits(tmp_path: Path) -> None:
    def run(folder: str, **more: Any) -> Any:
        selector = Less(aggregate="mean", draw="softmax")
        options = Options(target_groups="group")
        return make_trainer(tmp_path / folder, selector, target=target_rows(), options=options, **more)

    whole = run("whole", save_strategy="steps", save_steps=1)
    whole.train()

    train_until(run("killed", save_strategy="steps", save_steps=1), 4)
    resumed = run("killed", save_strategy="steps", save_steps=1)
    resumed.train(resume_from_checkpoint=True)
    for (name, one), other in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(one, other[1]), name
    for index, line in Ledger(tmp_path / "whole").segments().items():
        assert line["sha256"] == Ledger(tmp_path / "killed").segments()[index]["sha256"], index
    from dataflex.ledger.audit import audit
    from dataflex.train.rederive import rederive

    record = audit(Ledger(tmp_path / "killed"))
    assert rederive(record, resumed._dataflex.method) == []


def test_decisions_before_count_as_their_learning_rates(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, Less(memory="lr_sum"), target=target_rows())
    trainer.train()
    ledger = Ledger(tmp_path)
    guided = [line for _, line in sorted(ledger.segments().items()) if line["decision"] == "guided"]
    rates = [line["notes"]["learning_rate"] for line in guided]
    # Linear from 2e-2 to 0 over 12 steps; decisions stand at steps 2, 4, 8 and 10.
    assert rates == pytest.approx([2e-2 * (12 - step) / 12 for step in (2, 4, 8, 10)])
    similarities = [ledger.signals_of(line)["similarity_0"] for line in guided]
    for number, line in enumerate(guided):
        wanted = np.average(similarities[: number + 1], axis=0, weights=rates[: number + 1])
        np.testing.assert_allclose(ledger.signals_of(line)["score"], wanted, rtol=1e-5, atol=1e-7)
    from dataflex.ledger.audit import audit
    from dataflex.train.rederive import rederive

    assert rederive(audit(ledger), trainer._dataflex.method) == []


@pytest.mark.parametrize("engine", ["ghost", "factorised"])
def test_other_engines_rank_as_the_exact_one_without_adam(tmp_path: Path, engine: Any) -> None:
    found = {}
    for name in ("exact", engine):
        selector = Less(engine=name, gradient_type="sgd", proj_dim=256)
        trainer = make_trainer(tmp_path / name, selector, target=target_rows())
        trainer.train()
        ledger = Ledger(tmp_path / name)
        found[name] = ledger.signals_of(ledger.segments()[1])["similarity_0"]
    finite = np.isfinite(found["exact"])
    assert finite.sum() == NUM_ROWS - 1
    if engine == "ghost":
        np.testing.assert_allclose(found["ghost"], found["exact"], atol=1e-5)
    else:  # an estimate
        assert np.corrcoef(found[engine][finite], found["exact"][finite])[0, 1] > 0.9


def test_icons_and_a_mixer_beside_less(tmp_path: Path) -> None:
    icons = make_trainer(tmp_path / "icons", Icons(), target=target_rows(), options=Options(target_groups="group"))
    icons.train()
    columns = Ledger(tmp_path / "icons").signals_of(Ledger(tmp_path / "icons").segments()[1])
    assert {"votes", "mean_rank", "similarity_0", "similarity_1"} <= columns.keys()
    rows = [{**row, "kind": "ab"[i % 2]} for i, row in enumerate(make_rows())]
    mixed = make_trainer(
        tmp_path / "mixed",
        Less(),
        target=target_rows(),
        mixer=Temperature(temperature=1.0),
        train_dataset=Dataset.from_list(rows),
        options=Options(domain_column="kind"),
    )
    mixed.train()
    ledger = Ledger(tmp_path / "mixed")
    line = ledger.segments()[1]
    scores = ledger.signals_of(line)["score"]
    rows_Q = ledger.rows_of(line)
    for kind in (0, 1):  # the best of each domain
        of_kind = np.flatnonzero((np.arange(NUM_ROWS) % 2 == kind) & np.isfinite(scores))
        chosen = rows_Q[rows_Q % 2 == kind]
        best = of_kind[np.argsort(-scores[of_kind], kind="stable")][: len(chosen)]
        assert sorted(chosen.tolist()) == sorted(best.tolist())


def test_the_users_evaluation_stays_what_it_was(tmp_path: Path) -> None:
    evaluated = target_rows().select(range(3))
    trainer = make_trainer(tmp_path / "a", Less(), target=target_rows(), eval_dataset=evaluated)
    assert trainer.eval_dataset is evaluated
    several = {"one": evaluated}
    trainer = make_trainer(tmp_path / "b", Less(), target=target_rows(), eval_dataset=several)
    assert trainer.eval_dataset == several
    assert make_trainer(tmp_path / "c", Less(), target=target_rows()).eval_dataset is None


REFUSED = [
    (Less(), {}, {}, r"less chooses what serves a target, and none is named; set target"),
    (Random(), {"target": target_rows()}, {}, r"target is set, but random uses none"),
    (
        Less(),
        {"target": target_rows(), "schedule": Schedule(update_step=2)},
        {},
        r"warmup_step is 0.*gradient_type: sgd",
    ),
    (
        Less(),
        {"target": target_rows()},
        {"target_groups": "grup"},
        r"target_groups is 'grup' \(did you mean 'group'\?\)",
    ),
    (
        Less(),
        {"target": Dataset.from_list([{"input_ids": [5, 6, 7], "labels": [-100, -100, -100]}])},
        {},
        r"1 of 1 target rows have no label token",
    ),
    (
        Less(),
        {"target": Dataset.from_list(make_rows()[3:5])},
        {},
        r"2 of 31 rows of the pool are target rows as well \(the first is row 3\).*allow_overlap: true",
    ),
]


@pytest.mark.parametrize(("selector", "more", "options", "sentence"), REFUSED)
def test_what_cannot_be_is_refused_before_training(
    tmp_path: Path, selector: Any, more: dict[str, Any], options: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make_trainer(tmp_path, selector, options=Options(**options), **more)
    assert not (tmp_path / "dataflex").exists()


def test_an_overlap_that_is_allowed_is_on_record(tmp_path: Path) -> None:
    rows = make_rows()[3:5]
    trainer = make_trainer(tmp_path, Less(), target=Dataset.from_list(rows), options=Options(allow_overlap=True))
    trainer.train()
    assert Ledger(tmp_path).run()["target"]["rows_in_pool"] == 2


def test_another_optimizer_is_refused_with_the_remedy(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, Less(), target=target_rows(), optim="sgd")
    with pytest.raises(DataFlexError, match=r"SGD keeps no Adam moments.*gradient_type: sgd"):
        trainer.train()


def test_another_target_is_another_run(tmp_path: Path) -> None:
    first = make_trainer(tmp_path, Less(), target=target_rows(), save_strategy="steps", save_steps=2)
    first.train()
    other = make_trainer(tmp_path, Less(), target=target_rows().select(range(4)), save_strategy="steps", save_steps=2)
    with pytest.raises(DataFlexError, match="target"):
        other.train(resume_from_checkpoint=True)


def test_a_selector_without_gradients_needs_no_target(tmp_path: Path) -> None:
    make_trainer(tmp_path, Loss()).train()
