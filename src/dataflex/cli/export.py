"""The verb ``export``: merged and saved by LLaMA-Factory, with our lines in the model card."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataflex.cli.config import load_files
from dataflex.core.errors import ConfigError, shown
from dataflex.ledger.card import (
    TrainedRun,
    card_lines,
    card_section,
    find_run,
    hub_name,
    with_section,
    without_section,
)
from dataflex.ledger.files import write_atomic

RUN_KEY = "dataflex_run"  # the output_dir of the run, where the model's own folder does not lie in it
CARD = "README.md"
TAG = "dataflex"


def export(path: str, overrides: list[str]) -> None:
    """Export as LLaMA-Factory does, then write the model card.

    Raises:
        DataFlexError: a mistake of the user's, or a damaged record, found before the model is loaded.
    """
    config, component = load_files(path, overrides)
    if component:
        raise ConfigError(f"component stands in {path}; an export names a model and a place")
    named = config.pop(RUN_KEY, None)
    target = _check(config)
    runs = _runs(config, named)
    section = card_section([card_lines(run) for run in runs]) if runs else None
    from dataflex.integrations.llamafactory import export_model, say

    export_model(config)
    if section is None:
        cut = "; what it said of another run is cut out" if _clear_card(target) else ""
        say(f"no record of a run was found beside the model: its card names no method{cut}; {RUN_KEY} names one")
        return
    card = _write_card(target, section, config)
    say(f"how the training data were chosen stands in {card}")


def _check(config: Mapping[str, Any]) -> Path:
    """Where to export to, and that it is no place of the model's own."""
    if not config.get("model_name_or_path"):
        raise ConfigError("model_name_or_path is missing; name the model to export")
    if not config.get("export_dir"):
        raise ConfigError("export_dir is missing; name the folder to export to")
    target = Path(str(config["export_dir"]))
    if target.exists() and not target.is_dir():
        raise ConfigError(f"export_dir {shown(str(target))} is a file; name a folder")
    for folder in (str(config["model_name_or_path"]), *_adapters(config)):
        if Path(folder).is_dir() and target.resolve() == Path(folder).resolve():
            raise ConfigError(f"export_dir {shown(str(target))} is the model's own folder; name another")
    for adapter in _adapters(config):
        if Path(adapter).is_dir() and not (Path(adapter) / "adapter_config.json").is_file():
            raise ConfigError(
                f"adapter_name_or_path {shown(adapter)} holds no adapter_config.json; name an adapter's folder"
            )
        if not Path(adapter).is_dir() and (adapter.startswith((".", "/", "~")) or adapter.count("/") != 1):
            raise ConfigError(f"adapter_name_or_path {shown(adapter)} does not exist; name an adapter's folder")
    return target


def _adapters(config: Mapping[str, Any]) -> list[str]:
    given = config.get("adapter_name_or_path")
    names = given.split(",") if isinstance(given, str) else given if isinstance(given, list) else []
    return [str(name).strip() for name in names]


def _runs(config: Mapping[str, Any], named: Any) -> list[TrainedRun]:
    """The runs that trained the model: those named, else those that its folders belong to, in their order."""
    if named is not None:
        folders = named if isinstance(named, list) else [named]
        found = [find_run(str(folder)) for folder in folders]
        for folder, run in zip(folders, found, strict=True):
            if run is None:
                raise ConfigError(f"{RUN_KEY} {shown(folder)} holds no record of a run; name its output_dir")
    else:
        found = [find_run(folder) for folder in (str(config["model_name_or_path"]), *_adapters(config))]
    return [run for run in found if run is not None]


def _write_card(target: Path, section: str, config: Mapping[str, Any]) -> Path:
    """Put the section into the card of the exported model; what stands there stays."""
    from huggingface_hub import ModelCard, ModelCardData

    path = target / CARD
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    if text:
        card = ModelCard(text)
    else:
        data = ModelCardData(library_name="transformers", base_model=hub_name(str(config["model_name_or_path"])))
        card = ModelCard(f"---\n{data.to_yaml()}\n---\n\n# {target.resolve().name}\n")
    tags = list(card.data.get("tags") or [])
    card.data["tags"] = [*tags, *(tag for tag in (TAG, "llama-factory") if tag not in tags)]
    card.text = with_section(card.text, section)
    write_atomic(path, str(card).encode("utf-8"))
    return path


def _clear_card(target: Path) -> bool:
    """Cut an earlier run's section out of the card, which other weights lie beside now; False where it has none."""
    from huggingface_hub import ModelCard

    path = target / CARD
    if not path.is_file():
        return False
    card = ModelCard(path.read_text(encoding="utf-8"))
    text = without_section(card.text)
    if text is None:
        return False
    card.text = text
    tags = [tag for tag in card.data.get("tags") or [] if tag != TAG]
    card.data["tags"] = tags or None
    write_atomic(path, str(card).encode("utf-8"))
    return True
