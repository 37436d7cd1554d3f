"""What the person who watches is told: sentences, and how far a pass is."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import Any

from tqdm.auto import tqdm

PREFIX = "[dataflex]"
FIRST_WORD = 30.0  # seconds of a pass without a bar before it is spoken of; then after twice, four times as many


def say(sentence: str) -> None:
    """Tell the person who watches: one line, which tears no bar and holds no control characters."""
    line = f"{PREFIX} {sentence}"
    if sys.stderr.isatty():
        tqdm.write(line)
        sys.stdout.flush()
        return
    # Elsewhere a bar cannot be cleared. Its line is ended, so that ours begins at the margin if both go to one file.
    if any(not bar.disable for bar in _bars()):
        sys.stderr.write("\n")
        sys.stderr.flush()
    print(line, flush=True)


def close_bars() -> None:
    """End all bars, the host's too: they would write their last state when the process ends, after an error."""
    for bar in _bars():
        bar.close()


def _bars() -> list[Any]:
    """Bars that are shown; each class of tqdm keeps its own."""
    classes = (tqdm, *tqdm.__mro__[1:])
    return list({bar for cls in classes for bar in vars(cls).get("_instances", ())})


class PassProgress:
    """How far a pass over samples is: a bar on a terminal, elsewhere a sentence now and then.

    It goes by tokens, since samples are of unequal length and the longest come first.

    Args:
        num_rows: samples of the pass.
        num_tokens: their tokens, without padding.
        bar: a bar is wanted (the host's ``disable_tqdm`` is false).
        shown: False on all ranks but one.
    """

    def __init__(
        self,
        num_rows: int,
        num_tokens: int,
        *,
        bar: bool,
        shown: bool,
        say: Callable[[str], None] = say,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._num_tokens = f"scoring {num_rows:,} samples", num_tokens
        self._shown, self._say, self._clock = shown, say, clock
        self._done, self._began, self._next_word = 0, clock(), FIRST_WORD
        self._bar: Any = None
        if bar and shown and sys.stderr.isatty():
            self._bar = tqdm(
                total=num_tokens,
                desc=f"{PREFIX} {self._what}",
                unit=" tokens",
                unit_scale=True,
                leave=False,
                dynamic_ncols=True,
            )

    def __enter__(self) -> PassProgress:
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, num_tokens: int) -> None:
        """So many more tokens were measured."""
        self._done += num_tokens
        if self._bar is not None:
            self._bar.update(num_tokens)
            return
        seconds = self._clock() - self._began
        if not self._shown or seconds < self._next_word or not 0 < self._done < self._num_tokens:
            return
        while self._next_word <= seconds:
            self._next_word *= 2
        left = seconds * (self._num_tokens - self._done) / self._done
        share = self._done / self._num_tokens
        self._say(f"{self._what}: {share:.0%} after {duration(seconds)}, about {duration(left)} left")


def duration(seconds: float) -> str:
    """A length of time as a person says it, e.g. ``45 s``, ``12 min``, ``3 h 20 min``."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
