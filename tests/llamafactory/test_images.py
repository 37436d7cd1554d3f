"""Rows with images: a tiny LLaVA is scored and trained by LLaMA-Factory's sft, the rows keeping their pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dataflex.ledger.ledger import Ledger
from tests.llamafactory.conftest import WORDS, assert_same_weights, make_rows, train, train_stock

SIZE = 28  # pixels: 2 x 2 patches


@pytest.fixture(scope="module")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA of two layers with random weights, its tokenizer and its image processor, as a Hugging Face folder."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
        PreTrainedTokenizerFast,
    )

    folder = tmp_path_factory.mktemp("tiny-llava")
    special = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
    vocabulary = {word: i for i, word in enumerate([*special, *WORDS, "USER", "ASSISTANT", ":"])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.add_special_tokens(special)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    pictures = CLIPImageProcessor(
        size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE}, do_center_crop=True
    )
    LlavaProcessor(
        image_processor=pictures,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(image_size=SIZE, patch_size=14, projection_dim=16, **shape),
            text_config=LlamaConfig(
                vocab_size=len(vocabulary), pad_token_id=0, bos_token_id=1, eos_token_id=2, **shape
            ),
            image_token_index=vocabulary["<image>"],
            image_seq_length=4,
        )
    ).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty rows with a picture each, and every fifth with two; the last four differ in nothing but their picture."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("pictured")
    rng, rows = np.random.default_rng(0), []
    for i, row in enumerate(make_rows(24)):
        count = 1 if i >= 20 or i % 5 else 2
        names = [f"{i}-{k}.png" for k in range(count)]
        for name in names:
            pixels = rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name)
        same = {"instruction": "red fox", "output": "runs over the moon"} if i >= 20 else row
        rows.append({**row, **same, "instruction": "<image>" * count + same["instruction"], "images": names})
    (folder / "pictured.json").write_text(json.dumps(rows))
    columns = {"prompt": "instruction", "query": "input", "response": "output", "images": "images"}
    info = {"pictured": {"file_name": "pictured.json", "columns": columns}}
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


def of_pictures(config: Any, tiny_llava: Path, pictured: Path, **changes: Any) -> dict[str, Any]:
    common = {
        "model_name_or_path": str(tiny_llava),
        "dataset": "pictured",
        "dataset_dir": str(pictured),
        "media_dir": str(pictured),
        "template": "llava",
        "cutoff_len": 96,
        "lora_dropout": 0.0,
    }
    return config(**{**common, **changes})


def test_scores_are_the_models_own_losses_of_each_row_with_its_picture(
    config, tiny_llava: Path, pictured: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Brute force: each row alone through LLaMA-Factory's collator and the untrained model."""
    from llamafactory.train.sft.trainer import CustomSeq2SeqTrainer

    wanted: list[float] = []
    stock_train = CustomSeq2SeqTrainer.train

    def measured_first(trainer: Any, *args: Any, **kwargs: Any) -> Any:
        trainer.model.eval()
        for row in range(len(trainer.train_dataset)):
            batch = trainer._prepare_inputs(trainer.data_collator([dict(trainer.train_dataset[row])]))
            assert batch["pixel_values"].abs().sum() > 0
            with torch.no_grad():
                wanted.append(float(trainer.model(**batch, use_cache=False).loss))
        trainer.model.train()
        return stock_train(trainer, *args, **kwargs)

    monkeypatch.setattr(CustomSeq2SeqTrainer, "train", measured_first)
    run = train(of_pictures(config, tiny_llava, pictured, warmup_step=0, update_step=2, update_times=2), tmp_path)
    ledger = Ledger(run)
    first, second = ledger.segments()[0], ledger.segments()[1]
    losses_N = ledger.signals_of(first)["loss"]
    np.testing.assert_allclose(losses_N, wanted, rtol=1e-5)
    assert len(np.unique(losses_N[20:].round(6))) == 4, "rows that differ in their picture alone"
    assert not np.allclose(ledger.signals_of(second)["loss"], losses_N, rtol=1e-4)


def test_static_trains_what_the_stock_trainer_trains(config, tiny_llava: Path, pictured: Path, tmp_path: Path) -> None:
    stock = train_stock(of_pictures(config, tiny_llava, pictured, output_dir=str(tmp_path / "stock")))
    changes = {"component_name": "static", "warmup_step": 0, "update_step": 3}
    ours = train(of_pictures(config, tiny_llava, pictured, output_dir=str(tmp_path / "ours"), **changes), tmp_path)
    assert_same_weights(stock, ours)


def test_a_run_resumes_bitwise(config, tiny_llava: Path, pictured: Path, tmp_path: Path) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4, "num_train_epochs": 1.0}
    whole = train(of_pictures(config, tiny_llava, pictured, output_dir=str(tmp_path / "whole"), **saving), tmp_path)
    part = of_pictures(config, tiny_llava, pictured, output_dir=str(tmp_path / "part"), **saving)
    train(part, tmp_path)
    checkpoint = str(tmp_path / "part" / "checkpoint-4")
    (tmp_path / "part" / "adapter_model.safetensors").unlink()  # the resumed run must write its own
    train({**part, "resume_from_checkpoint": checkpoint}, tmp_path)
    assert_same_weights(whole, tmp_path / "part")
