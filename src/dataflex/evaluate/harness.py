"""Tasks of lm-evaluation-harness, run by its own program on a model that is loaded already."""

from __future__ import annotations

import importlib.metadata
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dataflex.core.errors import ConfigError, did_you_mean, shown
from dataflex.evaluate.identity import digest


def task_digests(names: Sequence[str], include_path: str | None) -> dict[str, str]:
    """What stands for the questions of each task, which are fetched if need be; loads no model.

    Args:
        names: of tasks, groups or tags.
        include_path: a folder of further task files.

    Raises:
        ConfigError: a task that the harness does not know, with the nearest name; a folder that does not exist; data
            that cannot be had; a task that runs what a model writes, or shows it pictures.
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
            loaded = manager.load([name])
            content = {key: _content(task) for key, task in loaded["tasks"].items()}
            groups = {key: group.to_dict() for key, group in loaded["groups"].items()}
            found[name] = digest({"version": version, "tasks": content, "groups": groups})
        except Exception as error:  # of the harness, of datasets, of the hub, of the task's own code
            raise ConfigError(
                f"task {shown(name)} cannot be loaded ({' '.join(str(error).split())[:300]}); its data must be at hand"
            ) from error
        _check_kind(name, loaded["tasks"])
    return found


def _content(task: Any) -> dict[str, Any]:
    """What a task asks: its definition, its rows, and those that its examples are drawn from."""
    examples = list(task.fewshot_docs() or []) if task.config.num_fewshot else []
    return {"config": task.dump_config(), "docs": list(task.eval_docs), "examples": examples}


def _check_kind(name: str, tasks: Mapping[str, Any]) -> None:
    """Raise for what the harness would refuse once the model is loaded."""
    for key, task in tasks.items():
        which = shown(name) if key == name else f"{shown(name)} holds {shown(key)}, which"
        if getattr(task, "UNSAFE_CODE", False):
            raise ConfigError(
                f"task {which} runs code that the model writes, and its authors call that unsafe; take it out, and run "
                "it by lm_eval's own command, with --confirm_run_unsafe_code, where nothing can be harmed"
            )
        if getattr(task, "MULTIMODAL", False):
            raise ConfigError(
                f"task {which} shows pictures or sounds, and models are loaded for text alone; take it out"
            )


def run_task(
    model: Any,
    tokenizer: Any,
    name: str,
    *,
    include_path: str | None,
    batch_size: int,
    limit: int | None,
    resamples: int,
) -> dict[str, dict[str, float]]:
    """Numbers of a task, or of each in a group, as the harness itself reports them, standard errors included.

    Its seeds are the harness's own: with others, a task with examples would show others.

    Args:
        tokenizer: as it lies beside the model; a template of LLaMA-Factory changes the end token of the one that it is
            used with.
        resamples: for those standard errors that need a bootstrap.
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
        bootstrap_iters=resamples,
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
