"""Callbacks of the host's loop: the epoch counter, right after a resume as well, and the end of a step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback


class EpochCounter(TrainerCallback):
    """Set ``state.epoch`` from the global step.

    With ``ignore_data_skip`` the Trainer counts the micro-batches of a resumed epoch from zero. The value is the
    Trainer's own: epochs done plus the share of the current epoch's micro-batches.
    """

    def __init__(self, steps_per_epoch: int, micro_batches_per_epoch: int) -> None:
        self._steps_per_epoch = steps_per_epoch
        self._micro_batches_per_epoch = micro_batches_per_epoch

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        epoch, step = divmod(state.global_step - 1, self._steps_per_epoch)
        done = min((step + 1) * args.gradient_accumulation_steps, self._micro_batches_per_epoch)
        state.epoch = epoch + done / self._micro_batches_per_epoch


class AfterStep(TrainerCallback):
    """Call a function after every optimizer step, before anything is saved."""

    def __init__(self, call: Callable[[], None]) -> None:
        self._call = call

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._call()
