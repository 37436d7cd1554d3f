"""One thread, and nothing of the person's own caches."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest.register_assert_rewrite("curated_runs")


@pytest.fixture(scope="session", autouse=True)
def one_thread(tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets
    import torch

    torch.set_num_threads(1)
    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets-cache")
