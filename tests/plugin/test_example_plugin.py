"""A package of its own adds a method: installed, it is in the list, in YAML and in Python, and passes the suite."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PLUGIN = Path(__file__).resolve().parents[2] / "examples" / "plugin"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example, installed into a folder of its own without a network."""
    pytest.importorskip("hatchling", reason="hatchling, which builds the example, is not installed")
    source, target = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("site")
    shutil.copytree(PLUGIN, source)
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", str(target), str(source)], check=True, capture_output=True, timeout=300)
    return target


def run(site: Path, *command: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(site), "COLUMNS": "200", "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, cwd=cwd)


def test_it_is_in_the_list_with_parameters_and_source(site: Path) -> None:
    result = run(site, "-m", "dataflex.cli.main", "components")
    assert result.returncode == 0, result.stderr
    assert "near_median" in result.stdout
    assert "width" in result.stdout
    assert "2309.04564" in result.stdout
    assert "near_median  (package dataflex-near-median 0.1.0)" in result.stdout


def test_a_config_names_it(site: Path, tmp_path: Path) -> None:
    components = {"selectors": {"middle": {"name": "near_median", "params": {"width": 0.25}}}}
    (tmp_path / "components.json").write_text(json.dumps(components))
    script = (
        "from dataflex.cli.presets import read_preset, find_components\n"
        "from dataflex.cli.strict import build\n"
        "from dataflex.algorithms.catalog import component_class\n"
        "preset = read_preset(find_components('components.json'), 'selectors', 'middle', {}, output_dir='x')\n"
        "print(build(component_class('selectors', preset['name']), preset['params'], where=''))\n"
    )
    result = run(site, "-c", script, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "NearMedian(width=0.25)" in result.stdout


def test_a_run_that_a_config_describes_is_planned_with_it(site: Path, tmp_path: Path) -> None:
    pytest.importorskip("llamafactory", reason="LLaMA-Factory is not installed")
    (tmp_path / "toy.jsonl").write_text('{"instruction": "a", "output": "b"}\n' * 60)
    (tmp_path / "dataset_info.json").write_text('{"toy": {"file_name": "toy.jsonl"}}')
    (tmp_path / "components.yaml").write_text("middle: {name: near_median, params: {width: 0.25}}")
    (tmp_path / "config.yaml").write_text(
        "{model_name_or_path: model, stage: sft, do_train: true, finetuning_type: lora, dataset: toy, dataset_dir: ., "
        "template: default, output_dir: saves, per_device_train_batch_size: 1, gradient_accumulation_steps: 1, "
        "train_type: dynamic_select, components_cfg_file: components.yaml, component_name: middle, "
        "warmup_step: 10, update_step: 10, update_times: 2}"
    )
    result = run(site, "-m", "dataflex.cli.main", "plan", "config.yaml", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert "'near_median' is code of module 'dataflex_near_median.near_median'" in result.stdout
    wrong = run(site, "-m", "dataflex.cli.main", "plan", "config.yaml", "component.params.widht=1.0", cwd=tmp_path)
    assert wrong.returncode == 2
    assert "'widht' (did you mean 'width'?)" in wrong.stderr


def test_a_trainer_takes_it_as_a_value(site: Path, tmp_path: Path) -> None:
    script = """
import sys
sys.path.insert(0, sys.argv[1])
from dataflex_near_median.near_median import NearMedian
from dataflex import Schedule, dynamic
from datasets import Dataset
from tiny import make_model, make_tokenizer
from transformers import Trainer, TrainingArguments, DataCollatorForSeq2Seq
tokenizer = make_tokenizer()
rows = [{"input_ids": [5, 6, 7 + i % 9], "labels": [-100, 6, 7 + i % 9]} for i in range(20)]
trainer = dynamic(Trainer)(
    model=make_model(tokenizer),
    args=TrainingArguments("run", per_device_train_batch_size=2, report_to="none", use_cpu=True, num_train_epochs=1),
    train_dataset=Dataset.from_list(rows), data_collator=DataCollatorForSeq2Seq(tokenizer),
    selector=NearMedian(width=0.5), schedule=Schedule(warmup_step=1, update_step=2, update_times=2),
)
trainer.train()
print([entry["decision"] for entry in trainer.history], trainer.history[0]["method"])
"""
    result = run(site, "-c", script, str(PLUGIN.parent / "trl"), cwd=tmp_path)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "['warm-up', 'guided', 'guided'] dataflex_near_median.near_median:NearMedian" in result.stdout


def test_its_own_tests_pass(site: Path, tmp_path: Path) -> None:
    result = run(site, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(PLUGIN / "tests"), cwd=tmp_path)
    assert result.returncode == 0, result.stdout[-3000:]
    assert "skipped" not in result.stdout


def test_a_broken_package_does_not_hide_the_others(site: Path, tmp_path: Path) -> None:
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dataflex.selectors]\nbroken_method = no_such_module:Nothing\n")
    environment_path = os.pathsep.join([str(site), str(tmp_path)])
    result = run(Path(environment_path), "-m", "dataflex.cli.main", "components")
    assert "near_median" in result.stdout
    assert "delta_loss" in result.stdout
    assert "broken_method" in result.stdout
    assert "cannot be imported" in result.stdout
    assert result.returncode == 0
