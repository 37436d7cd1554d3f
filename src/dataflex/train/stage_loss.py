"""Stages whose rows are no plain text: which they are, their losses by batch, and their counters left alone."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.functional import logsigmoid

from dataflex.train.pool import is_language_modelling


def scores_own_loss(trainer: Any) -> bool:
    """True where a row is no text with labels, such as a pair: its score is then the trainer's own loss."""
    return not is_language_modelling(trainer.train_dataset)


def batch_losses(trainer: Any) -> Callable[[Any, dict[str, Any]], torch.Tensor] | None:
    """A function (model, inputs of a batch) -> loss of each row, shape (B,); None where a trainer has no such parts.

    Put together from the parts that the trainer itself adds up before it takes the mean. ``OwnLossSignal`` compares
    it with the trainer's own loss of single rows before it is used, so that a release which adds it up in another way
    costs speed and nothing else.
    """
    names = {cls.__name__ for cls in type(trainer).__mro__}
    if "CustomDPOTrainer" in names and hasattr(trainer, "finetuning_args"):
        return lambda model, inputs: _llamafactory_dpo(trainer, model, inputs)
    if "PairwiseTrainer" in names and hasattr(trainer, "finetuning_args"):
        return lambda model, inputs: _llamafactory_reward(trainer, model, inputs)
    if "DPOTrainer" in names and hasattr(trainer, "concatenated_forward") and not trainer.args.use_liger_loss:
        return lambda model, inputs: _trl_dpo(trainer, model, inputs)
    if "RewardTrainer" in names:
        return lambda model, inputs: _trl_reward(trainer, model, inputs)
    return None


def _llamafactory_dpo(trainer: Any, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    policy = trainer.concatenated_forward(model, inputs)
    reference = trainer.compute_reference_log_probs(model, inputs)
    losses_B, _, _ = trainer.compute_preference_loss(policy["chosen_logps"], policy["rejected_logps"], *reference)
    return losses_B - trainer.ftx_gamma * policy["chosen_logps_avg"] if trainer.ftx_gamma > 1e-6 else losses_B


def _llamafactory_reward(trainer: Any, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    _, (_, chosen_B, rejected_B) = trainer.compute_loss(model, inputs, return_outputs=True)
    return -logsigmoid(chosen_B.float() - rejected_B.float()).reshape(-1)


def _trl_dpo(trainer: Any, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    policy = trainer.concatenated_forward(model, inputs)
    reference = trainer.compute_ref_log_probs(inputs)
    kinds = trainer.loss_type if isinstance(trainer.loss_type, list) else [trainer.loss_type]
    weights = trainer.loss_weights or [1.0] * len(kinds)
    losses_B: Any = 0.0
    for kind, weight in zip(kinds, weights, strict=True):
        part_B, _, _ = trainer.dpo_loss(policy["chosen_logps"], policy["rejected_logps"], *reference, kind, policy)
        losses_B = losses_B + weight * part_B
    return losses_B


def _trl_reward(trainer: Any, model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    scores = model(**{name: value for name, value in inputs.items() if name != "margin"}, use_cache=False).logits
    chosen_B, rejected_B = scores.squeeze(-1).chunk(2)
    losses_B = -logsigmoid(chosen_B - rejected_B - inputs.get("margin", 0.0))
    centre = trainer.args.center_rewards_coefficient
    return losses_B if centre is None else losses_B + centre * (chosen_B + rejected_B) ** 2


# What TRL's and LLaMA-Factory's trainers count while they compute losses, and log later.
COUNTERS = ("_metrics", "_stored_metrics", "_total_train_tokens", "running", "_logs")


@contextmanager
def counters_untouched(trainer: Any) -> Iterator[None]:
    """Restore the trainer's running numbers afterwards: a pass over the pool is no training."""
    kept = {name: copy.deepcopy(_plain(vars(trainer)[name])) for name in COUNTERS if name in vars(trainer)}
    live = {name: vars(trainer)[name] for name in kept}
    try:
        yield
    finally:
        for name, value in kept.items():
            if isinstance(live[name], dict):  # in place: default factories and other holders stay
                _restore(live[name], value)
            elif name == "running":
                vars(live[name]).update(value)
            else:
                setattr(trainer, name, value)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if type(value).__name__ == "RunningMoments":
        return {key: inner for key, inner in vars(value).items() if key != "accelerator"}
    return value


def _restore(live: dict[Any, Any], kept: dict[Any, Any]) -> None:
    for key in list(live):
        if key not in kept:
            del live[key]
    for key, value in kept.items():
        if isinstance(live.get(key), dict) and isinstance(value, dict):
            _restore(live[key], value)
        else:
            live[key] = value
