"""An adapter that adds nothing yet: the model at the start of the run is the model without it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn


def adds_nothing(model: nn.Module) -> bool:
    """True when ``model`` is a LoRA model whose output is, bit for bit, that of its base model.

    Read off the weights: every ``lora_B`` is zero and nothing beside the LoRA matrices can be trained. A continued
    adapter, a PiSSA-type start, ``modules_to_save``, trained biases or tokens and DoRA all fail.
    """
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict) or not configs or not hasattr(model, "disable_adapter"):
        return False
    for config in configs.values():
        named = [getattr(config, name, None) for name in ("modules_to_save", "trainable_token_indices", "use_dora")]
        if "LORA" not in str(getattr(config, "peft_type", "")) or any(named) or config.bias != "none":
            return False
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    # A LoRA on an embedding has lora_embedding_B.
    starts = [p for name, p in model.named_parameters() if "lora_" in name and "_B." in f"{name}."]
    return bool(starts) and all("lora_" in name for name in trained) and not any(bool(p.any()) for p in starts)


def without_adapter(model: Any) -> Any:
    """A context in which the adapter is switched off; what may be trained is as before afterwards."""
    return _disabled(model) if hasattr(model, "disable_adapter") else nullcontext()


@contextmanager
def _disabled(model: Any) -> Iterator[None]:
    trainable = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        with model.disable_adapter():
            yield
    finally:
        for parameter, was in trainable:  # PEFT switches all active adapters back on, frozen ones too
            parameter.requires_grad_(was)


def canonical_name(name: str) -> str:
    """A weight's name as it is in the base model, without what PEFT and wrappers put around it."""
    return name.removeprefix("module.").removeprefix("base_model.model.").replace(".base_layer.", ".")
