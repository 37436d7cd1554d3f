"""Tasks of lm-evaluation-harness, run by its own program on a model that is loaded already."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataflex.core.errors import ConfigError, did_you_mean, shown
from dataflex.evaluate.identity import digest
from dataflex.evaluate.intervals import Bootstrap


def task_digests(names: Sequence[str], include_path: str | None) -> dict[str, str]:
    """What stands for the questions of each task, which are fetched if need be; loads no model.

    Args:
        names: of tasks, groups or tags.
        include_path: a folder of further task files.

    Raises:
        ConfigError: a task that the harness does not know, with the nearest name; a folder that does not exist; data
            that cannot be had.
    """
    if include_path is not None and not Path(include_path).is_dir():
        raise ConfigError(f"task_dir is {shown(include_path)}, which is no folder; name the one that holds task files")
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    manager = _manager(include_path)
    for name in names:
        if name not in manager.all_tasks:
            raise ConfigError(
                f"task {shown(name)} is none of lm-evaluation-harness{did_you_mean(name, manager.all_tasks)}; put its "
                "file into task_dir, or correct the name"
            )
    found, version = {}, importlib.metadata.version("lm_eval")
    for name in names:
        try:
            tasks = manager.load([name])["tasks"]
            content = {key: {"config": task.dump_config(), "docs": list(task.eval_docs)} for key, task in tasks.items()}
            found[name] = digest({"version": version, "tasks": content})
        except Exception as error:  # of the harness, of datasets, of the hub, of the task's own code
            raise ConfigError(
                f"task {shown(name)} cannot be loaded ({' '.join(str(error).split())[:300]}); its data must be at hand"
            ) from error
    return found


def run_task(
    model: Any,
    tokenizer: Any,
    name: str,
    *,
    include_path: str | None,
    batch_size: int,
    limit: int | None,
    how: Bootstrap,
) -> dict[str, dict[str, float]]:
    """Numbers of a task, or of each in a group, as the harness itself reports them, standard errors included.

    Args:
        how: its seed is that of the task's examples as well.
    """
    import lm_eval
    from lm_eval.models import huggingface

    harness: Any = lm_eval  # its types are those of its command line
    wrapper: Any = huggingface.HFLM
    found = harness.simple_evaluate(
        model=wrapper(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
        tasks=[name],
        task_manager=_manager(include_path),
        limit=limit,
        log_samples=False,
        bootstrap_iters=how.resamples,
        random_seed=how.seed,
        numpy_random_seed=how.seed,
        torch_random_seed=how.seed,
        fewshot_random_seed=how.seed,
        verbosity="ERROR",
    )
    return {
        # "metric,filter"; what has no filter, such as a number of rows, is none.
        task: {name: float(value) for name, value in numbers.items() if "," in name and isinstance(value, (int, float))}
        for task, numbers in found["results"].items()
    }


def _manager(include_path: str | None) -> Any:
    from lm_eval.tasks import TaskManager

    return TaskManager(include_path=include_path)
