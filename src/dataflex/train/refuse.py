"""What a dynamic run cannot serve, said before anything is trained or written."""

from __future__ import annotations

from typing import Any

from transformers import Trainer

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
    if getattr(args, "precompute_ref_log_probs", False):
        raise ConfigError(
            "precompute_ref_log_probs: true makes a data set of its own after the samples are numbered; set it to false"
        )
    for name in ("dispatch_batches", "split_batches"):
        if of_accelerator(name):
            raise ConfigError(f"accelerator_config {name}: true is not supported; set it to false")
    if getattr(args, "deepspeed", None) is None and args.n_gpu > 1:
        raise ConfigError(
            f"{args.n_gpu} GPUs are visible to one process (DataParallel); start with torchrun or FORCE_TORCHRUN=1, "
            "or set CUDA_VISIBLE_DEVICES"
        )


# Trainers that generate what they train on, or deal each prompt several times in an order of their own.
GENERATING = {
    "GRPOTrainer", "RLOOTrainer", "OnlineDPOTrainer", "NashMDTrainer", "XPOTrainer", "PPOTrainer", "GKDTrainer",
    "CustomPPOTrainer", "MiniLLMTrainer", "GOLDTrainer", "AsyncGRPOTrainer", "DistillationTrainer", "SDFTTrainer",
    "PAPOTrainer", "GFPOTrainer", "SDPOTrainer",
}  # fmt: skip


def refuse_trainer(trainer_class: type) -> None:
    """Raise for a class whose samples cannot be chosen.

    Raises:
        ConfigError: no Trainer of transformers, or one that generates its samples.
    """
    if not (isinstance(trainer_class, type) and issubclass(trainer_class, Trainer)):
        raise ConfigError(f"{trainer_class} is no subclass of transformers.Trainer; only such trainers can be served")
    generating = sorted({cls.__name__ for cls in trainer_class.__mro__} & GENERATING)
    if generating:
        raise ConfigError(
            f"{generating[0]} generates the samples that it trains on, so that there is no loss of a row to choose by; "
            "use it without DataFlex, or choose its prompts beforehand"
        )


def refuse_stream(dataset: Any) -> None:
    """Raise for a data set that cannot be read by row.

    Raises:
        ConfigError: a streaming or missing data set.
    """
    if dataset is None:
        raise ConfigError("train_dataset is missing; there is nothing to choose from")
    if not hasattr(dataset, "__len__") or not hasattr(dataset, "__getitem__"):
        raise ConfigError(
            "the training set is a stream; choosing samples needs random access: load it without streaming"
        )


def refuse_model(model: Any) -> None:
    """Raise for models whose logits do not stand at the tokens' positions.

    Raises:
        ConfigError: prompt, prefix or p-tuning, which put virtual tokens before each row.
    """
    configs = getattr(model, "peft_config", None)
    if isinstance(configs, dict) and any(getattr(config, "is_prompt_learning", False) for config in configs.values()):
        raise ConfigError("prompt tuning puts virtual tokens before each row, which is not supported; use LoRA")


def fuses_loss(trainer: Any) -> bool:
    """True where Liger's kernels fuse the loss, so that training shows none of single rows."""
    of_factory = getattr(getattr(trainer, "model_args", None), "enable_liger_kernel", False)
    return bool(getattr(trainer.args, "use_liger_kernel", False) or of_factory)


def refuse_loss(trainer: Any, name: str) -> None:
    """Raise where the loss of a trainer is not the plain one of each row, which ``name`` weighs.

    Raises:
        ConfigError: naming the key and the remedy.
    """
    args, finetuning = trainer.args, getattr(trainer, "finetuning_args", None)
    if trainer.label_smoother is not None:
        raise ConfigError(
            f"{name} weighs the plain loss, and label_smoothing_factor {args.label_smoothing_factor:g} makes another; "
            "set it to 0"
        )
    own = [word for word in ("use_dft_loss", "use_eaft_loss", "use_asft_loss") if getattr(finetuning, word, False)]
    if own or getattr(trainer, "compute_loss_func", None) is not None:
        raise ConfigError(
            f"{name} weighs the plain loss, and {own[0] if own else 'compute_loss_func'} replaces it; leave one out"
        )
    if getattr(args, "loss_type", "nll") not in ("nll", None) and hasattr(args, "dataset_text_field"):
        raise ConfigError(f"{name} weighs the plain loss, and loss_type is {args.loss_type}; set loss_type: nll")
    if fuses_loss(trainer):
        raise ConfigError(
            f"{name} needs the loss of each row, which the fused loss of Liger does not give; turn it off"
        )
