"""How long choosing will take, from the speed that an earlier run recorded."""

from __future__ import annotations

from dataclasses import dataclass

from dataflex.core.errors import ConfigError
from dataflex.ledger.ledger import Ledger


@dataclass(frozen=True, kw_only=True)
class Speed:
    """What a run recorded of its speed."""

    run: str
    tokens_per_row: float  # of a scored pool row
    tokens_per_s: float  # scoring
    seconds_per_sample: float  # training


def recorded_speed(run_dir: str) -> Speed:
    """Read the speed of a finished run that scored its pool.

    Raises:
        ConfigError: the run has not ended, or made no pass.
        LedgerError: no record, or a damaged one.
    """
    ledger = Ledger(run_dir)
    if not ledger.exists():
        raise ConfigError(
            f"{run_dir} holds no record of a run (dataflex/run.yaml); name the output_dir of one with --like"
        )
    geometry = ledger.run().get("geometry", {})
    ends = [line for line in ledger.lines() if line["kind"] == "end"]
    end, cost = (ends[-1], ends[-1].get("choosing") or {}) if ends else ({}, {})
    if not cost.get("num_passes") or not cost.get("tokens_per_s"):
        what = "made no pass over its pool" if ends else "has not ended"
        raise ConfigError(f"the run in {run_dir} {what}, so that its speed is not known; name another with --like")
    samples = end["step"] * geometry["world_size"] * geometry["accumulation"] * geometry["micro_batch"]
    return Speed(
        run=run_dir,
        tokens_per_row=cost["num_tokens"] / cost["num_rows"],
        tokens_per_s=cost["tokens_per_s"],
        seconds_per_sample=max(end["seconds"]["running"] - end["seconds"]["choosing"], 0.0) / max(samples, 1),
    )


def forecast(speed: Speed, *, num_passes: int, num_rows: int, num_samples: int) -> str:
    """The cost of a planned run in one sentence.

    Args:
        num_passes: passes over the pool.
        num_rows: rows of the pool.
        num_samples: samples that are trained.
    """
    num_tokens = num_passes * num_rows * speed.tokens_per_row
    scoring = num_tokens / speed.tokens_per_s
    training = num_samples * speed.seconds_per_sample
    return (
        f"At the speed of {speed.run} ({speed.tokens_per_s:,.0f} tokens/s scoring, {speed.tokens_per_row:.0f} tokens a "
        f"row): {num_passes} passes = {num_tokens:,.0f} tokens in {scoring:,.1f} s, training {training:,.1f} s; "
        f"choosing takes {scoring / max(scoring + training, 1e-9):.0%} of the run's time."
    )
