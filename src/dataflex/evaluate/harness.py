"""Tasks of lm-evaluation-harness, run by its own program on a model that is loaded already."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from dataflex.core.errors import ConfigError, did_you_mean, shown


def check_tasks(names: list[str], include_path: str | None) -> None:
    """Raise for a task that the harness does not know; loads no model.

    Raises:
        ConfigError: with the nearest name, or a folder that does not exist.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise ConfigError(f"task_dir is {shown(include_path)}, which is no folder; name the one that holds task files")
    known = _manager(include_path).all_tasks
    for name in names:
        if name not in known:
            raise ConfigError(
                f"task {shown(name)} is none of lm-evaluation-harness{did_you_mean(name, known)}; put its file into "
                "task_dir, or correct the name"
            )


def run_tasks(
    model: Any,
    tokenizer: Any,
    names: list[str],
    *,
    include_path: str | None,
    batch_size: int,
    limit: int | None,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Metrics of each task by name, as the harness itself reports them, standard errors included.

    Raises:
        ConfigError: a task cannot be run, for its data cannot be had.
    """
    import lm_eval
    from lm_eval.models import huggingface

    harness: Any = lm_eval  # its types are those of its command line
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    try:
        found = harness.simple_evaluate(
            model=_wrapped(huggingface, model, tokenizer, batch_size),
            tasks=names,
            task_manager=_manager(include_path),
            limit=limit,
            log_samples=False,
            bootstrap_iters=0,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
            verbosity="ERROR",
        )
    except (OSError, ValueError, KeyError, ConnectionError) as error:
        raise ConfigError(
            f"the tasks {', '.join(names)} cannot be run ({' '.join(str(error).split())[:300]}); their data must be at "
            "hand"
        ) from error
    results: dict[str, Any] = found["results"] if found else {}
    return {
        task: {name: float(value) for name, value in numbers.items() if isinstance(value, (int, float))}
        for task, numbers in results.items()
    }


def _wrapped(huggingface: Any, model: Any, tokenizer: Any, batch_size: int) -> Any:
    return huggingface.HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)


def _manager(include_path: str | None) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)
