"""Numbers of a decision for the loggers: what each is, and that the console is spared them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from curated_runs import Run
from test_describe import a_line

from dataflex.algorithms.select.delta_loss import DeltaLoss
from dataflex.ledger.quantiles import quantiles
from dataflex.train.loggers import log_off_console
from dataflex.train.metrics import metrics
from dataflex.train.sources import MOST_SOURCES, find_sources

NAMES = np.array(["wiki", "code", "wiki", "wiki", "chat/en", "wiki"], dtype=object)


def test_a_guided_decision_in_numbers() -> None:
    columns_N = {"loss": np.array([1, 2, 3, np.nan, 4, 6], np.float32), "delta": np.array([0.5, 0, 1, np.nan, -1, 2])}
    line = a_line(quantiles=quantiles(columns_N))
    expected = {
        "segment": 2,
        "share_of_run": 0.25,
        "window_start": 0.4,
        "window_end": 0.6,
        "improved": 0.75,
        "from_window": 0.75,
        "scoring_seconds": 1.25,
        "scoring_tokens_per_s": 9876.4,
    }
    for name, values in columns_N.items():
        expected[f"{name}_mean"] = np.nanmean(values.astype(np.float64))
        for level in (5, 25, 50, 75, 95):
            expected[f"{name}_q{level:02d}"] = np.nanquantile(values.astype(np.float64), level / 100)
    found = metrics(line, np.arange(6), columns_N)
    assert found == {f"dataflex/{name}": pytest.approx(value) for name, value in expected.items()}
    assert all(type(value) in (int, float) for value in found.values()), "loggers drop other types"


def test_a_warm_up_has_only_its_place_and_its_cost() -> None:
    line = a_line(window=None, notes={}, scoring=None, decision="warm-up", quantiles={})
    assert metrics(line, np.arange(40), {}) == {"dataflex/segment": 2, "dataflex/share_of_run": 0.25}


def test_shares_of_the_sources_are_of_the_draw_and_once_of_the_pool() -> None:
    sources = find_sources({"dataset": NAMES})
    line = a_line(window=None, notes={}, scoring=None, quantiles={})
    found = metrics(line, np.array([0, 1, 1, 4]), {}, sources)
    shares = {name: value for name, value in found.items() if "share/" in name}
    assert shares == {
        "dataflex/draw_share/wiki": 0.25,
        "dataflex/draw_share/code": 0.5,
        "dataflex/draw_share/chat_en": 0.25,
    }
    first = metrics({**line, "segment": 0}, np.array([0]), {}, sources)
    assert first["dataflex/draw_share/code"] == 0, "a source that was not drawn has a number too"
    assert first["dataflex/pool_share/wiki"] == pytest.approx(4 / 6)


def test_the_source_is_the_data_set_where_there_are_several_else_a_column_of_a_known_name() -> None:
    tasks = pa.array(["a", "b"] * 3)
    found = find_sources({"dataset": NAMES, "task": tasks})
    assert found is not None
    assert (found.column, found.labels) == ("dataset", ["wiki", "code", "chat_en"])
    one = {"dataset": np.array(["only"] * 6, dtype=object)}
    assert find_sources(one) is None
    found = find_sources({**one, "difficulty": tasks, "task": tasks})
    assert found is not None
    assert found.column == "task"
    assert find_sources({**one, "difficulty": tasks}) is None, "a column of an unknown name is no source"
    many = pa.array([str(i % (MOST_SOURCES + 1)) for i in range(1000)])
    assert find_sources({"source": many}) is None, "each would be a curve"


def test_sources_that_loggers_would_take_for_one_stay_apart() -> None:
    found = find_sources({"source": pa.array(["a b", "a/b", "a_b", "", "x" * 90, "a b"] * 2)})
    assert found is not None
    assert len(set(found.labels)) == len(found.labels) == 5
    assert max(map(len, found.labels)) == 60


def test_the_same_decision_gives_the_same_numbers_after_a_resume(tmp_path) -> None:
    full = Run(tmp_path / "full", DeltaLoss()).begin()
    full.train()
    run = Run(tmp_path / "run", DeltaLoss()).begin()
    checkpoints: dict[int, Any] = {}
    run.train(after_step=lambda step: checkpoints.update({step: run.save(step)}))
    again = Run(tmp_path / "run", DeltaLoss()).begin(checkpoints[5])
    again.train(5)

    def without_times(logged: list[dict[str, float]]) -> list[dict[str, float]]:
        timed = ("share_of_run", "seconds", "tokens_per_s")
        return [{k: v for k, v in numbers.items() if not k.endswith(timed)} for numbers in logged]

    assert without_times(again.logged) == without_times(full.logged)[-len(again.logged) :]
    assert "dataflex/delta_q50" in again.logged[0]


def test_the_console_is_spared_our_numbers_and_keeps_the_hosts_own() -> None:
    from transformers import PrinterCallback, TrainerCallback
    from transformers.trainer_callback import ProgressCallback

    class Handler:
        def __init__(self) -> None:
            self.callbacks: list[TrainerCallback] = [PrinterCallback(), Logger(), ProgressCallback()]

    class Logger(TrainerCallback):
        pass

    class Trainer:
        callback_handler = Handler()
        seen: list[Any] = []  # noqa: RUF012

        def log(self, numbers: dict[str, float]) -> None:
            self.seen.append(([type(c) for c in self.callback_handler.callbacks], numbers))
            if "fail" in numbers:
                raise OSError("disk")

    trainer = Trainer()
    log_off_console(trainer, {"dataflex/segment": 1.0})
    assert trainer.seen == [([Logger], {"dataflex/segment": 1.0})]
    with pytest.raises(OSError, match="disk"):
        log_off_console(trainer, {"fail": 1.0})
    assert [type(c) for c in trainer.callback_handler.callbacks] == [PrinterCallback, Logger, ProgressCallback]
