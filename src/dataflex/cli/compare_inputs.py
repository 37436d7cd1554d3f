"""What a comparison's runs and measurements read: which files must be there, and what stands for their content."""

from __future__ import annotations

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
    """Raise where the held-out rows are missing, empty, or trained on."""
    trained = dataset_names(base) or []
    if dataset is not None and dataset in trained:
        raise ConfigError(f"held_out: the data set {shown(dataset)} is also trained on; name rows that are not")
    files = held_out_files(base, dataset, file)
    for path in files:
        if not path.is_file() or not path.stat().st_size or path.read_bytes()[:64].strip() in (b"[]", b""):
            raise ConfigError(
                f"the held-out file {path} {'is empty' if path.is_file() else 'does not exist'}; correct it"
            )
    own = {path.resolve() for path in files} & {path.resolve() for path in dataset_files(base, trained)}
    if file is not None and own:
        raise ConfigError(f"held_out: the file {shown(file)} is also trained on; name one with other rows")


def held_out_files(base: Mapping[str, Any], dataset: str | None, file: str | None) -> list[Path]:
    """The files that hold the held-out rows."""
    return [Path(file)] if file is not None else dataset_files(base, [str(dataset)])


def dataset_files(base: Mapping[str, Any], names: list[str]) -> list[Path]:
    """The files of data sets, as far as they lie in the base's dataset_dir."""
    directory, entries = Path(str(base.get("dataset_dir", "data"))), _entries(base, names)
    return [directory / str(entry["file_name"]) for entry in entries.values() if "file_name" in entry]


def model_inputs(base: Mapping[str, Any]) -> dict[str, str]:
    """Digests of the model, of the adapters on it, and of files of settings that the base names."""
    named = [str(base.get("model_name_or_path", "")), *adapters(base)]
    named += [base[key] for key in CONFIG_FILES if isinstance(base.get(key), str)]
    return file_digests([path for path in map(Path, named) if str(path) != "." and path.exists()])


def run_inputs(base: Mapping[str, Any], method: RunConfig, world_size: int) -> dict[str, str]:
    """All that determines a run's numbers beside its config: rows and how they are read, model, method, ranks."""
    names, selector = dataset_names(base) or [], method.deciding.selector
    params = without_cache(parameters(selector))
    files = [path for path in dataset_files(base, names) if path.exists()]
    if params.get("path") is not None:  # a file of scores, or the run to repeat
        path = Path(str(params["path"]))
        files += [place for place in (path, path / "dataflex") if place.exists()]
    described = {
        "data sets": _entries(base, names),
        "method": {"name": method.deciding.name, "params": params},  # a preset can be edited under its name
        "world size": world_size,
    }
    return {
        **model_inputs(base),
        **file_digests(files),
        **{name: json.dumps(value, sort_keys=True, default=str) for name, value in described.items()},
    }


def held_out_inputs(base: Mapping[str, Any], dataset: str | None, file: str | None) -> dict[str, str]:
    """All that determines what is measured beside LLaMA-Factory's keys."""
    entries = _entries(base, [dataset]) if dataset is not None else {}
    return {
        **model_inputs(base),
        **file_digests(held_out_files(base, dataset, file)),
        "data sets": json.dumps(entries, sort_keys=True),
    }


def adapters(base: Mapping[str, Any]) -> list[str]:
    """The adapters that a config starts from."""
    given = base.get("adapter_name_or_path") or []
    return [str(name).strip() for name in (given.split(",") if isinstance(given, str) else given)]


def _entries(base: Mapping[str, Any], names: list[str]) -> dict[str, dict[str, Any]]:
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
