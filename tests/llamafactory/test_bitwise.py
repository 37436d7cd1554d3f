"""With nothing chosen, the chain trains exactly what stock LLaMA-Factory trains."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataflex.ledger.ledger import Ledger
from tests.llamafactory.conftest import assert_same_weights, train, train_stock, weights


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("batch", "accumulation"),
    [(1, 1), (2, 2), (3, 2)],  # 37 rows: a last step that is full, partial, and short of a micro-batch
)
def test_static_trains_what_the_stock_trainer_trains(config, tmp_path: Path, batch, accumulation, num_workers) -> None:
    common = {
        "num_train_epochs": 2.0,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "dataloader_num_workers": num_workers,
    }
    update_step = 1 if batch > 1 else 3
    stock = train_stock(config(output_dir=str(tmp_path / "stock"), **common))
    ours = train(
        config(
            output_dir=str(tmp_path / "ours"), component_name="static", warmup_step=0, update_step=update_step, **common
        ),
        tmp_path,
    )
    assert len(Ledger(ours).segments()) >= 11, "10 boundaries or more"
    assert_same_weights(stock, ours)


def test_static_with_persistent_workers_trains_what_the_stock_trainer_trains(config, tmp_path: Path) -> None:
    """They keep one iterator for all epochs, which draws its seed once."""
    common = {"num_train_epochs": 2.0, "dataloader_num_workers": 1, "dataloader_persistent_workers": True}
    stock = train_stock(config(output_dir=str(tmp_path / "stock"), **common))
    ours = train(config(output_dir=str(tmp_path / "ours"), component_name="static", warmup_step=0, **common), tmp_path)
    assert_same_weights(stock, ours)


def test_another_order_gives_other_weights(config, tmp_path: Path) -> None:
    """The comparison above can fail: the same run on chosen rows differs."""
    stock = train_stock(config(output_dir=str(tmp_path / "stock"), max_steps=7))
    ours = train(config(output_dir=str(tmp_path / "ours"), component_name="random"), tmp_path)
    assert any((weights(stock)[name] != tensor).any() for name, tensor in weights(ours).items())
