"""A pass leaves modes, gradients and random streams as they were."""

from __future__ import annotations

import pytest
import torch
from tiny_models import make_model, make_rows, measured_losses
from torch import nn

from dataflex.signals.base import undisturbed


class Noisy(nn.Module):
    """Draws random numbers in its forward, in eval mode too."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + torch.randn(4) + torch.rand(())


def mixed_modes() -> nn.Module:
    """In training mode, but for two modules that the user had frozen in eval mode."""
    model = nn.Sequential(Noisy(), nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4)), nn.Dropout(0.1))
    model.train()
    model[1].training = False  # its children stay in training mode
    model[1][1].eval()
    return model


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_eval_mode_inside_and_each_module_as_before_outside() -> None:
    model = mixed_modes()
    before = modes(model)
    assert len(set(before)) == 2
    with undisturbed(model):
        assert not any(modes(model))
        assert not torch.is_grad_enabled()
    assert modes(model) == before
    assert torch.is_grad_enabled()


def test_a_model_in_eval_mode_stays_so() -> None:
    model = mixed_modes().eval()
    with undisturbed(model):
        model(torch.ones(2, 4))
    assert not any(modes(model))


def test_the_random_stream_goes_on_as_if_nothing_had_been_measured() -> None:
    model = mixed_modes()
    torch.manual_seed(3)
    wanted = torch.rand(5)
    torch.manual_seed(3)
    with undisturbed(model):
        for _ in range(3):
            model(torch.ones(2, 4))
    assert torch.equal(torch.rand(5), wanted)


def test_no_gradient_is_left_and_one_that_was_there_stays() -> None:
    model = mixed_modes()
    first = next(model.parameters())
    first.grad = torch.full_like(first, 7.0)
    with undisturbed(model):
        assert not model(torch.ones(2, 4)).requires_grad
    assert torch.equal(first.grad, torch.full_like(first, 7.0))
    assert all(parameter.grad is None for parameter in list(model.parameters())[1:])


def test_an_exception_restores_as_well() -> None:
    model = mixed_modes()
    before, stream = modes(model), torch.get_rng_state()
    with pytest.raises(ZeroDivisionError), undisturbed(model):  # noqa: PT012
        model(torch.ones(2, 4))
        raise ZeroDivisionError
    assert modes(model) == before
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), stream)


def test_running_statistics_are_not_updated() -> None:
    model = mixed_modes()
    model[1][1].train()
    mean = model[1][1].running_mean.clone()
    with undisturbed(model):
        model(torch.ones(2, 4))
    assert torch.equal(model[1][1].running_mean, mean)


def test_a_model_with_dropout_in_training_mode_is_measured_without() -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()
    rows = make_rows()[:4]
    wanted = measured_losses(model, rows)
    model.train()
    assert (measured_losses(model, rows)[[0, 1, 3]] != wanted[[0, 1, 3]]).all(), "dropout is at work"
    with undisturbed(model):
        assert measured_losses(model, rows)[[0, 1, 3]].tolist() == wanted[[0, 1, 3]].tolist()
    assert all(modes(model))
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_training_of_the_next_step_is_bitwise_the_same_with_and_without_a_pass() -> None:
    def step(measure: bool) -> list[torch.Tensor]:
        model = make_model("gpt2").train()
        torch.manual_seed(1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            if measure:
                with undisturbed(model):
                    measured_losses(model, make_rows())
            ids = torch.arange(3, 13)[None]
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return list(model.parameters())

    assert all(torch.equal(a, b) for a, b in zip(step(False), step(True), strict=True))


@pytest.mark.parametrize("before", [True, False])
def test_attention_is_left_to_cudnn_again(before: bool) -> None:
    model = torch.nn.Linear(2, 2)
    usual = torch.backends.cuda.cudnn_sdp_enabled()
    torch.backends.cuda.enable_cudnn_sdp(before)
    try:
        with undisturbed(model):
            assert not torch.backends.cuda.cudnn_sdp_enabled()
        assert torch.backends.cuda.cudnn_sdp_enabled() == before
    finally:
        torch.backends.cuda.enable_cudnn_sdp(usual)
