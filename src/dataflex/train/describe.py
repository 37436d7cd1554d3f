"""A decision in one line, for the person who watches the run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

SHOWN_DOMAINS = 8


def describe(line: Mapping[str, Any], *, of_run: bool = True) -> str:
    """One line about a ledger line: window, improved, drawn from inside, cost.

    Args:
        of_run: False for a selection without training, which has no steps.
    """
    notes, window, scoring = line["notes"], line["window"], line["scoring"]
    again = "as recorded before the interruption, " if line.get("as_recorded") else ""
    steps = f"steps {line['start']}-{line['stop']}: " if of_run else ""
    parts = [f"{again}{steps}{line['decision']}, {line['num_rows']} samples"]
    if line["num_distinct_rows"] < line["num_rows"]:
        parts.append(f"{line['num_distinct_rows']} of them distinct")
    if window:
        parts.append(
            f"window {window['start_share']:.3f}-{window['end_share']:.3f} of {notes.get('num_scored')} ranked"
        )
    if "num_improved" in notes:
        parts.append(f"{notes['num_improved']} improved")
    if "num_from_window" in notes:
        parts.append(f"{notes['num_from_window']} drawn from the window")
    if notes.get("num_unscored"):
        parts.append(f"{notes['num_unscored']} could not be scored")
    if "mix" in line:
        shares = ", ".join(f"{name} {count}" for name, count in list(line["mix"]["counts"].items())[:SHOWN_DOMAINS])
        more = len(line["mix"]["counts"]) - SHOWN_DOMAINS
        parts.append(f"of {shares}" + (f" and {more} more domains" if more > 0 else ""))
    if "order" in line and line["update"] is not None:
        parts.append(f"in the order {', '.join(line['order'])}")
    if scoring and not again:
        if scoring["source"] == "measured":
            parts.append(
                f"scored {scoring['num_rows']} samples, {scoring['num_tokens']:,} tokens in {scoring['seconds']:.1f} s "
                f"({scoring['tokens_per_s']:,.0f} tokens/s)"
            )
        else:
            parts.append(f"losses from the {scoring['source']}, no pass over the pool")
        if "budget" in scoring:
            parts.append(describe_budget(scoring["budget"]))
        if of_run:
            parts.append(f"choosing so far: {line['share_of_run']:.0%} of the run's time")
    return " | ".join(parts)


def describe_budget(budget: Mapping[str, Any]) -> str:
    """What an estimate of losses is worth, in a few words."""
    words = [f"losses by {budget['why']}, {budget['estimator']}"]
    if budget.get("rank_correlation") is not None:
        words.append(f"rank correlation {budget['rank_correlation']:.2f} on {budget['num_checked']} rows left out")
    elif "rank_correlation" in budget:
        words.append("not checked: too few rows were measured")
    if "window_hit" in budget:
        words.append(f"{budget['window_hit']:.0%} of the draw expected in the exact window")
    return ", ".join(words)


def cost_of_choosing(lines: Iterable[Mapping[str, Any]], seconds: Mapping[str, float]) -> dict[str, Any]:
    """What choosing cost in all, rolled-back decisions included.

    Args:
        lines: ledger lines of the whole run.
        seconds: time spent "choosing" and "running" (all of the run, choosing included).
    """
    passes = [scoring for line in lines if (scoring := line.get("scoring")) and scoring["source"] == "measured"]
    num_tokens, scoring_seconds = (sum(scoring[name] for scoring in passes) for name in ("num_tokens", "seconds"))
    return {
        "num_passes": len(passes),
        "num_rows": sum(scoring["num_rows"] for scoring in passes),
        "num_tokens": num_tokens,
        "scoring_seconds": scoring_seconds,
        "tokens_per_s": num_tokens / scoring_seconds if scoring_seconds else None,
        "seconds": seconds["choosing"],
        "share_of_run": seconds["choosing"] / max(seconds["running"], 1e-9),
    }


def describe_cost(cost: Mapping[str, Any], running: float) -> str:
    """The cost of choosing in one line, for the end of a run."""
    text = f"choosing took {cost['seconds']:.1f} s of {running:.1f} s ({cost['share_of_run']:.0%} of the run's time)"
    if not cost["num_passes"]:
        return f"{text}; no pass over the pool was made"
    return (
        f"{text}: {cost['num_passes']} passes, {cost['num_tokens']:,} tokens scored in {cost['scoring_seconds']:.1f} s "
        f"({cost['tokens_per_s'] or 0:,.0f} tokens/s)"
    )
