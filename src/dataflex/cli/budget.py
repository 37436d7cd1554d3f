"""What ``plan`` says of a scoring budget."""

from __future__ import annotations

from rich.console import Console

from dataflex.train.budget_record import FEWEST_ROWS, PANEL_ROWS
from dataflex.train.method import Method
from dataflex.train.score_budget import budget_sentence


def print_budget(console: Console, method: Method, *, turns: int, forwards: float, num_rows: int | None) -> None:
    """Print what a budget buys: rows in all, in each decision, and the way to the initial losses.

    Args:
        turns: decisions that ask for losses.
        forwards: what the training costs, in forwards of a row.
        num_rows: of the pool, where it is known.
    """
    assert method.score_budget is not None
    affordable = method.score_budget * forwards
    sentence = budget_sentence(method, turns * num_rows / forwards if num_rows else None) or ""
    console.print(
        f"{sentence} That buys {affordable:,.0f} forward rows for {turns} decisions, about "
        f"{affordable / turns:,.0f} each.",
        highlight=False,
        markup=False,
    )
    if num_rows is None:
        return
    if num_rows <= affordable - PANEL_ROWS * (turns - 1):
        console.print(
            f"The initial losses of all {num_rows:,} rows are measured first (or read from cache_dir), if the "
            "shortest rows are not much shorter than the others.",
            highlight=False,
        )
    else:
        console.print(
            f"The initial losses of all {num_rows:,} rows are not affordable: they are read from cache_dir where "
            "an earlier run or dataflex-cli score put them, else estimated from a panel.",
            highlight=False,
        )
    if affordable < 2 * FEWEST_ROWS:
        console.print(
            f"Note: fewer than {2 * FEWEST_ROWS} rows can be scored; estimates rest on the losses of training alone.",
            highlight=False,
        )
