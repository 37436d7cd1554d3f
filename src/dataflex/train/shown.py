"""What training showed, on its way to a decision: brought to rank 0, recorded of each segment, saved and restored."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from dataflex.core.board import Board
from dataflex.core.segment import Progress, Segment
from dataflex.ledger.ledger import Ledger
from dataflex.train.domains import Domains
from dataflex.train.method import Method
from dataflex.train.ranks import Ranks
from dataflex.train.seen import Seen
from dataflex.train.training import Training

SEEN, TRAINING = "seen.", "training."  # prefixes in a checkpoint


class Shown:
    """The losses of the training's own forwards, as the curator needs them; nothing happens without ``training``.

    Args:
        measure_domains: reads a signal by domain that training does not show, given its name (rank 0).
        training: the losses themselves, where a component needs them.
    """

    def __init__(
        self,
        *,
        method: Method,
        num_rows: int,
        ranks: Ranks,
        ledger: Ledger,
        domains: Domains | None,
        measure_domains: Callable[[str], np.ndarray] | None,
        training: Training | None,
    ) -> None:
        self._method, self._num_rows, self._ranks, self._ledger = method, num_rows, ranks, ledger
        self._domains, self._measure_domains, self._training = domains, measure_domains, training
        self.reset()

    def reset(self) -> None:
        """As before the first step."""
        self._seen = Seen(self._num_rows, self._domains)

    @property
    def last_losses_N(self) -> np.ndarray:
        """The loss of each row when it was last trained, float32; NaN where it never was (rank 0)."""
        return self._seen.board.last_losses_N

    @property
    def board(self) -> Board:
        """What training showed of each row (rank 0)."""
        return self._seen.board

    def take(self) -> None:
        """Bring what was trained since the last call to rank 0 (collective)."""
        if self._training is not None:
            entries = self._training.drain()
            if self._ranks.is_main:
                self._seen.take(entries)

    def finish_segment(self, following: Segment | None) -> dict[str, Any]:
        """Record what training showed of the segment that was trained, and begin another ({} on ranks above 0).

        Args:
            following: the segment that comes next; None at the end of the run.
        """
        if self._training is None:
            return {}
        weights = self._training.weight_statistics()
        if not self._ranks.is_main:
            return {}
        before = self._ledger.segments()
        number = max(before, default=-1) if following is None else following.index - 1
        finished = {**self._seen.finished(), **({"weights": weights} if weights else {})}
        line = before.get(number)
        if line is None:
            return finished
        said = {"kind": "trained", "segment": number, "start": line["start"], "stop": line["stop"], **finished}
        # After a resume at this very step it was said before.
        known = [old for old in self._ledger.lines() if old["kind"] == "trained" and old["segment"] == number]
        if not known or any(known[-1].get(key) != value for key, value in said.items()):
            self._ledger.note(said)
        return finished

    def domain_signals(self, progress: Progress, finished: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """What the mixer asks for, one number a domain (rank 0).

        Args:
            finished: what training showed of the segment before.
        """
        found: dict[str, np.ndarray] = {}
        for name in sorted(self._method.domain_needs_at(progress)):
            if name == "domain_loss":
                assert self._domains is not None
                losses = finished.get("domain_losses", {})
                found[name] = np.array([losses.get(domain, np.nan) for domain in self._domains.info.names])
            else:
                assert self._measure_domains is not None
                found[name] = self._measure_domains(name)
        return found

    # saving, restoring

    def arrays(self) -> dict[str, np.ndarray]:
        """For a checkpoint (collective)."""
        self.take()
        if self._training is None:
            return {}
        training = {f"{TRAINING}{name}": values for name, values in self._training.state_arrays().items()}
        return {**training, **{f"{SEEN}{name}": values for name, values in self._seen.arrays().items()}}

    def load(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Go on from a checkpoint's arrays; returns those that every rank must have (rank 0)."""
        if self._training is None:
            return {}
        self._seen.load(under(SEEN, arrays))
        return {name: values for name, values in arrays.items() if name.startswith(TRAINING)}

    def load_on_all(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take what rank 0 sent of a checkpoint."""
        if self._training is not None:
            self._training.load_arrays(under(TRAINING, arrays))


def under(prefix: str, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The arrays whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): values for name, values in arrays.items() if name.startswith(prefix)}
