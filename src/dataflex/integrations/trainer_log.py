"""``trainer_log.jsonl``: LLaMA-Factory keeps fixed fields of what is logged; ours are added to its lines."""

from __future__ import annotations

from typing import Any

from dataflex.train.metrics import PREFIX


def full_log(original: type) -> type:
    """Return LLaMA-Factory's ``LogCallback`` with our numbers in the lines that it writes of them."""

    class FullLogCallback(original):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            ours = {name: value for name, value in (logs or {}).items() if name.startswith(PREFIX)}
            write = super()._write_log
            # A line is written later, by another thread: it takes the function, and with it the numbers, along.
            self._write_log = lambda output_dir, line: write(output_dir, {**line, **ours})
            super().on_log(args, state, control, logs=logs, **kwargs)

    return FullLogCallback
