"""All models side by side: numbers with intervals, differences from the first model, as JSON and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dataflex.evaluate.heldout import AnswerLosses
from dataflex.evaluate.intervals import Bootstrap, Interval, difference_interval, mean_interval, ratio_interval
from dataflex.evaluate.questions import Question
from dataflex.evaluate.scores import score

# Sums and counts of each row: the number is sum / count over rows, which a bootstrap draws whole.
PerRow = tuple[np.ndarray, np.ndarray]


def answer_scores(metric: str, answers: Sequence[str], questions: Sequence[Question]) -> PerRow:
    """A metric of written answers, row by row."""
    return scored(score(metric, answers, [question.answer for question in questions]))


def scored(values_N: np.ndarray) -> PerRow:
    """One number a row."""
    return values_N, np.ones(len(values_N))


def judged(verdicts_N: np.ndarray) -> PerRow:
    """Share of answers that the judge took for right, of those on which it said so."""
    known_N = np.isfinite(verdicts_N)
    return np.where(known_N, verdicts_N, 0.0), known_N.astype(np.float64)


def choice_scores(sums: np.ndarray, questions: Sequence[Question]) -> dict[str, PerRow]:
    """``acc``: the right choice has the highest log-likelihood; ``acc_norm``: by character, as the harness does."""
    found: dict[str, list[float]] = {"acc": [], "acc_norm": []}
    at = 0
    for question in questions:
        losses = sums[at : at + len(question.choices)]
        at += len(question.choices)
        lengths = np.array([max(1, len(choice)) for choice in question.choices])
        found["acc"].append(float(np.argmin(losses) == question.right))
        found["acc_norm"].append(float(np.argmin(losses / lengths) == question.right))
    return {name: (np.array(values), np.ones(len(values))) for name, values in found.items()}


def loss_by_source(losses: AnswerLosses, questions: Sequence[Question], how: Bootstrap) -> dict[str, Any]:
    """Loss per token and perplexity of each source, where there are several."""
    sources = sorted({question.source for question in questions})
    found = {}
    for source in sources if len(sources) > 1 else []:
        rows = np.array([question.source == source for question in questions])
        interval = ratio_interval(losses.loss_sums_N[rows], losses.tokens_N[rows], how)
        found[source] = {**as_json(interval), "perplexity": _exp(interval.value), "num_rows": int(rows.sum())}
    return found


def compared(by_model: Mapping[str, Mapping[str, PerRow]], how: Bootstrap) -> dict[str, Any]:
    """Each metric of each model, and its difference from the first model, over the same rows.

    Args:
        by_model: model, metric, rows; all models have the same rows.
    """
    first = next(iter(by_model))
    found: dict[str, Any] = {}
    for metric in by_model[first]:
        entry: dict[str, Any] = {"models": {}, "difference_from": first, "differences": {}}
        for model, metrics in by_model.items():
            entry["models"][model] = _number(metrics[metric], how)
            if model != first:
                entry["differences"][model] = _difference(metrics[metric], by_model[first][metric], how)
        found[metric] = entry
        if metric == "loss":
            perplexity = {
                model: {bound: _exp(numbers[bound]) for bound in ("value", "low", "high")}
                for model, numbers in entry["models"].items()
            }
            found["perplexity"] = {"models": perplexity, "difference_from": first, "differences": {}}
    return found


def _number(rows: PerRow, how: Bootstrap) -> dict[str, Any]:
    (sums_N, counts_N), num_rows = rows, int(np.count_nonzero(rows[1]))
    if not num_rows:
        return {"value": None, "low": None, "high": None, "num_rows": 0}
    # A row that counts nothing, such as one without a verdict, is not drawn: a draw might hold no other.
    sums_N, counts_N = sums_N[counts_N > 0], counts_N[counts_N > 0]
    is_mean = bool(np.all(counts_N == 1))
    interval = mean_interval(sums_N, how) if is_mean else ratio_interval(sums_N, counts_N, how)
    return {**as_json(interval), "num_rows": num_rows}


def _difference(ours: PerRow, theirs: PerRow, how: Bootstrap) -> dict[str, Any]:
    """Over the rows that both have: of a judge's verdicts, those of one model may be the harder ones."""
    both_N = (ours[1] > 0) & (theirs[1] > 0)
    if not both_N.any():
        return {"value": None, "low": None, "high": None, "num_rows": 0}
    mine, other = ((sums_N[both_N], counts_N[both_N]) for sums_N, counts_N in (ours, theirs))
    return {**as_json(difference_interval(mine, other, how)), "num_rows": int(both_N.sum())}


def as_json(interval: Interval) -> dict[str, float | None]:
    return {"value": _known(interval.value), "low": _known(interval.low), "high": _known(interval.high)}


def _known(value: float | None) -> float | None:
    """JSON has no NaN, which a share of no verdicts is, and no infinity."""
    return float(value) if value is not None and np.isfinite(value) else None


def _exp(value: float | None) -> float | None:
    return None if value is None else _known(float(np.exp(value)))


def table_rows(results: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the table: data set or task, metric, and a column a model."""
    models = list(results["models"])
    rows = []
    for name, found in results["data"].items():
        for metric, entry in found["metrics"].items():
            cells = []
            for model in models:
                differs = _excludes_zero(entry["differences"].get(model))
                cells.append(_cell(entry["models"][model]) + (" *" if differs else ""))
            rows.append([name, metric, *cells])
        for source in next(iter(found["sources"].values()), {}):
            cells = [_cell(found["sources"][model][source]) for model in models]
            rows.append([name, f"loss of {source}", *cells])
    for task, by_model in results["tasks"].items():
        for metric in next(iter(by_model.values())):
            if "_stderr" in metric:
                continue
            rows.append([task, metric, *(_task_cell(by_model[model], metric) for model in models)])
    return ["", "metric", *models], rows


def _excludes_zero(difference: Mapping[str, float | None] | None) -> bool:
    low, high = (difference or {}).get("low"), (difference or {}).get("high")
    return low is not None and high is not None and (low > 0 or high < 0)


def _cell(numbers: Mapping[str, Any]) -> str:
    value, low, high = (numbers[bound] for bound in ("value", "low", "high"))
    if value is None:
        return "none"
    return f"{value:.4f}" if low is None or high is None else f"{value:.4f} ({low:.4f} to {high:.4f})"


def _task_cell(metrics: Mapping[str, float], metric: str) -> str:
    name, _, kind = metric.partition(",")
    error = metrics.get(f"{name}_stderr,{kind}")
    value = f"{metrics[metric]:.4f}"
    return f"{value} ± {error:.4f}" if error is not None and np.isfinite(error) else value


def markdown(results: Mapping[str, Any]) -> str:
    """The table as Markdown, and what its marks mean."""
    header, rows = table_rows(results)
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}", *(f"| {' | '.join(row)} |" for row in rows)]
    return "\n".join([*lines, "", legend(results), ""])


def legend(results: Mapping[str, Any]) -> str:
    """What stands in the brackets and what the star says."""
    how = results["bootstrap"]
    first = next(iter(results["models"]))
    text = (
        f"In brackets: {how['confidence']:.0%} bootstrap intervals over rows ({how['resamples']} resamples). ± is the "
        "harness's own standard error."
    )
    star = (
        f" *: the difference from {first} over the same rows has an interval without 0."
        if len(results["models"]) > 1
        else ""
    )
    return " ".join([text + star, *_remarks(results)])


def _remarks(results: Mapping[str, Any]) -> list[str]:
    """What a reader of the numbers must know, a sentence each."""
    found = []
    if results["tasks"] and results["task_limit"] is not None:
        found.append(
            f"Tasks were run on their first {results['task_limit']} rows only (task_limit): these are not the numbers "
            "that others report."
        )
    for name, entry in results["data"].items():
        if unread := entry.get("unreadable_references"):
            found.append(
                f"math: {unread} of {entry['num_rows']} references of {name} hold no number or expression; there only "
                "the same text counts as right."
            )
        judge = entry["metrics"].get("judge")
        for model, numbers in judge["models"].items() if judge else ():
            if numbers["num_rows"] < entry["num_rows"]:
                refused = entry["judge_refused"][model]
                found.append(
                    f"judge: {numbers['num_rows']} of {entry['num_rows']} answers of {model} to {name} have a verdict"
                    + (f" (the service refused {refused} of the questions)" if refused else "")
                    + "; a difference is over the rows where both models have one."
                )
    return found
