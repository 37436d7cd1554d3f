"""``export``: the weights are LLaMA-Factory's own, and the card says how the training data were chosen."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from dataflex.core.errors import ConfigError, DataFlexError, LedgerError
from dataflex.ledger.card import BEGIN, section_of
from dataflex.ledger.ledger import Ledger
from tests.llamafactory.conftest import train


@pytest.fixture
def run(config, tmp_path: Path) -> Path:
    return train(config(save_strategy="steps", save_steps=4), tmp_path)


def export_config(run: Path, tiny_model: Path, tmp_path: Path, **changes: Any) -> dict[str, Any]:
    base = {
        "model_name_or_path": str(tiny_model),
        "adapter_name_or_path": str(run),
        "template": "default",
        "finetuning_type": "lora",
        "export_dir": str(tmp_path / "exported"),
        "export_device": "cpu",
    }
    return {key: value for key, value in {**base, **changes}.items() if value is not None}


def export(config: dict[str, Any], tmp_path: Path) -> str:
    """Through the verb; returns the card, "" where there is none."""
    from dataflex.cli.export import export as verb

    path = tmp_path / "export.yaml"
    path.write_text(json.dumps(config))
    verb(str(path), [])
    card = Path(config["export_dir"]) / "README.md"
    return card.read_text(encoding="utf-8") if card.exists() else ""


def rows_of_card(card: str) -> dict[str, str]:
    """The table's names and texts."""
    lines = [line.strip("| ") for line in card.splitlines() if line.startswith("| ") and " | " in line[2:]]
    return dict(line.split(" | ", 1) for line in lines if " | " in line)


def test_the_weights_are_llamafactorys_and_the_card_names_the_run(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    from llamafactory.train.tuner import export_model

    settings = export_config(run, tiny_model, tmp_path)
    card = export(settings, tmp_path)
    export_model({**settings, "export_dir": str(tmp_path / "stock")})
    ours, stock = (load_file(tmp_path / name / "model.safetensors") for name in ("exported", "stock"))
    assert ours.keys() == stock.keys()
    assert all(torch.equal(ours[name], stock[name]) for name in ours)
    others = {path.name for path in (tmp_path / "stock").iterdir()}
    assert {path.name for path in (tmp_path / "exported").iterdir()} == others | {"README.md"}
    said, record = rows_of_card(card), Ledger(run).run()
    assert said["method"].startswith("delta_loss (window_size=0.2")
    assert said["ledger"] == f"sha256 {hashlib.sha256(Ledger(run).path.read_bytes()).hexdigest()}"
    assert said["data fingerprint"] == f"sha256 {record['fingerprint']['data']}"
    assert said["steps"] == "7 of 7, 4 samples each"
    distinct = len({row for _, line in Ledger(run).segments().items() for row in Ledger(run).rows_of(line).tolist()})
    assert said["samples"] == f"28, {distinct} different ones of a pool of 37"
    assert said["decisions"] == "2; segments of warm-up: 1"
    assert said["base model"] == f"{tiny_model.name}, frozen weights sha256 {record['base_weights']}"
    assert (said["train type"], said["component"]) == ("dynamic_select", record["config"]["component_name"])
    assert said["versions"].startswith(f"dataflex {record['versions']['dataflex']}, ")
    assert str(tiny_model.parent) not in card, "a place of this machine is nobody's business"
    assert section_of(run) in card
    assert "cache_dir" not in card, "a place of this machine is nobody's business"
    assert card.startswith("---\n")
    assert "- dataflex" in card


def test_a_checkpoint_names_what_it_was_trained_on(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    said = rows_of_card(export(export_config(run / "checkpoint-4", tiny_model, tmp_path), tmp_path))
    assert said["steps"] == "4 of 7, 4 samples each"
    assert said["samples"].startswith("16, ")
    assert said["decisions"] == "1; segments of warm-up: 1"


def test_a_chain_of_adapters_names_each_run(run: Path, config, tiny_model: Path, tmp_path: Path) -> None:
    above = {"adapter_name_or_path": str(run), "create_new_adapter": True, "component_name": "random"}
    (tmp_path / "second").mkdir()
    second = train(config(output_dir=str(tmp_path / "second" / "run"), **above), tmp_path / "second")
    card = export(export_config(run, tiny_model, tmp_path, adapter_name_or_path=f"{run}, {second}"), tmp_path)
    methods = [line for line in card.splitlines() if line.startswith("| method |")]
    assert [line.split()[3] for line in methods] == ["delta_loss", "random"]
    assert section_of(run, second) in card
    with pytest.raises(LedgerError, match="holds no record of a run"):
        section_of(run, tmp_path / "nowhere")


def test_a_second_export_replaces_the_section_and_keeps_the_rest(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    settings = export_config(run, tiny_model, tmp_path)
    export(settings, tmp_path)
    card = tmp_path / "exported" / "README.md"
    card.write_text(card.read_text().replace("# exported", "# Mine\n\nWritten by hand.").replace("7 of 7", "9 of 9"))
    text = export(settings, tmp_path)
    assert "Written by hand." in text
    assert text.count(BEGIN) == 1
    assert "7 of 7" in text


def test_all_components_stand_in_the_card(config, tiny_model: Path, tmp_path: Path) -> None:
    parts = {"train_type": "dynamic", "component_name": None, "mix": "uniform", "weigh": "focal", "order": "folding"}
    run = train(config(**parts, dataset="toy,other"), tmp_path)
    said = rows_of_card(export(export_config(run, tiny_model, tmp_path), tmp_path))
    assert "method" not in said, "no selector chose anything"
    assert said["mix"].startswith("static (unit=rows")
    assert said["weigh"].startswith("focal (gamma=2.0")
    assert said["order"].startswith("folding (")


def test_without_a_record_it_exports_and_says_so(run: Path, tiny_model: Path, tmp_path: Path, capsys) -> None:
    import shutil

    other = tmp_path / "elsewhere"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("dataflex", "checkpoint-*"))
    assert export(export_config(other, tiny_model, tmp_path), tmp_path) == ""
    assert (tmp_path / "exported" / "model.safetensors").is_file()
    assert "no record of a run was found" in capsys.readouterr().out
    named = export_config(other, tiny_model, tmp_path, dataflex_run=str(run))
    assert "delta_loss" in export(named, tmp_path)


def test_without_a_record_nothing_of_an_earlier_run_stays_in_the_card(
    run: Path, tiny_model: Path, tmp_path: Path, capsys
) -> None:
    import shutil

    export(export_config(run, tiny_model, tmp_path), tmp_path)
    card = tmp_path / "exported" / "README.md"
    card.write_text(card.read_text().replace("# exported", "# Mine\n\nWritten by hand.") + "\nBelow it.\n")
    other = tmp_path / "elsewhere"
    shutil.copytree(run, other, ignore=shutil.ignore_patterns("dataflex", "checkpoint-*"))
    text = export(export_config(other, tiny_model, tmp_path), tmp_path)
    assert "dataflex" not in text.lower()
    assert "delta_loss" not in text
    assert "- llama-factory" in text
    assert text.index("Written by hand.") < text.index("Below it.")
    assert "what it said of another run is cut out" in capsys.readouterr().out


@pytest.mark.parametrize("is_loaded", [True, False])
def test_the_best_checkpoint_names_what_it_was_trained_on(
    config, tiny_model: Path, tmp_path: Path, is_loaded: bool
) -> None:
    """The greatest loss counts as the best here, so that it is not that of the last checkpoint."""
    changes = {"eval_dataset": "other", "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps"}
    how = {"load_best_model_at_end": is_loaded, "metric_for_best_model": "eval_loss", "greater_is_better": True}
    run = train(config(**changes, **how, save_steps=2), tmp_path)
    step = int(Path(Ledger(run).lines()[-1]["best_checkpoint"]).name.removeprefix("checkpoint-"))
    assert step < 7
    said = rows_of_card(export(export_config(run, tiny_model, tmp_path), tmp_path))
    if is_loaded:
        kept, best = (load_file(at / "adapter_model.safetensors") for at in (run, run / f"checkpoint-{step}"))
        assert all(torch.equal(kept[name], best[name]) for name in kept)
        assert said["steps"] == f"{step} of 7, 4 samples each; the best checkpoint, training went on to step 7"
        assert said["samples"].startswith(f"{4 * step}, ")
    else:
        assert said["steps"] == "7 of 7, 4 samples each"
        assert said["samples"].startswith("28, ")


def test_a_folder_is_no_name_of_the_hub(run: Path, tiny_model: Path, tmp_path: Path, monkeypatch) -> None:
    import shutil

    shutil.copytree(tiny_model, tmp_path / "saves" / "model")
    monkeypatch.chdir(tmp_path)
    assert "base_model:" not in export(
        export_config(run, tiny_model, tmp_path, model_name_or_path="saves/model"), tmp_path
    )


def test_a_damaged_record_is_quoted_nowhere(run: Path, tiny_model: Path, tmp_path: Path) -> None:
    path = Ledger(run).path
    path.write_bytes(path.read_bytes().replace(b'"num_rows": 8', b'"num_rows": 9'))
    with pytest.raises(LedgerError, match="is damaged, and a model card must not quote it; see dataflex-cli audit"):
        export(export_config(run, tiny_model, tmp_path), tmp_path)
    assert not (tmp_path / "exported").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"export_dir": None}, "export_dir is missing"),
        ({"model_name_or_path": None}, "model_name_or_path is missing"),
        ({"adapter_name_or_path": "/nowhere"}, "'/nowhere' does not exist"),
        ({"adapter_name_or_path": "MODEL"}, r"holds no adapter_config\.json"),
        ({"export_dir": "MODEL"}, "is the model's own folder"),
        ({"dataflex_run": "nowhere"}, "holds no record of a run"),
        ({"export_sise": 3}, "export_sise"),
    ],
    ids=str,
)
def test_a_mistake_is_one_sentence(run: Path, tiny_model: Path, tmp_path: Path, changes, said) -> None:
    changes = {key: str(tiny_model) if value == "MODEL" else value for key, value in changes.items()}
    settings = {**export_config(run, tiny_model, tmp_path), **changes}
    settings = {key: value for key, value in settings.items() if value is not None}
    path = tmp_path / "export.yaml"
    path.write_text(json.dumps(settings))
    from dataflex.cli.export import export as verb

    with pytest.raises(DataFlexError, match=said) as caught:
        verb(str(path), [])
    assert isinstance(caught.value, ConfigError) or "export_sise" in said
    assert not (tmp_path / "exported").exists()
