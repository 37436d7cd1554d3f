"""The user guide's config, with each single key left out or changed, runs or is refused with a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dataflex.core.errors import DataFlexError
from tests.llamafactory.conftest import train

EXAMPLE = Path(__file__).parents[2] / "examples" / "train_lora" / "selectors" / "delta_loss.yaml"
KEYS = [str(key) for key in OmegaConf.load(EXAMPLE)]
# Left out, these are refused; everything else has a default to run with.
REFUSED_WITHOUT = {
    "model_name_or_path": "model_name_or_path",
    "do_train": "do_train",
    "dataset": "dataset",
    "output_dir": "output_dir",
    "train_type": "train_type",
    "component_name": "component_name",
    "update_step": "update_step",
}


@pytest.fixture
def guide_config(tiny_model: Path, data_dir: Path, tmp_path: Path) -> dict:
    """The example as it stands, pointed at a tiny model and short enough for a test."""
    config = OmegaConf.to_container(OmegaConf.load(EXAMPLE))
    return {
        **config,
        "model_name_or_path": str(tiny_model),
        "dataset": "toy",
        "eval_dataset": "other",
        "dataset_dir": str(data_dir),
        "template": "default",
        "cutoff_len": 64,
        "output_dir": str(tmp_path / "run"),
        "bf16": False,
        "use_cpu": True,
        "preprocessing_num_workers": 1,
        "update_step": 2,
        "warmup_step": 2,
        "per_device_train_batch_size": 1,
    }


@pytest.mark.parametrize("key", KEYS)
def test_without_one_key_it_runs_or_is_refused(guide_config: dict, tmp_path: Path, key: str) -> None:
    del guide_config[key]
    if key == "update_times":
        guide_config["num_train_epochs"] = 1.0
    if key in REFUSED_WITHOUT:
        with pytest.raises(DataFlexError) as refusal:
            train(guide_config, tmp_path)
        assert "\n" not in str(refusal.value)
        assert REFUSED_WITHOUT[key] in str(refusal.value)
        assert not (tmp_path / "run").exists(), "a run that refuses writes nothing"
    else:
        train(guide_config, tmp_path)
        assert (tmp_path / "run" / "dataflex" / "ledger.jsonl").exists() or key == "output_dir"


@pytest.mark.parametrize(
    "changes",
    [
        {"eval_strategy": "steps", "eval_steps": 2},
        {"eval_strategy": "epoch"},
        {"eval_strategy": "steps", "eval_steps": 2, "eval_dataset": None, "val_size": 0.2},
        {"eval_strategy": "no", "eval_dataset": None},
        {"eval_on_each_dataset": True, "eval_dataset": "other,toy", "eval_strategy": "epoch"},
        {"plot_loss": True, "ddp_timeout": 180000000},
        {"save_strategy": "epoch"},
        {"finetuning_type": "full"},
        {"finetuning_type": "freeze", "freeze_trainable_layers": 1},
        {"gradient_accumulation_steps": 3},
        {"dataloader_persistent_workers": True, "dataloader_num_workers": 2},
        {"disable_shuffling": True, "component_name": "static"},
        {"dataloader_drop_last": True, "component_name": "static"},
        {"train_step": 3},
        {"max_steps": 3},
        {"update_times": 0, "num_train_epochs": 0.5},
        {"dataset": "toy,other", "eval_dataset": None},
        {
            "dataset": "toy,other",
            "eval_dataset": None,
            "mix_strategy": "interleave_under",
            "interleave_probs": "0.5,0.5",
        },
        {"use_dft_loss": True},
        {"neftune_noise_alpha": 5},
        {"use_eaft_loss": True},
        {"use_asft_loss": True, "finetuning_type": "full"},  # with LoRA LLaMA-Factory has no reference model
        {"label_smoothing_factor": 0.1},
        {
            "early_stopping_steps": 1,
            "eval_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "load_best_model_at_end": True,
        },
        {"save_only_model": True, "save_strategy": "steps", "save_steps": 2},
        {"train_type": "static", "max_steps": 2},
    ],
    ids=str,
)
def test_with_other_keys_it_runs(guide_config: dict, tmp_path: Path, changes: dict) -> None:
    train({k: v for k, v in {**guide_config, **changes}.items() if v is not None}, tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"eval_strategy": "steps", "eval_dataset": None}, "eval_dataset"),
        ({"streaming": True, "max_steps": 5}, "streaming"),
        ({"packing": True}, "packing"),
        ({"neat_packing": True}, "packing"),
        ({"stage": "ppo", "reward_model": "somewhere"}, "stage 'ppo' is not served yet"),
        ({"stage": "dpo", "packing": True}, "packing"),
        ({"stage": "dpo"}, "toy"),
        ({"stage": "kto"}, "toy"),
        ({"stage": "dpo", "log_source_loss": True}, "log_source_loss"),
        ({"stage": "bogus"}, "stage"),
        ({"train_type": "dynamic_mix"}, "is not among the mixers"),
        ({"update_step": 0}, "update_step is 0"),
        ({"update_step": 99}, "quota of 99 samples"),
        ({"dataset": "nonexistent"}, "nonexistent"),
        ({"dataset": "empty"}, "empty"),
        ({"dataset": "nothing_valid"}, "nothing_valid"),
        ({"dataset_dir": "/nowhere"}, "/nowhere"),
        ({"model_name_or_path": "/nowhere"}, "/nowhere"),
        ({"template": "bogus"}, "bogus"),
        ({"learning_rat": 1}, "did you mean 'learning_rate'"),
        ({"warmup_steps_": 1}, "did you mean"),
        ({"component_name": "delta_los"}, "did you mean 'delta_loss'"),
        ({"components_cfg_file": "nowhere.yaml"}, "nowhere.yaml"),
        ({"auto_find_batch_size": True}, "auto_find_batch_size"),
        ({"train_sampling_strategy": "group_by_length"}, "group_by_length"),
        ({"accelerator_config": {"split_batches": True}}, "split_batches"),
        ({"tokenized_path": "somewhere"}, "tokenized_path"),
        ({"learning_rate": "fast"}, "learning_rate"),
        ({"lora_target": "no_such_module"}, "no_such_module"),
        ({"num_train_epochs": 0}, "0 optimizer steps"),
    ],
    ids=str,
)
def test_a_mistake_is_one_sentence_and_nothing_is_written(
    guide_config: dict, tmp_path: Path, changes: dict, sentence: str
) -> None:
    with pytest.raises(DataFlexError) as refusal:
        train({k: v for k, v in {**guide_config, **changes}.items() if v is not None}, tmp_path)
    assert sentence in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "run").exists()
    assert {path.name for path in tmp_path.iterdir()} <= {"config.yaml", "work"}
    assert not list((tmp_path / "work").iterdir())
