"""An adapter that adds nothing: the losses of the base model, under a key that every such run shares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_models import make_model, make_rows, measured_losses

from dataflex.signals.adapter import adds_nothing, without_adapter
from dataflex.signals.cache import weights_digest

ROWS = make_rows()


def adapted(seed: int = 0, **changes: Any) -> torch.nn.Module:
    config = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM", "lora_dropout": 0.5, **changes}
    base = make_model("llama")
    torch.manual_seed(seed)
    return get_peft_model(base, LoraConfig(**config))


def test_an_adapter_as_it_is_made_adds_nothing_and_the_base_model_has_no_adapter() -> None:
    assert adds_nothing(adapted())
    assert not adds_nothing(make_model("llama"))


@pytest.mark.parametrize(
    "changes",
    [
        {"init_lora_weights": "pissa"},
        {"init_lora_weights": False},
        {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
        {"bias": "all"},
        {"use_dora": True},
        {"trainable_token_indices": [3, 4]},
    ],
    ids=str,
)
def test_whatever_may_differ_from_the_base_model_is_told_apart(changes: dict[str, Any]) -> None:
    assert not adds_nothing(adapted(**changes))


def test_one_trained_element_is_something() -> None:
    model = adapted()
    name, last = [(n, p) for n, p in model.named_parameters() if "lora_B" in n][-1]
    with torch.no_grad():
        last[-1, -1] = 1e-30
    assert not adds_nothing(model), name


def test_a_base_weight_that_is_trained_beside_it_is_something() -> None:
    model = adapted()
    model.get_input_embeddings().weight.requires_grad_(True)
    assert not adds_nothing(model)


def test_the_losses_without_it_are_those_with_it_bit_by_bit() -> None:
    model = adapted()
    with_it = measured_losses(model.eval(), ROWS, fast=True)
    with without_adapter(model):
        without = measured_losses(model, ROWS, fast=True)
    np.testing.assert_array_equal(with_it, without)
    np.testing.assert_array_equal(without, measured_losses(make_model("llama"), ROWS, fast=True))


def test_the_adapter_is_off_inside_and_as_it_was_afterwards() -> None:
    model = adapted()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    frozen = next(p for n, p in model.named_parameters() if "lora_A" in n)
    frozen.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    trained = measured_losses(model.eval(), ROWS)
    with without_adapter(model):
        base = measured_losses(model, ROWS)
    np.testing.assert_array_equal(base, measured_losses(make_model("llama"), ROWS))
    assert not np.allclose(base, trained, equal_nan=True)
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == before
    np.testing.assert_array_equal(measured_losses(model, ROWS), trained)


def test_the_key_is_the_base_models_whatever_the_adapter() -> None:
    base = weights_digest(make_model("llama"))
    digests = {weights_digest(adapted(seed, r=r), "base") for seed, r in ((0, 4), (1, 4), (0, 2))}
    assert digests == {base}
    assert weights_digest(adapted(target_modules=["q_proj"]), "base") == base
    assert weights_digest(adapted(0)) != weights_digest(adapted(1)), "with the adapter every element counts"
    other = adapted()
    with torch.no_grad():
        other.get_input_embeddings().weight[5, 5] += 1e-3
    assert weights_digest(other, "base") != base
