"""Where the numbers of a decision can be seen with nothing but ``report_to``, and where they cannot."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.llamafactory.conftest import train


@pytest.fixture
def run(config, tmp_path: Path, capsys) -> tuple[Path, str]:
    """A run over two data sets with the logger TensorBoard, and what it printed."""
    folder = train(config(report_to="tensorboard", dataset="toy,other"), tmp_path)
    return folder, capsys.readouterr().out


def test_every_logger_gets_the_numbers_and_the_console_gets_sentences(run: tuple[Path, str]) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder, printed = run
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    stated = {
        (name, entry["step"]): value
        for entry in history
        for name, value in entry.items()
        if name.startswith("dataflex/")
    }
    for name in ("window_start", "improved", "from_window", "delta_q95", "loss_mean", "scoring_tokens_per_s"):
        assert (f"dataflex/{name}", 5) in stated, name
    assert stated["dataflex/pool_share/toy", 0] == pytest.approx(37 / 49)
    assert stated["dataflex/draw_share/toy", 3] + stated["dataflex/draw_share/other", 3] == pytest.approx(1)

    (events,) = (folder / "runs").rglob("events*")
    reader = EventAccumulator(str(events)).Reload()
    scalars = {
        (tag.removeprefix("train/"), event.step): event.value
        for tag in reader.Tags()["scalars"]
        if tag.startswith("train/dataflex/")
        for event in reader.Scalars(tag)
    }
    assert scalars == {key: pytest.approx(value, rel=1e-6) for key, value in stated.items()}

    lines = [json.loads(line) for line in (folder / "trainer_log.jsonl").read_text().splitlines()]
    logged = {
        (name, line["current_steps"]): value
        for line in lines
        for name, value in line.items()
        if name.startswith("dataflex/")
    }
    assert logged == stated
    assert sum("loss" in line for line in lines) == 7, "the host's own lines are as ever"

    assert "dataflex/" not in printed.replace(str(folder / "dataflex"), ""), "no raw numbers on the console"
    assert printed.count("'grad_norm'") == 7, "the host's own lines are as ever"
    ours = [line for line in printed.splitlines() if line.startswith("[dataflex]")]
    assert len(ours) == len(set(ours)) > 4, "no line is printed twice"
