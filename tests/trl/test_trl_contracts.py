"""What we rely on in TRL without its promise. When one of these fails, look at the file and the line that it names."""

from __future__ import annotations

import inspect
from importlib.metadata import version

from trl_runs import trl_class

from dataflex.train.stage_loss import COUNTERS

TRL = version("trl")


def test_sft_sets_its_signature_columns_in_the_method_that_we_extend() -> None:
    """train/mixin.py: _set_signature_columns_if_needed"""
    source = inspect.getsource(trl_class("SFTTrainer")._set_signature_columns_if_needed)
    assert "self._signature_columns = " in source, f"trl {TRL}: SFTTrainer._set_signature_columns_if_needed"


def test_what_the_trainers_count_has_the_names_that_are_restored() -> None:
    """train/stage_loss.py: COUNTERS. A counter of another name would be changed by a pass over the pool."""
    for kind in ("SFT", "Reward", "KTO"):
        source = inspect.getsource(trl_class(f"{kind}Trainer"))
        assert any(f"self.{name}" in source for name in COUNTERS), f"trl {TRL}: {kind}Trainer.compute_loss and log"


def test_the_labels_come_from_a_mask_in_the_collator() -> None:
    """signals/loss.py: MASK_KEYS"""
    from trl.trainer import sft_trainer

    source = inspect.getsource(sft_trainer)
    for name in ("completion_mask", "assistant_masks"):
        assert f'"{name}"' in source, f"trl {TRL}: sft_trainer.DataCollatorForLanguageModeling"


def test_dpo_takes_its_loss_apart_as_before_or_single_rows_are_measured() -> None:
    """train/stage_loss.py: _trl_dpo, written for trl 0.24. Without ``concatenated_forward`` rows are measured alone."""
    trainer = trl_class("DPOTrainer")
    if hasattr(trainer, "concatenated_forward"):
        source = inspect.getsource(trainer.get_batch_loss_metrics)
        for part in ("self.concatenated_forward(", "self.compute_ref_log_probs(", "self.dpo_loss("):
            assert part in source, f"trl {TRL}: DPOTrainer.get_batch_loss_metrics"
    else:
        assert int(TRL.split(".")[0]) >= 1
