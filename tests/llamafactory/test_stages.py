"""Stages beyond sft: what is trained is what the ledger says, and the score is the stage's own loss of a row."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from dataflex.ledger.ledger import Ledger
from tests.llamafactory.conftest import WORDS, assert_same_weights, train, train_stock

NUM_ROWS = 29


def words(rng: random.Random, count: int) -> str:
    return " ".join(rng.choice(WORDS) for _ in range(count))


@pytest.fixture(scope="session")
def stage_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same prompts as pairs, as rated answers (one of them without an answer) and as plain text."""
    rng = random.Random(3)
    folder = tmp_path_factory.mktemp("stages")
    pairs = [
        {
            "instruction": words(rng, rng.randint(2, 8)),
            "input": "",
            "chosen": words(rng, rng.randint(1, 9)),
            "rejected": words(rng, rng.randint(1, 9)),
            "task": f"task{i % 3}",
        }
        for i in range(NUM_ROWS)
    ]
    rated = [{**{k: p[k] for k in ("instruction", "input", "task")}, "output": p["chosen"], "good": i % 3 > 0}
             for i, p in enumerate(pairs)]  # fmt: skip
    text = [{"text": words(rng, rng.randint(3, 20)), "task": f"task{i % 3}"} for i in range(NUM_ROWS)]
    for name, rows in (("pairs", pairs), ("rated", rated), ("text", text)):
        (folder / f"{name}.json").write_text(json.dumps(rows))
    columns = {"prompt": "instruction", "query": "input"}
    info = {
        "pairs": {
            "file_name": "pairs.json",
            "ranking": True,
            "columns": {**columns, "chosen": "chosen", "rejected": "rejected"},
        },
        "rated": {"file_name": "rated.json", "columns": {**columns, "response": "output", "kto_tag": "good"}},
        "text": {"file_name": "text.json", "columns": {"prompt": "text"}},
    }
    (folder / "dataset_info.json").write_text(json.dumps(info))
    return folder


STAGES = {
    "pt": {"dataset": "text", "cutoff_len": 12},
    "pt unpacked": {"dataset": "text", "packing": False},
    "rm": {"dataset": "pairs"},
    "dpo": {"dataset": "pairs"},
    "dpo orpo": {"dataset": "pairs", "pref_loss": "orpo"},
    "kto": {"dataset": "rated"},
}


def of_stage(config: Any, stage_data: Path, name: str, **changes: Any) -> dict[str, Any]:
    return config(stage=name.split()[0], dataset_dir=str(stage_data), **{**STAGES[name], **changes})


@pytest.mark.parametrize("name", list(STAGES))
def test_static_trains_what_the_stock_stage_trains(config, stage_data: Path, tmp_path: Path, name: str) -> None:
    common = {"num_train_epochs": 2.0, "per_device_train_batch_size": 2}
    stock = train_stock(of_stage(config, stage_data, name, output_dir=str(tmp_path / "stock"), **common))
    ours = train(
        of_stage(
            config, stage_data, name,
            output_dir=str(tmp_path / "ours"), component_name="static", warmup_step=0, update_step=3, **common,
        ),
        tmp_path,
    )  # fmt: skip
    assert_same_weights(stock, ours)


@pytest.mark.parametrize("name", list(STAGES))
def test_a_stage_is_scored_by_its_own_loss_and_recorded(config, stage_data: Path, tmp_path: Path, name: str) -> None:
    changes = {"component_name": "delta_loss", "warmup_step": 1, "update_step": 1, "update_times": 3}
    changes |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 1}
    ours = train(of_stage(config, stage_data, name, output_dir=str(tmp_path / "ours"), **changes), tmp_path)
    ledger = Ledger(ours)
    lines = [line for _, line in sorted(ledger.segments().items())]
    assert [line["decision"] for line in lines] == ["warm-up", "first", "guided", "guided"]
    first = ledger.signals_of(lines[1])["loss"]
    assert np.isfinite(first).all()
    # By batches where the parts of the loss can be had, a row at a time where not; never in silence.
    tokens = lines[1]["scoring"]["batch_tokens"]
    assert tokens == 1 if name == "kto" else tokens > 1
    if name == "dpo":
        # The first step has learned at a warm-up rate of almost nothing: log 2 for every pair.
        np.testing.assert_allclose(first, np.log(2), atol=0.05)
    rows = pq.read_table(Path(ours) / "dataflex" / "rows.parquet").to_pydict()
    assert set(rows["dataset"]) == {STAGES[name]["dataset"]}
    if "packing" in STAGES[name] or not name.startswith("pt"):
        assert rows["source_row"] == list(range(NUM_ROWS))
        assert rows["task"] == [f"task{i % 3}" for i in range(NUM_ROWS)]


def test_the_block_of_a_pretraining_row_begins_in_the_row_that_is_named(
    config, stage_data: Path, tmp_path: Path
) -> None:
    ours = train(
        of_stage(config, stage_data, "pt", output_dir=str(tmp_path / "ours"), component_name="random"), tmp_path
    )
    rows = pq.read_table(Path(ours) / "dataflex" / "rows.parquet").to_pydict()
    texts = [row["text"] for row in json.loads((stage_data / "text.json").read_text())]
    where = [i for i, text in enumerate(texts) for _ in range(len(text.split()) + 1)]  # and an end of text
    joined = [word for text in texts for word in [*text.split(), "</s>"]]
    assert rows["source_row"] == [where[12 * k] for k in range(len(joined) // 12)]
    assert rows["excerpt"][1].split() == joined[12:24]


def test_llamafactory_itself_resumes_no_reward_model_with_an_adapter(config, stage_data: Path, tmp_path: Path) -> None:
    """Why rm is missing below: the Trainer looks for a whole model in the checkpoint of a model with a value head."""
    run = of_stage(config, stage_data, "rm", save_strategy="steps", save_steps=4, per_device_train_batch_size=2)
    train_stock(run)
    with pytest.raises(ValueError, match="Can't find a checkpoint index"):
        train_stock({**run, "resume_from_checkpoint": f"{run['output_dir']}/checkpoint-4"})


@pytest.mark.long
@pytest.mark.parametrize("name", [name for name in STAGES if name != "rm"])
def test_a_run_of_a_stage_resumes_bitwise(config, stage_data: Path, tmp_path: Path, name: str) -> None:
    saving = {"save_strategy": "steps", "save_steps": 4, "per_device_train_batch_size": 2}
    whole = train(of_stage(config, stage_data, name, output_dir=str(tmp_path / "whole"), **saving), tmp_path)
    part = of_stage(config, stage_data, name, output_dir=str(tmp_path / "part"), **saving)
    train(part, tmp_path)
    checkpoint = tmp_path / "part" / "checkpoint-4"
    assert checkpoint.is_dir()
    (tmp_path / "part" / "adapter_model.safetensors").unlink()
    train({**part, "resume_from_checkpoint": str(checkpoint)}, tmp_path)
    assert_same_weights(whole, tmp_path / "part")
    last = [line["stop"] for line in Ledger(tmp_path / "part").segments().values()]
    assert max(last) > 4, "something is left to train after the checkpoint"
