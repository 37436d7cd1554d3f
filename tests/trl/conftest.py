"""One thread, no network, the tiny model of the examples, and TRL or a reason."""

import contextlib
import os
import sys
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

with contextlib.suppress(ImportError):
    # TRL 0.24 beside transformers 5 takes mergekit for installed; LLaMA-Factory mends that, if it is imported first.
    import llamafactory.extras.packages  # noqa: F401

pytest.importorskip("trl", reason="TRL is not installed")
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "trl"))


@pytest.fixture(scope="session", autouse=True)
def one_thread(tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets
    import torch

    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets-cache")
