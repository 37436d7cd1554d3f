"""Two runs are the same run when they train the same: where they write and how much they log does not count."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dataflex.ledger.fingerprint import NEUTRAL_KEYS, comparable, differences

CONFIG = {
    "model_name_or_path": "m",
    "learning_rate": 1e-4,
    "seed": 42,
    "dataset": "toy",
    "template": "default",
    "cutoff_len": 64,
    "output_dir": "a",
    "logging_steps": 10,
    "per_device_train_batch_size": 2,
    "warmup_step": 3,
}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("output_dir", "b"),
        ("overwrite_output_dir", True),
        ("resume_from_checkpoint", "a/checkpoint-3"),
        ("logging_steps", 1),
        ("save_steps", 7),
        ("report_to", "none"),
        ("dataloader_num_workers", 4),
        ("per_device_train_batch_size", 1),  # compared as the global batch
        ("gradient_accumulation_steps", 4),
        ("warmup_step", 9),  # compared as the schedule
        ("dataset_dir", "elsewhere"),  # compared as the content of the data
        ("components_cfg_file", "mine.yaml"),
    ],
)
def test_keys_that_change_nothing_do_not_count(key: str, value) -> None:
    assert comparable({**CONFIG, key: value}) == comparable(CONFIG)
    assert comparable({k: v for k, v in CONFIG.items() if k != key}) == comparable(CONFIG)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("learning_rate", 2e-4),
        ("seed", 43),
        ("data_seed", 1),
        ("model_name_or_path", "n"),
        ("num_train_epochs", 2),
        ("max_steps", 9),
        ("lora_rank", 8),
        ("lr_scheduler_type", "linear"),
        ("warmup_ratio", 0.1),
        ("warmup_steps", 10),  # the learning rate's, one letter from ours
        ("bf16", True),
        ("weight_decay", 0.1),
        ("neftune_noise_alpha", 5),
        ("a_key_that_nobody_has_thought_of", 1),
    ],
)
def test_keys_that_change_the_weights_count(key: str, value) -> None:
    assert key not in NEUTRAL_KEYS
    assert comparable({**CONFIG, key: value}) != comparable(CONFIG)
    assert key in differences(comparable(CONFIG), comparable({**CONFIG, key: value}))


def test_the_order_of_the_keys_does_not_matter() -> None:
    backwards = dict(reversed(CONFIG.items()))
    assert comparable(backwards) == comparable(CONFIG)
    assert list(comparable(backwards)) == list(comparable(CONFIG))
    assert comparable(backwards) == comparable(CONFIG) != comparable({**CONFIG, "seed": 1})


def test_long_values_are_cut_short_in_the_sentence() -> None:
    said = differences({"data": "d" * 64}, {"data": "e" * 64})
    assert said == f"data ({'d' * 12}… then, {'e' * 12}… now)"


@given(
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 1)),
    st.dictionaries(st.sampled_from("abcdefgh"), st.integers(0, 1)),
)
def test_every_difference_is_named_or_counted(old: dict, new: dict) -> None:
    said = differences(old, new)
    keys = sorted(k for k in {*old, *new} if old.get(k) != new.get(k))
    assert all(f"{key} (" in said for key in keys[:3])
    assert (f"and {len(keys) - 3} more" in said) == (len(keys) > 3)
    assert (said == "") == (not keys)
