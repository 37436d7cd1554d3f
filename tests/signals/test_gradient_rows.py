"""Every row of a batch has the gradient that autograd gives it alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers as hf
from gradient_reference import captured_gradients, distance, looped_gradients, source_of
from tiny_models import COMMON, MODELS, NEVER_SCORED, Row, collate, make_model, make_rows
from torch import nn

from dataflex.core.errors import ConfigError, DataFlexError
from dataflex.signals.gradient.signal import GradientSignal
from dataflex.signals.gradient.targets import GroupVectors
from dataflex.signals.gradient.verify import verify
from dataflex.signals.gradient.weights import trainable_weights

CLOSE = 1e-5  # of the row's norm
ROWS = make_rows()


class ExpertMlps(nn.Module):
    """Experts as modules of their own, each called on the tokens that were sent to it, as older Transformers has it."""

    def __init__(self, width: int, num_experts: int) -> None:
        super().__init__()
        self.gate = nn.Linear(width, num_experts, bias=False)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 8), nn.SiLU(), nn.Linear(8, width)) for _ in range(num_experts)
        )

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        flat = hidden.reshape(-1, hidden.shape[-1])
        weights, chosen = self.gate(flat).softmax(-1).topk(2)
        out = torch.zeros_like(flat)
        for number, expert in enumerate(self.experts):
            token, place = (chosen == number).nonzero(as_tuple=True)
            if len(token):
                out.index_add_(0, token, expert(flat[token]) * weights[token, place][:, None])
        return out.view_as(hidden)


def moe() -> nn.Module:
    model = make_model("llama")
    for layer in model.model.layers:
        layer.mlp = ExpertMlps(32, 4)
    return model


def with_shared_weights() -> nn.Module:
    """One weight in two modules, and one module that is called twice."""
    model = make_model("llama")
    first, second = model.model.layers
    second.mlp.up_proj.weight = first.mlp.up_proj.weight
    second.self_attn.o_proj = first.self_attn.o_proj
    return model


def lora_with_dropout() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(
        hf.LlamaForCausalLM(hf.LlamaConfig(**COMMON)),
        LoraConfig(r=4, lora_dropout=0.5, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM"),
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.2)
    return model


def tied() -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**COMMON, tie_word_embeddings=True))


BUILDERS: dict[str, Callable[[], nn.Module]] = {
    **{name: (lambda name=name: make_model(name)) for name in MODELS},
    "lora_with_dropout": lora_with_dropout,
    "shared": with_shared_weights,
    "tied": tied,
}


def no_fused_experts(name: str) -> bool:
    return "experts" not in name


def compared(model: nn.Module, rows: list[Row] = ROWS, **options: Any) -> float:
    """Distance of the worst row."""
    fused = any("experts" in name for name, _ in model.named_parameters())
    weights = trainable_weights(model, no_fused_experts if fused else None)
    modes = [module.training for module in model.modules()]
    model.eval()
    wanted = looped_gradients(model, rows, weights)
    for module, mode in zip(model.modules(), modes, strict=True):
        module.training = mode
    found = captured_gradients(model, rows, weights, **options)
    assert set(found) == set(range(len(rows)))
    return max(distance(found[row], wanted[row]) for row in wanted)


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("batch_tokens", [1, 512], ids=["one row", "batches"])
def test_a_row_has_the_gradient_that_autograd_gives_it_alone(name: str, batch_tokens: int) -> None:
    model = BUILDERS[name]()
    used_twice = ["model.layers.0.self_attn.o_proj.weight"] if name == "shared" else []
    assert compared(model.train(), batch_tokens=batch_tokens, repeated=used_twice) < CLOSE


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_is_no_part_of_a_row(side: str) -> None:
    # Output that tells of more than tokens: the host's own batches are taken, not ours.
    def collator(features: list[Row]) -> dict[str, torch.Tensor]:
        batch = collate(features, side=side, multiple=16)
        return {**batch, "position_ids": (batch["attention_mask"].cumsum(1) - 1).clamp(min=0), "token_type_ids": None}

    assert compared(make_model("llama"), collator=collator) < CLOSE


def packed(features: list[Row]) -> dict[str, Any]:
    """Rows end to end in one sequence, their positions counted from 0; a column that no fast way knows."""
    return {
        "input_ids": torch.tensor([[token for f in features for token in f["input_ids"]]]),
        "labels": torch.tensor([[label for f in features for label in f["labels"]]]),
        "position_ids": torch.tensor([[at for f in features for at in range(len(f["input_ids"]))]]),
        "inputs_embeds": None,
    }


def test_rows_packed_into_one_sequence_are_told_apart() -> None:
    rows = [row for number, row in enumerate(ROWS) if number not in NEVER_SCORED]
    seen = []

    def collator(features: list[Row]) -> dict[str, Any]:
        seen.append(len(features))
        return packed(features)

    model = make_model("llama")
    wanted = looped_gradients(model, rows, trainable_weights(model))
    calls = []
    handle = model.register_forward_hook(lambda *a: calls.append(1))
    found = captured_gradients(model, rows, trainable_weights(model), collator=collator, batch_tokens=512)
    handle.remove()
    assert max(distance(found[row], wanted[row]) for row in wanted) < CLOSE
    assert len(calls) < len(rows)  # several rows a forward


@pytest.mark.parametrize("name", ["llama", "gpt2", "lora", "lora_with_dropout"])
@pytest.mark.parametrize("reentrant", [True, False], ids=["reentrant", "not reentrant"])
def test_gradient_checkpointing_is_kept_and_changes_nothing(name: str, reentrant: bool) -> None:
    model = BUILDERS[name]().train()
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    model.enable_input_require_grads()
    layer = next(m for m in model.modules() if hasattr(m, "self_attn") or hasattr(m, "attn"))
    modes: list[bool] = []
    inner = getattr(layer, "self_attn", None) or layer.attn  # newer versions run the layer's own hooks once
    inner.register_forward_pre_hook(lambda module, args: modes.append(module.training))
    forwards: list[int] = []
    model.register_forward_hook(lambda *args: forwards.append(1))
    found = captured_gradients(model, ROWS, trainable_weights(model))
    inside = len(modes)
    # As many forwards of the layer again in the backward, of all batches but the two of the loss signal's check.
    assert inside == 2 * len(forwards) - 2
    model.eval()
    wanted = looped_gradients(model, ROWS, trainable_weights(model))
    assert max(distance(found[row], wanted[row]) for row in wanted) < CLOSE


def test_half_precision_by_autocast_is_near() -> None:
    def autocast() -> Any:
        return torch.autocast("cpu", dtype=torch.bfloat16)

    assert 1e-5 < compared(make_model("llama"), autocast=autocast) < 0.1


def test_experts_kept_as_modules_are_measured_a_row_at_a_time() -> None:
    model = moe()
    weights = trainable_weights(model)
    verdict = verify(source_of(model, ROWS), weights, np.array([1, 3]))
    assert "cannot be told apart" in verdict.why_single
    assert not verdict.repeated
    assert compared(model, batch_tokens=1) < CLOSE


def test_rows_of_an_ordinary_model_may_be_batched_and_modules_called_twice_are_found() -> None:
    model = with_shared_weights()
    verdict = verify(source_of(model, ROWS), trainable_weights(model), np.array([1, 3]))
    assert verdict.why_single == ""
    assert verdict.repeated == {"model.layers.0.self_attn.o_proj.weight", "model.layers.0.mlp.up_proj.weight"}


def test_a_weight_used_outside_of_its_module_is_refused() -> None:
    model = make_model("llama")
    mlp = model.model.layers[0].mlp
    mlp.forward = lambda x: nn.functional.linear(
        nn.functional.silu(mlp.gate_proj(x)) * mlp.up_proj(x), mlp.down_proj.weight
    )
    with pytest.raises(DataFlexError, match=r"layers\.0\.mlp\.down_proj\.weight cannot be taken"):
        verify(source_of(model, ROWS), trainable_weights(model), np.array([1, 3]))


@pytest.mark.skipif(not hasattr(hf.models.mixtral.modeling_mixtral, "MixtralExperts"), reason="experts are modules")
def test_experts_kept_as_one_tensor_are_refused_unless_a_part_was_asked_for() -> None:
    model = make_model("mixtral")
    with pytest.raises(ConfigError, match=r"in no linear module .*experts"):
        trainable_weights(model)
    asked = trainable_weights(model, no_fused_experts)
    assert any("experts" in name for name in asked.left_out)


def test_embeddings_and_tied_heads_are_left_out_and_a_head_of_its_own_is_not() -> None:
    assert "model.embed_tokens.weight" in trainable_weights(tied()).left_out
    assert "lm_head.weight" in [weight.name for weight in trainable_weights(make_model("llama")).included]
    assert not any("embed" in weight.name for weight in trainable_weights(make_model("llama")).included)


def test_nothing_trainable_and_dora_are_refused() -> None:
    frozen = make_model("llama").requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable linear module"):
        trainable_weights(frozen)
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=2, use_dora=True, target_modules=["q_proj"], task_type="CAUSAL_LM")
    with pytest.raises(ConfigError, match="DoRA"):
        trainable_weights(peft.get_peft_model(make_model("llama"), config))


def test_sharded_weights_are_refused() -> None:
    model = make_model("llama")
    next(model.parameters()).ds_id = 0  # as ZeRO-3 marks them
    with pytest.raises(ConfigError, match=r"sharded.*ZeRO-3"):
        trainable_weights(model)


def test_a_pass_leaves_the_model_as_it_was() -> None:
    model = lora_with_dropout().train()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.base_model.model.model.layers[0].eval()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    trained[0].grad = torch.full_like(trained[0], 7.0)
    accumulated: list[int] = []
    for parameter in trained:
        parameter.register_hook(lambda gradient: accumulated.append(1))

    def told() -> Any:
        hooks = [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.modules()]
        state = [(m.training, getattr(m, "gradient_checkpointing", None)) for m in model.modules()]
        grads = [None if p.grad is None else p.grad.tolist() for p in model.parameters()]
        values = [float(p.detach().double().sum()) for p in model.parameters()]
        return (
            hooks,
            state,
            [p.requires_grad for p in model.parameters()],
            grads,
            values,
            torch.get_rng_state().tolist(),
        )

    before = told()
    weights = trainable_weights(model)
    captured_gradients(model, ROWS, weights)
    assert told() == before
    assert torch.is_grad_enabled()

    class Fails(GroupVectors):
        def finish(self) -> torch.Tensor:
            raise ZeroDivisionError

    signal = GradientSignal(source_of(model, ROWS), weights, Fails(weights, np.zeros(len(ROWS), int)))
    with pytest.raises(ZeroDivisionError), signal.engaged(np.array([1, 3])):
        signal.measure(signal.prepare(np.array([1, 3])))
    assert told() == before
    assert accumulated == []
    model(input_ids=torch.tensor([[3, 4, 5]]), labels=torch.tensor([[3, 4, 5]])).loss.backward()
    assert len(accumulated) == len(trained)
