"""``log_source_loss``: the training loss of each source, read and not disturbed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dataflex.core.errors import DataFlexError
from tests.llamafactory.conftest import assert_same_weights, train

NAME = "dataflex/source_loss/"


def logged(run: Path) -> dict[int, dict[str, float]]:
    """The host's loss and those of the sources by step."""
    found: dict[int, dict[str, float]] = {}
    for entry in json.loads((run / "trainer_state.json").read_text())["log_history"]:
        kept = {k.removeprefix(NAME): v for k, v in entry.items() if k == "loss" or k.startswith(NAME)}
        found.setdefault(entry["step"], {}).update(kept)
    return {step: numbers for step, numbers in found.items() if numbers}


@pytest.mark.parametrize("changes", [{}, {"label_smoothing_factor": 0.1}, {"use_dft_loss": True}], ids=str)
def test_the_weights_are_the_same_with_and_without_it(config, tmp_path: Path, changes) -> None:
    off = train(config(output_dir=str(tmp_path / "off"), dataset="toy,other", **changes), tmp_path)
    on = train(config(output_dir=str(tmp_path / "on"), dataset="toy,other", log_source_loss=True, **changes), tmp_path)
    assert_same_weights(off, on)
    assert all("toy" in numbers for numbers in logged(on).values()), "37 of 49 rows are of this source"
    with_it, without = logged(on), logged(off)
    assert [n["loss"] for n in with_it.values()] == [n["loss"] for n in without.values()]


def test_where_all_samples_of_a_step_are_of_one_source_it_is_the_hosts_loss(config, tmp_path: Path, capsys) -> None:
    """The static component trains the host's order; with one sample a step each is of one task."""
    settings = {"component_name": "static", "warmup_step": 0, "max_steps": 12}
    batch = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    run = train(config(log_source_loss=True, **settings, **batch), tmp_path)
    tasks = {}
    for numbers in logged(run).values():
        (task,) = numbers.keys() - {"loss"}
        assert numbers[task] == pytest.approx(numbers["loss"], rel=1e-5)
        tasks[task] = True
    assert sorted(tasks) == ["task0", "task1", "task2"]
    assert "source_loss" not in capsys.readouterr().out, "the console is spared it"


def test_the_sources_add_up_to_the_hosts_loss_over_accumulated_batches(config, tmp_path: Path) -> None:
    from dataflex.ledger.ledger import Ledger

    run = train(config(log_source_loss=True, component_name="random"), tmp_path)
    import pyarrow.parquet as pq

    pool = pq.read_table(run / "dataflex" / "rows.parquet").to_pydict()
    ledger = Ledger(run)
    rows = [row for _, line in sorted(ledger.segments().items()) for row in ledger.rows_of(line).tolist()]
    for step, numbers in logged(run).items():
        tokens: dict[str, int] = {}
        for row in rows[(step - 1) * 4 : step * 4]:
            tokens[pool["task"][row]] = tokens.get(pool["task"][row], 0) + pool["num_label_tokens"][row]
        assert tokens.keys() == numbers.keys() - {"loss"}
        total = sum(numbers[task] * count for task, count in tokens.items())
        assert total / sum(tokens.values()) == pytest.approx(numbers["loss"], rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"dataset": "other", "max_samples": 1, "update_step": 1, "warmup_step": 0}, "the data has no sources"),
        ({"log_source_loss": 1}, "log_source_loss is 1"),
        ({"log_source_loss": "yes"}, "log_source_loss is 'yes'"),
        ({"enable_liger_kernel": True}, "remove one of them"),
    ],
    ids=str,
)
def test_what_cannot_be_read_is_refused_before_anything_is_written(config, tmp_path: Path, changes, named) -> None:
    batch = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 1}
    with pytest.raises(DataFlexError, match=named):
        train(config(**{"log_source_loss": True, **batch, **changes}), tmp_path)
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_logs_the_same(config, tmp_path: Path) -> None:
    import shutil

    settings = config(log_source_loss=True, save_strategy="steps", save_steps=4)
    run = train(settings, tmp_path)
    full = logged(run)
    shutil.rmtree(run / "checkpoint-7")
    (run / "adapter_model.safetensors").unlink()
    train(settings, tmp_path)
    assert logged(run) == full


def test_ranks_add_up_their_sums_and_counts() -> None:
    import numpy as np
    import torch

    from dataflex.signals.loss import loss_sums
    from dataflex.train.source_loss import SourceLoss
    from dataflex.train.sources import find_sources

    sources = find_sources({"source": np.array(["a", "b", "a", "b", "c", "c"], dtype=object)})
    assert sources is not None
    torch.manual_seed(0)
    logits, labels = torch.randn(4, 5, 7), torch.randint(0, 7, (4, 5))
    labels[0, :3] = -100
    rows = np.array([0, 1, 2, 3])
    whole, halves = SourceLoss(sources), [SourceLoss(sources), SourceLoss(sources)]
    sums = loss_sums(logits[:, :-1], labels[:, 1:])
    whole.take(rows, sums)
    for half, part in zip(halves, (slice(0, 1), slice(1, 4)), strict=True):
        half.take(rows[part], sums[part])
    totals = [half._totals_Sx2 for half in halves]
    assert all(total is not None for total in totals)
    expected = whole.means(lambda mine: mine)
    assert halves[0].means(lambda mine: torch.cat(totals)) == pytest.approx(expected)
    assert expected.keys() == {"dataflex/source_loss/a", "dataflex/source_loss/b"}, "c was not trained"
    assert whole.means(lambda mine: mine) == {}, "it begins anew"


def test_a_model_without_logits_is_a_sentence() -> None:
    import numpy as np
    import torch

    from dataflex.train.trained_loss import TrainedLoss

    class Fused(torch.nn.Module):
        def forward(self, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": labels.float().mean()}

    model, labels = Fused(), torch.ones(2, 3, dtype=torch.int64)
    loss = TrainedLoss(ranks=None, num_tokens_N=np.full(2, 3), beside=True)  # type: ignore[arg-type]
    watching = loss.watching(model, {"labels": labels}, np.arange(2), 0)
    with pytest.raises(DataFlexError, match="a fused loss"), watching:
        model(labels)
    assert not model._forward_hooks
