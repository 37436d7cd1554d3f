"""What we rely on in other packages without their promise. When one of these fails, look at the file it names first."""

from __future__ import annotations

import inspect

import datasets
import torch
from accelerate import Accelerator
from accelerate.data_loader import DataLoaderShard, SeedableRandomSampler
from torch.utils.data import DataLoader, RandomSampler, SequentialSampler
from transformers import Trainer


def parameters(function) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_llamafactory_has_the_names_that_are_rebound() -> None:
    """integrations/llamafactory.py"""
    from llamafactory.data import loader
    from llamafactory.train.sft import workflow

    assert parameters(loader.align_dataset) == ["dataset", "dataset_attr", "data_args", "training_args"]
    assert "align_dataset(dataset, dataset_attr, data_args, training_args)" in inspect.getsource(
        loader._load_single_dataset
    )
    assert "_get_dataset_processor(" in inspect.getsource(loader._get_preprocessed_dataset)
    source = inspect.getsource(workflow.run_sft)
    assert "CustomSeq2SeqTrainer(" in source
    assert "get_dataset(template, model_args, data_args, training_args, " in source
    assert source.index("get_dataset(") < source.index("load_model("), "refused before a model is loaded"


def test_the_stages_have_their_trainers_where_they_are_rebound() -> None:
    """integrations/llamafactory.py: SERVED_STAGES, with llamafactory 0.9.5"""
    import importlib

    from dataflex.integrations.llamafactory import SERVED_STAGES

    for stage, (workflow_name, trainer_module, trainer_name) in SERVED_STAGES.items():
        source = inspect.getsource(importlib.import_module(workflow_name))
        assert f"{trainer_name}(" in source, stage
        assert "get_dataset(template, model_args, data_args, training_args, " in source, stage
        assert hasattr(importlib.import_module(trainer_module), trainer_name), stage
    from llamafactory.train.dpo import workflow

    inside = inspect.getsource(workflow.run_dpo)
    assert "from .trainer import CustomDPOTrainer" in inside, "looked up when the stage runs, so that it can be rebound"


def test_the_processors_of_kto_and_pretraining_work_as_the_row_trace_takes_them() -> None:
    """integrations/row_trace.py: Survivors, with llamafactory 0.9.5"""
    from llamafactory.data.processor import FeedbackDatasetProcessor, PretrainDatasetProcessor

    kto = inspect.getsource(FeedbackDatasetProcessor.preprocess_dataset)
    assert 'kl_response = [examples["_response"][-1]] + examples["_response"][:-1]' in kto
    pretrain = inspect.getsource(PretrainDatasetProcessor.preprocess_dataset)
    assert "self.tokenizer(text_examples, add_special_tokens=False)" in pretrain
    assert "block_size = self.data_args.cutoff_len" in pretrain


def test_the_parts_of_a_pairs_loss_are_where_they_are_taken() -> None:
    """train/stage_loss.py, with llamafactory 0.9.5; a difference costs speed, since single rows are then measured"""
    from llamafactory.train.dpo.trainer import CustomDPOTrainer
    from llamafactory.train.rm.trainer import PairwiseTrainer

    whole = inspect.getsource(CustomDPOTrainer.get_batch_loss_metrics)
    for part in ("self.concatenated_forward(", "self.compute_reference_log_probs(", "self.compute_preference_loss("):
        assert part in whole
    assert "return loss, (loss, chosen_scores, rejected_scores)" in inspect.getsource(PairwiseTrainer.compute_loss)


def test_llamafactory_reads_the_train_sets_before_the_eval_sets() -> None:
    """integrations/row_trace.py names sources by the order in which they are aligned."""
    from llamafactory.data import loader

    source = inspect.getsource(loader.get_dataset)
    assert source.index("data_args.dataset, ") < source.index("data_args.eval_dataset,")


def test_a_subset_keeps_its_original_positions() -> None:
    """integrations/row_trace.py"""
    data = datasets.Dataset.from_dict({"x": list(range(10))})
    picked = data.select([7, 3, 9]).select(range(2))
    assert picked._indices.column(0).to_pylist() == [7, 3]
    assert data.select(range(4))._indices is None


def test_the_trainer_has_the_methods_that_are_overridden_or_called() -> None:
    """train/mixin.py and train/host_rows.py"""
    assert parameters(Trainer.save_model) == ["self", "output_dir", "_internal_call"]
    assert "self.save_model(output_dir, _internal_call=True)" in inspect.getsource(Trainer._save_checkpoint)
    saving = inspect.getsource(Trainer._save_checkpoint)
    assert saving.index("self.save_model(") < saving.index("save_to_json(") < saving.index("rotate_checkpoints(")
    assert {"steps_in_epoch", "num_update_steps_per_epoch"} <= set(parameters(Trainer._run_epoch))
    assert "self._run_epoch(\n                model=model,\n                epoch=epoch," in inspect.getsource(
        Trainer._inner_training_loop
    )
    assert "self._signature_columns" in inspect.getsource(Trainer._set_signature_columns_if_needed)
    assert parameters(Trainer._get_collator_with_removed_columns)[:2] == ["self", "data_collator"]
    assert parameters(Trainer.compute_loss_context_manager) == ["self"]


def test_a_prepared_loader_can_be_given_another_sampler_and_a_generator() -> None:
    """train/chain.py"""
    data = list(range(10))
    plain = DataLoader(data, batch_size=2, sampler=RandomSampler(data))
    prepared = Accelerator(cpu=True).prepare(plain)
    assert isinstance(prepared.get_sampler(), (RandomSampler, SeedableRandomSampler))
    assert "base_dataloader" in vars(prepared)
    prepared.set_sampler(SequentialSampler(data))
    generator = torch.Generator().manual_seed(1)
    prepared.base_dataloader.generator = generator
    before, own = torch.get_rng_state(), generator.get_state()
    assert [batch.tolist() for batch in prepared] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9]]
    assert torch.equal(torch.get_rng_state(), before), "a private generator spares the global stream"
    assert not torch.equal(generator.get_state(), own)
    assert type(prepared) is DataLoaderShard


def test_iterating_a_stock_loader_takes_one_number_from_the_global_stream() -> None:
    """train/chain.py: draw_like_a_stock_loader"""
    from dataflex.train.chain import draw_like_a_stock_loader

    data = list(range(10))
    for num_workers in (0, 2):
        torch.manual_seed(5)
        for _ in DataLoader(data, batch_size=2, sampler=SequentialSampler(data), num_workers=num_workers):
            pass
        stock = torch.get_rng_state()
        torch.manual_seed(5)
        draw_like_a_stock_loader()
        assert torch.equal(torch.get_rng_state(), stock)


def test_loggers_are_called_from_one_list_and_the_log_callback_hands_its_writing_to_a_thread() -> None:
    """train/loggers.py and integrations/trainer_log.py"""
    from llamafactory.train import tuner
    from llamafactory.train.callbacks import LogCallback
    from transformers.trainer_callback import CallbackHandler

    assert "for callback in self.callbacks:" in inspect.getsource(CallbackHandler.call_event)
    assert "self.callback_handler.on_log(" in inspect.getsource(Trainer.log)
    assert tuner.LogCallback is LogCallback
    assert "LogCallback()" in inspect.getsource(tuner._training_function)
    assert parameters(LogCallback._write_log) == ["self", "output_dir", "logs"]
    assert "submit(self._write_log, args.output_dir, logs)" in inspect.getsource(LogCallback.on_log)
