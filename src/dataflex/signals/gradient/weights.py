"""Which weights a gradient is taken of: the trainable linear modules, and what is left out of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from dataflex.core.errors import ConfigError
from dataflex.signals.head import innermost

# Left-out parameters of this share of all trainable ones or less go unmentioned in errors: norms, biases.
NEGLIGIBLE = 0.05


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One trainable matrix and the modules that multiply by it (several where they share it)."""

    name: str  # of the parameter, as the model names it first
    parameter: nn.Parameter
    modules: tuple[nn.Module, ...]
    input_first: bool  # stored as (n_in, n_out): GPT-2's Conv1D

    @property
    def size(self) -> int:
        return self.parameter.numel()

    @property
    def num_in(self) -> int:
        return self.parameter.shape[0 if self.input_first else 1]

    @property
    def num_out(self) -> int:
        return self.parameter.shape[1 if self.input_first else 0]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The weights of a gradient, in the model's order, and the trainable parameters that are none of them."""

    included: tuple[Weight, ...]
    left_out: tuple[str, ...]

    @property
    def size(self) -> int:
        return sum(weight.size for weight in self.included)


def trainable_weights(model: nn.Module, wanted: Callable[[str], bool] | None = None) -> Weights:
    """The weights of all trainable linear modules; embeddings and a head tied to them never belong to it.

    Args:
        model: as it is trained; unwrapped where it is not sharded.
        wanted: says of a parameter's name whether it belongs to the gradient; None: all of them do.

    Raises:
        ConfigError: the model is sharded; or it has no such module; or more than a few percent of the trainable
            parameters would be left out though nobody asked for a part (experts kept as one tensor); or a LoRA is more
            than two matrices (DoRA).
    """
    for parameter in model.parameters():
        if hasattr(parameter, "ds_id") or type(parameter).__name__ == "DTensor":
            raise ConfigError(
                "gradients a sample at a time need the whole weights on every rank, and this model is sharded; train "
                "without FSDP and ZeRO-3, or take a method that needs no gradients"
            )
    base = innermost(model)
    find = getattr(base, "get_input_embeddings", None)
    embedding = find() if find is not None else None
    tied = getattr(embedding, "weight", None)
    users: dict[int, list[nn.Module]] = {}
    # Tables of tokens and positions are left out of every gradient on purpose.
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    for module in model.modules():
        if isinstance(module, (nn.Linear, Conv1D)):
            users.setdefault(id(module.weight), []).append(module)
    included, left_out, num_left_out, num_trainable = [], [], 0, 0
    for name, parameter in model.named_parameters():  # a shared parameter comes once
        if not parameter.requires_grad:
            continue
        num_trainable += parameter.numel()
        if parameter is not tied and id(parameter) in users and parameter.is_floating_point():
            if wanted is None or wanted(name):
                modules = tuple(users[id(parameter)])
                transposed = {isinstance(module, Conv1D) for module in modules}
                if len(transposed) > 1:
                    raise ConfigError(f"{name} is shared by a Linear and a Conv1D, of which no gradient can be taken")
                included.append(Weight(name=name, parameter=parameter, modules=modules, input_first=transposed.pop()))
                continue
        elif id(parameter) not in tables:
            num_left_out += parameter.numel()
        left_out.append(name)
    if any("lora_magnitude_vector" in name for name in left_out):
        raise ConfigError("gradients of a DoRA adapter cannot be taken a sample at a time; set use_dora: false")
    if not included:
        raise ConfigError("the model has no trainable linear module to take gradients of; train with LoRA or in full")
    if wanted is None and num_left_out > NEGLIGIBLE * num_trainable:
        largest = max((n for n in left_out), key=lambda n: model.get_parameter(n).numel())
        raise ConfigError(
            f"{num_left_out / num_trainable:.0%} of the trainable parameters are in no linear module (such as "
            f"{largest}) and would be missing from the gradients; train with LoRA on linear modules, or name the "
            "modules to take gradients of"
        )
    return Weights(included=tuple(included), left_out=tuple(left_out))
