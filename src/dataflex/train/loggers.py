"""Our numbers on their way to the host's loggers."""

from __future__ import annotations

from typing import Any

from transformers import PrinterCallback
from transformers.trainer_callback import ProgressCallback

# They print whatever is logged as a raw dict; a decision is told in a sentence of its own.
CONSOLE = (PrinterCallback, ProgressCallback)


def log_off_console(trainer: Any, numbers: dict[str, float]) -> None:
    """Hand numbers to ``trainer.log``, hence to its state and every logger, but not to those that print to the console.

    The host's own log lines pass through the same callbacks and stay as they are.
    """
    handler = trainer.callback_handler
    callbacks = handler.callbacks
    handler.callbacks = [callback for callback in callbacks if not isinstance(callback, CONSOLE)]
    try:
        trainer.log(numbers)
    finally:
        handler.callbacks = callbacks
