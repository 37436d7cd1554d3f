"""The verb ``evaluate``: one or more models on files of questions and on tasks, side by side."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from tqdm import tqdm

from dataflex.cli.evaluate_config import LOSS, MATH, Evaluation, read_evaluation
from dataflex.core.errors import ConfigError, shown
from dataflex.evaluate import models
from dataflex.evaluate import results as tables
from dataflex.evaluate.dataflow_files import write_answers, write_configs, write_questions
from dataflex.evaluate.identity import digest, versions
from dataflex.evaluate.models import ModelSpec, device, load_tokenizer, loaded
from dataflex.evaluate.parts import Parts, read_task, write_task
from dataflex.evaluate.prompts import Prompter
from dataflex.evaluate.scores import METRICS, PACKAGES
from dataflex.ledger import lock
from dataflex.ledger.files import write_atomic
from dataflex.signals.head import IGNORE_INDEX


def evaluate(path: str, overrides: list[str]) -> None:
    """Measure what is missing, then write and print the results.

    Raises:
        DataFlexError: a mistake in the config, found before a model is loaded.
    """
    evaluation = read_evaluation(path, overrides)
    prompters = {spec.name: _prompter(spec, evaluation) for spec in evaluation.models}
    for spec in evaluation.models:
        _check_rows(spec, evaluation, prompters[spec.name])
    folder = Path(evaluation.keys.output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"output_dir is {shown(str(folder))}, where no folder can be made ({error.strerror or error}); name another"
        ) from error
    lock.take(folder / ".evaluate.lock")
    try:
        session = Session(evaluation, folder, prompters)
        session.probe_judge()
        for spec in evaluation.models:
            session.measure(spec)
        session.finish()
    finally:
        lock.release(folder / ".evaluate.lock")


def _prompter(spec: ModelSpec, evaluation: Evaluation) -> Prompter:
    keys = evaluation.keys
    return Prompter(load_tokenizer(spec), keys.template, keys.delimiter, enable_thinking=keys.enable_thinking)


def _check_rows(spec: ModelSpec, evaluation: Evaluation, prompter: Prompter) -> None:
    """Raise where a row has more tokens than the model was made for, or tokens that it does not have."""
    (limit, num_tokens), new = models.limits(spec), evaluation.generation.max_new_tokens
    for name, (source, questions) in evaluation.questions.items():
        for number, question in enumerate(questions):
            row = prompter.row(question, question.answer)
            ids = row["input_ids"]
            # Without a token before it, nothing gives the answer's first token a loss.
            if row["labels"][:1] != [IGNORE_INDEX]:
                raise ConfigError(
                    f"row {number} of {source.path} has an empty question, of which the template "
                    f"{evaluation.keys.template} makes no token for {spec.name}; write it, or take the row out"
                )
            if num_tokens is not None and max(ids, default=0) >= num_tokens and spec.adapter is None:
                raise ConfigError(
                    f"template is {evaluation.keys.template}, which uses tokens that {spec.name} does not have; take "
                    "the template that it was trained with"
                )
            whole = len(ids)
            written = len(prompter.prompt(question)) + new if evaluation.generates(name) else 0
            if limit is not None and max(whole, written) > limit:
                raise ConfigError(
                    f"row {number} of {source.path} takes {max(whole, written)} tokens with its answer, and {spec.name}"
                    f" was made for {limit}; take it out, or lower max_new_tokens of generation, which is {new}"
                )


class Session:
    """The pieces of an evaluation, and what they come to."""

    def __init__(self, evaluation: Evaluation, folder: Path, prompters: dict[str, Prompter]) -> None:
        self._asked, self._folder, self._prompters = evaluation, folder, prompters
        self._console = Console(highlight=False, markup=False, soft_wrap=True)
        self._identities = {spec.name: self._identity(spec) for spec in evaluation.models}

    def _identity(self, spec: ModelSpec) -> dict[str, Any]:
        """What stands for a model and for how it computes."""
        return {**models.identity(spec), "dtype": self._asked.keys.dtype, "device": device(), "versions": versions()}

    def _parts(self, spec: ModelSpec, name: str) -> Parts:
        source, questions = self._asked.questions[name]
        keys = self._asked.keys
        base = {
            "model": self._identities[spec.name],
            "questions": digest({"rows": [asdict(question) for question in questions], "format": source.format}),
            "template": keys.template,
            "delimiter": keys.delimiter,
            "enable_thinking": keys.enable_thinking,
        }
        folder, thoughts = self._folder / "parts" / spec.name, self._prompters[spec.name].thoughts
        return Parts(folder=folder, name=name, base=base, questions=questions, thoughts=thoughts)

    def _task(self, spec: ModelSpec, task: str) -> tuple[Path, str]:
        keys = self._asked.keys
        identity = digest(
            {
                "model": self._identities[spec.name],
                "task": self._asked.task_digests[task],
                "limit": keys.task_limit,
                "batch": keys.task_batch_size,
                "resamples": self._asked.bootstrap.resamples,
            }
        )
        return self._folder / "parts" / spec.name / f"task.{task.replace('/', '_')}.json", identity

    # measuring

    def probe_judge(self) -> None:
        """Ask the judge one question if it will be needed: before hours of generation, not after."""
        asked = self._asked
        if asked.judge is None:
            return
        for spec in asked.models:
            for name in filter(asked.generates, asked.questions):
                if self._parts(spec, name).verdicts(asked.generation, asked.judge) is None:
                    return asked.judge.probe()

    def measure(self, spec: ModelSpec) -> None:
        """Make the pieces of one model that are not there; the model is loaded only if one is missing."""
        asked, how = self._asked, self._asked.generation
        todo: list[tuple[str, Any]] = []
        for name in asked.questions:
            parts = self._parts(spec, name)
            if LOSS in asked.keys.metrics and parts.losses() is None:
                todo.append((f"{name}: losses", ("losses", parts)))
            if parts.questions[0].choices and parts.choices() is None:
                todo.append((f"{name}: choices", ("choices", parts)))
            if asked.generates(name) and parts.answers(how) is None:
                todo.append((f"{name}: answers", ("answers", parts)))
        tasks = [task for task in asked.keys.tasks if read_task(*self._task(spec, task)) is None]
        if not todo and not tasks:
            self._say(f"{spec.name}: everything is there")
        else:
            with loaded(spec, asked.keys.dtype) as model:
                for what, (piece, parts) in todo:
                    self._make(spec, model, what, piece, parts)
                for task in tasks:
                    self._run_task(spec, model, task)
        for name in filter(asked.generates, asked.questions):
            parts = self._parts(spec, name)
            if MATH in asked.keys.metrics and parts.mathematics(how) is None:
                with _bar(f"{spec.name}: {name}: mathematics", len(parts.questions), "answers") as advance:
                    parts.verify_mathematics(how, advance)
        if asked.judge is not None:
            for name in asked.questions:
                parts = self._parts(spec, name)
                if asked.generates(name) and parts.verdicts(how, asked.judge) is None:
                    with _bar(f"{spec.name}: {name}: judge", len(parts.questions), "verdicts") as advance:
                        parts.ask(how, asked.judge, advance)

    def _make(self, spec: ModelSpec, model: Any, what: str, piece: str, parts: Parts) -> None:
        prompter = self._prompters[spec.name]
        if piece == "answers":
            with _bar(f"{spec.name}: {what}", len(parts.questions), "answers") as advance:
                parts.generate(model, prompter, self._asked.generation, advance)
            return
        with _bar(f"{spec.name}: {what}", None, "tokens") as advance:
            (parts.measure_losses if piece == "losses" else parts.measure_choices)(model, prompter, advance)

    def _run_task(self, spec: ModelSpec, model: Any, task: str) -> None:
        from dataflex.evaluate.harness import run_task

        keys = self._asked.keys
        self._say(f"{spec.name}: task {task}")
        found = run_task(
            model,
            load_tokenizer(spec),
            task,
            include_path=keys.task_dir,
            batch_size=keys.task_batch_size,
            limit=keys.task_limit,
            resamples=self._asked.bootstrap.resamples,
        )
        write_task(*self._task(spec, task), found)

    # what it comes to

    def finish(self) -> None:
        """Write results.json, results.md and DataFlow's files; print the table."""
        asked = self._asked
        results: dict[str, Any] = {
            "models": {spec.name: {"model": spec.base, "adapter": spec.adapter} for spec in asked.models},
            "template": asked.keys.template,
            "delimiter": asked.keys.delimiter,
            "enable_thinking": asked.keys.enable_thinking,
            "dtype": asked.keys.dtype,
            "device": device(),
            "task_limit": asked.keys.task_limit,
            "judge": asked.judge.public if asked.judge is not None else None,
            "generation": asdict(asked.generation),
            "bootstrap": asdict(asked.bootstrap),
            "versions": versions() | versions(PACKAGES),
            "data": {name: self._data_results(name) for name in asked.questions},
            "tasks": self._task_results(),
        }
        write_atomic(self._folder / "results.json", json.dumps(results, ensure_ascii=False, indent=1).encode())
        write_atomic(self._folder / "results.md", tables.markdown(results).encode())
        self._write_dataflow()
        header, rows = tables.table_rows(results)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for title in header:
            table.add_column(title, overflow="fold")
        for row in rows:
            table.add_row(*row)
        self._console.print(table)
        self._say(tables.legend(results))
        self._say(f"all numbers: {self._folder / 'results.json'}; answers: {self._folder / 'answers'}{os.sep}")

    def _task_results(self) -> dict[str, dict[str, Any]]:
        """Task, model, metric; a group stands with all of its tasks."""
        found: dict[str, dict[str, Any]] = {}
        for named in self._asked.keys.tasks:
            for spec in self._asked.models:
                for task, numbers in _there(read_task(*self._task(spec, named))).items():
                    found.setdefault(task, {})[spec.name] = numbers
        return found

    def _data_results(self, name: str) -> dict[str, Any]:
        asked, how = self._asked, self._asked.generation
        source, questions = asked.questions[name]
        by_model: dict[str, dict[str, tables.PerRow]] = {}
        sources: dict[str, Any] = {}
        unreadable, refused = 0, {}
        for spec in asked.models:
            parts, metrics = self._parts(spec, name), {}
            if questions[0].choices:
                metrics |= tables.choice_scores(_there(parts.choices()), questions)
            if asked.generates(name):
                answers = _there(parts.answers(how))
                write_answers(self._answers(spec, name), parts.scored, answers)
                for metric in asked.keys.metrics:
                    if metric == MATH:
                        scores_N, unreadable = _there(parts.mathematics(how))
                        metrics[metric] = tables.scored(scores_N)
                    elif metric in METRICS:
                        metrics[metric] = tables.answer_scores(metric, answers, parts.scored)
                if asked.judge is not None:
                    verdicts_N, refused[spec.name] = _there(parts.verdicts(how, asked.judge))
                    metrics["judge"] = tables.judged(verdicts_N)
            if LOSS in asked.keys.metrics:
                losses = _there(parts.losses())
                metrics[LOSS] = (losses.loss_sums_N, losses.tokens_N)
                found = tables.loss_by_source(losses, questions, asked.bootstrap)
                sources |= {spec.name: found} if found else {}
            by_model[spec.name] = metrics
        return {
            "path": source.path,
            "num_rows": len(questions),
            **({"unreadable_references": unreadable} if MATH in by_model[asked.models[0].name] else {}),
            **({"judge_refused": refused} if refused else {}),
            "metrics": tables.compared(by_model, asked.bootstrap),
            "sources": sources,
        }

    def _answers(self, spec: ModelSpec, name: str) -> Path:
        folder = self._folder / "answers"
        folder.mkdir(exist_ok=True)
        return folder / f"{name}_answers_{spec.name}.json"

    def _write_dataflow(self) -> None:
        """For ``dataflow eval local`` and ``api``, which generate with whole models."""
        asked = self._asked
        named = [name for name in asked.questions if asked.generates(name)]
        if not named:
            return
        folder = self._folder / "dataflow"
        folder.mkdir(exist_ok=True)
        for name in named:
            write_questions(folder / f"{name}.json", self._parts(asked.models[0], name).scored)
        bases = {spec.name: Path(spec.base) for spec in asked.models if spec.adapter is None}
        # Absolute, since DataFlow runs in that folder.
        whole = {name: str(path.resolve() if path.is_dir() else path) for name, path in bases.items()}
        write_configs(folder, whole, named, asked.generation, asked.judge)

    def _say(self, text: str) -> None:
        self._console.print(f"[dataflex] {text}")


def _there(piece: Any) -> Any:
    assert piece is not None, "it was made before"
    return piece


@contextmanager
def _bar(title: str, total: int | None, unit: str) -> Iterator[Any]:
    with tqdm(total=total, desc=title, unit=f" {unit}", dynamic_ncols=True, leave=False) as bar:
        yield bar.update
