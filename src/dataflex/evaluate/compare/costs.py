"""What a run spent on choosing and on training, read from its ledger."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dataflex.core.errors import LedgerError
from dataflex.ledger.files import read_columns
from dataflex.ledger.ledger import Ledger

FLOPS_PER_WEIGHT_AND_TOKEN = 2  # of a forward: one multiplication, one addition


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Tokens and seconds of one run. Tokens are those of the rows, without padding."""

    num_steps: int
    trained_tokens: int
    scored_tokens: int
    num_passes: int
    choosing_s: float
    training_s: float  # the rest of the run's time: saving and logging are in it
    gradient_tokens: int = 0  # of the scored ones: those whose gradient was taken
    other_tokens: int = 0  # of the scored ones: those that another model scored
    other_macs: int = 0  # these times its weights
    reference_weights: int = 0  # of models that see every trained token besides

    def training_flops(self, num_weights: int, forwards: float) -> float:
        """``2 x (weights x forwards + reference_weights) x tokens``.

        Args:
            num_weights: weights that a token is multiplied with: all but an input embedding of its own.
            forwards: what a trained token costs, in forward passes (3 with all gradients, 2 with LoRA).
        """
        return FLOPS_PER_WEIGHT_AND_TOKEN * (num_weights * forwards + self.reference_weights) * self.trained_tokens

    def choosing_flops(self, num_weights: int, forwards: float) -> float:
        """``2 x weights x tokens``: a scoring pass is a forward, or what training a token costs for its gradient.

        Passes of another model are counted with its own weights.
        """
        tokens = self.scored_tokens - self.other_tokens - self.gradient_tokens + self.gradient_tokens * forwards
        return FLOPS_PER_WEIGHT_AND_TOKEN * (num_weights * tokens + self.other_macs)


def read_cost(output_dir: Path) -> Cost:
    """The cost of a finished run.

    Counted over the segments in force, so that what an interruption made the run repeat is not held against the
    method; the seconds are those that passed, repetitions included.

    Raises:
        LedgerError: no record, a damaged one, or one without an end.
    """
    ledger = Ledger(output_dir)
    ends = [line for line in ledger.lines() if line["kind"] == "end"]
    if not ends:
        raise LedgerError(f"{ledger.path} records no end of the run; remove {output_dir} to have it trained again")
    lines = ledger.segments().values()
    tokens_N = read_columns(ledger.root / "rows.parquet", ["num_tokens"])["num_tokens"]
    passes = _passes([line["scoring"] for line in lines if line["scoring"]])
    choosing_s = float(ends[-1]["choosing"]["seconds"])
    return Cost(
        num_steps=int(ends[-1]["step"]),
        trained_tokens=sum(int(tokens_N[ledger.rows_of(line)].sum()) for line in lines),
        scored_tokens=sum(scoring["num_tokens"] + scoring.get("num_tokens_kept", 0) for scoring in passes),
        num_passes=len(passes),
        choosing_s=choosing_s,
        gradient_tokens=sum(
            scoring["gradient_tokens"] + scoring.get("num_tokens_kept", 0)
            for scoring in passes
            if scoring.get("gradient_tokens")
        ),
        other_tokens=sum(scoring.get("other_tokens", 0) for scoring in passes),
        other_macs=sum(scoring.get("other_macs", 0) for scoring in passes),
        reference_weights=int(ledger.run().get("reference_weights") or 0),
        training_s=max(0.0, float(ends[-1]["seconds"]["running"]) - choosing_s),
    )


def _passes(scorings: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What decisions of a run were made from that was measured for it, each pass once.

    The caches are the run's own: what it found there the first time, it had measured before it was interrupted.
    """
    passes, seen = [], set()
    for scoring in scorings:
        files = tuple(sorted(scoring.get("files", {}).values()))
        is_kept = scoring.get("num_tokens_kept", 0) > 0 and files not in seen
        if scoring["source"] == "measured" or is_kept:
            passes.append(scoring)
        if files:
            seen.add(files)
    return passes
