"""The checks that every method passes, and what this one promises."""

from __future__ import annotations

import numpy as np
import pytest
from dataflex_near_median.near_median import NearMedian

from dataflex.algorithms.base import Progress
from dataflex.core.errors import ConfigError
from dataflex.testing import PLAN, SelectorCase, SelectorSuite


class TestNearMedian(SelectorSuite):
    @pytest.fixture(params=[SelectorCase(NearMedian()), SelectorCase(NearMedian(width=2.0))], ids=repr)
    def case(self, request):
        return request.param


def test_the_weight_falls_with_the_distance_to_the_median() -> None:
    losses_N = np.array([1.0, 2.0, 3.0, 4.0, 9.0])
    progress: Progress = PLAN.progress(PLAN.segment_at(1))
    state = {"trainable_N": np.ones(5, dtype=bool)}
    selection, _ = NearMedian().select(state, {"loss": losses_N}, 2, progress, np.random.default_rng(0))
    distances_N = np.abs(losses_N - 3.0)
    np.testing.assert_allclose(selection.columns_N["weight"], np.exp(-distances_N / (0.5 * distances_N.mean())))


@pytest.mark.parametrize("width", [0.0, -1.0, float("inf"), float("nan")])
def test_a_width_that_is_not_positive_is_refused(width: float) -> None:
    with pytest.raises(ConfigError, match="width"):
        NearMedian(width=width)
