"""Gradients, embeddings, references, anchors, estimates on two gloo ranks: what one measures, chooses and trains."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from test_two_ranks import WITHOUT_LABELS, cut_after, start, weights
from transformers import LlamaConfig, LlamaForCausalLM

from dataflex.ledger.ledger import Ledger

pytestmark = pytest.mark.long

METHODS = ("less", "cluster_less and adapt", "tsds", "rho_loss and rho1", "infobatch", "delta_loss in a budget")


@pytest.fixture(scope="module", params=METHODS)
def runs(request, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Path]:
    folder = tmp_path_factory.mktemp("ranks")
    torch.manual_seed(5)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=50, **sizes)).save_pretrained(folder / "reference")
    return request.param, start(folder / "one", 1, request.param), start(folder / "two", 2, request.param)


def test_rows_and_columns_are_equal(runs) -> None:
    _, one, two = runs
    lines = Ledger(one).segments()
    assert len(lines) == len(Ledger(two).segments()) > 5
    for k, line in lines.items():
        other = Ledger(two).segments()[k]
        assert sorted(Ledger(one).rows_of(line).tolist()) == sorted(Ledger(two).rows_of(other).tolist()), k
        assert not set(Ledger(one).rows_of(line).tolist()) & set(WITHOUT_LABELS)
        left, right = Ledger(one).signals_of(line), Ledger(two).signals_of(other)
        assert left.keys() == right.keys()
        for name in left:
            np.testing.assert_allclose(left[name], right[name], rtol=1e-3, atol=2e-5, equal_nan=True, err_msg=name)
    left, right = weights(one), weights(two)
    assert all(np.allclose(left[name], right[name], rtol=1e-3, atol=2e-5) for name in left)


def test_two_ranks_resume_to_the_bit(runs) -> None:
    method, _, two = runs
    run = start(cut_after(two, 4, two.parent / "cut"), 2, method)  # beside its reference
    full, resumed = weights(two), weights(run)
    assert all((full[name] == resumed[name]).all() for name in full)
