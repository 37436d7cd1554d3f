"""The reference model: the loss it gives to the same tokens, the excess over it by domain, and what is no reference."""

from __future__ import annotations

import copy
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from test_plain_trainer import VOCAB
from test_trained_loss import NUM_TOKENS, POOL, joined, labels_of, model_without_dropout, own_losses, padded, watch
from test_weighing import NUM_ROWS, assert_same_weights, domains, rows_with, train
from transformers import LlamaConfig, LlamaForCausalLM
from two_threads import on_ranks, one_rank

from dataflex import DoReMi, Schedule
from dataflex.algorithms.mix.doremi import excess_sums
from dataflex.core.errors import ConfigError
from dataflex.train import reference as module
from dataflex.train.reference import Excess, Reference
from dataflex.train.trained_loss import TrainedLoss

DOMAIN = np.array([0, 1, 0, 2, 1, 0])  # of each row of POOL; row 4 has no label


def other_model() -> Any:
    """Another model of the same tokens."""
    torch.manual_seed(5)
    model = LlamaForCausalLM(model_without_dropout().config)
    with torch.no_grad():
        model.lm_head.weight.mul_(8)
    return model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("reference")
    other_model().save_pretrained(path)
    return path


def reference(path: Path, trained: Any = None) -> Reference:
    return Reference(str(path), trained or model_without_dropout(), Accelerator(cpu=True))


@pytest.mark.parametrize("layout", [padded, joined])
def test_its_losses_are_those_of_the_model_in_the_folder(folder: Path, layout: Any) -> None:
    rows = [2, 0, 5]
    found = reference(folder).losses(layout(rows))
    with torch.no_grad():
        wanted = torch.cat([own_losses(other_model().eval(), row) for row in rows])
    labels = torch.nn.functional.pad(layout(rows)["labels"], (0, 1), value=-100)[:, 1:]
    np.testing.assert_allclose(found[labels != -100], wanted, rtol=1e-4)
    assert not found[labels == -100].any()
    assert (found.dtype, found.requires_grad) == (torch.float32, False)


def test_an_adapters_folder_is_the_adapter_on_its_base(folder: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    base = LlamaForCausalLM.from_pretrained(folder)
    tuned = get_peft_model(base, config)
    tuned.peft_config["default"].base_model_name_or_path = str(folder)
    tuned.save_pretrained(str(tmp_path))
    with torch.no_grad():
        wanted = own_losses(tuned.eval(), 2)
        plain = own_losses(other_model().eval(), 2)
    found = reference(tmp_path).losses(padded([2]))[0, 1:8]
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
    assert not np.allclose(found, plain, rtol=1e-3)


def test_it_looks_at_the_rows_as_the_trained_model_does(folder: Path) -> None:
    trained = LlamaForCausalLM.from_pretrained(folder, attn_implementation="eager", dtype=torch.bfloat16)
    model = reference(folder, trained).model
    assert model.config._attn_implementation == "eager"
    assert model.dtype == torch.bfloat16
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())


# excess


@pytest.mark.parametrize("layout", [padded, joined])
def test_the_excess_is_that_of_the_definition_over_micro_batches_and_ranks(folder: Path, layout: Any) -> None:
    original, base = model_without_dropout(), other_model().eval()
    deals = [[[2, 0, 4], [3]], [[1, 5], [0, 2]]]  # by rank: micro-batches of one step; rows come twice
    references = [reference(folder), reference(folder)]

    def work(ranks: Any) -> Any:
        excess = Excess(references[ranks.rank], DOMAIN, 3, ranks)
        trained = TrainedLoss(ranks=ranks, num_tokens_N=NUM_TOKENS, excess=excess)
        model = copy.deepcopy(original)
        for rows in deals[ranks.rank]:
            watch(model, rows, layout(rows), trained)
        return trained.take_step(), trained.take_step()

    rows = [row for deal in deals for part in deal for row in part]
    with torch.no_grad():
        own, theirs = ([own_losses(m, row).numpy() for row in rows] for m in (original, base))
    sums_D, tokens_D = excess_sums(own, theirs, DOMAIN[rows], 3)
    assert any(np.any(a < b) for a, b in zip(own, theirs, strict=True)), "clipping by token shows"
    for found, after in on_ranks(2, work):
        np.testing.assert_allclose(found["domain_excess_sums"], sums_D, rtol=1e-4)
        assert found["domain_tokens"].tolist() == tokens_D.tolist()
        assert not after["domain_excess_sums"].any(), "a step begins anew"
        assert not after["domain_tokens"].any()


def test_the_golden_trace_of_the_excess() -> None:
    own = torch.tensor([[2, 1, 0.5, 0], [1.2, 0.4, 0, 0], [3, 2.5, 0.1, 0.9]])
    theirs = torch.tensor([[1.5, 1.4, 0.5, 0], [0.8, 0.9, 0, 0], [2, 2.6, 0.3, 0.2]])
    has_label = torch.tensor([[True] * 3 + [False], [True] * 2 + [False] * 2, [True] * 4])
    found = _excess(own, theirs, has_label)
    lambda_D = found["domain_excess_sums"] / found["domain_tokens"]
    np.testing.assert_allclose(lambda_D, [0.314286, 0.2], atol=2e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("whose", ["own", "reference"])
def test_a_token_without_two_finite_losses_is_not_counted(whose: str, bad: float) -> None:
    own, theirs = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.5, 0.2]])
    (own if whose == "own" else theirs)[0, 1] = bad
    found = _excess(own, theirs, torch.ones(1, 2, dtype=torch.bool))
    assert (found["domain_excess_sums"][0], found["domain_tokens"][0]) == (0.5, 1)


def _excess(own: torch.Tensor, theirs: torch.Tensor, has_label: torch.Tensor) -> dict[str, np.ndarray]:
    class Said:
        def losses(self, inputs: Any) -> torch.Tensor:
            return theirs

    said: Any = Said()
    excess = Excess(said, np.array([0, 1, 0]), 2, one_rank())
    excess.begin({})
    excess.add(own, has_label, torch.arange(len(own))[:, None].expand(own.shape), np.arange(len(own)))
    return excess.take_step()


@pytest.mark.parametrize("bf16", [False, True])
def test_a_model_has_no_excess_over_itself(bf16: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Under bf16 too: without the host's autocast the rounding of one of both would be taken for excess."""
    steps: list[dict[str, np.ndarray]] = []
    original = Excess.take_step
    monkeypatch.setattr(Excess, "take_step", lambda self: steps.append(original(self)) or steps[-1])
    model = model_without_dropout()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # logits large enough that rounding shows
    model.save_pretrained(tmp_path / "reference")
    train(
        tmp_path / "run",
        model=model,
        data=rows_with(dataset=[domains(row) for row in range(NUM_ROWS)]),
        mixer=DoReMi(step=2, reference=str(tmp_path / "reference")),
        schedule=Schedule(update_step=1, update_times=1),
        args={"max_steps": 1, "bf16": bf16},
    )
    assert steps[0]["domain_tokens"].sum() > 30
    assert (steps[0]["domain_excess_sums"] / steps[0]["domain_tokens"]).max() < 1e-5


@pytest.mark.parametrize("apply", ["loss", "sample"])
def test_doremi_resumes_to_the_bit_inside_a_segment(folder: Path, tmp_path: Path, apply: Any) -> None:
    def run(name: str, **more: Any) -> Any:
        return train(
            tmp_path / name,
            data=rows_with(dataset=[domains(row) for row in range(NUM_ROWS)]),
            mixer=DoReMi(step=2, reference=str(folder), apply=apply),
            schedule=Schedule(warmup_step=2, update_step=4, update_times=4),
            args={"save_strategy": "steps", "save_steps": 1, "max_steps": 8, "gradient_accumulation_steps": 2},
            **more,
        )

    whole, _ = run("whole"), run("again")
    for step in range(5, 9):
        shutil.rmtree(tmp_path / "again" / f"checkpoint-{step}")
    assert_same_weights(run("again", resume=True).model, whole.model)
    found, expected = (tmp_path / name / "dataflex" / "proportions.json" for name in ("again", "whole"))
    assert json.loads(found.read_text()) == json.loads(expected.read_text())


# what is no reference


def refused(path: Path, said: str, trained: Any = None) -> None:
    with pytest.raises(ConfigError, match=said):
        reference(path, trained)


def test_another_vocabulary_is_a_sentence(folder: Path) -> None:
    small = LlamaConfig(**{**model_without_dropout().config.to_dict(), "vocab_size": VOCAB - 8})
    refused(folder, f"has a vocabulary of {VOCAB}, the trained one of {VOCAB - 8}", LlamaForCausalLM(small))


def test_missing_weights_are_a_sentence(folder: Path, tmp_path: Path) -> None:
    """transformers would fill them with random numbers."""
    other_model().save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.layers.0.mlp.up_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    refused(tmp_path, "lacks 1 weights, such as .*up_proj.weight, which would be random")


def test_a_torn_file_is_a_sentence(tmp_path: Path) -> None:
    other_model().save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused(tmp_path, "cannot be loaded")


@pytest.mark.parametrize("content", ["{", "[]", '{"peft_type": "LORA"}'])
def test_a_damaged_adapter_is_a_sentence(content: str, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text(content)
    refused(tmp_path, "adapter_config.json is damaged")


def test_an_adapter_without_its_base_is_a_sentence(tmp_path: Path) -> None:
    config = {"peft_type": "LORA", "base_model_name_or_path": str(tmp_path / "gone")}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    refused(tmp_path, "cannot be loaded")


def test_an_empty_folder_is_a_sentence(tmp_path: Path) -> None:
    refused(tmp_path, "holds neither config.json nor adapter_config.json")


def test_zero_3_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "is_deepspeed_zero3_enabled", lambda: True)
    refused(folder, "not supported with DeepSpeed ZeRO-3")


def test_every_rank_loads_it_whole_under_fsdp(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With this variable transformers loads weights on the first rank only, and leaves the others' random."""
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    during: list[str] = []
    original = module.AutoModelForCausalLM.from_pretrained

    def noted(*args: Any, **kwargs: Any) -> Any:
        during.append(os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"])
        return original(*args, **kwargs)

    monkeypatch.setattr(module.AutoModelForCausalLM, "from_pretrained", noted)
    reference(folder)
    assert during == ["false"]
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "true"


def test_rows_and_labels_of_these_tests_are_what_they_say() -> None:
    assert [len(labels_of(row)) for row in range(len(POOL))] == NUM_TOKENS.tolist()
