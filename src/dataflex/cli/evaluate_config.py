"""The strict reading of an evaluation's config; everything that can be checked without a model is checked here."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from typing import Any

from dataflex.cli.config import load_files
from dataflex.cli.strict import build
from dataflex.core.errors import ConfigError, did_you_mean, shown
from dataflex.evaluate.generate import Generation
from dataflex.evaluate.intervals import Bootstrap
from dataflex.evaluate.judge import Judge
from dataflex.evaluate.models import ModelSpec, check_model
from dataflex.evaluate.questions import FORMATS, Question, Source, read_questions
from dataflex.evaluate.scores import METRICS, NEEDS

LOSS = "loss"
MATH = "math"
DTYPES = ("auto", "float32", "bfloat16", "float16")
MOST_SEED = 2**32  # of numpy, which tasks of the harness draw with
EXTRA = "pip install 'dataflex[evaluate]'"


@dataclass(frozen=True, kw_only=True)
class EvaluationKeys:
    """The keys of an evaluation, each of its type."""

    models: tuple[dict[str, Any], ...]
    output_dir: str
    data: tuple[dict[str, Any], ...] = ()
    tasks: tuple[str, ...] = ()
    template: str = "chat"
    delimiter: str = " "
    enable_thinking: bool | None = True
    metrics: tuple[str, ...] = ("exact_match", "f1", "rouge_l", LOSS)
    generation: dict[str, Any] = field(default_factory=dict)
    bootstrap: dict[str, Any] = field(default_factory=dict)
    judge: dict[str, Any] | None = None
    task_dir: str | None = None
    task_limit: int | None = None
    task_batch_size: int = 8
    dtype: str = "auto"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """An evaluation, checked as far as it can be without a model."""

    keys: EvaluationKeys
    models: list[ModelSpec]
    questions: dict[str, tuple[Source, list[Question]]]
    generation: Generation
    bootstrap: Bootstrap
    judge: Judge | None
    task_digests: dict[str, str]  # what stands for the questions of each task

    def generates(self, name: str) -> bool:
        """True where answers of a data set are written, not only measured."""
        written = set(self.keys.metrics) & set(METRICS) or self.judge is not None
        return bool(written) and not self.questions[name][1][0].choices


def read_evaluation(path: str, overrides: list[str]) -> Evaluation:
    """Read and check a config; loads no model.

    Raises:
        ConfigError: an unknown key, a wrong value, a model, a file, a column or a task that is not there.
    """
    raw, component = load_files(path, overrides)
    if component:
        raise ConfigError(f"component stands in {path}; an evaluation names models and data")
    keys = build(EvaluationKeys, raw, where=f"{path}: ")
    if not keys.models:
        raise ConfigError("models is empty; name one or more, each with name and model_name_or_path")
    if not keys.data and not keys.tasks:
        raise ConfigError("neither data nor tasks is set; name what to evaluate on")
    models = [build(ModelSpec, given, where=f"models[{i}]: ") for i, given in enumerate(keys.models)]
    sources = [build(Source, given, where=f"data[{i}]: ") for i, given in enumerate(keys.data)]
    for what, named in (("model", [m.name for m in models]), ("data set", [s.name for s in sources])):
        _check_names(what, named)
    for source in sources:
        _one_of(f"format of {source.name}", source.format, FORMATS)
    for metric in keys.metrics:
        _one_of("a metric", metric, (*METRICS, LOSS))
    _one_of("dtype", keys.dtype, DTYPES)
    generation = build(Generation, keys.generation, where="generation: ")
    _check_generation(generation)
    bootstrap = build(Bootstrap, keys.bootstrap, where="bootstrap: ")
    if bootstrap.resamples < 1 or not 0 < bootstrap.confidence < 1:
        raise ConfigError(
            f"bootstrap has {bootstrap.resamples} resamples and confidence {bootstrap.confidence}; there must be at "
            "least 1, and a confidence between 0 and 1"
        )
    if not 0 <= bootstrap.seed < MOST_SEED:
        raise ConfigError(f"bootstrap: seed is {bootstrap.seed}; it must be at least 0 and below {MOST_SEED}")
    judge = build(Judge, keys.judge, where="judge: ") if keys.judge is not None else None
    for number, name in ((keys.task_limit, "task_limit"), (keys.task_batch_size, "task_batch_size")):
        if number is not None and number < 1:
            raise ConfigError(f"{name} is {number}; it must be at least 1")
    _check_packages(keys, judge is not None)
    questions = {source.name: (source, read_questions(source)) for source in sources}
    for model in models:
        check_model(model)
    if judge is not None:
        judge.check()
    return Evaluation(
        keys=keys,
        models=models,
        questions=questions,
        generation=generation,
        bootstrap=bootstrap,
        judge=judge,
        task_digests=_task_digests(keys),
    )


def _task_digests(keys: EvaluationKeys) -> dict[str, str]:
    if not keys.tasks:
        return {}
    from dataflex.evaluate.harness import task_digests

    return task_digests(keys.tasks, keys.task_dir)


def _check_names(what: str, names: list[str]) -> None:
    """Names are parts of file names, and keys of the results."""
    for name in names:
        plain = name.replace("-", "").replace("_", "").replace(".", "")
        if not plain.isalnum() or name.startswith("."):
            raise ConfigError(f"a {what} is called {shown(name)}; use letters, digits, '-', '_' and '.'")
        if names.count(name) > 1:
            raise ConfigError(f"two {what}s are called {shown(name)}; give one of them another name")


def _one_of(what: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ConfigError(f"{what} is {shown(value)}{did_you_mean(value, known)}; it must be one of {', '.join(known)}")


def _check_generation(how: Generation) -> None:
    for name, value, fits, meant in (
        ("max_new_tokens", how.max_new_tokens, how.max_new_tokens >= 1, "at least 1"),
        ("batch_tokens", how.batch_tokens, how.batch_tokens >= 1, "at least 1"),
        ("temperature", how.temperature, 0 <= how.temperature < float("inf"), "0 or more"),
        ("top_p", how.top_p, 0 < how.top_p <= 1, "above 0, at most 1"),
        ("seed", how.seed, 0 <= how.seed < MOST_SEED, f"at least 0 and below {MOST_SEED}"),
        ("until", list(how.until), all(how.until), "texts of at least one character: an empty one ends every answer"),
    ):
        if not fits:
            raise ConfigError(f"generation: {name} is {value}; it must be {meant}")


def _check_packages(keys: EvaluationKeys, judged: bool) -> None:
    needed = {NEEDS[metric]: f"the metric {metric}" for metric in keys.metrics if metric in NEEDS}
    needed |= {"scipy": "intervals"}
    needed |= {"lm_eval": "tasks"} if keys.tasks else {}
    needed |= {"openai": "the judge"} if judged else {}
    for package, what in needed.items():
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"{what} needs the package {package}, which is not installed; run {EXTRA}")
