"""What ``plan`` says of passes: how many rows, of what, and their share of the training."""

from __future__ import annotations

import pytest

from dataflex import ClusterLess, Ifd, InfoBatch, Less, Loss, Near, Random, RhoLoss, Schedule
from dataflex.cli.plan import measured_rows, num_passes
from dataflex.core.order import Geometry
from dataflex.core.plan import SegmentPlan
from dataflex.train.method import Method

PLAN = SegmentPlan.dynamic(Schedule(warmup_step=2, update_step=5, update_times=4), num_epochs=1, pool_steps=100)
GEOMETRY = Geometry(world_size=1, accumulation=1, micro_batch=4)  # 20 rows a decision


@pytest.mark.parametrize(
    ("selector", "passes", "rows", "forwards"),
    [
        (Random(), 0, 0, 0),
        (Loss(), 4, 4000, 4000),
        (Less(), 4, 4000, 8000),
        (Near(), 1, 1000, 1000),
        (Ifd(), 1, 1000, 2000),
        (RhoLoss(reference="model", ratio=0.1), 4, 1000 + 4 * 200, 1000 + 4 * 200),
        (RhoLoss(reference="model", ratio=0.001), 4, 5000, 5000),
        (ClusterLess(cluster_size=50, representatives=2), 4, 1000 + 4 * 40, 1000 + 4 * 40 * 2),
    ],
    ids=repr,
)
def test_rows_that_are_measured_and_their_forwards(selector, passes, rows, forwards) -> None:
    method = Method(name="it", selector=selector)
    assert num_passes(method, PLAN) == passes
    assert measured_rows(method, PLAN, GEOMETRY, 1000, 2.0) == pytest.approx((rows, forwards))


def test_infobatch_says_what_it_will_leave_out() -> None:
    assert "leaves nothing out in this run: 100 rows are drawn of 1,000" in InfoBatch().foresee(100, 1000)
    assert "leaves 25% to 35% of the rows out of each pass after the first" in InfoBatch().foresee(3000, 1000)
