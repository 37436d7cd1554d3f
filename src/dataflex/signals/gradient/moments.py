"""Adam's view of a gradient: moments read from the running optimizer by parameter name, and what they make of it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from dataflex.core.errors import ConfigError
from dataflex.signals.cache import weights_digest
from dataflex.signals.gradient.weights import Weights

EPSILON = 1e-8
REMEDY = "set gradient_type: sgd"


@dataclass(frozen=True, kw_only=True)
class Moments:
    """First and second moment of one parameter, the optimizer's own tensors: to be read before its next step."""

    m: torch.Tensor
    v: torch.Tensor
    beta1: float
    beta2: float
    step: int


@dataclass(frozen=True, kw_only=True)
class Adam:
    """``u = (b1 m + (1 - b1) g) / sqrt(b2 v + (1 - b2) g^2 + eps)``, element by element.

    The optimizer's raw moments and eps inside the root, as the released code of LESS has it; ``bias_correction``
    divides both sums as Adam does at its next step.

    Source: LESS (2402.04333), sec. 3.1 and code.
    """

    moments: Mapping[str, Moments]  # by parameter name
    bias_correction: bool = False
    epsilon: float = EPSILON

    def update(self, name: str, gradients_Rx: torch.Tensor) -> torch.Tensor:
        """Adam's update direction for some rows' gradients of a parameter; the gradients are overwritten."""
        moments = self.moments[name]
        m, v = moments.m.float(), moments.v.float()
        root_Rx = torch.addcmul(
            moments.beta2 * v + self._epsilon(moments), gradients_Rx, gradients_Rx, value=1 - moments.beta2
        )
        gradients_Rx.mul_(1 - moments.beta1).add_(moments.beta1 * m)
        updates_Rx = gradients_Rx.mul_(root_Rx.rsqrt_())
        return updates_Rx.mul_(self._correction(moments)) if self.bias_correction else updates_Rx

    def frozen_diagonal(self, name: str) -> tuple[torch.Tensor, torch.Tensor, float]:
        """(P, b1 m, 1 - b1) of ``u = P ((1 - b1) g + b1 m)``, ``P = 1 / sqrt(v + eps)``: without the row's own g^2."""
        moments = self.moments[name]
        diagonal = (moments.v.float() + self.epsilon).rsqrt_()
        return diagonal, moments.beta1 * moments.m.float(), 1 - moments.beta1

    def _epsilon(self, moments: Moments) -> float:
        """The eps that gives the same direction before the correction is applied."""
        after = moments.step + 1
        return self.epsilon * (1 - moments.beta2**after) if self.bias_correction else self.epsilon

    def _correction(self, moments: Moments) -> float:
        after = moments.step + 1
        return (1 - moments.beta2**after) ** 0.5 / (1 - moments.beta1**after)

    def digest(self) -> str:
        """Hash of all moments: what a signal depends on beside the weights."""
        holder = nn.Module()
        told = f"{self.bias_correction} {self.epsilon}"
        for number, (name, moments) in enumerate(sorted(self.moments.items())):
            told += f" {name} {moments.beta1} {moments.beta2} {moments.step}"
            holder.register_buffer(f"m{number}", moments.m)
            holder.register_buffer(f"v{number}", moments.v)
        return hashlib.sha256(f"{told} {weights_digest(holder)}".encode()).hexdigest()


def adam_of(optimizer: Any, model: nn.Module, weights: Weights, *, bias_correction: bool = False) -> Adam:
    """Read the moments of ``weights`` from a torch Adam or AdamW, wrapped by accelerate or not.

    A sharded moment is gathered (collective).

    Raises:
        ConfigError: another optimizer, or one that has made no step yet.
    """
    while hasattr(optimizer, "optimizer"):  # accelerate's wrapper
        optimizer = optimizer.optimizer
    if not isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)):
        raise ConfigError(
            f"the optimizer {type(optimizer).__name__} keeps no Adam moments that could be read; take optim: "
            f"adamw_torch, or {REMEDY}"
        )
    groups = {id(parameter): group for group in optimizer.param_groups for parameter in group["params"]}
    found = {}
    for weight in weights.included:
        state = optimizer.state.get(weight.parameter, {})
        if id(weight.parameter) not in groups:
            raise ConfigError(f"the optimizer does not hold {weight.name}, of which a gradient is wanted; {REMEDY}")
        if "exp_avg" not in state:
            raise ConfigError(
                "the optimizer has made no step yet and has no moments to scale gradients by; set warmup_step to 1 or "
                f"more, or {REMEDY}"
            )
        beta1, beta2 = (float(beta) for beta in groups[id(weight.parameter)]["betas"])
        found[weight.name] = Moments(
            m=_whole(state["exp_avg"]),
            v=_whole(state["exp_avg_sq"]),
            beta1=beta1,
            beta2=beta2,
            step=int(state["step"]),
        )
    return Adam(moments=found, bias_correction=bias_correction)


def _whole(moment: torch.Tensor) -> torch.Tensor:
    return moment.full_tensor() if hasattr(moment, "full_tensor") else moment  # type: ignore[operator]
