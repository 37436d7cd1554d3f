"""One thread: the models here are too small for more, and a sum in another order is another number."""

import os

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")

pytest.register_assert_rewrite("tiny_models")


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    import torch

    torch.set_num_threads(1)
