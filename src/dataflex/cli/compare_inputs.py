"""What a comparison's runs and measurements read: which files must be there, and what stands for their content."""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflex.cli.config import RunConfig, dataset_names
from dataflex.core.errors import ConfigError, did_you_mean, shown
from dataflex.evaluate.identity import file_digests
from dataflex.ledger.run_facts import without_cache
from dataflex.train.method import parameters

CONFIG_FILES = ("deepspeed", "fsdp_config")  # keys that may name a file of settings


def check_held_out(base: Mapping[str, Any], dataset: str | None, file: str | None) -> None:
    """Raise where the held-out rows are missing, empty, trained on, or what a method chooses by."""
    used = {
        "is also trained on": dataset_names(base) or [],
        "is the target as well": dataset_names(base, "target") or [],
    }
    for what, names in used.items():
        if dataset is not None and dataset in names:
            raise ConfigError(f"held_out: the data set {shown(dataset)} {what}; name rows that are not")
    files = held_out_files(base, dataset, file)
    for path in files:
        if not path.exists() or _is_empty(path):
            raise ConfigError(
                f"the held-out file {path} {'is empty' if path.exists() else 'does not exist'}; correct it"
            )
    part = _part(entries_of(base, [dataset])[dataset]) if dataset is not None else _part({})
    for what, names in used.items():
        for name, entry in entries_of(base, names).items():
            own = {path.resolve() for path in files} & {path.resolve() for path in dataset_files(base, [name])}
            if own and _part(entry) == part:
                raise ConfigError(
                    f"held_out: the file {shown(str(file or next(iter(own))))} {what}; name one with other rows"
                )


def _is_empty(path: Path) -> bool:
    if path.is_dir():
        return not any(path.iterdir())
    if not path.stat().st_size:
        return True
    with path.open("rb") as file:
        return file.read(64).strip() in (b"[]", b"")


def _part(entry: Mapping[str, Any]) -> tuple[Any, ...]:
    """Which part of its file a data set reads."""
    return (entry.get("subset"), entry.get("split") or "train")


def held_out_files(base: Mapping[str, Any], dataset: str | None, file: str | None) -> list[Path]:
    """The files that hold the held-out rows."""
    return [Path(file)] if file is not None else dataset_files(base, [str(dataset)])


def dataset_files(base: Mapping[str, Any], names: list[str]) -> list[Path]:
    """The files of data sets, as far as they lie in the base's dataset_dir."""
    directory, entries = Path(str(base.get("dataset_dir", "data"))), entries_of(base, names)
    return [directory / str(entry["file_name"]) for entry in entries.values() if "file_name" in entry]


def model_inputs(base: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the model, of the adapters on it, and of files of settings that the base names."""
    named = [str(base.get("model_name_or_path", "")), *adapters(base)]
    named += [base[key] for key in CONFIG_FILES if isinstance(base.get(key), str)]
    return file_digests([path for path in map(Path, named) if str(path) != "." and path.exists()])


def run_inputs(base: Mapping[str, Any], method: RunConfig, world_size: int) -> dict[str, str]:
    """All that determines a run's numbers beside its config: rows and how they are read, model, method, ranks."""
    names, decides = [*(dataset_names(base) or []), *method.target], method.deciding
    components = [
        decides.selector,
        *(part.method for part in (decides.mixer, *decides.weighers, *decides.orders) if part),
    ]
    files = [path for path in dataset_files(base, names) if path.exists()]
    files += [path for component in components for path in _files_of(component)]
    described = {
        "data sets": entries_of(base, names),
        # A preset can be edited under its name.
        "method": {"name": decides.name, "params": without_cache(parameters(decides.selector)), "parts": decides.parts},
        "world size": world_size,
    }
    return {
        **model_inputs(base),
        **file_digests(files),
        **{name: json.dumps(value, sort_keys=True, default=str) for name, value in described.items()},
    }


def _files_of(component: Any) -> list[Path]:
    """What a component depends on: files and folders that its parameters name, and its code where that is not ours."""
    found = []
    for value in without_cache(parameters(component)).values():
        path = Path(value) if isinstance(value, str) and value.strip(". ") else None
        if path is not None and _exists(path):  # scores, neighbours, a model, a run to repeat
            found += [path, *(place for place in [path / "dataflex"] if place.exists())]
    module = inspect.getmodule(type(component))
    if module is not None and module.__name__.split(".")[0] != "dataflex" and getattr(module, "__file__", None):
        found.append(Path(str(module.__file__)))
    return found


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # a text that no file can be called
        return False


def held_out_inputs(base: Mapping[str, Any], dataset: str | None, file: str | None) -> dict[str, str]:
    """All that determines what is measured beside LLaMA-Factory's keys."""
    entries = entries_of(base, [dataset]) if dataset is not None else {}
    return {
        **model_inputs(base),
        **file_digests(held_out_files(base, dataset, file)),
        "data sets": json.dumps(entries, sort_keys=True),
    }


def adapters(base: Mapping[str, Any]) -> list[str]:
    """The adapters that a config starts from."""
    given = base.get("adapter_name_or_path") or []
    return [str(name).strip() for name in (given.split(",") if isinstance(given, str) else given)]


def entries_of(base: Mapping[str, Any], names: list[str]) -> dict[str, dict[str, Any]]:
    """What dataset_info.json says of data sets."""
    place = Path(str(base.get("dataset_dir", "data"))) / "dataset_info.json"
    try:
        info = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{place} cannot be read ({error}); correct dataset_dir") from error
    for name in names:
        if not isinstance(info, dict) or not isinstance(info.get(name), dict):
            hint = did_you_mean(name, info)
            raise ConfigError(f"data set {shown(name)}{hint} is not in {place}; correct it")
    return {name: info[name] for name in names}
