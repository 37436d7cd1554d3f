"""A reference model beside the one that is trained: its loss of the same tokens, and the excess over it by domain."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import patch_environment
from safetensors import SafetensorError
from torch.nn import functional as F  # noqa: N812  its common name
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from dataflex.core.errors import ConfigError, shown
from dataflex.signals.flops import flops_of
from dataflex.signals.loss import IGNORE_INDEX, token_losses
from dataflex.train.ranks import Ranks

ADAPTER = "adapter_config.json"
NOT_FOR_MODEL = ("labels", "num_items_in_batch", "use_cache", "sample_ids")


class Reference:
    """A frozen model, in evaluation mode, with the trained one's device, type, attention and autocast."""

    def __init__(self, path: str, trained: Any, accelerator: Accelerator) -> None:
        """
        Args:
            path: a model's folder, or that of an adapter, whose base is the one it names.
            trained: the model that is trained, not wrapped.
            accelerator: the host's.

        Raises:
            ConfigError: it cannot be loaded, lacks weights, or has another vocabulary.
        """
        if is_deepspeed_zero3_enabled():
            raise ConfigError(
                "a reference model is not supported with DeepSpeed ZeRO-3, which would cut it apart; use ZeRO-2 or FSDP"
            )
        check_reference(path)
        # Every rank holds it whole, also where FSDP has only the first read a checkpoint.
        with patch_environment(FSDP_CPU_RAM_EFFICIENT_LOADING="false"):
            model = _load(path, trained)
        theirs, ours = _vocabulary(model), _vocabulary(trained)
        if theirs != ours:
            raise ConfigError(
                f"the reference model {shown(path)} has a vocabulary of {theirs}, the trained one of {ours}; it must "
                "have read the same tokens"
            )
        self._accelerator = accelerator
        self.model: Any = model.to(accelerator.device).eval().requires_grad_(False)

    @property
    def num_weights(self) -> int:
        """Weights of matrix products that every token meets; see ``signals.flops``."""
        return flops_of(self.model).weights

    @torch.no_grad()
    def losses(self, inputs: Mapping[str, Any]) -> torch.Tensor:
        """Loss of the label that follows each position, float32, shape (B, T); 0 where there is none."""
        device = self._accelerator.device
        given = {
            name: value.to(device) if torch.is_tensor(value) else value
            for name, value in inputs.items()
            if name not in NOT_FOR_MODEL
        }
        with self._accelerator.autocast():
            logits_BxTxV = self.model(**given, use_cache=False).logits
        targets_BxT = F.pad(inputs["labels"].to(device), (0, 1), value=IGNORE_INDEX)[:, 1:]
        return token_losses(logits_BxTxV, targets_BxT)


class Excess:
    """Excess loss over a reference by domain, added up over the micro-batches of one optimizer step.

    sums_d = sum over the label tokens of domain d of max(l - l_ref, 0), clipped token by token, in float64 on the
    device; tokens_d is their number. Tokens of which one of the losses is not finite are in neither.

    Args:
        domain_N: domain of each pool row.
        num_domains: number of them.
    """

    def __init__(self, reference: Reference, domain_N: np.ndarray, num_domains: int, ranks: Ranks) -> None:
        self.reference, self._domain_N, self._num_domains, self._ranks = reference, domain_N, num_domains, ranks
        self._reference_BxT: torch.Tensor | None = None
        self.clear()

    def clear(self) -> None:
        """Forget the step in progress."""
        self._sums_Dx2: torch.Tensor | None = None

    def begin(self, inputs: Mapping[str, Any]) -> None:
        """Measure the reference on a micro-batch that is about to be trained."""
        self._reference_BxT = self.reference.losses(inputs)

    def add(
        self, losses_BxT: torch.Tensor, has_label_BxT: torch.Tensor, owner_BxT: torch.Tensor, rows_B: np.ndarray
    ) -> None:
        """Add the micro-batch's own losses.

        Args:
            losses_BxT: of the label that follows each position, as many positions as the batch has or one fewer.
            has_label_BxT: where there is one.
            owner_BxT: which of ``rows_B`` each position belongs to.
            rows_B: pool rows.
        """
        assert self._reference_BxT is not None
        reference_BxT = self._reference_BxT[:, : losses_BxT.shape[1]].to(losses_BxT.device)
        if self._sums_Dx2 is None:
            self._sums_Dx2 = torch.zeros(self._num_domains, 2, dtype=torch.float64, device=losses_BxT.device)
        domain_B = torch.from_numpy(self._domain_N[rows_B]).to(losses_BxT.device)
        counted_BxT = has_label_BxT & torch.isfinite(losses_BxT) & torch.isfinite(reference_BxT)
        excess_BxT = (losses_BxT - reference_BxT).clamp(min=0).masked_fill(~counted_BxT, 0)
        both = torch.stack([excess_BxT.flatten().double(), counted_BxT.flatten().double()], dim=1)
        self._sums_Dx2.index_add_(0, domain_B[owner_BxT.flatten()], both)

    def take_step(self) -> dict[str, np.ndarray]:
        """Excess sums and label tokens by domain of the step that is done, over all ranks (collective)."""
        mine = self._sums_Dx2
        mine = torch.zeros(self._num_domains, 2, dtype=torch.float64) if mine is None else mine
        self.clear()
        sums_Dx2 = self._ranks.gather(mine).reshape(-1, self._num_domains, 2).sum(0).numpy()
        return {"domain_excess_sums": sums_Dx2[:, 0], "domain_tokens": sums_Dx2[:, 1]}


def _load(path: str, trained: Any) -> Any:
    """The model, in the type and with the attention of the trained one (a packed batch's mask is made for it)."""
    base = _base(path)
    attention = getattr(trained.config, "_attn_implementation", None)
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            base, dtype=trained.dtype, attn_implementation=attention, output_loading_info=True
        )
        model, info = loaded
        if base != path:
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, path)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        raise ConfigError(
            f"the reference model {shown(path)} cannot be loaded ({' '.join(str(error).split())[:200]})"
        ) from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise ConfigError(
            f"the reference model {shown(path)} lacks {len(missing)} weights, such as {missing[0]}, which would be "
            "random; name a complete model"
        )
    return model


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
