"""Every method from its own example file: trained with a tiny model, killed, and resumed to the bit."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from transformers import Trainer

from dataflex.algorithms.catalog import COMPONENTS
from dataflex.core.errors import ConfigError
from dataflex.ledger.ledger import Ledger
from tests.llamafactory.conftest import assert_same_weights, make_rows, train, write_data

ROOT = Path(__file__).resolve().parents[2]
FILES = sorted((ROOT / "examples" / "train_lora").rglob("*.yaml"))
NAMES = [str(path.relative_to(ROOT / "examples" / "train_lora"))[:-5] for path in FILES]
# What makes a real run small; all that is DataFlex's stays as it is in the file, but for the numbers of steps.
TINY = {
    "dataset": "toy,other",
    "template": "default",
    "cutoff_len": 64,
    "overwrite_cache": None,
    "preprocessing_num_workers": None,
    "dataloader_num_workers": None,
    "eval_dataset": None,
    "lora_rank": 4,
    "lora_dropout": 0.1,
    "bf16": False,
    "use_cpu": True,
    "plot_loss": False,
    "logging_steps": 1,
    "save_steps": 2,
    "gradient_accumulation_steps": 2,
    "learning_rate": 1e-2,
    "overwrite_output_dir": False,
}
STEPS = {"warmup_step": 2, "update_step": 2, "update_times": 2}
KILLED_AT = 5
DOREMI = {"component_name": "doremi_reference"}


class KilledError(BaseException):
    """Not an exception that anything on the way would catch."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    weighted = [{**row, "weight": (i % 4) / 2} for i, row in enumerate(make_rows(37))]
    texts = [{"text": f"{row['instruction']} {row['output']}"} for row in make_rows(37)]
    folder = write_data(
        tmp_path_factory.mktemp("examples"),
        toy=weighted,
        other=[{**row, "weight": None} for row in make_rows(14, seed=1)],
        wanted=make_rows(5, seed=2),
        wanted_too=make_rows(4, seed=3),
        texts=texts,
        more=texts[:14],
    )
    info = json.loads((folder / "dataset_info.json").read_text())
    for name in ("texts", "more"):
        info[name]["columns"] = {"prompt": "text"}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def small(path: Path, tiny_model: Path, data: Path, output_dir: Path) -> dict[str, Any]:
    """The config of an example with a tiny model and a few steps."""
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    config |= {**TINY, "model_name_or_path": str(tiny_model), "dataset_dir": str(data), "output_dir": str(output_dir)}
    if config["stage"] == "pt":
        config["dataset"] = "texts,more"
    # update_times: 0 goes on to the end
    config |= {key: value for key, value in STEPS.items() if key in config and (key != "update_times" or config[key])}
    if "target" in config:
        config["target"] = "wanted,wanted_too" if "," in config["target"] else "wanted"
    if config.get("component_name") == "static" and config["train_type"] == "dynamic_select":
        config |= {"max_steps": 6}
    if config["train_type"] == "dynamic_weight":
        config |= {"max_steps": 6}
        # A row a device means several devices; two rows a micro-batch stand in for them where the file has them.
        config["per_device_train_batch_size"] = 2 if config["per_device_train_batch_size"] > 1 else 1
    return {key: value for key, value in config.items() if value is not None}


def prepared(path: Path, config: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """What the file takes from an earlier run, made here by that run's own file."""
    params = config.get("component", {}).get("params", {})
    if path.stem == "replay":
        earlier = path.with_name("random.yaml")
        params["path"] = str(tmp_path / "earlier")
    elif path.stem in ("rho_loss", "rho1"):
        earlier = path.parents[1] / "selectors" / "random.yaml"
        params["reference"] = str(tmp_path / "earlier")
    elif path.stem == "s2l":
        earlier = path.with_name("loss.yaml")
        params["path"] = str(tmp_path / "earlier")
    elif path.stem == "doremi_step2_proxy":
        earlier = path.with_name("doremi_step1_reference.yaml")
        params["reference"] = str(tmp_path / "earlier")
    elif path.stem == "doremi_step3_main":
        earlier = path.with_name("doremi_step2_proxy.yaml")
        params["path"] = str(tmp_path / "earlier")
    else:
        return config
    model, data_dir = Path(config["model_name_or_path"]), Path(config["dataset_dir"])
    first = small(earlier, model, data_dir, tmp_path / "earlier")
    (tmp_path / "before").mkdir()
    train(prepared(earlier, first, tmp_path / "before"), tmp_path / "before")
    return config


@pytest.fixture
def kill(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have the training end abruptly in the first micro-batch after so many optimizer steps."""

    def at(step: int) -> None:
        original = Trainer.training_step

        def training_step(self: Trainer, *args: Any, **kwargs: Any) -> Any:
            if self.state.global_step == step:
                raise KilledError
            return original(self, *args, **kwargs)

        monkeypatch.setattr(Trainer, "training_step", training_step)

    return at


@pytest.mark.parametrize("path", FILES, ids=NAMES)
def test_an_example_trains_and_goes_on_after_a_kill(
    path: Path, tiny_model: Path, data: Path, tmp_path: Path, kill, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = prepared(path, small(path, tiny_model, data, tmp_path / "whole"), tmp_path)
    train(whole, tmp_path)
    ledger = Ledger(tmp_path / "whole")
    assert ledger.lines()[-1]["kind"] == "end"
    steps = ledger.lines()[-1]["step"]
    assert steps >= 6
    cut = {**whole, "output_dir": str(tmp_path / "cut")}
    kill(KILLED_AT)
    with pytest.raises(KilledError):
        train(cut, tmp_path)
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path / "work")
    assert not (tmp_path / "cut" / "adapter_model.safetensors").exists()
    train(cut, tmp_path)
    assert_same_weights(tmp_path / "whole", tmp_path / "cut")
    again = Ledger(tmp_path / "cut")
    for segment, line in ledger.segments().items():
        assert ledger.rows_of(line).tolist() == again.rows_of(again.segments()[segment]).tolist()
    learned = tmp_path / "whole" / "dataflex" / "proportions.json"
    if learned.exists():
        assert learned.read_bytes() == (tmp_path / "cut" / "dataflex" / "proportions.json").read_bytes()
    assert learned.exists() == (path.stem == "doremi_step2_proxy")


def test_every_method_has_an_example() -> None:
    """By the names that the resolved configs hold."""
    from dataflex.cli.config import read_config

    named: dict[str, set[str]] = {kind: set() for kind in COMPONENTS}
    for path in FILES:
        method = read_config(str(path), []).deciding
        if method.selects or method.is_plain:
            named["selectors"].add(method.name)
        named["mixers"] |= {method.mixer.name} if method.mixer else set()
        named["weighters"] |= {part.name for part in method.weighers}
        named["orders"] |= {part.name for part in method.orders}
    assert named == {kind: set(methods) for kind, methods in COMPONENTS.items()}


def test_weights_of_one_train_what_llamafactory_trains(config, tmp_path: Path) -> None:
    from tests.llamafactory.conftest import train_stock

    settings = config(train_type="dynamic_weight", component_name="focal", warmup_step=0, update_times=None)
    settings |= {"component": {"params": {"gamma": 0.0}}, "num_train_epochs": 2.0}
    ours = train(settings, tmp_path)
    stock = {k: v for k, v in settings.items() if k != "component"}
    assert_same_weights(ours, train_stock({**stock, "output_dir": str(tmp_path / "stock")}))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"use_dft_loss": True}, "use_dft_loss replaces it"),
        ({"label_smoothing_factor": 0.1}, "label_smoothing_factor replaces it"),
        ({"enable_liger_kernel": True}, "which enable_liger_kernel fuses away"),
        ({"stage": "dpo"}, "stage dpo has none of"),
        ({"component_name": "column"}, "column is 'weight'"),
        ({"component_name": "loss", "per_device_train_batch_size": 1}, "compares the 1 row"),
    ],
    ids=str,
)
def test_what_cannot_be_weighed_is_refused_before_anything_is_written(config, tmp_path: Path, changes, said) -> None:
    settings = config(**{"train_type": "dynamic_weight", "component_name": "focal", "warmup_step": 0, **changes})
    with pytest.raises(ConfigError, match=said):
        train(settings, tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"component": {"params": {"proportions": [0.5, 0.3, 0.2]}}},
            "proportions has 3 numbers; the data has 2 domains",
        ),
        ({"component": {"params": {"proportions": {"toi": 1.0}}}}, r"domain 'toi' \(did you mean 'toy'\?\)"),
        ({"domain_column": "tsk"}, r"domain_column is 'tsk' \(did you mean 'task'\?\)"),
        (
            {"component_name": "doremi_reference", "component": {"params": {"step": 2, "reference": "./no"}}},
            "does not exist",
        ),
        ({"component_name": "doremi_reference", "component": {"params": {"step": 3, "path": "no"}}}, "no proportions"),
    ],
    ids=str,
)
def test_what_cannot_be_mixed_is_refused_before_anything_is_written(config, tmp_path: Path, changes, said) -> None:
    settings = config(**{"train_type": "dynamic_mix", "component_name": "static", "dataset": "toy,other", **changes})
    with pytest.raises(ConfigError, match=said):
        train(settings, tmp_path)
    assert not (tmp_path / "run").exists()


def test_domains_are_kept_through_dropped_rows_and_merging(config, tmp_path: Path) -> None:
    """Rows that LLaMA-Factory drops leave the others' domains as they are."""
    holed = [{**row, "output": row["output"] if i % 3 else None} for i, row in enumerate(make_rows(20, seed=2))]
    folder = write_data(tmp_path / "data", holed=holed, toy=make_rows(20), other=make_rows(9, seed=1))
    settings = config(
        train_type="dynamic_mix", component_name="uniform", dataset="other,holed,toy", dataset_dir=str(folder)
    )
    run = train(settings, tmp_path)
    ledger = Ledger(run)
    pool = pq.read_table(run / "dataflex" / "rows.parquet").to_pydict()
    assert [pool["dataset"].count(name) for name in ("other", "holed", "toy")] == [9, 13, 20]
    assert ledger.run()["domains"] == {"column": "dataset", "names": ["other", "holed", "toy"]}
    sources = {"other": make_rows(9, seed=1), "holed": holed, "toy": make_rows(20)}
    for name, row, task in zip(pool["dataset"], pool["source_row"], pool["task"], strict=True):
        assert sources[name][row]["task"] == task
        assert sources[name][row]["output"] is not None
    for _, line in sorted(ledger.segments().items()):
        drawn = [pool["dataset"][row] for row in ledger.rows_of(line)]
        assert line["mix"]["counts"] == {name: drawn.count(name) for name in ("other", "holed", "toy")}
        assert max(line["mix"]["counts"].values()) - min(line["mix"]["counts"].values()) <= 1
