"""What a forward and a training step cost, against sums by hand."""

from __future__ import annotations

import numpy as np
import peft
import pytest
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from dataflex.signals.flops import flops_of

H, I, L, V, R = 16, 40, 3, 50, 4  # noqa: E741
TOKENS = np.array([1, 7, 30])


def llama(*, tied: bool = False) -> LlamaForCausalLM:
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=H,
            intermediate_size=I,
            num_hidden_layers=L,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=V,
            tie_word_embeddings=tied,
        )
    )


LAYERS = L * (2 * H * H + 2 * H * (H // 2) + 3 * H * I)


@pytest.mark.parametrize("tied", [False, True])
def test_a_forward_multiplies_each_weight_once_a_token(tied):
    flops = flops_of(llama(tied=tied))
    assert flops.weights == LAYERS + H * V  # the head; looking up an embedding costs nothing
    np.testing.assert_allclose(
        flops.forward(TOKENS), 2 * (LAYERS + H * V) * TOKENS + 2 * L * H * TOKENS.astype(float) ** 2
    )
    np.testing.assert_allclose(flops.training(TOKENS), 3 * flops.forward(TOKENS))


def test_an_adapter_needs_no_gradients_of_what_is_frozen():
    config = peft.LoraConfig(r=R, target_modules=["q_proj"], task_type="CAUSAL_LM")
    flops = flops_of(peft.get_peft_model(llama(), config))
    adapter = L * 2 * H * R
    assert flops.weights == LAYERS + H * V + adapter
    share = adapter / flops.weights
    np.testing.assert_allclose(flops.training(TOKENS), (2 + share) * flops.forward(TOKENS))


def test_a_token_meets_its_experts_alone():
    config = MixtralConfig(
        hidden_size=H,
        intermediate_size=I,
        num_hidden_layers=L,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=V,
        num_local_experts=8,
        num_experts_per_tok=2,
    )
    flops = flops_of(MixtralForCausalLM(config))
    attention = 2 * H * H + 2 * H * (H // 2)
    assert flops.weights == pytest.approx(L * (attention + 2 * 3 * H * I + 8 * H) + H * V)


def test_a_reference_doubles_a_forward_and_adds_one_to_a_step():
    alone, beside = flops_of(llama()), flops_of(llama(), has_reference=True)
    np.testing.assert_allclose(beside.forward(TOKENS), 2 * alone.forward(TOKENS))
    np.testing.assert_allclose(beside.training(TOKENS), 4 * alone.forward(TOKENS))
