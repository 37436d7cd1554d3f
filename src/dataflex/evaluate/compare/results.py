"""From the runs to the table: means over seeds, paired differences, and what they are worth in words."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from dataflex.core.errors import DataFlexError
from dataflex.evaluate.compare.costs import Cost
from dataflex.evaluate.compare.statistics import Interval, holm, paired, t_interval

METRICS = {"loss": "held-out loss", "exact_match": "exact match"}
LEVEL = 0.05
BASELINES = ("random", "static")  # what the others are compared with, in this order
FEW_SEEDS = 5


def run_record(
    *, num_steps: int, curve: Mapping[int, Mapping[str, Any]], cost: Cost, forwards: float
) -> dict[str, Any]:
    """What one finished run came to.

    Args:
        curve: what was measured, by steps; the last is the final model.
        forwards: what a trained token costs, in forward passes.

    Raises:
        DataFlexError: the final model's loss is not finite.
    """
    final = curve[num_steps]
    if not math.isfinite(final["loss"]):
        raise DataFlexError(f"the run diverged, its held-out loss is {final['loss']}; lower learning_rate")
    num_weights = final["num_weights"]
    return {
        "num_steps": cost.num_steps,
        **{metric: final[metric] for metric in METRICS},
        "curve": {
            str(step): {metric: values[metric] for metric in METRICS}
            for step, values in curve.items()
            if math.isfinite(values["loss"])
        },
        "choosing_flops": cost.choosing_flops(num_weights, forwards),
        "training_flops": cost.training_flops(num_weights, forwards),
        **{key: value for key, value in dataclasses.asdict(cost).items() if key != "num_steps"},
    }


def section(runs: Mapping[str, Mapping[int, dict[str, Any]]], metric: str) -> dict[str, Any]:
    """Everything that is said of the runs of one budget.

    Args:
        runs: by method and seed; a failed one holds ``problem`` alone.
        metric: what is compared.
    """
    finished = {m: {s: r for s, r in seeds.items() if "problem" not in r} for m, seeds in runs.items()}
    means = ("loss", "exact_match", "choosing_s", "training_s", "choosing_flops", "training_flops", "num_steps")
    methods = {
        method: {
            "failed": sorted(runs[method].keys() - seeds.keys()),
            **{name: _over_seeds([run[name] for run in seeds.values()]) for name in means},
            "runs": {str(seed): run for seed, run in runs[method].items()},
        }
        for method, seeds in finished.items()
    }
    return {"methods": methods, "differences": differences(finished, metric)}


def differences(finished: Mapping[str, Mapping[int, dict[str, Any]]], metric: str) -> list[dict[str, Any]]:
    """Each method against ``random``, then against ``static``, paired by seed, with Holm's correction over all."""
    values = {method: {seed: run[metric] for seed, run in seeds.items()} for method, seeds in finished.items()}
    found: list[tuple[str, str, Interval]] = []
    for baseline in BASELINES:
        for method in values:
            if method == baseline or (baseline == "static" and method == "random"):  # that one is static against random
                continue
            interval = paired(values[method], values[baseline])
            if interval is not None:
                found.append((method, baseline, interval))
    adjusted = holm([interval.p for _, _, interval in found])
    num = sum(not math.isnan(p) for p in adjusted)
    return [
        {
            "method": method,
            "baseline": baseline,
            **as_dict(interval),
            "p": _number(interval.p),
            "p_holm": _number(p),
            "sentence": sentence(method, baseline, interval, p, num, metric),
        }
        for (method, baseline, interval), p in zip(found, adjusted, strict=True)
    ]


def sentence(method: str, baseline: str, interval: Interval, p_holm: float, num_comparisons: int, metric: str) -> str:
    """Whether a difference can be told from noise, in words."""
    how = "higher" if interval.mean > 0 else "lower"
    better = (interval.mean > 0) == (metric == "exact_match")
    head = f"{method} against {baseline}: {METRICS[metric]} {abs(interval.mean):.4f} {how}"
    if interval.num == 1:
        return f"{head} with the one seed that both have; nothing can be said of noise."
    if math.isnan(interval.half_width):
        head = head if interval.mean else f"{method} against {baseline}: the same {METRICS[metric]}"
        return f"{head} in each of {interval.num} seeds; they show no spread, hence nothing can be said of noise."
    low, high = interval.mean - interval.half_width, interval.mean + interval.half_width
    head += f" (95% interval {low:+.4f} to {high:+.4f} over {interval.num} seeds)"
    if not interval.excludes_zero:
        return (
            f"{head}; not distinguishable from noise: with these seeds only a difference of more than about "
            f"{interval.half_width:.4f} would have been."
        )
    verdict = "better" if better else "worse"
    if p_holm < LEVEL:
        return f"{head}; {verdict}, distinguishable from noise (p {interval.p:.3g}, {p_holm:.3g} by Holm)."
    return (
        f"{head}; {verdict} if it were the only comparison (p {interval.p:.3g}), not distinguishable from noise among "
        f"the {num_comparisons} that are made (p {p_holm:.3g} by Holm)."
    )


def caution(num_seeds: int, widths: Sequence[float], num_comparisons: int) -> str:
    """What so many seeds can show at all."""
    made = "1 comparison is made" if num_comparisons == 1 else f"{num_comparisons} comparisons are made"
    text = f"{made}; p by Holm counts all that have a p."
    known = [width for width in widths if not math.isnan(width)]
    if not known and num_seeds > 1:
        return f"No pair has several seeds that differ: nothing can be told from noise. {text}"
    if not known:
        return f"With {num_seeds} seed nothing can be told from noise; name several seeds. {text}"
    few = f"{num_seeds} seeds see only large effects: " if num_seeds < FEW_SEEDS else f"{num_seeds} seeds were used: "
    return (
        f"{few}the smallest difference that would have been told from noise (the half-width of the interval) was "
        f"between {min(known):.4f} and {max(known):.4f}, depending on the pair. {text}"
    )


def as_dict(interval: Interval) -> dict[str, Any]:
    """For JSON, which has no NaN."""
    return {"mean": interval.mean, "half_width": _number(interval.half_width), "num": interval.num}


def _over_seeds(values: Sequence[float]) -> dict[str, Any] | None:
    return as_dict(t_interval(values)) if values else None


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
