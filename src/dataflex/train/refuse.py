"""What a dynamic run cannot serve, said before anything is trained or written."""

from __future__ import annotations

from typing import Any

from dataflex.core.errors import ConfigError


def refuse_unsupported(args: Any) -> None:
    """Raise for training arguments that would take the order of the samples out of our hands.

    Args:
        args: the host's TrainingArguments.

    Raises:
        ConfigError: naming the key, its value and the remedy.
    """
    accelerator = getattr(args, "accelerator_config", None)

    def of_accelerator(name: str) -> Any:
        return accelerator.get(name) if isinstance(accelerator, dict) else getattr(accelerator, name, None)

    if getattr(args, "group_by_length", False) or getattr(args, "train_sampling_strategy", "") == "group_by_length":
        raise ConfigError("group_by_length orders the samples itself; remove it (train_sampling_strategy: random)")
    if args.auto_find_batch_size:
        raise ConfigError(
            "auto_find_batch_size: true changes the batch in mid-run, and every quota with it; set it to false and "
            "choose per_device_train_batch_size"
        )
    for name in ("dispatch_batches", "split_batches"):
        if of_accelerator(name):
            raise ConfigError(f"accelerator_config {name}: true is not supported; set it to false")
    if getattr(args, "deepspeed", None) is None and args.n_gpu > 1:
        raise ConfigError(
            f"{args.n_gpu} GPUs are visible to one process (DataParallel); start with torchrun or FORCE_TORCHRUN=1, "
            "or set CUDA_VISIBLE_DEVICES"
        )


def refuse_model(model: Any) -> None:
    """Raise for models whose logits do not stand at the tokens' positions.

    Raises:
        ConfigError: prompt, prefix or p-tuning, which put virtual tokens before each row.
    """
    configs = getattr(model, "peft_config", None)
    if isinstance(configs, dict) and any(getattr(config, "is_prompt_learning", False) for config in configs.values()):
        raise ConfigError("prompt tuning puts virtual tokens before each row, which is not supported; use LoRA")
