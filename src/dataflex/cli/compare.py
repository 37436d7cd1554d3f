"""The verb ``compare``: train the same config under several methods and seeds, and judge the differences."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console

from dataflex.cli.compare_inputs import held_out_inputs, run_inputs
from dataflex.cli.compare_plan import (
    Comparison,
    Method,
    measuring_config,
    passes_of,
    read_plan,
    sized,
)
from dataflex.cli.plan import FORWARDS_PER_TRAINED_ROW, geometry_of
from dataflex.cli.pool_size import pool_size
from dataflex.core.errors import DataFlexError
from dataflex.core.packages import drawing_package
from dataflex.evaluate.compare import page, results, runs
from dataflex.evaluate.compare.compute import Price, steps_within
from dataflex.evaluate.compare.costs import read_cost
from dataflex.evaluate.identity import run_digest
from dataflex.integrations import llamafactory
from dataflex.ledger import lock
from dataflex.ledger.files import write_atomic


def compare(path: str) -> int:
    """Run what is missing of a comparison and write its results; returns the exit code, 1 when a run failed.

    Raises:
        DataFlexError: a mistake in the plan, found before anything is started.
    """
    comparison = read_plan(path)
    drawing_package()  # before anything is trained
    folder = Path(comparison.keys.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    lock.take(folder / ".compare.lock")
    try:
        return Session(comparison, folder).run()
    finally:
        lock.release(folder / ".compare.lock")


class Session:
    """The runs of a plan, one after another, and what they came to."""

    def __init__(self, comparison: Comparison, folder: Path) -> None:
        self._plan, self._folder = comparison, folder
        self._console = Console(highlight=False, markup=False, soft_wrap=True)
        base, rows = comparison.base, comparison.held_out
        self._held_out = runs.HeldOut(
            config=measuring_config(comparison, folder), inputs=held_out_inputs(base, rows.dataset, rows.file)
        )
        world_size = geometry_of(base, llamafactory.num_devices()).world_size
        self._inputs = {m.label: run_inputs(base, m.parsed, world_size) for m in comparison.methods}
        self._forwards = FORWARDS_PER_TRAINED_ROW.get(str(comparison.base.get("finetuning_type", "lora")), 3.0)
        self._problems: list[str] = []

    def run(self) -> int:
        """Everything, in the order that lets equal compute be derived from equal steps."""
        plan, keys = self._plan, self._plan.keys
        if plan.added:
            self._say(f"always compared, hence added: {', '.join(plan.added)}")
        num_trained = plan.num_held_out_trained
        if num_trained:
            self._say(
                f"{num_trained} held-out rows are rows of the pool as well: what is measured of them is not unseen"
            )
        start = {**self._start(), "num_trained": num_trained}
        steps = {method.label: plan.num_steps for method in plan.methods}
        sections: dict[str, Any] = {}
        at_steps = results.section(self._train(steps, "equal steps"), plan.held_out.metric)
        sections["steps"] = {"aim": {"num_steps": plan.num_steps}, **at_steps}
        self._write(start, sections)
        if keys.budget != "steps":
            budget, lengths = self._lengths(at_steps)
            at_compute = results.section(self._train(lengths, "equal compute"), plan.held_out.metric)
            sections["compute"] = {"aim": {"flops": budget, "num_steps": lengths}, **at_compute}
            if keys.budget == "compute":  # what it was measured with is no result that was asked for
                del sections["steps"]
            self._write(start, sections)
        for problem in self._problems:
            self._say(problem)
        return 1 if self._problems else 0

    def _start(self) -> Mapping[str, Any]:
        """What the model that all start from was measured at; a failure here would meet every run, hence is the end."""
        out = self._folder / f"start-{self._held_out.digest[:12]}.json"
        problem = runs.measure_all({0: None}, self._held_out, out, self._plan.launcher, "the model to start from")
        if problem is not None:
            raise DataFlexError(problem)
        return json.loads(out.read_text(encoding="utf-8"))["0"]

    def _train(self, steps: Mapping[str, int], budget: str) -> dict[str, dict[int, dict[str, Any]]]:
        """Train and measure what is not finished; the record of every run, by method and seed."""
        found: dict[str, dict[int, dict[str, Any]]] = {label: {} for label in steps}
        seeds = self._plan.keys.seeds
        todo = [(seed, method) for seed in seeds for method in self._plan.methods if method.label in steps]
        for number, (seed, method) in enumerate(todo, start=1):  # by seed: a part of the plan is a comparison as well
            run = self._make(method, seed, steps[method.label])
            done = "finished before" if run.is_finished else "training"
            self._say(f"{budget}, {number} of {len(todo)}: {method.label}, seed {seed}, {run.num_steps} steps: {done}")
            found[method.label][seed] = self._record(run)
        return found

    def _record(self, run: runs.Run) -> dict[str, Any]:
        launcher = self._plan.launcher
        problem = runs.train(run, launcher) or runs.measure(run, self._held_out, launcher)
        if problem is None:
            curve = runs.measured(run, self._held_out)
            try:
                return results.run_record(
                    num_steps=run.num_steps, curve=curve, cost=read_cost(run.model), forwards=self._forwards
                )
            except DataFlexError as error:
                problem = f"{run.method}, seed {run.seed} failed: {error}"
        self._say(problem)
        if problem not in self._problems:
            self._problems.append(problem)
        return {"problem": problem}

    def _make(self, method: Method, seed: int, num_steps: int) -> runs.Run:
        folder = self._folder / "runs" / method.label / f"seed-{seed}" / f"steps-{num_steps}"
        config = {**sized(method, num_steps, self._plan.held_out.points), "seed": seed}
        digest = run_digest(config, self._inputs[method.label])
        if hasattr(method.parsed.deciding.selector, "cache_dir"):  # a run writes nothing outside its folder
            component = config.get("component", {})
            params = {"cache_dir": str(folder / "cache"), **component.get("params", {})}
            config["component"] = {**component, "params": params}
        config["output_dir"] = str(folder / "model")
        return runs.Run(
            method=method.label, seed=seed, num_steps=num_steps, folder=folder, config=config, digest=digest
        )

    def _lengths(self, at_steps: Mapping[str, Any]) -> tuple[float, dict[str, int]]:
        """(FLOPs of choosing and training, the number of steps that each method gets for them).

        Prices are those of the first seed: a seed that is added later changes no length, hence no finished run.
        """
        prices: dict[str, Price] = {}
        totals: dict[str, float] = {}
        seed, pool = str(self._plan.keys.seeds[0]), pool_size(self._plan.base)
        for method in self._plan.methods:
            run = at_steps["methods"][method.label]["runs"][seed]
            if "problem" in run:
                self._say(
                    f"{method.label} did not finish with seed {seed} at equal steps, so that its price is not known: "
                    "left out"
                )
                continue
            num_passes = run["num_passes"]
            prices[method.label] = Price(
                flops_per_step=run["training_flops"] / run["num_steps"],
                flops_per_pass=run["choosing_flops"] / num_passes if num_passes else 0.0,
            )
            passes = passes_of(method, self._plan.num_steps, pool)
            totals[method.label] = prices[method.label].total(self._plan.num_steps, passes)
        budget = float(self._plan.keys.flops or max(totals.values(), default=0.0))
        methods = {method.label: method for method in self._plan.methods}
        lengths = {
            label: steps_within(
                budget, price, lambda num_steps, label=label: passes_of(methods[label], num_steps, pool)
            )
            for label, price in prices.items()
        }
        return budget, lengths

    def _write(self, start: Mapping[str, Any], sections: Mapping[str, Any]) -> None:
        content = {
            "metric": self._plan.held_out.metric,
            "seeds": list(self._plan.keys.seeds),
            "start": dict(start),
            "forwards_per_trained_token": self._forwards,
            "budgets": dict(sections),
        }
        write_atomic(self._folder / "results.json", json.dumps(content, indent=1).encode())
        text = page.markdown(content)
        write_atomic(self._folder / "results.md", text.encode())
        write_atomic(self._folder / "results.html", page.html(content).encode())
        self._console.print(text)
        self._say(f"table, numbers and picture: {self._folder}/results.md, .json, .html")

    def _say(self, sentence: str) -> None:
        self._console.print(f"[compare] {sentence}")
