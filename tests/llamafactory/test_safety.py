"""A run directory from a stranger runs no code when it is resumed, and nobody's remote code is trusted for the user."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from tests.llamafactory.conftest import train
from tests.llamafactory.test_resume import EVERY_CHECKPOINT, cut_after


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("form", ["a plain pickle", "an archive of PyTorch"])
@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_pickle_in_a_checkpoint_is_not_executed(config, tmp_path: Path, name: str, form: str) -> None:
    settings = config(output_dir=str(tmp_path / "full"), **EVERY_CHECKPOINT)
    run = cut_after(train(settings, tmp_path), 4, tmp_path / "cut")
    mark = tmp_path / "executed"
    planted = run / "checkpoint-4" / name
    assert planted.exists()
    if form == "a plain pickle":
        planted.write_bytes(pickle.dumps(Payload(mark)))
    else:
        torch.save(Payload(mark), planted)
    passed_over = name == "rng_state.pth" and form == "a plain pickle"  # no archive: not written to the end
    if name == "training_args.bin" or passed_over:  # nobody reads it
        train({**settings, "output_dir": str(run)}, tmp_path)
    else:
        with pytest.raises(Exception, match=r"(?i)weights.only|unsupported|unpickl"):
            train({**settings, "output_dir": str(run)}, tmp_path)
    assert not mark.exists()
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists(), "the payload works"


def test_remote_code_is_not_trusted_unless_the_user_says_so(config, tmp_path: Path, monkeypatch) -> None:
    from llamafactory.train import tuner

    given: list[dict] = []
    monkeypatch.setattr(tuner, "run_exp", given.append)
    for changes in ({}, {"trust_remote_code": True}):
        with pytest.raises(Exception, match="another trainer"):  # none was built here
            train(config(**changes), tmp_path)
    assert [config.get("trust_remote_code", False) for config in given] == [False, True]
