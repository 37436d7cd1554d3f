"""A reference model beside the one that is trained: its loss of the same tokens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812  its common name
from transformers import AutoConfig, AutoModelForCausalLM

from dataflex.core.errors import ConfigError, shown
from dataflex.signals.loss import IGNORE_INDEX, token_losses

ADAPTER = "adapter_config.json"
NOT_FOR_MODEL = ("labels", "num_items_in_batch", "use_cache", "sample_ids")


class Reference:
    """A frozen model, in evaluation mode, on the device and in the type of the trained one."""

    def __init__(self, path: str, trained: Any) -> None:
        """
        Args:
            path: a model's folder, or that of an adapter, whose base is the one it names.
            trained: the model that is trained.

        Raises:
            ConfigError: it cannot be loaded, or has another vocabulary.
        """
        check_reference(path)
        base = _base(path)
        try:
            model = AutoModelForCausalLM.from_pretrained(base, dtype=trained.dtype)
            if base != path:
                from peft import PeftModel

                model = PeftModel.from_pretrained(model, path)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise ConfigError(
                f"the reference model {shown(path)} cannot be loaded ({' '.join(str(error).split())[:200]})"
            ) from error
        theirs, ours = _vocabulary(model), _vocabulary(trained)
        if theirs != ours:
            raise ConfigError(
                f"the reference model {shown(path)} has a vocabulary of {theirs}, the trained one of {ours}; it must "
                "have read the same tokens"
            )
        self._model: Any = model.to(trained.device).eval().requires_grad_(False)

    @torch.no_grad()
    def losses(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Loss of the label that follows each position, float32, shape (B, T); 0 where there is none."""
        device = self._model.device
        given = {
            name: value.to(device) if torch.is_tensor(value) else value
            for name, value in inputs.items()
            if name not in NOT_FOR_MODEL
        }
        logits_BxTxV = self._model(**given, use_cache=False).logits
        targets_BxT = F.pad(inputs["labels"].to(device), (0, 1), value=IGNORE_INDEX)[:, 1:]
        return token_losses(logits_BxTxV, targets_BxT)


def _vocabulary(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def check_reference(path: str) -> None:
    """Raise for a path that holds no model, before anything is loaded.

    Raises:
        ConfigError: no such folder, or one without a configuration.
    """
    folder = Path(path)
    if folder.is_dir() and not any((folder / name).is_file() for name in (ADAPTER, "config.json")):
        raise ConfigError(f"reference {shown(path)} holds neither config.json nor {ADAPTER}; name a model's folder")
    if not folder.is_dir() and (folder.is_absolute() or path.startswith(".") or path.count("/") > 1):
        raise ConfigError(f"reference {shown(path)} does not exist; name the model that step 1 trained")
    if not folder.is_dir():
        try:
            AutoConfig.from_pretrained(path)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"reference {shown(path)} is neither a folder nor a model at hand; name the model that step 1 trained"
            ) from error


def _base(path: str) -> str:
    """The base model of an adapter's folder; the path itself for a model's."""
    config = Path(path) / ADAPTER
    if not config.is_file():
        return path
    try:
        return str(json.loads(config.read_text(encoding="utf-8"))["base_model_name_or_path"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{config} is damaged; name another reference, or train it again") from error
