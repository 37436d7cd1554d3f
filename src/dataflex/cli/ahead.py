"""The verbs ``embed`` and ``score``: make a run's embeddings or initial losses ahead of it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Literal

from dataflex.cli.config import read_config
from dataflex.cli.measuring import measuring_settings
from dataflex.core.errors import ConfigError

WHAT = {
    "embed": ("embeddings", ("embeddings", "target_embeddings"), "near, tsds or cluster_less"),
    "score": ("initial losses", ("loss",), "delta_loss"),
}


def make_ahead(verb: Literal["embed", "score"], path: str, overrides: list[str]) -> None:
    """Measure what the method of a config needs before its first step, into its ``cache_dir``.

    Raises:
        DataFlexError: a mistake of the user's.
    """
    what, signals, such_as = WHAT[verb]
    config = read_config(path, overrides)
    method = config.method
    if method is None or not method.selects:
        raise ConfigError(f"no method is named that needs {what}; set train_type: dynamic_select and a component_name")
    wanted = tuple(name for name in signals if name in method.selector.needs)
    if not wanted or not hasattr(method.selector, "cache_dir"):
        raise ConfigError(f"{method.name} needs no {what} that could be kept; name a method such as {such_as}")
    if method.selector.cache_dir is None:
        raise ConfigError(
            f"cache_dir is not set, so that a run would not find the {what}; set component.params.cache_dir, here and "
            "for the run"
        )
    from dataflex.integrations import llamafactory
    from dataflex.integrations.measuring import run_ahead

    settings = measuring_settings(config)
    work = tempfile.mkdtemp(prefix="dataflex-")
    try:
        costs = run_ahead(config.host, settings, wanted, output_dir=work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for name, cost in costs.items():
        took = f"in {cost['seconds']:.1f} s" if cost["source"] == "measured" else "were there already"
        done = f"{cost['num_rows']} rows, {cost['num_tokens']:,} tokens " if cost["source"] == "measured" else ""
        llamafactory.say(f"{name.replace('_', ' ')}: {done}{took}; in {Path(method.selector.cache_dir)}")
