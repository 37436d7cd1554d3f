"""Methods by a reference, by answers alone, by a former run, and weights by token and anchor: against plain loops."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from test_plain_trainer import NUM_ROWS, VOCAB, collate, make_rows
from test_targets import lora, target_rows, train_until
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from dataflex import S2L, Adapt, Ifd, InfoBatch, Loss, Random, Rho1, RhoLoss, Schedule, dynamic
from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.ledger.audit import audit
from dataflex.ledger.ledger import Ledger
from dataflex.train.mixin import Options
from dataflex.train.rederive import rederive

SCHEDULE = Schedule(update_step=2, update_times=3)
RATE = 0.05
# Of products that a token meets in ``model()``: two layers (2 heads, 1 of keys and values) with an MLP, and the head.
NUM_WEIGHTS = 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24) + 16 * VOCAB


def model(seed: int = 0) -> Any:
    """Without dropout, so that a loop can repeat what is trained."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
        )
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference")
    other = model(5)
    with torch.no_grad():
        other.lm_head.weight.mul_(8)
    other.save_pretrained(path)
    return path


def trainer_of(output_dir: Path, selector: Any = None, *, trained: Any = None, **more: Any) -> Any:
    arguments = {
        "output_dir": str(output_dir),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "report_to": "none",
        "save_strategy": more.pop("save_strategy", "no"),
        "save_steps": 1,
        "disable_tqdm": True,
        "use_cpu": True,
        "seed": 3,
    }
    return dynamic(Trainer)(
        model=trained or model(),
        args=TrainingArguments(**arguments),
        train_dataset=Dataset.from_list(make_rows()),
        data_collator=collate,
        selector=selector or (None if "weigher" in more else Random()),
        schedule=more.pop("schedule", SCHEDULE),
        **more,
    )


def token_losses(of: Any, row: dict[str, Any]) -> torch.Tensor:
    """Losses of a row's label tokens, in evaluation mode."""
    logits = of(input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].float()
    labels = torch.tensor(row["labels"][1:])
    return torch.nn.functional.cross_entropy(logits[labels != -100], labels[labels != -100], reduction="none")


def mean_losses(of: Any, rows: list[dict[str, Any]]) -> np.ndarray:
    of.eval()
    with torch.no_grad():
        return np.array([token_losses(of, row).mean().item() for row in rows])


# --- rho_loss ---


def test_a_references_losses_are_its_own_and_candidates_alone_are_scored(folder: Path, tmp_path: Path) -> None:
    selector = RhoLoss(reference=str(folder), ratio=0.5, cache_dir=str(tmp_path / "cache"))
    trainer = trainer_of(tmp_path / "run", selector)
    trainer.train()
    ledger = Ledger(tmp_path / "run")
    wanted = mean_losses(LlamaForCausalLM.from_pretrained(folder), make_rows())
    for number, line in sorted(ledger.segments().items()):
        columns = ledger.signals_of(line)
        np.testing.assert_allclose(
            columns["reference_loss"], np.where(np.arange(NUM_ROWS) == 9, np.nan, wanted), rtol=1e-4
        )
        measured = np.isfinite(columns["loss"])
        assert measured.sum() == 16 == 2 * line["num_rows"]
        assert line["scoring"]["num_rows"] == 16 + (NUM_ROWS - 1) * (number == 0)
        others = [line["scoring"].get(name) for name in ("other_tokens", "other_macs")]  # what the reference read
        num_tokens = sum(len(row["input_ids"]) for i, row in enumerate(make_rows()) if i != 9)
        assert others == ([num_tokens, num_tokens * NUM_WEIGHTS] if number == 0 else [None, None])
        excess = np.where(measured, columns["loss"] - columns["reference_loss"], -np.inf)
        best = np.argsort(-excess, kind="stable")[: line["num_rows"]]
        assert sorted(ledger.rows_of(line).tolist()) == sorted(best.tolist())
    assert rederive(audit(ledger), trainer._dataflex.method) == []
    trainer_of(tmp_path / "other", selector).train()
    assert Ledger(tmp_path / "other").segments()[0]["scoring"]["num_rows"] == 16, "the reference's are kept"
    assert "reference_weights" not in ledger.run()


def test_self_is_the_model_without_its_adapter(tmp_path: Path) -> None:
    selector = RhoLoss(reference="self", allow_self=True, ratio=0.5)
    adapted = lora()
    trainer = trainer_of(tmp_path / "run", selector, trained=adapted)
    with adapted.disable_adapter():
        wanted = mean_losses(adapted, make_rows())
    trainer.train()
    columns = Ledger(tmp_path / "run").signals_of(Ledger(tmp_path / "run").segments()[2])
    np.testing.assert_allclose(columns["reference_loss"], np.where(np.arange(NUM_ROWS) == 9, np.nan, wanted), rtol=1e-4)
    with pytest.raises(ConfigError, match="reference: self is the model without its adapter, and this run trains none"):
        trainer_of(tmp_path / "full", selector).train()


# --- ifd ---


def tokenizer(begin: int = 1) -> Any:
    """Tokens are letters; enough of a tokenizer for answers."""

    class Letters:
        bos_token_id = begin

        def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
            return "".join(chr(97 + i) for i in ids if not (skip_special_tokens and i < 3))

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [ord(letter) - 97 for letter in text]}

    return Letters()


@pytest.mark.parametrize("header", ["", "xy"])
def test_answers_after_their_prompts_and_alone(tmp_path: Path, header: str) -> None:
    scored = model()
    trainer = trainer_of(tmp_path / "run", Ifd(header=header), trained=scored)
    trainer.processing_class = tokenizer()
    rows = make_rows()
    with_prompt = mean_losses(model(), rows)
    before = [1, *(ord(letter) - 97 for letter in header)]
    alone = [
        {"input_ids": [*before, *row["input_ids"][2:]], "labels": [*[-100] * len(before), *row["labels"][2:]]}
        for row in rows
    ]
    direct = mean_losses(model(), alone)
    trainer.train()
    ledger = Ledger(tmp_path / "run")
    columns = ledger.signals_of(ledger.segments()[0])
    known = np.arange(NUM_ROWS) != 9
    np.testing.assert_allclose(columns["answer_loss"][known], with_prompt[known], rtol=1e-4)
    np.testing.assert_allclose(columns["answer_loss_alone"][known], direct[known], rtol=1e-4)
    np.testing.assert_allclose(columns["ifd"][known], np.exp(with_prompt - direct)[known], rtol=1e-3)
    assert ledger.segments()[2]["scoring"] is None, "measured once"
    assert rederive(audit(ledger), trainer._dataflex.method) == []


def test_a_small_model_reads_the_text_with_its_own_tokens(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its tokens are others: every letter one further, and it takes 12 at most."""
    import transformers

    class Further(type(tokenizer())):
        bos_token_id = 2

        def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
            return {"input_ids": [(ord(letter) - 97 + 1) % VOCAB for letter in text]}

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda path: Further())
    small = LlamaForCausalLM.from_pretrained(folder)
    small.config.max_position_embeddings = 12
    small.save_pretrained(tmp_path / "small")
    trainer = trainer_of(tmp_path / "run", Ifd(model=str(tmp_path / "small")))
    trainer.processing_class = tokenizer()
    trainer.train()
    columns = Ledger(tmp_path / "run").signals_of(Ledger(tmp_path / "run").segments()[0])
    both = []
    for row in make_rows():
        prompt = [(i + 1) % VOCAB for i in row["input_ids"][:2] if i >= 3]
        answer = [(i + 1) % VOCAB for i in row["input_ids"][2:]][: 12 - 1 - len(prompt)]
        pair = []
        for before in ([2, *prompt], [2]):
            pair.append({"input_ids": [*before, *answer], "labels": [*[-100] * len(before), *answer]})
        both.append(pair)
    known = np.arange(NUM_ROWS) != 9
    for column, which in (("answer_loss", 0), ("answer_loss_alone", 1)):
        wanted = mean_losses(small, [pair[which] for pair in both])
        np.testing.assert_allclose(columns[column][known], wanted[known], rtol=1e-4)
    scoring = Ledger(tmp_path / "run").segments()[0]["scoring"]
    matrices = [p for name, p in small.named_parameters() if p.dim() == 2 and "embed_tokens" not in name]
    assert scoring["other_tokens"] == scoring["num_tokens"] > 0  # all of both readings
    assert scoring["other_macs"] == scoring["num_tokens"] * sum(p.numel() for p in matrices)


def test_answers_need_a_token_to_begin_with(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, Ifd())
    trainer.processing_class = SimpleNamespace()
    with pytest.raises(ConfigError, match=r"has no token to begin a text with"):
        trainer.train()


# --- s2l ---


def test_trajectories_are_what_a_former_run_recorded(tmp_path: Path) -> None:
    trainer_of(tmp_path / "former", Loss()).train()
    trainer = trainer_of(tmp_path / "run", S2L(path=str(tmp_path / "former"), n_clusters=3))
    trainer.train()
    former, ledger = Ledger(tmp_path / "former"), Ledger(tmp_path / "run")
    losses = np.stack([former.signals_of(line)["loss"] for _, line in sorted(former.segments().items())], axis=1)
    from dataflex.algorithms.select.s2l import k_means

    known = np.isfinite(losses).any(axis=1)
    found = ledger.signals_of(ledger.segments()[0])["cluster"]
    assert found[known].tolist() == k_means(losses[known].astype(float), 3, 20, 0).tolist()
    assert found[9] == -1
    assert rederive(audit(ledger), trainer._dataflex.method) == []


def test_a_run_without_losses_or_of_other_rows_has_no_trajectories(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no record of a run"):
        trainer_of(tmp_path / "a", S2L(path=str(tmp_path / "nothing"))).train()
    trainer_of(tmp_path / "random", Random()).train()
    with pytest.raises(DataFlexError, match="recorded no losses"):
        trainer_of(tmp_path / "b", S2L(path=str(tmp_path / "random"))).train()


# --- infobatch, rho1, adapt: what is trained, by a loop of our own ---

Coefficients = Callable[[Any, list[int], int], list[torch.Tensor]]


def trained_by_loop(segments: list[tuple[int, list[int]]], coefficients: Coefficients) -> Any:
    """SGD on sum c_it l_it / sum T_i of each step, micro-batches of two rows, two of them a step."""
    of, rows = model(), make_rows()
    for step, of_step in segments:
        num_tokens = sum(len(token_losses(of, rows[i])) for i in of_step)
        of.zero_grad()
        for start in (0, 2):
            batch = of_step[start : start + 2]
            weights = coefficients(of, batch, step)
            loss = sum((c * token_losses(of, rows[i])).sum() for i, c in zip(batch, weights, strict=True)) / num_tokens
            loss.backward()
        with torch.no_grad():
            for parameter in of.parameters():
                if parameter.grad is not None:
                    parameter -= RATE * parameter.grad
    return of


def steps_of(ledger: Ledger) -> list[tuple[int, list[int]]]:
    return [
        (step, ledger.rows_of(line)[4 * (step - line["start"]) :][:4].tolist())
        for _, line in sorted(ledger.segments().items())
        for step in range(line["start"], line["stop"])
    ]


def assert_close(one: Any, other: Any) -> None:
    for (name, a), b in zip(one.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-6, msg=name)


def test_infobatch_trains_what_is_kept_with_the_weight_of_what_is_not(tmp_path: Path) -> None:
    schedule = Schedule(update_step=2, update_times=8)
    trainer = trainer_of(tmp_path, InfoBatch(delta=1.0), schedule=schedule)
    trainer.train()
    ledger = Ledger(tmp_path)
    factors = {}
    for _, line in ledger.segments().items():
        for step in range(line["start"], line["stop"]):
            factors[step] = ledger.signals_of(line)["factor"]
    assert any((f > 1).any() for f in factors.values())
    wanted = trained_by_loop(steps_of(ledger), lambda of, batch, step: [torch.tensor(factors[step][i]) for i in batch])
    assert_close(trainer.model, wanted)
    assert rederive(audit(ledger), trainer._dataflex.method) == []


def test_rho1_trains_the_tokens_of_largest_excess(folder: Path, tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, weigher=Rho1(reference=str(folder), keep=0.5), selector=Random())
    trainer.train()
    assert Ledger(tmp_path).run()["reference_weights"] == NUM_WEIGHTS
    reference = LlamaForCausalLM.from_pretrained(folder)

    def coefficients(of: Any, batch: list[int], step: int) -> list[torch.Tensor]:
        batch = sorted(batch)
        with torch.no_grad():
            excess = [token_losses(of, make_rows()[i]) - token_losses(reference, make_rows()[i]) for i in batch]
        flat = torch.cat(excess)
        kept = torch.zeros(len(flat))
        count = -(-len(flat) // 2)
        kept[torch.argsort(-flat, stable=True)[:count]] = len(flat) / count
        return list(kept.split([len(part) for part in excess]))

    def in_order(of: Any, batch: list[int], step: int) -> list[torch.Tensor]:
        by_row = dict(zip(sorted(batch), coefficients(of, batch, step), strict=True))
        return [by_row[i] for i in batch]

    assert_close(trainer.model, trained_by_loop(steps_of(Ledger(tmp_path)), in_order))


def vector(of: Any, row: dict[str, Any]) -> torch.Tensor:
    with torch.no_grad():
        states = of(input_ids=torch.tensor([row["input_ids"]]), output_hidden_states=True).hidden_states[-1][0]
    total = sum((t + 1) * state for t, state in enumerate(states))
    return total / total.norm()


def test_adapt_weighs_rows_by_their_nearness_to_anchors_read_anew(tmp_path: Path) -> None:
    anchors = target_rows()
    trainer = trainer_of(tmp_path, Random(), weigher=Adapt(tau=0.3, refresh=2), target=anchors)
    trainer.train()
    middle = {}

    def coefficients(of: Any, batch: list[int], step: int) -> list[torch.Tensor]:
        if step - step % 2 not in middle:
            middle[step] = torch.stack([vector(of, row) for row in anchors]).mean(0)
        mean = middle[step - step % 2]
        return [torch.sigmoid(vector(of, make_rows()[i]) @ mean / 0.3) for i in batch]

    assert_close(trainer.model, trained_by_loop(steps_of(Ledger(tmp_path)), coefficients))


def test_adapt_needs_a_target_and_resumes_bitwise(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="adapt weighs rows by a target, and none is named"):
        trainer_of(tmp_path / "none", Random(), weigher=Adapt())

    def run(folder: str) -> Any:
        return trainer_of(
            tmp_path / folder, Random(), weigher=Adapt(refresh=4), target=target_rows(), save_strategy="steps"
        )

    whole = run("whole")
    whole.train()

    train_until(run("cut"), 3)
    again = run("cut")
    again.train(resume_from_checkpoint=True)
    for (name, one), other in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_mean_one_beside_infobatch_is_refused(tmp_path: Path) -> None:
    from dataflex import LossWeigher

    with pytest.raises(ConfigError, match="normalize: mean_one cancels the weights by which infobatch stays unbiased"):
        trainer_of(tmp_path, InfoBatch(), weigher=LossWeigher(), options=Options(normalize="mean_one"))
